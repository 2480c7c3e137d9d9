//! Which plugins take part, in which order, and how much each score counts.

use serde::Deserialize;
use serde_json::Value;

use super::ConfigError;
use crate::plugins::{DeschedulingHints, DynamicResources, LoadAware, RuntimeReady};

/// A plugin, the points at which it takes part, and what its score counts for.
struct Known {
    name: &'static str,
    filters: bool,
    weight: i64,
    /// Whether it takes part without being named.
    is_on: bool,
}

const fn known(name: &'static str, filters: bool, weight: i64) -> Known {
    Known { name, filters, weight, is_on: true }
}

/// One of our own, which upstream's default profile does not have.
const fn additional(name: &'static str, weight: i64) -> Known {
    Known { name, filters: false, weight, is_on: false }
}

/// Upstream's plugins that there are, in the order of its default profile, and ours. Those that do neither
/// filter nor score are part of the scheduler itself.
const ALL: [Known; 23] = [
    known("SchedulingGates", false, 0),
    known("PrioritySort", false, 0),
    known("NodeUnschedulable", true, 0),
    known("NodeName", true, 0),
    known(RuntimeReady::NAME, true, 0),
    known("TaintToleration", true, 3),
    known("NodeAffinity", true, 2),
    known("NodePorts", true, 0),
    known("NodeResourcesFit", true, 1),
    known("VolumeRestrictions", true, 0),
    known("NodeVolumeLimits", true, 0),
    known("VolumeBinding", true, 0),
    known("VolumeZone", true, 0),
    known("PodTopologySpread", true, 2),
    known("InterPodAffinity", true, 2),
    known(DynamicResources::NAME, true, 2),
    known(PREEMPTION, false, 0),
    known("NodeResourcesBalancedAllocation", false, 1),
    known("ImageLocality", false, 1),
    known("DefaultBinder", false, 0),
    known(GANGS, false, 0),
    additional(LoadAware::NAME, 1),
    additional(DeschedulingHints::NAME, 0),
];
const GANGS: &str = "GangScheduling";
const PREEMPTION: &str = "DefaultPreemption";
/// Without these there would be no scheduling, or it would not be fair.
const NEEDED: [&str; 3] = ["PrioritySort", "DefaultBinder", "SchedulingGates"];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PluginConfig {
    pub(super) name: String,
    pub(super) args: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Named {
    name: String,
    weight: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Set {
    #[serde(default)]
    enabled: Vec<Named>,
    #[serde(default)]
    disabled: Vec<Named>,
}

impl Set {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|it| it.name == "*" || it.name == name)
    }

    fn is_empty(&self) -> bool {
        self.enabled.is_empty() && self.disabled.is_empty()
    }
}

/// What a profile says of plugins, by extension point.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Plugins {
    multi_point: Set,
    pre_enqueue: Set,
    queue_sort: Set,
    pre_filter: Set,
    filter: Set,
    post_filter: Set,
    pre_score: Set,
    score: Set,
    reserve: Set,
    permit: Set,
    pre_bind: Set,
    bind: Set,
    post_bind: Set,
}

/// The plugins of a profile.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) filters: Vec<&'static str>,
    pub(super) scores: Vec<(&'static str, i64)>,
    pub(super) preempts: bool,
    pub(super) schedules_gangs: bool,
    pub(super) gives_hints: bool,
}

fn find(at: &str, name: &str) -> Result<&'static Known, ConfigError> {
    ALL.iter()
        .find(|it| it.name == name)
        .ok_or_else(|| ConfigError::invalid(at, format!("there is no plugin {name:?}")))
}

