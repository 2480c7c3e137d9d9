//! A local copy whose slots change at random while a real server's objects do.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use insula_api::{names::TenantName, slots::Slots};
use insula_client::{Change, Client, DeleteOptions, Informer, ObjectKey, Patch, Tenant, Tenanted};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use serde_json::json;

use self::cloud::Cloud;

const N_TENANTS: usize = 8;
/// Names that a tenant's objects may have.
const N_NAMES: u64 = 30;
/// How often other slots are selected.
const N_CHOICES: usize = 120;
/// How often it is waited, in between, until nothing is missing.
const LOOK_EVERY: usize = 4;

/// Numbers that a seed decides.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// The last write of an object that is known to have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written {
    nth: u64,
    /// `None` if it was deleted.
    version: Option<u64>,
}

/// A write that has begun counts as one that may have happened.
#[derive(Default)]
struct World {
    written: HashMap<ObjectKey, Written>,
    begun: HashMap<ObjectKey, u64>,
}

fn version(object: &Tenanted<ConfigMap>) -> u64 {
    object.resource_version().parse().unwrap()
}

async fn write(client: &Client, key: &ObjectKey, is_there: bool, choice: u64) -> Option<u64> {
    let api = client.tenant(&key.tenant).namespaced::<ConfigMap>("default");
    if !is_there {
        let made: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": &*key.name}})).unwrap();
        return Some(version(&api.create(&made).await.unwrap()));
    }
    if choice < 50 {
        let patch = Patch::Merge(json!({"data": {"choice": choice.to_string()}}));
        return Some(version(&api.patch(&key.name, &patch).await.unwrap()));
    }
    api.delete(&key.name, &DeleteOptions::default()).await.unwrap();
    None
}

/// Writes one object after the other.
async fn load(
    client: Client,
    tenants: Vec<TenantName>,
    world: Arc<Mutex<World>>,
    stop: Arc<AtomicBool>,
) -> u64 {
    let (mut random, mut nth) = (Random(7), 0);
    while !stop.load(Ordering::Relaxed) {
        nth += 1;
        let tenant = &tenants[random.below(tenants.len() as u64) as usize];
        let key = ObjectKey::new(tenant, "default", &format!("c{}", random.below(N_NAMES)));
        let is_there = {
            let mut world = world.lock().unwrap();
            world.begun.insert(key.clone(), nth);
            world.written.get(&key).is_some_and(|it| it.version.is_some())
        };
        let version = write(&client, &key, is_there, random.below(100)).await;
        world.lock().unwrap().written.insert(key, Written { nth, version });
    }
    nth
}

/// What handlers were told, put together.
#[derive(Default)]
struct Told(Mutex<BTreeMap<ObjectKey, u64>>);

impl Told {
    fn hear(&self, change: &Change<'_, ConfigMap>) {
        let mut told = self.0.lock().unwrap();
        let known = told.get(change.key).copied();
        assert_eq!(known.is_some(), change.old.is_some(), "{}", change.key);
        match change.new {
            Some(new) => {
                assert!(known.is_none_or(|it| it < version(new)), "{}: back in time", change.key);
                told.insert(change.key.clone(), version(new));
            }
            None => drop(told.remove(change.key)),
        }
    }
}

fn shown(copy: &Informer<ConfigMap>) -> BTreeMap<ObjectKey, u64> {
    copy.list().iter().map(|it| (it.key(), version(it))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_end_a_copy_is_of_what_is_selected_and_on_the_way_misses_nothing() {
    let cloud = Cloud::start(2).await;
    let client = cloud.client.clone();
    let mut tenants = Vec::new();
    for number in 0..N_TENANTS {
        let name = TenantName::parse(&format!("t{number}")).unwrap();
        let mut tenant = Tenant::default();
        tenant.metadata.name = Some(name.to_string());
        client.system().api::<Tenant>().create(&tenant).await.unwrap();
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some("default".to_owned());
        client.tenant(&name).api::<Namespace>().create(&namespace).await.unwrap();
        tenants.push(name);
    }
    let builder = Informer::builder(client.all().collection::<ConfigMap>());
    let copy = builder.slots(Slots::none()).pack_beyond(16);
    let copy = copy.start(&cloud.tasks, cloud.shutdown.clone());
    let told = Arc::new(Told::default());
    let hears = told.clone();
    copy.on_change(move |change| hears.hear(change));

    let (world, stop) = (Arc::new(Mutex::new(World::default())), Arc::new(AtomicBool::new(false)));
    let load = tokio::spawn(load(client.clone(), tenants.clone(), world.clone(), stop.clone()));
    let mut random = Random(3);
    let mut slots = Slots::none();
    for nth in 1..=N_CHOICES {
        slots = match random.below(12) {
            0 => Slots::none(),
            1 => Slots::all(),
            _ => {
                let chosen = tenants.iter().filter(|_| random.below(2) == 0);
                chosen.fold(Slots::none(), |slots, it| slots.with_tenant(it.as_str()))
            }
        };
        copy.select(&slots);
        if nth % LOOK_EVERY != 0 {
            tokio::time::sleep(Duration::from_millis(random.below(40))).await;
            continue;
        }
        let before = world.lock().unwrap().written.clone();
        assert!(copy.caught_up().await);
        let seen = shown(&copy);
        let begun = world.lock().unwrap().begun.clone();
        for key in seen.keys() {
            assert!(slots.has_tenant(key.tenant.as_str()), "{key} is nobody's business");
        }
        for (key, it) in before.iter().filter(|(key, _)| slots.has_tenant(key.tenant.as_str())) {
            // Whatever was begun since may have happened, too.
            if begun[key] == it.nth {
                assert_eq!(seen.get(key).copied(), it.version, "{key} after {nth} choices");
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let n_writes = load.await.unwrap();
    assert!(100 < n_writes, "{n_writes}");
    if slots.is_none() || slots.is_all() {
        slots = Slots::none().with_tenant("t1").with_tenant("t4");
        copy.select(&slots);
    }
    assert!(copy.caught_up().await);
    let all = client.all().collection::<ConfigMap>().list_all(&Default::default()).await.unwrap();
    let mut wanted: BTreeMap<_, _> = all.iter().map(|it| (it.key(), version(it))).collect();
    wanted.retain(|key, _| slots.has_tenant(key.tenant.as_str()));
    assert!(!wanted.is_empty() && wanted.len() < all.len());
    assert_eq!(shown(&copy), wanted);
    assert_eq!(*told.0.lock().unwrap(), wanted);
    cloud.end().await;
}
