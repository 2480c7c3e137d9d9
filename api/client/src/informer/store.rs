//! The objects of an informer, by key and by index.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
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
}

struct Kept<K> {
    object: Arc<Tenanted<K>>,
    /// The list in which the object was seen last, or during which it changed.
    seen: u64,
}

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<ObjectKey>>,
}

impl<K: Object> Store<K> {
    pub(super) fn new(indexes: Vec<IndexFn<K>>) -> Self {
        let indexes =
            indexes.into_iter().map(|values| Index { values, keys: HashMap::new() }).collect();
        Self { objects: BTreeMap::new(), indexes }
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<&Arc<Tenanted<K>>> {
        self.objects.get(key).map(|kept| &kept.object)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Tenanted<K>>> {
        self.objects.values().map(|kept| &kept.object)
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
            .map(|(_, kept)| kept.object.clone())
            .collect()
    }

    pub(super) fn in_tenant(&self, tenant: &TenantName) -> Vec<Arc<Tenanted<K>>> {
        self.objects
            .range(ObjectKey::new(tenant, "", "")..)
            .take_while(|(key, _)| key.tenant == *tenant)
            .map(|(_, kept)| kept.object.clone())
            .collect()
    }

    pub(super) fn indexed(&self, index: IndexId, value: &str) -> Vec<Arc<Tenanted<K>>> {
        let keys = self.indexes.get(index.0).and_then(|index| index.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| self.get(key)).cloned().collect()
    }

    /// Puts an object in place; returns the one it replaces.
    pub(super) fn put(
        &mut self,
        key: &ObjectKey,
        object: Arc<Tenanted<K>>,
        seen: u64,
    ) -> Option<Arc<Tenanted<K>>> {
        let old = match self.objects.entry(key.clone()) {
            Entry::Vacant(place) => {
                place.insert(Kept { object: object.clone(), seen });
                None
            }
            Entry::Occupied(mut place) => {
                let kept = place.get_mut();
                kept.seen = seen;
                Some(std::mem::replace(&mut kept.object, object.clone()))
            }
        };
        for index in &mut self.indexes {
            let new_values = (index.values)(&object);
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
        let kept = self.objects.remove(key)?;
        for index in &mut self.indexes {
            let values = (index.values)(&kept.object);
            index.remove(key, &values);
        }
        Some(kept.object)
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
        Store::new(vec![Box::new(|object| {
            object.metadata.labels.iter().flatten().map(|(_, value)| value.clone()).collect()
        })])
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
    fn what_a_list_does_not_show_is_unseen() {
        let mut store = store();
        let (one, two) = (object("a", "n", "1", "x"), object("a", "n", "2", "x"));
        store.put(&one.key(), one.clone(), 1);
        store.put(&two.key(), two.clone(), 1);
        store.touch(&one.key(), 2);
        assert_eq!(store.unseen(2), [two.key()]);
    }
}
