//! Subresources that are not simply a part of their object: scale, binding, tokens, and the
//! reviews that only get an answer.

use insula_api::{
    object::{self, Stored},
    schema::Gvk,
    selector::LabelSelector,
    time,
};
use insula_partition::store::ReadAt;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    Server,
    call::Call,
    custom::{self, object::Scaled},
    error::{ApiError, Result},
    ownership::Writer,
    patch::{self, Configuration, Patch},
    rbac::Attributes,
    read,
    registry::Served,
    tokens::{API_AUDIENCE, Bound, Claims, Kubernetes, MAX_LIFE, MIN_LIFE},
    write::{self, Changed},
};

/// An object as `autoscaling/v1` Scale.
fn scale_of(served: &Served, it: &Value) -> Result<Value> {
    let scaled = match served.custom().and_then(|it| it.version.scale.as_ref()) {
        Some(scale) => custom::object::read_scale(scale, it)?,
        None => scale_of_built_in(it),
    };
    let metadata = object::metadata(it);
    let mut kept = serde_json::Map::new();
    for field in ["name", "namespace", "tenant", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept.insert(field.into(), value.clone());
        }
    }
    Ok(json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": kept,
        "spec": {"replicas": scaled.replicas},
        "status": {"replicas": scaled.observed, "selector": scaled.selector},
    }))
}

fn scale_of_built_in(it: &Value) -> Scaled {
    let selector = match it["spec"].get("selector") {
        // A replication controller's is a plain map.
        Some(plain) if it["kind"] == "ReplicationController" => {
            let pairs = plain.as_object().into_iter().flatten();
            pairs
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(",")
        }
        Some(selector) => selector_text(selector),
        None => String::new(),
    };
    Scaled {
        replicas: it["spec"].get("replicas").and_then(Value::as_i64).unwrap_or(0),
        observed: it["status"].get("replicas").and_then(Value::as_i64).unwrap_or(0),
        selector,
    }
}

fn selector_text(selector: &Value) -> String {
    let selector: Option<LabelSelector> = serde_json::from_value(selector.clone()).ok();
    selector.and_then(|it| it.compile().ok()).map(|it| it.to_string()).unwrap_or_default()
}

/// Reads the object's scale.
pub(crate) async fn get_scale(server: &Server, call: &Call) -> Result<Value> {
    let name = &call.path.name;
    let (_, store) = call.served.place(&server.partitions, call.tenant()?, &call.namespace(), name);
    let entry = read::get(&call.served, &*store, &call.key(name)?, name, ReadAt::Latest).await?;
    let mut it: Value = serde_json::from_slice(&entry.value).map_err(ApiError::internal)?;
    server.show_value(&call.served, &mut it).await?;
    scale_of(&call.served, &it)
}

/// What a request says about an object's scale.
enum Rescale {
    Whole(Value),
    Patched(Patch),
    Applied(Configuration),
}

