//! Sealing on a real partition, and every way in which opening has to fail.

use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    bunch::{DataKeys, document_key, documents},
    key::DataKey,
    *,
};
use crate::{
    partitions::{Partitions, PartitionsConfig, StoreConfig},
    snapshot::Entry,
    store::{Change, Collection, Expect, ReadAt, Revision, Store, StoreError, Write},
};

fn secrets() -> Collection {
    Collection::new("", "secrets")
}

fn key(byte: u8) -> ClusterKey {
    ClusterKey::new(&format!("key{byte}"), &[byte; 32]).unwrap()
}

fn settings(keys: &[u8]) -> Settings {
    Settings::new(keys.iter().map(|it| key(*it)).collect(), vec![secrets()])
}

fn text(word: &str) -> Bytes {
    format!(
        r#"{{"apiVersion":"v1","kind":"Secret","metadata":{{"resourceVersion":"","annotations":{{"last":"{word}"}},"labels":{{"app":"web"}},"name":"a","namespace":"ns"}},"data":{{"password":"{word}"}}}}"#
    )
    .into()
}

/// One embedded partition in a directory, and its vault.
struct Lab {
    partitions: Partitions,
    vault: std::sync::Arc<Vault>,
}

impl Lab {
    async fn open(dir: &Path, settings: Settings) -> Self {
        let store = StoreConfig::Embedded { partitions: 1 };
        let mut config = PartitionsConfig::alone(dir.to_owned(), store);
        config.vault = Vault::new(settings);
        let vault = config.vault.clone();
        Self { partitions: Partitions::open(config).await.unwrap(), vault }
    }

    fn store(&self) -> std::sync::Arc<dyn Store> {
        self.partitions.store("p1").unwrap()
    }

    async fn put(&self, key: &str, value: Bytes) -> Revision {
        self.try_put(key, value).await.unwrap()
    }

    async fn try_put(&self, key: &str, value: Bytes) -> Result<Revision, StoreError> {
        let write = Write::durable(secrets(), key, Expect::Anything, Change::Put(value.clone()));
        let committed = self.store().write(write).await?;
        let expected = crate::value::with_revision(&value, committed.revision);
        assert_eq!(committed.entry.value, expected);
        Ok(committed.revision)
    }

    async fn entry(&self, collection: &Collection, key: &str) -> Entry {
        let snapshot = self.store().read(collection, ReadAt::Latest).await.unwrap();
        snapshot.get(key).cloned().unwrap()
    }

    async fn opened(&self, key: &str) -> Result<Bytes, SealError> {
        match self.entry(&secrets(), key).await.value.opened() {
            Ok(text) => Ok(text.into_bytes()),
            Err(StoreError::Sealed { source, .. }) => Err(source),
            Err(other) => panic!("{other}"),
        }
    }

    async fn data_keys(&self, tenant: &str) -> DataKeys {
        let entry = self.entry(&documents(), &document_key(tenant)).await;
        DataKeys::parse(tenant, &entry.value.stored()).unwrap()
    }

    async fn standing(&self) -> Standing {
        standing(&*self.store(), &self.vault).await.unwrap()
    }

    async fn end(self) {
        self.partitions.shutdown().await.unwrap();
    }
}

/// All that is in any file below `dir`.
fn files(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => all.extend(std::fs::read(path).unwrap()),
        }
    }
    all
}

fn holds(all: &[u8], word: &str) -> bool {
    all.windows(word.len()).any(|window| window == word.as_bytes())
}

