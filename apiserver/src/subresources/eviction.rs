//! `eviction`: deleting a pod, if the budgets of those it belongs to allow it.

use std::collections::BTreeMap;

use insula_api::{object, schema::Gvk, selector::LabelSelector, time};
use insula_partition::store::ReadAt;
use serde_json::{Value, json};

use super::conditions;
use crate::{
    Server,
    call::Call,
    delete,
    error::{ApiError, FieldError, Result},
    ownership::Writer,
    registry,
    write::{self, Changed},
};

/// Most evictions that a budget remembers until its controller has seen them.
const MAX_REMEMBERED: usize = 2000;
/// How often an eviction is tried again when the pod changes meanwhile.
const RETRIES: usize = 5;
const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Evicts the pod of the path.
pub(crate) async fn evict(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let kind = Gvk::new("policy", "v1", "Eviction");
    // The first version of it says the same.
    let first = Gvk::new("policy", "v1beta1", "Eviction");
    let mut eviction = call.decode_either(&kind, Some(&first), body)?;
    super::admit(server, call, kind, &mut eviction).await?;
    let name = &call.path.name;
    if object::name(&eviction) != name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let wanted = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
    if wanted["ignoreStoreReadErrorWithClusterBreakingPotential"] == true {
        let why = "can not be set for pod eviction, try after removing the option";
        let field = "deleteOptions.ignoreStoreReadErrorWithClusterBreakingPotential";
        let error = FieldError::invalid(field, &true.into(), why);
        return Err(ApiError::invalid("policy", "Eviction", name, &[error]));
    }
    let dry_run = call.query.dry_run()?;
    for _ in 0..RETRIES {
        let pod = server
            .find(call.tenant()?, "", "pods", &call.namespace(), name)
            .await?
            .ok_or_else(|| call.not_found(name))?;
        let mut options = delete::Options::from_value(&wanted, dry_run)?;
        let guard = match is_past_budgets(&pod) {
            true => match is_over(&pod) {
                true => Guard::None,
                false => Guard::Revision,
            },
            false => take_from_budget(server, call, &pod, options.is_dry_run()).await?,
        };
        let is_guarded = guard != Guard::None && !options.has_revision();
        if is_guarded {
            options.only_at(object::meta_str(&pod, "resourceVersion"));
        }
        match remove(server, call, &options).await {
            Err(error) if error.reason == "Conflict" && is_guarded => match guard {
                Guard::Budget(budget) => return Err(still_processed(&budget)),
                _ => continue,
            },
            result => return result.map(|()| super::success()),
        }
    }
    Err(call.modified(name))
}

/// What an eviction relies on.
#[derive(Debug, PartialEq, Eq)]
enum Guard {
    /// Nothing that could change.
    None,
    /// The pod as it is.
    Revision,
    /// The pod as it is, by what this budget says.
    Budget(String),
}

/// Pods that have ended, are ending, or have not begun disrupt nobody.
fn is_past_budgets(pod: &Value) -> bool {
    is_over(pod) || object::text(pod, &["status", "phase"]) == "Pending"
}

fn is_over(pod: &Value) -> bool {
    object::is_deleting(pod)
        || matches!(object::text(pod, &["status", "phase"]), "Succeeded" | "Failed")
}