/// Writes the object's scale, whole (`put`) or patched.
pub(crate) async fn write_scale(
    server: &Server,
    call: &Call,
    body: &[u8],
    put: bool,
) -> Result<Value> {
    let kind = Gvk::new("autoscaling", "v1", "Scale");
    let writer = Writer::new(call)?;
    let asked = if put {
        Rescale::Whole(call.decode(&kind, body)?.0)
    } else if patch::is_apply(call) {
        Rescale::Applied(Configuration::parse(call, &kind, body)?)
    } else {
        Rescale::Patched(Patch::parse(call, body)?)
    };
    // The object is changed as a whole: replicas are part of its specification.
    let mut of_object = call.clone();
    of_object.path.subresource = String::new();
    let written = write::change(server, &of_object, &writer, Vec::new(), |current| {
        let it = &current.object;
        let scale = match &asked {
            Rescale::Whole(whole) => whole.clone(),
            Rescale::Patched(patch) => {
                let scale = Stored { object: scale_of(&call.served, it)?, managed: String::new() };
                patch.apply(call, &scale)?.0
            }
            Rescale::Applied(configuration) => configuration.value.clone(),
        };
        let replicas = scale["spec"].get("replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            let error = crate::error::FieldError::invalid(
                "spec.replicas",
                &replicas.into(),
                "must be greater than or equal to 0",
            );
            return Err(ApiError::invalid("autoscaling", "Scale", &call.path.name, &[error]));
        }
        let wanted = object::meta_str(&scale, "resourceVersion");
        if !wanted.is_empty() && wanted != object::meta_str(it, "resourceVersion") {
            return Err(call.modified(&call.path.name));
        }
        let retry = !put || wanted.is_empty();
        if let Rescale::Applied(configuration) = &asked {
            let mut config = json!({
                "apiVersion": it["apiVersion"], "kind": it["kind"],
                "metadata": {"name": call.path.name, "uid": object::uid(it)},
            });
            set_replicas(&call.served, &mut config, replicas);
            let applied = writer.applied(current, &config, configuration.force)?;
            return Ok(Changed::new(applied.value, retry).managed_by(applied.managed));
        }
        let mut value = it.clone();
        set_replicas(&call.served, &mut value, replicas);
        Ok(Changed::new(value, retry))
    })
    .await?;
    let it = object::parse(&written.entry.value).map_err(ApiError::internal)?;
    scale_of(&call.served, &it)
}

fn set_replicas(served: &Served, it: &mut Value, replicas: i64) {
    match served.custom().and_then(|it| it.version.scale.as_ref()) {
        Some(scale) => custom::object::set_replicas(scale, it, replicas),
        None => it["spec"]["replicas"] = replicas.into(),
    }
}

