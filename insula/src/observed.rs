//! What a part of the cloud that is a process of its own tells of itself: `/metrics` and
//! `/healthz`.
//!
//! Over plain HTTP and to everyone who can reach the address: it is told nothing of tenants.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use insula_metrics::Collector;
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// Connections at the same time; others wait.
const MOST: usize = 32;
/// How long a client may take to ask, and how long it may stay.
const PATIENCE: Duration = Duration::from_secs(10);
const STAY: Duration = Duration::from_secs(600);
/// How long nothing is accepted after that failed, for example for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `shutdown`; returns once it listens, with the address.
pub(crate) async fn serve(
    address: SocketAddr,
    collectors: Vec<Box<dyn Collector>>,
    shutdown: CancellationToken,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let mut registry = Registry::default();
    collectors.into_iter().for_each(|it| registry.register_collector(it));
    let registry = Arc::new(registry);
    tokio::spawn(shutdown.run_until_cancelled_owned(accept(listener, registry)));
    Ok(address)
}

async fn accept(listener: TcpListener, registry: Arc<Registry>) {
    let places = Arc::new(Semaphore::new(MOST));
    // A closed semaphore does not occur: nobody closes it.
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let registry = registry.clone();
        tokio::spawn(async move {
            // Who goes away early, or stays for too long, is no news.
            let _ = tokio::time::timeout(STAY, converse(stream, registry)).await;
            drop(place);
        });
    }
}

async fn converse(stream: TcpStream, registry: Arc<Registry>) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &registry);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    server.serve_connection(TokioIo::new(stream), service).await
}

fn answer(method: &Method, path: &str, registry: &Registry) -> Response<Full<Bytes>> {
    let (code, form, text) = match (method, path) {
        (&Method::GET, "/healthz" | "/livez" | "/readyz") => {
            (StatusCode::OK, TEXT, "ok".to_owned())
        }
        (&Method::GET, "/metrics") => {
            let mut text = String::new();
            // Writing into a String cannot fail.
            let _ = encode(&mut text, registry);
            (StatusCode::OK, METRICS, text)
        }
        _ => (StatusCode::NOT_FOUND, TEXT, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(form));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn it_tells_of_itself() {
        let shutdown = CancellationToken::new();
        let collectors: Vec<Box<dyn Collector>> =
            vec![Box::new(insula_controllers::metrics::Queues)];
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = serve(anywhere, collectors, shutdown.clone()).await.unwrap();
        let get = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let health = get("/healthz").await;
        assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("ok"), "{health}");
        let metrics = get("/metrics").await;
        assert!(metrics.contains("# TYPE insula_controllers_held_slots gauge"), "{metrics}");
        assert!(get("/secrets").await.starts_with("HTTP/1.1 404"));
        shutdown.cancel();
    }
}
