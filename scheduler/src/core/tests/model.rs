//! Upstream's rules, written down as plainly as possible: no columns, no counts, nothing kept.
//! Every rule goes over all nodes and all pods.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{
        Node, NodeSelectorTerm, Pod, PodAffinityTerm, Taint, TopologySpreadConstraint,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

/// All there is. Pods have nodes; all are of one tenant.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) pods: Vec<Pod>,
}

fn labels(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> BTreeMap<String, String> {
    meta.labels.clone().unwrap_or_default()
}

fn selects(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector else { return false };
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().flatten().all(|it| {
            holds(labels, &it.key, &it.operator, it.values.as_deref().unwrap_or_default())
        })
}

fn holds(labels: &BTreeMap<String, String>, key: &str, operator: &str, values: &[String]) -> bool {
    let has = values.iter().any(|value| labels.get(key) == Some(value));
    match operator {
        "In" => has,
        "NotIn" => !has,
        "Exists" => labels.contains_key(key),
        _ => !labels.contains_key(key),
    }
}

fn meets(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = labels(&node.metadata);
    term.match_expressions
        .iter()
        .flatten()
        .all(|it| holds(&labels, &it.key, &it.operator, it.values.as_deref().unwrap_or_default()))
}

fn meets_required(pod: &Pod, node: &Node) -> bool {
    let spec = pod.spec.as_ref().unwrap();
    let labels = labels(&node.metadata);
    let required = spec
        .affinity
        .as_ref()
        .and_then(|it| it.node_affinity.as_ref())
        .and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && required.is_none_or(|it| it.node_selector_terms.iter().any(|term| meets(term, node)))
}

fn taints(node: &Node) -> Vec<Taint> {
    node.spec.as_ref().and_then(|it| it.taints.clone()).unwrap_or_default()
}

/// In these clusters a toleration names a key, or tolerates all.
fn tolerates(pod: &Pod, taint: &Taint) -> bool {
    pod.spec
        .as_ref()
        .unwrap()
        .tolerations
        .iter()
        .flatten()
        .any(|it| it.key.as_ref().is_none_or(|key| *key == taint.key))
}

fn tolerates_all(pod: &Pod, node: &Node) -> bool {
    taints(node).iter().all(|it| it.effect == "PreferNoSchedule" || tolerates(pod, it))
}

fn number(text: &str) -> i64 {
    if let Some(milli) = text.strip_suffix('m') {
        return milli.parse().unwrap();
    }
    if let Some(mebi) = text.strip_suffix("Mi") {
        return mebi.parse::<i64>().unwrap() << 20;
    }
    text.parse::<i64>().unwrap()
}

/// In thousandths of CPU, and bytes.
fn requests(pod: &Pod) -> (i64, i64) {
    let amounts = pod.spec.as_ref().unwrap().containers[0].resources.as_ref().unwrap();
    let amounts = amounts.requests.as_ref().unwrap();
    (number(&amounts["cpu"].0), number(&amounts["memory"].0))
}

fn offers(node: &Node) -> (i64, i64) {
    let offered = node.status.as_ref().unwrap().allocatable.as_ref().unwrap();
    (number(&offered["cpu"].0), number(&offered["memory"].0))
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap()
}

fn speaks_of(owner: &Pod, term: &PodAffinityTerm, pod: &Pod) -> bool {
    let named: Vec<&str> = term.namespaces.iter().flatten().map(String::as_str).collect();
    let is_in = if named.is_empty() {
        namespace(owner) == namespace(pod)
    } else {
        named.contains(&namespace(pod))
    };
    is_in && selects(term.label_selector.as_ref(), &labels(&pod.metadata))
}

fn required(pod: &Pod, anti: bool) -> Vec<PodAffinityTerm> {
    let Some(affinity) = pod.spec.as_ref().unwrap().affinity.as_ref() else { return vec![] };
    let terms = if anti {
        affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|it| it.required_during_scheduling_ignored_during_execution.clone())
    } else {
        affinity
            .pod_affinity
            .as_ref()
            .and_then(|it| it.required_during_scheduling_ignored_during_execution.clone())
    };
    terms.unwrap_or_default()
}

