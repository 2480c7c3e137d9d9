//! The agent's HTTPS server: logs, commands and ports of this node's pods.
//!
//! Its only clients are API servers and administrators; both show a certificate of the cluster's
//! authority. The paths are the kubelet's below `/tenants/{tenant}`, because a pod's namespace and
//! name alone do not name it.

mod answer;
mod log;
mod route;
mod stream;
mod tls;

use std::{sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use insula_client::chain;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::tls::tls_config;
use self::{
    answer::{Body, Refusal, text},
    route::{PodPath, Route},
};
use crate::{
    node::Node,
    pods::{PodView, Pods},
};

/// How long a client may take to say who it is, and then what it wants.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER_READ: Duration = Duration::from_secs(30);
/// How long to wait when no connection can be taken, as when files have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Serves one node's pods. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    node: Arc<Node>,
    pods: Pods,
}

impl Server {
    pub(crate) fn new(node: Arc<Node>, pods: Pods) -> Self {
        Self { node, pods }
    }

    /// Serves until `shutdown`.
    pub(crate) async fn run(
        self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    let (server, acceptor) = (self.clone(), acceptor.clone());
                    let (tasks_of, shutdown_of) = (tasks.clone(), shutdown.clone());
                    let serve = async move {
                        let work =
                            server.connection(acceptor, stream, tasks_of, shutdown_of.clone());
                        if let Some(Err(error)) = shutdown_of.run_until_cancelled(work).await {
                            tracing::debug!(%peer, error, "connection ended");
                        }
                    };
                    tasks.spawn(serve);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn connection(
        self,
        acceptor: TlsAcceptor,
        stream: TcpStream,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<(), String> {
        let told = |error: &(dyn std::error::Error + 'static)| chain(error);
        stream.set_nodelay(true).map_err(|error| told(&error))?;
        let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(stream) => stream.map_err(|error| told(&error))?,
            Err(_) => return Err("no TLS handshake in time".to_owned()),
        };
        let caller = tls::caller(stream.get_ref().1);
        let service = service_fn(move |request| {
            let (server, caller) = (self.clone(), caller.clone());
            let (tasks, shutdown) = (tasks.clone(), shutdown.clone());
            async move {
                let answer = match caller {
                    Ok(()) => server.handle(request, &tasks, &shutdown).await,
                    Err(why) => Err(Refusal::new(StatusCode::FORBIDDEN, why)),
                };
                Ok::<_, std::convert::Infallible>(answer.unwrap_or_else(Refusal::into_response))
            }
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await
            .map_err(|error| told(&error))
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Response<Body>, Refusal> {
        let route = Route::parse(request.uri().path())
            .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "404 page not found"))?;
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match route {
            Route::Health if is_read => Ok(text(StatusCode::OK, "ok")),
            Route::Metrics if is_read => Ok(text(StatusCode::OK, self.metrics())),
            Route::Logs(path, container) if is_read => {
                let pod = self.pod(&path, request.uri().query())?;
                log::serve(&self.node, pod, &container, request.uri().query()).await
            }
            Route::Exec(path, container) => {
                let pod = self.pod(&path, request.uri().query())?;
                let wanted = stream::Wanted::Exec { container };
                stream::serve(&self.node, pod, wanted, request, tasks, shutdown).await
            }
            Route::Attach(path, container) => {
                let pod = self.pod(&path, request.uri().query())?;
                let wanted = stream::Wanted::Attach { container };
                stream::serve(&self.node, pod, wanted, request, tasks, shutdown).await
            }
            Route::PortForward(path) => {
                let pod = self.pod(&path, request.uri().query())?;
                let wanted = stream::Wanted::PortForward;
                stream::serve(&self.node, pod, wanted, request, tasks, shutdown).await
            }
            _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")),
        }
    }

    /// The pod of that path; with `uid=` in the query, only the incarnation with this uid.
    fn pod(&self, path: &PodPath, query: Option<&str>) -> Result<PodView, Refusal> {
        let uid = route::parameters(query).find(|(name, _)| name == "uid");
        let found = match &uid {
            Some((_, uid)) => self.pods.by_uid(uid).filter(|it| {
                it.key.tenant.as_str() == path.tenant
                    && *it.key.namespace == *path.namespace
                    && *it.key.name == *path.name
            }),
            None => self.pods.by_name(&path.tenant, &path.namespace, &path.name),
        };
        found.ok_or_else(|| {
            let message =
                format!("pod {:?} not found in namespace {:?}", path.name, path.namespace);
            Refusal::new(StatusCode::NOT_FOUND, message)
        })
    }

    fn metrics(&self) -> String {
        format!(
            "# HELP insula_node_pods Pods that this node has or is getting rid of.\n\
             # TYPE insula_node_pods gauge\n\
             insula_node_pods {}\n",
            self.pods.len()
        )
    }
}

#[cfg(test)]
mod tests;
