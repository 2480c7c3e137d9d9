//! The versions that the pod template of a StatefulSet or a DaemonSet has had, kept as
//! ControllerRevisions so that `kubectl rollout undo` can go back to them.

use std::{cmp::Reverse, collections::BTreeSet, sync::Arc};

use insula_client::{Client, DeleteOptions, Error, Kind, Patch, Tenanted, chain};
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    controller::ReconcileError,
    objects::{controller_reference, controller_uid, safe_number},
};

/// On revisions, and on the pods that were made of them.
pub(crate) const HASH: &str = "controller-revision-hash";
/// On the revisions of StatefulSets.
pub(crate) const STATEFUL_HASH: &str = "controller.kubernetes.io/hash";

/// The versions of one owner's template, the present one among them.
#[derive(Debug)]
pub(crate) struct Revisions {
    /// By their number, oldest first. Never empty; the present one is the last.
    all: Vec<Arc<Tenanted<ControllerRevision>>>,
    /// How often a name was taken by a version that is not the same.
    pub(crate) n_collisions: i32,
}

impl Revisions {
    pub(crate) fn present(&self) -> &Tenanted<ControllerRevision> {
        // Made with at least one.
        &self.all[self.all.len() - 1]
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Tenanted<ControllerRevision>> {
        self.all.iter().find(|it| it.name() == name).map(|it| &**it)
    }
}

/// The hash that a revision is known by.
pub(crate) fn hash_of<'r>(revision: &'r Tenanted<ControllerRevision>, label: &str) -> &'r str {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(label)).map_or("", String::as_str)
}

/// The template that a revision holds.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// What a revision of a template holds: a strategic patch that puts it back.
fn data_of(template: &PodTemplateSpec) -> Result<Value, Error> {
    let encode = |source| Error::Encode { request: "a ControllerRevision".to_owned(), source };
    let mut template = serde_json::to_value(template).map_err(encode)?;
    if let Some(template) = template.as_object_mut() {
        template.insert("$patch".to_owned(), "replace".into());
    }
    Ok(json!({"spec": {"template": template}}))
}

/// Whether two revisions put the same template back. What was written with other defaults, or by
/// another version, is compared as the template that it is.
fn is_same(one: &ControllerRevision, data: &Value) -> bool {
    let other = ControllerRevision { data: Some(RawExtension(data.clone())), ..Default::default() };
    one.data.as_ref().is_some_and(|it| it.0 == *data)
        || template_of(one).is_some_and(|it| Some(it) == template_of(&other))
}

/// What is known of an owner whose versions are kept.
#[derive(Debug)]
pub(crate) struct Versioned<'a, K> {
    pub(crate) owner: &'a Tenanted<K>,
    pub(crate) template: &'a PodTemplateSpec,
    /// `status.collisionCount`.
    pub(crate) n_collisions: i32,
    /// The label with the hash.
    pub(crate) label: &'static str,
}

impl<K: Kind> Versioned<'_, K> {
    /// Sees that the present template has a revision, and that it is the newest. `known` are the
    /// owner's.
    pub(crate) async fn settle(
        &self,
        client: &Client,
        known: Vec<Arc<Tenanted<ControllerRevision>>>,
    ) -> Result<Revisions, ReconcileError> {
        let mut all = known;
        all.sort_by_key(|it| (it.revision, it.metadata.creation_timestamp.clone()));
        let data = data_of(self.template)?;
        let newest = all.last().map_or(0, |it| it.revision);
        let mut n_collisions = self.n_collisions;
        let at = all.iter().rposition(|it| is_same(it, &data));
        let api = client
            .tenant(&self.owner.tenant)
            .namespaced::<ControllerRevision>(self.owner.namespace());
        let present = match at {
            Some(at) if at + 1 == all.len() => return Ok(Revisions { all, n_collisions }),
            Some(at) => {
                // It came back: it is the newest again.
                let it = all.remove(at);
                let patch = json!({"metadata": {"uid": it.uid()}, "revision": newest + 1});
                api.patch(it.name(), &Patch::Merge(patch)).await?
            }
            None => loop {
                let revision = self.revision(&data, newest + 1, n_collisions);
                let name = revision.metadata.name.clone().unwrap_or_default();
                match api.create(&revision).await {
                    Ok(made) => break made,
                    Err(error) if error.is_already_exists() => {
                        let there = api.get(&name).await?;
                        let is_own = controller_uid(&there.object) == Some(self.owner.uid());
                        if is_own && is_same(&there, &data) {
                            break there;
                        }
                        n_collisions = n_collisions.saturating_add(1);
                    }
                    Err(error) => return Err(error.into()),
                }
            },
        };
        all.push(Arc::new(present));
        Ok(Revisions { all, n_collisions })
    }

    fn revision(&self, data: &Value, number: i64, n_collisions: i32) -> ControllerRevision {
        let hashed = xxh3_64(format!("{data}{n_collisions}").as_bytes());
        let hash = safe_number((hashed & u64::from(u32::MAX)) as u32);
        let meta = self.template.metadata.as_ref();
        let mut labels = meta.and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.insert(self.label.to_owned(), hash.clone());
        // The end of a long name is what differs.
        let base: String = self.owner.name().chars().take(223).collect();
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{base}-{hash}")),
                namespace: Some(self.owner.namespace().to_owned()),
                labels: Some(labels),
                annotations: self.owner.meta().annotations.clone(),
                owner_references: Some(vec![controller_reference(self.owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data.clone())),
            revision: number,
        }
    }

    /// Deletes the oldest of those that are in use nowhere, but for `limit` of them.
    pub(crate) async fn truncate(
        &self,
        client: &Client,
        revisions: &Revisions,
        in_use: &BTreeSet<String>,
        limit: i32,
    ) -> Result<(), Error> {
        let last = revisions.present().name();
        let mut idle: Vec<_> = revisions
            .all
            .iter()
            .filter(|it| it.name() != last && !in_use.contains(it.name()))
            .filter(|it| !in_use.contains(hash_of(it, self.label)))
            .collect();
        idle.sort_by_key(|it| Reverse(it.revision));
        let api = client
            .tenant(&self.owner.tenant)
            .namespaced::<ControllerRevision>(self.owner.namespace());
        for it in idle.into_iter().skip(usize::try_from(limit).unwrap_or_default()) {
            let options = DeleteOptions::default().only_uid(it.uid());
            match api.delete(it.name(), &options).await {
                Ok(_) => (),
                Err(error) if error.is_not_found() || error.is_conflict() => {
                    tracing::debug!(revision = %it.key(), error = chain(&error), "gone already");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
