//! Who asks, as far as what they bring proves it.

use std::{borrow::Cow, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};

use super::Peer;
use crate::{
    Server,
    error::{ApiError, Result},
    identity::Identity,
    passport::{self, Caller, Line, PassportError},
    tokens::{API_AUDIENCE, Claims},
    websocket,
};

/// A caller as far as it is known before anything of its tenant was read.
pub(super) struct Found {
    pub(super) caller: Caller,
    /// Another server proved it and sent the request on.
    pub(super) is_forwarded: bool,
    /// Where it is.
    pub(super) address: Option<IpAddr>,
}

impl Server {
    /// Who the request comes from; `None` if it brings no credential.
    pub(super) fn authenticate(
        &self,
        line: Line<'_>,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Option<Found>> {
        if let Some(passport) = headers.get(passport::HEADER) {
            return self.forwarded(line, passport, peer).map(Some);
        }
        let known = |caller| Ok(Some(Found { caller, is_forwarded: false, address: peer.address }));
        if let Some(identity) = &peer.trusted {
            return known(Caller::Identity(identity.clone()));
        }
        match &peer.certificate {
            Some(Ok(identity)) => return known(Caller::Identity(identity.clone())),
            Some(Err(error)) => {
                tracing::info!(%error, "a client certificate was refused");
                return Err(ApiError::unauthorized());
            }
            None => (),
        }
        let Some(token) = bearer(headers)? else { return Ok(None) };
        match self.keys.verify(&token, &[API_AUDIENCE]) {
            Ok(claims) => known(Caller::Token(Box::new(claims))),
            Err(error) => {
                tracing::info!(error = crate::error::chain(&error), "a bearer token was refused");
                Err(ApiError::unauthorized())
            }
        }
    }

    /// The caller that another server vouches for. Only servers may.
    fn forwarded(
        &self,
        line: Line<'_>,
        passport: &http::HeaderValue,
        peer: &Peer,
    ) -> Result<Found> {
        let (Some(from), Some(peers)) = (&peer.server, &self.peers) else {
            tracing::warn!("somebody who is no server sent a passport");
            return Err(ApiError::only_for_servers());
        };
        let text = passport.to_str().map_err(|_| ApiError::only_for_servers())?;
        match self.keys.stamp().check(text, from, peers.own(), line) {
            Ok(passport) => {
                Ok(Found { caller: passport.caller, is_forwarded: true, address: passport.address })
            }
            Err(PassportError::Late { seconds }) => {
                tracing::error!(from, seconds, "the clock of a server is behind ours");
                Err(ApiError::unavailable(format!(
                    "the clock of server {from} is {seconds} s behind that of server {}; until \
                     they agree, ask another server",
                    peers.own()
                )))
            }
            Err(error) => {
                tracing::warn!(from, error = crate::error::chain(&error), "a passport was refused");
                Err(ApiError::only_for_servers())
            }
        }
    }

    /// Who the caller is, if it still exists.
    pub(super) async fn existing(&self, caller: Caller) -> Result<Identity> {
        let claims = match caller {
            Caller::Identity(identity) => return Ok(identity),
            Caller::Token(claims) => claims,
        };
        match self.check_bindings(&claims).await {
            Ok(true) => Ok(claims.identity()),
            Ok(false) => {
                tracing::info!(subject = claims.sub, "a token outlived what it was bound to");
                Err(ApiError::unauthorized())
            }
            // Who asks may be who they say; the storage does not tell at the moment.
            Err(error) => {
                tracing::warn!(%error, "a token's bindings could not be checked");
                Err(error)
            }
        }
    }

    /// The service account of a token and whom the token is for, if all that it is bound to still
    /// exists.
    pub(crate) async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[&str],
    ) -> Option<(Identity, Vec<String>)> {
        let claims = match self.keys.verify(token, audiences) {
            Ok(claims) => claims,
            Err(error) => {
                tracing::info!(error = crate::error::chain(&error), "a bearer token was refused");
                return None;
            }
        };
        match self.check_bindings(&claims).await {
            Ok(true) => Some((claims.identity(), claims.aud)),
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
}

/// The token that a request brings: in its header, or where browsers can put one.
fn bearer(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value.to_str().map_err(|_| ApiError::unauthorized())?;
        return match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Some(token.trim().into()))
            }
            _ => Err(ApiError::unauthorized()),
        };
    }
    if !websocket::is_asked_for(headers) {
        return Ok(None);
    }
    let Some(encoded) = websocket::token(headers) else { return Ok(None) };
    // A server answers with one of the protocols, and this is none.
    if websocket::offered(headers).next().is_none() {
        return Err(ApiError::unauthorized());
    }
    let token = URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|it| String::from_utf8(it).ok());
    token.map(|it| Some(it.into())).ok_or_else(ApiError::unauthorized)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[track_caller]
    fn check(sent: &[(HeaderName, &'static str)], expected: Result<Option<&str>, ()>) {
        let pairs = sent.iter().cloned();
        let headers: HeaderMap =
            pairs.map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        let found = bearer(&headers).map_err(|_| ());
        assert_eq!(found, expected.map(|it| it.map(Cow::from)));
    }

    #[test]
    fn tokens_come_in_two_places() {
        const PROTOCOL: HeaderName = header::SEC_WEBSOCKET_PROTOCOL;
        let upgrade = [(header::UPGRADE, "websocket"), (header::CONNECTION, "Upgrade")];
        let with = |value| [&upgrade[..], &[(PROTOCOL, value)]].concat();
        let token = "base64url.bearer.authorization.k8s.io.YS5iLmM";
        check(&[], Ok(None));
        check(&[(header::AUTHORIZATION, "bearer  a.b.c")], Ok(Some("a.b.c")));
        check(&[(header::AUTHORIZATION, "Basic eA==")], Err(()));
        check(
            &with("base64url.bearer.authorization.k8s.io.YS5iLmM, v5.channel.k8s.io"),
            Ok(Some("a.b.c")),
        );
        check(&with(token), Err(()));
        check(&with("base64url.bearer.authorization.k8s.io.!, v5.channel.k8s.io"), Err(()));
        check(&with("v5.channel.k8s.io"), Ok(None));
        check(&[(PROTOCOL, token)], Ok(None));
    }
}
