//! `token`: service accounts prove who they are by tokens that are made here.

use insula_api::{object, schema::Gvk, time};
use insula_partition::store::ReadAt;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    Server,
    call::Call,
    error::{ApiError, FieldError, Result},
    read,
    tokens::{API_AUDIENCE, Bound, Claims, Kubernetes, MAX_LIFE, MIN_LIFE},
};

/// Nobody means more than this, in seconds.
const LONGEST: i64 = 1 << 32;

/// Issues a token for a service account.
pub(crate) async fn token(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let kind = Gvk::new("authentication.k8s.io", "v1", "TokenRequest");
    let mut request = call.decode(&kind, body)?;
    super::admit(server, call, kind, &mut request).await?;
    let tenant = call.tenant()?.clone();
    let (namespace, name) = (call.namespace(), call.path.name.clone());
    let (_, store) = call.served.place(&server.partitions, &tenant, &namespace, &name);
    let account =
        read::get(&call.served, &*store, &call.key(&name)?, &name, ReadAt::Latest).await?;
    let account: Value =
        serde_json::from_slice(&account.value.bytes()).map_err(ApiError::internal)?;
    let seconds = request["spec"].get("expirationSeconds").and_then(Value::as_i64).unwrap_or(3600);
    if seconds < MIN_LIFE {
        let error = FieldError::invalid(
            "spec.expirationSeconds",
            &seconds.into(),
            "may not specify a duration less than 10 minutes",
        );
        return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
    }
    if LONGEST < seconds {
        let why = "may not specify a duration larger than 2^32 seconds";
        let error = FieldError::invalid("spec.expirationSeconds", &seconds.into(), why);
        return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
    }
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
    let mut ends_otherwise = false;
    if let Some(reference) = request["spec"].get("boundObjectRef").filter(|it| it.is_object()) {
        ends_otherwise = bind_token(server, call, reference, &mut kubernetes).await?;
    }
    let seconds = if ends_otherwise { seconds } else { seconds.min(MAX_LIFE) };
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

/// Binds a token to an object. Returns whether that is a secret made to hold it: then it is there
/// for whoever wants to end it, and the token may be good for longer than others.
async fn bind_token(
    server: &Server,
    call: &Call,
    reference: &Value,
    to: &mut Kubernetes,
) -> Result<bool> {
    let (kind, name) = (object::text(reference, &["kind"]), object::text(reference, &["name"]));
    let resource = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        _ => {
            let api_version = object::text(reference, &["apiVersion"]);
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
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
        return Ok(object::text(&it, &["type"]) == "kubernetes.io/service-account-token");
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
    Ok(false)
}
