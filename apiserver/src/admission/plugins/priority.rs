//! A pod's priority is that of its class.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::Value;

use crate::{
    admission::{Admission, Operation},
    error::Result,
};

const GROUP: &str = "scheduling.k8s.io";
/// Classes that are always there.
const SYSTEM: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
/// What a pod without a class does to others.
const PREEMPTS: &str = "PreemptLowerPriority";

struct Class {
    name: String,
    value: i64,
    policy: Option<String>,
}

impl Class {
    fn of(it: &Value) -> Self {
        let policy = it.get("preemptionPolicy").and_then(Value::as_str).map(str::to_owned);
        let value = it.get("value").and_then(Value::as_i64).unwrap_or(0);
        Self { name: object::name(it).to_owned(), value, policy }
    }
}

/// Resolves the class of a new pod; an update keeps what it does not say.
pub(in crate::admission) fn resolve<'a>(
    admission: &'a Admission<'a>,
    pod: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        if let Some(old) = admission.old.filter(|_| admission.operation == Operation::Update) {
            for field in ["priority", "preemptionPolicy"] {
                if let (Some(value), Some(spec)) =
                    (old["spec"].get(field), pod["spec"].as_object_mut())
                {
                    spec.entry(field).or_insert_with(|| value.clone());
                }
            }
            return Ok(());
        }
        let class = class_of(admission, pod).await?;
        let spec = &pod["spec"];
        let computed = "must not be provided in pod spec; priority admission controller computed";
        let asked = spec.get("priority").and_then(Value::as_i64);
        if let Some(asked) = asked.filter(|asked| *asked != class.value) {
            let why = format!(
                "the integer value of priority ({asked}) {computed} {} from the given PriorityClass name",
                class.value
            );
            return Err(admission.forbidden(Some(pod), &why));
        }
        let asked = spec.get("preemptionPolicy").and_then(Value::as_str);
        if let (Some(asked), Some(policy)) = (asked, &class.policy)
            && asked != policy
        {
            let why = format!(
                "the string value of PreemptionPolicy ({asked}) {computed} {policy} from the given PriorityClass name"
            );
            return Err(admission.forbidden(Some(pod), &why));
        }
        let spec = &mut pod["spec"];
        if !class.name.is_empty() {
            spec["priorityClassName"] = class.name.into();
        }
        spec["priority"] = class.value.into();
        if let Some(policy) = class.policy {
            spec["preemptionPolicy"] = policy.into();
        }
        Ok(())
    }
    .boxed()
}

async fn class_of(admission: &Admission<'_>, pod: &Value) -> Result<Class> {
    let name = object::text(pod, &["spec", "priorityClassName"]);
    if name.is_empty() {
        let default = default_class(admission).await?;
        let policy = Some(PREEMPTS.to_owned());
        return Ok(default.unwrap_or_else(|| Class { name: String::new(), value: 0, policy }));
    }
    if let Some((name, value)) = SYSTEM.iter().find(|it| it.0 == name) {
        let policy = Some(PREEMPTS.to_owned());
        return Ok(Class { name: (*name).to_owned(), value: *value, policy });
    }
    let found = admission.class(GROUP, "priorityclasses", name).await?;
    found.as_deref().map(Class::of).ok_or_else(|| {
        let why = format!("no PriorityClass with name {name} was found");
        admission.forbidden(Some(pod), &why)
    })
}

/// The class for pods that name none: of several the lowest.
async fn default_class(admission: &Admission<'_>) -> Result<Option<Class>> {
    let defaults = admission.defaults(GROUP, "priorityclasses", is_default).await?;
    Ok(defaults.iter().map(|it| Class::of(it)).min_by_key(|it| it.value))
}

fn is_default(class: &Value) -> bool {
    class.get("globalDefault") == Some(&Value::Bool(true))
}

/// A tenant has one default class at most.
pub(in crate::admission) fn validate_class<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(it) = it.filter(|it| is_default(it)) else { return Ok(()) };
        let defaults = admission.all(GROUP, "priorityclasses", "").await?;
        let own = defaults.iter().filter(|it| is_default(it) && admission.is_own(it));
        match own.map(|it| Class::of(it)).min_by_key(|it| it.value) {
            Some(other)
                if admission.operation == Operation::Create || other.name != object::name(it) =>
            {
                let why = format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    other.name
                );
                Err(admission.forbidden(Some(it), &why))
            }
            _ => Ok(()),
        }
    }
    .boxed()
}
