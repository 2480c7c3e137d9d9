//! Admission: what the platform adds to objects and forbids, beyond their own validity.
//!
//! The order is upstream's: namespace lifecycle, service account, priority, tolerations.

use insula_api::{names::TenantName, object};
use insula_partition::store::ReadAt;
use rand::Rng as _;
use serde_json::{Value, json};

use crate::{
    Server, bootstrap,
    call::Call,
    custom,
    error::{ApiError, Result},
    rbac, views,
};

/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];
const SYSTEM_PRIORITIES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
/// Where containers find their service account.
const ACCOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Changes `it` as the platform wants. `old` is absent for a create.
pub(crate) async fn mutate(
    server: &Server,
    call: &Call,
    it: &mut Value,
    old: Option<&Value>,
) -> Result<()> {
    let resource = &call.served.resource;
    let creating = old.is_none();
    if creating {
        lifecycle(server, call).await?;
    }
    match (&*resource.group, &*resource.name) {
        ("", "pods") if creating && call.path.subresource.is_empty() => {
            service_account(server, call, it).await?;
            priority(server, call, it).await?;
            tolerations(it);
        }
        ("insula.io", "tenants") if creating => {
            // A name that cannot be is refused by validation, with all else that is wrong.
            if let Ok(name) = TenantName::parse(object::name(it)) {
                bootstrap::place(server, &name, it)?;
            }
        }
        _ => (),
    }
    Ok(())
}

/// Refuses what must not be. `new` is absent for a delete, `old` for a create.
pub(crate) async fn validate(
    server: &Server,
    call: &Call,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<()> {
    let resource = &call.served.resource;
    match (&*resource.group, &*resource.name, new, old) {
        ("", "namespaces", None, Some(old)) if IMMORTAL.contains(&object::name(old)) => {
            // They go with their tenant, and only so.
            let tenant = call.tenant()?;
            if call.identity.tenant.is_system() && !tenant.is_system() {
                let found = bootstrap::find_tenant(server, tenant).await?;
                if found.is_none_or(|it| object::is_deleting(&it)) {
                    return Ok(());
                }
            }
            Err(call.forbidden(object::name(old), "this namespace may not be deleted"))
        }
        ("insula.io", "tenants", None, Some(old)) if object::name(old) == "system" => {
            Err(call.forbidden("system", "the platform's own tenant may not be deleted"))
        }
        ("insula.io", "tenants", Some(new), _) => bootstrap::check_partition(server, new, old),
        ("insula.io", name, new, old) => match views::Kind::of(name) {
            Some(kind) => views::check(server, kind, new, old).await,
            None => Ok(()),
        },
        ("rbac.authorization.k8s.io", _, Some(new), old) => {
            rbac_escalation(server, call, new, old).await
        }
        _ => Ok(()),
    }
}

/// What follows from a create that succeeded.
pub(crate) async fn created(server: &Server, call: &Call, it: &Value) -> Result<()> {
    if call.served.resource.group == "insula.io" && call.served.resource.name == "tenants" {
        bootstrap::created(server, it).await?;
    }
    changed(server, call).await;
    Ok(())
}

/// What follows from a change that succeeded. It is done: what follows may fail or be late.
pub(crate) async fn changed(server: &Server, call: &Call) {
    if custom::holds_definitions(&call.served)
        && let Some(tenant) = call.whose.tenant()
    {
        custom::changed(server, tenant).await;
    }
}

/// Objects are created only in namespaces that exist and are not going.
async fn lifecycle(server: &Server, call: &Call) -> Result<()> {
    let resource = &call.served.resource;
    let tenant = call.tenant()?;
    if !tenant.is_system() {
        bootstrap::check_tenant_lives(server, tenant, &call.identity).await?;
    }
    if !resource.is_namespaced() {
        return Ok(());
    }
    let namespace = call.namespace();
    let Some(served) = server.registry.get("", "v1", "namespaces") else { return Ok(()) };
    let key = crate::registry::key(tenant, "", &namespace);
    let (_, store) = served.place(&server.partitions, tenant, "", &namespace);
    let mut found = store.read(&served.collection, ReadAt::Any).await?.get(&key).cloned();
    if found.is_none() {
        // It may have been made by another server a moment ago.
        found = store.read(&served.collection, ReadAt::Latest).await?.get(&key).cloned();
    }
    let Some(found) = found else {
        return Err(ApiError::not_found("", "namespaces", &namespace));
    };
    let found = object::parse(&found.value).map_err(ApiError::internal)?;
    // Events tell of the end as well.
    if object::is_deleting(&found) && resource.name != "events" {
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut error = call.forbidden(&call.path.name, &why);
        if let Some(details) = &mut error.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
        }
        return Err(error);
    }
    Ok(())
}