/// Binds a pod to a node.
pub(crate) async fn bind(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let (binding, _) = call.decode(&Gvk::new("", "v1", "Binding"), body)?;
    let node = object::text(&binding, &["target", "name"]).to_owned();
    let kind = object::text(&binding, &["target", "kind"]);
    if node.is_empty() || !(kind.is_empty() || kind == "Node") {
        let error = match node.is_empty() {
            true => crate::error::FieldError::required("target.name", ""),
            false => crate::error::FieldError::unsupported("target.kind", &kind.into(), &["Node"]),
        };
        return Err(ApiError::invalid("", "Binding", &call.path.name, &[error]));
    }
    let uid = object::uid(&binding).to_owned();
    let mut of_pod = call.clone();
    // The whole pod changes: specification and status at once, which no client may do.
    of_pod.path.subresource = "binding".into();
    // Being bound makes nobody a manager.
    let writer = Writer::new(call)?.untracked();
    write::change(server, &of_pod, &writer, Vec::new(), |current| {
        let current = &current.object;
        let name = &call.path.name;
        let conflict = |why: String| Err(ApiError::conflict("", "pods/binding", name, &why));
        if !uid.is_empty() && uid != object::uid(current) {
            return conflict(format!("Precondition failed: UID in precondition: {uid}"));
        }
        if object::is_deleting(current) {
            return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        let bound = object::text(current, &["spec", "nodeName"]);
        if !bound.is_empty() {
            return conflict(format!("pod {name} is already assigned to node \"{bound}\""));
        }
        let gates = current["spec"].get("schedulingGates").and_then(Value::as_array);
        if gates.is_some_and(|it| !it.is_empty()) {
            return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        let mut pod = current.clone();
        pod["spec"]["nodeName"] = node.as_str().into();
        if let Some(annotations) =
            object::metadata(&binding).get("annotations").and_then(Value::as_object)
        {
            let have =
                object::metadata_mut(&mut pod).entry("annotations").or_insert_with(|| json!({}));
            for (key, value) in annotations {
                have[key] = value.clone();
            }
        }
        set_condition(&mut pod, "PodScheduled", "True");
        crate::strategy::bump_generation(&mut pod);
        Ok(Changed::new(pod, true))
    })
    .await?;
    Ok(success())
}

fn set_condition(pod: &mut Value, kind: &str, status: &str) {
    let list =
        pod["status"].get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut list: Vec<Value> = list.into_iter().filter(|it| it["type"] != kind).collect();
    list.push(json!({
        "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": time::now(),
    }));
    pod["status"]["conditions"] = list.into();
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// Empties a namespace's own finalizers: PUT of the namespace to `finalize`.
pub(crate) async fn finalize(server: &Server, call: &Call, body: &[u8]) -> Result<write::Written> {
    let (sent, warnings) = call.decode(&Gvk::new("", "v1", "Namespace"), body)?;
    let wanted = object::meta_str(&sent, "resourceVersion").to_owned();
    write::change(server, call, &Writer::new(call)?, warnings, |current| {
        let current = &current.object;
        if !wanted.is_empty() && wanted != object::meta_str(current, "resourceVersion") {
            return Err(call.modified(&call.path.name));
        }
        let mut value = current.clone();
        value["spec"]["finalizers"] =
            sent["spec"].get("finalizers").cloned().unwrap_or_else(|| json!([]));
        Ok(Changed::new(value, wanted.is_empty()))
    })
    .await
}

/// Issues a token for a service account.
pub(crate) async fn token(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let (mut request, _) =
        call.decode(&Gvk::new("authentication.k8s.io", "v1", "TokenRequest"), body)?;
    let tenant = call.tenant()?.clone();
    let (namespace, name) = (call.namespace(), call.path.name.clone());
    let (_, store) = call.served.place(&server.partitions, &tenant, &namespace, &name);
    let account =
        read::get(&call.served, &*store, &call.key(&name)?, &name, ReadAt::Latest).await?;
    let account: Value = serde_json::from_slice(&account.value).map_err(ApiError::internal)?;
    let seconds = request["spec"].get("expirationSeconds").and_then(Value::as_i64).unwrap_or(3600);
    if seconds < MIN_LIFE {
        let error = crate::error::FieldError::invalid(
            "spec.expirationSeconds",
            &seconds.into(),
            "may not specify a duration less than 10 minutes",
        );
        return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
    }
    let seconds = seconds.min(MAX_LIFE);
    let audiences: Vec<String> = request["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it.as_str().map(str::to_owned))
        .collect();
    let audiences = if audiences.is_empty() { vec![API_AUDIENCE.to_owned()] } else { audiences };
    let mut kubernetes = Kubernetes {
        tenant: tenant.clone(),
        namespace: namespace.clone(),
        serviceaccount: Bound { name, uid: object::uid(&account).to_owned() },
        pod: None,
        secret: None,
        node: None,
    };
    if let Some(reference) = request["spec"].get("boundObjectRef").filter(|it| it.is_object()) {
        bind_token(server, call, reference, &mut kubernetes).await?;
    }
    let now = Timestamp::now().as_second();
    let claims = Claims::new(kubernetes, audiences.clone(), now, seconds);
    let token = server.keys.sign(&claims).map_err(ApiError::internal)?;
    let expires = Timestamp::from_second(claims.exp).map_err(ApiError::internal)?;
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    request["status"] = json!({"token": token, "expirationTimestamp": time::seconds(expires)});
    request["metadata"] = json!({
        "name": call.path.name, "namespace": namespace, "tenant": tenant.as_str(),
        "creationTimestamp": time::now(),
    });
    Ok(request)
}

async fn bind_token(
    server: &Server,
    call: &Call,
    reference: &Value,
    to: &mut Kubernetes,
) -> Result<()> {
    let (kind, name) = (object::text(reference, &["kind"]), object::text(reference, &["name"]));
    let resource = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        _ => {
            let error = crate::error::FieldError::unsupported(
                "spec.boundObjectRef.kind",
                &kind.into(),
                &["Pod", "Secret"],
            );
            return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
        }
    };
    let it = server
        .find(call.tenant()?, "", resource, &call.namespace(), name)
        .await?
        .ok_or_else(|| ApiError::not_found("", resource, name))?;
    let uid = object::text(reference, &["uid"]);
    if !uid.is_empty() && uid != object::uid(&it) {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict("", "serviceaccounts/token", &call.path.name, &why));
    }
    let bound = Bound { name: name.to_owned(), uid: object::uid(&it).to_owned() };
    if resource == "secrets" {
        to.secret = Some(bound);
        return Ok(());
    }
    let account = object::text(&it, &["spec", "serviceAccountName"]);
    if account != call.path.name {
        let why = format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            call.path.name
        );
        return Err(ApiError::forbidden("", "serviceaccounts", &call.path.name, &why));
    }
    let node = object::text(&it, &["spec", "nodeName"]);
    if let Some(asking) = call.identity.node()
        && asking != node
    {
        let why = format!("node {asking:?} does not run pod {name:?}");
        return Err(ApiError::forbidden("", "serviceaccounts", &call.path.name, &why));
    }
    if !node.is_empty() {
        to.node = Some(Bound { name: node.to_owned(), uid: String::new() });
    }
    to.pod = Some(bound);
    Ok(())
}

/// Answers a review: objects that are asked, not kept.
pub(crate) async fn review(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let (mut it, _) = call.decode(&call.served.resource.gvk(), body)?;
    let status = match &*call.served.resource.name {
        "selfsubjectaccessreviews" => {
            access(server, call, &it["spec"], &call.identity.clone()).await?
        }
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let groups: Vec<&str> = it["spec"]["groups"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let user = object::text(&it, &["spec", "user"]);
            // The subject is one of the tenant that is asked: a review never speaks of others.
            let mut subject = crate::identity::Identity::new(call.tenant()?.clone(), user, &groups);
            subject.groups.retain(|it| groups.contains(&it.as_str()));
            access(server, call, &it["spec"], &subject).await?
        }
        "selfsubjectrulesreviews" => {
            let namespace = object::text(&it, &["spec", "namespace"]);
            server.policy_for(call).await?.review(&call.identity, namespace)
        }
        "selfsubjectreviews" => json!({ "userInfo": user_info(&call.identity) }),
        "tokenreviews" => token_review(server, call, &it).await,
        _ => return Err(ApiError::method_not_allowed()),
    };
    it["status"] = status;
    Ok(it)
}

fn user_info(identity: &crate::identity::Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = identity.uid.as_str().into();
    }
    let mut extra = serde_json::Map::new();
    for (key, values) in &identity.extra {
        extra.insert(key.clone(), json!(values));
    }
    extra.insert("insula.io/tenant".into(), json!([identity.tenant.as_str()]));
    info["extra"] = extra.into();
    info
}

