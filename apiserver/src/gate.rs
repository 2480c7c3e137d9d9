//! The one gate: who asks, where to, and whether they may. Every request passes it.
//!
//! # Invariants
//!
//! * Nothing of a tenant is read before the caller is known to belong to it, or to the platform.
//! * A denial tells the caller only what the request itself said.
//! * The path alone names a tenant; headers and query never do.

use http::{HeaderMap, Method, header};
use insula_api::{
    names::TenantName,
    path::{Place, ResourcePath, Target},
    resources::Scope,
};

use crate::{
    Server, bootstrap,
    call::Call,
    error::{ApiError, Result},
    identity::{Identity, IdentityError},
    rbac::Attributes,
    registry::Whose,
    request::{Accept, Query},
    tokens::{API_AUDIENCE, Claims},
};

/// What the connection says of its other end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    /// The client certificate, verified against the CA by TLS, in DER.
    pub certificate: Option<Vec<u8>>,
    /// The name of the server that it is, proven by the certificate.
    pub server: Option<String>,
    /// Set by callers in the same process only.
    pub trusted: Option<Identity>,
}

/// A request that was let in.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// For a resource.
    Resource(Box<Call>),
    /// For anything else, as a standard path.
    Other { identity: Option<Identity>, whose: Whose, path: String },
}

/// Paths that tell nothing and are open to everyone.
fn is_public(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz"].iter().any(|open| {
        path.strip_prefix(open).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

impl Server {
    /// Who the request comes from; `None` if it brings no credential.
    async fn authenticate(&self, headers: &HeaderMap, peer: &Peer) -> Result<Option<Identity>> {
        if let Some(identity) = &peer.trusted {
            return Ok(Some(identity.clone()));
        }
        if let Some(der) = &peer.certificate {
            return match Identity::from_certificate(der) {
                Ok(identity) => Ok(Some(identity)),
                Err(error) => {
                    log_refusal(&error);
                    Err(ApiError::unauthorized())
                }
            };
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
        let text = value.to_str().map_err(|_| ApiError::unauthorized())?;
        let token = match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(ApiError::unauthorized()),
        };
        match self.authenticate_token(token, &[API_AUDIENCE]).await {
            Some(identity) => Ok(Some(identity)),
            None => Err(ApiError::unauthorized()),
        }
    }

    /// The service account of a token, if all that it is bound to still exists.
    pub(crate) async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[&str],
    ) -> Option<Identity> {
        let claims = match self.keys.verify(token, audiences) {
            Ok(claims) => claims,
            Err(error) => {
                tracing::info!(error = crate::error::chain(&error), "a bearer token was refused");
                return None;
            }
        };
        match self.check_bindings(&claims).await {
            Ok(true) => Some(claims.identity()),
            Ok(false) => {
                tracing::info!(subject = claims.sub, "a token outlived what it was bound to");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a token's bindings could not be checked");
                None
            }
        }
    }

    async fn check_bindings(&self, claims: &Claims) -> Result<bool> {
        let kubernetes = &claims.kubernetes;
        let exists = async |resource: &str, name: &str, uid: &str| -> Result<bool> {
            let found =
                self.find(&kubernetes.tenant, "", resource, &kubernetes.namespace, name).await?;
            Ok(found.is_some_and(|it| insula_api::object::uid(&it) == uid))
        };
        let account = &kubernetes.serviceaccount;
        if !exists("serviceaccounts", &account.name, &account.uid).await? {
            return Ok(false);
        }
        if let Some(pod) = &kubernetes.pod
            && !exists("pods", &pod.name, &pod.uid).await?
        {
            return Ok(false);
        }
        match &kubernetes.secret {
            Some(secret) => exists("secrets", &secret.name, &secret.uid).await,
            None => Ok(true),
        }
    }

    /// Lets a request in, or says why not.
    pub(crate) async fn admit(
        &self,
        method: &Method,
        target: Target,
        query: Query,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Admitted> {
        let identity = self.authenticate(headers, peer).await?;
        if headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            return Err(ApiError::bad_request("impersonation is not offered by this server"));
        }
        let Target { tenant, place } = target;
        let Some(identity) = identity else {
            return match place {
                Place::Other(path) if is_public(&path) => Ok(Admitted::Other {
                    identity: None,
                    whose: Whose::One(TenantName::system()),
                    path,
                }),
                _ => Err(ApiError::unauthorized()),
            };
        };
        let whose = Whose::resolve(&tenant, &identity.tenant);
        self.check_tenant(&identity, &whose, method, &place).await?;
        match place {
            Place::Other(path) => {
                let attributes = Attributes {
                    verb: method.as_str().to_lowercase(),
                    path: path.clone(),
                    ..Attributes::default()
                };
                if !is_public(&path) && !self.may(&identity, &whose, &attributes).await? {
                    return Err(denied(&identity, &attributes));
                }
                Ok(Admitted::Other { identity: Some(identity), whose, path })
            }
            Place::Resource(path) => {
                let call = self.resource(method, path, query, headers, identity, whose).await?;
                Ok(Admitted::Resource(Box::new(call)))
            }
        }
    }

    /// The caller belongs to the tenant, or to the platform and the tenant exists.
    async fn check_tenant(
        &self,
        identity: &Identity,
        whose: &Whose,
        method: &Method,
        place: &Place,
    ) -> Result<()> {
        if whose.tenant() == Some(&identity.tenant) {
            return Ok(());
        }
        if !identity.tenant.is_system() {
            // The same words whether the tenant exists or not.
            let path = match place {
                Place::Other(path) => path.clone(),
                Place::Resource(path) => format!("/{}", path.resource),
            };
            let verb = method.as_str().to_lowercase();
            return Err(ApiError::forbidden_path(&identity.user, &verb, &path));
        }
        match whose {
            Whose::All => Ok(()),
            Whose::One(tenant) => match bootstrap::find_tenant(self, tenant).await? {
                Some(_) => Ok(()),
                None => Err(ApiError::not_found("insula.io", "tenants", tenant.as_str())),
            },
        }
    }

    async fn resource(
        &self,
        method: &Method,
        mut path: ResourcePath,
        mut query: Query,
        headers: &HeaderMap,
        identity: Identity,
        mut whose: Whose,
    ) -> Result<Call> {
        let served = self
            .registry
            .get(&path.group, &path.version, &path.resource)
            .cloned()
            .ok_or_else(ApiError::unknown_resource)?;
        if path.watch {
            query.set("watch", "true");
            path.watch = false;
        }
        let collection = path.name.is_empty();
        let verb = match (method.as_str(), collection) {
            ("GET" | "HEAD", true) if query.flag("watch") => "watch",
            ("GET" | "HEAD", true) => "list",
            // The old form of watching one object.
            ("GET" | "HEAD", false) if query.flag("watch") && path.subresource.is_empty() => {
                "watch"
            }
            ("GET" | "HEAD", false) => "get",
            ("POST", _) => "create",
            ("PUT", false) => "update",
            ("PATCH", false) => "patch",
            ("DELETE", true) => "deletecollection",
            ("DELETE", false) => "delete",
            _ => return Err(ApiError::method_not_allowed()),
        };
        if !path.subresource.is_empty() && served.resource.subresource(&path.subresource).is_none()
        {
            return Err(ApiError::unknown_resource());
        }
        let accept = Accept::from_request(headers, &query)?;
        let mut call = Call {
            identity,
            whose: whose.clone(),
            served,
            path,
            verb,
            query,
            accept,
            headers: headers.clone(),
        };
        let mut attributes = attributes(&call, verb);
        if matches!(&*call.path.subresource, "exec" | "attach" | "portforward") {
            // One verb for both ways of upgrading a connection.
            attributes.verb = "create".into();
        }
        if !self.may(&call.identity, &call.whose, &attributes).await? {
            return Err(denied(&call.identity, &attributes));
        }
        self.check_scope(&call, &attributes)?;
        if call.served.resource.scope == Scope::Fleet {
            // Fleet objects are kept by the platform, whoever reads them.
            if !matches!(whose, Whose::One(ref tenant) if tenant.is_system()) {
                whose = Whose::One(TenantName::system());
                call.whose = whose;
            }
        }
        Ok(call)
    }

    /// Limits that hold whatever the rules of a tenant say.
    fn check_scope(&self, call: &Call, attributes: &Attributes) -> Result<()> {
        let resource = &call.served.resource;
        let of_platform = call.identity.tenant.is_system();
        if resource.scope == Scope::Fleet && !of_platform {
            let granted = resource.name == "nodes"
                && matches!(call.verb, "get" | "list")
                && call.path.subresource.is_empty();
            if !granted {
                return Err(denied(&call.identity, attributes));
            }
        }
        // An agent speaks for its own node only.
        if let Some(node) = call.identity.node()
            && !matches!(call.verb, "get" | "list" | "watch")
        {
            let own = match (&*resource.group, &*resource.name) {
                ("", "nodes") | ("coordination.k8s.io", "leases") => {
                    call.verb == "create" && call.path.name.is_empty() || call.path.name == node
                }
                _ => true,
            };
            if !own {
                let why = format!("node {node:?} may change only itself");
                return Err(call.forbidden(&call.path.name, &why));
            }
        }
        Ok(())
    }
}

