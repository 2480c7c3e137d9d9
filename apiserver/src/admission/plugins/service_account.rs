//! Every pod runs as a service account, whose token its containers can read.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use rand::Rng as _;
use serde_json::{Value, json};

use super::pods::{containers, for_each_container, list};
use crate::{
    admission::{Admission, annotation},
    error::Result,
};

/// Where containers find their service account.
const ACCOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Marks pods that a node mirrors from its own disk.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
/// An account that says so is the only source of its pods' secrets.
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
/// How often, and how long, the default account of a new namespace is waited for.
const TRIES: usize = 10;
const AGAIN: Duration = Duration::from_millis(100);

/// Gives a new pod its account and the account's token.
pub(in crate::admission) fn mutate<'a>(
    admission: &'a Admission<'a>,
    pod: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        if annotation(pod, MIRROR).is_some() {
            return Ok(());
        }
        let name = match object::text(pod, &["spec", "serviceAccountName"]) {
            "" => "default",
            name => name,
        }
        .to_owned();
        let account = account_of(admission, pod, &name).await?;
        let spec = &mut pod["spec"];
        spec["serviceAccountName"] = name.as_str().into();
        spec["serviceAccount"] = name.into();
        if list(spec, "imagePullSecrets").next().is_none()
            && let Some(secrets) = account.get("imagePullSecrets")
        {
            spec["imagePullSecrets"] = secrets.clone();
        }
        let automount = spec
            .get("automountServiceAccountToken")
            .or_else(|| account.get("automountServiceAccountToken"))
            .and_then(Value::as_bool);
        if automount.unwrap_or(true) {
            mount_token(pod);
        }
        Ok(())
    }
    .boxed()
}

/// Refuses pods that use what their account does not let them.
pub(in crate::admission) fn validate<'a>(
    admission: &'a Admission<'a>,
    pod: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(pod) = pod else { return Ok(()) };
        let name = object::text(pod, &["spec", "serviceAccountName"]);
        let is_ephemeral = !admission.subresource.is_empty();
        if !is_ephemeral && annotation(pod, MIRROR).is_some() {
            return match mirrored(pod, name) {
                Some(why) => Err(admission.forbidden(Some(pod), why)),
                None => Ok(()),
            };
        }
        if name.is_empty() {
            let (namespace, pod_name) = (&admission.namespace, object::name(pod));
            let why = format!("no service account specified for pod {namespace}/{pod_name}");
            return Err(admission.forbidden(Some(pod), &why));
        }
        let account = account_of(admission, pod, name).await?;
        let is_enforced = annotation(&account, ENFORCE)
            .is_some_and(|it| matches!(it, "true" | "True" | "TRUE" | "t" | "T" | "1"));
        if !is_enforced {
            return Ok(());
        }
        match not_mountable(pod, &account, name, is_ephemeral) {
            Some(why) => Err(admission.forbidden(Some(pod), &why)),
            None => Ok(()),
        }
    }
    .boxed()
}

async fn account_of(admission: &Admission<'_>, pod: &Value, name: &str) -> Result<Arc<Value>> {
    let namespace = admission.namespace.as_str();
    let tries = if name == "default" { TRIES } else { 1 };
    for each in 0..tries {
        if 0 < each {
            // A controller makes it, for every namespace that is new.
            tokio::time::sleep(AGAIN).await;
        }
        if let Some(found) = admission.find("", "serviceaccounts", namespace, name).await? {
            return Ok(found);
        }
    }
    let why = format!(
        "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
    );
    Err(admission.forbidden(Some(pod), &why))
}

