//! Finds what a selector selects, and the selectors that select something, by indexes: what else
//! there is in the namespace is not unpacked.
//!
//! An object is filed under its namespace, the uid of who manages it, and its labels; pods that are
//! siblings mostly have all of these alike, so that a selector is held against few values. Of others
//! only those that nobody manages are looked for by labels, and filed with them. A selector is filed
//! under one label that it insists on; an object asks for those of its own.

use std::{collections::BTreeSet, sync::Arc};

use insula_api::{
    names::TenantName,
    selector::{Operator, Selector},
};
use insula_client::{Change, IndexId, Informer, InformerBuilder, Kind, Object, Tenanted};
use k8s_openapi::api::core::v1::Pod;

use super::{N_PLAIN, N_PLAIN_PODS, Starts};
use crate::{
    claim::{Claimant, wants},
    objects::controller_uid,
};

/// Ends each part of a value: no name or label has it.
const END: char = '\n';

/// How all values of a namespace begin.
fn place(tenant: &TenantName, namespace: &str) -> String {
    format!("{tenant}/{namespace}{END}")
}

fn near(object: &Tenanted<impl Object>) -> String {
    place(&object.tenant, object.namespace())
}

/// What is managed as `uid` is filed under this, followed by labels. Without a manager it is empty.
fn managed(mut place: String, uid: &str) -> String {
    // Anybody can write down anything there.
    place.extend(uid.chars().filter(|it| *it != END));
    place.push(END);
    place
}

fn push_label(value: &mut String, key: &str, label: &str) {
    value.push_str(key);
    value.push('=');
    value.push_str(label);
    value.push(END);
}

/// Whether a selector matches labels that were written with [`push_label`].
fn selects(selector: &Selector, labels: &str) -> bool {
    selector
        .matches_by(|key| labels.split(END).find_map(|it| it.strip_prefix(key)?.strip_prefix('=')))
}

/// A local copy whose objects can be found by the one that manages them, and by their labels.
#[derive(Debug, Clone)]
pub(crate) struct Owned<K: Object> {
    pub(crate) informer: Informer<K>,
    by_manager: IndexId,
}

impl<K: Kind> Owned<K> {
    pub(super) fn start(builder: InformerBuilder<K>, starts: &Starts<'_>) -> Self {
        Self::start_with(builder, N_PLAIN, starts, |uid| uid.is_none())
    }

    /// `has_labels` says whether what is managed as that is filed with its labels.
    fn start_with(
        mut builder: InformerBuilder<K>,
        n_plain: usize,
        starts: &Starts<'_>,
        has_labels: fn(Option<&str>) -> bool,
    ) -> Self {
        let by_manager = builder.index(move |object: &Tenanted<K>| {
            let uid = controller_uid(&object.object);
            let mut value = managed(near(object), uid.unwrap_or_default());
            let labels = object.object.meta().labels.as_ref().filter(|_| has_labels(uid));
            for (key, label) in labels.into_iter().flatten() {
                push_label(&mut value, key, label);
            }
            vec![value]
        });
        Self { informer: starts.with(builder, n_plain), by_manager }
    }

    /// The objects that `owner` manages.
    pub(crate) fn managed_by<O: Object>(&self, owner: &Tenanted<O>) -> Vec<Arc<Tenanted<K>>> {
        self.managed_as(owner, owner.uid())
    }

    /// The objects that are managed by whoever manages `one`, which is among them.
    pub(crate) fn siblings_of(&self, one: &Tenanted<K>) -> Vec<Arc<Tenanted<K>>> {
        controller_uid(&one.object).map_or_else(Vec::new, |uid| self.managed_as(one, uid))
    }

    /// The objects that `owner` may have to do with: those it manages, and those that nobody does
    /// and that its selector matches.
    pub(crate) fn candidates_of<O: Object>(
        &self,
        owner: &Tenanted<O>,
        selector: &Selector,
    ) -> Vec<Arc<Tenanted<K>>> {
        let mut candidates = self.managed_by(owner);
        let orphans = managed(near(owner), "");
        let is_wanted = |labels: &str| selects(selector, labels);
        candidates.extend(self.informer.indexed_where(self.by_manager, &orphans, is_wanted));
        candidates
    }

    /// What names `uid` as its manager, beside `one`: anybody can write down a uid of another
    /// tenant, or of another namespace, and it makes nothing theirs.
    fn managed_as<O: Object>(&self, one: &Tenanted<O>, uid: &str) -> Vec<Arc<Tenanted<K>>> {
        let prefix = managed(near(one), uid);
        let mut managed = self.informer.indexed_where(self.by_manager, &prefix, |_| true);
        // Nor does one that only looks like it.
        managed.retain(|it| controller_uid(&it.object) == Some(uid));
        managed
    }
}

