//! Answers: objects and lists in the form that the client accepts.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    body::{Body, full},
    call::Call,
    error::{ApiError, Result},
    read::{self, Page},
    request::{Accept, Form},
    table::{self, IncludeObject},
};

/// Turns an error into its answer.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    let mut response = value(error.code, &error.status(), false);
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.code == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"kubernetes\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// A JSON document.
pub(crate) fn value(code: StatusCode, value: &Value, pretty: bool) -> Response<Body> {
    let text = if pretty { format!("{value:#}\n") } else { format!("{value}\n") };
    bytes(code, text.into(), "application/json")
}

/// A body that is ready.
pub(crate) fn bytes(code: StatusCode, bytes: Bytes, media_type: &'static str) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn document(code: StatusCode, json: Bytes, accept: Accept) -> Result<Response<Body>> {
    if !accept.yaml && !accept.pretty {
        return Ok(bytes(code, json, "application/json"));
    }
    let parsed: Value = serde_json::from_slice(&json).map_err(ApiError::internal)?;
    if accept.yaml {
        let text = serde_saphyr::to_string(&parsed).map_err(ApiError::internal)?;
        return Ok(bytes(code, text.into(), "application/yaml"));
    }
    Ok(value(code, &parsed, true))
}

/// One object, given as its JSON.
pub(crate) fn object(call: &Call, code: StatusCode, json: &Bytes) -> Result<Response<Body>> {
    match call.accept.form {
        Form::Object => document(code, json.clone(), call.accept),
        Form::PartialMetadata => {
            let it: Value = serde_json::from_slice(json).map_err(ApiError::internal)?;
            let partial = insula_api::object::partial_metadata(&it);
            document(code, partial.to_string().into(), call.accept)
        }
        Form::Table => {
            let it: Value = serde_json::from_slice(json).map_err(ApiError::internal)?;
            let include = IncludeObject::parse(call.query.get("includeObject"))?;
            let revision = insula_api::object::meta_str(&it, "resourceVersion").to_owned();
            let metadata = json!({ "resourceVersion": revision });
            let table = table::table(&call.served, &[it], include, &metadata);
            document(code, table.to_string().into(), call.accept)
        }
    }
}

/// A value that was made here and is no stored object, such as a Scale or a review.
pub(crate) fn made(call: &Call, code: StatusCode, it: &Value) -> Result<Response<Body>> {
    if call.accept.form != Form::Object && !call.served.resource.is_stored() {
        return Err(ApiError::not_acceptable());
    }
    document(code, it.to_string().into(), call.accept)
}

/// One page of a list.
pub(crate) fn list(call: &Call, page: &Page) -> Result<Response<Body>> {
    let resource = &call.served.resource;
    if call.accept.form == Form::Object {
        let json = read::encode_list(&resource.api_version(), &call.served.list_kind(), page);
        return document(StatusCode::OK, json, call.accept);
    }
    let items: Vec<Value> = page
        .entries
        .iter()
        .map(|(_, entry)| serde_json::from_slice(&entry.value))
        .collect::<std::result::Result<_, _>>()
        .map_err(ApiError::internal)?;
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = &page.token {
        metadata["continue"] = token.as_str().into();
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let shaped = match call.accept.form {
        Form::Table => {
            let include = IncludeObject::parse(call.query.get("includeObject"))?;
            table::table(&call.served, &items, include, &metadata)
        }
        _ => {
            let items: Vec<Value> =
                items.iter().map(insula_api::object::partial_metadata).collect();
            json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": items,
            })
        }
    };
    document(StatusCode::OK, shaped.to_string().into(), call.accept)
}

/// Adds a `Warning` header per finding. What a header cannot hold is left out of its text.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning
            .chars()
            .filter(|it| !it.is_control() && it.is_ascii())
            .flat_map(|it| match it {
                '"' | '\\' => vec!['\\', it],
                other => vec![other],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
