//! A real cloud in this process: storage, API server, controllers; and pods that need no node.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

use std::{
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use insula_api::names::TenantName;
use insula_apiserver::{
    Server, ServerConfig, Tls,
    identity::{Identity, MASTERS},
    pki::Authority,
    services::ServiceRanges,
    tokens::Keys,
};
use insula_client::{
    Client, DeleteOptions, Error, Informer, Kind, Object, Patch, Tenant, Tenanted,
};
use insula_controllers::Config;
use insula_partition::partitions::{Partitions, PartitionsConfig, StoreConfig};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long anything may take to come true. The machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// A deployment, or a set, of so many pods with the label `app`.
pub(crate) fn replicated(name: &str, app: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": app}},
            "template": {
                "metadata": {"labels": {"app": app}},
                "spec": {"containers": [{"name": "c", "image": "app:1"}]},
            },
        },
    })
}

/// Storage and an API server on it.
pub(crate) struct Backend {
    pub(crate) authority: Authority,
    pub(crate) server: Arc<Server>,
    pub(crate) shutdown: CancellationToken,
    partitions: Arc<Partitions>,
}

impl Backend {
    /// Opens what an earlier backend left in `directory`, or begins anew.
    pub(crate) async fn start(directory: &Path, n_partitions: u16) -> Self {
        let store = StoreConfig::Embedded { partitions: n_partitions };
        let data_dir = directory.join("partitions");
        let partitions =
            Arc::new(Partitions::open(PartitionsConfig::alone(data_dir, store)).await.unwrap());
        let authority = Authority::open_or_create(&directory.join("pki")).unwrap();
        let pair = authority.client(&TenantName::system(), "system:apiserver", &[MASTERS]).unwrap();
        let shutdown = CancellationToken::new();
        let server = Server::start(ServerConfig {
            partitions: partitions.clone(),
            keys: Keys::open_or_create(&directory.join("sa.key")).unwrap().into(),
            static_tokens: None,
            node_tls: Tls::client(authority.certificate(), &pair).unwrap(),
            advertise: "127.0.0.1:6443".to_owned(),
            services: ServiceRanges::default(),
            outbound: insula_apiserver::OutboundNetworks::default(),
            peers: None,
            audit: None,
            shutdown: shutdown.clone(),
        })
        .await
        .unwrap();
        Self { authority, server, shutdown, partitions }
    }

    pub(crate) async fn end(&self) {
        self.shutdown.cancel();
        self.server.drain().await;
        self.partitions.shutdown().await.unwrap();
    }
}

/// Whose client is used where nothing else is said.
fn platform() -> Identity {
    Identity::new(TenantName::system(), "test", &[MASTERS])
}

