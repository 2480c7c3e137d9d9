//! Fills the secrets in which tokens of service accounts are asked for, and removes those whose
//! account is gone.
//!
//! Such a token is good for as long as its secret is there; others are better served by
//! `TokenRequest`.

use std::sync::Arc;

use insula_client::{Client, DeleteOptions, ObjectKey, Patch, Tenanted};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
};
use serde_json::{Value, json};

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    queue::Queue,
};

const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// What is in such a secret.
const TOKEN: &str = "token";
const ROOT_CA: &str = "ca.crt";
const NAMESPACE: &str = "namespace";
/// The longest life that can be asked for, in seconds.
const FOREVER: i64 = 1 << 32;

/// See the module. Keys are secrets.
#[derive(Debug)]
pub(crate) struct TokenSecrets {
    client: Client,
    informers: Informers,
    /// PEM.
    root_ca: String,
}

impl TokenSecrets {
    pub(crate) fn new(client: Client, informers: Informers, root_ca: String) -> Self {
        Self { client, informers, root_ca }
    }

    /// The account that a secret is for, if it is there.
    async fn account_of(
        &self,
        secret: &Tenanted<Secret>,
    ) -> Result<Option<Arc<Tenanted<ServiceAccount>>>, insula_client::Error> {
        let name = annotation(secret, ACCOUNT);
        let is_meant = |it: &Tenanted<ServiceAccount>| {
            let uid = annotation(secret, ACCOUNT_UID);
            uid.is_empty() || uid == it.uid()
        };
        let key = ObjectKey::new(&secret.tenant, secret.namespace(), name);
        let known = self.informers.accounts.get(&key).filter(|it| is_meant(it));
        if known.is_some() {
            return Ok(known);
        }
        // The local copy may not know it yet.
        let api = self.client.tenant(&secret.tenant);
        let api = api.namespaced::<ServiceAccount>(secret.namespace());
        Ok(api.get_opt(name).await?.filter(is_meant).map(Arc::new))
    }

    /// A token of `account` that ends with the secret.
    async fn token(
        &self,
        secret: &Tenanted<Secret>,
        account: &Tenanted<ServiceAccount>,
    ) -> Result<String, ReconcileError> {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": FOREVER,
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Secret",
                    "name": secret.name(), "uid": secret.uid(),
                },
            },
        });
        let api = self.client.tenant(&account.tenant);
        let api = api.namespaced::<ServiceAccount>(account.namespace());
        let made: Value = api.create_subresource(account.name(), "token", &request).await?;
        let token = made["status"]["token"].as_str().map(str::to_owned);
        token.ok_or_else(|| ReconcileError::Incomplete("the server gave no token".to_owned()))
    }
}

fn annotation<'s>(secret: &'s Secret, key: &str) -> &'s str {
    let all = secret.metadata.annotations.as_ref();
    all.and_then(|all| all.get(key)).map_or("", String::as_str)
}

fn data<'s>(secret: &'s Secret, key: &str) -> &'s [u8] {
    secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[], |it| &it.0)
}

/// Keeps whether a token is there, and not the token.
pub(crate) fn trim(secret: &mut Secret) {
    for (key, value) in secret.data.iter_mut().flatten() {
        match key.as_str() {
            ROOT_CA | NAMESPACE => (),
            _ => value.0.truncate(1),
        }
    }
}

impl Controller for TokenSecrets {
    const NAME: &'static str = "tokens-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.token_secrets.on_change(move |change| keys.add(change.key.clone()));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.accounts.on_change(move |change| {
            // An account that is gone, or was replaced, takes its tokens along.
            let Some(old) = change.old else { return };
            if change.new.is_some_and(|new| new.uid() == old.uid()) {
                return;
            }
            let near = it.informers.token_secrets.in_namespace(&old.tenant, old.namespace());
            let of_it = near.iter().filter(|secret| annotation(secret, ACCOUNT) == old.name());
            of_it.for_each(|secret| keys.add(secret.key()));
        });
    }

    async fn synced(&self) -> bool {
        self.informers.token_secrets.synced().await && self.informers.accounts.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let secret = self.informers.token_secrets.get(key).filter(|it| !it.is_deleting());
        let Some(secret) = secret else { return Ok(Next::WhenChanged) };
        let api = self.client.tenant(&secret.tenant).namespaced::<Secret>(secret.namespace());
        let Some(account) = self.account_of(&secret).await? else {
            let options = DeleteOptions::default().only_uid(secret.uid());
            return match api.delete(secret.name(), &options).await {
                Ok(_) => Ok(Next::WhenChanged),
                Err(error) if error.is_not_found() || error.is_conflict() => Ok(Next::WhenChanged),
                Err(error) => Err(error.into()),
            };
        };
        let mut missing = serde_json::Map::new();
        let mut put = |name: &str, value: &str| {
            let value = ByteString(value.as_bytes().to_vec());
            missing.insert(name.to_owned(), json!(value));
        };
        if data(&secret, ROOT_CA) != self.root_ca.as_bytes() {
            put(ROOT_CA, &self.root_ca);
        }
        if data(&secret, NAMESPACE) != secret.namespace().as_bytes() {
            put(NAMESPACE, secret.namespace());
        }
        if data(&secret, TOKEN).is_empty() {
            put(TOKEN, &self.token(&secret, &account).await?);
        }
        if missing.is_empty() && annotation(&secret, ACCOUNT_UID) == account.uid() {
            return Ok(Next::WhenChanged);
        }
        let patch = json!({
            // As it was seen: another token may have been put into it meanwhile.
            "metadata": {
                "uid": secret.uid(), "resourceVersion": secret.resource_version(),
                "annotations": {ACCOUNT_UID: account.uid()},
            },
            "data": missing,
        });
        api.patch(secret.name(), &Patch::Merge(patch)).await?;
        Ok(Next::WhenChanged)
    }
}
