//! Whether what was measured is what a scenario asks for: thresholds, and the objectives of
//! Kubernetes.

use hdrhistogram::Histogram;

use crate::{
    measure::{Recorder, Series, histogram, ms},
    report::{Call, Verdict, calls},
    scenario::{Errors, Latency, PodState, Ratio, Scenario, Slo, Threshold},
};

const MUTATING: [&str; 4] = ["create", "patch", "scale", "delete"];

/// The objectives that something was measured for.
pub(crate) fn slos(recorder: &Recorder) -> Vec<Verdict> {
    Slo::ALL.into_iter().filter_map(|it| slo(recorder, it)).collect()
}

/// The thresholds of a scenario. What was not measured, because the run ended before, is missed.
pub(crate) fn thresholds(scenario: &Scenario, recorder: &Recorder) -> Vec<Verdict> {
    let judge = |it: &Threshold| judge(it, recorder);
    scenario.thresholds.iter().map(|it| judge(&it.value)).collect()
}

fn nothing(what: String) -> Verdict {
    Verdict { what, held: false, measured: "nothing was measured".into() }
}

fn quantile(it: &Histogram<u64>, percentile: f64) -> f64 {
    ms(it.value_at_quantile(percentile / 100.0))
}

fn at_most(what: String, it: &Histogram<u64>, percentile: f64, limit: f64) -> Verdict {
    if it.is_empty() {
        return nothing(what);
    }
    let found = quantile(it, percentile);
    Verdict { what, held: found <= limit, measured: format!("{found:.1} ms of {}", it.len()) }
}

/// All requests that are chosen, as one.
fn merged(recorder: &Recorder, choose: impl Fn(&Series) -> bool) -> Histogram<u64> {
    let mut all = histogram();
    for series in recorder.all().iter().filter(|it| choose(it)) {
        // They have the same bounds.
        let _ = series.read(|it| all.add(&it.latency));
    }
    all
}

fn slo(recorder: &Recorder, slo: Slo) -> Option<Verdict> {
    let limit = |series: &Series| {
        let key = &series.key;
        match (slo, key.verb.as_str(), key.scope.as_str()) {
            (Slo::ApiMutating, verb, _) if MUTATING.contains(&verb) => Some(1000.0),
            (Slo::ApiReadOnly, "get", _) => Some(1000.0),
            (Slo::ApiReadOnly, "list", "namespace") => Some(5000.0),
            (Slo::ApiReadOnly, "list", _) => Some(30_000.0),
            _ => None,
        }
    };
    let name = slo.name();
    if slo == Slo::PodStartup {
        let times = recorder.startup.until(PodState::Running);
        let what = format!("{name}: pods are seen running within 5 s, 99th percentile");
        return (!times.is_empty()).then(|| at_most(what, &times, 99.0, 5000.0));
    }
    let what = match slo {
        Slo::ApiMutating => format!("{name}: each verb and resource within 1 s, 99th percentile"),
        _ => format!("{name}: one object 1 s, a namespace 5 s, more 30 s, 99th percentile"),
    };
    // Each pair of verb and resource by itself, over all steps; the worst of them is told.
    let series: Vec<_> = recorder.all().into_iter().filter(|it| limit(it).is_some()).collect();
    let mut worst: Option<(f64, String)> = None;
    for one in &series {
        let key = &one.key;
        let same = |it: &Series| {
            let other = &it.key;
            (&other.verb, &other.resource, &other.scope) == (&key.verb, &key.resource, &key.scope)
        };
        let times = merged(recorder, same);
        if times.is_empty() {
            continue;
        }
        let found = quantile(&times, 99.0);
        let share = found / limit(one).unwrap_or(1.0);
        let told = format!("{} {}: {found:.1} ms of {}", key.verb, key.resource, times.len());
        if worst.as_ref().is_none_or(|it| it.0 < share) {
            worst = Some((share, told));
        }
    }
    worst.map(|(share, measured)| Verdict { what, held: share <= 1.0, measured })
}

