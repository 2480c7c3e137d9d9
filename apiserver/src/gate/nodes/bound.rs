//! Which pods run on which node, and what they refer to: per partition, kept up to date by what
//! changes.
//!
//! Nothing is kept before an agent asks, and whoever asks has the index read on to what its
//! server knows. A denial is given only after that was the latest there is: an agent may have
//! heard of a pod from another server.
//!
//! # Invariants
//!
//! * An index holds exactly what a walk over the partition's pods at its revision would find.
//! * What cannot be followed is read anew; it never goes on with a gap.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound as End,
    sync::{Arc, Weak},
};

use insula_partition::{
    partitions::Place,
    snapshot::Entry,
    store::{Collection, ReadAt, Revision, Store, StoreError},
    watch::{Event, Watcher},
};
use memchr::memmem;
use parking_lot::Mutex;

use super::references::{Kind, Pod, Reference};
use crate::error::Result;

/// Pods looked at before others get their turn.
const TOGETHER: usize = 256;

/// See the module. Each partition's index has a lock of its own.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    partitions: Mutex<HashMap<Arc<str>, Slot>>,
}

/// A partition's index, if it was asked for yet.
type Slot = Arc<tokio::sync::Mutex<Option<Following>>>;
/// What each pod of a node refers to, by the pod's key.
type Pods = BTreeMap<Arc<str>, Arc<[Reference]>>;

/// An index, and how it goes on.
struct Following {
    /// What it was made of: a partition may be opened anew, here or elsewhere.
    store: Weak<dyn Store>,
    watcher: Watcher,
    index: Index,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").field("watcher", &self.watcher).finish_non_exhaustive()
    }
}

/// See the module.
#[derive(Debug, Default)]
struct Index {
    /// The node of each pod that has one, by the pod's key.
    pods: HashMap<Arc<str>, Arc<str>>,
    nodes: HashMap<Arc<str>, Pods>,
    /// Pods of one owner refer to nearly the same: lists are kept once.
    lists: HashSet<Arc<[Reference]>>,
}

/// From `key` on.
fn from(key: &str) -> (End<&str>, End<&str>) {
    (End::Included(key), End::Unbounded)
}

fn pods() -> Collection {
    Collection::new("", "pods")
}

impl Bound {
    /// Whether a pod on `node` whose key begins with `prefix` refers to an object.
    pub(super) async fn refers(
        &self,
        place: &Place,
        node: &str,
        prefix: &str,
        kind: Kind,
        name: &str,
    ) -> Result<bool> {
        let wanted = |index: &Index| {
            index.of(node, prefix).any(|(_, all)| {
                let order = |it: &Reference| (it.0, &*it.1).cmp(&(kind, name));
                all.binary_search_by(order).is_ok()
            })
        };
        self.with(place, |index| wanted(index).then_some(())).await.map(|it| it.is_some())
    }

    /// Namespaces and names of the claims of pods on `node` whose keys begin with `prefix`.
    pub(super) async fn claims(
        &self,
        place: &Place,
        node: &str,
        prefix: &str,
    ) -> Result<Vec<(String, String)>> {
        let found = |index: &Index| -> Vec<(String, String)> {
            let mut found = HashSet::new();
            for (key, all) in index.of(node, prefix) {
                let namespace = key.split('/').nth(1).unwrap_or_default();
                for (_, name) in all.iter().filter(|it| it.0 == Kind::Claim) {
                    found.insert((namespace.to_owned(), (**name).to_owned()));
                }
            }
            found.into_iter().collect()
        };
        Ok(self.with(place, |index| Some(found(index))).await?.unwrap_or_default())
    }

    /// Keys of the pods of `nodes` in a partition, of what its store has told last.
    pub(crate) async fn on(
        &self,
        partition: &str,
        store: &Arc<dyn Store>,
        nodes: &HashSet<String>,
    ) -> Result<Vec<Arc<str>>> {
        let slot = self.slot(partition);
        let mut slot = slot.lock().await;
        let index = &follow(&mut slot, store).await?.index;
        let pods = nodes.iter().filter_map(|node| index.nodes.get(node.as_str()));
        Ok(pods.flat_map(|pods| pods.keys().cloned()).collect())
    }

