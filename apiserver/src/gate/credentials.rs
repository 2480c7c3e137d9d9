//! Who asks, as far as what they bring proves it.
//!
//! What is shown is looked at in one order: another server's word, the connection itself (the same
//! process, or a client certificate), then a token. A token is the business of the first of
//! [`CHAIN`] that knows its form; nobody after that is asked.
//!
//! # Invariants
//!
//! * Of what tenant somebody is, a certificate, a signed claim of ours or the operator's file
//!   says. Tokens that a tenant vouches for itself are good in that tenant alone, which the path
//!   names, or in the platform's where it names none.
//! * Who shows something that is not good is nobody, even if nothing had to be shown.

use std::{borrow::Cow, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use insula_api::{names::TenantName, path::TenantRef};

use super::{Peer, bootstrap_tokens::BootstrapToken};
use crate::{
    Server,
    error::{ApiError, Result, chain},
    identity::Identity,
    passport::{self, Caller, Line, PassportError, Stamp},
    providers::ProviderError,
    tokens::{API_AUDIENCE, Claims, MAX_TOKEN, TokenError},
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

/// Who knows tokens of one form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Authenticator {
    /// Signed by a key of ours.
    ServiceAccounts,
    /// Written down in a file.
    Statics,
    /// A secret of the tenant.
    Bootstrap,
    /// Signed by somebody whom the tenant trusts.
    Providers,
}

/// In the order in which they are asked.
const CHAIN: [Authenticator; 4] = [
    Authenticator::ServiceAccounts,
    Authenticator::Statics,
    Authenticator::Bootstrap,
    Authenticator::Providers,
];

/// A token that somebody shows, and what it is shown for.
struct Bearer<'a> {
    token: &'a str,
    /// Where the tenants' own tokens are looked for.
    tenant: &'a TenantName,
    audiences: &'a [&'a str],
}

/// Why a token is not good. Never sent to the client.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("nobody knows the token")]
    Unknown,
    #[error(transparent)]
    ServiceAccount(TokenError),
    #[error(transparent)]
    Provider(ProviderError),
    /// It may be good; the storage does not tell at the moment.
    #[error(transparent)]
    Storage(Box<ApiError>),
}

impl From<ProviderError> for Refusal {
    fn from(error: ProviderError) -> Self {
        match error {
            ProviderError::Storage(error) => Self::Storage(error),
            other => Self::Provider(other),
        }
    }
}

impl Server {
    /// Who the request comes from; `None` if it brings no credential.
    pub(super) async fn authenticate(
        &self,
        line: Line<'_>,
        headers: &HeaderMap,
        peer: &Peer,
        asked: &TenantRef,
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
        let tenant = match asked {
            TenantRef::Named(tenant) => Cow::Borrowed(tenant),
            TenantRef::Callers | TenantRef::All => Cow::Owned(TenantName::system()),
        };
        let bearer = Bearer { token: &token, tenant: &tenant, audiences: &[API_AUDIENCE] };
        match self.holder(&bearer).await {
            Ok(caller) => known(caller),
            Err(Refusal::Storage(error)) => Err(*error),
            Err(error) => {
                tracing::info!(error = chain(&error), "a bearer token was refused");
                Err(ApiError::unauthorized())
            }
        }
    }

    /// Who holds a token, as the first one says who knows its form.
    async fn holder(&self, bearer: &Bearer<'_>) -> Result<Caller, Refusal> {
        if MAX_TOKEN < bearer.token.len() {
            return Err(Refusal::TooLong);
        }
        for authenticator in CHAIN {
            if let Some(caller) = self.ask(authenticator, bearer).await? {
                return Ok(caller);
            }
        }
        Err(Refusal::Unknown)
    }

    /// Who holds a token, if it is one of those that `authenticator` knows.
    async fn ask(
        &self,
        authenticator: Authenticator,
        bearer: &Bearer<'_>,
    ) -> Result<Option<Caller>, Refusal> {
        let Bearer { token, tenant, audiences } = *bearer;
        // All but our own say nothing of whom they are for: they are for us.
        let is_for_us = audiences.contains(&API_AUDIENCE);
        match authenticator {
            Authenticator::ServiceAccounts => match self.keys.verify(token, audiences) {
                Ok(claims) => Ok(Some(Caller::Token(Box::new(claims)))),
                Err(TokenError::Foreign) => Ok(None),
                Err(error) => Err(Refusal::ServiceAccount(error)),
            },
            _ if !is_for_us => Ok(None),
            Authenticator::Statics => {
                let holder = self.static_tokens.as_ref().and_then(|it| it.holder(token));
                Ok(holder.map(Caller::Identity))
            }
            Authenticator::Bootstrap => {
                let token = BootstrapToken::parse(token, tenant);
                Ok(token.map(|it| Caller::Bootstrap(Box::new(it))))
            }
            Authenticator::Providers => {
                // Most requests come never here, and need not carry what it takes.
                let holder = Box::pin(self.provided(token, tenant)).await?;
                Ok(holder.map(Caller::Identity))
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
        let ring = self.keys.ring();
        let checked = match Stamp::id_of(text).and_then(|id| ring.by_id(&id)) {
            Some(key) => key.stamp().check(text, from, peers.own(), line),
            None => Err(PassportError::Unknown),
        };
        match checked {
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
                tracing::warn!(from, error = chain(&error), "a passport was refused");
                Err(ApiError::only_for_servers())
            }
        }
    }

    /// Who the caller is, if it still exists.
    pub(super) async fn existing(&self, caller: Caller) -> Result<Identity> {
        let found = match caller {
            Caller::Identity(identity) => return Ok(identity),
            Caller::Token(claims) => {
                let is_there = self.check_bindings(&claims).await;
                is_there.map(|it| it.then(|| claims.identity()).ok_or(claims.sub))
            }
            Caller::Bootstrap(token) => {
                let found = Box::pin(self.bootstrapper(&token)).await;
                found.map(|it| it.ok_or_else(|| token.identity(&[]).user))
            }
        };
        match found {
            Ok(Ok(identity)) => Ok(identity),
            Ok(Err(subject)) => {
                tracing::info!(subject, "a token outlived what it was bound to, or never was good");
                Err(ApiError::unauthorized())
            }
            // Who asks may be who they say; the storage does not tell at the moment.
            Err(error) => {
                tracing::warn!(%error, "a token could not be checked");
                Err(error)
            }
        }
    }

    /// Who holds a token that is shown to `tenant` for one of `audiences`, and whom it is for, if
    /// all that it is bound to still exists.
    pub(crate) async fn authenticate_token(
        &self,
        token: &str,
        tenant: &TenantName,
        audiences: &[&str],
    ) -> Option<(Identity, Vec<String>)> {
        let caller = match self.holder(&Bearer { token, tenant, audiences }).await {
            Ok(caller) => caller,
            Err(error) => {
                tracing::info!(error = chain(&error), "a bearer token was refused");
                return None;
            }
        };
        let of_token = match &caller {
            Caller::Token(claims) => claims.aud.clone(),
            _ => vec![API_AUDIENCE.to_owned()],
        };
        // Why it is not there has been told.
        Some((self.existing(caller).await.ok()?, of_token))
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
