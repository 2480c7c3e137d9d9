//! What one key does: AES-256-GCM with a random nonce in front of what it made.
//!
//! A nonce is 96 random bits, so one key may seal some 2^32 times (NIST SP 800-38D, 8.3); a data
//! key is replaced long before ([`MOST_SEALS`]).

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::vault::Settings;

/// Bytes of any key.
pub(crate) const KEY_LEN: usize = 32;

/// So often a data key seals in one process before another takes its place.
pub(super) const MOST_SEALS: u64 = 1 << 24;

/// Why something could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    #[error("a cluster key has {KEY_LEN} bytes, not {0}")]
    Length(usize),
    #[error("the platform's random numbers or AES-256-GCM failed")]
    Crypto,
    #[error(
        "its tenant's data key is wrapped with cluster key {wanted}, and this server has {known}: \
         put that key back into the encryption configuration, or restore its file from a copy"
    )]
    NoClusterKey { wanted: String, known: String },
    #[error(
        "cluster key {0} does not open the data key that it wrapped: the stored data is damaged"
    )]
    WrongWrap(String),
    #[error("data key {0} of its tenant is not there: the stored data is damaged or incomplete")]
    NoDataKey(String),
    #[error("it was changed, or belongs to another object: the stored data is damaged")]
    Tampered,
    #[error("it is not a sealed value: the stored data is damaged")]
    Malformed,
    #[error("the document of the tenant's data keys cannot be read: the stored data is damaged")]
    Document,
}

/// A key that wraps data keys.
pub struct ClusterKey {
    name: String,
    /// Told from the key itself, so that another key of the same name is not taken for it.
    id: String,
    key: RandomizedNonceKey,
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterKey").field("name", &self.name).field("id", &self.id).finish()
    }
}

impl ClusterKey {
    /// A key of 32 bytes, with the name that operators gave it.
    pub fn new(name: &str, secret: &[u8]) -> Result<Self, SealError> {
        if secret.len() != KEY_LEN {
            return Err(SealError::Length(secret.len()));
        }
        let key = RandomizedNonceKey::new(&AES_256_GCM, secret).map_err(|_| SealError::Crypto)?;
        let mut named = digest::Context::new(&digest::SHA256);
        named.update(b"insula cluster key\0");
        named.update(secret);
        let id = URL_SAFE_NO_PAD.encode(named.finish().as_ref().get(..9).unwrap_or_default());
        Ok(Self { name: name.to_owned(), id, key })
    }

    /// A new key's bytes.
    pub fn random() -> Result<[u8; KEY_LEN], SealError> {
        random()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Twelve characters that tell it from other keys and say nothing of it.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A key that seals values of one tenant, as it is kept: wrapped.
pub(crate) struct DataKey {
    tenant: Box<str>,
    pub(super) id: DataKeyId,
    /// The id of the cluster key that wraps it.
    pub(super) by: String,
    pub(super) wrapped: Box<[u8]>,
    /// When it was made, in seconds since 1970.
    pub(super) made: u64,
    /// Once it was needed. Kept for as long as anything refers to it, also if the cluster key
    /// goes meanwhile.
    key: OnceLock<RandomizedNonceKey>,
    sealed: AtomicU64,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey")
            .field("id", &self.id)
            .field("by", &self.by)
            .finish_non_exhaustive()
    }
}

/// 16 random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DataKeyId([u8; 16]);

/// Characters of a data key's id as text.
pub(super) const ID_TEXT: usize = 22;

impl DataKeyId {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl DataKey {
    /// A new key, wrapped with the first of the cluster's.
    pub(super) fn make(tenant: &str, made: u64, settings: &Settings) -> Result<Self, SealError> {
        let (id, secret) = (DataKeyId(random()?), random::<KEY_LEN>()?);
        let wraps = settings.first()?;
        let wrapped = seal(&wraps.key, &wrapping(tenant, id), &secret)?;
        Ok(Self::known(tenant, id, wraps.id.clone(), wrapped, made))
    }

    /// A key as it is kept.
    pub(super) fn known(
        tenant: &str,
        id: DataKeyId,
        by: String,
        wrapped: Vec<u8>,
        made: u64,
    ) -> Self {
        let (key, sealed) = (OnceLock::new(), AtomicU64::new(0));
        Self { tenant: tenant.into(), id, by, wrapped: wrapped.into(), made, key, sealed }
    }

    /// The same key, wrapped with the first of the cluster's.
    pub(super) fn wrapped_anew(&self, settings: &Settings) -> Result<Self, SealError> {
        let secret = self.unwrap(settings)?;
        let wraps = settings.first()?;
        let wrapped = seal(&wraps.key, &wrapping(&self.tenant, self.id), &secret)?;
        Ok(Self::known(&self.tenant, self.id, wraps.id.clone(), wrapped, self.made))
    }

    fn unwrap(&self, settings: &Settings) -> Result<Vec<u8>, SealError> {
        let Some(wraps) = settings.by_id(&self.by) else {
            let known = settings.known();
            return Err(SealError::NoClusterKey { wanted: self.by.clone(), known });
        };
        open(&wraps.key, &wrapping(&self.tenant, self.id), &self.wrapped)
            .map_err(|_| SealError::WrongWrap(self.by.clone()))
    }

    fn key(&self, settings: &Settings) -> Result<&RandomizedNonceKey, SealError> {
        if let Some(key) = self.key.get() {
            return Ok(key);
        }
        let secret = self.unwrap(settings)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &secret).map_err(|_| SealError::Crypto)?;
        Ok(self.key.get_or_init(|| key))
    }

    /// Whether it could be used even if the cluster key were gone.
    pub(super) fn is_unwrapped(&self) -> bool {
        self.key.get().is_some()
    }

    /// Whether it has sealed so much that another should take its place.
    pub(super) fn is_worn(&self) -> bool {
        MOST_SEALS <= self.sealed.load(Ordering::Relaxed)
    }

    /// `text` sealed for one place: nonce, what it became, tag.
    pub(super) fn seal(
        &self,
        settings: &Settings,
        place: &[u8],
        text: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let key = self.key(settings)?;
        self.sealed.fetch_add(1, Ordering::Relaxed);
        seal(key, place, text)
    }

    /// What [`DataKey::seal`] was given.
    pub(super) fn open(
        &self,
        settings: &Settings,
        place: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        open(self.key(settings)?, place, sealed)
    }

    #[cfg(test)]
    pub(super) fn wear_out(&self) {
        self.sealed.store(MOST_SEALS, Ordering::Relaxed);
    }
}

/// What a wrapped key belongs to.
fn wrapping(tenant: &str, id: DataKeyId) -> Vec<u8> {
    [b"insula data key\0".as_slice(), tenant.as_bytes(), b"\0", &id.0].concat()
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SealError::Crypto)?;
    Ok(bytes)
}

fn seal(key: &RandomizedNonceKey, place: &[u8], text: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut body = Vec::with_capacity(text.len() + AES_256_GCM.tag_len());
    body.extend_from_slice(text);
    let nonce = key.seal_in_place_append_tag(Aad::from(place), &mut body);
    let nonce = nonce.map_err(|_| SealError::Crypto)?;
    Ok([nonce.as_ref().as_slice(), &body].concat())
}

fn open(key: &RandomizedNonceKey, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Malformed)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Malformed)?;
    let mut body = body.to_vec();
    let opened = key.open_in_place(nonce, Aad::from(place), &mut body);
    let length = opened.map_err(|_| SealError::Tampered)?.len();
    body.truncate(length);
    Ok(body)
}
