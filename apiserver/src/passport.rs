//! Who a forwarded request comes from, as one server tells another.
//!
//! The first server proves who the caller is; the one that has the tenant decides what it may.
//! Between them travels a JWT (HS256) in the header [`HEADER`], for one request, one method, one
//! path and one server, for a minute; the caller's own credentials never do. Its key is derived
//! from the key that signs service account tokens, which all servers of a cluster share.
//!
//! # Invariants
//!
//! * A passport counts only on a connection whose other end has proven to be a server.
//! * What came with a passport is never sent on: a request travels once.

use std::net::IpAddr;

use insula_api::names::TenantName;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::{
    gate::BootstrapToken,
    identity::Identity,
    tokens::{Claims, TokenError},
};

/// The header that carries a passport.
pub(crate) const HEADER: &str = "x-insula-passport";

/// Seconds that a passport is good for, and by how much the clocks of servers may differ.
const LIFE: i64 = 60;
const SKEW: i64 = 300;

/// The caller, as far as the first server has proven it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Caller {
    /// Whose certificate was shown.
    Identity(Identity),
    /// Whose token is signed by us. Whether all that it is bound to still exists is known where
    /// its tenant is.
    Token(Box<Claims>),
    /// Who shows a bootstrap token. Whether there is such a one is known where its tenant is.
    Bootstrap(Box<BootstrapToken>),
}

impl Caller {
    /// Who it is, if it still exists.
    pub(crate) fn identity(&self) -> Identity {
        match self {
            Self::Identity(identity) => identity.clone(),
            Self::Token(claims) => claims.identity(),
            Self::Bootstrap(token) => token.identity(&[]),
        }
    }

    /// Whether it is certain that whoever asks is who they say, or once was.
    pub(crate) fn is_proven(&self) -> bool {
        !matches!(self, Self::Bootstrap(_))
    }

    /// Where it belongs.
    pub(crate) fn tenant(&self) -> &TenantName {
        match self {
            Self::Identity(identity) => &identity.tenant,
            Self::Token(claims) => &claims.kubernetes.tenant,
            Self::Bootstrap(token) => &token.tenant,
        }
    }
}

/// What is signed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Passport {
    /// The server that proved it.
    iss: String,
    /// The server that it is for.
    aud: String,
    exp: i64,
    iat: i64,
    method: String,
    /// With the query.
    target: String,
    /// Of the map that the first server went by.
    pub(crate) epoch: u64,
    pub(crate) caller: Caller,
    /// Where the caller is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<IpAddr>,
}

/// The key of passports.
#[derive(Clone)]
pub(crate) struct Stamp {
    /// Of the key that it is derived from.
    id: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl std::fmt::Debug for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stamp").finish_non_exhaustive()
    }
}

/// A request's line, which a passport is bound to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    pub method: &'a http::Method,
    pub uri: &'a http::Uri,
}

impl Line<'_> {
    fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
    }
}

impl Stamp {
    /// Derives the key from the one that signs tokens.
    pub(crate) fn derive(id: &str, secret: &[u8]) -> Result<Self, TokenError> {
        let base = EncodingKey::from_secret(secret);
        let derived =
            jsonwebtoken::crypto::sign(b"insula passports, version 1", &base, Algorithm::HS256)?;
        Ok(Self {
            id: id.to_owned(),
            encoding: EncodingKey::from_secret(derived.as_bytes()),
            decoding: DecodingKey::from_secret(derived.as_bytes()),
        })
    }

    /// A passport of `caller` for one request to the server `to`.
    pub(crate) fn sign(
        &self,
        from: &str,
        to: &str,
        line: Line<'_>,
        epoch: u64,
        caller: &Caller,
        address: Option<IpAddr>,
    ) -> Result<String, TokenError> {
        let now = jiff::Timestamp::now().as_second();
        let passport = Passport {
            iss: from.into(),
            aud: to.into(),
            exp: now + LIFE,
            iat: now,
            method: line.method.as_str().into(),
            target: line.target().into(),
            epoch,
            caller: caller.clone(),
            address,
        };
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(self.id.clone());
        Ok(jsonwebtoken::encode(&header, &passport, &self.encoding)?)
    }

