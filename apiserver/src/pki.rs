//! The cloud's own certificate authority, and the certificates it signs.
//!
//! One CA (ECDSA P-256, ten years) signs server, client and node certificates. A client
//! certificate says who its holder is, see [`crate::identity`]: `CN` is the user,
//! `O=tenant:<name>` the tenant, and every `OU` a group.

mod requests;

use std::{
    fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use insula_api::names::TenantName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, string::Ia5String,
};

pub use self::requests::{Asked, RequestError, node_asked_for};

/// Days that a leaf certificate is valid.
const LEAF_DAYS: i64 = 365;
const CA_DAYS: i64 = 3650;

/// Why a certificate could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make or read a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("{0:?} cannot stand in a certificate")]
    Name(String),
}

/// A certificate and its key, both in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// The certificate authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the CA of `directory` (`ca.crt`, `ca.key`), or makes it if there is none.
    pub fn open_or_create(directory: &Path) -> Result<Self, PkiError> {
        let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
        if certificate.exists() {
            return Self::open(&certificate, &key);
        }
        create_directory(directory)?;
        let key_pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "insula-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        lifetime(&mut params, CA_DAYS);
        let pem = params.self_signed(&key_pair)?.pem();
        // The key first: a CA certificate without its key would be found and be useless.
        write_private(&key, &key_pair.serialize_pem())?;
        write_private(&certificate, &pem)?;
        Self::from_pem(pem, &key_pair.serialize_pem())
    }

    /// Reads a CA. Where one follows another, the first certificate is its own, and the others are
    /// only trusted.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, PkiError> {
        Self::from_pem(read(certificate)?, &read(key)?)
    }

    fn from_pem(certificate: String, key: &str) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { certificate, issuer })
    }

    /// The CA's certificate in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Pair, PkiError> {
        lifetime(&mut params, LEAF_DAYS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }

    /// A certificate for a server that is reached by `names` and `addresses`.
    pub fn server(&self, cn: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Pair, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        for name in names {
            let name = Ia5String::try_from(*name).map_err(|_| PkiError::Name((*name).into()))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(addresses.iter().map(|it| SanType::IpAddress(*it)));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// The certificate of the API server `name`, for clients that reach it by `names` and
    /// `addresses`, and for the other servers, which it calls with it, too.
    pub fn api_server(
        &self,
        name: &str,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Pair, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, crate::peers::user(name));
        params.distinguished_name.push(DnType::OrganizationName, "tenant:system");
        push_group(&mut params.distinguished_name, crate::peers::SERVERS);
        let internal = crate::peers::dns_name(name);
        for name in names.iter().chain([&internal]) {
            let name =
                Ia5String::try_from(name.as_str()).map_err(|_| PkiError::Name(name.clone()))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(addresses.iter().map(|it| SanType::IpAddress(*it)));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A client certificate for `user` of `tenant` in `groups`.
    pub fn client(
        &self,
        tenant: &TenantName,
        user: &str,
        groups: &[impl AsRef<str>],
    ) -> Result<Pair, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, format!("tenant:{tenant}"));
        for group in groups {
            push_group(&mut params.distinguished_name, group.as_ref());
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// Reads `name.crt` and `name.key` of `directory`, or makes them with `make`. Remade when
    /// they have less than a third of their life left, or were signed by another CA.
    pub fn keep(
        &self,
        directory: &Path,
        name: &str,
        make: impl FnOnce() -> Result<Pair, PkiError>,
    ) -> Result<Pair, PkiError> {
        let certificate = directory.join(format!("{name}.crt"));
        let key = directory.join(format!("{name}.key"));
        if certificate.exists() && key.exists() {
            let pair = Pair { certificate: read(&certificate)?, key: read(&key)? };
            if self.still_good(&pair.certificate) {
                return Ok(pair);
            }
        }
        let pair = make()?;
        create_directory(directory)?;
        write_private(&key, &pair.key)?;
        write_private(&certificate, &pair.certificate)?;
        Ok(pair)
    }

    /// For how long it is good, in seconds.
    fn seconds_left(&self) -> Option<i64> {
        let (_, ca) = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes()).ok()?;
        let left = ca.parse_x509().ok()?.validity().time_to_expiration()?;
        i64::try_from(left.unsigned_abs().as_secs()).ok()
    }

    fn still_good(&self, certificate: &str) -> bool {
        let good = || -> Option<bool> {
            let (_, leaf) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).ok()?;
            let leaf = leaf.parse_x509().ok()?;
            let (_, ca) = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes()).ok()?;
            let ca = ca.parse_x509().ok()?;
            leaf.verify_signature(Some(ca.public_key())).ok()?;
            let left = leaf.validity().time_to_expiration()?;
            Some(LEAF_DAYS * 86_400 / 3 < i64::try_from(left.unsigned_abs().as_secs()).ok()?)
        };
        good().unwrap_or(false)
    }
}

/// Appends one more group to the `OU`.
///
/// The library keeps one value per attribute, so several groups are one text, separated by the
/// ASCII unit separator; the reader takes both this and several `OU`s.
fn push_group(name: &mut DistinguishedName, group: &str) {
    let joined = match name.get(&DnType::OrganizationalUnitName) {
        Some(rcgen::DnValue::Utf8String(have)) => format!("{have}\u{1f}{group}"),
        _ => group.to_owned(),
    };
    name.push(DnType::OrganizationalUnitName, joined);
}

fn lifetime(params: &mut CertificateParams, days: i64) {
    // An hour of slack for clocks that are behind.
    let now = std::time::SystemTime::now();
    let hour = std::time::Duration::from_secs(3600);
    let life = std::time::Duration::from_secs(days.unsigned_abs() * 86_400);
    params.not_before = (now - hour).into();
    params.not_after = (now + life).into();
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File { path: path.into(), source })
}

fn create_directory(path: &Path) -> Result<(), PkiError> {
    fs::create_dir_all(path).map_err(|source| PkiError::File { path: path.into(), source })
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let write = || -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| PkiError::File { path: path.into(), source })
}