async fn access(
    server: &Server,
    call: &Call,
    spec: &Value,
    subject: &crate::identity::Identity,
) -> Result<Value> {
    let text = |path: &[&str]| object::text(spec, path).to_owned();
    let attributes = match spec.get("nonResourceAttributes").filter(|it| it.is_object()) {
        Some(_) => Attributes {
            verb: text(&["nonResourceAttributes", "verb"]),
            path: text(&["nonResourceAttributes", "path"]),
            ..Attributes::default()
        },
        None => Attributes {
            verb: text(&["resourceAttributes", "verb"]),
            group: text(&["resourceAttributes", "group"]),
            resource: text(&["resourceAttributes", "resource"]),
            subresource: text(&["resourceAttributes", "subresource"]),
            namespace: text(&["resourceAttributes", "namespace"]),
            name: text(&["resourceAttributes", "name"]),
            path: String::new(),
        },
    };
    let allowed = server.may(subject, &call.whose, &attributes).await?;
    Ok(json!({ "allowed": allowed }))
}

async fn token_review(server: &Server, call: &Call, it: &Value) -> Value {
    let token = object::text(it, &["spec", "token"]);
    let asked: Vec<&str> = it["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let audiences = if asked.is_empty() { vec![API_AUDIENCE] } else { asked };
    match server.authenticate_token(token, &audiences).await {
        // A tenant learns nothing of tokens of others.
        Some(identity)
            if call.whose.tenant() == Some(&identity.tenant)
                || call.identity.tenant.is_system() =>
        {
            json!({"authenticated": true, "user": user_info(&identity), "audiences": audiences})
        }
        _ => json!({"authenticated": false, "user": {}, "error": "invalid bearer token"}),
    }
}
