//! As whom the server speaks to a tenant's extension servers: one authority per tenant.
//!
//! An extension server believes what headers say of a caller if the connection shows a certificate
//! of an authority that it trusts. Were that one for all tenants, whoever registers another
//! tenant's server as its own would be believed there. So each tenant has its own, whose key is
//! derived from the key that all servers share and from the tenant's uid: nothing is kept, all
//! servers have the same, and its certificate is the same to the byte wherever it is made.

use base64::Engine as _;
use insula_api::names::TenantName;
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{pki::PkiError, tokens::TokenError};

/// The name in the certificate that is shown, and the only one that extension servers accept.
pub(crate) const NAME: &str = "front-proxy-client";
/// What an Ed25519 key in PKCS #8 begins with; its 32 bytes follow.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// The years between which the certificates are valid. Their keys are never written anywhere.
const YEARS: (i32, i32) = (2026, 2126);

/// What all tenants' authorities are derived from.
#[derive(Clone)]
pub(crate) struct FrontProxies {
    secret: EncodingKey,
}

impl std::fmt::Debug for FrontProxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontProxies").finish_non_exhaustive()
    }
}

impl FrontProxies {
    /// Derives it from the key that signs tokens.
    pub(crate) fn derive(secret: &[u8]) -> Result<Self, TokenError> {
        let base = EncodingKey::from_secret(secret);
        let text = b"insula front proxies, version 1";
        let derived = jsonwebtoken::crypto::sign(text, &base, Algorithm::HS256)?;
        Ok(Self { secret: EncodingKey::from_secret(derived.as_bytes()) })
    }

    /// That of `tenant`, which has this uid: another tenant of the same name has another.
    pub(crate) fn of(&self, tenant: &TenantName, uid: &str) -> Result<FrontProxy, PkiError> {
        self.authority(&format!("{tenant}/{uid}"), &format!("insula-front-proxy-ca of {tenant}"))
    }

    /// The certificate, in PEM, of an authority that signs nobody's: what an extension server of
    /// `tenant` is told of clients' own certificates, since it has to be told something.
    pub(crate) fn no_clients(&self, tenant: &TenantName, uid: &str) -> Result<String, PkiError> {
        let name = format!("insula-no-clients-ca of {tenant}");
        Ok(self.authority(&format!("{tenant}/{uid}/no clients"), &name)?.certificate)
    }

    fn authority(&self, text: &str, name: &str) -> Result<FrontProxy, PkiError> {
        let bad = || PkiError::Name(name.to_owned());
        let derived = jsonwebtoken::crypto::sign(text.as_bytes(), &self.secret, Algorithm::HS256);
        let seed = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(derived.map_err(|_| bad())?)
            .map_err(|_| bad())?;
        let mut pkcs8 = PKCS8.to_vec();
        pkcs8.extend_from_slice(seed.get(..32).ok_or_else(bad)?);
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8))?;
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(FrontProxy { certificate, issuer })
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(YEARS.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(YEARS.1, 1, 1);
    params
}

/// A tenant's authority.
pub(crate) struct FrontProxy {
    /// In PEM, for `requestheader-client-ca-file`.
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a client shows: its certificate, and the key to it.
pub(crate) struct ClientPair {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl FrontProxy {
    /// A certificate of this process.
    pub(crate) fn client(&self) -> Result<ClientPair, PkiError> {
        let mut params = params(NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(ClientPair { chain: vec![certificate], key: key.into() })
    }
}

#[cfg(test)]
mod tests {
    use rustls::{RootCertStore, server::WebPkiClientVerifier};
    use rustls_pki_types::{UnixTime, pem::PemObject as _};

    use super::*;

    fn of(secret: &[u8], tenant: &str, uid: &str) -> FrontProxy {
        let tenant = TenantName::parse(tenant).unwrap();
        FrontProxies::derive(secret).unwrap().of(&tenant, uid).unwrap()
    }

    fn accepts(trusted: &FrontProxy, shown: &FrontProxy) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.certificate.as_bytes()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let client = shown.client().unwrap();
        verifier.verify_client_cert(&client.chain[0], &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn every_server_has_the_same_and_every_tenant_its_own() {
        let acme = of(b"secret", "acme", "1");
        assert_eq!(acme.certificate, of(b"secret", "acme", "1").certificate);
        assert!(accepts(&acme, &of(b"secret", "acme", "1")));
        for other in
            [of(b"secret", "globex", "1"), of(b"secret", "acme", "2"), of(b"other", "acme", "1")]
        {
            assert_ne!(acme.certificate, other.certificate);
            assert!(!accepts(&acme, &other) && !accepts(&other, &acme));
        }
    }
}
