//! Requests for what an extension server has: let in here, answered there.
//!
//! The gate authorizes them like all others; then they go on as they came, less what is between
//! the client and us, with who asks in headers. Nothing of them is looked into: bodies, watches and
//! upgraded connections pass in both directions as fast as the slower end takes them.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
};
use hyper::upgrade::OnUpgrade;
use insula_api::{
    names::TenantName,
    path::{self, ResourcePath},
};

use super::Api;
use crate::{
    Server, answer,
    body::Body,
    error::{ApiError, Result},
    gate,
    identity::Identity,
    outbound::{Place, Trust},
    payload,
    registry::Whose,
    relay::{Onward, Via},
    request::{Query, deadline},
};

/// Most requests of one tenant that are at its extension servers at the same time.
pub(super) const AT_ONCE: usize = 1000;

/// A request that may go on.
#[derive(Debug)]
pub(crate) struct Delegated {
    pub api: Arc<Api>,
    pub identity: Identity,
    pub query: Query,
    pub verb: &'static str,
}

impl Delegated {
    /// A read of what is no object.
    pub(crate) fn read(api: &Arc<Api>, identity: &Identity, head: &Parts) -> Self {
        let query = Query::parse(head.uri.query());
        Self { api: api.clone(), identity: identity.clone(), query, verb: "get" }
    }
}

/// A request whose caller is known.
pub(crate) struct Asked {
    pub api: Arc<Api>,
    pub identity: Identity,
    pub whose: Whose,
    pub path: ResourcePath,
    pub query: Query,
}

impl Asked {
    /// Lets it in, if the rules do.
    pub(crate) async fn admit(self, server: &Server, method: &Method) -> Result<Delegated> {
        let Self { api, identity, whose, path, mut query } = self;
        if path.watch {
            query.set("watch", "true");
        }
        let verb = gate::verb(method, &path, &query);
        let verb = verb.or_else(|| (method == Method::POST).then_some("create"));
        let attributes =
            gate::attributes_of(&path, &query, verb.unwrap_or_else(|| gate::told(method)));
        if !server.may(&identity, &whose, &attributes).await? {
            return Err(gate::denied(&identity, &attributes));
        }
        let verb = verb.ok_or_else(ApiError::method_not_allowed)?;
        Ok(Delegated { api, identity, query, verb })
    }
}

/// Has the extension server answer.
pub(crate) async fn serve(
    server: &Server,
    it: &Delegated,
    head: &Parts,
    body: Body,
    upgrade: &mut Option<OnUpgrade>,
) -> Response<Body> {
    let limit = match deadline(&it.query) {
        // Those go on for as long as both ends like.
        Ok(_) if it.verb == "watch" || upgrade.is_some() => None,
        Ok(limit) => Some(limit),
        Err(error) => return answer::error(&error),
    };
    let Some(permit) = server.aggregation.turns.take(&it.api.tenant) else {
        let why = "too many requests are at this tenant's extension servers";
        return answer::error(&ApiError::too_many_requests(why, 1));
    };
    let path = match head.uri.query() {
        Some(query) => format!("{}?{query}", path::standard_form(head.uri.path())),
        None => path::standard_form(head.uri.path()),
    };
    let asking = async {
        let way = match Way::to(server, &it.api).await {
            Ok(way) => way,
            Err(failure) => {
                payload::drain(body).await;
                return Err(failure);
            }
        };
        let headers = headers_of(&it.identity).ok_or_else(|| Failure {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            why: "the user cannot be told".into(),
        })?;
        let via = Via::Tenant { tenant: &it.api.tenant, place: &way.place, trust: &way.trust };
        let watches = it.verb == "watch";
        let onward = Onward { via, path, headers, watches, permit: Some(permit) };
        let answer = server.relay(head, body, upgrade, onward).await.map_err(|error| {
            tracing::debug!(tenant = %it.api.tenant, %error, "an extension server does not answer");
            Failure::unavailable(format!("error trying to reach service: {error}"))
        })?;
        if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
            let why = "the backend attempted to redirect this request, which is not permitted";
            return Err(Failure { code: StatusCode::BAD_GATEWAY, why: why.into() });
        }
        Ok(answer)
    };
    let answered = match limit {
        None => asking.await,
        Some(limit) => tokio::time::timeout(limit, asking)
            .await
            .unwrap_or_else(|_| Ok(answer::error(&ApiError::late()))),
    };
    answered.unwrap_or_else(|Failure { code, why }| plain(code, &why))
}