/// Takes one disruption from the budget that guards the pod, if there is one and it has any.
async fn take_from_budget(
    server: &Server,
    call: &Call,
    pod: &Value,
    dry_run: bool,
) -> Result<Guard> {
    let budgets = budgets_of(server, call, pod).await?;
    let budget = match budgets.as_slice() {
        [] => return Ok(Guard::None),
        [one] => one,
        _ => {
            let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(ApiError::untyped(why));
        }
    };
    let name = object::name(budget);
    if !is_ready(pod) {
        let count = |field: &str| budget["status"].get(field).and_then(Value::as_i64).unwrap_or(0);
        let enough =
            0 < count("desiredHealthy") && count("desiredHealthy") <= count("currentHealthy");
        let always = object::text(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
        if always || enough {
            // It does not count, as long as it stays so.
            return Ok(Guard::Budget(name.to_owned()));
        }
    }
    if dry_run {
        allows(budget)?;
        return Ok(Guard::None);
    }
    let of_budget = call.about(server, "policy", "poddisruptionbudgets", name, "status")?;
    let writer = Writer::new(&of_budget)?;
    write::change(server, &of_budget, &writer, |current, _| {
        allows(&current.object)?;
        let mut budget = current.object.clone();
        let left = allowed(&budget) - 1;
        budget["status"]["disruptionsAllowed"] = left.into();
        budget["status"]["disruptedPods"][object::name(pod)] = time::now().into();
        if left == 0 {
            let observed = budget["status"].get("observedGeneration").cloned();
            let mut condition = json!({
                "type": "DisruptionAllowed", "status": "False",
                "reason": "InsufficientPods", "message": "",
            });
            condition["observedGeneration"] = observed.unwrap_or_default();
            conditions::set(&mut budget, condition);
        }
        Ok(Ok(Changed::new(budget, true)))
    })
    .await?;
    Ok(Guard::None)
}

fn allowed(budget: &Value) -> i64 {
    budget["status"].get("disruptionsAllowed").and_then(Value::as_i64).unwrap_or(0)
}

/// Whether a budget has a disruption left.
fn allows(budget: &Value) -> Result<()> {
    let name = object::name(budget);
    let count = |field: &str| budget["status"].get(field).and_then(Value::as_i64).unwrap_or(0);
    let generation = object::metadata(budget).get("generation").and_then(Value::as_i64);
    if count("observedGeneration") < generation.unwrap_or(0) {
        return Err(still_processed(name));
    }
    let forbidden =
        |why: &str| Err(ApiError::forbidden("policy", "poddisruptionbudget", name, why));
    if allowed(budget) < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let remembered = budget["status"].get("disruptedPods").and_then(Value::as_object);
    if remembered.is_some_and(|it| MAX_REMEMBERED < it.len()) {
        return forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if allowed(budget) != 0 {
        return Ok(());
    }
    let conditions = budget["status"].get("conditions").and_then(Value::as_array);
    let refusal = conditions.into_iter().flatten().find(|it| it["type"] == "DisruptionAllowed");
    let refusal = refusal.filter(|it| it["status"] == "False" && !text(it, "message").is_empty());
    let (healthy, desired) = (count("currentHealthy"), count("desiredHealthy"));
    let why = match refusal {
        Some(it) if text(it, "reason") == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            text(it, "message")
        ),
        _ if healthy <= desired => format!(
            "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
        ),
        Some(it) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            text(it, "reason"),
            text(it, "message")
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    };
    Err(refused(why, None))
}

fn text<'a>(it: &'a Value, field: &str) -> &'a str {
    object::text(it, &[field])
}

fn still_processed(budget: &str) -> ApiError {
    let why = format!("The disruption budget {budget} is still being processed by the server.");
    refused(why, Some(10))
}

fn refused(why: String, retry_after: Option<u32>) -> ApiError {
    let mut error = ApiError::too_many_requests(VIOLATES, 0);
    error.retry_after = retry_after;
    error.details = Some(json!({"causes": [{"reason": "DisruptionBudget", "message": why}]}));
    error
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"].get("conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

/// The budgets whose selectors match the pod.
async fn budgets_of(server: &Server, call: &Call, pod: &Value) -> Result<Vec<Value>> {
    let served = server.registry.any_version("policy", "poddisruptionbudgets");
    let served = served.ok_or_else(|| ApiError::internal("budgets are not served"))?;
    let (tenant, namespace) = (call.tenant()?, call.namespace());
    let (_, store) = served.place(&server.partitions, tenant, &namespace, "");
    let snapshot = store.read(&served.collection, ReadAt::Latest).await?;
    let prefix = registry::prefix(&call.whose, &namespace);
    let labels: BTreeMap<String, String> = object::metadata(pod)
        .get("labels")
        .and_then(|it| serde_json::from_value(it.clone()).ok())
        .unwrap_or_default();
    let mut found = Vec::new();
    for (_, entry) in snapshot.range(&prefix, None) {
        let it = object::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        // None selects none, and one that cannot be read matches nothing.
        let selector = it["spec"].get("selector").cloned();
        let selector = selector.and_then(|it| serde_json::from_value::<LabelSelector>(it).ok());
        let selector = selector.and_then(|it| it.compile().ok());
        if selector.is_some_and(|it| it.matches(&labels)) {
            found.push(it);
        }
    }
    Ok(found)
}

/// Marks the pod as disrupted, and deletes it.
async fn remove(server: &Server, call: &Call, options: &delete::Options) -> Result<()> {
    let of_pod = call.about(server, "", "pods", &call.path.name, "")?;
    let mut options = options.clone();
    if !options.is_dry_run() {
        // The whole pod is at hand, and only its status changes.
        let of_status = call.about(server, "", "pods", &call.path.name, "status")?;
        let writer = Writer::new(&of_status)?;
        let written = write::change(server, &of_status, &writer, |current, _| {
            options.check(call, &current.object)?;
            let mut pod = current.object.clone();
            conditions::set_of_pod(
                &mut pod,
                json!({
                    "type": "DisruptionTarget", "status": "True",
                    "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
                }),
            );
            Ok(Ok(Changed::new(pod, true)))
        })
        .await?;
        if options.has_revision() {
            let it = object::parse(&written.entry.value.bytes()).map_err(ApiError::internal)?;
            options.only_at(object::meta_str(&it, "resourceVersion"));
        }
    }
    delete::delete(server, &of_pod, &options).await.map(|_| ())
}
