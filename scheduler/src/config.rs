//! The configuration file: upstream's `KubeSchedulerConfiguration`.
//!
//! What would change nothing here (parallelism, clients, leader election) is read and left alone;
//! what asks for something that there is not (other plugins, extenders) is refused, with the place
//! where it stands.

mod args;
mod plugins;

use std::{collections::HashSet, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use self::plugins::{Chosen, PluginConfig, Plugins};
use crate::{pod::DEFAULT_SCHEDULER, profile::Profile, queue::Backoff};

/// The one version that there is.
const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";
/// Pods choose among few profiles; each costs a place in every decision's look-up.
const MAX_PROFILES: usize = 64;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("it cannot be read: {0}")]
    Syntax(String),
    #[error("{at}: {why}")]
    Invalid { at: String, why: String },
}

impl ConfigError {
    fn invalid(at: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { at: at.into(), why: why.into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<FileProfile>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    /// Every node is looked at, and scored.
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default)]
    extenders: Vec<Value>,
    #[serde(rename = "parallelism")]
    _parallelism: Option<i64>,
    #[serde(rename = "leaderElection")]
    _leader_election: Option<Value>,
    #[serde(rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<bool>,
    #[serde(rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<bool>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

/// What a configuration file says.
#[derive(Debug, Clone)]
pub struct Configuration {
    pub profiles: Vec<Profile>,
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
}

impl Configuration {
    /// Reads YAML or JSON, and checks all of it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File =
            serde_saphyr::from_str(text).map_err(|error| ConfigError::Syntax(error.to_string()))?;
        if file.api_version != API_VERSION || file.kind != KIND {
            let why =
                format!("expected {API_VERSION} {KIND}, not {} {}", file.api_version, file.kind);
            return Err(ConfigError::invalid("apiVersion", why));
        }
        if !file.extenders.is_empty() {
            return Err(ConfigError::invalid("extenders", "extenders are not supported"));
        }
        check_percentage("percentageOfNodesToScore", file.percentage_of_nodes_to_score)?;
        let default = Backoff::default();
        let initial_backoff =
            seconds("podInitialBackoffSeconds", file.pod_initial_backoff_seconds, default.first)?;
        let max_backoff =
            seconds("podMaxBackoffSeconds", file.pod_max_backoff_seconds, default.longest)?;
        if max_backoff < initial_backoff {
            let why = "must be greater than or equal to podInitialBackoffSeconds";
            return Err(ConfigError::invalid("podMaxBackoffSeconds", why));
        }
        let given =
            if file.profiles.is_empty() { vec![FileProfile::default()] } else { file.profiles };
        if MAX_PROFILES < given.len() {
            let why = format!("at most {MAX_PROFILES}, not {}", given.len());
            return Err(ConfigError::invalid("profiles", why));
        }
        let mut names = HashSet::new();
        let mut profiles = Vec::new();
        for (n, profile) in given.into_iter().enumerate() {
            let at = format!("profiles[{n}]");
            let name =
                profile.scheduler_name.clone().unwrap_or_else(|| DEFAULT_SCHEDULER.to_owned());
            if name.is_empty() {
                return Err(ConfigError::invalid(format!("{at}.schedulerName"), "must be set"));
            }
            if !names.insert(name.clone()) {
                let why = format!("duplicate value {name:?}");
                return Err(ConfigError::invalid(format!("{at}.schedulerName"), why));
            }
            check_percentage(
                &format!("{at}.percentageOfNodesToScore"),
                profile.percentage_of_nodes_to_score,
            )?;
            let made = made(&at, &name, profile)?;
            let mut others = profiles.iter().filter_map(|it: &Profile| it.hints);
            if let (Some(hints), Some(other)) = (made.hints, others.next())
                && hints != other
            {
                let why = "what DeschedulingHints is told is of nodes, and must be the same in all profiles";
                return Err(ConfigError::invalid(format!("{at}.pluginConfig"), why));
            }
            profiles.push(made);
        }
        Ok(Self { profiles, initial_backoff, max_backoff })
    }
}

fn check_percentage(at: &str, percentage: Option<i64>) -> Result<(), ConfigError> {
    match percentage {
        Some(it) if !(0..=100).contains(&it) => {
            Err(ConfigError::invalid(at, format!("must be from 0 to 100, not {it}")))
        }
        _ => Ok(()),
    }
}

fn seconds(at: &str, given: Option<i64>, default: Duration) -> Result<Duration, ConfigError> {
    match given {
        None => Ok(default),
        Some(it) => match u64::try_from(it) {
            Ok(it @ 1..=86_400) => Ok(Duration::from_secs(it)),
            _ => Err(ConfigError::invalid(at, format!("must be from 1 to 86400, not {it}"))),
        },
    }
}

fn made(at: &str, name: &str, profile: FileProfile) -> Result<Profile, ConfigError> {
    let args = args::read(at, profile.plugin_config)?;
    let Chosen { filters, scores, preempts, schedules_gangs, gives_hints } =
        profile.plugins.chosen(at)?;
    let default = Profile::default();
    Ok(Profile {
        name: name.into(),
        gates: if schedules_gangs { default.gates } else { Vec::new() },
        permits: if schedules_gangs { default.permits } else { Vec::new() },
        filters: filters.iter().filter_map(|name| args.filter(name)).collect(),
        scores: scores
            .iter()
            .filter_map(|(name, weight)| Some((*weight, args.score(name)?)))
            .collect(),
        post_filter: if preempts { Some(args.preemption()) } else { None },
        reserve: default.reserve,
        bind_timeout: args.bind_timeout(),
        hints: gives_hints.then(|| args.hints()),
    })
}

#[cfg(test)]
mod tests;
