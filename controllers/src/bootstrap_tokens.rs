//! Tokens by which what joins a tenant shows that it may: they end in time, and while they last
//! they vouch for what is published about the tenant.
//!
//! Of a token's secret part nothing is kept here: whoever signs with it reads it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use insula_api::names::TenantName;
use insula_client::{Client, DeleteOptions, ObjectKey, Patch, Tenanted};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Map, Value, json};

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    queue::Queue,
};

/// Where tokens lie, and how their secrets are called.
const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const ID: &str = "token-id";
const SECRET: &str = "token-secret";
const EXPIRATION: &str = "expiration";
const SIGNS: &str = "usage-bootstrap-signing";
/// What is published, where, and what is signed of it.
pub(crate) const PUBLISHED: &str = "cluster-info";
const PUBLIC: &str = "kube-public";
const CONTENT: &str = "kubeconfig";
/// Before the id of the token that a signature is by.
const SIGNATURE: &str = "jws-kubeconfig-";
/// How often is looked at a token that lasts for long: clocks may be set.
const LOOK_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

fn text<'s>(secret: &'s Secret, key: &str) -> &'s str {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.and_then(|it| std::str::from_utf8(&it.0).ok()).unwrap_or_default()
}

/// Keeps of a token all but its secret.
pub(crate) fn trim(secret: &mut Secret) {
    if let Some(data) = &mut secret.data {
        data.retain(|key, _| [ID, EXPIRATION, SIGNS].contains(&key.as_str()));
    }
}

/// When a token ends; `None` if it never does. What cannot be read has ended.
fn end(secret: &Secret) -> Option<Timestamp> {
    match text(secret, EXPIRATION) {
        "" => None,
        written => Some(written.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
    }
}

/// Whether a token vouches at `now`.
fn signs(secret: &Tenanted<Secret>, now: Timestamp) -> bool {
    let id = text(secret, ID);
    !secret.is_deleting()
        && secret.namespace() == NAMESPACE
        && secret.name().strip_prefix(PREFIX) == Some(id)
        && text(secret, SIGNS) == "true"
        && end(secret).is_none_or(|end| now < end)
}

/// Removes tokens that have ended. Keys are secrets.
#[derive(Debug)]
pub(crate) struct TokenCleaner {
    client: Client,
    informers: Informers,
}

impl TokenCleaner {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }
}

impl Controller for TokenCleaner {
    const NAME: &'static str = "token-cleaner-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.bootstrap_tokens.on_change(move |change| {
            if change.new.is_some() && &*change.key.namespace == NAMESPACE {
                keys.add(change.key.clone());
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.bootstrap_tokens.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let secret = self.informers.bootstrap_tokens.get(key);
        let Some(secret) = secret.filter(|it| !it.is_deleting()) else {
            return Ok(Next::WhenChanged);
        };
        let Some(end) = end(&secret) else { return Ok(Next::WhenChanged) };
        let left = end.duration_since(Timestamp::now());
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            return Ok(Next::After(left.min(LOOK_EVERY)));
        }
        let api = self.client.tenant(&key.tenant).namespaced::<Secret>(&key.namespace);
        match api.delete(&key.name, &DeleteOptions::default().only_uid(secret.uid())).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(Next::WhenChanged),
        }
    }
}

/// Has tokens sign what is published. Keys are what is published.
#[derive(Debug)]
pub(crate) struct BootstrapSigner {
    client: Client,
    informers: Informers,
}

/// A signature (RFC 7515) of `content`, which is left out of it (appendix F), by a token.
fn signature(content: &str, id: &str, secret: &[u8]) -> String {
    let header = json!({"alg": "HS256", "kid": id}).to_string();
    let header = URL_SAFE_NO_PAD.encode(header);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

/// What has to change so that `wanted` are the signatures among `data`.
fn changes(
    data: &BTreeMap<String, String>,
    wanted: BTreeMap<String, String>,
) -> Map<String, Value> {
    let mut changes = Map::new();
    for key in data.keys().filter(|it| it.starts_with(SIGNATURE) && !wanted.contains_key(*it)) {
        changes.insert(key.clone(), Value::Null);
    }
    for (key, value) in wanted {
        if data.get(&key) != Some(&value) {
            changes.insert(key, value.into());
        }
    }
    changes
}

impl BootstrapSigner {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }

    /// The signatures of `content` by all tokens of a tenant that vouch.
    async fn signatures(
        &self,
        tenant: &TenantName,
        content: &str,
    ) -> Result<BTreeMap<String, String>, ReconcileError> {
        let mut signatures = BTreeMap::new();
        let api = self.client.tenant(tenant).namespaced::<Secret>(NAMESPACE);
        for known in self.informers.bootstrap_tokens.in_namespace(tenant, NAMESPACE) {
            if !signs(&known, Timestamp::now()) {
                continue;
            }
            let Some(secret) = api.get_opt(known.name()).await? else { continue };
            let (id, key) = (text(&secret, ID), text(&secret, SECRET));
            if !key.is_empty() {
                signatures
                    .insert(format!("{SIGNATURE}{id}"), signature(content, id, key.as_bytes()));
            }
        }
        Ok(signatures)
    }
}

