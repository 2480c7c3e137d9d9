//! What ties a ReplicaSet to one version of a deployment's template: hash, revision, annotations.

use std::collections::BTreeMap;

use insula_client::Tenanted;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use xxhash_rust::xxh3::Xxh3;

use super::limits::Limits;
use crate::objects::{controller_reference, safe_number};

pub(super) const HASH_LABEL: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
/// The longest history of revisions that an annotation holds, in bytes.
const MAX_HISTORY: usize = 2000;

/// Annotations of a deployment that its ReplicaSets do not take over.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MOST,
    "deprecated.deployment.rollback.to",
];

type Annotations = BTreeMap<String, String>;

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The revision an object carries; 0 without one.
pub(super) fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// How many replicas the deployment wanted when `set` was scaled last.
pub(super) fn desired_then(set: &ReplicaSet) -> Option<i32> {
    annotation(&set.metadata, DESIRED).and_then(|text| text.parse().ok())
}

/// How many replicas the deployment allowed when `set` was scaled last.
pub(super) fn most_then(set: &ReplicaSet) -> Option<i32> {
    annotation(&set.metadata, MOST).and_then(|text| text.parse().ok())
}

/// The annotations that note for which scale of its deployment a set was scaled.
pub(super) fn scale_annotations(limits: Limits) -> Annotations {
    BTreeMap::from([
        (DESIRED.to_owned(), limits.desired.to_string()),
        (MOST.to_owned(), limits.most().to_string()),
    ])
}

/// The revision of the newest set: one above all others'.
pub(super) fn next_revision<'a>(old: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    let highest = old.into_iter().map(|set| revision(&set.metadata)).max();
    highest.unwrap_or(0).saturating_add(1)
}

/// Annotations that the newest set lacks or has differently.
pub(super) fn missing_annotations(
    deployment: &Deployment,
    set: &ObjectMeta,
    revision_wanted: i64,
) -> Annotations {
    let mut missing = Annotations::new();
    for (name, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN_ANNOTATIONS.contains(&name.as_str()) && annotation(set, name) != Some(value) {
            missing.insert(name.clone(), value.clone());
        }
    }
    let present = revision(set);
    if present < revision_wanted {
        missing.insert(REVISION.to_owned(), revision_wanted.to_string());
        if present != 0 {
            missing.insert(REVISION_HISTORY.to_owned(), history(set, present));
        }
    }
    missing
}

/// The revisions a set had before, `latest` included; the oldest are dropped for room.
fn history(set: &ObjectMeta, latest: i64) -> String {
    let before = annotation(set, REVISION_HISTORY).unwrap_or_default();
    let mut all: Vec<&str> = before.split(',').filter(|it| !it.is_empty()).collect();
    let latest = latest.to_string();
    all.push(&latest);
    while MAX_HISTORY < all.iter().map(|it| it.len() + 1).sum::<usize>() {
        all.remove(0);
    }
    all.join(",")
}

/// Whether a set was made from this template, its hash label aside.
pub(super) fn is_of_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let theirs = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    normal(theirs) == normal(template.clone())
}

/// A template without what does not tell it from others.
fn normal(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.take().filter(|it| !it.is_empty());
    meta.annotations = meta.annotations.take().filter(|it| !it.is_empty());
    meta.creation_timestamp = None;
    template
}

/// A short text that differs between templates. `n_collisions` makes it differ where it did not.
fn template_hash(
    template: &PodTemplateSpec,
    n_collisions: i32,
) -> Result<String, serde_json::Error> {
    let mut hash = Xxh3::new();
    hash.update(&serde_json::to_vec(&normal(template.clone()))?);
    if n_collisions != 0 {
        hash.update(&n_collisions.to_le_bytes());
    }
    let folded = hash.digest() & u64::from(u32::MAX);
    Ok(safe_number(u32::try_from(folded).unwrap_or_default()))
}

