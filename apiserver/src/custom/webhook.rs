//! Conversion between versions by a webhook that a tenant runs.
//!
//! What a webhook may change is the object but not who it is: of the metadata it answers with,
//! labels and annotations count. How it is reached is [`crate::outbound`]'s affair.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use insula_api::{names::TenantName, object};
use insula_custom::definition::Webhook;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Server,
    custom::compiled::Custom,
    error::{ApiError, Result},
    outbound::{Destination, OutboundError, Trust},
};

/// How long a webhook may take, with all connecting.
const WITHIN: Duration = Duration::from_secs(30);
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Most objects of one request.
const BATCH: usize = 500;
/// Version of `ConversionReview` that is spoken, best first.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// Why a webhook did not convert.
#[derive(Debug, thiserror::Error)]
enum WebhookError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("Post {url:?}: {source}")]
    Post { url: String, source: OutboundError },
}

fn refused(why: impl Into<String>) -> WebhookError {
    WebhookError::Refused(why.into())
}

#[derive(Deserialize)]
struct Review {
    response: Option<Response>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Response {
    uid: String,
    converted_objects: Vec<Value>,
    result: Outcome,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Outcome {
    status: String,
    message: String,
}

impl Server {
    /// Has a webhook convert objects of one tenant to `api_version`.
    pub(super) async fn convert(
        &self,
        custom: &Custom,
        webhook: &Webhook,
        objects: &[Value],
        api_version: &str,
    ) -> Result<Vec<Value>> {
        let mut converted = Vec::with_capacity(objects.len());
        for batch in objects.chunks(BATCH) {
            // Boxed: every read may come here, hardly any does, and waiting watches are many.
            let made = match Box::pin(self.ask_webhook(webhook, batch, api_version)).await {
                Ok(made) => made,
                Err(error) => {
                    let resource = &custom.version.resource;
                    let (group, version) = (&resource.group, &resource.version);
                    let kind = format!("{group}/{version}, Kind={}", resource.kind);
                    return Err(ApiError::internal(format!(
                        "conversion webhook for {kind} failed: {error}"
                    )));
                }
            };
            converted.extend(made);
        }
        Ok(converted)
    }

    async fn ask_webhook(
        &self,
        webhook: &Webhook,
        objects: &[Value],
        api_version: &str,
    ) -> Result<Vec<Value>, WebhookError> {
        let known = |it: &&&str| webhook.conversion_review_versions.iter().any(|have| have == **it);
        let review = REVIEWS.iter().find(known).ok_or_else(|| {
            refused("the definition accepts no version of ConversionReview that is known here")
        })?;
        let review = format!("apiextensions.k8s.io/{review}");
        let uid = uuid::Uuid::new_v4().to_string();
        let body = json!({
            "kind": "ConversionReview", "apiVersion": review,
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
        });
        let tenant = objects.first().map(|it| object::meta_str(it, "tenant")).unwrap_or_default();
        let tenant = TenantName::parse(tenant).map_err(|error| refused(error.to_string()))?;
        let answer = self.post(webhook, &tenant, body.to_string().into()).await?;
        let answer: Review = serde_json::from_slice(&answer)
            .map_err(|error| refused(format!("the answer is no ConversionReview: {error}")))?;
        let response = answer.response.ok_or_else(|| refused("no response provided"))?;
        if response.uid != uid {
            let found = response.uid.chars().take(64).collect::<String>();
            return Err(refused(format!("expected response.uid={uid:?}, got {found:?}")));
        }
        if response.result.status != "Success" {
            let why = match response.result.message.as_str() {
                "" => format!(
                    "response.result.status was '{}', not 'Success'",
                    response.result.status
                ),
                message => message.chars().take(1024).collect(),
            };
            return Err(refused(why));
        }
        let (found, wanted) = (response.converted_objects.len(), objects.len());
        if found != wanted {
            return Err(refused(format!("returned {found} objects, expected {wanted}")));
        }
        let pairs = objects.iter().zip(response.converted_objects);
        pairs.map(|(old, new)| same_object(old, new, api_version)).collect()
    }

    async fn post(
        &self,
        webhook: &Webhook,
        tenant: &TenantName,
        body: Bytes,
    ) -> Result<Bytes, WebhookError> {
        let config = &webhook.client_config;
        let trust = Trust::bundle(config.ca_bundle.as_deref())?;
        let exchange = async {
            let mut place = self.resolve(tenant, Destination::of(config)).await?;
            let sign = if place.path.contains('?') { '&' } else { '?' };
            place.path = format!("{}{sign}timeout={}s", place.path, WITHIN.as_secs());
            let failed = |source| WebhookError::Post { url: place.url(), source };
            let request = Request::builder()
                .method(Method::POST)
                .uri(&place.path)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json")
                .body(body)
                .map_err(|_| failed(OutboundError::Url))?;
            let exchange = self.exchange_outbound(tenant, &place, &trust, request, MAX_ANSWER);
            let answer = tokio::time::timeout(WITHIN, exchange).await;
            let answer = answer.unwrap_or(Err(OutboundError::Late)).map_err(failed)?;
            if !answer.status().is_success() {
                return Err(refused(format!("the webhook answered {}", answer.status())));
            }
            Ok(answer.into_body())
        };
        exchange.await
    }
}

/// What a webhook made of `old`, with the metadata that only the server decides.
fn same_object(old: &Value, mut new: Value, api_version: &str) -> Result<Value, WebhookError> {
    let invalid = |why: String| refused(format!("returned invalid object: {why}"));
    if new["apiVersion"] != api_version {
        let found = new["apiVersion"].as_str().unwrap_or_default().chars().take(256);
        let found: String = found.collect();
        return Err(invalid(format!(
            "invalid groupVersion (expected {api_version}, received {found})"
        )));
    }
    if new["kind"] != old["kind"] {
        return Err(invalid(format!(
            "must have the same kind: {} != {}",
            old["kind"], new["kind"]
        )));
    }
    for (field, shown) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (was, is) = (object::meta_str(old, field), object::meta_str(&new, field));
        if was != is {
            return Err(invalid(format!("must have the same {shown}: {was} != {is}")));
        }
    }
    let mut metadata = object::metadata(old).clone();
    for field in ["labels", "annotations"] {
        match object::metadata(&new).get(field) {
            None | Some(Value::Null) => {
                metadata.remove(field);
            }
            Some(Value::Object(map)) if map.values().all(Value::is_string) => {
                metadata.insert(field.into(), map.clone().into());
            }
            Some(_) => {
                return Err(refused(format!(
                    "returned invalid metadata: invalid metadata.{field} in converted object"
                )));
            }
        }
    }
    new["metadata"] = metadata.into();
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_changes_objects_but_not_who_they_are() {
        let old = json!({"apiVersion": "x.y/v1", "kind": "A", "metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}, "finalizers": ["f"]}});
        let new = |metadata: Value| json!({"apiVersion": "x.y/v2", "kind": "A", "metadata": metadata, "spec": 1});
        let made = same_object(
            &old,
            new(json!({"name": "n", "uid": "u", "annotations": {"c": "d"}})),
            "x.y/v2",
        )
        .unwrap();
        assert_eq!(
            made,
            json!({"apiVersion": "x.y/v2", "kind": "A", "spec": 1, "metadata": {
                "name": "n", "uid": "u", "annotations": {"c": "d"}, "finalizers": ["f"]}})
        );
        for bad in
            [json!({"name": "m", "uid": "u"}), json!({"name": "n", "uid": "u", "labels": {"a": 1}})]
        {
            assert!(same_object(&old, new(bad), "x.y/v2").is_err());
        }
        assert!(same_object(&old, new(json!({"name": "n", "uid": "u"})), "x.y/v3").is_err());
    }
}
