//! An API server in memory: as much of one as a pod's worker can see.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use futures::future::BoxFuture;
use insula_api::names::TenantName;
use insula_client::{Error, EventType, Tenanted};
use jiff::{Timestamp, ToSpan};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::{Status, Time},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{Cluster, Token},
    pod::{identity::PodKey, references::Names},
    pods::Pods,
};

#[derive(Debug, Default)]
pub(crate) struct MemoryCluster {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    n_writes: u64,
    pods: BTreeMap<String, Arc<Tenanted<Pod>>>,
    config_maps: HashMap<String, ConfigMap>,
    secrets: HashMap<String, Secret>,
    runtime_classes: HashMap<String, String>,
    events: Vec<(String, String)>,
    agent: Option<Pods>,
    n_patches: usize,
}

impl MemoryCluster {
    /// Changes go to this agent from now on; it is told of all that is there.
    pub(crate) fn attach(&self, agent: Pods) {
        let mut state = self.state.lock();
        for pod in state.pods.values() {
            agent.set(pod.clone());
        }
        state.agent = Some(agent);
    }

    pub(crate) fn detach(&self) {
        self.state.lock().agent = None;
    }

    pub(crate) fn create(&self, tenant: &str, name: &str, spec: Value) -> Arc<Tenanted<Pod>> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": uuid::Uuid::new_v4().to_string(),
                "tenant": tenant, "labels": {"app": name}, "generation": 1},
            "spec": spec, "status": {"phase": "Pending", "qosClass": "BestEffort"}}));
        self.store(pod.unwrap())
    }

    pub(crate) fn get(&self, uid: &str) -> Option<Arc<Tenanted<Pod>>> {
        self.state.lock().pods.get(uid).cloned()
    }

    /// Resolves at the next change after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + '_ {
        let mut changed = Box::pin(self.changed.notified());
        changed.as_mut().enable();
        changed
    }

    /// What `kubectl delete` does to a pod.
    pub(crate) fn delete_gracefully(&self, uid: &str, grace: i64) {
        let mut pod = (*self.get(uid).unwrap()).clone();
        pod.object.metadata.deletion_timestamp = Some(Time(Timestamp::now() + grace.seconds()));
        pod.object.metadata.deletion_grace_period_seconds = Some(grace);
        self.store(pod);
    }

    /// What `kubectl delete --force --grace-period=0` does to a pod.
    pub(crate) fn delete_at_once(&self, uid: &str) {
        let mut state = self.state.lock();
        state.pods.remove(uid);
        if let Some(agent) = &state.agent {
            agent.remove(uid);
        }
        self.changed.notify_waiters();
    }

    pub(crate) fn update(&self, uid: &str, change: impl FnOnce(&mut Pod)) {
        let mut pod = (*self.get(uid).unwrap()).clone();
        change(&mut pod.object);
        self.store(pod);
    }

    pub(crate) fn set_config_map(&self, name: &str, data: Value) {
        let object = serde_json::from_value(json!({"metadata": {"name": name}, "data": data}));
        self.state.lock().config_maps.insert(name.to_owned(), object.unwrap());
    }

    pub(crate) fn set_secret(&self, name: &str, data: Value) {
        let object = serde_json::from_value(json!({"metadata": {"name": name}, "data": data}));
        self.state.lock().secrets.insert(name.to_owned(), object.unwrap());
    }

    pub(crate) fn set_runtime_class(&self, name: &str, handler: &str) {
        self.state.lock().runtime_classes.insert(name.to_owned(), handler.to_owned());
    }

    /// `reason: message` of all that was told about a pod.
    pub(crate) fn events(&self, uid: &str) -> Vec<String> {
        let state = self.state.lock();
        state.events.iter().filter(|(of, _)| of == uid).map(|(_, text)| text.clone()).collect()
    }

    pub(crate) fn has_event(&self, uid: &str, start: &str) -> bool {
        self.events(uid).iter().any(|it| it.starts_with(start))
    }

    pub(crate) fn n_patches(&self) -> usize {
        self.state.lock().n_patches
    }

    fn store(&self, mut pod: Tenanted<Pod>) -> Arc<Tenanted<Pod>> {
        let mut state = self.state.lock();
        state.n_writes += 1;
        pod.object.metadata.resource_version = Some(state.n_writes.to_string());
        let pod = Arc::new(pod);
        state.pods.insert(pod.uid().to_owned(), pod.clone());
        if let Some(agent) = &state.agent {
            agent.set(pod.clone());
        }
        self.changed.notify_waiters();
        pod
    }
}