impl Owned<Pod> {
    pub(super) fn start_pods(builder: InformerBuilder<Pod>, starts: &Starts<'_>) -> Self {
        Self::start_with(builder, N_PLAIN_PODS, starts, |_| true)
    }

    /// The pods of a namespace that a selector matches, whoever manages them.
    pub(crate) fn selected(
        &self,
        tenant: &TenantName,
        namespace: &str,
        selector: &Selector,
    ) -> Vec<Arc<Tenanted<Pod>>> {
        let is_meant = |of: &str| of.split_once(END).is_some_and(|it| selects(selector, it.1));
        self.informer.indexed_where(self.by_manager, &place(tenant, namespace), is_meant)
    }
}

/// A local copy of what has selectors, which can be found by what they select.
#[derive(Debug, Clone)]
pub(crate) struct Selectors<O: Object> {
    pub(super) informer: Informer<O>,
    by_label: IndexId,
}

impl<O: Claimant> Selectors<O> {
    pub(super) fn start(mut builder: InformerBuilder<O>, starts: &Starts<'_>) -> Self {
        let by_label = index_selectors(&mut builder);
        Self { informer: starts.of(builder), by_label }
    }

    /// Starts a copy that is both.
    pub(super) fn start_owned(starts: &Starts<'_>) -> (Owned<O>, Self) {
        let mut builder = starts.builder();
        let by_label = index_selectors(&mut builder);
        let owned = Owned::start(builder, starts);
        let informer = owned.informer.clone();
        (owned, Self { informer, by_label })
    }

    /// Those whose selector matches an object.
    pub(crate) fn selecting(&self, object: &Tenanted<impl Object>) -> Vec<Arc<Tenanted<O>>> {
        let place = near(object);
        let mut found = self.informer.indexed(self.by_label, &place);
        for (key, label) in object.object.meta().labels.iter().flatten() {
            found.extend(self.informer.indexed(self.by_label, &insisting(&place, key, label)));
        }
        found.retain(|it| wants(&it.object, &object.object));
        found
    }

    /// Shows those that select an object as it was or as it is.
    pub(crate) fn selecting_either<D: Object>(
        &self,
        change: &Change<'_, D>,
        mut look: impl FnMut(&Arc<Tenanted<O>>),
    ) {
        let is_relabelled = |old: &&Arc<Tenanted<D>>| {
            change.new.is_none_or(|new| old.object.meta().labels != new.object.meta().labels)
        };
        let old = change.old.filter(is_relabelled);
        for state in [old, change.new].into_iter().flatten() {
            self.selecting(state).iter().for_each(&mut look);
        }
    }
}

fn index_selectors<O: Claimant>(builder: &mut InformerBuilder<O>) -> IndexId {
    builder.index(|owner| match owner.object.selector() {
        Some(Ok(selector)) => filed(&near(owner), &selector),
        _ => Vec::new(),
    })
}

fn insisting(place: &str, key: &str, label: &str) -> String {
    let mut value = place.to_owned();
    push_label(&mut value, key, label);
    value
}

