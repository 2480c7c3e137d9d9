//! Who manages which fields: `metadata.managedFields` of every write.
//!
//! The sets and their rules are in `insula_api::structural`; here is what a request has to do
//! with them: under which name it writes, which fields its path is about, and what of the
//! managers that a client sends is believed. What cannot be compared keeps the managers it has, as
//! upstream does it: no write fails because of them.

mod scope;
mod versions;

use http::header;
use insula_api::{
    object::Stored,
    schema::Gvk,
    structural::{
        apply::{Applier, ApplyError, Conflict, Scope, apply},
        compare::{Comparison, compare},
        extract, last_applied,
        managers::{Identity, Managers, Operation},
        versions::{Elsewhere, VersionError, Versions as _, Wanted, compare_elsewhere},
    },
    time,
};
use serde_json::{Map, Value};

use self::scope::scope;
pub(crate) use self::versions::Versions;
use crate::{
    Server,
    call::Call,
    error::{ApiError, FieldError, Result},
    registry::Served,
};

/// Longest name of a manager, in bytes.
const MAX_NAME: usize = 128;
/// Who has what was there before anybody applied.
const BEFORE: &str = "before-first-apply";

/// One who writes, through one path.
#[derive(Debug)]
pub(crate) struct Writer {
    name: String,
    api_version: String,
    /// In which version conflicts are told, if not in that of their manager.
    told_version: Option<&'static str>,
    subresource: String,
    scope: &'static Scope,
    versions: Versions,
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
            versions: Versions::new(&call.served),
            is_tracked: true,
        })
    }

    /// The server itself, in what it writes through a path of `served` because of what it sees.
    pub(crate) fn of_server(served: &Served, subresource: &str) -> Self {
        Self {
            name: "kube-apiserver".to_owned(),
            api_version: served.resource.api_version(),
            told_version: None,
            subresource: subresource.to_owned(),
            scope: scope(served, subresource),
            versions: Versions::new(served),
            is_tracked: true,
        }
    }

    /// As somebody whose work the server does.
    pub(crate) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
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

    /// The managers of a new object. `sent` are those that its body has.
    pub(crate) fn created(&self, it: &Value, sent: Option<&Value>) -> Option<String> {
        if !self.is_tracked {
            return None;
        }
        let (now, sent) = (time::now(), sent.map(Value::to_string).unwrap_or_default());
        let mut set = match extract::created(self.versions.root(), it) {
            Ok(set) => set,
            Err(misfit) => return self.keep("", &misfit),
        };
        self.scope.strip(&mut set);
        // What cannot be read is nobody.
        let mut managers = Managers::decode(&sent, false).unwrap_or_default();
        let comparison = Comparison { added: set, ..Comparison::default() };
        managers.update(&self.identity(Operation::Update), comparison, &[], &now);
        managers.encode()
    }

    /// The managers of `new`, an update of `old` that had the managers of `stored`. `sent` are
    /// those that the update has.
    pub(crate) async fn updated(
        &self,
        server: &Server,
        old: &Value,
        new: &Value,
        stored: &str,
        sent: Option<&Value>,
    ) -> Result<Option<String>> {
        let kept = || Some(stored.to_owned()).filter(|it| !it.is_empty());
        if !self.is_tracked {
            return Ok(kept());
        }
        // Through a part of an object nobody sets the managers of the whole.
        let sent = sent.filter(|_| self.subresource.is_empty());
        if sent.is_some_and(is_reset) {
            return Ok(None);
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
            return Ok(None);
        }
        let mut comparison = match compare(self.versions.root(), old, new) {
            Ok(comparison) => comparison,
            Err(misfit) => return Ok(self.keep(stored, &misfit)),
        };
        self.scope.strip(&mut comparison.added);
        self.scope.strip(&mut comparison.modified);
        self.scope.cut(&mut comparison.removed);
        if comparison.is_empty() && !is_changed {
            return Ok(kept());
        }
        let now = time::now();
        managers.keep_versions(|it| self.versions.knows(it));
        let versions = managers.versions_but(&self.api_version);
        let elsewhere = match versions.is_empty() {
            true => Vec::new(),
            false => match self.elsewhere(server, versions, old, new).await? {
                Ok(elsewhere) => elsewhere,
                Err(error) => return Ok(self.keep(stored, &error)),
            },
        };
        let identity = self.identity(Operation::Update);
        managers.update(&identity, comparison, &elsewhere, &now);
        Ok(managers.encode())
    }

    /// What changed, in other versions.
    async fn elsewhere(
        &self,
        server: &Server,
        versions: Vec<String>,
        old: &Value,
        new: &Value,
    ) -> Result<Result<Vec<Elsewhere>, VersionError>> {
        let mut known = self.versions.clone();
        loop {
            match compare_elsewhere(&known, versions.clone(), old, new) {
                Err(VersionError::Wanted(wanted)) => known.learn(server, *wanted).await?,
                Ok(mut elsewhere) => {
                    elsewhere.iter_mut().for_each(|it| self.scope.limit(&mut it.comparison));
                    return Ok(Ok(elsewhere));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    fn keep(&self, stored: &str, why: &dyn std::fmt::Display) -> Option<String> {
        tracing::debug!(kind = self.versions.kind(), %why, "managers stay as they are");
        Some(stored.to_owned()).filter(|it| !it.is_empty())
    }

    /// What is known of other versions when nobody has been asked.
    pub(crate) fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Applies `config` to an object, or says what has to be known of it in another version.
    pub(crate) fn applied(
        &self,
        versions: &Versions,
        live: &Stored,
        config: &Value,
        force: bool,
    ) -> Result<Result<Applied, Box<Wanted>>> {
        let now = time::now();
        let mut managers = Managers::decode(&live.managed, true).map_err(|error| {
            ApiError::internal(format!("failed to decode managed fields: {error}"))
        })?;
        let is_new = object_is_new(&live.object);
        if managers.is_empty() && self.is_tracked && !is_new {
            let mut set =
                extract::created(self.versions.root(), &live.object).map_err(|misfit| {
                    ApiError::untyped(format!(
                        "failed to create manager for existing fields: {misfit}"
                    ))
                })?;
            self.scope.strip(&mut set);
            let before = Identity { manager: BEFORE.into(), ..self.identity(Operation::Update) };
            let comparison = Comparison { added: set, ..Comparison::default() };
            managers.update(&before, comparison, &[], &now);
        }
        managers.keep_versions(|it| self.versions.knows(it));
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
        let mut applied = apply(versions, &live.object, config, &mut managers, applier);
        if let (Err(ApplyError::Conflicts(conflicts)), Some(before)) = (&mut applied, before) {
            let explained = last_applied::explained(self.versions.root(), &live.object);
            conflicts.retain(|it| !explained.contains(&it.path));
            if conflicts.is_empty() {
                managers = before;
                let applier = Applier { force: true, ..applier };
                applied = apply(versions, &live.object, config, &mut managers, applier);
            }
        }
        let new = match applied {
            Ok(new) => new,
            Err(ApplyError::Version(VersionError::Wanted(wanted))) => return Ok(Err(wanted)),
            Err(error) => return Err(refusal(config, error)),
        };
        let mut value = new.unwrap_or_else(|| live.object.clone());
        if is_kubectl && last_applied::is_kept(&value) {
            last_applied::keep(&mut value, config);
        }
        let managed = if self.is_tracked { managers.encode() } else { None };
        Ok(Ok(Applied { value, managed }))
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
        ApplyError::Version(error) => {
            ApiError::untyped(format!("failed to convert new object: {error}"))
        }
    }
}

/// As upstream shows a group and version beside a kind: `/v1`, `apps/v1`.
pub(crate) fn full_version(api_version: &str) -> String {
    if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") }
}

/// What was sent to be applied does not fit the kind.
pub(crate) fn untyped(config: &Value, why: &str) -> ApiError {
    let text = |it: Option<&Value>| it.and_then(Value::as_str).unwrap_or_default().to_owned();
    let (namespace, name) =
        (insula_api::object::namespace(config), insula_api::object::name(config));
    let (api_version, kind) = (text(config.get("apiVersion")), text(config.get("kind")));
    let api_version = full_version(&api_version);
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