fn not_found() -> Error {
    let status =
        Status { reason: Some("NotFound".to_owned()), code: Some(404), ..Status::default() };
    Error::Api(Box::new(status))
}

/// As much of a strategic merge as a status needs.
fn merge(target: &mut Value, patch: &Value) {
    for (name, value) in patch.as_object().unwrap() {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else if name == "conditions" {
            let mut all: Vec<Value> = target[name].as_array().cloned().unwrap_or_default();
            for condition in value.as_array().unwrap() {
                all.retain(|it| it["type"] != condition["type"]);
                let mut condition = condition.clone();
                condition.as_object_mut().unwrap().retain(|_, it| !it.is_null());
                all.push(condition);
            }
            target[name] = all.into();
        } else if let Some(all) = value.as_array() {
            target[name] = all.iter().filter(|it| it.get("$patch").is_none()).cloned().collect();
        } else {
            target[name] = value.clone();
        }
    }
}

impl Cluster for MemoryCluster {
    fn config_map<'a>(
        &'a self,
        _: &'a TenantName,
        _: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ConfigMap>, Error>> {
        let found = self.state.lock().config_maps.get(name).cloned();
        Box::pin(async { Ok(found) })
    }

    fn secret<'a>(
        &'a self,
        _: &'a TenantName,
        _: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Secret>, Error>> {
        let found = self.state.lock().secrets.get(name).cloned();
        Box::pin(async { Ok(found) })
    }

    fn runtime_handler<'a>(
        &'a self,
        _: &'a TenantName,
        class: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, Error>> {
        let found = self.state.lock().runtime_classes.get(class).cloned();
        Box::pin(async { Ok(found) })
    }

    fn follow(&self, _: &PodKey, _: &Names, _: Arc<dyn Fn() + Send + Sync>, _: &CancellationToken) {
        // Nothing changes here but by the tests, which wake the workers themselves.
    }

    fn token<'a>(
        &'a self,
        pod: &'a PodKey,
        service_account: &'a str,
        audience: &'a str,
        _: i64,
    ) -> BoxFuture<'a, Result<Token, Error>> {
        let token = format!("{}/{service_account}/{audience}", pod.tenant);
        Box::pin(async { Ok(Token { token, expires: Timestamp::now() + 1.hour() }) })
    }

    fn patch_status<'a>(
        &'a self,
        pod: &'a PodKey,
        patch: Value,
    ) -> BoxFuture<'a, Result<Tenanted<Pod>, Error>> {
        Box::pin(async move {
            let mut stored = (*self.get(&pod.uid).ok_or_else(not_found)?).clone();
            self.state.lock().n_patches += 1;
            let mut status = serde_json::to_value(&stored.object.status).unwrap();
            merge(&mut status, &patch["status"]);
            stored.object.status = Some(serde_json::from_value(status).unwrap());
            Ok((*self.store(stored)).clone())
        })
    }

    fn delete<'a>(&'a self, pod: &'a PodKey) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.delete_at_once(&pod.uid);
            Ok(())
        })
    }

    fn event(&self, pod: &PodKey, _: Option<String>, _: EventType, reason: &str, message: String) {
        let text = format!("{reason}: {message}");
        self.state.lock().events.push((pod.uid.as_ref().to_owned(), text));
        self.changed.notify_waiters();
    }
}
