//! Server-side apply: what somebody wants of an object, merged with what others want of it.

use std::borrow::Cow;

use serde_json::Value;

use super::{
    compare::{Comparison, compare},
    extract::{Duplicates, set_of},
    managers::{Identity, Managers},
    merge::merge,
    place::Misfit,
    prune::prune,
    set::Set,
    versions::{Elsewhere, VersionError, Versions, compare_elsewhere},
};

/// Which paths of an object are managed at all.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Only what lies in these fields of the object, if there are any.
    only: Vec<&'static str>,
    /// Not these paths, nor what lies below them.
    never: Set<'static>,
    /// Not these paths, which the server decides.
    server: Set<'static>,
}

impl Scope {
    pub fn new(
        only: &[&'static str],
        never: &[&[&'static str]],
        server: &[&[&'static str]],
    ) -> Self {
        Self { only: only.to_vec(), never: Set::of_fields(never), server: Set::of_fields(server) }
    }

    /// Drops from `set` what this scope leaves to others.
    pub fn cut(&self, set: &mut Set<'_>) {
        if !self.only.is_empty() {
            set.nodes.retain(|node| match &node.step {
                super::set::Step::Field(name) => self.only.contains(&name.as_ref()),
                super::set::Step::Item(_) => false,
            });
        }
        set.remove_all_below(&self.never);
    }

    /// Drops from all that changed what this scope leaves to others.
    pub fn limit(&self, comparison: &mut Comparison<'_>) {
        self.cut(&mut comparison.added);
        self.cut(&mut comparison.modified);
        self.cut(&mut comparison.removed);
    }

    /// Drops what the server decides as well.
    pub fn strip(&self, set: &mut Set<'_>) {
        self.cut(set);
        set.remove(&self.server);
    }
}

/// A path that somebody else manages, with another value than the one applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// As [`Identity`] shows it.
    pub manager: String,
    pub path: String,
}

/// Why something cannot be applied.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", conflict_text(.0))]
    Conflicts(Vec<Conflict>),
    /// What was sent does not fit the schema.
    #[error("{0}")]
    Config(Misfit),
    /// What is stored does not.
    #[error("failed to create typed live object: {0}")]
    Live(Misfit),
    /// The versions of other managers could not be looked at.
    #[error(transparent)]
    Version(#[from] VersionError),
}

/// Upstream's message.
fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.path
        );
    }
    let mut managers: Vec<&str> = conflicts.iter().map(|it| it.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    let mut lines = Vec::new();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        let paths = conflicts.iter().filter(|it| it.manager == manager);
        lines.extend(paths.map(|it| format!("- {}", it.path)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Who applies something, and how.
#[derive(Debug, Clone, Copy)]
pub struct Applier<'e, 'a> {
    pub identity: &'e Identity<'a>,
    pub scope: &'e Scope,
    /// Takes what others have.
    pub force: bool,
    pub now: &'a str,
    /// In which version conflicts are told, if not in that of their manager.
    pub told_version: Option<&'a str>,
}

/// Applies `config` to `live`. `managers` are then those of the result, which is `None` if it is
/// what was there before.
pub fn apply<'a, V: Versions>(
    versions: &V,
    live: &Value,
    config: &'a Value,
    managers: &mut Managers<'a>,
    applier: Applier<'_, 'a>,
) -> Result<Option<Value>, ApplyError> {
    let Applier { identity: by, scope, force, now, told_version } = applier;
    let root = versions.root();
    let mut set = set_of(root, config, Duplicates::Refused).map_err(ApplyError::Config)?;
    let merged = merge(root, live.clone(), config).map_err(ApplyError::Live)?;
    let (last, version) = managers.of(by).unwrap_or_default();
    let time = managers.time_of(by);
    scope.cut(&mut set);
    managers.set(by, set.clone(), None);
    let new = match last.is_empty() {
        true => merged,
        false => prune(versions, merged, &last, &version, &managers.held())?,
    };

    let mut comparison = compare(root, live, &new).map_err(ApplyError::Live)?;
    let is_same = comparison.is_empty();
    scope.limit(&mut comparison);
    let others = match is_same {
        true => Vec::new(),
        false => managers.versions_but(&by.api_version),
    };
    let mut elsewhere = compare_elsewhere(versions, others, live, &new)?;
    elsewhere.iter_mut().for_each(|it| scope.limit(&mut it.comparison));
    let conflicts = conflicts(managers, by, &comparison, &elsewhere, told_version);
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    managers.take(&by.api_version, &comparison, &elsewhere, Some(by));
    scope.strip(&mut set);
    // Who wants what is there already has no time of its own.
    let time = if is_same { time } else { Some(Cow::Borrowed(now)) };
    managers.set(by, set, time);
    drop(comparison);
    Ok((!is_same).then_some(new))
}

/// The paths that changed and that others than `by` have.
fn conflicts(
    managers: &Managers<'_>,
    by: &Identity<'_>,
    comparison: &Comparison<'_>,
    elsewhere: &[Elsewhere],
    told_version: Option<&str>,
) -> Vec<Conflict> {
    let mut out = Vec::new();
    for entry in managers.entries().iter().filter(|it| !it.identity.is(by)) {
        let version = &*entry.identity.api_version;
        let comparison = match elsewhere.iter().find(|it| it.version == version) {
            Some(it) => &it.comparison,
            None => comparison,
        };
        let set = entry.fields.set();
        let mut shared = Set::default();
        for changed in [&comparison.modified, &comparison.added] {
            let mut part = set.as_ref().clone();
            part.intersect(changed);
            shared = shared.union(part);
        }
        let mut told = entry.identity.clone();
        told.api_version = told_version.map_or(told.api_version, |it| it.to_owned().into());
        let manager = told.to_string();
        out.extend(
            shared.texts().into_iter().map(|path| Conflict { manager: manager.clone(), path }),
        );
    }
    out
}
