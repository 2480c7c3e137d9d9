//! Reviews: objects that get an answer and are not kept.

use insula_api::{internal, names::TenantName, object, schema::Schema};
use serde_json::{Value, json};

use crate::{
    Server,
    call::Call,
    error::{ApiError, FieldError, Result},
    identity::Identity,
    rbac::Attributes,
    tokens::API_AUDIENCE,
};

/// Answers a review: objects that are asked, not kept.
pub(crate) async fn review(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let kind = call.served.resource.gvk();
    let mut it = call.decode(&kind, body)?;
    check(call, &it)?;
    super::admit(server, call, kind, &mut it).await?;
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
            let mut subject = Identity::new(call.tenant()?.clone(), user, &groups);
            subject.groups.retain(|it| groups.contains(&it.as_str()));
            access(server, call, &it["spec"], &subject).await?
        }
        "selfsubjectrulesreviews" => {
            let namespace = object::text(&it, &["spec", "namespace"]);
            server.policy_for(call).await?.review(&call.identity, &call.whose, namespace)
        }
        "selfsubjectreviews" => json!({ "userInfo": user_info(&call.identity) }),
        "tokenreviews" => token_review(server, call, &it).await,
        _ => return Err(ApiError::method_not_allowed()),
    };
    it["status"] = status;
    Ok(it)
}

/// Refuses reviews that ask nothing, or two things at once.
fn check(call: &Call, it: &Value) -> Result<()> {
    let resource = &call.served.resource;
    let (of_resource, of_path) = (
        it["spec"].get("resourceAttributes").filter(|it| it.is_object()),
        it["spec"].get("nonResourceAttributes").filter(|it| it.is_object()),
    );
    let mut errors = Vec::new();
    match &*resource.name {
        "selfsubjectaccessreviews" | "subjectaccessreviews" | "localsubjectaccessreviews" => {
            match (of_resource, of_path) {
                (Some(_), Some(path)) => {
                    let root = Schema::built_in().by_kind(&resource.gvk());
                    let shown = root.map_or_else(
                        || path.to_string(),
                        |root| internal::line(root, "spec.nonResourceAttributes", path),
                    );
                    let why = "cannot be specified in combination with resourceAttributes";
                    let at = "spec.nonResourceAttributes";
                    errors.push(FieldError::invalid_form(at, &shown, why));
                }
                (None, None) => {
                    let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
                    let at = "spec.resourceAttributes";
                    errors.push(FieldError::invalid(at, &Value::Null, why));
                }
                _ => (),
            }
            let asks_for_others = resource.name != "selfsubjectaccessreviews";
            let groups = it["spec"].get("groups").and_then(Value::as_array);
            if asks_for_others
                && object::text(it, &["spec", "user"]).is_empty()
                && groups.is_none_or(Vec::is_empty)
            {
                let why = "at least one of user or group must be specified";
                errors.push(FieldError::invalid("spec.user", &"".into(), why));
            }
        }
        "selfsubjectrulesreviews" if object::text(it, &["spec", "namespace"]).is_empty() => {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        "tokenreviews" if object::text(it, &["spec", "token"]).is_empty() => {
            let why = "token is required for TokenReview in authentication";
            return Err(ApiError::bad_request(why));
        }
        _ => (),
    }
    if resource.name == "localsubjectaccessreviews" {
        let own = object::namespace(it);
        let asked = of_resource.map(|it| object::text(it, &["namespace"])).unwrap_or_default();
        if asked != own {
            let at = "spec.resourceAttributes.namespace";
            errors.push(FieldError::invalid(at, &asked.into(), "must match metadata.namespace"));
        }
        if of_path.is_some() {
            let why = "disallowed on this kind of request";
            errors.push(FieldError::invalid("spec.nonResourceAttributes", &Value::Null, why));
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        // Upstream names no kind here.
        false => Err(ApiError::invalid(&resource.group, "", "", &errors)),
    }
}

/// `UserInfo` of a caller.
pub(crate) fn user_info(identity: &Identity) -> Value {
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

async fn access(server: &Server, call: &Call, spec: &Value, subject: &Identity) -> Result<Value> {
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
    // What a tenant vouches for itself is good there; of all tenants at once nobody is asked.
    let tenant = call.whose.tenant().cloned().unwrap_or_else(TenantName::system);
    match server.authenticate_token(token, &tenant, &audiences).await {
        // A tenant learns nothing of tokens of others.
        Some((identity, of_token))
            if call.whose.tenant() == Some(&identity.tenant)
                || call.identity.tenant.is_system() =>
        {
            // A token for one audience is not good for the others that were asked about.
            let good: Vec<&str> =
                audiences.into_iter().filter(|it| of_token.iter().any(|has| has == it)).collect();
            json!({"authenticated": true, "user": user_info(&identity), "audiences": good})
        }
        _ => json!({"user": {}, "error": "invalid bearer token"}),
    }
}
