//! The one gate: who asks, where to, and whether they may. Every request passes it.
//!
//! # Invariants
//!
//! * Nothing of a tenant is read before the caller is known to belong to it, or to the platform.
//! * A denial tells the caller only what the request itself said.
//! * The path alone names a tenant; headers and query never do.

mod bootstrap_tokens;
mod credentials;
mod impersonation;
mod nodes;
mod statics;

use std::sync::Arc;

use http::{HeaderMap, Method};
use insula_api::{
    names::TenantName,
    path::{PathError, Place, ResourcePath, Target, TenantRef},
    resources::Scope,
    schema::Schema,
};

use crate::{
    Server,
    accept::{Accept, Form, Offers},
    aggregation::delegate::{self, Delegated},
    bootstrap,
    call::Call,
    custom::Found,
    epochs,
    error::{ApiError, Result},
    fair, granted,
    identity::{Identity, IdentityError},
    passport::{Caller, Line},
    rbac::Attributes,
    record::{About, Record, Who},
    registry::{Nature, Served, Whose},
    remarks::Remarks,
    request::{DEADLINE, Query, SLOTS, deadline},
};

pub(crate) use self::bootstrap_tokens::BootstrapToken;
use self::credentials::Found as Known;
pub(crate) use self::nodes::Bound;
pub use self::statics::{StaticTokens, StaticTokensError};

/// What the connection says of its other end.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    /// Who the client certificate, verified against the CA by TLS, says it is.
    pub certificate: Option<Result<Identity, IdentityError>>,
    /// The name of the server that it is, proven by the certificate.
    pub server: Option<String>,
    /// Set by callers in the same process only.
    pub trusted: Option<Identity>,
    /// Where it is.
    pub address: Option<std::net::IpAddr>,
    /// Who pays for the connection.
    pub pays: Arc<fair::Payer>,
}

/// A request that was let in.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// For a resource.
    Resource(Box<Call>),
    /// For a resource that an extension server has.
    Delegated(Box<Delegated>),
    /// For another server, which has what it is about.
    Elsewhere { caller: Box<Caller>, place: insula_partition::partitions::Place },
    /// Another server sent it here, and it is not here either.
    Misdirected,
    /// For anything else, as a standard path.
    Other { identity: Option<Identity>, whose: Whose, path: String },
}

/// A request for a resource that is served here, whose caller is known.
struct Asked {
    served: Arc<Served>,
    identity: Identity,
    whose: Whose,
    /// Whether that tenant is there.
    exists: bool,
    path: ResourcePath,
    query: Query,
}