impl Plugins {
    pub(super) fn chosen(self, at: &str) -> Result<Chosen, ConfigError> {
        let at = format!("{at}.plugins");
        // A plugin prepares, reserves and binds whenever it filters: these cannot be told apart.
        let fixed = [
            ("preEnqueue", &self.pre_enqueue),
            ("queueSort", &self.queue_sort),
            ("preFilter", &self.pre_filter),
            ("preScore", &self.pre_score),
            ("reserve", &self.reserve),
            ("permit", &self.permit),
            ("preBind", &self.pre_bind),
            ("bind", &self.bind),
            ("postBind", &self.post_bind),
        ];
        if let Some((point, _)) = fixed.iter().find(|(_, set)| !set.is_empty()) {
            let why = "plugins are chosen by multiPoint, filter, postFilter and score";
            return Err(ConfigError::invalid(format!("{at}.{point}"), why));
        }
        let everywhere = self.everywhere(&format!("{at}.multiPoint"))?;
        let filters =
            at_point(&format!("{at}.filter"), &self.filter, &everywhere, |it| it.filters)?;
        let scores =
            at_point(&format!("{at}.score"), &self.score, &everywhere, |it| it.weight != 0)?;
        let at_post = format!("{at}.postFilter");
        let post = at_point(&at_post, &self.post_filter, &everywhere, |it| it.name == PREEMPTION)?;
        let filters: Vec<&'static str> = filters.into_iter().map(|(it, _)| it.name).collect();
        Ok(Chosen {
            gives_hints: everywhere.iter().any(|(it, _)| it.name == DeschedulingHints::NAME),
            schedules_gangs: everywhere.iter().any(|(it, _)| it.name == GANGS),
            preempts: !post.is_empty(),
            scores: scores.into_iter().map(|(it, weight)| (it.name, weight)).collect(),
            filters,
        })
    }

    /// The plugins that take part wherever they can, with their weights.
    fn everywhere(&self, at: &str) -> Result<Vec<(&'static Known, i64)>, ConfigError> {
        let set = &self.multi_point;
        for it in set.disabled.iter().filter(|it| it.name != "*") {
            find(&format!("{at}.disabled"), &it.name)?;
            if NEEDED.contains(&it.name.as_str()) {
                let why = format!("{} cannot be disabled", it.name);
                return Err(ConfigError::invalid(format!("{at}.disabled"), why));
            }
        }
        let mut all = Vec::new();
        for it in ALL.iter().filter(|it| it.is_on && !set.disables(it.name)) {
            let given = set.enabled.iter().find(|named| named.name == it.name);
            all.push((it, weight(at, it, given)?));
        }
        for (n, named) in set.enabled.iter().enumerate() {
            let it = find(&format!("{at}.enabled[{n}]"), &named.name)?;
            if set.enabled[..n].iter().any(|other| other.name == named.name) {
                let why = format!("plugin {:?} is enabled twice", named.name);
                return Err(ConfigError::invalid(format!("{at}.enabled[{n}]"), why));
            }
            if !all.iter().any(|(known, _)| known.name == it.name) {
                all.push((it, weight(at, it, Some(named))?));
            }
        }
        Ok(all)
    }
}

fn weight(at: &str, known: &Known, named: Option<&Named>) -> Result<i64, ConfigError> {
    match named.and_then(|it| it.weight) {
        None | Some(0) => Ok(known.weight),
        // What is summed must not overflow.
        Some(it @ 1..=1_000_000) => Ok(it),
        Some(it) => {
            let why = format!("the weight of {} must be from 1 to 1000000, not {it}", known.name);
            Err(ConfigError::invalid(at, why))
        }
    }
}

/// The plugins of one point: first those that are named here and take part everywhere, then the
/// others that do, then what is named here alone.
fn at_point(
    at: &str,
    set: &Set,
    everywhere: &[(&'static Known, i64)],
    takes_part: impl Fn(&Known) -> bool,
) -> Result<Vec<(&'static Known, i64)>, ConfigError> {
    for it in set.disabled.iter().filter(|it| it.name != "*") {
        find(&format!("{at}.disabled"), &it.name)?;
    }
    let mut own = Vec::new();
    for (n, named) in set.enabled.iter().enumerate() {
        let at = format!("{at}.enabled[{n}]");
        let it = find(&at, &named.name)?;
        if !takes_part(it) {
            let why = format!("plugin {:?} does not extend this point", named.name);
            return Err(ConfigError::invalid(at, why));
        }
        if own.iter().any(|(known, _): &(&Known, i64)| known.name == it.name) {
            let why = format!("plugin {:?} is enabled twice", named.name);
            return Err(ConfigError::invalid(at, why));
        }
        own.push((it, weight(&at, it, Some(named))?));
    }
    let is_everywhere = |it: &Known| everywhere.iter().any(|(known, _)| known.name == it.name);
    let (mut all, alone): (Vec<_>, Vec<_>) = own.into_iter().partition(|(it, _)| is_everywhere(it));
    for (it, weight) in everywhere {
        if takes_part(it)
            && !set.disables(it.name)
            && !all.iter().any(|(known, _)| known.name == it.name)
        {
            all.push((it, *weight));
        }
    }
    all.extend(alone);
    Ok(all)
}
