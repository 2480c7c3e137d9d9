//! Who manages which fields: `metadata.managedFields` of every write.
//!
//! The sets and their rules are in `insula_api::structural`; here is what a request has to do
//! with them: under which name it writes, which fields its path is about, and what of the
//! managers that a client sends is believed. What cannot be compared keeps the managers it has, as
//! upstream does it: no write fails because of them.

use std::sync::LazyLock;

use http::header;
use insula_api::{
    object::Stored,
    schema::{Gvk, Schema},
    structural::{
        apply::{Applier, ApplyError, Conflict, Scope, apply},
        built_in::BuiltIn,
        compare::{Comparison, compare},
        extract, last_applied,
        managers::{Identity, Managers, Operation},
        place::Misfit,
    },
    time, versions,
};
use insula_custom::place::Spot;
use serde_json::{Map, Value};

use crate::{
    call::Call,
    error::{ApiError, FieldError, Result},
    registry::{Nature, Served},
};

/// Longest name of a manager, in bytes.
const MAX_NAME: usize = 128;
/// Who has what was there before anybody applied.
const BEFORE: &str = "before-first-apply";

/// What the server decides, whoever writes.
const SERVERS: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "clusterName"],
    &["metadata", "creationTimestamp"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "resourceVersion"],
    &["metadata", "selfLink"],
    &["metadata", "tenant"],
    &["metadata", "uid"],
];

/// The fields that writes through a path are about.
fn scope(served: &Served, subresource: &str) -> &'static Scope {
    let resource = &served.resource;
    static WHOLE: LazyLock<Scope> = LazyLock::new(|| Scope::new(&[], &[], SERVERS));
    static MAIN: LazyLock<Scope> = LazyLock::new(|| Scope::new(&[], &[&["status"]], SERVERS));
    static STATUS: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&["metadata", "status"], &[], SERVERS));
    static STATUS_OF_CUSTOM: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&["status"], &[], SERVERS));
    static STATUS_OF_DEPLOYMENTS: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&["metadata", "status"], &[&["metadata", "labels"]], SERVERS));
    static STATUS_OF_PODS: LazyLock<Scope> = LazyLock::new(|| {
        let never: &[&[&str]] =
            &[&["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]];
        Scope::new(&["metadata", "status"], never, SERVERS)
    });
    // Who asks for a certificate cannot change what was asked for, and others decide.
    static REQUEST: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&[], &[&["spec"], &["status"]], SERVERS));
    static STATUS_OF_REQUESTS: LazyLock<Scope> = LazyLock::new(|| {
        Scope::new(&["metadata", "status"], &[&["status", "conditions"]], SERVERS)
    });
    static DECISION: LazyLock<Scope> =
        LazyLock::new(|| Scope::new(&["status"], &[&["status", "certificate"]], SERVERS));
    static SPEC: LazyLock<Scope> = LazyLock::new(|| Scope::new(&["spec"], &[], SERVERS));
    let is_request = resource.name == "certificatesigningrequests";
    match subresource {
        "" if is_request => &REQUEST,
        "status" if is_request => &STATUS_OF_REQUESTS,
        "approval" => &DECISION,
        "status" if resource.group == "apps" && resource.name == "deployments" => {
            &STATUS_OF_DEPLOYMENTS
        }
        "status" if resource.name == "pods" => &STATUS_OF_PODS,
        "status" if served.custom().is_some() => &STATUS_OF_CUSTOM,
        "status" => &STATUS,
        "scale" | "ephemeralcontainers" | "resize" => &SPEC,
        _ if resource.subresource("status").is_some() => &MAIN,
        _ => &WHOLE,
    }
}

/// One who writes, through one path.
#[derive(Debug)]
pub(crate) struct Writer {
    name: String,
    api_version: String,
    /// In which version conflicts are told, if not in that of their manager.
    told_version: Option<&'static str>,
    subresource: String,
    scope: &'static Scope,
    nature: Nature,
    group: String,
    kind: String,
    is_tracked: bool,
}

/// What an apply makes of an object.
#[derive(Debug)]
pub(crate) struct Applied {
    pub value: Value,
    pub managed: Option<String>,
}

impl Writer {
    pub(crate) fn new(call: &Call) -> Result<Self> {
        let manager = call.query.get("fieldManager").unwrap_or_default();
        check_name(call, manager)?;
        let name = match manager {
            "" => name_of_agent(call),
            name => name.to_owned(),
        };
        let resource = &call.served.resource;
        Ok(Self {
            name: if name.is_empty() { "unknown".to_owned() } else { name },
            api_version: resource.api_version(),
            told_version: (call.path.subresource == "scale").then_some("autoscaling/v1"),
            subresource: call.path.subresource.clone(),
            scope: scope(&call.served, &call.path.subresource),
            nature: call.served.nature.clone(),
            group: resource.group.clone(),
            kind: resource.kind.clone(),
            is_tracked: true,
        })
    }