    /// Keys of the pods of a node that begin with `prefix`, in order, and as of when.
    pub(crate) async fn keys(
        &self,
        partition: &str,
        store: &Arc<dyn Store>,
        node: &str,
        prefix: &str,
    ) -> Result<(Revision, Vec<Arc<str>>)> {
        let slot = self.slot(partition);
        let mut slot = slot.lock().await;
        let following = follow(&mut slot, store).await?;
        let keys = following.index.of(node, prefix).map(|(key, _)| key.clone()).collect();
        Ok((following.watcher.reached(), keys))
    }

    fn slot(&self, partition: &str) -> Slot {
        self.partitions.lock().entry(partition.into()).or_default().clone()
    }

    /// What `find` finds: in what is known here, else in the latest there is.
    async fn with<T>(
        &self,
        place: &Place,
        find: impl Fn(&Index) -> Option<T>,
    ) -> Result<Option<T>> {
        let slot = self.slot(&place.partition);
        let mut slot = slot.lock().await;
        let store = &place.store;
        let following = follow(&mut slot, store).await?;
        if let Some(found) = find(&following.index) {
            return Ok(Some(found));
        }
        // Whatever was acknowledged before is here after this.
        store.read(&pods(), ReadAt::Latest).await?;
        let following = follow(&mut slot, store).await?;
        Ok(find(&following.index))
    }
}

/// Brings an index up to what `store` knows at the moment.
async fn follow<'a>(
    slot: &'a mut Option<Following>,
    store: &Arc<dyn Store>,
) -> Result<&'a mut Following> {
    if let Some(mut following) = slot.take()
        && std::ptr::addr_eq(following.store.as_ptr(), Arc::as_ptr(store))
        && following.catch_up().await.is_ok()
    {
        return Ok(slot.insert(following));
    }
    let snapshot = store.read(&pods(), ReadAt::Any).await?;
    let watcher = store.watch(&pods(), snapshot.revision())?;
    let mut index = Index::default();
    for (count, (key, entry)) in snapshot.range("", None).enumerate() {
        if count % TOGETHER == TOGETHER - 1 {
            tokio::task::yield_now().await;
        }
        index.put(key, entry);
    }
    let following = slot.insert(Following { store: Arc::downgrade(store), watcher, index });
    following.catch_up().await?;
    Ok(following)
}

impl Following {
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        loop {
            let events = self.watcher.ready()?;
            if events.is_empty() {
                return Ok(());
            }
            events.iter().for_each(|it| self.index.change(it));
            tokio::task::yield_now().await;
        }
    }
}