/// A ReplicaSet for the deployment's present template.
pub(super) fn new_set(
    deployment: &Tenanted<Deployment>,
    replicas: i32,
    revision_wanted: i64,
) -> Result<ReplicaSet, serde_json::Error> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let n_collisions =
        deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = template_hash(&spec.template, n_collisions)?;
    let labelled = |labels: Option<Annotations>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash.clone());
        Some(labels)
    };
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels = labelled(meta.labels.take());
    let labels = meta.labels.clone();
    let mut selector = spec.selector;
    selector.match_labels = labelled(selector.match_labels.take());
    let mut annotations = missing_annotations(deployment, &ObjectMeta::default(), revision_wanted);
    annotations.extend(scale_annotations(Limits::of(deployment)));
    Ok(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name())),
            namespace: Some(deployment.namespace().to_owned()),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(replicas),
            selector,
            template: Some(template),
        }),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use k8s_openapi::api::{apps::v1::DeploymentSpec, core::v1::PodSpec};

    use super::*;

    fn deployment(image: &str) -> Tenanted<Deployment> {
        let mut it = Deployment::default();
        it.metadata.name = Some("web".into());
        it.metadata.uid = Some("u".into());
        it.metadata.annotations =
            Some(BTreeMap::from([("note".into(), "kept".into()), (REVISION.into(), "7".into())]));
        let mut spec = DeploymentSpec { replicas: Some(2), ..DeploymentSpec::default() };
        spec.template.metadata = Some(ObjectMeta {
            labels: Some(BTreeMap::from([("app".into(), "web".into())])),
            ..ObjectMeta::default()
        });
        let container = k8s_openapi::api::core::v1::Container {
            image: Some(image.into()),
            ..Default::default()
        };
        spec.template.spec = Some(PodSpec { containers: vec![container], ..PodSpec::default() });
        it.spec = Some(spec);
        Tenanted { tenant: TenantName::parse("acme").unwrap(), object: it }
    }

    #[test]
    fn a_new_set_is_recognised_by_its_template() {
        let (one, two) = (deployment("a:1"), deployment("a:2"));
        let set = new_set(&one, 3, 8).unwrap();
        assert!(is_of_template(&set, &one.spec.as_ref().unwrap().template));
        assert!(!is_of_template(&set, &two.spec.as_ref().unwrap().template));
        assert_ne!(set.metadata.name, new_set(&two, 3, 8).unwrap().metadata.name);
        let spec = set.spec.as_ref().unwrap();
        let hash = &set.metadata.labels.as_ref().unwrap()[HASH_LABEL];
        assert_eq!(set.metadata.name.as_deref(), Some(format!("web-{hash}").as_str()));
        assert_eq!(spec.selector.match_labels.as_ref().unwrap()[HASH_LABEL], *hash);
        assert_eq!(
            (revision(&set.metadata), desired_then(&set), most_then(&set)),
            (8, Some(2), Some(3))
        );
        let annotations = set.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations["note"], "kept");
    }

    #[test]
    fn a_collision_changes_the_name_only() {
        let mut it = deployment("a:1");
        let before = new_set(&it, 1, 1).unwrap();
        it.object.status.get_or_insert_default().collision_count = Some(1);
        let after = new_set(&it, 1, 1).unwrap();
        assert_ne!(before.metadata.name, after.metadata.name);
        assert!(is_of_template(&after, &it.spec.as_ref().unwrap().template));
    }

    #[test]
    fn going_back_to_an_old_template_moves_its_revision_into_history() {
        let it = deployment("a:1");
        let mut set = new_set(&it, 1, 3).unwrap();
        let changes = missing_annotations(&it, &set.metadata, 5);
        assert_eq!(changes[REVISION], "5");
        assert_eq!(changes[REVISION_HISTORY], "3");
        set.metadata.annotations.get_or_insert_default().extend(changes);
        let changes = missing_annotations(&it, &set.metadata, 9);
        assert_eq!(changes[REVISION_HISTORY], "3,5");
        assert!(missing_annotations(&it, &set.metadata, 5).is_empty());
        assert_eq!(next_revision([&set]), 6);
    }

    #[test]
    fn history_is_bounded() {
        let mut meta = ObjectMeta::default();
        let long = (0..900).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        meta.annotations = Some(BTreeMap::from([(REVISION_HISTORY.into(), long)]));
        let history = history(&meta, 901);
        assert!(history.len() <= MAX_HISTORY && history.ends_with(",901"));
    }
}
