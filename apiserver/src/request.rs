//! What a request asks for beyond its path: query options and the forms of body and answer.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, header};
use insula_api::{resources::Resource, selector::FieldSelector, slots::Slots};

use crate::{
    error::{ApiError, FieldError, Result},
    read::Token,
};

/// Says of which tenants something is meant, where it is of all.
pub(crate) const SLOTS: &str = "slots";
/// Largest request body, in bytes.
pub(crate) const MAX_BODY: usize = 3 * 1024 * 1024;

/// The parameters of a query string, decoded, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self(pairs.map(|(key, value)| (key.into_owned(), value.into_owned())).collect())
    }

    /// The first value, `None` if absent or empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Adds a parameter as if it had been sent.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.0.retain(|(known, _)| known != key);
        self.0.push((key.to_owned(), value.to_owned()));
    }

    /// `true` and `1` are true, as Go reads them; anything else is not.
    pub(crate) fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("true" | "1" | "True" | "TRUE" | "t" | "T"))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<i64>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let shown: String = text.chars().take(64).collect();
            ApiError::bad_request(format!("strconv.ParseInt: parsing {shown:?}: invalid syntax"))
        })
    }

    /// Whether the write is to be tried only.
    pub(crate) fn dry_run(&self) -> Result<bool> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!(
                "invalid dryRun value {:?}: supported values: \"All\"",
                other.chars().take(64).collect::<String>()
            ))),
        }
    }
}

/// Checks the options of a write, all of them, before anything else is looked at.
pub(crate) fn check_write(query: &Query, verb: &str) -> Result<()> {
    let options = match verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        "delete" | "deletecollection" => "DeleteOptions",
        _ => return Ok(()),
    };
    let mut errors = Vec::new();
    let short = |text: &str| -> String { text.chars().take(64).collect() };
    let dry: Vec<String> = query.all("dryRun").filter(|it| !it.is_empty()).map(short).collect();
    if dry.iter().any(|it| it != "All") {
        errors.push(FieldError::unsupported("dryRun", &dry.into(), &["All"]));
    }
    let validation = query.get("fieldValidation").unwrap_or_default();
    let allowed = ["", "Ignore", "Strict", "Warn"];
    if options != "DeleteOptions" && !allowed.contains(&validation) {
        let shown = short(validation).into();
        errors.push(FieldError::unsupported("fieldValidation", &shown, &allowed));
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid("meta.k8s.io", options, "", &errors)),
    }
}

/// What unknown and duplicate fields in a body lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    pub(crate) fn from_query(query: &Query) -> Result<Self> {
        match query.get("fieldValidation") {
            None | Some("Warn") => Ok(Self::Warn),
            Some("Ignore") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => Err(ApiError::bad_request(format!(
                "invalid fieldValidation value {:?}: supported values: \"Ignore\", \"Warn\", \"Strict\"",
                other.chars().take(64).collect::<String>()
            ))),
        }
    }
}

/// Encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// The encoding of the request's body; JSON if it does not say.
pub(crate) fn body_encoding(headers: &HeaderMap) -> Result<Encoding> {
    match media_type(headers) {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        _ => Err(ApiError::unsupported_media_type(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// `Content-Type` without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

/// Options of lists and watches, checked against each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListOptions {
    pub labels: Option<String>,
    pub fields: Option<String>,
    /// As the client sent it; empty if it did not.
    pub resource_version: String,
    pub exact: bool,
    pub not_older_than: bool,
    /// 0: no limit.
    pub limit: usize,
    pub token: Option<String>,
    pub watch: bool,
    pub bookmarks: bool,
    pub initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
    /// Of all tenants only those in these slots.
    pub slots: Option<Slots>,
}

impl ListOptions {
    /// The only name that may be listed.
    pub(crate) fn name(&self) -> Option<String> {
        let selector = FieldSelector::parse(self.fields.as_deref()?).ok()?;
        selector.required("metadata.name").map(str::to_owned)
    }

    /// Whether exactly the revision that is named is asked for. A limit with a revision means that,
    /// for old clients.
    pub(crate) fn is_exact(&self) -> bool {
        let is_named = !matches!(self.resource_version.as_str(), "" | "0");
        is_named && (self.exact || (0 < self.limit && !self.not_older_than))
    }

    /// Whether what lies under `key` is asked for, as far as its tenant says.
    pub(crate) fn is_of_slots(&self, key: &str) -> bool {
        let tenant = || key.split_once('/').map_or(key, |(tenant, _)| tenant);
        self.slots.as_ref().is_none_or(|slots| slots.has_tenant(tenant()))
    }

    pub(crate) fn parse(query: &Query, resource: &Arc<Resource>) -> Result<Self> {
        let initial_events =
            query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let options = Self {
            labels: query.get("labelSelector").map(str::to_owned),
            fields: query.get("fieldSelector").map(str::to_owned),
            resource_version: query.get("resourceVersion").unwrap_or_default().to_owned(),
            exact: query.get("resourceVersionMatch") == Some("Exact"),
            not_older_than: query.get("resourceVersionMatch") == Some("NotOlderThan"),
            limit: usize::try_from(query.number("limit")?.unwrap_or(0).max(0)).unwrap_or(0),
            token: query.get("continue").map(str::to_owned),
            watch: query.flag("watch"),
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events,
            timeout_seconds: query
                .number("timeoutSeconds")?
                .and_then(|it| u64::try_from(it).ok())
                .filter(|it| 0 < *it),
            slots: slots(query)?,
        };
        options.check(query, resource)?;
        Ok(options)
    }

    fn check(&self, query: &Query, resource: &Arc<Resource>) -> Result<()> {
        let matching = query.get("resourceVersionMatch");
        let errors = match self.watch {
            true => self.errors_of_watch(matching),
            false => self.errors_of_list(matching),
        };
        if !errors.is_empty() {
            return Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", &errors));
        }
        if self.watch && !resource.has_verb("watch") {
            return Err(ApiError::method_not_allowed());
        }
        let is_versioned = !matches!(self.resource_version.as_str(), "" | "0");
        if let Some(token) = &self.token
            && !self.watch
            && is_versioned
        {
            Token::check(token)?;
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Ok(())
    }

    fn errors_of_list(&self, matching: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut refuse = |field: &str, why: &str| errors.push(FieldError::forbidden(field, why));
        const MATCH: &str = "resourceVersionMatch";
        if matching.is_some() && self.resource_version.is_empty() {
            refuse(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if matching.is_some() && self.token.is_some() {
            refuse(MATCH, "resourceVersionMatch is forbidden when continue is provided");
        }
        if self.exact && self.resource_version == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            refuse(MATCH, why);
        }
        if self.initial_events.is_some() {
            refuse("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        if let Some(unknown) = matching.filter(|_| !self.exact && !self.not_older_than) {
            let allowed = ["Exact", "NotOlderThan", ""];
            errors.push(FieldError::unsupported(MATCH, &shortened(unknown), &allowed));
        }
        errors
    }

    fn errors_of_watch(&self, matching: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut refuse = |field: &str, why: &str| errors.push(FieldError::forbidden(field, why));
        const MATCH: &str = "resourceVersionMatch";
        if self.initial_events.is_some() && !self.not_older_than {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            refuse(MATCH, why);
        }
        if self.token.is_some() {
            refuse(MATCH, "resourceVersionMatch is forbidden when continue is provided");
        }
        let Some(matching) = matching else { return errors };
        if self.initial_events.is_none() {
            let why =
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            refuse(MATCH, why);
        }
        if !self.not_older_than {
            let allowed = ["NotOlderThan"];
            errors.push(FieldError::unsupported(MATCH, &shortened(matching), &allowed));
        }
        errors
    }
}

/// The slots whose tenants are meant. An empty text is wrong, too: it would look like none, and
/// mean all.
fn slots(query: &Query) -> Result<Option<Slots>> {
    let slots = query.all(SLOTS).next().map(str::parse).transpose();
    slots.map_err(|error| ApiError::bad_request(format!("invalid slots: {error}")))
}

/// What a client sent, as far as it is worth repeating.
fn shortened(text: &str) -> serde_json::Value {
    text.chars().take(64).collect::<String>().into()
}

/// How long an ordinary request may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How long this request may take: less than usual, if it says so.
pub(crate) fn deadline(query: &Query) -> Result<Duration> {
    let Some(text) = query.get("timeout") else { return Ok(DEADLINE) };
    let Some(wanted) = insula_api::time::go_duration(text) else {
        return Err(ApiError::bad_request(format!(
            "invalid timeout specified in the request URL - time: invalid duration {:?}",
            text.chars().take(64).collect::<String>()
        )));
    };
    Ok(if wanted.is_zero() { DEADLINE } else { wanted.min(DEADLINE) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_ask_for_less_time() {
        let of = |text: &str| deadline(&Query::parse(Some(text))).map(|it| it.as_millis());
        assert_eq!(of(""), Ok(60_000));
        assert_eq!(of("timeout=1m30s"), Ok(60_000));
        assert_eq!(of("timeout=1.5s"), Ok(1500));
        assert_eq!(of("timeout=20ms"), Ok(20));
        assert_eq!(of("timeout=0s"), Ok(60_000));
        for bad in ["5", "s", "1x", "-1s", "1..2s", "1e9s"] {
            let error = of(&format!("timeout={bad}")).unwrap_err();
            assert!(error.message.starts_with("invalid timeout specified"), "{bad}");
        }
    }
}
