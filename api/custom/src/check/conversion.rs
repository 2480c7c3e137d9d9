//! How a definition may have its versions converted.

use insula_api::field::FieldError;
use serde_json::{Map, Value, json};

use super::{Errors, Fields, text};
use crate::{names::label_error, path::Path};

pub(super) fn conversion(spec: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let Some(conversion) = spec.get("conversion").and_then(Value::as_object) else { return };
    let path = path.field("conversion");
    let webhook = conversion.get("webhook").and_then(Value::as_object);
    let of_config = path.field("webhookClientConfig");
    match text(conversion, "strategy") {
        "" => errors.push(FieldError::required(path.field("strategy").to_string(), "")),
        "None" => {
            let why = "should not be set when strategy is not set to Webhook";
            let is_set = |name: &str| webhook.is_some_and(|it| it.contains_key(name));
            if is_set("clientConfig") {
                errors.push(FieldError::forbidden(of_config.to_string(), why));
            }
            if is_set("conversionReviewVersions") {
                let field = path.field("conversionReviewVersions").to_string();
                errors.push(FieldError::forbidden(field, why));
            }
        }
        "Webhook" => {
            let config = webhook.and_then(|it| it.get("clientConfig")).and_then(Value::as_object);
            match config {
                None => {
                    let why = "required when strategy is set to Webhook";
                    errors.push(FieldError::required(of_config.to_string(), why));
                }
                Some(config) => client_config(config, &of_config, errors),
            }
            let empty = Map::new();
            review_versions(webhook.unwrap_or(&empty), &path, errors);
        }
        other => {
            let field = path.field("strategy").to_string();
            errors.push(FieldError::unsupported(field, &other.into(), &["None", "Webhook"]));
        }
    }
}

/// Where a webhook is reached: by one URL, or by one service.
fn client_config(config: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let url = config.get("url").and_then(Value::as_str);
    let service = config.get("service").and_then(Value::as_object);
    match (url, service) {
        (Some(url), None) => {
            let field = path.field("url").to_string();
            // Each part is shown for itself.
            let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
            let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
            let (scheme, rest) = rest.split_once("://").unwrap_or(("", ""));
            let authority = rest.split('/').next().unwrap_or_default();
            let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
            for (is_wrong, part, why) in [
                (
                    scheme != "https",
                    scheme,
                    "'https' is the only allowed URL scheme; desired format: https://host[/path]",
                ),
                (
                    host.is_empty(),
                    host,
                    "host must be specified; desired format: https://host[/path]",
                ),
                (!user.is_empty(), user, "user information is not permitted in the URL"),
                (!fragment.is_empty(), fragment, "fragments are not permitted in the URL"),
                (!query.is_empty(), query, "query parameters are not permitted in the URL"),
            ] {
                if is_wrong {
                    errors.push(FieldError::invalid(field.as_str(), &part.into(), why));
                }
            }
        }
        (None, Some(service)) => {
            let path = path.field("service");
            for name in ["name", "namespace"] {
                if text(service, name).is_empty() {
                    let field = path.field(name).to_string();
                    errors
                        .push(FieldError::required(field, &format!("service {name} is required")));
                }
            }
            let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
            if !(1..=65_535).contains(&port) {
                let why = "port is not valid: must be between 1 and 65535, inclusive";
                let field = path.field("port").to_string();
                errors.push(FieldError::invalid(field, &port.into(), why));
            }
            let target = text(service, "path");
            if !target.is_empty() && !target.starts_with('/') {
                let field = path.field("path").to_string();
                errors.push(FieldError::invalid(field, &target.into(), "must start with a '/'"));
            }
        }
        _ => {
            let why = "exactly one of url or service is required";
            errors.push(FieldError::required(path.to_string(), why));
        }
    }
}

fn review_versions(webhook: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let path = path.field("conversionReviewVersions");
    let list = webhook.get("conversionReviewVersions").and_then(Value::as_array);
    let list: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
    if list.is_empty() {
        errors.push(FieldError::required(path.to_string(), ""));
        return;
    }
    for (index, version) in list.iter().enumerate() {
        let field = path.index(index).to_string();
        if list.iter().take(index).any(|it| it == version) {
            errors.push(FieldError::invalid(field, &(*version).into(), "duplicate version"));
        } else if let Some(why) = label_error(version) {
            errors.push(FieldError::invalid(field, &(*version).into(), &why));
        }
    }
    if !list.iter().any(|it| matches!(*it, "v1" | "v1beta1")) {
        let why = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(path.to_string(), &json!(list), why));
    }
}
