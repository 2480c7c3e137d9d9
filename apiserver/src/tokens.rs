//! Service account tokens: signed by this cloud, checked against what they are bound to.
//!
//! A token is a JWT (ES256) with upstream's claims plus the tenant: `iss`, `sub`
//! (`system:serviceaccount:<ns>:<name>`), `aud`, `exp`, `nbf`, `iat`, `jti`, and under
//! `kubernetes.io` the namespace, service account, bound pod or secret, and `tenant`.
//!
//! Each tenant has an issuer and keys of its own (decision 85). What was signed before that, with
//! the keys and issuer that are now those of tenant `system`, goes on being good.

mod pair;
mod ring;
mod tenants;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use insula_api::names::TenantName;
use jsonwebtoken::{Algorithm, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::ring::KeyFile;
pub(crate) use self::ring::Ring;
use self::ring::Signer;
use crate::{
    identity::Identity,
    lately::Forgets,
    pki::{PkiError, write_private},
};

/// The audience of tokens that are meant for the API server itself.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc";
/// Who issues tokens of tenant `system`.
const ISSUER: &str = "https://kubernetes.default.svc";
/// Longest and shortest life of a requested token, in seconds.
pub const MAX_LIFE: i64 = 365 * 86_400;
pub const MIN_LIFE: i64 = 600;
/// Longest token that is looked at, in bytes.
pub(crate) const MAX_TOKEN: usize = 256 * 1024;

/// Who issues a tenant's tokens: where its discovery documents are.
fn issuer(tenant: &TenantName) -> String {
    match tenant.is_system() {
        true => ISSUER.to_owned(),
        false => format!("{ISSUER}/tenants/{tenant}"),
    }
}

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
            iss: issuer(&kubernetes.tenant),
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
    #[error("no key of ours signed the token")]
    Foreign,
    #[error("the token was signed with the key of tenant {0}, and says that it is another's")]
    OtherTenant(TenantName),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the token is not valid")]
    Invalid(#[from] jsonwebtoken::errors::Error),
}

/// Why the signing keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("cannot read the token keys {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("a token key cannot be read")]
    Unusable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("a token key is no ECDSA P-256 key")]
    OtherKind,
    #[error("a tenant's token key cannot be derived")]
    Derivation,
    #[error("there is no token key")]
    Empty,
    #[error("the token key {0} is there twice")]
    Twice(String),
    #[error("{0} token keys are too many")]
    TooMany(usize),
    #[error("there is no token key {0}")]
    Unknown(String),
    #[error("the token key {0} signs; have another sign first")]
    Signs(String),
}

/// The keys that sign and verify tokens. Those of the moment: their file may be read again.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    ring: ArcSwap<Ring>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all().map(|it| it.id())).finish()
    }
}

