//! Storage: what is in use stays, claims get a class, and grow only where that can be done.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::{object, quantity::Quantity};
use serde_json::{Value, json};

use crate::{
    admission::{Admission, annotation},
    error::Result,
};

const GROUP: &str = "storage.k8s.io";
/// The class of a claim, and which class is the default one, as they were written before there
/// were fields.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULTS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// A volume, a claim or a volume attributes class stays while it is used.
pub(in crate::admission) fn protect(admission: &Admission<'_>, it: &mut Value) -> Result<()> {
    let finalizer = match admission.resource().name.as_str() {
        "persistentvolumes" => "kubernetes.io/pv-protection",
        "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
        _ => "kubernetes.io/vac-protection",
    };
    if !object::finalizers(it).contains(&finalizer) {
        let metadata = object::metadata_mut(it);
        let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(finalizer.into());
        }
    }
    Ok(())
}

/// A claim that names no class gets the default one: of several the newest.
pub(in crate::admission) fn default_class<'a>(
    admission: &'a Admission<'a>,
    claim: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let has_class = claim["spec"].get("storageClassName").is_some_and(|it| !it.is_null());
        if has_class || annotation(claim, CLASS).is_some() {
            return Ok(());
        }
        let is_default =
            |it: &Value| DEFAULTS.iter().any(|key| annotation(it, key) == Some("true"));
        let defaults = admission.defaults(GROUP, "storageclasses", is_default).await?;
        if let Some(class) = newest(defaults.iter().map(Arc::as_ref)) {
            claim["spec"]["storageClassName"] = object::name(class).into();
        }
        Ok(())
    }
    .boxed()
}

/// The one that was created last; of several at the same time the first by name.
pub(super) fn newest<'a>(list: impl Iterator<Item = &'a Value>) -> Option<&'a Value> {
    list.min_by(|one, two| {
        let created = |it| object::meta_str(it, "creationTimestamp").to_owned();
        created(two).cmp(&created(one)).then_with(|| object::name(one).cmp(object::name(two)))
    })
}

/// A claim grows only if its class says that its volumes can.
pub(in crate::admission) fn resize<'a>(
    admission: &'a Admission<'a>,
    claim: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let (Some(claim), Some(old)) = (claim, admission.old) else { return Ok(()) };
        let size = |it: &Value| {
            let text = object::text(it, &["spec", "resources", "requests", "storage"]);
            Quantity::parse(text).unwrap_or(Quantity::ZERO)
        };
        if size(claim) <= size(old) {
            return Ok(());
        }
        if object::text(old, &["status", "phase"]) != "Bound" {
            let why = "Only bound persistent volume claims can be expanded";
            return Err(admission.forbidden(Some(claim), why));
        }
        let class_of = |it: &Value| match annotation(it, CLASS) {
            Some(class) => class.to_owned(),
            None => object::text(it, &["spec", "storageClassName"]).to_owned(),
        };
        let (class, was) = (class_of(claim), class_of(old));
        let mut grows = !class.is_empty() && class == was;
        if grows {
            let found = admission.class(GROUP, "storageclasses", &class).await?;
            grows = found.is_some_and(|it| it.get("allowVolumeExpansion") == Some(&true.into()));
        }
        if grows {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        Err(admission.forbidden(Some(claim), why))
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_default() {
        let class =
            |name: &str, at: &str| json!({"metadata": {"name": name, "creationTimestamp": at}});
        let list = [
            class("old", "2026-01-01T00:00:00Z"),
            class("b", "2026-02-01T00:00:00Z"),
            class("a", "2026-02-01T00:00:00Z"),
        ];
        assert_eq!(newest(list.iter()).map(object::name), Some("a"));
        assert_eq!(newest([].iter()), None);
    }
}
