//! Who a request comes from. The tenant is a typed part of it, never parsed out of a user name.
//!
//! Client certificates: `CN` is the user, exactly one `O=tenant:<name>` the tenant, all other `O`
//! and all `OU` the groups. A certificate without a tenant is nobody.

use std::collections::BTreeMap;

use insula_api::names::TenantName;
use serde::{Deserialize, Serialize};
use x509_parser::{
    prelude::{FromDer as _, X509Certificate},
    x509::X509Name,
};

/// Most groups that one identity may bring.
const MAX_GROUPS: usize = 256;
/// Longest user or group name, in bytes.
const MAX_NAME: usize = 1024;

pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Superusers, of the platform's tenant only.
pub const MASTERS: &str = "system:masters";
pub const NODES: &str = "system:nodes";
/// What names begin with that nobody outside may give out.
pub(crate) const RESERVED: &str = "system:";

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub tenant: TenantName,
    pub user: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    pub groups: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why a credential names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate has no common name, or more than one")]
    NoUser,
    #[error("the certificate names {0} tenants; exactly one `O=tenant:<name>` is needed")]
    Tenants(usize),
    #[error("the certificate names no valid tenant")]
    BadTenant,
    #[error("there are too many or too long names, or empty ones")]
    TooMuch,
    #[error("a name holds what no name may hold")]
    Unprintable,
}

impl Identity {
    pub fn new(tenant: TenantName, user: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|it| (*it).to_owned()).collect();
        groups.push(AUTHENTICATED.into());
        Self { tenant, user: user.into(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|known| known == group)
    }

    /// Its groups, but for that of everybody who is known.
    pub(crate) fn own_groups(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().map(String::as_str).filter(|it| *it != AUTHENTICATED)
    }

    /// May do everything everywhere.
    pub fn is_superuser(&self) -> bool {
        self.tenant.is_system() && self.in_group(MASTERS)
    }

    /// The node that this is the agent of.
    pub fn node(&self) -> Option<&str> {
        let name = self.user.strip_prefix("system:node:")?;
        (self.tenant.is_system() && self.in_group(NODES)).then_some(name)
    }

    /// Reads the holder of a client certificate whose chain was verified by TLS.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
        Self::from_subject(certificate.subject(), None)
    }

    /// Reads a subject; one that names no tenant is of `default`, if there is one.
    pub(crate) fn from_subject(
        subject: &X509Name<'_>,
        default: Option<&TenantName>,
    ) -> Result<Self, IdentityError> {
        let texts = |values: Vec<Result<&str, _>>| -> Result<Vec<String>, IdentityError> {
            let texts: Result<Vec<&str>, x509_parser::error::X509Error> =
                values.into_iter().collect();
            Ok(texts
                .map_err(|_| IdentityError::Unreadable)?
                .iter()
                .map(|it| (*it).into())
                .collect())
        };
        let names = texts(subject.iter_common_name().map(|it| it.as_str()).collect())?;
        let [user] = names.as_slice() else { return Err(IdentityError::NoUser) };
        if user.is_empty() {
            return Err(IdentityError::NoUser);
        }
        let organizations = texts(subject.iter_organization().map(|it| it.as_str()).collect())?;
        let units = texts(subject.iter_organizational_unit().map(|it| it.as_str()).collect())?;
        let (tenants, mut groups): (Vec<String>, Vec<String>) =
            organizations.into_iter().partition(|it| it.starts_with("tenant:"));
        let tenant = match (tenants.as_slice(), default) {
            ([tenant], _) => {
                let name = tenant.strip_prefix("tenant:").unwrap_or_default();
                TenantName::parse(name).map_err(|_| IdentityError::BadTenant)?
            }
            ([], Some(default)) => default.clone(),
            _ => return Err(IdentityError::Tenants(tenants.len())),
        };
        groups.extend(units.iter().flat_map(|it| it.split('\u{1f}')).map(str::to_owned));
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let identity = Self::new(tenant, user, &groups);
        identity.check()?;
        Ok(identity)
    }

    /// What is too much to be somebody, whoever says so.
    pub(crate) fn check(&self) -> Result<(), IdentityError> {
        let mut names = self.groups.iter().chain([&self.user]);
        if MAX_GROUPS < self.groups.len()
            || names.any(|it| MAX_NAME < it.len() || it.is_empty())
            || MAX_NAME < self.uid.len()
        {
            return Err(IdentityError::TooMuch);
        }
        // They stand in headers and logs.
        let mut names = self.groups.iter().chain([&self.user, &self.uid]);
        match names.any(|it| it.chars().any(char::is_control)) {
            true => Err(IdentityError::Unprintable),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Authority;

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
    }

    #[test]
    fn a_certificate_carries_tenant_user_and_groups() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Authority::open_or_create(directory.path()).unwrap();
        let acme = TenantName::parse("acme").unwrap();
        let pair = ca.client(&acme, "dev", &["acme-admins", "ops"]).unwrap();
        let identity = Identity::from_certificate(&der(&pair.certificate)).unwrap();
        assert_eq!(identity, Identity::new(acme, "dev", &["acme-admins", "ops"]));
    }

    #[test]
    fn without_a_tenant_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let ca = Authority::open_or_create(directory.path()).unwrap();
        let pair = ca.server("localhost", &["localhost"], &[]).unwrap();
        let error = Identity::from_certificate(&der(&pair.certificate)).unwrap_err();
        assert_eq!(error, IdentityError::Tenants(0));
    }

    #[test]
    fn masters_count_only_in_system() {
        let acme = TenantName::parse("acme").unwrap();
        assert!(!Identity::new(acme, "x", &[MASTERS]).is_superuser());
        assert!(Identity::new(TenantName::system(), "x", &[MASTERS]).is_superuser());
    }
}