/// Paths that tell nothing and are open to everyone.
fn is_public(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz"].iter().any(|open| {
        path.strip_prefix(open).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

impl Server {
    /// Lets a request in, or says why not, or who will.
    pub(crate) async fn admit(
        &self,
        line: Line<'_>,
        target: Target,
        query: Query,
        headers: &HeaderMap,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Admitted> {
        if let Place::Resource(path) = &target.place {
            record.about = Some(Box::new(About::from(path)));
        }
        let found = self.authenticate(line, headers, peer, &target.tenant).await?;
        let wanted = impersonation::Wanted::read(headers)?;
        let Target { tenant, place } = target;
        let Some(Known { caller, is_forwarded, address }) = found else {
            return match place {
                Place::Other(path) if is_public(&path) => Ok(Admitted::Other {
                    identity: None,
                    whose: Whose::One(TenantName::system()),
                    path,
                }),
                _ => Err(ApiError::unauthorized()),
            };
        };
        record.address = address;
        let whose = Whose::resolve(&tenant, caller.tenant());
        if self.audit.is_some() && caller.is_proven() {
            // Who is refused from here on is written down as well.
            let identity = caller.identity();
            record.who = Some(Who { identity, impersonator: None, whose: whose.clone() });
        }
        check_outsider(&caller, &whose, line.method, &place)?;
        let is_here = matches!(&place, Place::Other(path) if is_public(path));
        if !is_here && let Some(place) = self.elsewhere(&place, &whose, &caller) {
            return Ok(match is_forwarded {
                true => Admitted::Misdirected,
                false => Admitted::Elsewhere { caller: Box::new(caller), place },
            });
        }
        let mut identity = self.existing(caller).await?;
        let exists = self.has_tenant(&identity, &whose).await?;
        let mut impersonator = None;
        if let Some(wanted) = wanted {
            let asked = asked(line.method, &place, &query);
            let other = self.impersonated(&identity, wanted, &whose, &asked).await?;
            impersonator = Some(std::mem::replace(&mut identity, other));
        }
        if self.audit.is_some() {
            let identity = identity.clone();
            record.who = Some(Who { identity, impersonator, whose: whose.clone() });
        }
        let method = line.method;
        if !is_here {
            let asks = fair::Asks { method, place: &place, query: &query };
            let passed = self.let_on(&identity, &whose, asks, &mut record.told).await?;
            // Another server's connection is for the requests of many.
            if peer.server.is_none() {
                self.fair.bill(&peer.pays, &passed);
            }
            record.pass = Some(passed);
        }
        match place {
            Place::Other(path) => {
                let attributes = Attributes {
                    verb: method.as_str().to_lowercase(),
                    path: path.clone(),
                    ..Attributes::default()
                };
                if !is_public(&path) {
                    if !self.may(&identity, &whose, &attributes).await? {
                        return Err(denied(&identity, &attributes));
                    }
                    check_exists(exists, &whose)?;
                }
                Ok(Admitted::Other { identity: Some(identity), whose, path })
            }
            Place::Resource(path) => {
                let ResourcePath { group, version, resource, .. } = &path;
                let Some(found) = self.served(&whose, group, version, resource).await? else {
                    let verb = verb(method, &path, &query).unwrap_or_else(|| told(method));
                    let attributes = attributes_of(&path, &query, judged_verb(&path, verb));
                    if !self.may(&identity, &whose, &attributes).await? {
                        return Err(denied(&identity, &attributes));
                    }
                    check_exists(exists, &whose)?;
                    return Err(self.unknown_in(group));
                };
                match found {
                    Found::Elsewhere(api) => {
                        let asked = delegate::Asked { api, identity, whose, path, query };
                        Ok(Admitted::Delegated(Box::new(asked.admit(self, method).await?)))
                    }
                    Found::Here(served) => {
                        let asked = Asked { served, identity, whose, exists, path, query };
                        Ok(Admitted::Resource(Box::new(
                            self.resource(method, asked, headers).await?,
                        )))
                    }
                }
            }
        }
    }

    /// What is said of a path that cannot be read: to those who are known, why; to a tenant's
    /// user who names no tenant that could be, what is said of other tenants.
    pub(crate) async fn astray(
        &self,
        line: Line<'_>,
        why: PathError,
        headers: &HeaderMap,
        peer: &Peer,
        record: &mut Record,
    ) -> ApiError {
        let found = self.authenticate(line, headers, peer, &TenantRef::Callers).await;
        let Known { caller, address, .. } = match found {
            Ok(Some(known)) => known,
            Ok(None) => return ApiError::unauthorized(),
            Err(error) => return error,
        };
        record.address = address;
        let identity = match self.existing(caller).await {
            Ok(identity) => identity,
            Err(error) => return error,
        };
        let told = match &why {
            PathError::Tenant(_) if !identity.tenant.is_system() => {
                let verb = line.method.as_str().to_lowercase();
                ApiError::forbidden_path(&identity.user, &verb, line.uri.path())
            }
            _ => why.into(),
        };
        let whose = Whose::One(identity.tenant.clone());
        record.who = Some(Who { identity, impersonator: None, whose });
        told
    }

    /// What is said of paths of a group that mean nothing: upstream's server for its own groups,
    /// and whoever comes last for all others, say it in their own ways.
    pub(crate) fn unknown_in(&self, group: &str) -> ApiError {
        match group.is_empty() || self.registry.has_group(group) {
            true => ApiError::unknown_resource(),
            false => ApiError::unknown_path(),
        }
    }

    /// Whether the tenant is there that a user of the platform asks for; one's own is.
    async fn has_tenant(&self, identity: &Identity, whose: &Whose) -> Result<bool> {
        match whose {
            Whose::All => Ok(true),
            Whose::One(tenant) if *tenant == identity.tenant => Ok(true),
            Whose::One(tenant) => Ok(bootstrap::find_tenant(self, tenant).await?.is_some()),
        }
    }

    async fn resource(&self, method: &Method, asked: Asked, headers: &HeaderMap) -> Result<Call> {
        let Asked { served, identity, whose, exists, mut path, mut query } = asked;
        let verb = verb(method, &path, &query);
        if path.watch {
            query.set("watch", "true");
            path.watch = false;
        }
        let attributes =
            attributes_of(&path, &query, judged_verb(&path, verb.unwrap_or_else(|| told(method))));
        let of_platform = identity.tenant.is_system();
        let is_fleets = served.resource.scope == Scope::Fleet;
        let kept = match is_fleets {
            true => Whose::One(TenantName::system()),
            false => whose.clone(),
        };
        // What a user of the platform may do in a tenant says nothing of what is the platform's.
        let judged = if of_platform { &kept } else { &whose };
        if !self.may(&identity, judged, &attributes).await? {
            return Err(denied(&identity, &attributes));
        }
        // Only now, so that nobody else is told what there is.
        if served.custom().is_none() {
            check_place(&served, &path)?;
        }
        if !matches!(whose, Whose::All) && query.all(SLOTS).next().is_some() {
            let why = "slots can only be asked for where all tenants are";
            return Err(ApiError::bad_request(why));
        }
        let verb = match served.custom() {
            Some(_) => verb_of_custom(&served, &mut path, method, verb)?,
            // Upstream has no routes for these.
            None if *method == Method::HEAD => return Err(ApiError::method_not_allowed()),
            None => verb.ok_or_else(ApiError::method_not_allowed)?,
        };
        if !path.subresource.is_empty() && served.resource.subresource(&path.subresource).is_none()
        {
            return Err(ApiError::unknown_resource());
        }
        // Limits that hold whatever the rules of a tenant say.
        if is_fleets
            && !of_platform
            && (!path.subresource.is_empty() || !granted::is_granted(&served.resource, verb))
        {
            return Err(denied(&identity, &attributes));
        }
        let patience = deadline(&query).unwrap_or(DEADLINE);
        let epoch = epochs::asked(headers, &identity)?;
        let mut call = Call {
            identity: identity.into(),
            // Fleet objects are kept by the platform, whoever reads them.
            whose: kept,
            served,
            path,
            verb,
            query,
            accept: Accept::JSON,
            headers: headers.clone().into(),
            epoch,
            together: None,
            until: tokio::time::Instant::now() + patience,
            remarks: std::sync::Arc::new(Remarks::new(self.audit.is_some())),
        };
        if let Some(node) = call.identity.node() {
            self.check_node(&call, node, &attributes).await?;
        }
        check_exists(exists, &whose)?;
        if let Some(offers) = offers(&call) {
            call.accept = Accept::negotiate(&call.headers, &call.query, offers)?;
        }
        if call.served.has_only_metadata()
            && !matches!(call.accept.form, Form::PartialMetadata | Form::PartialMetadataList)
        {
            return Err(ApiError::unfit_form("of all tenants there is only metadata of these"));
        }
        Ok(call)
    }
}

/// Who may ask is told that the tenant is not there; for all others it is like any other.
fn check_exists(exists: bool, whose: &Whose) -> Result<()> {
    match whose.tenant() {
        Some(tenant) if !exists => {
            Err(ApiError::not_found("insula.io", "tenants", tenant.as_str()))
        }
        _ => Ok(()),
    }
}

/// What lies in no namespace is not reached through one: rules of the namespace let it be.
fn check_place(served: &Served, path: &ResourcePath) -> Result<()> {
    let is_namespace = path.group.is_empty() && path.resource == "namespaces";
    match path.namespace.is_empty()
        || served.resource.is_namespaced()
        || is_namespace && path.namespace == path.name
    {
        true => Ok(()),
        false => Err(ApiError::unknown_resource()),
    }
}

/// What is asked of a custom resource. Upstream has no routes for these, and looks at the parts of
/// the path alone: what stands behind a subresource means nothing, nor does the name of what is
/// to be made.
fn verb_of_custom(
    served: &Served,
    path: &mut ResourcePath,
    method: &Method,
    verb: Option<&'static str>,
) -> Result<&'static str> {
    let it = &served.resource;
    let of_all = it.is_namespaced() && matches!(verb, Some("list" | "watch"));
    if it.is_namespaced() == path.namespace.is_empty() && !of_all {
        return Err(ApiError::unknown_path());
    }
    let asked = verb.unwrap_or_else(|| told(method));
    path.rest.clear();
    if !path.subresource.is_empty() {
        let Some(part) = it.subresource(&path.subresource) else {
            return Err(ApiError::not_found(&it.group, &it.name, &path.name));
        };
        return match part.verbs.iter().any(|verb| verb == asked) {
            true => Ok(asked),
            false => Err(ApiError::not_supported(asked, &it.group, &it.name)),
        };
    }
    match asked {
        "" => Err(ApiError::not_supported(asked, &it.group, &it.name)),
        "create" => {
            path.name.clear();
            Ok(asked)
        }
        "update" | "patch" if path.name.is_empty() => {
            Err(ApiError::bad_request("name must be provided"))
        }
        _ => Ok(asked),
    }
}

/// What a call can be answered with; `None` if that is for somebody else to say.
fn offers(call: &Call) -> Option<Offers> {
    let schema = Schema::built_in();
    let sub = &*call.path.subresource;
    if matches!(sub, "log" | "exec" | "attach" | "portforward" | "proxy") {
        return None;
    }
    let protobuf = match call.served.resource.subresource(sub) {
        // A part of another kind than the whole, such as a Scale.
        Some(part) if part.kind != call.served.resource.gvk() => true,
        _ => match &call.served.nature {
            Nature::BuiltIn(id) => schema.has_proto(*id),
            Nature::Custom(_) => false,
        },
    };
    let table = call.served.resource.is_stored();
    Some(Offers { protobuf, table, stream: call.verb == "watch" })
}

/// The caller belongs to the tenant, or to the platform. Reads nothing.
fn check_outsider(caller: &Caller, whose: &Whose, method: &Method, place: &Place) -> Result<()> {
    let home = caller.tenant();
    if home.is_system() || whose.tenant() == Some(home) {
        return Ok(());
    }
    // The same words whether the tenant exists or not.
    let path = match place {
        Place::Other(path) => path.clone(),
        Place::Resource(path) => format!("/{}", path.resource),
    };
    let verb = method.as_str().to_lowercase();
    Err(ApiError::forbidden_path(&caller.identity().user, &verb, &path))
}

/// What a request does, as rules name it, if it does anything.
pub(crate) fn verb(method: &Method, path: &ResourcePath, query: &Query) -> Option<&'static str> {
    Some(match (method.as_str(), path.name.is_empty()) {
        // An object itself is watched in the old form alone: asked to be watched it is read.
        ("GET" | "HEAD", false) if path.watch && path.subresource.is_empty() => "watch",
        ("GET" | "HEAD", true) if path.watch || query.flag("watch") => "watch",
        ("GET" | "HEAD", true) => "list",
        ("GET" | "HEAD", false) => "get",
        ("POST", true) => "create",
        ("POST", false) if !path.subresource.is_empty() => "create",
        ("PUT", false) => "update",
        ("PATCH", false) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => return None,
    })
}