impl Keys {
    /// Reads the keys of `path`, or makes one.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            let mut file = KeyFile::default();
            file.add()?;
            write_private(path, &file.text())?;
        }
        let ring = ArcSwap::from_pointee(read(path)?);
        Ok(Self { path: path.into(), ring })
    }

    /// Reads the file again. What cannot be read changes nothing.
    pub fn reload(&self) -> Result<(), KeyError> {
        self.ring.store(Arc::new(read(&self.path)?));
        Ok(())
    }

    /// Where they are kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys as they are now.
    pub(crate) fn ring(&self) -> Arc<Ring> {
        self.ring.load_full()
    }

    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let ring = self.ring.load();
        let (key, tenant) = (ring.signing(), &claims.kubernetes.tenant);
        if tenant.is_system() {
            return Ok(jsonwebtoken::encode(&key.pair.header(), claims, &key.pair.encoding)?);
        }
        let own = key.tenants.of(tenant)?;
        let token = jsonwebtoken::encode(&own.pair.header(), claims, &own.pair.encoding)?;
        key.tenants.keep(&own);
        Ok(token)
    }

    /// Checks signature, issuer and times, and that `audience` is among the token's.
    pub fn verify(&self, token: &str, audiences: &[&str]) -> Result<Claims, TokenError> {
        if MAX_TOKEN < token.len() {
            return Err(TokenError::TooLong);
        }
        let ring = self.ring.load();
        let signer = ring.of_token(token)?.ok_or(TokenError::Foreign)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(audiences);
        validation.validate_nbf = true;
        validation.leeway = 10;
        let (tenants, key) = match signer {
            Signer::Own(pair) => {
                validation.set_issuer(&[ISSUER]);
                let read = jsonwebtoken::decode::<Claims>(token, &pair.decoding, &validation)?;
                return Ok(read.claims);
            }
            Signer::Tenants(tenants, key) => (tenants, key),
        };
        validation.set_issuer(&[issuer(&key.tenant)]);
        let read = jsonwebtoken::decode::<Claims>(token, &key.pair.decoding, &validation)?;
        if read.claims.kubernetes.tenant != key.tenant {
            return Err(TokenError::OtherTenant(key.tenant));
        }
        tenants.keep(&key);
        Ok(read.claims)
    }

    /// `/openid/v1/jwks` of a tenant.
    pub fn jwks(&self, tenant: &TenantName) -> Result<Value, KeyError> {
        self.ring.load().jwks(tenant)
    }

    /// `/.well-known/openid-configuration` of a tenant.
    pub fn discovery(&self, tenant: &TenantName) -> Value {
        let issuer = issuer(tenant);
        json!({
            "issuer": issuer,
            "jwks_uri": format!("{issuer}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

impl Forgets for Keys {
    fn tidy(&self, now: Instant) {
        self.ring.load().all().for_each(|it| it.tenants.made().tidy(now));
    }

    fn len(&self) -> usize {
        // All keys together would be more than there are tenants.
        self.ring.load().all().map(|it| it.tenants.made().len()).max().unwrap_or_default()
    }
}

fn read(path: &Path) -> Result<Ring, KeyError> {
    let pem = fs::read(path).map_err(|source| KeyError::File { path: path.into(), source })?;
    Ring::read(&pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(now: i64) -> Claims {
        of("acme", now)
    }

    fn of(tenant: &str, now: i64) -> Claims {
        let kubernetes = Kubernetes {
            tenant: TenantName::parse(tenant).unwrap(),
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

    /// Whether somebody who has read a tenant's keys, and looks at nothing else, believes a token.
    fn is_believed(keys: &Keys, tenant: &str, token: &str) -> bool {
        let shown = keys.jwks(&TenantName::parse(tenant).unwrap()).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        shown["keys"].as_array().unwrap().iter().any(|it| {
            let (x, y) = (it["x"].as_str().unwrap(), it["y"].as_str().unwrap());
            let key = jsonwebtoken::DecodingKey::from_ec_components(x, y).unwrap();
            jsonwebtoken::decode::<Value>(token, &key, &validation).is_ok()
        })
    }

    #[test]
    fn tenants_keys_believe_no_other_tenants_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sa.key");
        let [keys, others] = [(); 2].map(|()| Keys::open_or_create(&path).unwrap());
        let now = jiff::Timestamp::now().as_second();
        let all = ["acme", "globex", "system"];
        for signed in all {
            let token = keys.sign(&of(signed, now)).unwrap();
            for trusted in all {
                assert_eq!(is_believed(&others, trusted, &token), signed == trusted, "{signed}");
            }
            // Another server, which never saw it, knows whose it is.
            let read = others.verify(&token, &[API_AUDIENCE]).unwrap();
            assert_eq!(read.kubernetes.tenant.as_str(), signed);
            let discovered = others.discovery(&read.kubernetes.tenant);
            assert_eq!(discovered["issuer"], read.iss);
            assert_eq!(discovered["jwks_uri"], format!("{}/openid/v1/jwks", read.iss));
        }
        assert_eq!(of("acme", now).iss, "https://kubernetes.default.svc/tenants/acme");
        assert_eq!(of("system", now).iss, ISSUER);
        // Only what was in use is kept.
        assert_eq!(others.len(), 2);
        let stranger = Keys::open_or_create(&directory.path().join("other")).unwrap();
        let forged = stranger.sign(&of("umbrella", now)).unwrap();
        let kid = |key: &Ring| format!("{}.umbrella", key.signing().id());
        let named = jsonwebtoken::Header {
            kid: Some(kid(&others.ring())),
            ..jsonwebtoken::Header::new(Algorithm::ES256)
        };
        let key = stranger.ring();
        let renamed =
            jsonwebtoken::encode(&named, &of("umbrella", now), &key.signing().pair.encoding);
        assert!(matches!(others.verify(&forged, &[API_AUDIENCE]), Err(TokenError::Foreign)));
        let refused = others.verify(&renamed.unwrap(), &[API_AUDIENCE]);
        assert!(matches!(refused, Err(TokenError::Invalid(_))));
        assert_eq!(others.len(), 2);
    }

    #[test]
    fn what_a_tenants_key_signed_is_of_the_tenant() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::open_or_create(&directory.path().join("sa.key")).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let ring = keys.ring();
        let own = ring.signing().tenants.of(&TenantName::parse("acme").unwrap()).unwrap();
        let sign = |claims: &Claims| {
            jsonwebtoken::encode(&own.pair.header(), claims, &own.pair.encoding).unwrap()
        };
        let verify = |claims: &Claims| keys.verify(&sign(claims), &[API_AUDIENCE]);
        assert!(verify(&of("acme", now)).is_ok());
        let (mut other, mut issuer) = (of("acme", now), of("acme", now));
        other.kubernetes.tenant = TenantName::parse("globex").unwrap();
        issuer.iss = ISSUER.into();
        assert!(matches!(verify(&other), Err(TokenError::OtherTenant(_))));
        assert!(matches!(verify(&issuer), Err(TokenError::Invalid(_))));
    }

    #[test]
    fn what_was_signed_before_tenants_had_keys_is_good() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::open_or_create(&directory.path().join("sa.key")).unwrap();
        let mut old = claims(jiff::Timestamp::now().as_second());
        old.iss = ISSUER.into();
        let ring = keys.ring();
        let pair = &ring.signing().pair;
        let token = jsonwebtoken::encode(&pair.header(), &old, &pair.encoding).unwrap();
        let read = keys.verify(&token, &[API_AUDIENCE]).unwrap();
        assert_eq!(read.identity().tenant.as_str(), "acme");
        assert!(!is_believed(&keys, "acme", &token));
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

    #[test]
    fn keys_follow_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sa.key");
        let keys = Keys::open_or_create(&path).unwrap();
        let change = |change: &dyn Fn(&mut KeyFile)| {
            let mut file = KeyFile::parse(&fs::read_to_string(&path).unwrap()).unwrap();
            change(&mut file);
            assert_eq!(KeyFile::parse(&file.text()).unwrap(), file);
            fs::write(&path, file.text()).unwrap();
            keys.reload().unwrap();
            file.ids().map(str::to_owned).collect::<Vec<_>>()
        };
        let now = jiff::Timestamp::now().as_second();
        let kid = |token: &str| {
            let kid = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
            kid.strip_suffix(".acme").unwrap().to_owned()
        };
        let old = keys.sign(&claims(now)).unwrap();
        let ids = change(&|it| drop(it.add().unwrap()));
        assert_eq!(kid(&keys.sign(&claims(now)).unwrap()), ids[0], "a new key waits");
        change(&|it| it.sign_with(&ids[1]).unwrap());
        let new = keys.sign(&claims(now)).unwrap();
        assert_eq!(kid(&new), ids[1]);
        assert!(
            keys.verify(&old, &[API_AUDIENCE]).is_ok()
                && keys.verify(&new, &[API_AUDIENCE]).is_ok()
        );
        let shown = keys.jwks(&TenantName::parse("acme").unwrap()).unwrap();
        assert_eq!(shown["keys"].as_array().unwrap().len(), 2);
        change(&|it| {
            assert!(matches!(it.remove(&ids[1]), Err(KeyError::Signs(_))));
            it.remove(&ids[0]).unwrap();
        });
        assert!(matches!(keys.verify(&old, &[API_AUDIENCE]), Err(TokenError::Foreign)));
        assert!(keys.verify(&new, &[API_AUDIENCE]).is_ok());
        // What is broken is not taken over.
        fs::write(&path, "nothing").unwrap();
        assert!(matches!(keys.reload(), Err(KeyError::Empty)));
        assert!(keys.verify(&new, &[API_AUDIENCE]).is_ok());
    }
}
