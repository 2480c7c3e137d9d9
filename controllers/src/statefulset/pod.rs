//! The pods of a StatefulSet: their names, labels and claims.

use insula_client::Tenanted;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{
        PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
    },
};

use crate::{objects::controller_reference, pod_control::pod_from, revisions::HASH};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal of a pod, by its name.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let is_written_so =
        digits.bytes().all(|it| it.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| is_written_so)
}

pub(super) fn pod_name(set: &str, ordinal: i32) -> String {
    format!("{set}-{ordinal}")
}

/// The revision that a pod was made of.
pub(super) fn revision_of(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(HASH)).map_or("", String::as_str)
}

/// A new pod of `set`, made of `template`, which is its revision `revision`.
pub(super) fn pod_of(
    set: &Tenanted<StatefulSet>,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let name = pod_name(set.name(), ordinal);
    // As upstream, though the name is not drawn.
    let mut pod = pod_from(set, template, &format!("{}-", set.name()));
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(HASH.to_owned(), revision.to_owned());
    let own = set.spec.as_ref();
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = own.and_then(|own| own.service_name.clone());
    let claims = own.and_then(|own| own.volume_claim_templates.as_ref());
    for claim in claims.into_iter().flatten() {
        let volume = claim.metadata.name.clone().unwrap_or_default();
        let volumes = spec.volumes.get_or_insert_default();
        volumes.retain(|it| it.name != volume);
        volumes.push(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(&volume, &name),
                read_only: None,
            }),
            name: volume,
            ..Volume::default()
        });
    }
    pod
}

fn claim_name(volume: &str, pod: &str) -> String {
    format!("{volume}-{pod}")
}

/// The names of the claims of the pod with `ordinal`.
pub(super) fn claim_names(
    set: &Tenanted<StatefulSet>,
    ordinal: i32,
) -> impl Iterator<Item = String> {
    let templates = set.spec.iter().flat_map(|it| it.volume_claim_templates.iter().flatten());
    templates.map(move |template| {
        let volume = template.metadata.name.as_deref().unwrap_or_default();
        claim_name(volume, &pod_name(set.name(), ordinal))
    })
}

/// The claims of the pod with `ordinal`, whether they are there or not.
pub(super) fn claims_of(set: &Tenanted<StatefulSet>, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let Some(spec) = &set.spec else { return Vec::new() };
    let pod = pod_name(set.name(), ordinal);
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        let volume = claim.metadata.name.take().unwrap_or_default();
        claim.metadata.name = Some(claim_name(&volume, &pod));
        claim.metadata.namespace = Some(set.namespace().to_owned());
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        if retention(set).0 {
            claim.metadata.owner_references = Some(vec![controller_reference(set)]);
        }
        claim.status = None;
        claim
    };
    spec.volume_claim_templates.iter().flatten().map(claim).collect()
}

/// Whether claims go with the set, and with a pod that is scaled away.
pub(super) fn retention(set: &StatefulSet) -> (bool, bool) {
    let policy =
        set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |it: &Option<String>| it.as_deref() == Some("Delete");
    policy.map_or((false, false), |it| (deletes(&it.when_deleted), deletes(&it.when_scaled)))
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_names_as_they_are_given_have_an_ordinal() {
        for (name, expected) in [
            ("web-0", Some(0)),
            ("web-17", Some(17)),
            ("web-01", None),
            ("web-", None),
            ("web-+1", None),
            ("web-a-1", None),
            ("other-1", None),
            ("web-99999999999", None),
        ] {
            assert_eq!(ordinal("web", name), expected, "{name}");
        }
    }

    #[test]
    fn a_pod_knows_who_it_is() {
        let set = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {
                "serviceName": "all", "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [], "volumes": [{"name": "data", "emptyDir": {}}]},
                },
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"},
            },
        });
        let tenant = TenantName::parse("acme").unwrap();
        let object: StatefulSet = serde_json::from_value(set).unwrap();
        let set = Tenanted { tenant, object };
        let template = set.spec.as_ref().unwrap().template.clone();
        let made = serde_json::to_value(pod_of(&set, &template, "web-abc", 3)).unwrap();
        assert_eq!(
            made["metadata"]["labels"],
            json!({
                "app": "web", "apps.kubernetes.io/pod-index": "3",
                "controller-revision-hash": "web-abc",
                "statefulset.kubernetes.io/pod-name": "web-3",
            })
        );
        assert_eq!(
            (&made["spec"]["hostname"], &made["spec"]["subdomain"]),
            (&json!("web-3"), &json!("all"))
        );
        assert_eq!(
            made["spec"]["volumes"],
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-3"}}])
        );
        let claims = serde_json::to_value(claims_of(&set, 3)).unwrap();
        assert_eq!(claims[0]["metadata"]["name"], "data-web-3");
        assert_eq!(claims[0]["metadata"]["labels"], json!({"app": "web"}));
        assert_eq!(claims[0]["metadata"]["ownerReferences"][0]["uid"], "u");
    }
}
