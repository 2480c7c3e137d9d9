//! Gives every namespace its ServiceAccount `default`.

use std::sync::Arc;

use insula_client::{Client, ObjectKey};
use k8s_openapi::{api::core::v1::ServiceAccount, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::{DEFAULT_ACCOUNT, Informers},
    namespace::{is_active, key_of_namespace},
    queue::Queue,
};

/// Keeps the default ServiceAccounts. Keys are namespaces.
#[derive(Debug)]
pub(crate) struct DefaultAccounts {
    client: Client,
    informers: Informers,
}

impl DefaultAccounts {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }
}

impl Controller for DefaultAccounts {
    const NAME: &'static str = "service-account-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.namespaces.on_change(move |change| keys.add(change.key.clone()));
        let keys = queue.clone();
        self.informers.accounts.on_change(move |change| {
            if change.new.is_none() && &*change.key.name == DEFAULT_ACCOUNT {
                keys.add(key_of_namespace(change.key));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.namespaces.synced().await && self.informers.accounts.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(namespace) = self.informers.namespaces.get(key) else {
            return Ok(Next::WhenChanged);
        };
        let account = ObjectKey::new(&key.tenant, &key.name, DEFAULT_ACCOUNT);
        if !is_active(&namespace) || self.informers.accounts.get(&account).is_some() {
            return Ok(Next::WhenChanged);
        }
        let wanted = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(DEFAULT_ACCOUNT.to_owned()),
                namespace: Some(key.name.to_string()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let api = self.client.tenant(&key.tenant).namespaced::<ServiceAccount>(&key.name);
        match api.create(&wanted).await {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => (),
            Err(error) if error.is_not_found() => (),
            other => drop(other?),
        }
        Ok(Next::WhenChanged)
    }
}
