//! Who may speak to this server.

use std::{path::Path, sync::Arc};

use insula_api::names::SYSTEM;
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
        .with_protocol_versions(config.tls_versions)
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

/// Certificates carry `CN`, the user; exactly one `O=tenant:<name>`; groups in all other `O` and in
/// `OU`, there several joined by the unit separator. Only the platform's own tenant comes here: a
/// user of another may have any name and any group.
fn may_call(leaf: &[u8]) -> Result<(), String> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|error| format!("client certificate: {error}"))?;
    let subject = certificate.subject();
    let mut names = subject.iter_common_name().filter_map(|it| it.as_str().ok());
    let name = names.next().unwrap_or_default();
    let organizations = subject.iter_organization().filter_map(|it| it.as_str().ok());
    let (tenants, groups): (Vec<&str>, Vec<&str>) =
        organizations.partition(|it| it.starts_with("tenant:"));
    let units = subject.iter_organizational_unit().filter_map(|it| it.as_str().ok());
    let mut groups = groups.into_iter().chain(units.flat_map(|it| it.split('\u{1f}')));
    let is_system =
        matches!(tenants[..], [tenant] if tenant.strip_prefix("tenant:") == Some(SYSTEM));
    if is_system && names.next().is_none() && (name == API_SERVER || groups.any(|it| it == MASTERS))
    {
        return Ok(());
    }
    Err(format!("user {name:?} may not use this node's server"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};
    use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion, version};

    use super::*;

    #[track_caller]
    fn check(name: &str, organization: &str, unit: &str, expected: bool) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let found = may_call(certificate.der()).is_ok();
        assert_eq!(found, expected, "{name} {organization} {unit}");
    }

    /// Whether a client of only one version is let further than its greeting.
    #[track_caller]
    fn greets(server: &Arc<ServerConfig>, version: &'static SupportedProtocolVersion) -> bool {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = "127.0.0.1".try_into().unwrap();
        let mut client = ClientConnection::new(client.into(), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        server.read_tls(&mut hello.as_slice()).unwrap();
        server.process_new_packets().is_ok()
    }

    #[test]
    fn old_versions_are_for_those_who_ask() {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = ["a.crt", "a.key"].map(|it| dir.path().join(it));
        let pair = KeyPair::generate().unwrap();
        let made = CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap();
        std::fs::write(&certificate, made.pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        let address = "127.0.0.1".parse().unwrap();
        let mut config = NodeConfig::new("n", address, &certificate, &key, &certificate);
        let server = tls_config(&config).unwrap();
        assert!(greets(&server, &version::TLS13) && !greets(&server, &version::TLS12));
        config.tls_versions = rustls::ALL_VERSIONS;
        let server = tls_config(&config).unwrap();
        assert!(greets(&server, &version::TLS13) && greets(&server, &version::TLS12));
    }

    #[test]
    fn callers() {
        check("system:apiserver", "tenant:system", "any", true);
        check("root", "tenant:system", "ops\u{1f}system:masters", true);
        check("system:node:a", "tenant:system", "system:nodes", false);
        check("system:masters", "tenant:system", "system:apiserver", false);
        // A tenant's administrator chooses names and groups, but not the tenant.
        check("system:apiserver", "tenant:acme", "system:masters", false);
        check("root", "system:masters", "system:masters", false);
        assert!(may_call(b"junk").is_err());
    }
}