/// What a request would do that does nothing: who may not do it is not told so.
pub(crate) fn told(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The verb that the rules are asked about: one for both ways of upgrading a connection.
fn judged_verb<'v>(path: &ResourcePath, verb: &'v str) -> &'v str {
    match &*path.subresource {
        "exec" | "attach" | "portforward" => "create",
        _ => verb,
    }
}

/// What a request is to do, in the terms of RBAC, before anything of it is looked up.
fn asked(method: &Method, place: &Place, query: &Query) -> Attributes {
    match place {
        Place::Other(path) => Attributes {
            verb: method.as_str().to_lowercase(),
            path: path.clone(),
            ..Attributes::default()
        },
        Place::Resource(path) => {
            let verb = verb(method, path, query).unwrap_or_default();
            attributes_of(path, query, judged_verb(path, verb))
        }
    }
}

/// What `call` does, with `verb`, in the terms of RBAC.
pub(crate) fn attributes(call: &Call, verb: &str) -> Attributes {
    attributes_of(&call.path, &call.query, verb)
}

/// As [`attributes`], of what is no call yet.
pub(crate) fn attributes_of(path: &ResourcePath, query: &Query, verb: &str) -> Attributes {
    // A list or watch of one name counts as asking for that name.
    let named = query.get("fieldSelector").and_then(|text| {
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
