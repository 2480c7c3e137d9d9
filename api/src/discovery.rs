//! Aggregated discovery, as whoever asks an API server for it reads it.

use std::cmp::Reverse;

use serde::Deserialize;

/// What asks for the aggregated form, and takes another one from servers that do not have it.
pub const ACCEPT: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
/// The kind of the aggregated form.
pub const KIND: &str = "APIGroupDiscoveryList";

/// All groups of a server; `R` is as much of a resource as the reader wants.
#[derive(Debug, Deserialize)]
pub struct GroupList<R> {
    #[serde(default = "Vec::new")]
    pub items: Vec<Group<R>>,
}

#[derive(Debug, Deserialize)]
pub struct Group<R> {
    #[serde(default)]
    pub metadata: Named,
    /// Those that the group prefers come first.
    #[serde(default = "Vec::new")]
    pub versions: Vec<Version<R>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Empty for the core group.
    pub name: String,
}

#[derive(Debug, Deserialize)]
pub struct Version<R> {
    pub version: String,
    #[serde(default)]
    pub freshness: String,
    #[serde(default = "Vec::new")]
    pub resources: Vec<R>,
}

impl<R> Version<R> {
    /// What is shown is what was there before the server of this version went away.
    pub fn is_stale(&self) -> bool {
        self.freshness == "Stale"
    }
}

/// Stable versions before beta before alpha, each with the highest first; others last, by name.
pub fn rank_of_version(version: &str) -> (u8, u64, u64, Reverse<String>) {
    let other = || (0, 0, 0, Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else { return other() };
    let end = rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len());
    let (major, rest) = rest.split_at(end);
    let Ok(major) = major.parse::<u64>() else { return other() };
    let stage = |prefix: &str, rank: u8| {
        let minor = rest.strip_prefix(prefix)?;
        let minor = if minor.is_empty() { 0 } else { minor.parse::<u64>().ok()? };
        Some((rank, major, minor, Reverse(String::new())))
    };
    match rest {
        "" => (3, major, 0, Reverse(String::new())),
        _ => stage("beta", 2).or_else(|| stage("alpha", 1)).unwrap_or_else(other),
    }
}
