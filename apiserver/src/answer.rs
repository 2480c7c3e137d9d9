//! Answers: objects and lists in the form that the client accepts.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use insula_partition::text::Text;
use serde_json::{Value, json};

use crate::{
    accept::{Accept, Form},
    body::{Body, full},
    call::Call,
    compress::{Packed, Whole},
    error::{ApiError, Result},
    fair,
    forms::{self, ListMeta, Shown},
    read::Page,
    request::Encoding,
    table::IncludeObject,
};

pub(crate) const JSON: &str = "application/json";
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// From so many bytes on, what is made in one go is made while another thread does all else.
const LONG: usize = 128 * 1024;

/// Turns an error into its answer.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    error_as(error, Accept::JSON)
}

/// As [`error`], for who sent `headers`.
pub(crate) fn error_for(
    error: &ApiError,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Response<Body> {
    error_as(error, Accept::of_status(headers, query))
}

fn error_as(error: &ApiError, accept: Accept) -> Response<Body> {
    let mut response = match error.is_plain {
        true => bytes(error.code, format!("{}\n", error.message).into(), TEXT),
        false => status(error.code, &error.status(), accept),
    };
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.code == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"kubernetes\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// A Status, which is never turned into anything else.
pub(crate) fn status(code: StatusCode, it: &Value, accept: Accept) -> Response<Body> {
    let accept = Accept { form: Form::Object, ..accept };
    // If it cannot be had in that form, it is better to have it in another.
    made_as(accept, code, it).unwrap_or_else(|_| value(code, it, false))
}

/// A JSON document.
pub(crate) fn value(code: StatusCode, value: &Value, pretty: bool) -> Response<Body> {
    let text = if pretty { format!("{value:#}\n") } else { format!("{value}\n") };
    bytes(code, text.into(), JSON)
}

/// A document that is kept compressed.
pub(crate) fn packed(body: Packed, media_type: &'static str) -> Response<Body> {
    let mut response = bytes(StatusCode::OK, Bytes::new(), media_type);
    response.extensions_mut().remove::<Whole>();
    response.extensions_mut().insert(body);
    response
}

/// A body that is ready.
pub(crate) fn bytes(code: StatusCode, bytes: Bytes, media_type: &'static str) -> Response<Body> {
    let mut response = Response::new(full(bytes.clone()));
    response.extensions_mut().insert(Whole(bytes));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// What [`Shown`] made, as it goes out.
fn document(code: StatusCode, made: Bytes, accept: Accept) -> Result<Response<Body>> {
    match accept.encoding {
        Encoding::Protobuf => return Ok(bytes(code, made, PROTOBUF)),
        Encoding::Json if !accept.pretty => return Ok(bytes(code, made, JSON)),
        Encoding::Json | Encoding::Yaml => (),
    }
    fair::without_a_break(LONG <= made.len(), || {
        let parsed: Value = serde_json::from_slice(&made).map_err(ApiError::internal)?;
        if accept.encoding == Encoding::Json {
            return Ok(value(code, &parsed, true));
        }
        let text = serde_saphyr::to_string(&parsed).map_err(ApiError::internal)?;
        Ok(bytes(code, text.into(), "application/yaml"))
    })
}

fn shown(call: &Call) -> Result<Shown> {
    let include = match call.accept.form {
        Form::Table => IncludeObject::parse(call.query.get("includeObject"))?,
        _ => IncludeObject::Metadata,
    };
    Ok(Shown { served: call.served.clone(), accept: call.accept, include })
}

/// One object, given as its JSON.
pub(crate) fn object(call: &Call, code: StatusCode, json: &Bytes) -> Result<Response<Body>> {
    document(code, shown(call)?.object(json)?, call.accept)
}

/// A value that was made here and is no stored object, such as a Scale or a review.
pub(crate) async fn made(call: &Call, code: StatusCode, it: &Value) -> Result<Response<Body>> {
    match (call.accept.form, it.get("items").and_then(Value::as_array)) {
        (Form::Object, _) => made_as(call.accept, code, it),
        (_, None) => object(call, code, &it.to_string().into()),
        (_, Some(items)) => {
            let items: Vec<Text> = items.iter().map(|it| it.to_string().into()).collect();
            let metadata = it.get("metadata").cloned().unwrap_or_else(|| json!({}));
            let made = shown(call)?.list(&ListMeta(metadata), items.iter()).await?;
            document(code, made, call.accept)
        }
    }
}

fn made_as(accept: Accept, code: StatusCode, it: &Value) -> Result<Response<Body>> {
    if accept.encoding == Encoding::Protobuf {
        return match forms::message_of(it)? {
            Some(message) => document(code, message, accept),
            None => Ok(value(code, it, accept.pretty)),
        };
    }
    document(code, it.to_string().into(), accept)
}

/// One page of a list.
pub(crate) async fn list(call: &Call, page: &Page) -> Result<Response<Body>> {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = &page.token {
        metadata["continue"] = token.as_str().into();
    }
    // Where nothing decides what is left out, upstream leaves out nothing.
    if call.served.custom().is_some() && call.accept.form == Form::Object && page.token.is_none() {
        metadata["continue"] = "".into();
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    let items = page.entries.iter().map(|(_, entry)| &entry.value);
    let made = shown(call)?.list(&ListMeta(metadata), items).await?;
    document(StatusCode::OK, made, call.accept)
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

/// As [`warn`], before what was warned of already.
pub(crate) fn warn_first(response: &mut Response<Body>, warning: Option<String>) {
    if warning.is_none() {
        return;
    }
    let told: Vec<HeaderValue> =
        response.headers().get_all(header::WARNING).iter().cloned().collect();
    response.headers_mut().remove(header::WARNING);
    warn(response, warning.as_slice());
    for value in told {
        response.headers_mut().append(header::WARNING, value);
    }
}