/// Every pod runs as a service account, whose token its containers can read.
async fn service_account(server: &Server, call: &Call, pod: &mut Value) -> Result<()> {
    // Pods that a node mirrors from its own disk have none.
    if object::metadata(pod)
        .get("annotations")
        .is_some_and(|it| it.get("kubernetes.io/config.mirror").is_some())
    {
        return Ok(());
    }
    let name = match object::text(pod, &["spec", "serviceAccountName"]) {
        "" => "default",
        name => name,
    }
    .to_owned();
    let tenant = call.tenant()?;
    let namespace = call.namespace();
    let Some(served) = server.registry.get("", "v1", "serviceaccounts") else { return Ok(()) };
    let key = crate::registry::key(tenant, &namespace, &name);
    let (_, store) = served.place(&server.partitions, tenant, &namespace, &name);
    let found = store.read(&served.collection, ReadAt::Latest).await?.get(&key).cloned();
    let Some(found) = found else {
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        );
        return Err(call.forbidden(object::name(pod), &why));
    };
    let account = object::parse(&found.value).map_err(ApiError::internal)?;
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = name.as_str().into();
    spec["serviceAccount"] = name.into();
    if spec.get("imagePullSecrets").is_none()
        && let Some(secrets) = account.get("imagePullSecrets")
    {
        spec["imagePullSecrets"] = secrets.clone();
    }
    let automount = spec
        .get("automountServiceAccountToken")
        .or_else(|| account.get("automountServiceAccountToken"))
        .and_then(Value::as_bool);
    if automount.unwrap_or(true) {
        mount_token(spec);
    }
    Ok(())
}

fn mount_token(spec: &mut Value) {
    let mut rng = rand::rng();
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let suffix: String =
        (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    let volume = format!("kube-api-access-{suffix}");
    let mut mounted = false;
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for it in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let mounts = it.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            // A container that mounts something there itself keeps it.
            if mounts.iter().any(|it| it["mountPath"] == ACCOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": ACCOUNT_PATH}));
            mounted = true;
        }
    }
    if !mounted {
        return;
    }
    let Some(fields) = spec.as_object_mut() else { return };
    let volumes = fields.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

/// A pod's priority is that of its class.
async fn priority(server: &Server, call: &Call, pod: &mut Value) -> Result<()> {
    let class = object::text(pod, &["spec", "priorityClassName"]).to_owned();
    let (value, policy) = if let Some((_, value)) =
        SYSTEM_PRIORITIES.iter().find(|it| it.0 == class)
    {
        (*value, "PreemptLowerPriority".to_owned())
    } else if class.is_empty() {
        (0, "PreemptLowerPriority".to_owned())
    } else {
        let tenant = call.tenant()?;
        let missing = || {
            call.forbidden(
                object::name(pod),
                &format!("no PriorityClass with name {class} was found"),
            )
        };
        let served = server
            .registry
            .get("scheduling.k8s.io", "v1", "priorityclasses")
            .ok_or_else(missing)?;
        let key = crate::registry::key(tenant, "", &class);
        let (_, store) = served.place(&server.partitions, tenant, "", &class);
        let found = store.read(&served.collection, ReadAt::Latest).await?.get(&key).cloned();
        let found = object::parse(&found.ok_or_else(missing)?.value).map_err(ApiError::internal)?;
        let policy = object::text(&found, &["preemptionPolicy"]).to_owned();
        (found["value"].as_i64().unwrap_or(0), policy)
    };
    let asked = pod["spec"].get("priority").and_then(Value::as_i64);
    if asked.is_some_and(|asked| asked != value) {
        let why = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            asked.unwrap_or(0)
        );
        return Err(call.forbidden(object::name(pod), &why));
    }
    pod["spec"]["priority"] = value.into();
    if pod["spec"].get("preemptionPolicy").is_none() {
        pod["spec"]["preemptionPolicy"] = policy.into();
    }
    Ok(())
}

/// Pods stay on a node that is lost for five minutes.
fn tolerations(pod: &mut Value) {
    let list =
        pod["spec"].get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut list = list;
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|it| {
            let of_key = it["key"] == key || object::text(it, &["key"]).is_empty();
            let effect = object::text(it, &["effect"]);
            of_key && (effect.is_empty() || effect == "NoExecute")
        });
        if !tolerated {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
    pod["spec"]["tolerations"] = list.into();
}

/// Nobody can give what they do not have.
async fn rbac_escalation(
    server: &Server,
    call: &Call,
    new: &Value,
    old: Option<&Value>,
) -> Result<()> {
    if call.identity.is_superuser() {
        return Ok(());
    }
    let resource = &*call.served.resource.name;
    let binding = resource.ends_with("bindings");
    let unchanged = old.is_some_and(|old| {
        let same = |field| old.get(field) == new.get(field);
        if binding {
            same("subjects") && same("roleRef")
        } else {
            same("rules") && same("aggregationRule")
        }
    });
    if unchanged {
        return Ok(());
    }
    let verb = if binding { "bind" } else { "escalate" };
    let namespace = call.namespace();
    let wanted: Vec<rbac::Rule> = if binding {
        let kind = object::text(new, &["roleRef", "kind"]);
        let name = object::text(new, &["roleRef", "name"]);
        let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
        if server.allows(call, verb, plural, &namespace, name).await? {
            return Ok(());
        }
        server.role_rules(call.tenant()?, kind, &namespace, name).await?
    } else {
        if server.allows(call, verb, resource, &namespace, object::name(new)).await? {
            return Ok(());
        }
        let rules = new.get("rules").cloned().unwrap_or_else(|| json!([]));
        let aggregates = new.get("aggregationRule").is_some_and(|it| !it.is_null());
        let mut rules: Vec<rbac::Rule> = serde_json::from_value(rules).unwrap_or_default();
        if aggregates {
            // What it will gather later is not known, so only those who have all may make one.
            rules.push(rbac::Rule::everything());
        }
        rules
    };
    let policy = server.policy_for(call).await?;
    let held: Vec<&rbac::Rule> = policy.rules(&call.identity, &namespace).collect();
    if let Some(missing) = rbac::missing(&held, &wanted) {
        let why = format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{missing}",
            call.identity.user, call.identity.groups
        );
        return Err(call.forbidden(object::name(new), &why));
    }
    Ok(())
}
