//! How strict a namespace is, as its labels say.

use std::fmt;

use insula_api::field::FieldError;
use serde_json::Value;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How much a pod may ask for, least strict first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// Of which minor version of Kubernetes the rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Latest,
    Minor(u32),
}

/// Rules of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standard {
    pub level: Level,
    pub version: Version,
}

/// What is refused, what is noted, and what is warned about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

impl Standard {
    /// Everything goes.
    pub(super) const NONE: Self = Self { level: Level::Privileged, version: Version::Latest };
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Latest => write!(f, "{level}:latest"),
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

impl Policy {
    /// Whether everything is allowed without a word.
    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|it| it.level == Level::Privileged)
    }
}

fn level(text: &str) -> Option<Level> {
    Some(match text {
        "privileged" => Level::Privileged,
        "baseline" => Level::Baseline,
        "restricted" => Level::Restricted,
        _ => return None,
    })
}

fn version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version::Latest);
    }
    let minor = text.strip_prefix("v1.")?;
    let is_plain = minor == "0" || !minor.starts_with('0');
    if !is_plain || !minor.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    minor.parse().ok().map(Version::Minor)
}

/// The policy that labels mean, and what is wrong with them.
pub(super) fn read(labels: Option<&Value>) -> (Policy, Vec<FieldError>) {
    let mut errors = Vec::new();
    let label = |name: &str| labels?.get(format!("{PREFIX}{name}"))?.as_str();
    let mut wrong = |name: &str, text: &str, why: &str| {
        let path = format!("metadata.labels[{PREFIX}{name}]");
        errors.push(FieldError::invalid(path, &text.into(), why));
    };
    let mut read = |mode: &str, otherwise: Level| {
        let mut standard = Standard::NONE;
        let mut is_given = false;
        if let Some(text) = label(mode) {
            let found = level(text);
            is_given = found.is_some();
            standard.level = found.unwrap_or(otherwise);
            if found.is_none() {
                wrong(mode, text, "must be one of privileged, baseline, restricted");
            }
        }
        let name = format!("{mode}-version");
        if let Some(text) = label(&name) {
            let found = version(text);
            standard.version = found.unwrap_or(Version::Latest);
            if found.is_none() {
                wrong(&name, text, "must be \"latest\" or \"v1.x\"");
            }
        }
        (standard, is_given)
    };
    // What cannot be read is enforced strictly, and says nothing.
    let (enforce, has_level) = read("enforce", Level::Restricted);
    let (audit, _) = read("audit", Level::Privileged);
    let (mut warn, _) = read("warn", Level::Privileged);
    if label("warn").is_none() && has_level && warn.level < enforce.level {
        warn.level = enforce.level;
        if label("warn-version").is_none() {
            warn.version = enforce.version;
        }
    }
    (Policy { enforce, audit, warn }, errors)
}

/// What a tenant's pods keep to, whatever its namespaces say: what the platform has written on the
/// tenant, and if that is nothing, the baseline.
pub(super) fn floor(labels: Option<&Value>) -> Standard {
    let is_given = labels.and_then(|it| it.get(format!("{PREFIX}enforce"))).is_some();
    let told = read(labels).0.enforce;
    let level = if is_given { told.level } else { Level::Baseline };
    Standard { level, ..told }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_say_how_strict() {
        let (policy, errors) = read(None);
        assert!(policy.is_privileged() && errors.is_empty());
        let labels = json!({
            "pod-security.kubernetes.io/enforce": "baseline",
            "pod-security.kubernetes.io/enforce-version": "v1.29",
            "pod-security.kubernetes.io/audit": "restricted",
        });
        let (policy, errors) = read(Some(&labels));
        assert!(errors.is_empty());
        let told = [policy.enforce, policy.audit, policy.warn].map(|it| it.to_string());
        assert_eq!(told, ["baseline:v1.29", "restricted:latest", "baseline:v1.29"]);
    }

    #[test]
    fn tenants_keep_to_the_baseline_unless_told() {
        let floor = |labels: Value| floor(Some(&labels)).to_string();
        assert_eq!(super::floor(None).to_string(), "baseline:latest");
        assert_eq!(floor(json!({"a": "b"})), "baseline:latest");
        let label = "pod-security.kubernetes.io/enforce";
        assert_eq!(floor(json!({label: "privileged"})), "privileged:latest");
        let version = "pod-security.kubernetes.io/enforce-version";
        assert_eq!(floor(json!({label: "restricted", version: "v1.30"})), "restricted:v1.30");
        assert_eq!(floor(json!({label: "none"})), "restricted:latest");
    }

    #[test]
    fn what_is_no_level_is_strict() {
        let labels = json!({
            "pod-security.kubernetes.io/enforce": "some",
            "pod-security.kubernetes.io/warn-version": "v01.2",
        });
        let (policy, errors) = read(Some(&labels));
        assert_eq!(policy.enforce.level, Level::Restricted);
        assert_eq!(policy.warn.level, Level::Privileged);
        assert_eq!(errors.len(), 2);
        assert_eq!(errors[0].field, "metadata.labels[pod-security.kubernetes.io/enforce]");
    }
}
