//! The objects of an informer, by key and by index.
//!
//! Those that changed last are whole; older ones lie packed, as JSON, in a fifth of the room, since
//! a typed object takes room for all that it might have.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use insula_api::names::TenantName;

use crate::{Object, ObjectKey, Tenanted};

/// Names an index of one informer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexId(pub(super) usize);

pub(super) type IndexFn<K> = Box<dyn Fn(&Tenanted<K>) -> Vec<String> + Send + Sync>;

pub(super) struct Store<K> {
    objects: BTreeMap<ObjectKey, Kept<K>>,
    indexes: Vec<Index<K>>,
    /// How many objects are whole; all without a bound.
    most_whole: Option<usize>,
    /// What changed last, the oldest first, and in which turn.
    whole: VecDeque<(ObjectKey, u64)>,
    turn: u64,
}

struct Kept<K> {
    held: Held<K>,
    /// The list in which the object was seen last, or during which it changed.
    seen: u64,
    /// When it last changed.
    turn: u64,
}

enum Held<K> {
    Whole(Arc<Tenanted<K>>),
    Packed(Box<[u8]>),
}

impl<K: Object> Held<K> {
    /// The object; `None` if it cannot be read, which does not occur: it was written by the same.
    fn read(&self, key: &ObjectKey) -> Option<Arc<Tenanted<K>>> {
        match self {
            Self::Whole(object) => Some(object.clone()),
            Self::Packed(text) => match serde_json::from_slice(text) {
                Ok(object) => Some(Arc::new(Tenanted { tenant: key.tenant.clone(), object })),
                Err(error) => {
                    tracing::error!(?key, %error, "a copy cannot be read");
                    None
                }
            },
        }
    }

    fn pack(&mut self) {
        if let Self::Whole(object) = self
            && let Ok(text) = serde_json::to_vec(&object.object)
        {
            *self = Self::Packed(text.into());
        }
    }
}

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<ObjectKey>>,
}