/// With weights, those of anti-affinity negative.
fn preferred(pod: &Pod) -> Vec<(PodAffinityTerm, i64)> {
    let Some(affinity) = pod.spec.as_ref().unwrap().affinity.as_ref() else { return vec![] };
    let to = affinity.pod_affinity.iter().flat_map(|it| {
        it.preferred_during_scheduling_ignored_during_execution.clone().unwrap_or_default()
    });
    let from = affinity.pod_anti_affinity.iter().flat_map(|it| {
        it.preferred_during_scheduling_ignored_during_execution.clone().unwrap_or_default()
    });
    let to = to.map(|it| (it.pod_affinity_term, i64::from(it.weight)));
    to.chain(from.map(|it| (it.pod_affinity_term, -i64::from(it.weight)))).collect()
}

fn scaled(scores: &mut [i64], reverse: bool) {
    let most = *scores.iter().max().unwrap();
    for it in scores {
        *it = if most == 0 { 0 } else { 100 * *it / most };
        if reverse {
            *it = 100 - *it;
        }
    }
}

impl Cluster {
    fn node_of(&self, pod: &Pod) -> &Node {
        &self.nodes[pod.spec.as_ref().unwrap().node_name.as_ref().unwrap()]
    }

    fn on(&self, name: &str) -> impl Iterator<Item = &Pod> {
        self.pods
            .iter()
            .filter(move |it| it.spec.as_ref().unwrap().node_name.as_deref() == Some(name))
    }

    /// Pods for which `test` holds that are in the same domain as `node`.
    fn near(&self, node: &Node, key: &str, test: impl Fn(&Pod) -> bool) -> i64 {
        let here = node.metadata.labels.as_ref().and_then(|it| it.get(key));
        let is_near = |pod: &&Pod| {
            here.is_some()
                && self.node_of(pod).metadata.labels.as_ref().and_then(|it| it.get(key)) == here
        };
        i64::try_from(self.pods.iter().filter(|it| test(it)).filter(is_near).count()).unwrap()
    }

    fn used(&self, name: &str, pod: &Pod) -> (i64, i64) {
        let (mut cpu, mut memory) = requests(pod);
        for other in self.on(name) {
            cpu += requests(other).0;
            memory += requests(other).1;
        }
        (cpu, memory)
    }

    fn constraints(pod: &Pod, when: &str) -> Vec<TopologySpreadConstraint> {
        let all = pod.spec.as_ref().unwrap().topology_spread_constraints.iter().flatten();
        all.filter(|it| it.when_unsatisfiable == when).cloned().collect()
    }

    /// Pods of each domain that counts for a constraint.
    fn domains(&self, pod: &Pod, it: &TopologySpreadConstraint) -> BTreeMap<String, i64> {
        let mut domains = BTreeMap::new();
        let all = Self::constraints(pod, &it.when_unsatisfiable);
        for (name, node) in &self.nodes {
            let labels_of = labels(&node.metadata);
            if !all.iter().all(|it| labels_of.contains_key(&it.topology_key))
                || (it.node_affinity_policy.as_deref() != Some("Ignore")
                    && !meets_required(pod, node))
                || (it.node_taints_policy.as_deref() == Some("Honor") && !tolerates_all(pod, node))
            {
                continue;
            }
            let matching = self.on(name).filter(|other| {
                namespace(other) == namespace(pod)
                    && selects(it.label_selector.as_ref(), &labels(&other.metadata))
            });
            *domains.entry(labels_of[&it.topology_key].clone()).or_default() +=
                i64::try_from(matching.count()).unwrap();
        }
        domains
    }

