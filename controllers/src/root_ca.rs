//! Gives every namespace the ConfigMap with the certificate authority of the API server.

use std::{collections::BTreeMap, sync::Arc};

use insula_client::{Client, ObjectKey, Patch};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::{Informers, ROOT_CA},
    namespace::{is_active, key_of_namespace},
    queue::Queue,
};

const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIBED: &str = "The certificate authority of this cloud's API server, for clients inside \
                         the cluster that reach it at its internal addresses.";

/// Publishes the certificate authority. Keys are namespaces.
#[derive(Debug)]
pub(crate) struct RootCaPublisher {
    client: Client,
    informers: Informers,
    pem: String,
}

impl RootCaPublisher {
    pub(crate) fn new(client: Client, informers: Informers, pem: String) -> Self {
        Self { client, informers, pem }
    }

    /// Whether a [trimmed](trim) copy is as it is to be.
    fn is_right(&self, present: &ConfigMap) -> bool {
        let is_it = |data: &BTreeMap<String, String>| {
            data.len() == 1 && data.get(FILE).is_some_and(|it| *it == fingerprint(&self.pem))
        };
        present.data.as_ref().is_some_and(is_it)
    }
}

/// There is one for every namespace of every tenant: what it holds is kept as a fingerprint.
pub(crate) fn trim(present: &mut ConfigMap) {
    for value in present.data.iter_mut().flat_map(BTreeMap::values_mut) {
        *value = fingerprint(value);
    }
}

fn fingerprint(text: &str) -> String {
    format!("{:x}", xxh3_128(text.as_bytes()))
}

impl Controller for RootCaPublisher {
    const NAME: &'static str = "root-ca-cert-publisher";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.namespaces.on_change(move |change| keys.add(change.key.clone()));
        let keys = queue.clone();
        self.informers.root_cas.on_change(move |change| keys.add(key_of_namespace(change.key)));
    }

    async fn synced(&self) -> bool {
        self.informers.namespaces.synced().await && self.informers.root_cas.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(namespace) = self.informers.namespaces.get(key) else {
            return Ok(Next::WhenChanged);
        };
        if !is_active(&namespace) {
            return Ok(Next::WhenChanged);
        }
        let api = self.client.tenant(&key.tenant).namespaced::<ConfigMap>(&key.name);
        let result =
            match self.informers.root_cas.get(&ObjectKey::new(&key.tenant, &key.name, ROOT_CA)) {
                Some(present) if self.is_right(&present) => return Ok(Next::WhenChanged),
                Some(present) => {
                    // A JSON patch replaces the map whole, with whatever else was put into it.
                    let patch = json!([
                        {"op": "test", "path": "/metadata/uid", "value": present.uid()},
                        {"op": "add", "path": "/data", "value": {FILE: self.pem}},
                    ]);
                    api.patch(ROOT_CA, &Patch::Json(patch)).await
                }
                None => {
                    let wanted = ConfigMap {
                        metadata: ObjectMeta {
                            name: Some(ROOT_CA.to_owned()),
                            namespace: Some(key.name.to_string()),
                            annotations: Some(
                                [(DESCRIPTION.to_owned(), DESCRIBED.to_owned())].into(),
                            ),
                            ..ObjectMeta::default()
                        },
                        data: Some([(FILE.to_owned(), self.pem.clone())].into()),
                        ..ConfigMap::default()
                    };
                    api.create(&wanted).await
                }
            };
        match result {
            Err(error)
                if error.is_already_exists()
                    || error.is_not_found()
                    || error.is_namespace_terminating() => {}
            other => drop(other?),
        }
        Ok(Next::WhenChanged)
    }
}
