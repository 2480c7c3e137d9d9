//! An OpenID Connect provider with TLS: it shows its keys, changes them, and goes away.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use base64::Engine as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

use super::webhook::Webhook;

/// See the module. Runs until the test ends.
pub(crate) struct Issuer {
    hook: Webhook,
    keys: Arc<Mutex<Vec<Value>>>,
    is_there: Arc<AtomicBool>,
}

/// A key of a provider.
pub(crate) struct Key {
    id: String,
    algorithm: Algorithm,
    private: EncodingKey,
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Key {
    fn new(id: &str, algorithm: Algorithm) -> Self {
        let private = match algorithm {
            Algorithm::RS256 => {
                let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
                EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap()
            }
            _ => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
                EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
            }
        };
        Self { id: id.to_owned(), algorithm, private }
    }

    /// A token with exactly these claims.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, claims, &self.private).unwrap()
    }
}

impl Issuer {
    /// One without keys.
    pub(crate) fn start() -> Self {
        let keys: Arc<Mutex<Vec<Value>>> = Arc::default();
        let is_there = Arc::new(AtomicBool::new(true));
        let url = Arc::new(OnceLock::<String>::new());
        let (shown, there, own) = (keys.clone(), is_there.clone(), url.clone());
        let hook = Webhook::answering(move |path, _| {
            let url = own.get().filter(|_| there.load(Ordering::SeqCst))?;
            Some(match path {
                "/.well-known/openid-configuration" => {
                    json!({"issuer": url, "jwks_uri": format!("{url}/keys")})
                }
                "/keys" => json!({"keys": *shown.lock().unwrap()}),
                _ => json!({}),
            })
        });
        url.set(format!("https://{}:{}", hook.address, hook.port)).unwrap();
        Self { hook, keys, is_there }
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.hook.address
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}:{}", self.hook.address, self.hook.port)
    }

    /// What its certificate is to be believed by, in PEM.
    pub(crate) fn bundle(&self) -> String {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.hook.bundle).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// How often it was asked for anything.
    pub(crate) fn asked(&self) -> usize {
        self.hook.asked()
    }

    /// Makes a key and shows it.
    pub(crate) fn add(&self, id: &str, algorithm: Algorithm) -> Key {
        let key = Key::new(id, algorithm);
        let mut shown = Jwk::from_encoding_key(&key.private, algorithm).unwrap();
        shown.common.key_id = Some(id.to_owned());
        self.keys.lock().unwrap().push(serde_json::to_value(shown).unwrap());
        key
    }

    /// Shows no key any more.
    pub(crate) fn forget(&self) {
        self.keys.lock().unwrap().clear();
    }

    /// Answers, or closes every connection.
    pub(crate) fn set_there(&self, is_there: bool) {
        self.is_there.store(is_there, Ordering::SeqCst);
    }

    /// Claims of a token for `insula` that begins now.
    pub(crate) fn claims(&self, user: &str) -> Value {
        json!({
            "iss": self.url(), "aud": "insula", "sub": user, "iat": now(), "nbf": now() - 1,
            "exp": now() + 3600,
        })
    }

    /// A tenant's configuration that trusts it.
    pub(crate) fn configuration(&self) -> Value {
        json!({
            "apiVersion": "insula.io/v1", "kind": "AuthenticationConfiguration",
            "metadata": {"name": "default"},
            "spec": {"jwt": [{
                "issuer": {
                    "url": self.url(), "audiences": ["insula"],
                    "certificateAuthority": self.bundle(),
                },
                "claimMappings": {
                    "username": {"claim": "sub", "prefix": "idp:"},
                    "groups": {"claim": "groups", "prefix": ""},
                },
            }]},
        })
    }
}