    /// Why a pod cannot be on a node.
    fn refusal(&self, pod: &Pod, name: &str) -> Vec<String> {
        let node = &self.nodes[name];
        let one = |text: &str| vec![text.to_owned()];
        if !tolerates_all(pod, node) {
            return one("node(s) had untolerated taint(s)");
        }
        if !meets_required(pod, node) {
            return one("node(s) didn't match Pod's node affinity/selector");
        }
        let (used, offered) = (self.used(name, pod), offers(node));
        let mut lacking = Vec::new();
        if offered.0 < used.0 {
            lacking.push("Insufficient cpu".to_owned());
        }
        if offered.1 < used.1 {
            lacking.push("Insufficient memory".to_owned());
        }
        if !lacking.is_empty() {
            return lacking;
        }
        for it in Self::constraints(pod, "DoNotSchedule") {
            let Some(here) = labels(&node.metadata).get(&it.topology_key).cloned() else {
                return one(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                );
            };
            let domains = self.domains(pod, &it);
            let enough = usize::try_from(it.min_domains.unwrap_or(1)).unwrap() <= domains.len();
            let least = if enough { domains.values().min().copied().unwrap_or(0) } else { 0 };
            let own = i64::from(selects(it.label_selector.as_ref(), &labels(&pod.metadata)));
            if i64::from(it.max_skew) < domains.get(&here).copied().unwrap_or(0) + own - least {
                return one("node(s) didn't match pod topology spread constraints");
            }
        }
        let to = required(pod, false);
        let is_friend = |other: &Pod| to.iter().all(|term| speaks_of(pod, term, other));
        let nobody = to.iter().all(|term| {
            self.nodes.values().all(|node| self.near(node, &term.topology_key, is_friend) == 0)
        });
        let has_label =
            |term: &PodAffinityTerm| labels(&node.metadata).contains_key(&term.topology_key);
        let has_friends =
            |term: &PodAffinityTerm| self.near(node, &term.topology_key, is_friend) != 0;
        if !to.iter().all(has_label) || !(to.iter().all(has_friends) || (nobody && is_friend(pod)))
        {
            return one("node(s) didn't match pod affinity rules");
        }
        for term in required(pod, true) {
            if self.near(node, &term.topology_key, |other| speaks_of(pod, &term, other)) != 0 {
                return one("node(s) didn't match pod anti-affinity rules");
            }
        }
        for other in &self.pods {
            for term in required(other, true) {
                let here = labels(&node.metadata).get(&term.topology_key).cloned();
                let there = labels(&self.node_of(other).metadata).get(&term.topology_key).cloned();
                if speaks_of(other, &term, pod) && here.is_some() && here == there {
                    return one("node(s) didn't satisfy existing pods anti-affinity rules");
                }
            }
        }
        vec![]
    }