#[tokio::test]
async fn what_lies_on_disk_is_sealed_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::open(dir.path(), settings(&[1])).await;
    let revision = lab.put("acme/ns/a", text("hunter22")).await;
    let expected = crate::value::with_revision(&text("hunter22"), revision);
    assert_eq!(lab.opened("acme/ns/a").await.unwrap(), expected);
    let plain = Collection::new("", "configmaps");
    let write =
        Write::durable(plain.clone(), "acme/ns/a", Expect::Absent, Change::Put(text("seen")));
    lab.store().write(write).await.unwrap();
    lab.partitions.checkpoint().await.unwrap();
    lab.end().await;
    let all = files(dir.path());
    assert!(!holds(&all, "hunter22") && holds(&all, r#"{"sealed":""#));

    let lab = Lab::open(dir.path(), settings(&[1])).await;
    assert_eq!(lab.opened("acme/ns/a").await.unwrap(), expected);
    // A watch that begins before sees it, too, and so does one that is told of its end.
    let mut watcher = lab.store().watch(&secrets(), lab.store().progress()).unwrap();
    lab.put("acme/ns/a", text("hunter33")).await;
    let delete = Write::durable(secrets(), "acme/ns/a", Expect::Present, Change::Delete);
    let gone = lab.store().write(delete).await.unwrap();
    assert!(holds(&gone.entry.value.bytes(), "hunter33"));
    let mut told = watcher.next().await.unwrap();
    if told.len() < 2 {
        told.extend(watcher.next().await.unwrap());
    }
    assert!(holds(&told[0].previous.as_ref().unwrap().value.bytes(), "hunter22"));
    assert!(told[1].deleted && holds(&told[1].entry.value.bytes(), "hunter33"));
    lab.end().await;
}

#[tokio::test]
async fn a_missing_or_wrong_key_says_so_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::open(dir.path(), settings(&[1])).await;
    lab.put("acme/ns/a", text("hunter22")).await;
    lab.end().await;
    let lab = Lab::open(dir.path(), settings(&[2])).await;
    let error = lab.opened("acme/ns/a").await.unwrap_err();
    let wanted = key(1).id().to_owned();
    assert!(matches!(&error, SealError::NoClusterKey { wanted: it, .. } if *it == wanted));
    let told = error.to_string();
    assert!(told.contains(&wanted) && told.contains("key2") && told.contains("put that key back"));
    // What is left can be told and deleted, but not taken for the whole.
    let entry = lab.entry(&secrets(), "acme/ns/a").await;
    assert_eq!(entry.value.bytes().len(), 0);
    let glance: serde_json::Value = serde_json::from_slice(&entry.value.glance()).unwrap();
    assert_eq!(glance["metadata"]["labels"]["app"], "web");
    assert_eq!(glance["metadata"]["resourceVersion"], entry.modified.to_string());
    assert!(glance["metadata"].get("annotations").is_none() && glance.get("sealed").is_none());
    // Neither is anything sealed beside what cannot be opened, nor changed by a pass.
    let refused = lab.try_put("acme/ns/b", text("other")).await.unwrap_err();
    assert!(matches!(refused, StoreError::Sealed { source: SealError::NoClusterKey { .. }, .. }));
    pass(&*lab.store(), &lab.vault, true).await.unwrap();
    assert_eq!(lab.standing().await.lost, 1);
    // Another tenant is not concerned, and the key may come back at any time.
    lab.put("globex/ns/a", text("theirs")).await;
    lab.vault.set(settings(&[2, 1]));
    assert!(holds(&lab.opened("acme/ns/a").await.unwrap(), "hunter22"));
    lab.end().await;
}

#[tokio::test]
async fn keys_take_turns_without_a_value_changing() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::open(dir.path(), settings(&[1])).await;
    let before = lab.put("acme/ns/a", text("hunter22")).await;
    lab.put("globex/ns/a", text("theirs")).await;
    lab.vault.set(settings(&[2, 1]));
    pass(&*lab.store(), &lab.vault, false).await.unwrap();
    let standing = lab.standing().await;
    assert_eq!(standing.data_keys, [(key(2).id().to_owned(), 2)].into());
    assert_eq!((standing.sealed, standing.older, standing.lost), (2, 0, 0));
    // No client was told of anything.
    assert_eq!(lab.entry(&secrets(), "acme/ns/a").await.modified, before);
    lab.vault.set(settings(&[2]));
    assert!(holds(&lab.opened("acme/ns/a").await.unwrap(), "hunter22"));
    lab.end().await;
    let lab = Lab::open(dir.path(), settings(&[2])).await;
    assert!(holds(&lab.opened("acme/ns/a").await.unwrap(), "hunter22"));
    lab.end().await;
}

#[tokio::test]
async fn data_keys_are_replaced_by_command_and_when_worn() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::open(dir.path(), settings(&[1])).await;
    lab.put("acme/ns/a", text("hunter22")).await;
    let first = lab.data_keys("acme").await.0[0].id;
    pass(&*lab.store(), &lab.vault, true).await.unwrap();
    let keys = lab.data_keys("acme").await;
    assert_eq!(keys.0.len(), 2, "the old one is kept for readers of history");
    assert_eq!(keys.0[1].id, first);
    let entry = lab.entry(&secrets(), "acme/ns/a").await;
    assert_eq!(parts(&entry.value.stored()).unwrap().id, keys.0[0].id);
    assert!(holds(&lab.opened("acme/ns/a").await.unwrap(), "hunter22"));
    lab.end().await;

    // Made long ago, so that the old one goes.
    let made = DataKey::make("acme", 1000, &settings(&[1])).unwrap();
    let old = DataKey::make("acme", 500, &settings(&[1])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::open(dir.path(), settings(&[1])).await;
    let document = DataKeys(vec![made.into(), old.into()]).text().unwrap();
    let write =
        Write::durable(documents(), document_key("acme"), Expect::Absent, Change::Put(document));
    lab.store().write(write).await.unwrap();
    pass(&*lab.store(), &lab.vault, false).await.unwrap();
    assert_eq!(lab.data_keys("acme").await.0.len(), 1);
    lab.end().await;

    let made = DataKey::make("acme", 1000, &settings(&[1])).unwrap();
    assert!(!made.is_worn());
    made.wear_out();
    assert!(made.is_worn());
}

