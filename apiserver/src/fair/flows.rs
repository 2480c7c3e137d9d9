//! Flow schemas of one tenant: to which flow, and so to which priority level, a request belongs.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use insula_api::path::ResourcePath;
use serde::Deserialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    counters::{AllCounters, Counters, Rejected},
    levels::{Asks, Levels, Limited, Queuing, Seat, Spec},
};
use crate::{bootstrap::fairness, identity::Identity};

const OF_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const OF_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Most queues of a level, and most requests in one of them: a tenant may ask for millions.
const QUEUES: usize = 1_024;
const LENGTH: usize = 1_000;
/// Of a tenant's schemas, the first that are asked, and of its levels, the first by name.
const SCHEMAS: usize = 500;
const LEVELS: usize = 200;

/// Where requests belong that no schema is about.
const CATCH_ALL: &str = "catch-all";

/// The default schemas and levels: what a tenant has not said otherwise, by an object of the same
/// name, is as they say.
static DEFAULTS: LazyLock<(Vec<SchemaObject>, Vec<LevelObject>)> = LazyLock::new(|| {
    let (mut schemas, mut levels) = (Vec::new(), Vec::new());
    for it in fairness::objects() {
        // A test has them all.
        match it["kind"] == "FlowSchema" {
            true => schemas.extend(serde_json::from_value(it)),
            false => levels.extend(serde_json::from_value(it)),
        }
    }
    (schemas, levels)
});

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Meta {
    pub name: String,
    uid: String,
}