/// Why an extension server is not asked, or not believed.
struct Failure {
    code: StatusCode,
    why: String,
}

impl Failure {
    fn unavailable(why: impl Into<String>) -> Self {
        Self { code: StatusCode::SERVICE_UNAVAILABLE, why: why.into() }
    }
}

/// The way to an extension server.
struct Way {
    place: Place,
    trust: Trust,
}

impl Way {
    /// Finds it, if its object says that it can be reached.
    async fn to(server: &Server, api: &Api) -> Result<Self, Failure> {
        let Some(remote) = api.remote.as_ref().filter(|it| it.is_available) else {
            return Err(Failure::unavailable("service unavailable"));
        };
        let trust = remote.trust(server, &api.tenant).await.map_err(|error| Failure {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            why: error.to_string(),
        })?;
        let place =
            server.resolve(&api.tenant, remote.destination("/")).await.map_err(|error| {
                tracing::debug!(tenant = %api.tenant, %error, "an extension server is not found");
                Failure::unavailable("service unavailable")
            })?;
        Ok(Self { place, trust })
    }
}

/// A failure as upstream's proxy tells it.
fn plain(code: StatusCode, why: &str) -> Response<Body> {
    let mut answer = answer::bytes(code, format!("{why}\n").into(), answer::TEXT);
    let options = HeaderName::from_static("x-content-type-options");
    answer.headers_mut().insert(options, HeaderValue::from_static("nosniff"));
    answer
}

/// Who asks, as extension servers are told; `None` if it cannot be said in headers.
pub(crate) fn headers_of(identity: &Identity) -> Option<HeaderMap> {
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).ok();
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("x-remote-user"), value(&identity.user)?);
    if !identity.uid.is_empty() {
        headers.insert(HeaderName::from_static("x-remote-uid"), value(&identity.uid)?);
    }
    for group in &identity.groups {
        headers.append(HeaderName::from_static("x-remote-group"), value(group)?);
    }
    for (key, values) in &identity.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Some(headers)
}

/// A key as a part of a header's name.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        match is_plain {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Who asks when nobody else does.
pub(super) fn ourselves() -> Identity {
    let mut identity =
        Identity::new(TenantName::system(), "system:kube-aggregator", &[crate::identity::MASTERS]);
    identity.groups.retain(|it| it == crate::identity::MASTERS);
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_told_in_headers() {
        let acme = TenantName::parse("acme").unwrap();
        let mut identity = Identity::new(acme, "jürgen", &["a", "b"]);
        identity.uid = "u-1".into();
        let key = "authentication.kubernetes.io/credential-id";
        identity.extra.insert(key.into(), vec!["x".into(), "y".into()]);
        let headers = headers_of(&identity).unwrap();
        assert_eq!(headers["x-remote-user"].as_bytes(), "jürgen".as_bytes());
        assert_eq!(headers["x-remote-uid"], "u-1");
        let all = |name: &str| -> Vec<String> {
            let all = headers.get_all(name).iter();
            all.map(|it| it.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(all("x-remote-group"), ["a", "b", "system:authenticated"]);
        let name = "x-remote-extra-authentication.kubernetes.io%2fcredential-id";
        assert_eq!(all(name), ["x", "y"]);
        identity.user = "a\r\nx-remote-group: root".into();
        assert!(headers_of(&identity).is_none());
    }
}