impl<K: Object> Store<K> {
    pub(super) fn new(indexes: Vec<IndexFn<K>>, most_whole: Option<usize>) -> Self {
        let indexes =
            indexes.into_iter().map(|values| Index { values, keys: HashMap::new() }).collect();
        let whole = VecDeque::new();
        Self { objects: BTreeMap::new(), indexes, most_whole, whole, turn: 0 }
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Arc<Tenanted<K>>> {
        self.objects.get(key).and_then(|kept| kept.held.read(key))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.keys()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Arc<Tenanted<K>>> {
        self.objects.iter().filter_map(|(key, kept)| kept.held.read(key))
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn in_namespace(
        &self,
        tenant: &TenantName,
        namespace: &str,
    ) -> Vec<Arc<Tenanted<K>>> {
        self.objects
            .range(ObjectKey::new(tenant, namespace, "")..)
            .take_while(|(key, _)| key.tenant == *tenant && &*key.namespace == namespace)
            .filter_map(|(key, kept)| kept.held.read(key))
            .collect()
    }

    pub(super) fn in_tenant(&self, tenant: &TenantName) -> Vec<Arc<Tenanted<K>>> {
        self.objects
            .range(ObjectKey::new(tenant, "", "")..)
            .take_while(|(key, _)| key.tenant == *tenant)
            .filter_map(|(key, kept)| kept.held.read(key))
            .collect()
    }

    pub(super) fn indexed(&self, index: IndexId, value: &str) -> Vec<Arc<Tenanted<K>>> {
        let keys = self.indexes.get(index.0).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| self.get(key)).collect()
    }

    /// Puts an object in place; returns the one it replaces.
    pub(super) fn put(
        &mut self,
        key: &ObjectKey,
        object: Arc<Tenanted<K>>,
        seen: u64,
    ) -> Option<Arc<Tenanted<K>>> {
        self.turn += 1;
        let kept = Kept { held: Held::Whole(object.clone()), seen, turn: self.turn };
        let old = self.objects.insert(key.clone(), kept).and_then(|it| it.held.read(key));
        let Some(most_whole) = self.most_whole else { return self.filed(key, &object, old) };
        self.whole.push_back((key.clone(), self.turn));
        if most_whole < self.whole.len()
            && let Some((key, turn)) = self.whole.pop_front()
            && let Some(kept) = self.objects.get_mut(&key).filter(|it| it.turn == turn)
        {
            kept.held.pack();
        }
        self.filed(key, &object, old)
    }

    /// Files an object in the indexes, in place of `old`, which is returned.
    fn filed(
        &mut self,
        key: &ObjectKey,
        object: &Tenanted<K>,
        old: Option<Arc<Tenanted<K>>>,
    ) -> Option<Arc<Tenanted<K>>> {
        for index in &mut self.indexes {
            let new_values = (index.values)(object);
            if let Some(old) = &old {
                let old_values = (index.values)(old);
                if old_values == new_values {
                    continue;
                }
                index.remove(key, &old_values);
            }
            for value in new_values {
                index.keys.entry(value).or_default().insert(key.clone());
            }
        }
        old
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Tenanted<K>>> {
        let object = self.objects.remove(key)?.held.read(key)?;
        for index in &mut self.indexes {
            let values = (index.values)(&object);
            index.remove(key, &values);
        }
        Some(object)
    }

    /// Notes that a list showed an object unchanged.
    pub(super) fn touch(&mut self, key: &ObjectKey, seen: u64) {
        if let Some(kept) = self.objects.get_mut(key) {
            kept.seen = seen;
        }
    }

    /// The keys of objects that the list `seen` did not show.
    pub(super) fn unseen(&self, seen: u64) -> Vec<ObjectKey> {
        let unseen = self.objects.iter().filter(|(_, kept)| kept.seen != seen);
        unseen.map(|(key, _)| key.clone()).collect()
    }
}

impl<K> Index<K> {
    fn remove(&mut self, key: &ObjectKey, values: &[String]) {
        for value in values {
            if let Some(keys) = self.keys.get_mut(value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    fn object(tenant: &str, namespace: &str, name: &str, colour: &str) -> Arc<Tenanted<ConfigMap>> {
        let object = ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                labels: Some(BTreeMap::from([("colour".to_owned(), colour.to_owned())])),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        Arc::new(Tenanted { tenant: TenantName::parse(tenant).unwrap(), object })
    }

    fn store() -> Store<ConfigMap> {
        let by_colour: IndexFn<ConfigMap> = Box::new(|object| {
            object.metadata.labels.iter().flatten().map(|(_, value)| value.clone()).collect()
        });
        // Most of what these tests look at is packed.
        Store::new(vec![by_colour], Some(1))
    }

    fn names(objects: &[Arc<Tenanted<ConfigMap>>]) -> Vec<&str> {
        objects.iter().map(|object| object.name()).collect()
    }

    #[test]
    fn ranges_stop_at_their_namespace_and_tenant() {
        let mut store = store();
        for (tenant, namespace, name) in
            [("a", "n", "1"), ("a", "n", "2"), ("a", "n-x", "3"), ("a", "", "4"), ("a-b", "n", "5")]
        {
            let object = object(tenant, namespace, name, "red");
            store.put(&object.key(), object, 1);
        }
        let tenant = TenantName::parse("a").unwrap();
        assert_eq!(names(&store.in_namespace(&tenant, "n")), ["1", "2"]);
        assert_eq!(names(&store.in_namespace(&tenant, "")), ["4"]);
        assert_eq!(names(&store.in_tenant(&tenant)), ["4", "1", "2", "3"]);
    }

    #[test]
    fn indexes_follow_changes() {
        let mut store = store();
        let red = object("a", "n", "1", "red");
        let key = red.key();
        store.put(&key, red, 1);
        assert_eq!(names(&store.indexed(IndexId(0), "red")), ["1"]);
        store.put(&key, object("a", "n", "1", "blue"), 1);
        assert!(store.indexed(IndexId(0), "red").is_empty());
        assert_eq!(names(&store.indexed(IndexId(0), "blue")), ["1"]);
        store.remove(&key);
        assert!(store.indexed(IndexId(0), "blue").is_empty());
        assert!(store.indexes[0].keys.is_empty(), "empty entries are dropped");
        assert!(store.indexed(IndexId(9), "blue").is_empty());
    }

    #[test]
    fn what_changed_last_is_whole() {
        let mut store = Store::new(Vec::new(), Some(2));
        let of = |name, colour| object("a", "n", name, colour);
        let all = ["1", "2", "3"].map(|name| of(name, "red"));
        for object in &all {
            assert!(store.put(&object.key(), object.clone(), 1).is_none());
        }
        let is_whole = |store: &Store<ConfigMap>| {
            all.each_ref().map(|it| matches!(store.objects[&it.key()].held, Held::Whole(_)))
        };
        assert_eq!(is_whole(&store), [false, true, true]);
        assert_eq!(store.get(&all[0].key()).as_ref(), Some(&all[0]), "as it was");
        assert_eq!(store.put(&all[0].key(), of("1", "blue"), 1).as_ref(), Some(&all[0]));
        assert_eq!(is_whole(&store), [true, false, true]);
        // What changes again and again is packed once others are newer, not sooner.
        store.put(&all[2].key(), of("3", "blue"), 1);
        store.put(&all[2].key(), of("3", "green"), 1);
        assert_eq!(is_whole(&store), [false, false, true]);
        assert_eq!(store.remove(&all[0].key()), Some(of("1", "blue")));
        assert_eq!(names(&store.iter().collect::<Vec<_>>()), ["2", "3"]);
    }

    #[test]
    fn what_a_list_does_not_show_is_unseen() {
        let mut store = store();
        let (one, two) = (object("a", "n", "1", "x"), object("a", "n", "2", "x"));
        store.put(&one.key(), one.clone(), 1);
        store.put(&two.key(), two.clone(), 1);
        store.touch(&one.key(), 2);
        assert_eq!(store.unseen(2), [two.key()]);
    }
}