    /// The best nodes for a pod, or what is said if there are none.
    pub(super) fn look(&self, pod: &Pod) -> Result<BTreeSet<String>, String> {
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut feasible = Vec::new();
        for name in self.nodes.keys() {
            let refusal = self.refusal(pod, name);
            if refusal.is_empty() {
                feasible.push(name.clone());
            }
            for reason in refusal {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        if feasible.is_empty() {
            let mut said: Vec<String> =
                reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            said.sort();
            return Err(format!(
                "0/{} nodes are available: {}.",
                self.nodes.len(),
                said.join(", ")
            ));
        }
        let totals = self.scores(pod, &feasible);
        let best = totals.iter().max().unwrap();
        let best = feasible.iter().zip(&totals).filter(|(_, total)| *total == best);
        Ok(best.map(|(name, _)| name.clone()).collect())
    }

    fn scores(&self, pod: &Pod, names: &[String]) -> Vec<i64> {
        let mut totals = vec![0; names.len()];
        let mut add = |weight: i64, scores: Vec<i64>| {
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += weight * score;
            }
        };
        let nodes: Vec<&Node> = names.iter().map(|name| &self.nodes[name]).collect();
        let shy = |node: &&Node| {
            let taints = taints(node);
            let shy =
                taints.iter().filter(|it| it.effect == "PreferNoSchedule" && !tolerates(pod, it));
            i64::try_from(shy.count()).unwrap()
        };
        let mut scores: Vec<i64> = nodes.iter().map(shy).collect();
        scaled(&mut scores, true);
        add(3, scores);

        let wanted = pod.spec.as_ref().unwrap().affinity.as_ref();
        let wanted = wanted.and_then(|it| it.node_affinity.as_ref());
        let wanted = wanted
            .and_then(|it| it.preferred_during_scheduling_ignored_during_execution.clone())
            .unwrap_or_default();
        let liked = |node: &&Node| {
            wanted
                .iter()
                .filter(|it| meets(&it.preference, node))
                .map(|it| i64::from(it.weight))
                .sum()
        };
        let mut scores: Vec<i64> = nodes.iter().map(liked).collect();
        scaled(&mut scores, false);
        add(2, scores);

        let (mut least, mut balanced) = (Vec::new(), Vec::new());
        for (name, node) in names.iter().zip(&nodes) {
            let (used, offered) = (self.used(name, pod), offers(node));
            let left = |used: i64, offered: i64| (offered - used) * 100 / offered;
            least.push((left(used.0, offered.0) + left(used.1, offered.1)) / 2);
            let share = |used: i64, offered: i64| (used as f64 / offered as f64).min(1.0);
            let even = |used: (i64, i64)| {
                let apart = (share(used.0, offered.0) - share(used.1, offered.1)) / 2.0;
                ((1.0 - apart.abs()) * 100.0) as i64
            };
            let asked = requests(pod);
            let before = (used.0 - asked.0, used.1 - asked.1);
            balanced.push(50 + (50 + even(used) - even(before)) / 2);
        }
        add(1, least);
        add(1, balanced);

        let mut scores: Vec<i64> = Vec::new();
        for node in &nodes {
            let mut sum = 0;
            for (term, weight) in preferred(pod) {
                sum += weight * self.near(node, &term.topology_key, |it| speaks_of(pod, &term, it));
            }
            for other in &self.pods {
                let mut terms = preferred(other);
                terms.extend(required(other, false).into_iter().map(|term| (term, 1)));
                for (term, weight) in terms {
                    let here = labels(&node.metadata).get(&term.topology_key).cloned();
                    let there =
                        labels(&self.node_of(other).metadata).get(&term.topology_key).cloned();
                    if speaks_of(other, &term, pod) && here.is_some() && here == there {
                        sum += weight;
                    }
                }
            }
            scores.push(sum);
        }
        let (low, high) = (*scores.iter().min().unwrap(), *scores.iter().max().unwrap());
        for it in &mut scores {
            *it = if low == high {
                0
            } else {
                (100.0 * ((*it - low) as f64 / (high - low) as f64)) as i64
            };
        }
        add(2, scores);
        if let Some(scores) = self.crowding(pod, names, &nodes) {
            add(2, scores);
        }
        totals
    }

    fn crowding(&self, pod: &Pod, names: &[String], nodes: &[&Node]) -> Option<Vec<i64>> {
        let all = Self::constraints(pod, "ScheduleAnyway");
        if all.is_empty() {
            return None;
        }
        let counts = |node: &&Node| {
            all.iter().all(|it| labels(&node.metadata).contains_key(&it.topology_key))
        };
        let scored: Vec<bool> = nodes.iter().map(counts).collect();
        let mut sums = vec![0.0; nodes.len()];
        for it in &all {
            let domains = self.domains(pod, it);
            let is_host = it.topology_key == "kubernetes.io/hostname";
            let values: BTreeSet<String> = nodes
                .iter()
                .zip(&scored)
                .filter(|(_, scored)| **scored)
                .map(|(node, _)| labels(&node.metadata)[&it.topology_key].clone())
                .collect();
            let size = if is_host { scored.iter().filter(|it| **it).count() } else { values.len() };
            let weight = ((size + 2) as f64).ln();
            for (n, node) in nodes.iter().enumerate().filter(|(n, _)| scored[*n]) {
                let count = if is_host {
                    let matching = self.on(&names[n]).filter(|other| {
                        namespace(other) == namespace(pod)
                            && selects(it.label_selector.as_ref(), &labels(&other.metadata))
                    });
                    i64::try_from(matching.count()).unwrap()
                } else {
                    let here = &labels(&node.metadata)[&it.topology_key];
                    domains.get(here).copied().unwrap_or(0)
                };
                sums[n] += count as f64 * weight + f64::from(it.max_skew - 1);
            }
        }
        let rounded: Vec<i64> = sums.iter().map(|it: &f64| it.round() as i64).collect();
        let of_scored = || rounded.iter().zip(&scored).filter(|(_, it)| **it).map(|(it, _)| *it);
        let (low, high) = (of_scored().min().unwrap_or(0), of_scored().max().unwrap_or(0));
        let score = |(it, scored): (&i64, &bool)| match (scored, high) {
            (false, _) => 0,
            (true, 0) => 100,
            (true, _) => 100 * (high + low - it) / high,
        };
        Some(rounded.iter().zip(&scored).map(score).collect())
    }
}
