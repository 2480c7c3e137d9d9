//! For tests: local copies of a server that has some objects, and nothing else ever.

use std::{convert::Infallible, sync::Arc, time::Duration};

use insula_api::{names::TenantName, slots::Slots};
use insula_client::{Client, EventRecorder, ObjectKey, Sent};
use insula_membership::Sole;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    controller::{Controller, Rest},
    informers::Informers,
    queue::{Key, Queue},
};

/// See the module. Copies end when it is dropped.
pub(crate) struct Fake {
    pub(crate) client: Client,
    pub(crate) informers: Informers,
    pub(crate) events: EventRecorder,
    /// What it was asked since all of the copies were there, but for watches.
    asked: Arc<Mutex<Vec<String>>>,
    shutdown: CancellationToken,
}

impl Fake {
    /// Of each resource, by its plural, the objects of all tenants.
    pub(crate) async fn serving(objects: &[(&'static str, Vec<Value>)]) -> Self {
        let list = |items: &[Value]| {
            json!({"metadata": {"resourceVersion": "1"}, "items": items}).to_string()
        };
        let lists: Vec<_> = objects.iter().map(|(of, items)| (*of, list(items))).collect();
        let none = list(&[]);
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = asked.clone();
        let service = tower::service_fn(move |request: http::Request<Sent>| {
            let path = request.uri().path();
            let is_watch = request.uri().query().is_some_and(|it| it.contains("watch="));
            let last = path.rsplit('/').next().unwrap_or_default();
            if !is_watch {
                noted.lock().push(format!("{} {last}", request.method()));
            }
            let body = match lists.iter().find(|(of, _)| *of == last) {
                _ if request.method() == "DELETE" => {
                    json!({"kind": "Status", "status": "Success"}).to_string()
                }
                Some((_, all)) => all.clone(),
                None => none.clone(),
            };
            async move {
                if is_watch {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(http::Response::new(body))
            }
        });
        let client = Client::in_process(service, "test").unwrap();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let informers = Informers::start(&client, &Slots::all(), &tasks, &shutdown);
        let events = EventRecorder::start(client.clone(), "", "", &tasks, shutdown.clone());
        for copy in informers.by_resource().values() {
            assert!(copy.synced().await);
        }
        // These are of a part of their resource.
        assert!(informers.token_secrets.synced().await && informers.root_cas.synced().await);
        assert!(informers.bootstrap_tokens.synced().await);
        assert!(informers.cluster_infos.synced().await);
        asked.lock().clear();
        Self { client, informers, events, asked, shutdown }
    }

    /// What it was asked since last time: methods, and the last parts of the paths.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }

    /// The keys for which a controller would run, as far as anybody told it yet.
    pub(crate) async fn keys<K: Key>(queue: &Queue<K>) -> Vec<K> {
        let mut keys = Vec::new();
        while queue.len() != 0 {
            let key = queue.next().await.unwrap();
            queue.done(&key, Duration::ZERO);
            keys.push(key);
        }
        keys.sort();
        keys
    }

    pub(crate) fn queue<C: Controller>() -> Queue<C::Key> {
        Queue::new(C::NAME, Arc::new(Sole), Rest::NONE)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An object of tenant `acme` in namespace `ns`, and `more`.
pub(crate) fn object(name: &str, mut more: Value) -> Value {
    let meta = json!({
        "tenant": "acme", "namespace": "ns", "name": name, "uid": name, "resourceVersion": "1",
    });
    let said = std::mem::take(&mut more["metadata"]);
    more["metadata"] = meta;
    for (key, value) in said.as_object().into_iter().flatten() {
        more["metadata"][key] = value.clone();
    }
    more
}

pub(crate) fn acme() -> TenantName {
    TenantName::parse("acme").unwrap()
}

/// The key of [`object`]'s.
pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::new(&acme(), "ns", name)
}
