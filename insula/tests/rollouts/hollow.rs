//! Pods become ready without any node: some time after they are made their status says so.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use insula_client::{Client, Kind, Patch, Tenanted, WatchEvent, WatchOptions};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::history::{History, is_ready};

/// Follows all pods and all sets, and has each pod become ready. Ends with the runtime.
pub(crate) async fn follow(client: &Client) -> (Arc<Mutex<History>>, [JoinHandle<()>; 2]) {
    let history = Arc::new(Mutex::new(History::default()));
    let (learns, patches) = (history.clone(), client.clone());
    let pods = watch::<Pod>(client, move |event| {
        learns.lock().unwrap().learn_pod(&event);
        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
            && !pod.is_deleting()
            && !is_ready(&pod)
        {
            tokio::spawn(become_ready(patches.clone(), pod));
        }
    });
    let learns = history.clone();
    let sets = watch::<ReplicaSet>(client, move |event| learns.lock().unwrap().learn_set(&event));
    let tasks = [pods.await, sets.await];
    (history, tasks)
}

async fn watch<K: Kind + Send + 'static>(
    client: &Client,
    mut learn: impl FnMut(WatchEvent<K>) + Send + 'static,
) -> JoinHandle<()> {
    let options = WatchOptions { timeout_seconds: Some(36_000), ..WatchOptions::default() };
    let mut watch = client.all().collection::<K>().watch(&options).await.unwrap();
    tokio::spawn(async move {
        while let Some(event) = watch.next().await.unwrap() {
            learn(event);
        }
        panic!("a watch has ended");
    })
}

async fn become_ready(client: Client, pod: Tenanted<Pod>) {
    tokio::time::sleep(Duration::from_millis(rand::random_range(20..400))).await;
    let condition = json!({
        "type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now().to_string(),
    });
    let status = json!({"status": {"phase": "Running", "conditions": [condition]}});
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    if let Err(error) = pods.patch_status(pod.name(), &Patch::Merge(status)).await {
        // Gone meanwhile.
        assert!(error.is_not_found(), "{error:?}");
    }
}
