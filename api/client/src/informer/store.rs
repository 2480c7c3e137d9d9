//! The objects of an informer, by key and by index.
//!
//! A bounded number of them are plain, the ones that were looked at lately; the others lie packed.
//! A key lies here once, wherever it is filed, and what neighbours have alike of theirs they share:
//! there are many objects in a namespace.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use insula_api::{names::TenantName, slots::Slots};
use parking_lot::Mutex;

use super::packed::{Packer, Slot};
use crate::{Object, ObjectKey, Tenanted};

/// Names an index of one informer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexId(pub(super) usize);

pub(super) type IndexFn<K> = Box<dyn Fn(&Tenanted<K>) -> Vec<String> + Send + Sync>;

pub(super) struct Store<K> {
    objects: BTreeMap<Arc<ObjectKey>, Kept<K>>,
    indexes: Vec<Index<K>>,
    packer: Packer,
    /// How many objects may be plain.
    n_plain: usize,
    /// Those that are, in the order in which they are asked to pack themselves. Some may be gone.
    plain: Mutex<VecDeque<Arc<ObjectKey>>>,
}

struct Kept<K> {
    slot: Mutex<Slot<K>>,
    /// The list in which the object was seen last, or during which it changed.
    seen: u64,
}

struct Index<K> {
    values: IndexFn<K>,
    filed: BTreeSet<Filed>,
}

/// One object under one value. Without an object: before all of that value.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Filed {
    value: Arc<str>,
    key: Option<Arc<ObjectKey>>,
}