fn mount_token(pod: &mut Value) {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const PREFIX: &str = "kube-api-access-";
    let known = list(&pod["spec"], "volumes")
        .map(|it| object::text(it, &["name"]))
        .find(|it| it.starts_with(PREFIX))
        .map(str::to_owned);
    let is_there = known.is_some();
    let volume = known.unwrap_or_else(|| {
        let mut rng = rand::rng();
        let letters = (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
        PREFIX.chars().chain(letters).collect()
    });
    let mut is_mounted = false;
    for_each_container(pod, &["initContainers", "containers"], |it| {
        let mounts = it.entry("volumeMounts").or_insert_with(|| json!([]));
        let Some(mounts) = mounts.as_array_mut() else { return };
        // A container that mounts something there itself keeps it.
        if mounts.iter().all(|it| it["mountPath"] != ACCOUNT_PATH) {
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": ACCOUNT_PATH}));
            is_mounted = true;
        }
    });
    if is_there || !is_mounted {
        return;
    }
    let Some(fields) = pod["spec"].as_object_mut() else { return };
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

/// What is wrong with a mirror pod: it may use nothing of the API's.
fn mirrored(pod: &Value, account: &str) -> Option<&'static str> {
    if !account.is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    let spec = &pod["spec"];
    let of_volumes = list(spec, "volumes").any(|it| it.get("secret").is_some());
    let of_pulls = list(spec, "imagePullSecrets").next().is_some();
    let of_containers = containers(spec).any(|(_, it)| secrets_of(it).next().is_some());
    let projections = || {
        list(spec, "volumes")
            .flat_map(|it| it.get("projected").into_iter())
            .flat_map(|it| list(it, "sources"))
    };
    let of_projections = projections().any(|it| it.get("secret").is_some());
    if of_volumes || of_pulls || of_containers || of_projections {
        return Some("a mirror pod may not reference secrets");
    }
    if projections().any(|it| it.get("serviceAccountToken").is_some()) {
        return Some("a mirror pod may not use ServiceAccountToken volume projections");
    }
    None
}

/// The secrets of a container's environment, and how each is used.
fn secrets_of(container: &Value) -> impl Iterator<Item = (String, &str)> {
    let of_env = list(container, "env").filter_map(|it| {
        let name = it.get("valueFrom")?.get("secretKeyRef")?.get("name")?.as_str()?;
        Some((format!("envVar {} referencing", object::text(it, &["name"])), name))
    });
    let of_sources = list(container, "envFrom").filter_map(|it| {
        Some(("envFrom referencing".to_owned(), it.get("secretRef")?.get("name")?.as_str()?))
    });
    of_env.chain(of_sources)
}

/// The first secret of a pod that its account does not have.
fn not_mountable(pod: &Value, account: &Value, name: &str, ephemeral: bool) -> Option<String> {
    let names = |it: &Value, field: &str| -> BTreeSet<String> {
        list(it, field).map(|it| object::text(it, &["name"]).to_owned()).collect()
    };
    let secrets = names(account, "secrets");
    let spec = &pod["spec"];
    let told = |what: String, secret: &str| {
        format!(
            "{what} with secret.secretName=\"{secret}\" is not allowed because service account {name} does not reference that secret"
        )
    };
    if !ephemeral {
        for it in list(spec, "volumes") {
            let secret = object::text(it, &["secret", "secretName"]);
            if it.get("secret").is_some() && !secrets.contains(secret) {
                return Some(told("volume".into(), secret));
            }
        }
    }
    for (kind, it) in containers(spec) {
        if (kind == "ephemeralContainers") != ephemeral {
            continue;
        }
        let kind = match kind {
            "initContainers" => "init container",
            "ephemeralContainers" => "ephemeral container",
            _ => "container",
        };
        for (how, secret) in secrets_of(it) {
            if !secrets.contains(secret) {
                let container = object::text(it, &["name"]);
                return Some(format!(
                    "{kind} {container} with {how} secret.secretName=\"{secret}\" is not allowed because service account {name} does not reference that secret"
                ));
            }
        }
    }
    if ephemeral {
        return None;
    }
    let pulls = names(account, "imagePullSecrets");
    list(spec, "imagePullSecrets").enumerate().find_map(|(index, it)| {
        let secret = object::text(it, &["name"]);
        (!pulls.contains(secret)).then(|| format!(
            "imagePullSecrets[{index}].name=\"{secret}\" is not allowed because service account {name} does not reference that imagePullSecret"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_mounted_once() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b",
            "volumeMounts": [{"name": "own", "mountPath": ACCOUNT_PATH}]}]}});
        mount_token(&mut pod);
        let volume = pod["spec"]["volumes"][0]["name"].clone();
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        // A second round, as after a webhook added a container, uses the same volume.
        pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "c"}));
        mount_token(&mut pod);
        assert_eq!(pod["spec"]["containers"][2]["volumeMounts"][0]["name"], volume);
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn accounts_may_name_the_only_secrets() {
        let account = json!({"secrets": [{"name": "s"}], "imagePullSecrets": [{"name": "p"}]});
        let pod = |secret: &str, pull: &str| {
            json!({"spec": {
                "containers": [{"name": "c", "env": [{"name": "E",
                    "valueFrom": {"secretKeyRef": {"name": secret, "key": "k"}}}]}],
                "imagePullSecrets": [{"name": pull}],
            }})
        };
        assert_eq!(not_mountable(&pod("s", "p"), &account, "a", false), None);
        assert_eq!(
            not_mountable(&pod("t", "p"), &account, "a", false).unwrap(),
            "container c with envVar E referencing secret.secretName=\"t\" is not allowed because service account a does not reference that secret"
        );
        assert_eq!(
            not_mountable(&pod("s", "q"), &account, "a", false).unwrap(),
            "imagePullSecrets[0].name=\"q\" is not allowed because service account a does not reference that imagePullSecret"
        );
    }

    #[test]
    fn mirror_pods_use_nothing() {
        assert_eq!(mirrored(&json!({"spec": {}}), ""), None);
        assert!(mirrored(&json!({"spec": {}}), "a").is_some());
        let pod = json!({"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}});
        assert_eq!(mirrored(&pod, ""), Some("a mirror pod may not reference secrets"));
    }
}
