//! The keys of a cluster at one moment: one signs, all verify.
//!
//! They are a file of private keys in PEM, one after the other. The first one signs; what any of
//! them signed is good. So a key is added behind the others until every server knows it, then put
//! in front, and the old one is taken out when nothing that it signed is in use any more.

use std::str;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use insula_api::names::TenantName;
use jsonwebtoken::decode_header;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::{
    KeyError,
    pair::{self, Pair},
    tenants::{Derived, Tenants},
};
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
    /// Signs tokens of tenant `system`, and signed those of all tenants once.
    pub(super) pair: Pair,
    /// Sign those of others.
    pub(super) tenants: Tenants,
    stamp: Stamp,
    front_proxies: FrontProxies,
}

/// Which key a token says it was signed with.
pub(super) enum Signer<'a> {
    /// One of the file.
    Own(&'a Pair),
    /// A tenant's.
    Tenants(&'a Tenants, Derived),
}

impl Ring {
    /// Reads keys in PEM.
    pub(super) fn read(pem: &[u8]) -> Result<Self, KeyError> {
        let mut keys: Vec<Key> = Vec::new();
        for found in PrivateKeyDer::pem_slice_iter(pem) {
            let key = Key::new(&found.map_err(|error| KeyError::Unusable(Box::new(error)))?)?;
            if keys.iter().any(|it| it.id() == key.id()) {
                return Err(KeyError::Twice(key.id().to_owned()));
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
        self.all().find(|it| it.id() == id)
    }

    /// The key that a token says it was signed with, if that is one of ours.
    pub(super) fn of_token(&self, token: &str) -> Result<Option<Signer<'_>>, KeyError> {
        if let Some(key) = self.all().find(|it| it.pair.begins(token)) {
            return Ok(Some(Signer::Own(&key.pair)));
        }
        let Some(id) = decode_header(token).ok().and_then(|it| it.kid) else { return Ok(None) };
        if let Some(key) = self.by_id(&id) {
            return Ok(Some(Signer::Own(&key.pair)));
        }
        let Some((id, tenant)) = Tenants::parse(&id) else { return Ok(None) };
        let Some(key) = self.by_id(id) else { return Ok(None) };
        Ok(Some(Signer::Tenants(&key.tenants, key.tenants.of(&tenant)?)))
    }

    /// What a tenant's tokens are checked with: nothing of another tenant's.
    pub(super) fn jwks(&self, tenant: &TenantName) -> Result<Value, KeyError> {
        let shown = self.all().map(|key| match tenant.is_system() {
            true => Ok(key.pair.jwk()),
            false => Ok(key.tenants.of(tenant)?.pair.jwk()),
        });
        Ok(json!({ "keys": shown.collect::<Result<Vec<_>, KeyError>>()? }))
    }
}

impl Key {
    fn new(private: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        let pair = pair::read(private)?;
        let id = xxhash_rust::xxh3::xxh3_128(pair.public_key_raw()).to_be_bytes();
        let (id, secret) = (URL_SAFE_NO_PAD.encode(id), pair.serialize_der());
        let unusable = |error| KeyError::Unusable(Box::new(error));
        Ok(Self {
            stamp: Stamp::derive(&id, &secret).map_err(unusable)?,
            front_proxies: FrontProxies::derive(&secret).map_err(unusable)?,
            tenants: Tenants::derive(&id, &secret),
            pair: Pair::new(&pair, id)?,
        })
    }

    pub(crate) fn id(&self) -> &str {
        self.pair.id()
    }

    /// Signs what servers tell each other of callers.
    pub(crate) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// As whom tenants' extension servers know us.
    pub(crate) fn front_proxies(&self) -> &FrontProxies {
        &self.front_proxies
    }
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
            ring.all().zip(blocks).map(|(key, block)| (key.id().to_owned(), format!("{block}\n")));
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
        let pair =
            rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(PkiError::from)?;
        let pem = pair.serialize_pem();
        let id = Ring::read(pem.as_bytes())?.signing.id().to_owned();
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