impl<K: Object> Store<K> {
    /// `n_plain` is how many objects may be plain at a time.
    pub(super) fn new(indexes: Vec<IndexFn<K>>, n_plain: usize) -> Self {
        let indexes =
            indexes.into_iter().map(|values| Index { values, filed: BTreeSet::new() }).collect();
        Self {
            objects: BTreeMap::new(),
            indexes,
            packer: Packer::default(),
            n_plain,
            plain: Mutex::default(),
        }
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Arc<Tenanted<K>>> {
        let (key, kept) = self.objects.get_key_value(key)?;
        self.look(key, kept)
    }

    /// As [`Self::get`], by who looks at it once: it stays in the form that it has.
    pub(super) fn peek(&self, key: &ObjectKey) -> Option<Arc<Tenanted<K>>> {
        let kept = self.objects.get(key)?;
        kept.slot.lock().peek(&key.tenant)
    }

    /// As [`Self::peek`], if the object is filed under `value` by now.
    pub(super) fn peek_indexed(
        &self,
        index: IndexId,
        value: &str,
        key: &ObjectKey,
    ) -> Option<Arc<Tenanted<K>>> {
        let object = self.peek(key)?;
        let values = (self.indexes.get(index.0)?.values)(&object);
        values.iter().any(|it| it == value).then_some(object)
    }

    pub(super) fn contains(&self, key: &ObjectKey) -> bool {
        self.objects.contains_key(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.keys().map(|key| &**key)
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn in_namespace(
        &self,
        tenant: &TenantName,
        namespace: &str,
    ) -> Vec<Arc<Tenanted<K>>> {
        let is_there = |key: &ObjectKey| key.tenant == *tenant && &*key.namespace == namespace;
        self.from(&ObjectKey::new(tenant, namespace, ""), is_there)
    }

    pub(super) fn in_tenant(&self, tenant: &TenantName) -> Vec<Arc<Tenanted<K>>> {
        self.from(&ObjectKey::new(tenant, "", ""), |key| key.tenant == *tenant)
    }

    /// Objects from `first` on, as long as their keys are of those that are meant.
    fn from(
        &self,
        first: &ObjectKey,
        is_meant: impl Fn(&ObjectKey) -> bool,
    ) -> Vec<Arc<Tenanted<K>>> {
        let meant = self.objects.range::<ObjectKey, _>(first..).map(|(key, _)| &**key);
        self.look_at(meant.take_while(|key| is_meant(key)).collect())
    }

    /// Objects that somebody asks for together.
    fn look_at(&self, keys: Vec<&ObjectKey>) -> Vec<Arc<Tenanted<K>>> {
        // More than may be plain would push each other out, and everything else.
        let are_many = self.n_plain < keys.len();
        let one = |key| if are_many { self.peek(key) } else { self.get(key) };
        keys.into_iter().filter_map(one).collect()
    }

    pub(super) fn indexed(&self, index: IndexId, value: &str) -> Vec<Arc<Tenanted<K>>> {
        self.look_at(self.keys_indexed(index, value).collect())
    }

    pub(super) fn indexed_where(
        &self,
        index: IndexId,
        prefix: &str,
        is_meant: impl FnMut(&str) -> bool,
    ) -> Vec<Arc<Tenanted<K>>> {
        self.look_at(self.keys_where(index, prefix, is_meant))
    }

    pub(super) fn keys_where(
        &self,
        index: IndexId,
        prefix: &str,
        is_meant: impl FnMut(&str) -> bool,
    ) -> Vec<&ObjectKey> {
        let index = self.indexes.get(index.0);
        let mut keys = index.map_or_else(Vec::new, |index| index.under_any(prefix, is_meant));
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    pub(super) fn keys_indexed(
        &self,
        index: IndexId,
        value: &str,
    ) -> impl Iterator<Item = &ObjectKey> {
        self.indexes.get(index.0).into_iter().flat_map(move |index| index.under(value))
    }

    fn look(&self, key: &Arc<ObjectKey>, kept: &Kept<K>) -> Option<Arc<Tenanted<K>>> {
        let (object, was_plain) = {
            let mut slot = kept.slot.lock();
            let was_plain = slot.is_plain();
            (slot.look(&key.tenant), was_plain)
        };
        if !was_plain {
            self.has_become_plain(key);
        }
        object
    }

    fn has_become_plain(&self, key: &Arc<ObjectKey>) {
        if self.n_plain == usize::MAX {
            return;
        }
        self.plain.lock().push_back(key.clone());
        loop {
            let next = {
                let mut plain = self.plain.lock();
                if plain.len() <= self.n_plain {
                    return;
                }
                plain.pop_front()
            };
            let Some(next) = next else { return };
            let Some(kept) = self.objects.get(&next) else { continue };
            if !kept.slot.lock().put_away(&self.packer) {
                self.plain.lock().push_back(next);
            }
        }
    }

    /// Puts an object in place; returns the key as it lies here, and the object it replaces.
    pub(super) fn put(
        &mut self,
        key: &ObjectKey,
        object: Arc<Tenanted<K>>,
        seen: u64,
    ) -> (ObjectKey, Option<Arc<Tenanted<K>>>) {
        let (key, old) = match self.objects.get_key_value(key) {
            Some((known, kept)) => (known.clone(), Some(kept.slot.lock().peek(&known.tenant))),
            None => (Arc::new(self.shared(key)), None),
        };
        for index in &mut self.indexes {
            let new_values = (index.values)(&object);
            if let Some(Some(old)) = &old {
                let old_values = (index.values)(old);
                if old_values == new_values {
                    continue;
                }
                index.remove(&key, &old_values);
            }
            new_values.iter().for_each(|value| index.put(value, &key));
        }
        let kept = Kept { slot: Mutex::new(Slot::new(object)), seen };
        let replaced = self.objects.insert(key.clone(), kept);
        if !replaced.is_some_and(|it| it.slot.into_inner().is_plain()) {
            self.has_become_plain(&key);
        }
        (ObjectKey::clone(&key), old.flatten())
    }

    /// `key` with what it has in common with the one before it.
    fn shared(&self, key: &ObjectKey) -> ObjectKey {
        let mut shared = key.clone();
        if let Some((before, _)) = self.objects.range::<ObjectKey, _>(..key).next_back()
            && before.tenant == key.tenant
        {
            shared.tenant = before.tenant.clone();
            if before.namespace == key.namespace {
                shared.namespace = before.namespace.clone();
            }
        }
        shared
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Tenanted<K>>> {
        let (key, kept) = self.objects.remove_entry(key)?;
        let object = kept.slot.into_inner().peek(&key.tenant)?;
        for index in &mut self.indexes {
            let values = (index.values)(&object);
            index.remove(&key, &values);
        }
        Some(object)
    }

    /// Notes that a list showed an object unchanged.
    pub(super) fn touch(&mut self, key: &ObjectKey, seen: u64) {
        if let Some(kept) = self.objects.get_mut(key) {
            kept.seen = seen;
        }
    }

    /// The keys of objects in these slots that the list `seen` did not show.
    pub(super) fn unseen(&self, seen: u64, slots: &Slots) -> Vec<ObjectKey> {
        let unseen = self.objects.iter().filter(|(_, kept)| kept.seen != seen);
        let unseen = unseen.map(|(key, _)| &**key);
        unseen.filter(|key| slots.has_tenant(key.tenant.as_str())).cloned().collect()
    }
}

impl<K> Index<K> {
    fn under(&self, value: &str) -> impl Iterator<Item = &ObjectKey> + use<'_, K> {
        let first = Filed { value: value.into(), key: None };
        let value = first.value.clone();
        let filed = self.filed.range(first..).take_while(move |it| it.value == value);
        filed.filter_map(|it| it.key.as_deref())
    }

    /// What is under those values that begin with `prefix` and are meant by what follows it.
    fn under_any(&self, prefix: &str, mut is_meant: impl FnMut(&str) -> bool) -> Vec<&ObjectKey> {
        let mut keys = Vec::new();
        let mut next = self.filed.range(Filed { value: prefix.into(), key: None }..).peekable();
        while let Some(first) = next.next() {
            let Some(rest) = first.value.strip_prefix(prefix) else { break };
            if is_meant(rest) {
                keys.extend(first.key.as_deref());
                while let Some(it) = next.next_if(|it| it.value == first.value) {
                    keys.extend(it.key.as_deref());
                }
            } else if next.peek().is_some_and(|it| it.value == first.value) {
                // There may be many of it; this is the least value that is greater.
                let value = format!("{}\0", first.value).into();
                next = self.filed.range(Filed { value, key: None }..).peekable();
            }
        }
        keys
    }

    fn put(&mut self, value: &str, key: &Arc<ObjectKey>) {
        let first = Filed { value: value.into(), key: None };
        let near = self.filed.range(&first..).next().filter(|it| it.value == first.value);
        let value = near.map_or_else(|| first.value.clone(), |it| it.value.clone());
        self.filed.insert(Filed { value, key: Some(key.clone()) });
    }

    fn remove(&mut self, key: &Arc<ObjectKey>, values: &[String]) {
        for value in values {
            self.filed.remove(&Filed { value: value.as_str().into(), key: Some(key.clone()) });
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
        Store::new(
            vec![Box::new(|object| {
                object.metadata.labels.iter().flatten().map(|(_, value)| value.clone()).collect()
            })],
            2,
        )
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
        assert_eq!(store.keys_indexed(IndexId(0), "blue").collect::<Vec<_>>(), [&key]);
        assert!(store.peek_indexed(IndexId(0), "blue", &key).is_some());
        assert_eq!(store.peek_indexed(IndexId(0), "red", &key), None, "it was filed there before");
        assert!(store.contains(&key));
        store.remove(&key);
        assert!(!store.contains(&key));
        assert!(store.indexed(IndexId(0), "blue").is_empty());
        assert!(store.indexes[0].filed.is_empty(), "nothing is left behind");
        assert!(store.indexed(IndexId(9), "blue").is_empty());
    }

    #[test]
    fn values_are_asked_about_once_each() {
        let mut store = store();
        let colours =
            ["red", "blue-light", "blue", "blue-dark", "blue-light", "bluf", "blue-light"];
        for (n, colour) in colours.into_iter().enumerate() {
            let object = object("a", "n", &n.to_string(), colour);
            store.put(&object.key(), object, 1);
        }
        let (mut asked, blue) = (Vec::new(), IndexId(0));
        let found = store.indexed_where(blue, "blue", |rest| {
            asked.push(rest.to_owned());
            rest != "-dark"
        });
        assert_eq!(asked, ["", "-dark", "-light"]);
        assert_eq!(names(&found), ["1", "2", "4", "6"]);
        let light = store.keys_where(blue, "blue-light", |_| true);
        assert_eq!(light.len(), 3);
        assert!(store.keys_where(blue, "blue", |rest| rest == "-l").is_empty());
        assert_eq!(store.keys_where(blue, "", |rest| rest == "red").len(), 1);
        assert!(store.keys_where(IndexId(9), "", |_| true).is_empty());
    }

    #[test]
    fn no_more_than_allowed_are_plain_and_all_can_be_had() {
        let mut store = store();
        for n in 0..10 {
            let object = object("a", "n", &n.to_string(), "red");
            store.put(&object.key(), object, 1);
        }
        let n_plain = |store: &Store<ConfigMap>| {
            store.objects.values().filter(|it| it.slot.lock().is_plain()).count()
        };
        let tenant = TenantName::parse("a").unwrap();
        assert_eq!(n_plain(&store), 2);
        let three = object("b", "n", "3", "red");
        store.put(&three.key(), three.clone(), 1);
        assert_eq!(store.in_namespace(&tenant, "n").len(), 10);
        let slot = &store.objects[&three.key()].slot;
        assert!(slot.lock().is_plain(), "more than may be plain have pushed it out");
        assert_eq!(store.indexed(IndexId(0), "red").len(), 11);
        assert!(slot.lock().is_plain(), "those of an index have pushed it out");
        assert!(store.remove(&three.key()).is_some());
        for key in store.keys() {
            assert!(store.get(key).is_some());
        }
        assert_eq!(n_plain(&store), 2);
        let five = object("a", "n", "5", "red");
        assert_eq!(store.peek(&five.key()), Some(five.clone()));
        let (_, old) = store.put(&five.key(), object("a", "n", "5", "blue"), 1);
        assert_eq!(old, Some(five.clone()));
        assert_eq!(store.indexed(IndexId(0), "red").len(), 9);
        let blue = store.get(&five.key()).unwrap();
        assert_eq!(blue.metadata.labels.as_ref().unwrap()["colour"], "blue");
        assert_eq!(n_plain(&store), 2);
        for n in 0..10 {
            assert!(store.remove(&object("a", "n", &n.to_string(), "red").key()).is_some());
        }
        assert_eq!((store.len(), store.indexes[0].filed.len()), (0, 0));
    }

    #[test]
    fn what_a_list_does_not_show_is_unseen() {
        let mut store = store();
        let (one, two) = (object("a", "n", "1", "x"), object("a", "n", "2", "x"));
        store.put(&one.key(), one.clone(), 1);
        store.put(&two.key(), two.clone(), 1);
        store.touch(&one.key(), 2);
        assert_eq!(store.unseen(2, &Slots::all()), [two.key()]);
        assert!(store.unseen(2, &Slots::none().with_tenant("b")).is_empty());
    }
}