    /// The whole of an object, as it is divided between managers.
    fn root(&self) -> Spot<'_> {
        match &self.nature {
            Nature::BuiltIn(id) => Spot::BuiltIn(BuiltIn::root(*id)),
            Nature::Custom(custom) => Spot::Object(&custom.version.schema),
        }
    }

    /// Its writes change who manages what for nobody.
    pub(crate) fn untracked(mut self) -> Self {
        self.is_tracked = false;
        self
    }

    fn identity(&self, operation: Operation) -> Identity<'_> {
        Identity {
            manager: self.name.as_str().into(),
            operation,
            api_version: self.api_version.as_str().into(),
            subresource: self.subresource.as_str().into(),
        }
    }

    /// Whether sets of a version can be understood.
    fn knows(&self, api_version: &str) -> bool {
        if api_version == self.api_version {
            return true;
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        match &self.nature {
            Nature::BuiltIn(_) => {
                let kind = Gvk::new(group, version, &self.kind);
                let (own_group, own_version) =
                    self.api_version.split_once('/').unwrap_or(("", &self.api_version));
                let own = Gvk::new(own_group, own_version, &self.kind);
                Schema::built_in().by_kind(&kind).is_some()
                    && (group == self.group || versions::are_one(&kind, &own))
            }
            Nature::Custom(custom) => {
                group == self.group && custom.definition.version(version).is_some()
            }
        }
    }

    /// The managers of a new object. `sent` are those that its body has.
    pub(crate) fn created(&self, it: &Value, sent: Option<&Value>) -> Option<String> {
        if !self.is_tracked {
            return None;
        }
        let (now, sent) = (time::now(), sent.map(Value::to_string).unwrap_or_default());
        let mut set = match extract::created(self.root(), it) {
            Ok(set) => set,
            Err(misfit) => return self.keep("", &misfit),
        };
        self.scope.strip(&mut set);
        // What cannot be read is nobody.
        let mut managers = Managers::decode(&sent, false).unwrap_or_default();
        let comparison = Comparison { added: set, ..Comparison::default() };
        managers.update(&self.identity(Operation::Update), comparison, &now);
        managers.encode()
    }

    /// The managers of `new`, an update of `old` that had the managers of `stored`. `sent` are
    /// those that the update has.
    pub(crate) fn updated(
        &self,
        old: &Value,
        new: &Value,
        stored: &str,
        sent: Option<&Value>,
    ) -> Option<String> {
        let kept = || Some(stored.to_owned()).filter(|it| !it.is_empty());
        if !self.is_tracked {
            return kept();
        }
        // Through a part of an object nobody sets the managers of the whole.
        let sent = sent.filter(|_| self.subresource.is_empty());
        if sent.is_some_and(is_reset) {
            return None;
        }
        let sent = sent.map(Value::to_string).filter(|it| it != stored).unwrap_or_default();
        let sent = Managers::decode(&sent, false).unwrap_or_default();
        let is_changed = !sent.is_empty();
        let mut managers = match is_changed {
            true => sent,
            false => Managers::decode(stored, true).unwrap_or_default(),
        };
        if managers.is_empty() {
            // Nobody begins to be remembered in the middle of an object's life.
            return None;
        }
        let mut comparison = match compare(self.root(), old, new) {
            Ok(comparison) => comparison,
            Err(misfit) => return self.keep(stored, &misfit),
        };
        self.scope.strip(&mut comparison.added);
        self.scope.strip(&mut comparison.modified);
        self.scope.cut(&mut comparison.removed);
        if comparison.is_empty() && !is_changed {
            return kept();
        }
        let now = time::now();
        managers.keep_versions(|it| self.knows(it));
        managers.update(&self.identity(Operation::Update), comparison, &now);
        managers.encode()
    }

    fn keep(&self, stored: &str, misfit: &Misfit) -> Option<String> {
        tracing::debug!(kind = self.kind, %misfit, "managers stay as they are");
        Some(stored.to_owned()).filter(|it| !it.is_empty())
    }

    /// Applies `config` to an object.
    pub(crate) fn applied(&self, live: &Stored, config: &Value, force: bool) -> Result<Applied> {
        let now = time::now();
        let mut managers = Managers::decode(&live.managed, true).map_err(|error| {
            ApiError::internal(format!("failed to decode managed fields: {error}"))
        })?;
        managers.keep_versions(|it| self.knows(it));
        let is_new = object_is_new(&live.object);
        if managers.is_empty() && self.is_tracked && !is_new {
            let mut set = extract::created(self.root(), &live.object).map_err(|misfit| {
                ApiError::untyped(format!("failed to create manager for existing fields: {misfit}"))
            })?;
            self.scope.strip(&mut set);
            let before = Identity { manager: BEFORE.into(), ..self.identity(Operation::Update) };
            let comparison = Comparison { added: set, ..Comparison::default() };
            managers.update(&before, comparison, &now);
        }
        let identity = self.identity(Operation::Apply);
        let applier = Applier {
            identity: &identity,
            scope: self.scope,
            force: force || !self.is_tracked,
            now: &now,
            told_version: self.told_version,
        };
        let is_kubectl = self.name == last_applied::MANAGER;
        let before = is_kubectl.then(|| managers.clone());
        let mut applied = apply(self.root(), &live.object, config, &mut managers, applier);
        if let (Err(ApplyError::Conflicts(conflicts)), Some(before)) = (&mut applied, before) {
            let explained = last_applied::explained(self.root(), &live.object);
            conflicts.retain(|it| !explained.contains(&it.path));
            if conflicts.is_empty() {
                managers = before;
                let applier = Applier { force: true, ..applier };
                applied = apply(self.root(), &live.object, config, &mut managers, applier);
            }
        }
        let new = applied.map_err(|error| refusal(config, error))?;
        let mut value = new.unwrap_or_else(|| live.object.clone());
        if is_kubectl && last_applied::is_kept(&value) {
            last_applied::keep(&mut value, config);
        }
        let managed = if self.is_tracked { managers.encode() } else { None };
        Ok(Applied { value, managed })
    }
}

