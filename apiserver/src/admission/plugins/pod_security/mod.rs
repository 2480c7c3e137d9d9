//! Pod security: what pods may not ask for, by the labels of their namespace, which are the
//! tenant's, and by those of their tenant, which are the platform's (decision 76).

mod checks;
mod policy;

use std::collections::BTreeMap;

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::Value;

use self::{
    checks::{Finding, Pod},
    policy::{Level, Policy, Standard},
};
use super::pods::list;
use crate::{
    admission::{Admission, Operation},
    bootstrap,
    error::{ApiError, Result},
};

/// Most pods that are looked at when a namespace becomes stricter.
const MAX_PODS: usize = 3000;
/// Paths below a pod that do not say what it may do.
const IGNORED: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// Judges pods, templates of pods, and namespaces that say how strict they are.
pub(in crate::admission) fn check<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(it) = it else { return Ok(()) };
        match admission.resource().name.as_str() {
            "namespaces" if admission.subresource.is_empty() => of_namespace(admission, it).await,
            "namespaces" => Ok(()),
            "pods" if IGNORED.contains(&admission.subresource.as_ref()) => Ok(()),
            "pods" => of_pod(admission, it).await,
            _ if admission.subresource.is_empty() => of_template(admission, it).await,
            _ => Ok(()),
        }
    }
    .boxed()
}

/// What of its findings is told: each with what is meant.
fn told(findings: &[Finding]) -> String {
    let each = findings.iter().map(|it| match it.detail.as_str() {
        "" => it.reason.clone(),
        detail => format!("{} ({detail})", it.reason),
    });
    each.collect::<Vec<_>>().join(", ")
}

async fn policy_of(admission: &Admission<'_>) -> Result<Policy> {
    let namespace = admission.namespace_object().await?;
    Ok(policy::read(object::metadata(namespace).get("labels")).0)
}

/// What no pod of the tenant may go beyond.
async fn floor_of(admission: &Admission<'_>) -> Result<Standard> {
    let tenant = admission.tenant()?;
    if tenant.is_system() {
        return Ok(Standard::NONE);
    }
    let found = bootstrap::find_tenant(admission.server, tenant).await?;
    Ok(policy::floor(found.as_deref().and_then(|it| object::metadata(it).get("labels"))))
}

async fn of_pod(admission: &Admission<'_>, it: &Value) -> Result<()> {
    if admission.old.is_some_and(|old| !is_significant(it, old)) {
        return Ok(());
    }
    let (policy, floor) = (policy_of(admission).await?, floor_of(admission).await?);
    if policy.is_privileged() && floor == Standard::NONE {
        return Ok(());
    }
    evaluate(admission, (&policy, floor), &Pod::of(it), Some(it))
}

async fn of_template(admission: &Admission<'_>, it: &Value) -> Result<()> {
    let (policy, floor) = (policy_of(admission).await?, floor_of(admission).await?);
    let is_quiet = |it: Standard| it.level == Level::Privileged;
    if is_quiet(policy.warn) && is_quiet(policy.audit) && is_quiet(floor) {
        return Ok(());
    }
    let path: &[&str] = match admission.resource().name.as_str() {
        "podtemplates" => &["template"],
        "cronjobs" => &["spec", "jobTemplate", "spec", "template"],
        _ => &["spec", "template"],
    };
    match object::at(it, path) {
        Some(template) => evaluate(admission, (&policy, floor), &Pod::of(template), None),
        None => Ok(()),
    }
}

