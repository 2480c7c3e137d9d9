//! As few HTTP/2 connections to the API server as have room for all requests, made again when they
//! have ended.
//!
//! The client of the libraries below speaks HTTP/1.1: a connection for each request that is under
//! way, with buffers of its own. Who has many of them under way, as load tests have and who follows
//! many resources, wants them on few.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::{client::ConfigExt as _, config::Config};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::{BoxError, Service};

use crate::said::Sent;

/// What the server may send unasked, on one stream and on all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How often a silent connection is asked whether it is there, and how long it may think.
const PING: std::time::Duration = std::time::Duration::from_secs(15);
const PONG: std::time::Duration = std::time::Duration::from_secs(15);
const H2: &[u8] = b"h2";
/// Requests that are put on one connection; servers let 250 of them be under way, or some 100. One
/// beyond that would wait for another's end, which of a watch may be far.
const MOST_ON_ONE: usize = 100;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0} names no host")]
    NoHost(Uri),
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("no TLS with {address}")]
    Tls {
        address: String,
        #[source]
        source: std::io::Error,
    },
}

/// The connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

/// One connection.
struct Connection {
    sender: SendRequest<Sent>,
    /// Also held by each request that is under way.
    places: Arc<()>,
}

impl Connection {
    fn n_taken(&self) -> usize {
        Arc::strong_count(&self.places) - 1
    }

    fn place(&self) -> Place {
        Place { sender: self.sender.clone(), place: self.places.clone() }
    }
}

/// Room for one request.
struct Place {
    sender: SendRequest<Sent>,
    place: Arc<()>,
}

/// An answer that is being read, and keeps its place until it was or nobody wants it any longer.
pub(crate) struct Placed {
    body: Incoming,
    _place: Arc<()>,
}

impl Body for Placed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Inner {
    address: String,
    /// Whom the certificate has to name, and how; absent without TLS.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    connections: Mutex<Vec<Connection>>,
    /// Held while connecting, so that all who wait share what is made.
    connecting: tokio::sync::Mutex<()>,
}

impl Link {
    /// Connects with the first request.
    pub(crate) fn new(config: &Config) -> Result<Self, BoxError> {
        let url = &config.cluster_url;
        let host = url.host().ok_or_else(|| LinkError::NoHost(url.clone()))?;
        let is_tls = url.scheme_str() != Some("http");
        let address = format!("{host}:{}", url.port_u16().unwrap_or(if is_tls { 443 } else { 80 }));
        let tls = if is_tls {
            let mut rules = config.rustls_client_config()?;
            rules.alpn_protocols = vec![H2.to_vec()];
            let bare = host.trim_matches(['[', ']']);
            let name = config.tls_server_name.as_deref().unwrap_or(bare).to_owned();
            Some((TlsConnector::from(Arc::new(rules)), ServerName::try_from(name)?))
        } else {
            None
        };
        let (connections, connecting) = (Mutex::default(), tokio::sync::Mutex::new(()));
        Ok(Self(Arc::new(Inner { address, tls, connections, connecting })))
    }
}

impl Inner {
    /// A place on the first connection that has one.
    fn free_place(&self) -> Option<Place> {
        let mut connections = self.connections.lock();
        connections.retain(|it| !it.sender.is_closed());
        connections.iter().find(|it| it.n_taken() < MOST_ON_ONE).map(Connection::place)
    }

    async fn place(&self) -> Result<Place, BoxError> {
        if let Some(place) = self.free_place() {
            return Ok(place);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(place) = self.free_place() {
            return Ok(place);
        }
        let made = Connection { sender: self.connect().await?, places: Arc::default() };
        let place = made.place();
        self.connections.lock().push(made);
        Ok(place)
    }

    async fn connect(&self) -> Result<SendRequest<Sent>, BoxError> {
        let address = || self.address.clone();
        let stream = TcpStream::connect(&self.address).await;
        let stream = stream.map_err(|source| LinkError::Connect { address: address(), source })?;
        stream.set_nodelay(true)?;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        let Some((connector, name)) = &self.tls else {
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return Ok(sender);
        };
        let stream = connector.connect(name.clone(), stream).await;
        let stream = stream.map_err(|source| LinkError::Tls { address: address(), source })?;
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // Its end is seen by who sends next.
        tokio::spawn(connection);
        Ok(sender)
    }
}

impl Service<Request<Sent>> for Link {
    type Response = Response<Placed>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Placed>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Sent>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let mut request = request;
            loop {
                let Place { mut sender, place } = inner.place().await?;
                match sender.try_send_request(request).await {
                    Ok(response) => return Ok(response.map(|body| Placed { body, _place: place })),
                    Err(mut error) => match error.take_message() {
                        // The connection ended before it took the request, and is known to have.
                        Some(unsent) if sender.is_closed() => request = unsent,
                        _ => return Err(error.into_error().into()),
                    },
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http_body_util::{BodyExt as _, Empty, StreamBody};
    use hyper::{server::conn::http2, service::service_fn};
    use tokio::net::TcpListener;

    use super::*;
    /// Begins every answer and ends none; counts the connections, of which so many are closed as
    /// soon as they are there.
    async fn server(n_connections: Arc<AtomicUsize>, n_closed: usize) -> Uri {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = n_connections.fetch_add(1, Ordering::SeqCst);
                let answer = service_fn(async |_| {
                    let nothing = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
                    Ok::<_, Infallible>(Response::new(StreamBody::new(nothing)))
                });
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(u32::try_from(MOST_ON_ONE).unwrap());
                if n_closed <= number {
                    tokio::spawn(builder.serve_connection(TokioIo::new(stream), answer));
                }
            }
        });
        format!("http://{address}/").parse().unwrap()
    }

    async fn ask(link: &Link, uri: &Uri) -> Result<Response<Placed>, BoxError> {
        let nothing = Empty::new().map_err(|never| match never {}).boxed_unsync();
        link.clone().call(Request::get(uri).body(nothing).unwrap()).await
    }

    #[tokio::test]
    async fn no_request_waits_for_the_end_of_another() {
        let n_connections = Arc::new(AtomicUsize::new(0));
        let uri = server(n_connections.clone(), 0).await;
        let link = Link::new(&Config::new(uri.clone())).unwrap();
        let all = futures::future::try_join_all((0..3 * MOST_ON_ONE).map(|_| ask(&link, &uri)));
        let answers = tokio::time::timeout(std::time::Duration::from_secs(60), all);
        let mut answers = answers.await.unwrap().unwrap();
        assert_eq!(n_connections.load(Ordering::SeqCst), 3);
        // Who is no longer wanted makes room for another.
        answers.truncate(2 * MOST_ON_ONE);
        let more = futures::future::try_join_all((0..MOST_ON_ONE).map(|_| ask(&link, &uri)));
        answers.extend(more.await.unwrap());
        assert_eq!(n_connections.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn what_a_connection_did_not_take_goes_by_another() {
        let n_connections = Arc::new(AtomicUsize::new(0));
        let uri = server(n_connections.clone(), 1).await;
        let link = Link::new(&Config::new(uri.clone())).unwrap();
        // The first is closed before it says anything; what is not known to be unsent is the
        // caller's to repeat.
        let answered = async { while ask(&link, &uri).await.is_err() {} };
        tokio::time::timeout(std::time::Duration::from_secs(60), answered).await.unwrap();
        assert!(2 <= n_connections.load(Ordering::SeqCst));
    }
}