/// A `FlowSchema`, as it is stored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SchemaObject {
    pub metadata: Meta,
    spec: SchemaSpec,
    pub status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SchemaSpec {
    priority_level_configuration: Named,
    matching_precedence: i32,
    distinguisher_method: Option<Method>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Method {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subject {
    kind: String,
    user: Named,
    group: Named,
    service_account: Account,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Account {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PathRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
}

/// A `PriorityLevelConfiguration`, as it is stored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct LevelObject {
    metadata: Meta,
    spec: LevelSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct LevelSpec {
    limited: Option<LimitedSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LimitedSpec {
    nominal_concurrency_shares: Option<u32>,
    lendable_percent: u32,
    borrowing_limit_percent: Option<u32>,
    limit_response: Response,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Response {
    queuing: Option<QueuingSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct QueuingSpec {
    queues: usize,
    hand_size: usize,
    queue_length_limit: usize,
}

impl LevelObject {
    fn spec(&self) -> Spec {
        let limited = self.spec.limited.as_ref().map(|it| Limited {
            shares: it.nominal_concurrency_shares.unwrap_or(30),
            lendable: it.lendable_percent,
            borrowing: it.borrowing_limit_percent,
            queuing: it.limit_response.queuing.as_ref().map(|it| Queuing {
                queues: it.queues.min(QUEUES),
                hand: it.hand_size,
                length: it.queue_length_limit.min(LENGTH),
            }),
        });
        Spec { name: self.metadata.name.clone(), limited }
    }
}

impl SchemaObject {
    /// The condition `Dangling` as it should be, if it is not: its status, reason and message.
    pub(super) fn dangling(&self, levels: &[LevelObject]) -> Option<[String; 3]> {
        let wanted = &self.spec.priority_level_configuration.name;
        let mut known = levels.iter().chain(&DEFAULTS.1);
        let is_there = known.any(|it| it.metadata.name == *wanted);
        let refers = format!(
            "This FlowSchema references the PriorityLevelConfiguration object named {wanted:?}"
        );
        let (status, reason, message) = match is_there {
            true => ("False", "Found", format!("{refers} and it exists")),
            false => ("True", "NotFound", format!("{refers} but there is no such object")),
        };
        let known = self.status.conditions.iter().find(|it| it.kind == "Dangling");
        let is_known = known.is_some_and(|it| it.status == status && it.message == message);
        (!is_known).then(|| [status.to_owned(), reason.to_owned(), message])
    }
}

/// What a request is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    Resource(&'a ResourcePath),
    Path(&'a str),
}

/// A request, as flow schemas look at it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub identity: &'a Identity,
    pub verb: &'a str,
    pub target: Target<'a>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|it| it == "*" || it == wanted)
}

impl Subject {
    fn is(&self, identity: &Identity) -> bool {
        let is_named = |name: &str, of: &str| name == "*" || name == of;
        match self.kind.as_str() {
            "User" => is_named(&self.user.name, &identity.user),
            "Group" => self.group.name == "*" || identity.in_group(&self.group.name),
            "ServiceAccount" => {
                let account = identity.user.strip_prefix("system:serviceaccount:");
                account.and_then(|it| it.split_once(':')).is_some_and(|(namespace, name)| {
                    namespace == self.service_account.namespace
                        && is_named(&self.service_account.name, name)
                })
            }
            _ => false,
        }
    }
}

impl ResourceRule {
    fn matches(&self, verb: &str, path: &ResourcePath) -> bool {
        let is_of = |rule: &String| match path.subresource.as_str() {
            "" => *rule == path.resource,
            part => rule.split_once('/') == Some((&path.resource, part)),
        };
        has(&self.verbs, verb)
            && self.resources.iter().any(|it| it == "*" || is_of(it))
            && has(&self.api_groups, &path.group)
            && match path.namespace.is_empty() {
                true => self.cluster_scope,
                false => has(&self.namespaces, &path.namespace),
            }
    }
}

impl PathRule {
    fn matches(&self, verb: &str, path: &str) -> bool {
        has(&self.verbs, verb)
            && self.urls.iter().any(|url| {
                let below = || {
                    let prefix = url.strip_suffix('*').unwrap_or(url);
                    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                    path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
                };
                url == "*" || url == path || below()
            })
    }
}

impl Rule {
    fn matches(&self, it: Request<'_>) -> bool {
        let is_about = match it.target {
            Target::Resource(path) => {
                self.resource_rules.iter().any(|rule| rule.matches(it.verb, path))
            }
            Target::Path(path) => {
                self.non_resource_rules.iter().any(|rule| rule.matches(it.verb, path))
            }
        };
        is_about && self.subjects.iter().any(|subject| subject.is(it.identity))
    }
}

/// How flows of one schema are told apart.
#[derive(Debug, Clone, Copy)]
enum Distinguisher {
    Nothing,
    User,
    Namespace,
}

/// A schema, with where it leads.
#[derive(Debug)]
pub(super) struct Flow {
    rules: Vec<Rule>,
    distinguisher: Distinguisher,
    seed: u64,
    level: usize,
    counters: Arc<Counters>,
    headers: Option<[HeaderValue; 2]>,
}

impl Flow {
    /// Has the answer say where its request belonged.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if let Some([schema, level]) = &self.headers {
            headers.insert(OF_SCHEMA, schema.clone());
            headers.insert(OF_LEVEL, level.clone());
        }
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn hash(&self, it: Request<'_>) -> u64 {
        let of = match (self.distinguisher, it.target) {
            (Distinguisher::User, _) => it.identity.user.as_str(),
            (Distinguisher::Namespace, Target::Resource(path)) => &path.namespace,
            _ => "",
        };
        xxh3_64_with_seed(of.as_bytes(), self.seed)
    }
}

/// All of one tenant.
#[derive(Debug)]
pub(super) struct Flows {
    /// In the order in which they are asked.
    flows: Vec<Arc<Flow>>,
    specs: Vec<Spec>,
    levels: Arc<Levels>,
    seats: u32,
}

impl Flows {
    /// What a tenant has said, for `seats` requests at once. Levels that are what `before` had
    /// stay as they are, with all that is under way.
    pub(super) fn new(
        schemas: &[SchemaObject],
        levels: &[LevelObject],
        seats: u32,
        counters: &AllCounters,
        before: Option<&Self>,
    ) -> Self {
        let (default_schemas, default_levels) = &*DEFAULTS;
        let is_own = |name: &str| levels.iter().any(|it| it.metadata.name == name);
        let defaults = default_levels.iter().filter(|it| !is_own(&it.metadata.name));
        let levels: Vec<&LevelObject> = levels.iter().take(LEVELS).chain(defaults).collect();
        let specs: Vec<Spec> = levels.iter().map(|it| it.spec()).collect();
        let is_own = |name: &str| schemas.iter().any(|it| it.metadata.name == name);
        let defaults = default_schemas.iter().filter(|it| !is_own(&it.metadata.name));
        let mut sorted: Vec<&SchemaObject> = schemas.iter().chain(defaults).collect();
        sorted.sort_by_key(|it| (it.spec.matching_precedence, &it.metadata.name));
        sorted.truncate(SCHEMAS);
        let find = |name: &str| specs.iter().position(|it| it.name == name);
        let mut flows: Vec<Arc<Flow>> = Vec::new();
        for it in sorted {
            let spec = &it.spec;
            // What leads nowhere is not asked.
            let Some(level) = find(&spec.priority_level_configuration.name) else { continue };
            let uid = levels[level].metadata.uid.as_str();
            // What is not kept as an object has no name to tell.
            let value = |uid: &str| HeaderValue::from_str(uid).ok().filter(|it| !it.is_empty());
            let method = spec.distinguisher_method.as_ref().map(|it| it.kind.as_str());
            let name = it.metadata.name.as_str();
            flows.push(Arc::new(Flow {
                rules: spec.rules.clone(),
                distinguisher: match method {
                    Some("ByUser") => Distinguisher::User,
                    Some("ByNamespace") => Distinguisher::Namespace,
                    _ => Distinguisher::Nothing,
                },
                seed: xxh3_64(name.as_bytes()),
                level,
                counters: counters.of(&specs[level].name, name),
                headers: value(&it.metadata.uid).zip(value(uid)).map(|(it, uid)| [it, uid]),
            }));
        }
        flows.push(Arc::new(Flow {
            rules: Vec::new(),
            distinguisher: Distinguisher::User,
            seed: 0,
            level: find(CATCH_ALL).unwrap_or_default(),
            counters: counters.of(CATCH_ALL, CATCH_ALL),
            headers: None,
        }));
        let same = before.filter(|it| it.specs == specs && it.seats == seats);
        let levels = same.map(|it| it.levels.clone());
        let levels = levels.unwrap_or_else(|| Arc::new(Levels::new(specs.clone(), seats)));
        Self { flows, specs, levels, seats }
    }

    /// The flow of a request.
    pub(super) fn of(&self, it: Request<'_>) -> Option<&Arc<Flow>> {
        let found = self.flows.iter().find(|flow| flow.rules.iter().any(|rule| rule.matches(it)));
        found.or_else(|| self.flows.last())
    }

    /// Seats of its level for a request of `flow`; `None` if it needs none.
    pub(super) async fn take(
        &self,
        flow: &Flow,
        it: Request<'_>,
        width: u32,
        patience: Duration,
    ) -> Result<Option<Seat>, Rejected> {
        let asks = Asks {
            level: flow.level,
            width,
            hash: flow.hash(it),
            patience,
            counters: &flow.counters,
        };
        self.levels.take(asks).await
    }
}

#[cfg(test)]
mod tests;
