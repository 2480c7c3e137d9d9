//! An ingress that names no class gets the default one: of several the newest.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::Value;

use super::storage::newest;
use crate::{
    admission::{Admission, annotation},
    error::Result,
};

const CLASS: &str = "kubernetes.io/ingress.class";
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

/// See the module.
pub(in crate::admission) fn default_class<'a>(
    admission: &'a Admission<'a>,
    ingress: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let has_class = ingress["spec"].get("ingressClassName").is_some_and(|it| !it.is_null());
        if has_class || annotation(ingress, CLASS).is_some() {
            return Ok(());
        }
        let classes = admission.all("networking.k8s.io", "ingressclasses", "").await?;
        let all = classes.iter().map(AsRef::as_ref);
        let defaults = all.filter(|it| annotation(it, DEFAULT) == Some("true"));
        if let Some(class) = newest(defaults) {
            ingress["spec"]["ingressClassName"] = object::name(class).into();
        }
        Ok(())
    }
    .boxed()
}
