//! What an informer's readers and handlers see, whatever the server and the network do.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod fake;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use insula_api::{names::TenantName, slots::Slots};
use insula_client::{Change, Informer, ObjectKey};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::fake::{Fake, config_map, list, status};

/// An informer whose changes are written down as `+name@version`, `~name@version`, `-name@version`.
struct Watched {
    fake: Fake,
    informer: Informer<ConfigMap>,
    log: Arc<Mutex<Vec<String>>>,
    shutdown: CancellationToken,
}

impl Watched {
    fn start(fake: Fake) -> Self {
        Self::start_with(fake, Slots::all())
    }

    fn start_with(fake: Fake, slots: Slots) -> Self {
        let shutdown = CancellationToken::new();
        let collection = fake.client().all().collection::<ConfigMap>();
        let informer = Informer::builder(collection).slots(slots);
        let informer = informer.start(&TaskTracker::new(), shutdown.clone());
        let log = Arc::new(Mutex::new(Vec::new()));
        let written = log.clone();
        informer.on_change(move |change| written.lock().unwrap().push(describe(change)));
        Self { fake, informer, log, shutdown }
    }

    /// Waits until the log is `expected`, and shows what it is instead if it never becomes so.
    #[track_caller]
    fn sees(&self, expected: &[&str]) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            for _ in 0..2000 {
                if *self.log.lock().unwrap() == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            panic!("{place}: {:?} instead of {expected:?}", self.log.lock().unwrap());
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn describe(change: &Change<'_, ConfigMap>) -> String {
    let sign = match (change.old, change.new) {
        (None, _) => '+',
        (Some(_), Some(_)) => '~',
        (Some(_), None) => '-',
    };
    let latest = change.latest().unwrap();
    assert_eq!(latest.key(), *change.key);
    format!("{sign}{}@{}", change.key.name, latest.resource_version())
}

#[tokio::test(start_paused = true)]
async fn pages_then_events() {
    let fake = Fake::default();
    fake.answer(200, list("7", Some("token"), &[config_map("a", "ua", "3")]));
    fake.answer(200, list("7", None, &[config_map("b", "ub", "5")]));
    let watch = fake.stream();
    let it = Watched::start(fake);
    assert!(it.informer.synced().await);
    watch.event("ADDED", config_map("c", "uc", "8"));
    watch.event("MODIFIED", config_map("a", "ua", "9"));
    watch.event("DELETED", config_map("b", "ub", "10"));
    it.sees(&["+a@3", "+b@5", "+c@8", "~a@9", "-b@10"]).await;

    let acme = TenantName::parse("acme").unwrap();
    let names: Vec<_> =
        it.informer.in_namespace(&acme, "ns").iter().map(|it| it.name().to_owned()).collect();
    assert_eq!(names, ["a", "c"]);
    assert!(it.informer.get(&ObjectKey::new(&acme, "ns", "b")).is_none());

    let asked = it.fake.wait_asked(3).await;
    assert_eq!(asked[0].uri, "/tenants/all/api/v1/configmaps?limit=500");
    assert_eq!(asked[1].uri, "/tenants/all/api/v1/configmaps?limit=500&continue=token");
    let watch_uri = "/tenants/all/api/v1/configmaps?watch=true&allowWatchBookmarks=true\
                     &resourceVersion=7&timeoutSeconds=";
    assert!(asked[2].uri.starts_with(watch_uri), "{}", asked[2].uri);
    assert_eq!(asked[2].user_agent, "test/1");
}

#[tokio::test(start_paused = true)]
async fn a_late_handler_is_told_of_what_is_there() {
    let fake = Fake::default();
    fake.answer(200, list("7", None, &[config_map("a", "ua", "3")]));
    let it = Watched::start(fake);
    it.informer.synced().await;
    let late = Arc::new(Mutex::new(Vec::new()));
    let written = late.clone();
    it.informer.on_change(move |change| written.lock().unwrap().push(describe(change)));
    assert_eq!(*late.lock().unwrap(), ["+a@3"]);
}

#[tokio::test(start_paused = true)]
async fn a_cut_watch_resumes_after_the_last_event() {
    let fake = Fake::default();
    fake.answer(200, list("7", None, &[]));
    let first = fake.stream();
    let second = fake.stream();
    let it = Watched::start(fake);
    first.event("ADDED", config_map("a", "ua", "8"));
    first.raw(r#"{"type":"ADDED","obj"#);
    first.cut();
    second.event("MODIFIED", config_map("a", "ua", "9"));
    it.sees(&["+a@8", "~a@9"]).await;
    let asked = it.fake.wait_asked(3).await;
    assert!(asked[2].uri.contains("resourceVersion=8&"), "{}", asked[2].uri);
}

/// A vector version is reached only by bookmarks; what came since the last comes again.
#[tokio::test(start_paused = true)]
async fn replayed_events_of_a_cross_partition_watch_are_not_told_twice() {
    let fake = Fake::default();
    fake.answer(200, list("v.1-7.2-9", None, &[config_map("old", "uo", "2")]));
    let first = fake.stream();
    let second = fake.stream();
    let it = Watched::start(fake);
    let events = [
        ("ADDED", config_map("a", "ua", "8")),
        ("MODIFIED", config_map("a", "ua", "9")),
        ("ADDED", config_map("b", "ub", "10")),
        ("DELETED", config_map("b", "ub", "11")),
        ("DELETED", config_map("old", "uo", "12")),
        ("ADDED", config_map("old", "uo2", "13")),
    ];
    first.bookmark("v.1-7.2-10");
    for (kind, object) in &events {
        first.event(kind, object.clone());
    }
    drop(first);
    // Where it resumes; what it resumes with is still to come.
    second.bookmark("v.1-7.2-10");
    for (kind, object) in &events {
        second.event(kind, object.clone());
    }
    second.event("ADDED", config_map("b", "ub2", "14"));
    it.sees(&["+old@2", "+a@8", "~a@9", "+b@10", "-b@11", "-old@12", "+old@13", "+b@14"]).await;
    let asked = it.fake.wait_asked(3).await;
    assert!(asked[2].uri.contains("resourceVersion=v.1-7.2-10&"), "{}", asked[2].uri);
}

#[tokio::test(start_paused = true)]
async fn an_expired_version_leads_to_a_list_and_the_difference() {
    for in_stream in [false, true] {
        let fake = Fake::default();
        let before = [
            config_map("kept", "uk", "1"),
            config_map("gone", "ug", "2"),
            config_map("changed", "uc", "3"),
        ];
        fake.answer(200, list("7", None, &before));
        if in_stream {
            fake.stream().event("ERROR", status(410, "Expired"));
        } else {
            fake.answer(410, status(410, "Expired"));
        }
        let after = [
            config_map("kept", "uk", "1"),
            config_map("changed", "uc", "30"),
            config_map("new", "un", "31"),
        ];
        fake.answer(200, list("40", None, &after));
        let watch = fake.stream();
        let it = Watched::start(fake);
        watch.event("MODIFIED", config_map("new", "un", "41"));
        it.sees(&[
            "+kept@1",
            "+gone@2",
            "+changed@3",
            "~changed@30",
            "+new@31",
            "-gone@2",
            "~new@41",
        ])
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_expires_midway_begins_again_whole() {
    let fake = Fake::default();
    fake.answer(200, list("7", Some("token"), &[config_map("a", "ua", "3")]));
    fake.answer(410, status(410, "Expired"));
    fake.answer(200, list("9", None, &[config_map("b", "ub", "8")]));
    let watch = fake.stream();
    let it = Watched::start(fake);
    it.sees(&["+a@3", "+b@8", "-a@3"]).await;
    let asked = it.fake.wait_asked(4).await;
    assert_eq!(asked[2].uri, "/tenants/all/api/v1/configmaps");
    assert!(asked[3].uri.contains("resourceVersion=9&"));
    drop(watch);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_waited_for() {
    let fake = Fake::default();
    for _ in 0..5 {
        fake.answer(503, status(503, "ServiceUnavailable"));
    }
    fake.answer(200, list("7", None, &[config_map("a", "ua", "3")]));
    for _ in 0..3 {
        fake.answer(503, status(503, "ServiceUnavailable"));
    }
    let watch = fake.stream();
    let it = Watched::start(fake);
    assert!(!it.informer.has_synced());
    watch.event("MODIFIED", config_map("a", "ua", "8"));
    assert!(it.informer.synced().await);
    it.fake.wait_asked(10).await;
    it.sees(&["+a@3", "~a@8"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_replaced() {
    let fake = Fake::default();
    fake.answer(200, list("7", None, &[]));
    let silent = fake.stream();
    let second = fake.stream();
    let it = Watched::start(fake);
    let begin = tokio::time::Instant::now();
    it.fake.wait_asked(3).await;
    assert!(begin.elapsed() >= Duration::from_secs(130));
    second.event("ADDED", config_map("a", "ua", "8"));
    it.sees(&["+a@8"]).await;
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn one_broken_object_hides_no_other() {
    let broken = |name: &str, version: &str| {
        let mut object = config_map(name, "ux", version);
        object["data"] = json!([1, 2]);
        object
    };
    let fake = Fake::default();
    fake.answer(200, list("7", None, &[broken("x", "1"), config_map("a", "ua", "3")]));
    let watch = fake.stream();
    let it = Watched::start(fake);
    watch.event("ADDED", broken("y", "8"));
    watch.raw("no json\n");
    watch.event("ADDED", config_map("b", "ub", "9"));
    it.sees(&["+a@3", "+b@9"]).await;
    assert_eq!(it.fake.asked().len(), 2, "neither list nor watch was repeated");
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_task_and_releases_waiters() {
    let fake = Fake::default();
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let collection = fake.client().all().collection::<ConfigMap>();
    let informer = Informer::builder(collection).start(&tasks, shutdown.clone());
    tasks.close();
    shutdown.cancel();
    tasks.wait().await;
    assert!(!informer.has_synced());
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_told_when_nothing_is_missing() {
    let fake = Fake::default();
    let a = || config_map("a", "ua", "3");
    fake.answer(200, list("7", None, &[a()]));
    let _first = fake.stream();
    let it = Watched::start(fake);
    assert!(it.informer.synced().await);
    it.fake.wait_asked(2).await;
    // How far the server is, and a watch that soon ends: twice, because once is not enough.
    it.fake.answer(200, list("12", None, &[a()]));
    let short = it.fake.stream();
    it.fake.answer(200, list("12", None, &[a()]));
    let again = it.fake.stream();
    let _long = it.fake.stream();
    let informer = it.informer.clone();
    let asking = tokio::spawn(async move { informer.caught_up().await });
    short.bookmark("11");
    let asked = it.fake.wait_asked(6).await;
    assert!(asked[2].uri.contains("limit=1&") || asked[2].uri.ends_with("limit=1"));
    assert!(asked[3].uri.contains("timeoutSeconds=2"), "{}", asked[3].uri);
    assert!(!asking.is_finished());
    again.event("ADDED", config_map("b", "ub", "12"));
    assert!(asking.await.unwrap());
    it.sees(&["+a@3", "+b@12"]).await;
    let asked = it.fake.wait_asked(7).await;
    assert!(asked[6].uri.contains("resourceVersion=12"), "{}", asked[6].uri);
    assert!(!asked[6].uri.contains("timeoutSeconds=2&"), "{}", asked[6].uri);

    it.informer.retell(|key| &*key.name == "b");
    it.sees(&["+a@3", "+b@12", "+b@12"]).await;
}

/// An object of another tenant than [`config_map`]'s.
fn of(tenant: &str, name: &str, uid: &str, version: &str) -> Value {
    let mut object = config_map(name, uid, version);
    object["metadata"]["tenant"] = tenant.into();
    object
}

fn slots(tenants: &[&str]) -> Slots {
    tenants.iter().fold(Slots::none(), |slots, it| slots.with_tenant(it))
}

/// How a request says which slots it is about.
fn said(slots: &Slots) -> String {
    format!("slots={}", slots.to_string().replace(',', "%2C"))
}

#[tokio::test(start_paused = true)]
async fn without_slots_there_is_nothing_to_ask_for() {
    let it = Watched::start_with(Fake::default(), Slots::none());
    assert!(it.informer.synced().await && it.informer.caught_up().await);
    assert!(it.fake.asked().is_empty());
    it.fake.answer(200, list("7", None, &[config_map("a", "ua", "3")]));
    let watch = it.fake.stream();
    it.informer.select(&slots(&["acme"]));
    it.sees(&["+a@3"]).await;
    watch.event("ADDED", config_map("b", "ub", "8"));
    it.sees(&["+a@3", "+b@8"]).await;
    let asked = it.fake.wait_asked(2).await;
    for request in &asked {
        assert!(request.uri.ends_with(&said(&slots(&["acme"]))), "{}", request.uri);
    }
    it.informer.select(&Slots::none());
    it.sees(&["+a@3", "+b@8", "-b@8", "-a@3"]).await;
    assert!(it.informer.is_empty() && it.informer.caught_up().await);
    assert_eq!(it.fake.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn slots_that_are_gained_are_listed_beside_the_watch_of_the_others() {
    let fake = Fake::default();
    fake.answer(200, list("7", None, &[config_map("a", "ua", "3")]));
    let first = fake.stream();
    let it = Watched::start_with(fake, slots(&["acme"]));
    first.event("ADDED", config_map("b", "ub", "8"));
    it.sees(&["+a@3", "+b@8"]).await;
    let second = it.fake.stream();
    it.fake.answer(200, list("10", Some("token"), &[of("globex", "g", "ug", "9")]));
    let page = it.fake.stream();
    let both = slots(&["acme", "globex"]);
    it.informer.select(&both);
    let asked = it.fake.wait_asked(5).await;
    assert!(asked[2].uri.contains("resourceVersion=8&"), "{}", asked[2].uri);
    assert!(asked[2].uri.ends_with(&said(&slots(&["acme"]))), "{}", asked[2].uri);
    for request in &asked[3..] {
        assert!(request.uri.contains("limit=500"), "{}", request.uri);
        assert!(request.uri.ends_with(&said(&slots(&["globex"]))), "{}", request.uri);
    }
    // While the second page is on its way the watch of what is held has come further.
    second.event("DELETED", config_map("b", "ub", "11"));
    second.event("MODIFIED", config_map("a", "ua", "12"));
    it.sees(&["+a@3", "+b@8", "+g@9", "-b@11", "~a@12"]).await;
    let third = it.fake.stream();
    page.raw(list("10", None, &[of("globex", "h", "uh", "10")]).to_string());
    drop(page);
    let asked = it.fake.wait_asked(6).await;
    assert!(asked[5].uri.contains("resourceVersion=10&"), "{}", asked[5].uri);
    assert!(asked[5].uri.ends_with(&said(&both)), "{}", asked[5].uri);
    // What comes again is told to nobody, not even of what is gone by now.
    third.event("MODIFIED", config_map("b", "ub", "10"));
    third.event("DELETED", config_map("b", "ub", "11"));
    third.event("MODIFIED", config_map("a", "ua", "12"));
    third.event("DELETED", of("globex", "g", "ug", "13"));
    let told = ["+a@3", "+b@8", "+g@9", "-b@11", "~a@12", "+h@10", "-g@13"];
    it.sees(&told).await;
}

#[tokio::test(start_paused = true)]
async fn slots_that_are_lost_go_and_the_rest_is_not_read_again() {
    let fake = Fake::default();
    let both = slots(&["acme", "globex"]);
    fake.answer(200, list("7", None, &[config_map("a", "ua", "3"), of("globex", "g", "ug", "4")]));
    let first = fake.stream();
    let it = Watched::start_with(fake, both);
    it.sees(&["+a@3", "+g@4"]).await;
    first.event("MODIFIED", config_map("a", "ua", "9"));
    it.sees(&["+a@3", "+g@4", "~a@9"]).await;
    let second = it.fake.stream();
    it.informer.select(&slots(&["acme"]));
    it.sees(&["+a@3", "+g@4", "~a@9", "-g@4"]).await;
    let asked = it.fake.wait_asked(3).await;
    assert!(asked[2].uri.contains("resourceVersion=9&"), "{}", asked[2].uri);
    assert!(asked[2].uri.ends_with(&said(&slots(&["acme"]))), "{}", asked[2].uri);
    second.event("DELETED", config_map("a", "ua", "11"));
    it.sees(&["+a@3", "+g@4", "~a@9", "-g@4", "-a@11"]).await;
}
