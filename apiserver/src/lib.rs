//! The HTTP front of the cloud: authentication, authorization, admission, registry, watch.
//!
//! A request's way is `gate` (who, where, may) -> `handlers` (read, write, watch, streams), which
//! are the same for every resource; what differs is data in `insula-api` and few functions in
//! `strategy` and `admission`.

mod accept;
mod admission;
mod aggregation;
pub mod alone;
mod answer;
pub mod audit;
mod backup;
pub mod body;
mod bootstrap;
mod call;
mod compress;
mod custom;
mod delete;
mod discovery;
pub mod encryption;
mod ending;
mod epochs;
pub mod error;
mod events;
mod fair;
mod feed;
mod finishing;
mod forms;
mod forward;
mod gate;
mod gather;
mod granted;
mod handlers;
mod health;
pub mod identity;
mod lately;
mod matcher;
mod measured;
mod metrics;
mod node_proxy;
mod nonresource;
mod openapi;
mod outbound;
mod ownership;
mod parsed;
mod passport;
mod patch;
mod payload;
pub mod peers;
mod per_event;
pub mod pki;
mod providers;
mod proxy;
mod quota;
mod rbac;
mod read;
mod record;
mod registry;
mod relay;
mod remarks;
mod request;
mod revision;
mod scoped;
mod serve;
pub mod services;
mod shown;
mod strategy;
mod subresources;
mod table;
mod tenants;
pub mod tokens;
mod topics;
mod turns;
mod validate;
mod version;
mod views;
mod watch;
mod websocket;
mod write;

use std::sync::{Arc, OnceLock, Weak};

use futures::future::BoxFuture;
use insula_api::names::TenantName;
use insula_partition::{partitions::Partitions, store::ReadAt};
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    call::Call,
    error::{ApiError, Result},
    identity::Identity,
    node_proxy::Dialer,
    peers::HttpPeers,
    rbac::{Attributes, Policies, Policy, Rule},
    registry::{Registry, Whose},
    scoped::Scoped,
    services::ServiceRanges,
    tokens::Keys,
};

pub use crate::gate::{StaticTokens, StaticTokensError};
pub use crate::outbound::OutboundNetworks;
pub use crate::serve::{Front, Patience, ServeError, Tls};

/// How long to wait for storage that is not there yet before looking again.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(200);

/// What a server is made of.
#[derive(Debug)]
pub struct ServerConfig {
    pub partitions: Arc<Partitions>,
    pub keys: Arc<Keys>,
    /// Tokens that a file names.
    pub static_tokens: Option<Arc<StaticTokens>>,
    /// Trusts the CA and presents the server's client certificate to node agents.
    pub node_tls: Arc<rustls::ClientConfig>,
    /// `host:port` under which clients reach this server.
    pub advertise: String,
    /// What services are given addresses and ports of.
    pub services: ServiceRanges,
    /// Whom requests that tenants cause may reach.
    pub outbound: OutboundNetworks,
    /// The way to the other servers, if there may be any.
    pub peers: Option<HttpPeers>,
    /// Where requests are written down, if they are.
    pub audit: Option<audit::Audit>,
    /// Ends watches and streams when cancelled.
    pub shutdown: CancellationToken,
}