impl Controller for BootstrapSigner {
    const NAME: &'static str = "bootstrap-signer-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.cluster_infos.on_change(move |change| {
            if &*change.key.namespace == PUBLIC {
                keys.add(change.key.clone());
            }
        });
        let keys = queue.clone();
        self.informers.bootstrap_tokens.on_change(move |change| {
            keys.add(ObjectKey::new(&change.key.tenant, PUBLIC, PUBLISHED));
        });
    }

    async fn synced(&self) -> bool {
        self.informers.cluster_infos.synced().await
            && self.informers.bootstrap_tokens.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(map) = self.informers.cluster_infos.get(key) else { return Ok(Next::WhenChanged) };
        let none = BTreeMap::new();
        let data = map.data.as_ref().unwrap_or(&none);
        let Some(content) = data.get(CONTENT) else { return Ok(Next::WhenChanged) };
        let changes = changes(data, self.signatures(&key.tenant, content).await?);
        if !changes.is_empty() {
            let patch = json!({
                "metadata": {"uid": map.uid(), "resourceVersion": map.resource_version()},
                "data": changes,
            });
            let api = self.client.tenant(&key.tenant).namespaced::<ConfigMap>(&key.namespace);
            api.patch(&key.name, &Patch::Merge(patch)).await?;
        }
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn token(name: &str, data: &[(&str, &str)]) -> Tenanted<Secret> {
        let mut object = Secret::default();
        object.metadata.name = Some(name.to_owned());
        object.metadata.namespace = Some(NAMESPACE.to_owned());
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), bytes(value)));
        object.data = Some(data.collect());
        Tenanted { tenant: TenantName::parse("acme").unwrap(), object }
    }

    #[test]
    fn tokens_vouch_for_as_long_as_they_last() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let check = |name: &str, data: &[(&str, &str)], expected: bool| {
            assert_eq!(signs(&token(name, data), now), expected, "{name} {data:?}");
        };
        let (id, yes) = ((ID, "abcdef"), (SIGNS, "true"));
        check("bootstrap-token-abcdef", &[id, yes], true);
        check("bootstrap-token-abcdef", &[id], false);
        check("bootstrap-token-other", &[id, yes], false);
        let until = |text| [id, yes, (EXPIRATION, text)];
        check("bootstrap-token-abcdef", &until("2026-01-01T00:00:01Z"), true);
        check("bootstrap-token-abcdef", &until("2026-01-01T00:00:00Z"), false);
        check("bootstrap-token-abcdef", &until("tomorrow"), false);
    }

    #[test]
    fn nothing_of_the_secret_is_kept() {
        let mut it = token("t", &[(ID, "a"), (SECRET, "hidden"), (EXPIRATION, "x"), ("more", "y")]);
        trim(&mut it.object);
        assert_eq!(it.object.data.unwrap().into_keys().collect::<Vec<_>>(), [EXPIRATION, ID]);
    }

    #[test]
    fn signatures_can_be_checked_by_others() {
        let made = signature("content", "abcdef", b"0123456789abcdef");
        let (header, tag) = made.split_once("..").unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(header).unwrap(), br#"{"alg":"HS256","kid":"abcdef"}"#);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode("content"));
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
        let tag = URL_SAFE_NO_PAD.decode(tag).unwrap();
        hmac::verify(&key, signed.as_bytes(), &tag).unwrap();
    }

    #[test]
    fn signatures_come_and_go() {
        let map = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let data =
            map(&[("kubeconfig", "c"), ("jws-kubeconfig-a", "1"), ("jws-kubeconfig-b", "2")]);
        let wanted = map(&[("jws-kubeconfig-b", "2"), ("jws-kubeconfig-c", "3")]);
        let expected = json!({"jws-kubeconfig-a": null, "jws-kubeconfig-c": "3"});
        assert_eq!(Value::Object(changes(&data, wanted)), expected);
    }
}
