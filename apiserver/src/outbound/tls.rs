//! Which certificates a tenant's requests trust.

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};

use super::OutboundError;
use crate::{aggregation::front_proxy::ClientPair, error::chain};

/// What is trusted: a bundle, what the machine trusts if there is none, or anybody; and what is
/// shown, if anything is.
#[derive(Clone)]
pub(crate) struct Trust {
    config: Arc<ClientConfig>,
    /// Tells apart what is trusted differently.
    id: u128,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Trust {
    /// Trusts the certificates of `bundle`, which are PEM in base64, or the machine's.
    pub(crate) fn bundle(bundle: Option<&str>) -> Result<Self, OutboundError> {
        static MACHINES: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
            let config = ClientConfig::builder().with_root_certificates(machines());
            Arc::new(config.with_no_client_auth())
        });
        match roots_of(bundle)? {
            None => Ok(Self { config: MACHINES.clone(), id: 0 }),
            Some((roots, id)) => {
                let config = ClientConfig::builder().with_root_certificates(roots);
                Ok(Self { config: Arc::new(config.with_no_client_auth()), id })
            }
        }
    }

    /// As [`Trust::bundle`], and shows `client`.
    pub(crate) fn bundle_shown(
        bundle: Option<&str>,
        client: &ClientPair,
    ) -> Result<Self, OutboundError> {
        let (roots, id) = match roots_of(bundle)? {
            Some(found) => found,
            None => (machines(), 0),
        };
        Self::shown(ClientConfig::builder().with_root_certificates(roots), id, client)
    }

    /// Trusts whoever answers, as `insecureSkipTLSVerify` asks for.
    pub(crate) fn anybody() -> Self {
        static CONFIG: LazyLock<Arc<ClientConfig>> =
            LazyLock::new(|| Arc::new(anybody().with_no_client_auth()));
        Self { config: CONFIG.clone(), id: 1 }
    }

    /// As [`Trust::anybody`], and shows `client`.
    pub(crate) fn anybody_shown(client: &ClientPair) -> Result<Self, OutboundError> {
        Self::shown(anybody(), 1, client)
    }

    fn shown(
        config: ConfigBuilder<ClientConfig, WantsClientCert>,
        id: u128,
        client: &ClientPair,
    ) -> Result<Self, OutboundError> {
        let config = config
            .with_client_auth_cert(client.chain.clone(), client.key.clone_key())
            .map_err(|error| OutboundError::Tls(error.to_string()))?;
        let mut seed = id.to_le_bytes().to_vec();
        client.chain.iter().for_each(|it| seed.extend_from_slice(it));
        Ok(Self { config: Arc::new(config), id: xxhash_rust::xxh3::xxh3_128(&seed) })
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    pub(super) fn id(&self) -> u128 {
        self.id
    }
}

/// What the machine trusts.
fn machines() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(error = chain(error), "a certificate of this machine cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// The certificates of a bundle, which are PEM in base64, and what tells them apart.
fn roots_of(bundle: Option<&str>) -> Result<Option<(RootCertStore, u128)>, OutboundError> {
    let Some(bundle) = bundle.map(str::trim).filter(|it| !it.is_empty()) else { return Ok(None) };
    let pem = base64::engine::general_purpose::STANDARD
        .decode(bundle)
        .map_err(|_| OutboundError::Bundle)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| OutboundError::Bundle)?;
        roots.add(certificate).map_err(|_| OutboundError::Bundle)?;
    }
    Ok(Some((roots, xxhash_rust::xxh3::xxh3_128(&pem))))
}

fn anybody() -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
}

/// Believes every certificate, but only whoever holds its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What went wrong in a handshake, as clients know it.
pub(super) fn told(error: &std::io::Error, host: &str) -> OutboundError {
    use rustls::{CertificateError as Bad, Error};
    let inner = error.get_ref().and_then(|it| it.downcast_ref::<Error>());
    let why = match inner {
        Some(Error::InvalidCertificate(bad)) => {
            let why = match bad {
                Bad::UnknownIssuer | Bad::BadSignature => {
                    "certificate signed by unknown authority".to_owned()
                }
                Bad::Expired
                | Bad::NotValidYet
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYetContext { .. } => {
                    "certificate has expired or is not yet valid".to_owned()
                }
                Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                    format!("certificate is not valid for {host}")
                }
                other => other.to_string(),
            };
            format!("tls: failed to verify certificate: x509: {why}")
        }
        Some(Error::InvalidMessage(_)) => {
            "tls: first record does not look like a TLS handshake".to_owned()
        }
        Some(other) => format!("tls: {other}"),
        None => match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            _ => error.to_string(),
        },
    };
    OutboundError::Tls(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_told_apart() {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap();
        let pem = made.self_signed(&key).unwrap().pem();
        let text = base64::engine::general_purpose::STANDARD.encode(&pem);
        let one = Trust::bundle(Some(&text)).unwrap();
        let same = Trust::bundle(Some(&text)).unwrap();
        assert_eq!(one.id(), same.id());
        assert_ne!(one.id(), Trust::bundle(None).unwrap().id());
        assert_ne!(one.id(), Trust::anybody().id());
        assert!(Trust::bundle(Some("no base64!")).is_err());
    }
}