/// One API server.
#[derive(Debug)]
pub struct Server {
    own: Weak<Self>,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) registry: Registry,
    /// What every tenant begins with.
    pub(crate) beginnings: OnceLock<bootstrap::Beginnings>,
    pub(crate) customs: custom::Customs,
    pub(crate) aggregation: aggregation::Aggregation,
    /// What is looked up again and again.
    pub(crate) parsed: parsed::Parsed,
    pub(crate) policies: Policies,
    pub(crate) bound: gate::Bound,
    pub(crate) rules: admission::Rules,
    pub(crate) keys: Arc<Keys>,
    pub(crate) static_tokens: Option<Arc<StaticTokens>>,
    pub(crate) providers: providers::Providers,
    pub(crate) dialer: Dialer,
    pub(crate) outbound: outbound::Outbound,
    pub(crate) advertise: String,
    pub(crate) services: ServiceRanges,
    pub(crate) peers: Option<HttpPeers>,
    pub(crate) audit: Option<audit::Audit>,
    pub(crate) forms: forms::Forms,
    pub(crate) frames: per_event::Frames,
    pub(crate) sights: per_event::Sights,
    pub(crate) bound_names: feed::names::Names,
    pub(crate) topics: topics::Topics,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) held: body::Held,
    pub(crate) measured: measured::Measured,
    pub(crate) fair: Arc<fair::Fair>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Server {
    /// Prepares the platform's own tenant and is then ready to answer.
    pub fn start(config: ServerConfig) -> BoxFuture<'static, Result<Arc<Self>>> {
        // Boxed so that it is compiled here, and not with every program around it.
        Box::pin(Self::started(config))
    }

    async fn started(config: ServerConfig) -> Result<Arc<Self>> {
        let registry = Registry::built_in();
        let mut views = Vec::new();
        for served in registry.all() {
            if let Some(kind) = served.view_kind() {
                let (partitions, peers) = (config.partitions.clone(), config.peers.clone());
                let view = views::View::new(kind, partitions, peers);
                served.set_view(view.clone());
                views.push(view);
            }
        }
        let fair = Arc::<fair::Fair>::default();
        let tasks = TaskTracker::new();
        let server = Arc::new_cyclic(|own| Self {
            own: own.clone(),
            partitions: config.partitions,
            registry,
            beginnings: OnceLock::new(),
            customs: custom::Customs::default(),
            aggregation: aggregation::Aggregation::default(),
            parsed: parsed::Parsed::default(),
            policies: Policies::default(),
            bound: gate::Bound::default(),
            rules: admission::Rules::default(),
            keys: config.keys,
            static_tokens: config.static_tokens,
            providers: providers::Providers::default(),
            dialer: Dialer::new(config.node_tls),
            outbound: outbound::Outbound::new(config.outbound),
            advertise: config.advertise,
            services: config.services,
            peers: config.peers,
            audit: config.audit,
            forms: forms::Forms::default(),
            frames: per_event::Frames::default(),
            sights: per_event::Sights::default(),
            bound_names: feed::names::Names::default(),
            topics: topics::Topics::new(tasks.clone(), config.shutdown.clone()),
            metrics: metrics::Metrics::new(fair.clone()),
            fair: fair.clone(),
            held: body::Held::default(),
            measured: measured::Measured::default(),
            tasks,
            shutdown: config.shutdown,
        });
        if let Some(peers) = &server.peers {
            peers.tell_measured(server.measured.clone());
        }
        server.tasks.spawn(fair.look_after(server.shutdown.clone()));
        server.tasks.spawn(server.clone().forget());
        server.tasks.spawn(forward::follow_addresses(server.clone()));
        for view in views {
            let shutdown = server.shutdown.clone();
            server.tasks.spawn(async move { shutdown.run_until_cancelled(view.run()).await });
        }
        server.bootstrap().await?;
        server.tasks.spawn(tenants::follow(server.clone()));
        server.tasks.spawn(tenants::beginning::follow(server.clone()));
        server.tasks.spawn(shown::copies::follow(server.clone()));
        server.tasks.spawn(custom::look_after(server.clone()));
        server.tasks.spawn(quota::usage::look_after(server.clone()));
        server.tasks.spawn(quota::served::look_after(server.clone()));
        server.tasks.spawn(aggregation::available::look_after(server.clone()));
        server.tasks.spawn(encryption::look_after(server.clone()));
        Ok(server)
    }

    /// Writes what the platform begins with; waits for storage, which may wait for other servers.
    async fn bootstrap(&self) -> Result<()> {
        let mut told = false;
        loop {
            match bootstrap::system(self).await {
                Err(error) if error.code == http::StatusCode::SERVICE_UNAVAILABLE => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "not ready yet");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Shows itself otherwise to node agents from now on, and trusts others.
    pub fn set_node_tls(&self, tls: Arc<rustls::ClientConfig>) {
        self.dialer.set(tls);
    }

    /// Reads the keys of tokens again, and has tenants' extension servers told of what follows.
    pub fn reload_keys(self: &Arc<Self>) -> std::result::Result<(), tokens::KeyError> {
        self.keys.reload()?;
        let server = self.clone();
        self.tasks.spawn(async move {
            let telling = server.shutdown.run_until_cancelled(bootstrap::front_proxies(&server));
            if let Some(Err(error)) = telling.await {
                tracing::warn!(%error, "some extension servers are not told of the new keys yet");
            }
        });
        Ok(())
    }

    /// This server, for what it asks of itself; none when it ends.
    pub(crate) fn myself(&self) -> Option<Arc<Self>> {
        self.own.upgrade()
    }

    /// What is remembered of tenants for the next time that they ask.
    pub(crate) fn memories(&self) -> Vec<&dyn lately::Forgets> {
        let mut all = vec![
            self.policies.memory(),
            &self.customs.tenants,
            &self.customs.shared.tenants,
            &self.aggregation.tenants,
            self.providers.memory(),
            &*self.keys,
        ];
        all.extend(self.rules.memories());
        all
    }

    /// Forgets tenants that ask nothing any more.
    async fn forget(self: Arc<Self>) {
        let forgetting = async {
            loop {
                tokio::time::sleep(lately::TURN).await;
                self.memories().iter().for_each(|it| it.tidy(std::time::Instant::now()));
            }
        };
        self.shutdown.run_until_cancelled(forgetting).await;
    }

    /// Waits for connections, watches and streams to end. Call after cancelling `shutdown`.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Reads one object of a built-in resource, without its managers.
    pub(crate) async fn find(
        &self,
        tenant: &TenantName,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>> {
        let Some(served) = self.registry.any_version(group, resource) else { return Ok(None) };
        let (_, store) = served.place(&self.partitions, tenant, namespace, name);
        let snapshot = store.read(&served.collection, ReadAt::Latest).await?;
        let entry = snapshot.get(&registry::key(tenant, namespace, name));
        entry.map(|it| self.parsed.of(&it.value).map_err(ApiError::internal)).transpose()
    }

    /// The rules of the tenant that `identity` belongs to.
    pub(crate) async fn policy_of(&self, tenant: &TenantName) -> Result<Arc<Policy>> {
        let key = match tenant.is_system() {
            true => insula_partition::map::ShardKey::System,
            false => insula_partition::map::ShardKey::Tenant(tenant.as_str().to_owned()),
        };
        let store = Scoped::new(self.partitions.place(&key).store, key);
        let policy = self.policies.of(tenant, &store).await?;
        if policy.is_to_be_settled() {
            rbac::aggregate::begin(self, tenant);
        }
        Ok(policy)
    }

    /// The rules that the caller is judged by.
    pub(crate) async fn policy_for(&self, call: &Call) -> Result<Arc<Policy>> {
        self.policy_of(&call.identity.tenant).await
    }

    /// Whether `identity` may do `attributes` to objects of `whose`.
    ///
    /// Users of a tenant are judged by its rules, in it alone. Users of the platform are judged
    /// by the platform's rules, which in a tenant are those that name it.
    pub(crate) async fn may(
        &self,
        identity: &Identity,
        whose: &Whose,
        attributes: &Attributes,
    ) -> Result<bool> {
        if identity.is_superuser() {
            return Ok(true);
        }
        Ok(self.policy_of(&identity.tenant).await?.allows(identity, whose, attributes))
    }

    /// The rules of a role in `tenant`; none if it does not exist.
    pub(crate) async fn role_rules(
        &self,
        tenant: &TenantName,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Vec<Rule>> {
        let policy = self.policy_of(tenant).await?;
        Ok(policy.role(kind, namespace, name).unwrap_or_default().to_vec())
    }

    /// Judges a second verb on the object of a call that was let in for another.
    pub(crate) async fn authorize_verb(&self, call: &Call, verb: &str) -> Result<()> {
        let attributes = gate::attributes(call, verb);
        if self.may(&call.identity, &call.whose, &attributes).await? {
            return Ok(());
        }
        Err(gate::denied(&call.identity, &attributes))
    }
}