/// Under what a selector of a namespace is filed: with one of these labels is whatever it selects.
/// Of several it could be the longest is chosen, which is more likely a hash or a uid than what
/// many have.
fn filed(place: &str, selector: &Selector) -> Vec<String> {
    let insists = selector.requirements().iter().filter(|it| it.operator() == Operator::In);
    let shortest = |values: &BTreeSet<String>| values.iter().map(String::len).min();
    match insists.max_by_key(|it| shortest(it.values())) {
        Some(it) => it.values().iter().map(|label| insisting(place, it.key(), label)).collect(),
        None => vec![place.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use serde_json::{Value, json};

    use super::{super::Informers, *};
    use crate::{
        fake::{Fake, acme, key, object},
        objects,
        resource_claims::asked_by,
    };

    fn managed_by(uid: &str) -> Value {
        json!([{"apiVersion": "v1", "kind": "Boss", "name": "boss", "uid": uid, "controller": true}])
    }

    /// Pods of two namespaces and two tenants, with labels and managers of every sort.
    fn pods() -> Vec<Value> {
        let labels = [
            json!(null),
            json!({"app": "web"}),
            json!({"app": "web", "tier": "front"}),
            json!({"app": "web", "tier": ""}),
            json!({"app": "webb", "tier": "front"}),
            json!({"ap": "web", "a.io/app": "web", "app": "db"}),
        ];
        let owners = [json!(null), managed_by("u"), managed_by("u2"), managed_by("u\napp=web")];
        let mut pods = Vec::new();
        for (tenant, namespace) in [("acme", "ns"), ("acme", "ns2"), ("globex", "ns")] {
            for (i, labels) in labels.iter().enumerate() {
                for (j, owners) in owners.iter().enumerate() {
                    let meta = json!({"tenant": tenant, "namespace": namespace, "labels": labels,
                        "ownerReferences": owners});
                    pods.push(object(&format!("p{j}{i}"), json!({"metadata": meta})));
                }
            }
        }
        pods
    }

    fn selectors() -> Vec<Value> {
        let is = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        vec![
            json!({}),
            json!({"matchLabels": {"app": "web"}}),
            json!({"matchLabels": {"app": "web", "tier": "front"}}),
            json!({"matchLabels": {"tier": ""}}),
            is("app", "In", &["web", "db"]),
            is("app", "NotIn", &["web"]),
            is("tier", "Exists", &[]),
            is("tier", "DoesNotExist", &[]),
            is("none", "Exists", &[]),
        ]
    }

    fn names<K: Object>(them: &[Arc<Tenanted<K>>]) -> Vec<String> {
        them.iter().map(|it| it.key().to_string()).collect()
    }

    #[tokio::test]
    async fn what_is_found_is_what_looking_through_all_would_find() {
        let budgets = selectors().into_iter().enumerate().flat_map(|(n, selector)| {
            ["acme", "globex"].map(|tenant| {
                let meta = json!({"tenant": tenant});
                object(&format!("b{n}"), json!({"metadata": meta, "spec": {"selector": selector}}))
            })
        });
        let nobodys = object("of-nobody", json!({"spec": {"minAvailable": 1}}));
        let budgets = budgets.chain([nobodys]).collect();
        let fake = Fake::serving(&[("pods", pods()), ("poddisruptionbudgets", budgets)]).await;
        let Informers { pods, budgets, selectors, .. } = &fake.informers;
        let near = pods.informer.in_namespace(&acme(), "ns");
        assert_eq!(near.len(), 24);
        let mut n_found = 0;
        for budget in budgets.in_namespace(&acme(), "ns") {
            let Some(selector) = budget.object.selector() else { continue };
            let selector = selector.unwrap();
            let is_meant = |pod: &&Arc<Tenanted<Pod>>| objects::selects(&selector, &pod.object);
            let meant: Vec<_> = near.iter().filter(is_meant).cloned().collect();
            assert_eq!(
                names(&pods.selected(&acme(), "ns", &selector)),
                names(&meant),
                "{selector}"
            );
            n_found += meant.len();
            let mut owner = (**near.first().unwrap()).clone();
            owner.object.metadata.uid = Some("u".to_owned());
            let is_candidate = |pod: &&Arc<Tenanted<Pod>>| match controller_uid(&pod.object) {
                Some(uid) => uid == "u",
                None => is_meant(pod),
            };
            let candidates: Vec<_> = near.iter().filter(is_candidate).cloned().collect();
            let mut found = pods.candidates_of(&owner, &selector);
            found.sort_unstable_by_key(|it| it.key());
            assert_eq!(names(&found), names(&candidates), "{selector}");
        }
        assert_eq!(n_found, 24 + 12 + 4 + 4 + 16 + 12 + 12 + 12);
        for pod in pods.informer.list() {
            let all = budgets.in_namespace(&pod.tenant, pod.namespace());
            let wanting = |it: &&Arc<Tenanted<PodDisruptionBudget>>| wants(&it.object, &pod.object);
            let wanting: Vec<_> = all.iter().filter(wanting).cloned().collect();
            let mut found = selectors.budgets.selecting(&pod);
            found.sort_unstable_by_key(|it| it.key());
            assert_eq!(names(&found), names(&wanting), "{}", pod.key());
        }
    }

    #[tokio::test]
    async fn who_selects_a_pod_hears_of_it_once_or_as_it_was() {
        let of = |name: &str, app: &str| {
            object(name, json!({"spec": {"selector": {"matchLabels": {"app": app}}}}))
        };
        let budgets = vec![of("db", "db"), of("web", "web"), of("webb", "webb")];
        let fake = Fake::serving(&[("poddisruptionbudgets", budgets)]).await;
        let pod = |app: &str| -> Arc<Tenanted<Pod>> {
            let pod = object("p", json!({"metadata": {"labels": {"app": app}}}));
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let (web, db) = (pod("web"), pod("db"));
        let told = |old: Option<&Arc<_>>, new: Option<&Arc<_>>| {
            let (key, mut told) = (web.key(), Vec::new());
            let budgets = &fake.informers.selectors.budgets;
            let change = Change { key: &key, old, new };
            budgets.selecting_either(&change, |it| told.push(it.name().to_owned()));
            told
        };
        assert_eq!(told(None, Some(&web)), ["web"]);
        assert_eq!(told(Some(&web), Some(&web)), ["web"]);
        assert_eq!(told(Some(&web), Some(&db)), ["web", "db"]);
        assert_eq!(told(Some(&web), None), ["web"]);
    }

    #[test]
    fn what_tells_most_apart_is_what_is_asked_for() {
        let filed = |text: &str| filed("acme/ns\n", &Selector::parse(text).unwrap());
        assert_eq!(filed("app=web,hash=6d4f8b7c9d,x"), ["acme/ns\nhash=6d4f8b7c9d\n"]);
        assert_eq!(filed("app in (a,b)"), ["acme/ns\napp=a\n", "acme/ns\napp=b\n"]);
        assert_eq!(filed("app!=web"), ["acme/ns\n"]);
        assert_eq!(filed(""), ["acme/ns\n"]);
    }

    /// What is saved: `cargo test -p insula-controllers --lib what_it_costs -- --ignored --nocapture`.
    #[tokio::test]
    #[ignore = "a measurement"]
    #[allow(clippy::print_stderr, reason = "what was measured is worth knowing")]
    async fn what_it_costs_to_find_100_of_10_000() {
        let pod = |n: usize| {
            let owner = if n.is_multiple_of(2) {
                managed_by(&format!("u{}", n / 100))
            } else {
                json!(null)
            };
            let app = format!("app-{}", n / 100);
            let claim = format!("c{n}");
            let condition = |it| json!({"type": it, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let conditions = ["Initialized", "Ready", "PodScheduled"].map(condition);
            let pod = json!({
                "metadata": {
                    "labels": {"app": app, "hash": "6d4f8b7c9d"}, "ownerReferences": owner,
                },
                "spec": {
                    "nodeName": "n",
                    "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}],
                    "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": claim}}],
                    "resourceClaims": [{"name": "d", "resourceClaimName": claim}],
                },
                "status": {
                    "phase": "Running", "podIPs": [{"ip": "10.1.2.3"}],
                    "conditions": conditions,
                },
            });
            object(&format!("pod-{n:05}"), pod)
        };
        let service = |n: usize| {
            let selector = json!({"app": format!("app-{n}")});
            object(&format!("s{n}"), json!({"spec": {"selector": selector}}))
        };
        let fake = Fake::serving(&[
            ("pods", (0..10_000).map(pod).collect()),
            ("services", (0..1_000).map(service).collect()),
        ])
        .await;
        let Informers { pods, services, selectors, .. } = &fake.informers;
        let selector = Selector::parse("app=app-7").unwrap();
        let least = |what: &str, n: usize, work: &dyn Fn() -> usize| {
            let time = |_| {
                let began = Instant::now();
                assert_eq!(work(), n, "{what}");
                began.elapsed()
            };
            let least = (0..5).map(time).min().unwrap_or(Duration::ZERO);
            eprintln!("{what}: {least:?}");
        };
        let all = || pods.informer.in_namespace(&acme(), "ns");
        least("100 of 10,000 pods by a selector, before", 100, &|| {
            all().iter().filter(|it| objects::selects(&selector, &it.object)).count()
        });
        least("and now", 100, &|| pods.selected(&acme(), "ns", &selector).len());
        let mut owner = (*all()[1]).clone();
        owner.object.metadata.uid = Some("u7".to_owned());
        least("50 pods of a set beside 5,000 of nobody's, before", 5_050, &|| {
            let is_near =
                |it: &&Arc<Tenanted<Pod>>| controller_uid(&it.object).is_none_or(|uid| uid == "u7");
            all().iter().filter(is_near).count()
        });
        least("and now", 100, &|| pods.candidates_of(&owner, &selector).len());
        least("the services of a pod, of 1,000, before", 1, &|| {
            let near = services.in_namespace(&acme(), "ns");
            near.iter().filter(|it| wants(&it.object, &owner.object)).count()
        });
        least("and now", 1, &|| selectors.services.selecting(&owner).len());
        let claim = key("c77");
        least("the pod of a claim of devices, before", 1, &|| {
            let asks = |pod: &&Arc<Tenanted<Pod>>| {
                asked_by(pod).any(|it| it.resource_claim_name.as_deref() == Some("c77"))
            };
            all().iter().filter(asks).count()
        });
        least("and now", 1, &|| fake.informers.keys_of_pods_asking(&claim).len());
        least("the pod of a claim, before", 1, &|| {
            let uses = |pod: &&Arc<Tenanted<Pod>>| objects::claims_of(pod).any(|it| it == "c77");
            all().iter().filter(uses).count()
        });
        least("and now", 1, &|| fake.informers.pods_with(&claim).len());
    }
}
