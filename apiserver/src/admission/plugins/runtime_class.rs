//! A pod's runtime class: it is there, and says what the pod costs and where it can run.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::{object, quantity::Quantity};
use serde_json::{Map, Value};

use super::{pods::list, tolerations};
use crate::{admission::Admission, error::Result};

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

/// The class of a pod, if it names one.
async fn class_of(admission: &Admission<'_>, pod: &Value) -> Result<Option<Arc<Value>>> {
    let Some(name) = pod["spec"].get("runtimeClassName").and_then(Value::as_str) else {
        return Ok(None);
    };
    let found = admission.class("node.k8s.io", "runtimeclasses", name).await?;
    found.map(Some).ok_or_else(|| {
        let why = format!("pod rejected: RuntimeClass {name:?} not found");
        admission.forbidden(Some(pod), &why)
    })
}

/// What the class adds to each pod.
fn overhead(class: &Value) -> Option<&Map<String, Value>> {
    object::at(class, &["overhead", "podFixed"]).and_then(Value::as_object)
}

fn is_same(one: &Map<String, Value>, two: &Map<String, Value>) -> bool {
    let amount = |it: &Value| it.as_str().and_then(|it| Quantity::parse(it).ok());
    one.len() == two.len()
        && one.iter().all(|(name, it)| two.get(name).is_some_and(|two| amount(it) == amount(two)))
}

/// Gives a new pod what its class says.
pub(in crate::admission) fn apply<'a>(
    admission: &'a Admission<'a>,
    pod: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(class) = class_of(admission, pod).await? else { return Ok(()) };
        if let Some(overhead) = overhead(&class).filter(|_| class.get("overhead").is_some()) {
            let own = pod["spec"].get("overhead").and_then(Value::as_object);
            if own.is_some_and(|own| !own.is_empty() && !is_same(own, overhead)) {
                return Err(admission.forbidden(Some(pod), MISMATCH));
            }
            pod["spec"]["overhead"] = Value::Object(overhead.clone());
        }
        let Some(scheduling) = class.get("scheduling").filter(|it| it.is_object()) else {
            return Ok(());
        };
        let wanted = scheduling.get("nodeSelector").and_then(Value::as_object);
        for (key, value) in wanted.into_iter().flatten() {
            let own = pod["spec"].get("nodeSelector").and_then(|it| it.get(key));
            if let Some(own) = own.filter(|own| *own != value) {
                let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
                let why = format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(own)
                );
                return Err(admission.forbidden(Some(pod), &why));
            }
            pod["spec"]["nodeSelector"][key] = value.clone();
        }
        let all: Vec<Value> = list(&pod["spec"], "tolerations")
            .chain(list(scheduling, "tolerations"))
            .cloned()
            .collect();
        if list(scheduling, "tolerations").next().is_some() {
            pod["spec"]["tolerations"] = tolerations::merged(&all).into();
        }
        Ok(())
    }
    .boxed()
}

/// Nobody else decides what a pod costs.
pub(in crate::admission) fn validate<'a>(
    admission: &'a Admission<'a>,
    pod: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(pod) = pod else { return Ok(()) };
        let class = class_of(admission, pod).await?;
        let own = pod["spec"].get("overhead").and_then(Value::as_object);
        let wanted = class.as_deref().filter(|it| it.get("overhead").is_some()).map(overhead);
        match (wanted, own) {
            (Some(wanted), own) => {
                let nothing = Map::new();
                let (wanted, own) = (wanted.unwrap_or(&nothing), own.unwrap_or(&nothing));
                match is_same(wanted, own) {
                    true => Ok(()),
                    false => Err(admission.forbidden(Some(pod), MISMATCH)),
                }
            }
            (None, Some(_)) => {
                let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
                Err(admission.forbidden(Some(pod), why))
            }
            (None, None) => Ok(()),
        }
    }
    .boxed()
}
