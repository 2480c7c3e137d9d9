//! The listener: TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2, graceful end.

use std::{io, sync::Arc, time::Duration};

use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{Server, gate::Peer, pki::Pair};

/// How long a client has for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client has to send a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// Concurrent requests of one HTTP/2 connection.
const STREAMS: u32 = 250;
/// How long open requests have when the server ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the listener cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the server's certificate or the CA cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("the server's certificate or the CA is not PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the CA cannot verify client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// TLS of a server and of its connections to nodes.
#[derive(Debug)]
pub struct Tls {
    acceptor: Arc<ServerConfig>,
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

fn roots(ca: &str) -> Result<RootCertStore, ServeError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

impl Tls {
    /// Presents `pair`; client certificates are optional and must be signed by `ca`.
    pub fn new(ca: &str, pair: &Pair) -> Result<Self, ServeError> {
        let verifier =
            WebPkiClientVerifier::builder(Arc::new(roots(ca)?)).allow_unauthenticated().build()?;
        let mut config =
            ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(
                certificates(&pair.certificate)?,
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?,
            )?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: Arc::new(config) })
    }

    /// A client's side: trusts `ca` and presents `pair`.
    pub fn client(ca: &str, pair: &Pair) -> Result<Arc<rustls::ClientConfig>, ServeError> {
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots(ca)?)
            .with_client_auth_cert(
                certificates(&pair.certificate)?,
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?,
            )?;
        Ok(Arc::new(config))
    }
}

impl Server {
    /// Takes connections until the server's shutdown is cancelled.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Tls) {
        let acceptor = TlsAcceptor::from(tls.acceptor);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (server, acceptor) = (self.clone(), acceptor.clone());
                    self.tasks.spawn(server.connection(stream, acceptor));
                }
                Err(error) => {
                    // Out of file descriptors, for one: others may free some.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor) {
        if let Err(error) = self.clone().run_connection(stream, acceptor).await {
            tracing::debug!(%error, "a connection ended");
        }
    }

    async fn run_connection(
        self: Arc<Self>,
        stream: TcpStream,
        acceptor: TlsAcceptor,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|it| it.first());
        let peer = Peer { certificate: certificate.map(|it| it.to_vec()), trusted: None };
        let peer = Arc::new(peer);
        let server = self.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (server, peer) = (server.clone(), peer.clone());
            async move {
                Ok::<_, std::convert::Infallible>(server.handle(request, (*peer).clone()).await)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = self.shutdown.cancelled() => (),
        }
        connection.as_mut().graceful_shutdown();
        match tokio::time::timeout(DRAIN, connection).await {
            Ok(ended) => ended.map_err(io::Error::other),
            Err(_) => Ok(()),
        }
    }
}