fn judge(threshold: &Threshold, recorder: &Recorder) -> Verdict {
    match threshold {
        Threshold::Slo(it) => slo(recorder, *it).unwrap_or_else(|| nothing(it.name().to_owned())),
        Threshold::Latency(it) => latency(it, recorder),
        Threshold::Errors(it) => errors(it, &calls(recorder)),
        Threshold::Throughput(it) => {
            let what = format!("{} answers at least {} a second", it.step.value, it.at_least.0);
            let of_step = calls(recorder);
            let rate: f64 = of_step
                .iter()
                .filter(|call| call.key.step == it.step.value)
                .map(|it| it.rate)
                .sum();
            Verdict { what, held: it.at_least.0 <= rate, measured: format!("{rate:.1}") }
        }
        Threshold::Outage(it) => {
            let limit = it.at_most.0.as_secs_f64();
            let what = format!("{} is never without an answer for {limit} s", it.step.value);
            let calls = calls(recorder);
            let of_step = calls.iter().filter(|call| call.key.step == it.step.value);
            match of_step.map(|it| it.longest_gap).reduce(f64::max) {
                None => nothing(what),
                Some(gap) => {
                    Verdict { what, held: gap <= limit, measured: format!("{gap:.2} s at most") }
                }
            }
        }
        Threshold::WatchLag(it) => {
            let (percentile, limit) = (it.percentile.0, it.at_most.0.as_secs_f64() * 1000.0);
            let what = format!("watches are told within {limit} ms, percentile {percentile}");
            at_most(what, &recorder.lag.read().0, percentile, limit)
        }
        Threshold::PodStartup(it) => {
            let (percentile, limit) = (it.percentile.0, it.at_most.0.as_secs_f64() * 1000.0);
            let until = format!("{:?}", it.until).to_lowercase();
            let what = format!("pods are {until} within {limit} ms, percentile {percentile}");
            at_most(what, &recorder.startup.until(it.until), percentile, limit)
        }
        Threshold::Memory(it) => {
            let what = format!("{} takes at most {} bytes", it.process.value, it.at_most.0);
            let found = recorder.processes.report();
            match found.iter().find(|process| process.name == it.process.value) {
                None => nothing(what),
                Some(process) => {
                    let most = process.memory_most;
                    Verdict { what, held: most <= it.at_most.0, measured: format!("{most} bytes") }
                }
            }
        }
        Threshold::Ratio(it) => ratio(it, recorder),
    }
}

fn latency(it: &Latency, recorder: &Recorder) -> Verdict {
    let (percentile, limit) = (it.percentile.0, it.at_most.0.as_secs_f64() * 1000.0);
    let step = it.step.as_ref().map(|it| it.value.as_str());
    let verb = it.verb.as_deref();
    let what = format!(
        "{}{} within {limit} ms, percentile {percentile}",
        verb.unwrap_or("all requests"),
        step.map_or_else(String::new, |it| format!(" of {it}"))
    );
    let times = merged(recorder, |series| {
        step.is_none_or(|it| it == series.key.step) && verb.is_none_or(|it| it == series.key.verb)
    });
    at_most(what, &times, percentile, limit)
}

#[allow(clippy::cast_precision_loss, reason = "numbers of requests")]
fn errors(it: &Errors, calls: &[Call]) -> Verdict {
    let step = it.step.as_ref().map(|it| it.value.as_str());
    let chosen = || calls.iter().filter(|call| step.is_none_or(|it| it == call.key.step));
    let failed: u64 = chosen().map(|it| it.failed).sum();
    let all: u64 = failed + chosen().map(|it| it.answered).sum::<u64>();
    let limit = match (it.at_most, it.at_most_share) {
        (Some(count), _) => count.0 as f64,
        (None, share) => share.map_or(0.0, |it| it.0) * all as f64,
    };
    let told = match (it.at_most, it.at_most_share) {
        (Some(count), _) => count.0.to_string(),
        (None, share) => format!("{}%", share.map_or(0.0, |it| it.0) * 100.0),
    };
    let of = step.map_or_else(String::new, |it| format!(" of {it}"));
    let what = format!("at most {told} of requests{of} fail");
    Verdict { what, held: failed as f64 <= limit, measured: format!("{failed} of {all}") }
}