impl Index {
    /// Keys and references of the pods of `node` whose keys begin with `prefix`.
    fn of<'a>(
        &'a self,
        node: &str,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<[Reference]>)> {
        let pods = self.nodes.get(node).into_iter();
        pods.flat_map(move |pods| pods.range::<str, _>(from(prefix)))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    fn change(&mut self, event: &Event) {
        if event.deleted {
            return self.remove(&event.key);
        }
        // What a pod that runs refers to changes in few ways.
        let bytes = event.entry.value.bytes();
        if self.pods.contains_key(&event.key)
            && !["\"ephemeralContainers\":", "\"resourceClaimStatuses\":"]
                .iter()
                .any(|field| memmem::find(&bytes, field.as_bytes()).is_some())
        {
            return;
        }
        self.put(&event.key, &event.entry);
    }

    fn put(&mut self, key: &Arc<str>, entry: &Entry) {
        let bytes = entry.value.bytes();
        // Most changes are of pods that run nowhere yet, or are known.
        if memmem::find(&bytes, b"\"nodeName\":").is_none() {
            return self.remove(key);
        }
        let pod: Pod<'_> = match serde_json::from_slice(&bytes) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(%key, %error, "a pod cannot be read");
                return self.remove(key);
            }
        };
        self.remove(key);
        if pod.node().is_empty() {
            return;
        }
        let node = match self.nodes.get_key_value(pod.node()) {
            Some((node, _)) => node.clone(),
            None => pod.node().into(),
        };
        let list = self.shared(pod.references());
        self.pods.insert(key.clone(), node.clone());
        self.nodes.entry(node).or_default().insert(key.clone(), list);
    }

    fn shared(&mut self, list: Vec<Reference>) -> Arc<[Reference]> {
        if let Some(known) = self.lists.get(list.as_slice()) {
            return known.clone();
        }
        let list: Arc<[Reference]> = list.into();
        self.lists.insert(list.clone());
        list
    }

    fn remove(&mut self, key: &Arc<str>) {
        let Some(node) = self.pods.remove(key) else { return };
        let Some(pods) = self.nodes.get_mut(&node) else { return };
        if let Some(list) = pods.remove(key)
            // This one and the set's own.
            && Arc::strong_count(&list) == 2
        {
            self.lists.remove(&list);
        }
        if pods.is_empty() {
            self.nodes.remove(&node);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};
    use serde_json::{Value, json};

    use super::*;

    const NODES: [&str; 2] = ["n1", "n2"];
    const SECRETS: [&str; 3] = ["a", "b", "c"];
    const KEYS: [&str; 4] = ["acme/ns/p", "acme/ns/q", "acme/other/p", "globex/ns/p"];

    #[derive(Debug, Clone)]
    enum Step {
        Create(&'static str),
        Bind(&'static str),
        Report,
        Debug(&'static str),
        Delete,
    }

    fn step() -> impl Strategy<Value = (&'static str, Step)> {
        let secret = || select(&SECRETS[..]);
        let step = prop_oneof![
            secret().prop_map(Step::Create),
            select(&NODES[..]).prop_map(Step::Bind),
            Just(Step::Report),
            secret().prop_map(Step::Debug),
            Just(Step::Delete),
        ];
        (select(&KEYS[..]), step)
    }

    /// What a step makes of a pod; `None` if it cannot be done.
    fn after(pod: Option<&Value>, step: &Step) -> Option<Option<Value>> {
        let uses = |secret: &str| json!({"envFrom": [{"secretRef": {"name": secret}}]});
        match (pod.cloned(), step) {
            (None, Step::Create(secret)) => Some(Some(
                json!({"metadata": {"name": "p"}, "spec": {"containers": [uses(secret)]}}),
            )),
            (Some(mut pod), Step::Bind(node)) if pod["spec"].get("nodeName").is_none() => {
                pod["spec"]["nodeName"] = (*node).into();
                Some(Some(pod))
            }
            (Some(mut pod), Step::Report) => {
                pod["status"] = json!({"phase": "Running"});
                Some(Some(pod))
            }
            (Some(mut pod), Step::Debug(secret)) => {
                pod["spec"]["ephemeralContainers"] = json!([uses(secret)]);
                Some(Some(pod))
            }
            (Some(_), Step::Delete) => Some(None),
            _ => None,
        }
    }

    fn entry(pod: &Value, revision: u64) -> Entry {
        Entry { value: pod.to_string().into(), modified: Revision(revision) }
    }

    proptest! {
        /// Following changes and walking over what there is come to the same.
        #[test]
        fn an_index_is_what_a_walk_would_find(steps in vec(step(), 0..40)) {
            let mut pods: BTreeMap<&str, Value> = BTreeMap::new();
            let mut followed = Index::default();
            for (revision, (key, step)) in (1..).zip(&steps) {
                let before = pods.get(key).cloned();
                let Some(now) = after(before.as_ref(), step) else { continue };
                followed.change(&Event {
                    revision: Revision(revision),
                    key: Arc::from(*key),
                    entry: entry(now.as_ref().or(before.as_ref()).unwrap(), revision),
                    previous: before.map(|it| entry(&it, revision - 1)),
                    deleted: now.is_none(),
                });
                match now {
                    Some(pod) => drop(pods.insert(key, pod)),
                    None => drop(pods.remove(key)),
                }
                let mut walked = Index::default();
                pods.iter().for_each(|(key, pod)| walked.put(&Arc::from(*key), &entry(pod, 1)));
                prop_assert_eq!(&followed.pods, &walked.pods);
                prop_assert_eq!(&followed.nodes, &walked.nodes);
                prop_assert_eq!(&followed.lists, &walked.lists);
                for node in NODES {
                    let found = followed.of(node, "acme/ns/").map(|(key, _)| &**key);
                    let on = |pod: &Value| pod["spec"]["nodeName"] == node;
                    let there = pods.iter().filter(|(key, pod)| key.starts_with("acme/ns/") && on(pod));
                    prop_assert!(found.eq(there.map(|(key, _)| *key)));
                }
            }
        }
    }
}