    /// The id of the key whose stamp a passport has.
    pub(crate) fn id_of(text: &str) -> Option<String> {
        jsonwebtoken::decode_header(text).ok()?.kid
    }

    /// Checks a passport that the server `from` sent with a request to the server `to`.
    pub(crate) fn check(
        &self,
        text: &str,
        from: &str,
        to: &str,
        line: Line<'_>,
    ) -> Result<Passport, PassportError> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[to]);
        validation.set_issuer(&[from]);
        validation.validate_exp = false;
        let passport = jsonwebtoken::decode::<Passport>(text, &self.decoding, &validation)
            .map_err(TokenError::from)?
            .claims;
        let now = jiff::Timestamp::now().as_second();
        if passport.exp.saturating_add(SKEW) < now {
            return Err(PassportError::Late { seconds: now.saturating_sub(passport.iat) });
        }
        if passport.method != line.method.as_str() || passport.target != line.target() {
            return Err(PassportError::OtherRequest);
        }
        Ok(passport)
    }
}

/// Why a passport is refused. Never sent to a client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassportError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the passport has the stamp of a key that is not known here")]
    Unknown,
    #[error("the passport is for another request")]
    OtherRequest,
    /// Passports are made for the moment: the other server's clock is wrong, or ours.
    #[error("the passport was made {seconds} s ago")]
    Late { seconds: i64 },
}

#[cfg(test)]
mod tests {
    use http::{Method, Uri};

    use super::*;

    fn caller() -> Caller {
        Caller::Identity(Identity::new(TenantName::parse("acme").unwrap(), "dev", &["ops"]))
    }

    #[test]
    fn a_passport_is_for_one_request_between_two_servers() {
        let stamp = Stamp::derive("k", b"secret").unwrap();
        let uri: Uri = "/api/v1/namespaces/default/pods?watch=true".parse().unwrap();
        let line = Line { method: &Method::GET, uri: &uri };
        let text = stamp.sign("s1", "s2", line, 7, &caller(), None).unwrap();
        let read = stamp.check(&text, "s1", "s2", line).unwrap();
        assert_eq!((read.epoch, read.caller.clone()), (7, caller()));

        assert!(stamp.check(&text, "s3", "s2", line).is_err(), "from another server");
        assert!(stamp.check(&text, "s1", "s3", line).is_err(), "for another server");
        let post = Line { method: &Method::POST, uri: &uri };
        assert!(stamp.check(&text, "s1", "s2", post).is_err(), "another method");
        let other: Uri = "/api/v1/namespaces/default/pods?watch=false".parse().unwrap();
        let other = Line { method: &Method::GET, uri: &other };
        assert!(stamp.check(&text, "s1", "s2", other).is_err(), "another query");
        let at = |seconds: i64| {
            let (mut old, now) = (read.clone(), jiff::Timestamp::now().as_second());
            (old.iat, old.exp) = (now - seconds, now - seconds + LIFE);
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &old, &stamp.encoding).unwrap()
        };
        assert!(stamp.check(&at(LIFE + SKEW - 30), "s1", "s2", line).is_ok(), "clocks differ");
        let late = stamp.check(&at(3600), "s1", "s2", line);
        assert!(matches!(late, Err(PassportError::Late { seconds: 3600.. })), "{late:?}");
        let stranger = Stamp::derive("k", b"guess").unwrap();
        assert!(stranger.check(&text, "s1", "s2", line).is_err(), "another key");
        let parts: Vec<&str> = text.split('.').collect();
        let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", parts[1]);
        assert!(stamp.check(&unsigned, "s1", "s2", line).is_err(), "alg none");
    }
}
