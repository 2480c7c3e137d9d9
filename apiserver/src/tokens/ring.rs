//! The keys of a cluster at one moment: one signs, all verify.
//!
//! They are a file of private keys in PEM, one after the other. The first one signs; what any of
//! them signed is good. So a key is added behind the others until every server knows it, then put
//! in front, and the old one is taken out when nothing that it signed is in use any more.

use std::str;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, decode_header};
use rcgen::KeyPair;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::KeyError;
use crate::{aggregation::front_proxy::FrontProxies, passport::Stamp, pki::PkiError};

/// Most keys of a file: each is one more that anybody's token may be signed with.
const MAX_KEYS: usize = 16;

/// See the module.
pub(crate) struct Ring {
    /// The first one signs.
    signing: Key,
    others: Vec<Key>,
}

/// One key pair, and what is derived from it.
pub(crate) struct Key {
    id: String,
    /// What the tokens that we sign with it begin with: nothing has to be read to know them.
    head: String,
    pub(super) encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
    /// `x` and `y` of the public point, base64url.
    point: (String, String),
    stamp: Stamp,
    front_proxies: FrontProxies,
}

impl Ring {
    /// Reads keys in PEM.
    pub(super) fn read(pem: &[u8]) -> Result<Self, KeyError> {
        let mut keys: Vec<Key> = Vec::new();
        for found in PrivateKeyDer::pem_slice_iter(pem) {
            let key = Key::new(&found.map_err(|error| KeyError::Unusable(Box::new(error)))?)?;
            if keys.iter().any(|it| it.id == key.id) {
                return Err(KeyError::Twice(key.id));
            }
            keys.push(key);
        }
        if MAX_KEYS < keys.len() {
            return Err(KeyError::TooMany(keys.len()));
        }
        let mut keys = keys.into_iter();
        let signing = keys.next().ok_or(KeyError::Empty)?;
        Ok(Self { signing, others: keys.collect() })
    }

    /// The one that signs.
    pub(crate) fn signing(&self) -> &Key {
        &self.signing
    }

    /// All of them, the one that signs first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.signing).chain(&self.others)
    }

    /// The key of this id.
    pub(crate) fn by_id(&self, id: &str) -> Option<&Key> {
        self.all().find(|it| it.id == id)
    }

    /// The key that a token says it was signed with, if that is one of ours.
    pub(super) fn of_token(&self, token: &str) -> Option<&Key> {
        if let Some(key) = self.all().find(|it| token.starts_with(&it.head)) {
            return Some(key);
        }
        self.by_id(&decode_header(token).ok()?.kid?)
    }

    pub(super) fn jwks(&self) -> Value {
        json!({ "keys": self.all().map(Key::jwk).collect::<Vec<_>>() })
    }
}

impl Key {
    fn new(private: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        let unusable = |error| KeyError::Unusable(Box::new(error));
        let pair = KeyPair::try_from(private).map_err(PkiError::from)?;
        if !pair.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
            return Err(KeyError::OtherKind);
        }
        let pem = pair.serialize_pem();
        let encoding = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(unusable)?;
        let public = pair.public_key_pem();
        let decoding = DecodingKey::from_ec_pem(public.as_bytes()).map_err(unusable)?;
        // The raw key is the uncompressed point: 0x04, x, y.
        let raw = pair.public_key_raw();
        let url = URL_SAFE_NO_PAD;
        let (x, y) = raw.get(1..65).map(|point| point.split_at(32)).unwrap_or_default();
        let id = url.encode(xxhash_rust::xxh3::xxh3_128(raw).to_be_bytes());
        let secret = pair.serialize_der();
        let unusable = |error| KeyError::Unusable(Box::new(error));
        let stamp = Stamp::derive(&id, &secret).map_err(unusable)?;
        let front_proxies = FrontProxies::derive(&secret).map_err(unusable)?;
        let header = serde_json::to_vec(&header(&id))
            .map_err(|error| KeyError::Unusable(Box::new(error)))?;
        Ok(Self {
            head: format!("{}.", url.encode(header)),
            id,
            encoding,
            decoding,
            point: (url.encode(x), url.encode(y)),
            stamp,
            front_proxies,
        })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn header(&self) -> Header {
        header(&self.id)
    }

    /// Signs what servers tell each other of callers.
    pub(crate) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// As whom tenants' extension servers know us.
    pub(crate) fn front_proxies(&self) -> &FrontProxies {
        &self.front_proxies
    }

    fn jwk(&self) -> Value {
        json!({
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": self.point.0, "y": self.point.1,
        })
    }
}

fn header(id: &str) -> Header {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(id.to_owned());
    header
}

/// A file of keys as text, for those who change it: a key is a block in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyFile {
    /// By id.
    keys: Vec<(String, String)>,
}

impl KeyFile {
    /// Reads what [`KeyFile::text`] gave.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let ring = Ring::read(text.as_bytes())?;
        let begins: Vec<usize> = text.match_indices("-----BEGIN ").map(|(at, _)| at).collect();
        let ends = begins.iter().skip(1).copied().chain([text.len()]);
        let blocks = begins.iter().zip(ends).map(|(begin, end)| text[*begin..end].trim_end());
        // What is no private key, such as parameters of a curve, is left out.
        let blocks = blocks.filter(|it| it.contains("PRIVATE KEY-----"));
        let keys =
            ring.all().zip(blocks).map(|(key, block)| (key.id.clone(), format!("{block}\n")));
        Ok(Self { keys: keys.collect() })
    }

    /// The file.
    pub fn text(&self) -> String {
        self.keys.iter().map(|(_, pem)| pem.as_str()).collect()
    }

    /// The ids, that of the key that signs first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(id, _)| id.as_str())
    }

    /// Makes a key that verifies, but does not sign yet; returns its id.
    pub fn add(&mut self) -> Result<String, KeyError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(PkiError::from)?;
        let pem = pair.serialize_pem();
        let id = Ring::read(pem.as_bytes())?.signing.id;
        if MAX_KEYS <= self.keys.len() {
            return Err(KeyError::TooMany(self.keys.len() + 1));
        }
        self.keys.push((id.clone(), pem.trim_end().replace("\r\n", "\n") + "\n"));
        Ok(id)
    }

    /// Has a key sign from now on.
    pub fn sign_with(&mut self, id: &str) -> Result<(), KeyError> {
        let at = self.at(id)?;
        self.keys[..=at].rotate_right(1);
        Ok(())
    }

    /// Takes out a key: what it signed is refused from then on.
    pub fn remove(&mut self, id: &str) -> Result<(), KeyError> {
        match self.at(id)? {
            0 => Err(KeyError::Signs(id.to_owned())),
            at => {
                self.keys.remove(at);
                Ok(())
            }
        }
    }

    fn at(&self, id: &str) -> Result<usize, KeyError> {
        let found = self.ids().position(|it| it == id);
        found.ok_or_else(|| KeyError::Unknown(id.to_owned()))
    }
}