#[tokio::test]
async fn what_was_never_sealed_is_read_and_sealed_by_a_pass() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::open(dir.path(), Settings::new(vec![key(1)], vec![])).await;
    let before = lab.put("acme/ns/a", text("hunter22")).await;
    lab.vault.set(settings(&[1]));
    assert!(holds(&lab.opened("acme/ns/a").await.unwrap(), "hunter22"));
    assert_eq!(lab.standing().await.unsealed, 1);
    pass(&*lab.store(), &lab.vault, false).await.unwrap();
    let entry = lab.entry(&secrets(), "acme/ns/a").await;
    assert!(before < entry.modified && !holds(&entry.value.stored(), "hunter22"));
    assert_eq!(lab.standing().await, {
        let data_keys = [(key(1).id().to_owned(), 1)].into();
        Standing { data_keys, sealed: 1, ..Standing::default() }
    });
    lab.end().await;
}

#[tokio::test]
async fn a_value_is_good_in_its_place_only() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::open(dir.path(), settings(&[1])).await;
    for place in ["acme/ns/a", "acme/ns/b", "acme/other/a", "globex/ns/a"] {
        lab.put(place, text("hunter22")).await;
    }
    let stored = lab.entry(&secrets(), "acme/ns/a").await.value.stored().into_owned();
    // Sealed values are taken as they are, so somebody who writes to the store can move them.
    let put = async |place: &str, value: Bytes| {
        let write = Write::durable(secrets(), place, Expect::Anything, Change::Put(value));
        lab.store().write(write).await.unwrap();
    };
    for place in ["acme/ns/b", "acme/other/a"] {
        put(place, stored.clone()).await;
        assert_eq!(lab.opened(place).await.unwrap_err(), SealError::Tampered, "{place}");
    }
    put("globex/ns/a", stored.clone()).await;
    assert!(matches!(lab.opened("globex/ns/a").await.unwrap_err(), SealError::NoDataKey(_)));
    // Nor does the key of one tenant open in the place of another's.
    let keys = lab.entry(&documents(), &document_key("acme")).await.value.stored().into_owned();
    let place = document_key("globex");
    let write = Write::durable(documents(), place, Expect::Anything, Change::Put(keys));
    lab.store().write(write).await.unwrap();
    assert!(matches!(lab.opened("globex/ns/a").await.unwrap_err(), SealError::WrongWrap(_)));
    // Every bit of what is sealed counts; the first one of the husk, that it is one.
    let body = stored.len() - parts(&stored).unwrap().body().len();
    for at in (body..stored.len()).step_by(7).chain([stored.len() - 1]) {
        let mut other = stored.to_vec();
        other[at] ^= 1;
        put("acme/ns/a", other.into()).await;
        assert_eq!(lab.opened("acme/ns/a").await.unwrap_err(), SealError::Tampered, "byte {at}");
    }
    for length in [30, 60, body - 1, body, body + 11, stored.len() - 1] {
        put("acme/ns/a", stored.slice(..length)).await;
        let error = lab.opened("acme/ns/a").await.unwrap_err();
        assert!(matches!(error, SealError::Malformed | SealError::Tampered), "{length}: {error}");
    }
    put("acme/ns/a", stored).await;
    assert!(holds(&lab.opened("acme/ns/a").await.unwrap(), "hunter22"));
    lab.end().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_sealed_opens_as_it_was(
        text in prop::collection::vec(any::<u8>(), 0..2000),
        key in "[a-z]{1,9}/[a-z]{0,9}/[a-z.]{1,20}",
        flip in any::<prop::sample::Index>(),
    ) {
        let settings = settings(&[1]);
        let tenant = key.split('/').next().unwrap();
        let data_key = DataKey::make(tenant, 0, &settings).unwrap();
        let keys = DataKeys(vec![data_key.into()]);
        let bunch = Bunch::new(Vault::new(settings));
        bunch.learn(&document_key(tenant), Some(&keys.text().unwrap()));
        let guard = bunch.vault().settings();
        let seal = || form::seal(&keys.0[0], &guard, &secrets(), &key, &text).unwrap();
        let (sealed, again) = (seal(), seal());
        prop_assert!(is_sealed(&sealed) && sealed != again);
        let opened = |value: Bytes| bunch.keep(&secrets(), &key, value).opened();
        prop_assert_eq!(opened(sealed.clone()).unwrap().into_bytes(), Bytes::from(text.clone()));
        let at = flip.index(sealed.len());
        let mut other = sealed.to_vec();
        other[at] ^= 0x10;
        // Where the husk was hit, the text may still be whole; it is never another one.
        if let Ok(found) = opened(other.into()) {
            prop_assert_eq!(found.into_bytes(), Bytes::from(text));
        }
    }

    #[test]
    fn noise_is_taken_apart_without_harm(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        with_head in any::<bool>(),
    ) {
        let head: &[u8] = if with_head { br#"{"sealed":"AAAAAAAAAAAAAAAAAAAAAA","# } else { b"" };
        let value = [head, &noise].concat();
        if let Ok(parts) = parts(&value) {
            prop_assert!(parts.body().len() < value.len() && parts.husk().len() < value.len());
        }
    }
}
