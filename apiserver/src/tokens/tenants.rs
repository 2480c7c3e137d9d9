//! Keys of tenants: each tenant's tokens are signed with a key of its own.
//!
//! Who trusts one tenant's keys can take no other tenant's token for one of it, also if it looks
//! at nothing but the signature. The keys are derived from the one that all servers share and the
//! tenant's name: nothing is kept, all servers have the same, and to check a token nothing is
//! looked up. A key's id is that of the key that it is derived from, and the tenant.

use std::sync::Arc;

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use insula_api::names::TenantName;
use rustls_pki_types::PrivatePkcs8KeyDer;

use super::{
    KeyError,
    pair::{self, Pair},
};
use crate::lately::Lately;

/// What a P-256 key in PKCS #8 begins with; its 32 bytes follow.
const PKCS8: [u8; 35] = [
    0x30, 0x41, 2, 1, 0, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 3, 1, 7, 4, 0x27, 0x30, 0x25, 2, 1, 1, 4, 0x20,
];
/// Of 2^32 numbers of 32 bytes about one is no key of the curve: the next one is taken.
const TRIES: u8 = 4;

/// Those that come from one key.
pub(crate) struct Tenants {
    /// The id of that key.
    of: String,
    secret: Prk,
    /// Of tenants that had a token signed, or showed a good one, lately.
    made: Lately<Arc<Pair>>,
}

/// One of them.
pub(super) struct Derived {
    pub(super) tenant: TenantName,
    pub(super) pair: Arc<Pair>,
}

impl Tenants {
    pub(super) fn derive(id: &str, secret: &[u8]) -> Self {
        let salt = Salt::new(HKDF_SHA256, b"insula tokens of tenants, version 1");
        Self { of: id.to_owned(), secret: salt.extract(secret), made: Lately::default() }
    }

    /// What an id says: from which key, and whose.
    pub(super) fn parse(id: &str) -> Option<(&str, TenantName)> {
        let (of, tenant) = id.split_once('.')?;
        Some((of, TenantName::parse(tenant).ok()?))
    }

    /// The key of `tenant`, which need not exist: who asks learns nothing of that.
    pub(super) fn of(&self, tenant: &TenantName) -> Result<Derived, KeyError> {
        let pair = match self.made.get(tenant) {
            Some(pair) => pair,
            None => Arc::new(self.make(tenant)?),
        };
        Ok(Derived { tenant: tenant.clone(), pair })
    }

    /// Has a key at hand for the next time. Only for what is known to be in use: anybody can send
    /// a token that names a tenant.
    pub(super) fn keep(&self, key: &Derived) {
        self.made.put(&key.tenant, key.pair.clone());
    }

    pub(super) fn made(&self) -> &Lately<Arc<Pair>> {
        &self.made
    }

    fn make(&self, tenant: &TenantName) -> Result<Pair, KeyError> {
        let mut last = KeyError::Derivation;
        for n in 0..TRIES {
            let mut pkcs8 = [0; PKCS8.len() + 32];
            let (head, key) = pkcs8.split_at_mut(PKCS8.len());
            head.copy_from_slice(&PKCS8);
            let info = [tenant.as_str().as_bytes(), &[0, n]];
            let derived = self.secret.expand(&info, HKDF_SHA256);
            derived.and_then(|it| it.fill(key)).map_err(|_| KeyError::Derivation)?;
            let private = PrivatePkcs8KeyDer::from(pkcs8.as_slice()).into();
            match pair::read(&private) {
                Ok(pair) => return Pair::new(&pair, format!("{}.{tenant}", self.of)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
