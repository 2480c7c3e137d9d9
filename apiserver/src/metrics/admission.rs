//! Admission: its two steps, its plugins, and what tenants' own rules came to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use insula_metrics::{Histogram, Names, Table, write::Writer};

use crate::admission::{Operation, PLUGINS, Step};

const SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOK_SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const CHECK_SECONDS: &[f64] = &[0.000_000_5, 0.001, 0.01, 0.1, 1.0];
const OPERATIONS: [Operation; 4] =
    [Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];
const STEPS: [Step; 2] = [Step::Admit, Step::Validate];
/// Names of tenants' webhooks, and of their policies and bindings, that are told apart.
const NAMES: usize = 200;

/// One histogram for each step, operation, and whether it was refused.
#[derive(Debug)]
struct Times([Histogram; 16]);

impl Default for Times {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Histogram::new(SECONDS)))
    }
}

impl Times {
    fn took(&self, step: Step, operation: Operation, is_refused: bool, took: Duration) {
        let at = (step as usize * 4 + operation as usize) * 2 + usize::from(is_refused);
        self.0[at].took(took);
    }

    fn each(&self) -> impl Iterator<Item = ([(&'static str, &'static str); 3], &Histogram)> {
        let labels = STEPS.iter().flat_map(|step| {
            OPERATIONS.iter().flat_map(move |operation| {
                [false, true].map(|is_refused| of(*step, *operation, is_refused))
            })
        });
        labels.zip(&self.0)
    }
}

/// As upstream's metrics call the steps of webhooks.
fn asked(step: Step) -> &'static str {
    match step {
        Step::Admit => "admit",
        Step::Validate => "validating",
    }
}

fn of(step: Step, operation: Operation, is_refused: bool) -> [(&'static str, &'static str); 3] {
    let rejected = if is_refused { "true" } else { "false" };
    [("type", step.name()), ("operation", operation.name()), ("rejected", rejected)]
}

/// One question to one webhook.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub name: &'a str,
    pub step: Step,
    pub operation: Operation,
    pub code: u16,
    pub is_refused: bool,
    pub took: Duration,
}

/// Why a webhook's answer ends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rejection {
    /// It could not be asked, or gave no answer.
    Calling,
    /// What it made of the object is nothing.
    Internal,
    /// It says no, with this code.
    Said(u16),
}

impl Rejection {
    fn error_type(self) -> &'static str {
        match self {
            Self::Calling => "calling_webhook_error",
            Self::Internal => "apiserver_internal_error",
            Self::Said(_) => "no_error",
        }
    }

    fn code(self) -> u16 {
        match self {
            Self::Said(code) => code,
            _ => 0,
        }
    }
}