/// What `call` does, with `verb`, in the terms of RBAC.
pub(crate) fn attributes(call: &Call, verb: &str) -> Attributes {
    let path = &call.path;
    // A list or watch of one name counts as asking for that name.
    let named = call.query.get("fieldSelector").and_then(|text| {
        let selector = insula_api::selector::FieldSelector::parse(text).ok()?;
        selector.required("metadata.name").map(str::to_owned)
    });
    let name = match path.name.is_empty() {
        true => named.filter(|_| matches!(verb, "list" | "watch" | "deletecollection")),
        false => Some(path.name.clone()),
    };
    Attributes {
        verb: verb.into(),
        group: path.group.clone(),
        resource: path.resource.clone(),
        subresource: path.subresource.clone(),
        namespace: path.namespace.clone(),
        name: name.unwrap_or_default(),
        path: String::new(),
    }
}

/// The answer to a caller who may not.
pub(crate) fn denied(identity: &Identity, it: &Attributes) -> ApiError {
    if !it.path.is_empty() {
        return ApiError::forbidden_path(&identity.user, &it.verb, &it.path);
    }
    let resource = match it.subresource.is_empty() {
        true => it.resource.clone(),
        false => format!("{}/{}", it.resource, it.subresource),
    };
    let place = match it.namespace.is_empty() {
        true => "at the cluster scope".to_owned(),
        false => format!("in the namespace {:?}", it.namespace),
    };
    let why = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
        identity.user, it.verb, it.group
    );
    ApiError::forbidden(&it.group, &it.resource, &it.name, &why)
}

fn log_refusal(error: &IdentityError) {
    tracing::info!(%error, "a client certificate was refused");
}
