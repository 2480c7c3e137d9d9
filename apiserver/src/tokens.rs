//! Service account tokens: signed by this cloud, checked against what they are bound to.
//!
//! A token is a JWT (ES256) with upstream's claims plus the tenant: `iss`, `sub`
//! (`system:serviceaccount:<ns>:<name>`), `aud`, `exp`, `nbf`, `iat`, `jti`, and under
//! `kubernetes.io` the namespace, service account, bound pod or secret, and `tenant`.

use std::{fs, path::Path};

use base64::Engine as _;
use insula_api::names::TenantName;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    aggregation::front_proxy::FrontProxies,
    identity::Identity,
    passport::Stamp,
    pki::{PkiError, write_private},
};

/// The audience of tokens that are meant for the API server itself.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc";
const ISSUER: &str = "https://kubernetes.default.svc";
/// Longest and shortest life of a requested token, in seconds.
pub const MAX_LIFE: i64 = 365 * 86_400;
pub const MIN_LIFE: i64 = 600;
/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 256 * 1024;

/// A reference to an object that must still exist for a token to be good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    pub tenant: TenantName,
    pub namespace: String,
    pub serviceaccount: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
}

/// All claims of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    pub exp: i64,
    pub nbf: i64,
    pub iat: i64,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
}

impl Claims {
    /// Claims of a token that begins at `now` and lives `seconds`.
    pub fn new(kubernetes: Kubernetes, audiences: Vec<String>, now: i64, seconds: i64) -> Self {
        Self {
            iss: ISSUER.into(),
            sub: format!(
                "system:serviceaccount:{}:{}",
                kubernetes.namespace, kubernetes.serviceaccount.name
            ),
            aud: audiences,
            exp: now + seconds,
            nbf: now,
            iat: now,
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes,
        }
    }

    /// The service account as a caller.
    pub fn identity(&self) -> Identity {
        let of_namespace = format!("system:serviceaccounts:{}", self.kubernetes.namespace);
        let groups = ["system:serviceaccounts", &of_namespace];
        let mut identity = Identity::new(self.kubernetes.tenant.clone(), &self.sub, &groups);
        identity.uid.clone_from(&self.kubernetes.serviceaccount.uid);
        let mut extra = |key: &str, value: &str| {
            if !value.is_empty() {
                let key = format!("authentication.kubernetes.io/{key}");
                identity.extra.insert(key, vec![value.to_owned()]);
            }
        };
        extra("credential-id", &format!("JTI={}", self.jti));
        if let Some(pod) = &self.kubernetes.pod {
            extra("pod-name", &pod.name);
            extra("pod-uid", &pod.uid);
        }
        if let Some(node) = &self.kubernetes.node {
            extra("node-name", &node.name);
            extra("node-uid", &node.uid);
        }
        identity
    }
}

/// Why a bearer token is refused. Never sent to the client.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token is not valid")]
    Invalid(#[from] jsonwebtoken::errors::Error),
}

/// The key pair that signs tokens.
pub struct Keys {
    id: String,
    stamp: Stamp,
    front_proxies: FrontProxies,
    encoding: EncodingKey,
    decoding: DecodingKey,
    /// `x` and `y` of the public point, base64url.
    point: (String, String),
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why the signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("cannot read the token key {path}")]
    File {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the token key is not an ECDSA P-256 key")]
    Unusable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Keys {
    /// Reads the key of `path`, or makes one.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(PkiError::from)?;
            write_private(path, &pair.serialize_pem())?;
        }
        let pem = fs::read_to_string(path)
            .map_err(|source| KeyError::File { path: path.into(), source })?;
        let pair = rcgen::KeyPair::from_pem(&pem).map_err(PkiError::from)?;
        let unusable = |error| KeyError::Unusable(Box::new(error));
        let encoding = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(unusable)?;
        let public = pair.public_key_pem();
        let decoding = DecodingKey::from_ec_pem(public.as_bytes()).map_err(unusable)?;
        // The raw key is the uncompressed point: 0x04, x, y.
        let raw = pair.public_key_raw();
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let (x, y) = raw.get(1..65).map(|point| point.split_at(32)).unwrap_or_default();
        let id = url.encode(xxhash_rust::xxh3::xxh3_128(raw).to_be_bytes());
        let secret = pair.serialize_der();
        let unusable = |error| KeyError::Unusable(Box::new(error));
        let stamp = Stamp::derive(&secret).map_err(unusable)?;
        let front_proxies = FrontProxies::derive(&secret).map_err(unusable)?;
        Ok(Self {
            id,
            stamp,
            front_proxies,
            encoding,
            decoding,
            point: (url.encode(x), url.encode(y)),
        })
    }

    /// Signs what servers tell each other of callers.
    pub(crate) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// As whom tenants' extension servers know us.
    pub(crate) fn front_proxies(&self) -> &FrontProxies {
        &self.front_proxies
    }

    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.encoding)?)
    }

    /// Checks signature, issuer and times, and that `audience` is among the token's.
    pub fn verify(&self, token: &str, audiences: &[&str]) -> Result<Claims, TokenError> {
        if MAX_TOKEN < token.len() {
            return Err(TokenError::TooLong);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(audiences);
        validation.set_issuer(&[ISSUER]);
        validation.validate_nbf = true;
        validation.leeway = 10;
        Ok(jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)?.claims)
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": self.point.0, "y": self.point.1,
        }]})
    }

    /// `/.well-known/openid-configuration`.
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(now: i64) -> Claims {
        let kubernetes = Kubernetes {
            tenant: TenantName::parse("acme").unwrap(),
            namespace: "ns".into(),
            serviceaccount: Bound { name: "sa".into(), uid: "u".into() },
            pod: Some(Bound { name: "p".into(), uid: "pu".into() }),
            secret: None,
            node: None,
        };
        Claims::new(kubernetes, vec![API_AUDIENCE.into()], now, 600)
    }

    #[test]
    fn tokens_carry_the_tenant() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::open_or_create(&directory.path().join("sa.key")).unwrap();
        let again = Keys::open_or_create(&directory.path().join("sa.key")).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let token = keys.sign(&claims(now)).unwrap();
        let read = again.verify(&token, &[API_AUDIENCE]).unwrap();
        assert_eq!(read.identity().user, "system:serviceaccount:ns:sa");
        assert_eq!(read.identity().tenant.as_str(), "acme");
    }

    #[test]
    fn bad_tokens_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::open_or_create(&directory.path().join("a")).unwrap();
        let other = Keys::open_or_create(&directory.path().join("b")).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let token = keys.sign(&claims(now)).unwrap();
        assert!(other.verify(&token, &[API_AUDIENCE]).is_err(), "another key");
        assert!(keys.verify(&token, &["other"]).is_err(), "another audience");
        let old = keys.sign(&claims(now - 10_000)).unwrap();
        assert!(keys.verify(&old, &[API_AUDIENCE]).is_err(), "expired");
        let early = keys.sign(&claims(now + 10_000)).unwrap();
        assert!(keys.verify(&early, &[API_AUDIENCE]).is_err(), "not yet valid");
        let none = "eyJhbGciOiJub25lIn0.e30.";
        assert!(keys.verify(none, &[API_AUDIENCE]).is_err(), "alg none");
    }
}
