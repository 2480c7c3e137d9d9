//! Whether what a scenario says makes sense: what it names is there, and what its thresholds are
//! about is measured by some step.

use std::collections::BTreeSet;

use serde_json::Value;
use serde_saphyr::Location;

use super::{Name, Scenario, Slo, Step, Threshold, Work, Wrong};

type Checked = Result<(), Wrong>;

/// The step in which tenants and namespaces are made.
pub(crate) const SETUP: &str = "setup";

fn unknown(name: &Name, what: &str, known: &[&str]) -> Wrong {
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Wrong::new(name.referenced, format!("there is no {what} {:?}; there are: {known}", name.value))
}

fn refuse(at: &Name, message: &str) -> Checked {
    Err(Wrong::new(at.referenced, message.to_owned()))
}

pub(crate) fn check(scenario: &Scenario) -> Checked {
    if scenario.steps.is_empty() {
        return Err(Wrong::new(Location::UNKNOWN, "there are no steps".into()));
    }
    groups(scenario)?;
    templates(scenario)?;
    let mut names = BTreeSet::from([SETUP.to_owned()]);
    for (index, step) in scenario.steps.iter().enumerate() {
        if !names.insert(scenario.step_name(index)) {
            let message = "another step has this name";
            return step.given_name().map_or(Ok(()), |at| refuse(at, message));
        }
        check_step(scenario, index, step)?;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for threshold in &scenario.thresholds {
        for step in threshold.value.steps() {
            if !names.contains(&step.value.as_str()) {
                return Err(unknown(step, "step", &names));
            }
        }
        measurable(scenario, &threshold.value)
            .map_err(|message| Wrong::new(threshold.referenced, message))?;
    }
    Ok(())
}

fn groups(scenario: &Scenario) -> Checked {
    let mut seen = BTreeSet::new();
    for group in &scenario.tenants {
        let name = &group.name.value;
        let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if name.is_empty() || 20 < name.len() || !name.bytes().all(is_label) {
            return refuse(&group.name, "a group has a name of 1 to 20 letters a-z and digits");
        }
        if !seen.insert(name) {
            return refuse(&group.name, "another group has this name");
        }
        match (group.count, group.names.is_empty()) {
            (Some(_), false) => return refuse(&group.name, "a group has a count or names"),
            (None, true) => return refuse(&group.name, "a group needs a count, or names"),
            (Some(count), true) if count.0 == 0 => {
                return refuse(&group.name, "a group has one tenant at least");
            }
            _ => (),
        }
    }
    Ok(())
}

fn templates(scenario: &Scenario) -> Checked {
    for (name, template) in &scenario.templates {
        let has = |field: &str| template[field].as_str().is_some_and(|it| !it.is_empty());
        if !has("apiVersion") || !has("kind") {
            let message = format!("template {name:?} has no apiVersion or no kind");
            return Err(Wrong::new(Location::UNKNOWN, message));
        }
        let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if name.is_empty() || 20 < name.len() || !name.bytes().all(is_label) {
            let message = format!("template {name:?}: a name is 1 to 20 letters a-z and digits");
            return Err(Wrong::new(Location::UNKNOWN, message));
        }
        let named =
            ["/metadata/name", "/metadata/namespace"].iter().find_map(|it| template.pointer(it));
        if named.is_some_and(|it| *it != Value::Null) {
            let message =
                format!("template {name:?} has a name or a namespace, which the run gives");
            return Err(Wrong::new(Location::UNKNOWN, message));
        }
    }
    Ok(())
}

fn check_step(scenario: &Scenario, index: usize, step: &Step) -> Checked {
    if let Some(name) = step.template()
        && !scenario.templates.contains_key(&name.value)
    {
        let known: Vec<&str> = scenario.templates.keys().map(String::as_str).collect();
        return Err(unknown(name, "template", &known));
    }
    if let Some(name) = step.tenants() {
        let known: Vec<&str> = scenario.tenants.iter().map(|it| &*it.name.value).collect();
        if !known.contains(&name.value.as_str()) {
            return Err(unknown(name, "group of tenants", &known));
        }
    }
    if let Some(work) = step.work() {
        pace(step, &work)?;
        made_before(scenario, index, step, &work)?;
    }
    if let Step::Flood(flood) = step {
        let mix = flood.mix;
        if mix.create == 0 && mix.get == 0 && mix.list == 0 && mix.patch == 0 && mix.delete == 0 {
            return refuse(&flood.template, "the mix of a flood is empty");
        }
    }
    if let Step::WaitFor(wait) = step
        && !scenario.makes_pods()
    {
        let at = wait.name.as_ref().map_or(Location::UNKNOWN, |it| it.referenced);
        return Err(Wrong::new(at, "no template makes pods to wait for".into()));
    }
    if let Step::Storm(storm) = step
        && scenario.nodes.is_none()
    {
        let at = storm.name.as_ref().map_or(Location::UNKNOWN, |it| it.referenced);
        return Err(Wrong::new(at, "a storm needs nodes".into()));
    }
    Ok(())
}

fn pace(step: &Step, work: &Work<'_>) -> Checked {
    let pace = work.pace;
    if pace.rate.is_some() && pace.concurrency.is_some() {
        return refuse(work.template, "a step has a rate or a concurrency, not both");
    }
    if pace.concurrency == Some(0) || pace.max_in_flight == 0 {
        return refuse(work.template, "nothing is asked with a concurrency of 0");
    }
    let ends = pace.count.is_some() || pace.duration.is_some() || pace.background;
    // Each object once.
    let ends = ends || matches!(step, Step::Scale(_) | Step::Delete(_));
    match ends {
        true => Ok(()),
        false => refuse(work.template, "the step does not end: give it a count or a duration"),
    }
}

/// Whoever reads or changes objects needs some that have been made.
fn made_before(scenario: &Scenario, index: usize, step: &Step, work: &Work<'_>) -> Checked {
    let needs = match step {
        Step::Create(_) | Step::List(_) | Step::Churn(_) => false,
        Step::Flood(it) => it.mix.create == 0 && 0 < it.mix.get + it.mix.patch + it.mix.delete,
        _ => true,
    };
    let group = |work: &Work<'_>| work.tenants.map(|it| it.value.clone());
    let makes = |step: &Step| match step {
        Step::Create(_) | Step::Churn(_) => true,
        Step::Flood(it) => 0 < it.mix.create,
        _ => false,
    };
    let earlier = scenario.steps.iter().take(index).filter(|it| makes(it));
    let mut same = earlier
        .filter_map(Step::work)
        .filter(|it| it.template.value == work.template.value && group(it) == group(work));
    if !needs || same.next().is_some() {
        return Ok(());
    }
    let whose = group(work).map_or_else(String::new, |it| format!(" with `tenants: {it}`"));
    let (verb, template) = (step.verb(), &work.template.value);
    refuse(work.template, &format!("nothing to {verb}: no earlier step creates {template}{whose}"))
}

/// Which requests are made, by verb.
fn verbs(scenario: &Scenario, step: Option<&Name>) -> BTreeSet<&'static str> {
    let mut verbs = BTreeSet::new();
    for (index, it) in scenario.steps.iter().enumerate() {
        if step.is_some_and(|step| step.value != scenario.step_name(index)) {
            continue;
        }
        match it {
            Step::Churn(_) => verbs.extend(["create", "delete"]),
            Step::Flood(flood) => {
                let mix = flood.mix;
                let of = [
                    (mix.create, "create"),
                    (mix.get, "get"),
                    (mix.list, "list"),
                    (mix.patch, "patch"),
                    (mix.delete, "delete"),
                ];
                verbs.extend(of.iter().filter(|it| 0 < it.0).map(|it| it.1));
            }
            Step::WaitFor(_) | Step::Pause(_) | Step::Measure(_) | Step::Kill(_) => (),
            _ => {
                verbs.insert(it.verb());
            }
        }
    }
    if step.is_none_or(|it| it.value == SETUP) {
        verbs.insert("create");
    }
    verbs
}