/// Holds a pod against the policy of its namespace and what its tenant keeps to; `enforced` is the
/// pod itself, where it is one. Where not, its template is warned of what its pods will be refused
/// for.
fn evaluate(
    admission: &Admission<'_>,
    (policy, floor): (&Policy, Standard),
    pod: &Pod<'_>,
    enforced: Option<&Value>,
) -> Result<()> {
    let remarks = &admission.call.remarks;
    let audited = checks::run(policy.audit, pod);
    if !audited.is_empty() {
        remarks.annotate("pod-security.kubernetes.io/audit-violations", || {
            format!("would violate PodSecurity \"{}\": {}", policy.audit, told(&audited))
        });
    }
    if let Some(it) = enforced {
        let key = "pod-security.kubernetes.io/enforce-policy";
        remarks.annotate(key, || policy.enforce.to_string());
        for standard in [policy.enforce, floor] {
            let findings = checks::run(standard, pod);
            if !findings.is_empty() {
                let why = format!("violates PodSecurity \"{standard}\": {}", told(&findings));
                return Err(admission.forbidden(Some(it), &why));
            }
        }
    }
    let of_tenant = (enforced.is_none() && floor != policy.warn).then_some(floor);
    for standard in [policy.warn].into_iter().chain(of_tenant) {
        let warned = checks::run(standard, pod);
        if !warned.is_empty() {
            let told = told(&warned);
            remarks.warn(format!("would violate PodSecurity \"{standard}\": {told}"));
        }
    }
    Ok(())
}

/// Whether an update changes what a pod runs.
fn is_significant(new: &Value, old: &Value) -> bool {
    let (new, old) = (&new["spec"], &old["spec"]);
    let image = |it: &Value| object::text(it, &["image"]).to_owned();
    for kind in ["containers", "initContainers"] {
        let mut pairs = list(new, kind).zip(list(old, kind));
        if list(new, kind).len() != list(old, kind).len()
            || pairs.any(|(new, old)| image(new) != image(old))
        {
            return true;
        }
    }
    list(new, "ephemeralContainers").any(|it| {
        let same = list(old, "ephemeralContainers").find(|old| old["name"] == it["name"]);
        same.is_none_or(|old| image(old) != image(it))
    })
}

/// Refuses labels that mean nothing, unless they were there before.
pub(in crate::admission) fn check_labels(admission: &Admission<'_>, it: &Value) -> Result<()> {
    let errors = |it: &Value| policy::read(object::metadata(it).get("labels")).1;
    let found = errors(it);
    let before = admission.old.filter(|_| admission.operation == Operation::Update).map(errors);
    if found.is_empty() || before.as_ref() == Some(&found) {
        return Ok(());
    }
    let resource = admission.resource();
    Err(ApiError::invalid(&resource.group, &resource.kind, object::name(it), &found))
}

async fn of_namespace(admission: &Admission<'_>, it: &Value) -> Result<()> {
    check_labels(admission, it)?;
    let Some(old) = admission.old.filter(|_| admission.operation == Operation::Update) else {
        return Ok(());
    };
    let policy_of = |it: &Value| policy::read(object::metadata(it).get("labels")).0;
    let (policy, before) = (policy_of(it), policy_of(old));
    let (new, old) = (policy.enforce, before.enforce);
    let is_no_stricter = new.version == old.version && new.level <= old.level;
    if new == old || new.level == Level::Privileged || is_no_stricter {
        return Ok(());
    }
    for warning in warnings(admission, object::name(it), new).await? {
        admission.call.remarks.warn(warning);
    }
    Ok(())
}

/// What the pods that are there would violate.
async fn warnings(
    admission: &Admission<'_>,
    namespace: &str,
    standard: Standard,
) -> Result<Vec<String>> {
    let (pods, n_pods) = admission.first("", "pods", namespace, MAX_PODS).await?;
    // By what is wrong: the first pod of it, and how many there are.
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in &pods {
        let findings = checks::run(standard, &Pod::of(pod));
        if findings.is_empty() {
            continue;
        }
        let reasons: Vec<&str> = findings.iter().map(|it| it.reason.as_str()).collect();
        let name = object::name(pod);
        let entry = found.entry(reasons.join(", ")).or_insert_with(|| (name.to_owned(), 0));
        entry.1 += 1;
        if name < entry.0.as_str() {
            name.clone_into(&mut entry.0);
        }
    }
    let mut warnings = Vec::new();
    if MAX_PODS < n_pods {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {MAX_PODS} of {n_pods} existing pods"
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\""
        ));
    }
    let mut each: Vec<String> = found
        .into_iter()
        .map(|(reasons, (name, n_pods))| match n_pods {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            n_pods => format!("{name} (and {} other pods): {reasons}", n_pods - 1),
        })
        .collect();
    each.sort();
    warnings.extend(each);
    Ok(warnings)
}