/// Whether two lists of managers differ in nothing but their times.
pub(crate) fn is_same_but_for_times(one: &str, two: &str) -> bool {
    one == two
        || match (Managers::decode(one, true), Managers::decode(two, true)) {
            (Ok(one), Ok(two)) => one.is_same_but_for_times(&two),
            _ => false,
        }
}

/// What an object is before it is created.
pub(crate) fn nothing(kind: &Gvk) -> Stored {
    let mut object = Map::new();
    object.insert("apiVersion".into(), kind.api_version().into());
    object.insert("kind".into(), kind.kind.as_str().into());
    Stored { object: object.into(), managed: String::new() }
}

fn object_is_new(it: &Value) -> bool {
    insula_api::object::uid(it).is_empty()
}

/// An empty list, or one with an empty entry, says to forget all managers.
fn is_reset(sent: &Value) -> bool {
    match sent.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

fn refusal(config: &Value, error: ApplyError) -> ApiError {
    match error {
        ApplyError::Conflicts(ref conflicts) => {
            let causes: Vec<(String, String)> = conflicts
                .iter()
                .map(|Conflict { manager, path }| {
                    (format!("conflict with {manager}"), path.clone())
                })
                .collect();
            ApiError::apply_conflict(error.to_string(), &causes)
        }
        ApplyError::Config(misfit) => untyped(config, &misfit.to_string()),
        ApplyError::Live(misfit) => {
            ApiError::untyped(format!("failed to create typed live object: {misfit}"))
        }
    }
}

/// What was sent to be applied does not fit the kind.
pub(crate) fn untyped(config: &Value, why: &str) -> ApiError {
    let text = |it: Option<&Value>| it.and_then(Value::as_str).unwrap_or_default().to_owned();
    let (namespace, name) =
        (insula_api::object::namespace(config), insula_api::object::name(config));
    let (api_version, kind) = (text(config.get("apiVersion")), text(config.get("kind")));
    // As upstream shows a group, version and kind.
    let api_version =
        if api_version.contains('/') { api_version } else { format!("/{api_version}") };
    ApiError::untyped(format!(
        "failed to create typed patch object ({namespace}/{name}; {api_version}, Kind={kind}): {why}"
    ))
}

/// Refuses names that no manager can have.
fn check_name(call: &Call, name: &str) -> Result<()> {
    let mut errors = Vec::new();
    if MAX_NAME < name.len() {
        errors.push(FieldError::too_long("fieldManager", MAX_NAME));
    }
    for (at, letter) in name.char_indices().filter(|(_, it)| !is_printable(*it)) {
        let why = format!("invalid character U+{:04X} (at position {at})", u32::from(letter));
        errors.push(FieldError::invalid("fieldManager", &name.into(), &why));
    }
    if errors.is_empty() {
        return Ok(());
    }
    let options = match call.verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        _ => "PatchOptions",
    };
    Err(ApiError::invalid("meta.k8s.io", options, "", &errors))
}

fn is_printable(letter: char) -> bool {
    !letter.is_control() && (letter == ' ' || !letter.is_whitespace())
}

/// What a client calls itself, up to its version.
fn name_of_agent(call: &Call) -> String {
    let agent = call.headers.get(header::USER_AGENT).map(|it| it.as_bytes());
    let agent = String::from_utf8_lossy(agent.unwrap_or_default());
    let mut name = String::new();
    for letter in agent.split('/').next().unwrap_or_default().chars() {
        if MAX_NAME < name.len() + letter.len_utf8() {
            break;
        }
        if is_printable(letter) {
            name.push(letter);
        }
    }
    name
}