/// Whether anything measures what a threshold is about; the message is what is wrong.
fn measurable(scenario: &Scenario, threshold: &Threshold) -> Result<(), String> {
    let mutating = ["create", "patch", "scale", "delete"];
    let reading = ["get", "list"];
    let any = |of: &[&str]| of.iter().any(|it| verbs(scenario, None).contains(it));
    let not = |what: &str| Err(format!("cannot be measured: {what}"));
    match threshold {
        Threshold::Slo(Slo::ApiMutating) if !any(&mutating) => not("no step changes anything"),
        Threshold::Slo(Slo::ApiReadOnly) if !any(&reading) => not("no step reads anything"),
        Threshold::Slo(Slo::PodStartup) | Threshold::PodStartup(_) if !scenario.makes_pods() => {
            not("no template makes pods")
        }
        Threshold::WatchLag(_) if !scenario.watches() => not("no step watches"),
        Threshold::Latency(it) => {
            let verbs = verbs(scenario, it.step.as_ref());
            let known: Vec<&str> = verbs.iter().copied().collect();
            match &it.verb {
                Some(verb) if !verbs.contains(verb.as_str()) => {
                    let known = known.join(", ");
                    not(&format!("nobody makes requests of verb {verb:?}; there are: {known}"))
                }
                _ if known.is_empty() => not("the step makes no requests"),
                _ => Ok(()),
            }
        }
        Threshold::Throughput(it) if verbs(scenario, Some(&it.step)).is_empty() => {
            not("the step makes no requests")
        }
        Threshold::Outage(it) if verbs(scenario, Some(&it.step)).is_empty() => {
            not("the step makes no requests")
        }
        Threshold::Ratio(it) => {
            let (of, to) = (verbs(scenario, Some(&it.of)), verbs(scenario, Some(&it.to)));
            match of.is_disjoint(&to) {
                true => not("the two steps have no verb in common"),
                false => Ok(()),
            }
        }
        Threshold::Errors(it) if it.at_most.is_none() && it.at_most_share.is_none() => {
            Err("say how many errors there may be: atMost or atMostShare".into())
        }
        _ if threshold_percentile(threshold).is_some_and(|it| 100.0 < it) => {
            Err("a percentile is at most 100".into())
        }
        _ => Ok(()),
    }
}

fn threshold_percentile(threshold: &Threshold) -> Option<f64> {
    match threshold {
        Threshold::Latency(it) => Some(it.percentile.0),
        Threshold::WatchLag(it) => Some(it.percentile.0),
        Threshold::PodStartup(it) => Some(it.percentile.0),
        Threshold::Ratio(it) => Some(it.percentile.0),
        _ => None,
    }
}
