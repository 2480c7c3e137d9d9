//! Who may speak to this server.

use std::{path::Path, sync::Arc};

use rustls::{RootCertStore, ServerConfig, ServerConnection, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{NodeConfig, NodeError};

/// The name of API servers in their certificates.
const API_SERVER: &str = "system:apiserver";
/// The group of administrators, likewise.
const MASTERS: &str = "system:masters";

/// TLS with our certificate, for clients that show one of the cluster's authority.
pub(crate) fn tls_config(config: &NodeConfig) -> Result<Arc<ServerConfig>, NodeError> {
    let unusable = |path: &Path, source: Box<dyn std::error::Error + Send + Sync>| {
        NodeError::Credential { path: path.to_path_buf(), source }
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, NodeError> {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        let all: Vec<_> = all.map_err(|error| unusable(path, error.into()))?;
        if all.is_empty() {
            return Err(unusable(path, "it holds no certificate".into()));
        }
        Ok(all)
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(&config.client_ca)? {
        roots.add(root).map_err(|error| unusable(&config.client_ca, error.into()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|error| unusable(&config.client_ca, error.into()))?;
    let key = PrivateKeyDer::from_pem_file(&config.serving_key)
        .map_err(|error| unusable(&config.serving_key, error.into()))?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(NodeError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.serving_cert)?, key)
        .map_err(NodeError::Tls)?;
    // Streams change the protocol of their connection, which HTTP/2 does not have.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// Whether the client at the other end may use this server. The error says why not.
pub(super) fn caller(connection: &ServerConnection) -> Result<(), String> {
    // The verifier has checked the chain; a client without a certificate has not come so far.
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.ok_or("a client certificate is required")?;
    may_call(leaf)
}

fn may_call(leaf: &[u8]) -> Result<(), String> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|error| format!("client certificate: {error}"))?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next().and_then(|it| it.as_str().ok());
    let mut groups = subject.iter_organization().filter_map(|it| it.as_str().ok());
    if name == Some(API_SERVER) || groups.any(|it| it == MASTERS) {
        return Ok(());
    }
    Err(format!("user {:?} may not use this node's server", name.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[track_caller]
    fn check(name: &str, group: &str, expected: bool) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(may_call(certificate.der()).is_ok(), expected, "{name} {group}");
    }

    #[test]
    fn callers() {
        check("system:apiserver", "any", true);
        check("root", "system:masters", true);
        check("system:node:a", "system:nodes", false);
        check("system:masters", "system:apiserver", false);
        assert!(may_call(b"junk").is_err());
    }
}