/// What a policy with a binding came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checked<'a> {
    pub policy: &'a str,
    pub binding: &'a str,
    pub error_type: &'static str,
    pub action: &'static str,
    pub took: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Hook {
    name: Arc<str>,
    step: Step,
    operation: Operation,
    is_refused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Check {
    policy: Arc<str>,
    binding: Arc<str>,
    error_type: &'static str,
    action: &'static str,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Admissions {
    steps: Times,
    /// By the place of the plugin's name in [`PLUGINS`].
    plugins: Vec<Times>,
    names: Names,
    hooks: Table<Hook, Histogram>,
    codes: Table<(Hook, u16), AtomicU64>,
    rejections: Table<(Hook, Rejection), AtomicU64>,
    opened: Table<(Arc<str>, Step), AtomicU64>,
    checks: Table<Check, Histogram>,
}

impl Default for Admissions {
    fn default() -> Self {
        Self {
            steps: Times::default(),
            plugins: PLUGINS.iter().map(|_| Times::default()).collect(),
            names: Names::new(NAMES),
            hooks: Table::default(),
            codes: Table::default(),
            rejections: Table::default(),
            opened: Table::default(),
            checks: Table::default(),
        }
    }
}

fn one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Admissions {
    /// A step of a request is done.
    pub(crate) fn step(&self, step: Step, operation: Operation, is_refused: bool, took: Duration) {
        self.steps.took(step, operation, is_refused, took);
    }

    /// A plugin has looked at a request; `plugin` is its place in [`PLUGINS`].
    pub(crate) fn plugin(
        &self,
        plugin: usize,
        (step, operation): (Step, Operation),
        is_refused: bool,
        took: Duration,
    ) {
        if let Some(times) = self.plugins.get(plugin) {
            times.took(step, operation, is_refused, took);
        }
    }

    /// A webhook was asked.
    pub(crate) fn asked(&self, it: Asked<'_>) {
        let Asked { step, operation, code, is_refused, took, .. } = it;
        let hook = Hook { name: self.names.of(it.name), step, operation, is_refused };
        self.hooks.with(&hook, || Histogram::new(WEBHOOK_SECONDS), |it| it.took(took));
        self.codes.with(&(hook, code.min(600)), AtomicU64::default, one);
    }

    /// A webhook, or that it could not be asked, ends a request.
    pub(crate) fn rejected(&self, name: &str, step: Step, operation: Operation, why: Rejection) {
        let why = match why {
            Rejection::Said(code) => Rejection::Said(code.min(600)),
            other => other,
        };
        let hook = Hook { name: self.names.of(name), step, operation, is_refused: true };
        self.rejections.with(&(hook, why), AtomicU64::default, one);
    }

    /// A webhook could not be asked, and the request goes on.
    pub(crate) fn failed_open(&self, name: &str, step: Step) {
        self.opened.with(&(self.names.of(name), step), AtomicU64::default, one);
    }

    /// A validating policy was evaluated for a binding.
    pub(crate) fn checked(&self, it: Checked<'_>) {
        let Checked { error_type, action, took, .. } = it;
        let (policy, binding) = (self.names.of(it.policy), self.names.of(it.binding));
        let check = Check { policy, binding, error_type, action };
        self.checks.with(&check, || Histogram::new(CHECK_SECONDS), |it| it.took(took));
    }

    pub(super) fn write(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let name = "apiserver_admission_step_admission_duration_seconds";
        let mut family = writer.histograms(name, "Time of a step of admission")?;
        for (labels, times) in self.steps.each() {
            family.histogram(&labels, times)?;
        }
        let name = "apiserver_admission_controller_admission_duration_seconds";
        let mut family = writer.histograms(name, "Time of a plugin of admission")?;
        for (plugin, times) in PLUGINS.iter().zip(&self.plugins) {
            for ([step, operation, rejected], times) in times.each() {
                family.histogram(&[("name", plugin), step, operation, rejected], times)?;
            }
        }
        self.write_hooks(writer)?;
        let checks = self.checks.all();
        type Write<'w> = &'w mut dyn FnMut(&[(&str, &str)]) -> std::fmt::Result;
        let labels = |it: &Check, write: Write<'_>| {
            write(&[
                ("policy", &it.policy),
                ("policy_binding", &it.binding),
                ("error_type", it.error_type),
                ("enforcement_action", it.action),
            ])
        };
        let name = "apiserver_validating_admission_policy_check";
        let mut family = writer.counters(name, "Evaluations of validating policies")?;
        for (check, times) in checks.iter() {
            labels(check, &mut |labels| family.number(labels, times.count()))?;
        }
        let name = "apiserver_validating_admission_policy_check_duration_seconds";
        let mut family = writer.histograms(name, "Time of evaluating a validating policy")?;
        for (check, times) in checks.iter() {
            labels(check, &mut |labels| family.histogram(labels, times))?;
        }
        Ok(())
    }

    fn write_hooks(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let name = "apiserver_admission_webhook_admission_duration_seconds";
        let mut family = writer.histograms(name, "Time of asking a webhook")?;
        for (hook, times) in self.hooks.all().iter() {
            let [_, operation, rejected] = of(hook.step, hook.operation, hook.is_refused);
            let step = ("type", asked(hook.step));
            family.histogram(&[("name", &hook.name), step, operation, rejected], times)?;
        }
        let name = "apiserver_admission_webhook_request";
        let mut family = writer.counters(name, "Questions to webhooks")?;
        for ((hook, code), count) in self.codes.all().iter() {
            let [_, operation, rejected] = of(hook.step, hook.operation, hook.is_refused);
            let step = ("type", asked(hook.step));
            let code = code.to_string();
            let labels = [("name", &*hook.name), step, operation, ("code", &code), rejected];
            family.counted(&labels, count)?;
        }
        // Counters, whose names are not those of counters.
        let name = "apiserver_admission_webhook_rejection_count";
        let mut family = writer.gauges(name, "Requests that a webhook ended")?;
        for ((hook, why), count) in self.rejections.all().iter() {
            let code = why.code().to_string();
            family.counted(
                &[
                    ("name", &hook.name),
                    ("type", asked(hook.step)),
                    ("operation", hook.operation.name()),
                    ("error_type", why.error_type()),
                    ("rejection_code", &code),
                ],
                count,
            )?;
        }
        let name = "apiserver_admission_webhook_fail_open_count";
        let help = "Requests that went on although a webhook could not be asked";
        let mut family = writer.gauges(name, help)?;
        for ((name, step), count) in self.opened.all().iter() {
            family.counted(&[("name", name), ("type", asked(*step))], count)?;
        }
        Ok(())
    }
}