fn client_of(backend: &Backend, identity: Identity, open: Option<watch::Receiver<bool>>) -> Client {
    let server = backend.server.clone();
    let service = tower::service_fn(move |request: http::Request<_>| {
        let (server, open, identity) = (server.clone(), open.clone(), identity.clone());
        async move {
            if let Some(mut open) = open
                && open.wait_for(|open| *open).await.is_err()
            {
                // It will never be open again.
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(server.handle_trusted(request, identity).await)
        }
    });
    Client::in_process(service, "test").unwrap()
}

/// A cloud, and what ends with it.
pub(crate) struct Cloud {
    pub(crate) client: Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
    backend: Backend,
    _directory: tempfile::TempDir,
}

impl Cloud {
    /// Storage and API server.
    pub(crate) async fn start(n_partitions: u16) -> Self {
        // Shown only if the test fails, and only what RUST_LOG asks for.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let directory = tempfile::tempdir().unwrap();
        let backend = Backend::start(directory.path(), n_partitions).await;
        let client = client_of(&backend, platform(), None);
        let shutdown = CancellationToken::new();
        Self { client, shutdown, tasks: TaskTracker::new(), backend, _directory: directory }
    }

    /// A client whose requests arrive only while `open` says so; until then they wait.
    pub(crate) fn client_behind(&self, open: watch::Receiver<bool>) -> Client {
        client_of(&self.backend, platform(), Some(open))
    }

    /// A client of which every third request goes wrong: it does not arrive, its answer does not,
    /// or the server says that it does not know.
    pub(crate) fn client_in_trouble(&self) -> Client {
        let (server, n_requests) = (self.backend.server.clone(), Arc::new(AtomicUsize::new(0)));
        let service = tower::service_fn(move |request: http::Request<_>| {
            let (server, n) = (server.clone(), n_requests.fetch_add(1, Ordering::Relaxed));
            let is_watch = request.uri().query().is_some_and(|it| it.contains("watch="));
            async move {
                if n % 9 == 2 && !is_watch {
                    return std::future::pending().await;
                }
                let mut response = server.handle_trusted(request, platform()).await;
                if n % 9 == 5 && !is_watch {
                    return std::future::pending().await;
                }
                if n % 9 == 8 && !is_watch {
                    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                }
                Ok::<_, Infallible>(response)
            }
        });
        Client::in_process(service, "test").unwrap().with_timeout(Duration::from_secs(2))
    }

    /// A client whose watches of a resource are never told of anything.
    pub(crate) fn client_deaf_to(&self, resource: &str) -> Client {
        let (server, ending) = (self.backend.server.clone(), format!("/{resource}"));
        let service = tower::service_fn(move |request: http::Request<_>| {
            let server = server.clone();
            let uri = request.uri();
            let is_watch = uri.query().is_some_and(|it| it.contains("watch="));
            let is_deaf = is_watch && uri.path().ends_with(&ending);
            async move {
                if is_deaf {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(server.handle_trusted(request, platform()).await)
            }
        });
        Client::in_process(service, "test").unwrap()
    }

    /// A client of somebody else.
    pub(crate) fn client_as(&self, identity: Identity) -> Client {
        client_of(&self.backend, identity, None)
    }

    /// Storage, API server, controllers, and pods that run at once.
    pub(crate) async fn with_controllers(n_partitions: u16) -> Self {
        let cloud = Self::start(n_partitions).await;
        cloud.run_controllers(Config::new("the root of trust"));
        cloud.run_pods();
        cloud
    }

    pub(crate) fn run_controllers(&self, config: Config) {
        self.run_controllers_with(config, self.client.clone());
    }

    /// The same, by another client.
    pub(crate) fn run_controllers_with(&self, config: Config, client: Client) {
        let running = insula_controllers::run(config, client, self.shutdown.clone());
        self.tasks.spawn(running);
    }

    /// Does for pods what their nodes would: they are ready at once, and end when asked to.
    ///
    /// A pod labelled `broken` never becomes ready.
    pub(crate) fn run_pods(&self) {
        run_pods(&self.client, &self.tasks, &self.shutdown);
    }

    /// Creates a tenant and waits until it can be used.
    pub(crate) async fn tenant(&self, name: &str) -> TenantName {
        let mut tenant = Tenant::default();
        tenant.metadata.name = Some(name.to_owned());
        self.client.system().api::<Tenant>().create(&tenant).await.unwrap();
        let name = TenantName::parse(name).unwrap();
        self.until("its first account is there", async || {
            let accounts = self
                .client
                .tenant(&name)
                .namespaced::<k8s_openapi::api::core::v1::ServiceAccount>("default");
            accounts.get_opt("default").await.unwrap().is_some()
        })
        .await;
        name
    }

    /// Creates an object of `K` from JSON.
    pub(crate) async fn create<K: Kind>(
        &self,
        tenant: &TenantName,
        namespace: &str,
        value: Value,
    ) -> Tenanted<K> {
        let object: K = serde_json::from_value(value).unwrap();
        let api = self.client.tenant(tenant).namespaced::<K>(namespace);
        api.create(&object).await.unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// All objects of `K` in a namespace.
    pub(crate) async fn list<K: Kind>(
        &self,
        tenant: &TenantName,
        namespace: &str,
    ) -> Vec<Tenanted<K>> {
        let api = self.client.tenant(tenant).namespaced::<K>(namespace);
        api.list_all(&Default::default()).await.unwrap()
    }

    /// Waits until `condition` holds.
    pub(crate) async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !condition().await {
            assert!(tokio::time::Instant::now() < deadline, "never true: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the cloud in good order.
    pub(crate) async fn end(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(PATIENCE, self.tasks.wait()).await.unwrap();
        self.backend.end().await;
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.backend.shutdown.cancel();
    }
}

/// See [`Cloud::run_pods`].
pub(crate) fn run_pods(client: &Client, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let informer =
        Informer::builder(client.all().collection::<Pod>()).start(tasks, shutdown.clone());
    let (client, tasks) = (client.clone(), tasks.clone());
    informer.on_change(move |change| {
        if let Some(pod) = change.new {
            tasks.spawn(run_pod(client.clone(), pod.clone()));
        }
    });
}

async fn run_pod(client: Client, pod: Arc<Tenanted<Pod>>) {
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    let is_broken =
        pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("broken"));
    let is_ready = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"));
    let result = if pod.is_deleting() {
        let options = DeleteOptions::default().grace_period(0).only_uid(pod.uid());
        pods.delete(pod.name(), &options).await.map(drop)
    } else if is_ready || is_broken {
        Ok(())
    } else {
        let patch = json!({
            "metadata": {"uid": pod.uid()},
            "status": {"phase": "Running", "conditions": [{
                "type": "Ready", "status": "True", "lastTransitionTime": jiff_now(),
            }]},
        });
        pods.patch_status(pod.name(), &Patch::Strategic(patch)).await.map(drop)
    };
    match result {
        Ok(()) => (),
        Err(error) if error.is_not_found() || error.is_conflict() => (),
        Err(Error::Api(status)) => panic!("{status:?}"),
        // The server is away; the pod's next change tries again.
        Err(error) => tracing::warn!(?error, "pod not run"),
    }
}

fn jiff_now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap().to_string()
}

/// The names of objects, sorted.
pub(crate) fn names<K: Object>(objects: &[Tenanted<K>]) -> Vec<&str> {
    let mut names: Vec<_> = objects.iter().map(|it| it.name()).collect();
    names.sort_unstable();
    names
}
