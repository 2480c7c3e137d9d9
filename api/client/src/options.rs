//! What a caller can ask of each verb.

use insula_api::slots::Slots;
use serde::Serialize;
use serde_json::Value;

use crate::path::Query;

/// Which objects to list, and from when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    /// The most objects of one page.
    pub limit: Option<u32>,
    /// Where the next page starts, as the page before said.
    pub continue_token: Option<String>,
    /// `None` for the newest state.
    pub resource_version: Option<String>,
    /// Of all tenants only those in these slots, of which there must be one at least.
    pub slots: Option<Slots>,
}

impl ListOptions {
    /// Objects whose labels match.
    pub fn labelled(selector: impl Into<String>) -> Self {
        Self { label_selector: Some(selector.into()), ..Self::default() }
    }

    /// Objects whose fields match.
    pub fn with_fields(selector: impl Into<String>) -> Self {
        Self { field_selector: Some(selector.into()), ..Self::default() }
    }

    pub(crate) fn query(&self) -> Query {
        let mut query = Query::default();
        query.add_some("labelSelector", self.label_selector.as_deref());
        query.add_some("fieldSelector", self.field_selector.as_deref());
        query.add_some("limit", self.limit);
        query.add_some("continue", self.continue_token.as_deref());
        query.add_some("resourceVersion", self.resource_version.as_deref());
        query.add_some("slots", self.slots.as_ref());
        query
    }
}

/// Which changes to watch, and from when. Bookmarks are always asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchOptions {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    /// The version after which to start; `None` to begin with the whole present state.
    pub resource_version: Option<String>,
    /// After how long the server ends the watch.
    pub timeout_seconds: Option<u32>,
    /// Of all tenants only those in these slots, of which there must be one at least.
    pub slots: Option<Slots>,
}

impl WatchOptions {
    pub(crate) fn query(&self) -> Query {
        let mut query = Query::default();
        query.add("watch", true);
        query.add("allowWatchBookmarks", true);
        query.add_some("labelSelector", self.label_selector.as_deref());
        query.add_some("fieldSelector", self.field_selector.as_deref());
        query.add_some("resourceVersion", self.resource_version.as_deref());
        query.add_some("timeoutSeconds", self.timeout_seconds);
        query.add_some("slots", self.slots.as_ref());
        query
    }
}

/// What create, update and patch have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Who owns the fields that this write sets. The user agent's first word if `None`.
    pub field_manager: Option<String>,
    /// Check everything, store nothing.
    pub dry_run: bool,
}

impl WriteOptions {
    pub(crate) fn query(&self) -> Query {
        let mut query = Query::default();
        query.add_some("fieldManager", self.field_manager.as_deref());
        if self.dry_run {
            query.add("dryRun", "All");
        }
        query
    }
}

/// What a patch may do beyond [`WriteOptions`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PatchOptions {
    pub write: WriteOptions,
    /// For [`Patch::Apply`]: take fields away from other managers.
    pub force: bool,
}

impl PatchOptions {
    pub(crate) fn query(&self) -> Query {
        let mut query = self.write.query();
        if self.force {
            query.add("force", true);
        }
        query
    }
}

/// A change to an object, in one of four languages.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// RFC 7386: maps are merged, all else is replaced, `null` removes.
    Merge(Value),
    /// Like merge, but lists with merge keys are merged by them.
    Strategic(Value),
    /// RFC 6902: a list of operations.
    Json(Value),
    /// Server-side apply: the fields that the manager wants.
    Apply(Value),
}

impl Patch {
    pub(crate) fn content_type(&self) -> &'static str {
        match self {
            Self::Merge(_) => "application/merge-patch+json",
            Self::Strategic(_) => "application/strategic-merge-patch+json",
            Self::Json(_) => "application/json-patch+json",
            // Every JSON text is a YAML text.
            Self::Apply(_) => "application/apply-patch+yaml",
        }
    }

    pub(crate) fn body(&self) -> &Value {
        match self {
            Self::Merge(body) | Self::Strategic(body) | Self::Json(body) | Self::Apply(body) => {
                body
            }
        }
    }
}

/// What happens to the objects that an object owns when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Propagation {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay.
    Orphan,
}

/// How to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    propagation_policy: Option<Propagation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preconditions: Option<Preconditions>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dry_run: Vec<&'static str>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<String>,
}

impl DeleteOptions {
    /// Gives a pod this long to end; 0 removes at once.
    pub fn grace_period(mut self, seconds: i64) -> Self {
        self.grace_period_seconds = Some(seconds);
        self
    }

    pub fn propagation(mut self, policy: Propagation) -> Self {
        self.propagation_policy = Some(policy);
        self
    }

    /// Deletes only the incarnation with this uid.
    pub fn only_uid(mut self, uid: impl Into<String>) -> Self {
        self.preconditions.get_or_insert_default().uid = Some(uid.into());
        self
    }

    /// Deletes only if nothing changed since this version.
    pub fn only_version(mut self, version: impl Into<String>) -> Self {
        self.preconditions.get_or_insert_default().resource_version = Some(version.into());
        self
    }

    /// Checks everything, deletes nothing.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = vec!["All"];
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn delete_options_as_sent() {
        assert_eq!(serde_json::to_value(DeleteOptions::default()).unwrap(), json!({}));
        let options = DeleteOptions::default()
            .grace_period(0)
            .propagation(Propagation::Background)
            .only_uid("u")
            .only_version("7");
        let expected = json!({
            "gracePeriodSeconds": 0, "propagationPolicy": "Background",
            "preconditions": {"uid": "u", "resourceVersion": "7"},
        });
        assert_eq!(serde_json::to_value(options).unwrap(), expected);
    }

    #[test]
    fn queries_as_sent() {
        let watch = WatchOptions { resource_version: Some("5".into()), ..WatchOptions::default() };
        assert_eq!(
            watch.query().as_str(),
            "?watch=true&allowWatchBookmarks=true&resourceVersion=5"
        );
        let patch = PatchOptions { force: true, ..PatchOptions::default() };
        assert_eq!(patch.query().as_str(), "?force=true");
    }
}