fn ratio(it: &Ratio, recorder: &Recorder) -> Verdict {
    let (of, to, limit) = (&it.of.value, &it.to.value, it.at_most.0);
    let percentile = it.percentile.0;
    let what = format!("{of} takes at most {limit} times what {to} does, percentile {percentile}");
    // Only what both do can be compared.
    let all = recorder.all();
    let verbs = |step: &str| -> Vec<String> {
        all.iter().filter(|it| it.key.step == step).map(|it| it.key.verb.clone()).collect()
    };
    let (first, second) = (verbs(of), verbs(to));
    let worst = first.iter().filter(|it| second.contains(it)).filter_map(|verb| {
        let times = |step: &str| {
            merged(recorder, |series| series.key.step == step && series.key.verb == *verb)
        };
        let (of, to) = (times(of), times(to));
        let is_measured = !of.is_empty() && !to.is_empty();
        let (of, to) = (quantile(&of, percentile), quantile(&to, percentile));
        is_measured.then(|| (of / to.max(0.001), format!("{verb}: {of:.1} ms to {to:.1} ms")))
    });
    match worst.max_by(|one, other| one.0.total_cmp(&other.0)) {
        None => nothing(what),
        Some((found, told)) => {
            Verdict { what, held: found <= limit, measured: format!("{found:.2} ({told})") }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::measure::{Outcome, Processes, Times};

    /// Requests of two steps: creates of 10 and 40 ms, reads of 100 and 2,000 ms, one failure.
    fn measured() -> Recorder {
        let recorder = Recorder::new(Processes::default());
        let begin = Instant::now();
        let count = |step: &str, verb: &str, scope: &str, millis: u64, outcome: &Outcome| {
            let done = begin + Duration::from_millis(millis);
            let times = Times { intended: begin, sent: begin, done };
            recorder.series(step, verb, "pods", scope).count(times, outcome);
        };
        count("fill", "create", "resource", 10, &Outcome::Answered);
        count("more", "create", "resource", 40, &Outcome::Answered);
        count("reads", "get", "resource", 100, &Outcome::Answered);
        count("reads", "list", "namespace", 2000, &Outcome::Answered);
        let failed = Outcome::Failed { kind: "Conflict".into(), out_of_time: false };
        count("fill", "create", "resource", 5000, &failed);
        recorder
    }

    #[track_caller]
    fn check(threshold: &str, held: bool, told: &str) {
        let text = format!(
            "name: t\ntemplates: {{p: {{apiVersion: v1, kind: Pod}}}}\nsteps:\n\
             - create: {{name: fill, template: p, count: 1}}\n\
             - create: {{name: more, template: p, count: 1}}\n\
             - flood: {{name: reads, template: p, count: 1, mix: {{get: 1, list: 1}}}}\n\
             - watch: {{name: watches, template: p, count: 1}}\nthresholds: [{threshold}]\n"
        );
        let scenario = Scenario::parse("t", &text, false, &[]).unwrap();
        let verdict = thresholds(&scenario, &measured()).remove(0);
        assert_eq!(verdict.held, held, "{threshold}: {verdict:?}");
        assert!(verdict.measured.contains(told), "{threshold}: {verdict:?}");
    }

    #[test]
    fn thresholds_are_judged() {
        check("slo: api-mutating", true, "create pods: 40.0 ms of 2");
        check("slo: api-read-only", true, "list pods: 2000");
        check("slo: pod-startup", false, "nothing was measured");
        check("latency: {step: fill, atMost: 11ms}", true, "10.0 ms of 1");
        check("latency: {verb: create, atMost: 20ms}", false, "40.0 ms of 2");
        check("latency: {verb: create, percentile: 50, atMost: 20ms}", true, "10.0 ms of 2");
        check("errors: {atMost: 0}", false, "1 of 5");
        check("errors: {step: more, atMost: 0}", true, "0 of 1");
        check("errors: {atMostShare: 20%}", true, "1 of 5");
        check("errors: {atMostShare: 19%}", false, "1 of 5");
        check("ratio: {of: more, to: fill, atMost: 3}", false, "4.0");
        check("ratio: {of: more, to: fill, atMost: 5}", true, "create: 40.0 ms to 10.0 ms");
        check("watchLag: {atMost: 1s}", false, "nothing was measured");
        check("outage: {step: more, atMost: 1s}", true, "0.04 s");
        check("throughput: {step: reads, atLeast: 1000}", false, "");
    }

    /// What nobody did is not judged, unless a scenario asks for it.
    #[test]
    fn objectives_are_judged_where_something_was_measured() {
        let names: Vec<String> = slos(&measured()).into_iter().map(|it| it.what).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(slos(&Recorder::new(Processes::default())), []);
    }
}
