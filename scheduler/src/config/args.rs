//! What plugins are told.

use std::{collections::HashSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::NodeAffinity as Affinity;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{ConfigError, plugins::PluginConfig};
use crate::{
    framework::{Filter, PostFilter, Score},
    measured::Usage,
    plugins::{
        BalancedAllocation, DefaultPreemption, DefaultSpread, DeschedulingHints, DynamicResources,
        ImageLocality, InterPodAffinity, LoadAware, NodeAffinity, NodeName, NodePorts,
        NodeResourcesFit, NodeUnschedulable, NodeVolumeLimits, PodTopologySpread, RuntimeReady,
        Strategy, TaintToleration, VolumeBinding, VolumeRestrictions, VolumeZone, Weighed,
        cpu_and_memory,
    },
    profile::BIND_TIMEOUT,
};

/// The plugins of a profile, each made as it is told.
#[derive(Debug)]
pub(super) struct Args {
    affinity: Arc<NodeAffinity>,
    fit: Arc<NodeResourcesFit>,
    balanced: Arc<BalancedAllocation>,
    spread: Arc<PodTopologySpread>,
    pods: Arc<InterPodAffinity>,
    preemption: Arc<DefaultPreemption>,
    bind_timeout: Duration,
    hints: DeschedulingHints,
}

impl Args {
    pub(super) fn filter(&self, name: &str) -> Option<Arc<dyn Filter>> {
        Some(match name {
            "NodeUnschedulable" => Arc::new(NodeUnschedulable),
            "NodeName" => Arc::new(NodeName),
            RuntimeReady::NAME => Arc::new(RuntimeReady),
            "TaintToleration" => Arc::new(TaintToleration),
            "NodeAffinity" => self.affinity.clone(),
            "NodePorts" => Arc::new(NodePorts),
            "NodeResourcesFit" => self.fit.clone(),
            "VolumeRestrictions" => Arc::new(VolumeRestrictions),
            "NodeVolumeLimits" => Arc::new(NodeVolumeLimits),
            "VolumeBinding" => Arc::new(VolumeBinding),
            "VolumeZone" => Arc::new(VolumeZone),
            "PodTopologySpread" => self.spread.clone(),
            "InterPodAffinity" => self.pods.clone(),
            DynamicResources::NAME => Arc::new(DynamicResources),
            _ => return None,
        })
    }

    pub(super) fn score(&self, name: &str) -> Option<Arc<dyn Score>> {
        Some(match name {
            "TaintToleration" => Arc::new(TaintToleration),
            "NodeAffinity" => self.affinity.clone(),
            "NodeResourcesFit" => self.fit.clone(),
            "PodTopologySpread" => self.spread.clone(),
            "InterPodAffinity" => self.pods.clone(),
            DynamicResources::NAME => Arc::new(DynamicResources),
            "NodeResourcesBalancedAllocation" => self.balanced.clone(),
            "ImageLocality" => Arc::new(ImageLocality),
            LoadAware::NAME => Arc::new(LoadAware),
            _ => return None,
        })
    }

    pub(super) fn preemption(&self) -> Arc<dyn PostFilter> {
        self.preemption.clone()
    }

    pub(super) fn bind_timeout(&self) -> Duration {
        self.bind_timeout
    }

    pub(super) fn hints(&self) -> DeschedulingHints {
        self.hints
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WeighedArg {
    name: String,
    weight: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Point {
    #[serde(default)]
    utilization: i64,
    #[serde(default)]
    score: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ratio {
    #[serde(default)]
    shape: Vec<Point>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StrategyArg {
    #[serde(rename = "type")]
    kind: Option<String>,
    resources: Option<Vec<WeighedArg>>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FitArgs {
    #[serde(default)]
    ignored_resources: Vec<String>,
    #[serde(default)]
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<StrategyArg>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BalancedArgs {
    resources: Option<Vec<WeighedArg>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AffinityArgs {
    added_affinity: Option<Affinity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodsArgs {
    hard_pod_affinity_weight: Option<i64>,
    #[serde(default)]
    ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpreadArg {
    max_skew: i64,
    topology_key: String,
    when_unsatisfiable: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpreadArgs {
    #[serde(default)]
    default_constraints: Vec<SpreadArg>,
    defaulting_type: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PreemptionArgs {
    min_candidate_nodes_percentage: Option<i64>,
    min_candidate_nodes_absolute: Option<i64>,
    /// Our own.
    #[serde(default, rename = "honorQOS")]
    honor_qos: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeArgs {
    bind_timeout_seconds: Option<i64>,
}

/// Percent of what a node offers.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Percentages {
    cpu: Option<i64>,
    memory: Option<i64>,
}

/// Our own plugin's; thresholds have the names that the descheduler's LowNodeUtilization has.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HintsArgs {
    #[serde(default)]
    thresholds: Percentages,
    #[serde(default)]
    target_thresholds: Percentages,
    interval_seconds: Option<i64>,
}

/// Reads what the plugins of a profile are told.
pub(super) fn read(at: &str, configs: Vec<PluginConfig>) -> Result<Args, ConfigError> {
    let mut it = Args {
        affinity: Arc::default(),
        fit: Arc::default(),
        balanced: Arc::new(BalancedAllocation { weighed: cpu_and_memory() }),
        spread: Arc::default(),
        pods: Arc::default(),
        preemption: Arc::default(),
        bind_timeout: BIND_TIMEOUT,
        hints: DeschedulingHints::default(),
    };
    let mut seen = HashSet::new();
    for (n, config) in configs.into_iter().enumerate() {
        let at = format!("{at}.pluginConfig[{n}]");
        let PluginConfig { name, args } = config;
        if !seen.insert(name.clone()) {
            return Err(ConfigError::invalid(at, format!("repeated config for plugin {name}")));
        }
        let at = format!("{at}.args");
        match name.as_str() {
            "NodeResourcesFit" => it.fit = Arc::new(fit(&at, parsed(&at, &name, args)?)?),
            "NodeResourcesBalancedAllocation" => {
                let BalancedArgs { resources } = parsed(&at, &name, args)?;
                let weighed = weighed(&at, resources, 1)?;
                it.balanced = Arc::new(BalancedAllocation { weighed });
            }
            "NodeAffinity" => {
                let AffinityArgs { added_affinity } = parsed(&at, &name, args)?;
                let added = added_affinity.unwrap_or_default();
                it.affinity = Arc::new(NodeAffinity {
                    added_required: added
                        .required_during_scheduling_ignored_during_execution
                        .map(|it| it.node_selector_terms),
                    added_preferred: added
                        .preferred_during_scheduling_ignored_during_execution
                        .unwrap_or_default(),
                });
            }
            "InterPodAffinity" => {
                let args: PodsArgs = parsed(&at, &name, args)?;
                let hard_weight = args.hard_pod_affinity_weight.unwrap_or(1);
                in_range(&format!("{at}.hardPodAffinityWeight"), hard_weight, 0, 100)?;
                it.pods = Arc::new(InterPodAffinity {
                    hard_weight,
                    ignores_preferred_of_others: args.ignore_preferred_terms_of_existing_pods,
                });
            }
            "PodTopologySpread" => it.spread = Arc::new(spread(&at, parsed(&at, &name, args)?)?),
            "DefaultPreemption" => {
                let args: PreemptionArgs = parsed(&at, &name, args)?;
                let percentage = args.min_candidate_nodes_percentage.unwrap_or(10);
                let number = args.min_candidate_nodes_absolute.unwrap_or(100);
                in_range(&format!("{at}.minCandidateNodesPercentage"), percentage, 0, 100)?;
                in_range(&format!("{at}.minCandidateNodesAbsolute"), number, 0, i64::MAX)?;
                if percentage == 0 && number == 0 {
                    let why = "minCandidateNodesPercentage and minCandidateNodesAbsolute cannot \
                               both be 0";
                    return Err(ConfigError::invalid(at, why));
                }
                it.preemption = Arc::new(DefaultPreemption {
                    min_candidates_percentage: usize::try_from(percentage).unwrap_or(10),
                    min_candidates: usize::try_from(number).unwrap_or(100),
                    honors_qos: args.honor_qos,
                });
            }
            DeschedulingHints::NAME => it.hints = hints(&at, parsed(&at, &name, args)?)?,
            "VolumeBinding" => {
                let VolumeArgs { bind_timeout_seconds } = parsed(&at, &name, args)?;
                if let Some(seconds) = bind_timeout_seconds {
                    in_range(&format!("{at}.bindTimeoutSeconds"), seconds, 0, 86_400)?;
                    it.bind_timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
                }
            }
            other => {
                return Err(ConfigError::invalid(at, format!("plugin {other:?} takes no args")));
            }
        }
    }
    Ok(it)
}

/// Args may say what they are; then that must be right.
fn parsed<T: DeserializeOwned + Default>(
    at: &str,
    plugin: &str,
    args: Option<Value>,
) -> Result<T, ConfigError> {
    let Some(mut args) = args else { return Ok(T::default()) };
    if let Some(fields) = args.as_object_mut() {
        fields.remove("apiVersion");
        if let Some(kind) = fields.remove("kind")
            && kind != format!("{plugin}Args")
        {
            return Err(ConfigError::invalid(
                at,
                format!("expected kind {plugin}Args, not {kind}"),
            ));
        }
    }
    serde_json::from_value(args).map_err(|error| ConfigError::invalid(at, error.to_string()))
}

fn in_range(at: &str, number: i64, least: i64, most: i64) -> Result<(), ConfigError> {
    if (least..=most).contains(&number) {
        return Ok(());
    }
    Err(ConfigError::invalid(at, format!("must be from {least} to {most}, not {number}")))
}

fn weighed(
    at: &str,
    resources: Option<Vec<WeighedArg>>,
    most: i64,
) -> Result<Vec<Weighed>, ConfigError> {
    let Some(resources) = resources.filter(|it| !it.is_empty()) else {
        return Ok(cpu_and_memory());
    };
    let mut all: Vec<Weighed> = Vec::new();
    for it in resources {
        let weight = it.weight.filter(|it| *it != 0).unwrap_or(1);
        in_range(&format!("{at}.resources.{}.weight", it.name), weight, 1, most)?;
        if all.iter().any(|known| known.name == it.name) {
            return Err(ConfigError::invalid(at, format!("resource {:?} is named twice", it.name)));
        }
        all.push(Weighed { name: it.name, weight });
    }
    Ok(all)
}

fn fit(at: &str, args: FitArgs) -> Result<NodeResourcesFit, ConfigError> {
    let mut it = NodeResourcesFit {
        ignored: args.ignored_resources,
        ignored_groups: args.ignored_resource_groups,
        ..NodeResourcesFit::default()
    };
    if let Some(group) = it.ignored_groups.iter().find(|it| it.contains('/')) {
        let why = format!("resource group {group:?} cannot contain '/'");
        return Err(ConfigError::invalid(format!("{at}.ignoredResourceGroups"), why));
    }
    let Some(strategy) = args.scoring_strategy else { return Ok(it) };
    let at = format!("{at}.scoringStrategy");
    it.weighed = weighed(&at, strategy.resources, 100)?;
    it.strategy = match strategy.kind.as_deref() {
        None | Some("LeastAllocated") => Strategy::LeastAllocated,
        Some("MostAllocated") => Strategy::MostAllocated,
        Some("RequestedToCapacityRatio") => {
            let points = strategy.requested_to_capacity_ratio.unwrap_or_default().shape;
            let at = format!("{at}.requestedToCapacityRatio.shape");
            if points.is_empty() {
                return Err(ConfigError::invalid(at, "at least one point must be specified"));
            }
            let mut last = -1;
            for point in &points {
                in_range(&format!("{at}.utilization"), point.utilization, 0, 100)?;
                in_range(&format!("{at}.score"), point.score, 0, 10)?;
                if point.utilization <= last {
                    let why = "utilization values must be sorted in increasing order";
                    return Err(ConfigError::invalid(at, why));
                }
                last = point.utilization;
            }
            // The file's scores end at 10, those of plugins at 100.
            let points = points.iter().map(|it| (it.utilization, it.score * 10));
            Strategy::RequestedToCapacityRatio(points.collect())
        }
        Some(other) => {
            let why = format!(
                "must be LeastAllocated, MostAllocated or RequestedToCapacityRatio, not {other:?}"
            );
            return Err(ConfigError::invalid(format!("{at}.type"), why));
        }
    };
    Ok(it)
}

fn hints(at: &str, args: HintsArgs) -> Result<DeschedulingHints, ConfigError> {
    let default = DeschedulingHints::default();
    let HintsArgs { thresholds, target_thresholds, interval_seconds } = args;
    let usage = |it: Percentages, default: Usage| Usage {
        cpu: it.cpu.unwrap_or(default.cpu),
        memory: it.memory.unwrap_or(default.memory),
    };
    let low = usage(thresholds, default.thresholds);
    let high = usage(target_thresholds, default.target_thresholds);
    for (name, low, high) in [("cpu", low.cpu, high.cpu), ("memory", low.memory, high.memory)] {
        in_range(&format!("{at}.targetThresholds.{name}"), high, 1, 100)?;
        if !(1..=high).contains(&low) {
            let why = format!("must be from 1 to targetThresholds.{name}, {high}, not {low}");
            return Err(ConfigError::invalid(format!("{at}.thresholds.{name}"), why));
        }
    }
    let mut every = default.every;
    if let Some(seconds) = interval_seconds {
        in_range(&format!("{at}.intervalSeconds"), seconds, 1, 86_400)?;
        every = Duration::from_secs(seconds.unsigned_abs());
    }
    Ok(DeschedulingHints { thresholds: low, target_thresholds: high, every })
}

fn spread(at: &str, args: SpreadArgs) -> Result<PodTopologySpread, ConfigError> {
    let defaults = args.default_constraints;
    match args.defaulting_type.as_deref() {
        None | Some("System") if defaults.is_empty() => return Ok(PodTopologySpread::default()),
        None | Some("System") => {
            let why = "when .defaultingType is System, defaultConstraints must be empty";
            return Err(ConfigError::invalid(format!("{at}.defaultConstraints"), why));
        }
        Some("List") => (),
        Some(other) => {
            let why = format!("must be System or List, not {other:?}");
            return Err(ConfigError::invalid(format!("{at}.defaultingType"), why));
        }
    }
    let mut all = Vec::new();
    for it in defaults {
        let at = format!("{at}.defaultConstraints");
        in_range(&format!("{at}.maxSkew"), it.max_skew, 1, i64::from(i32::MAX))?;
        let is_required = match it.when_unsatisfiable.as_str() {
            "DoNotSchedule" => true,
            "ScheduleAnyway" => false,
            other => {
                let why = format!("must be DoNotSchedule or ScheduleAnyway, not {other:?}");
                return Err(ConfigError::invalid(format!("{at}.whenUnsatisfiable"), why));
            }
        };
        let topology_key = it.topology_key.as_str().into();
        all.push(DefaultSpread { topology_key, max_skew: it.max_skew, is_required });
    }
    Ok(PodTopologySpread { defaults: all, are_the_systems: false })
}
