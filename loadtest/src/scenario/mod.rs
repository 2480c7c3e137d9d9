//! Scenarios: what a load test does, and what has to come of it.
//!
//! A file is read in two goes: variables first, which `--set` and `--small` may change, then all
//! of it with their values put in.

/// Defines parts of a scenario as they may be written, and no other way.
macro_rules! written {
    ($($(#[$attribute:meta])* pub struct $name:ident { $($fields:tt)* })*) => {$(
        #[derive(Debug, Clone, serde::Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        $(#[$attribute])*
        pub struct $name { $($fields)* }
    )*};
}

mod check;
mod shipped;
mod steps;
mod thresholds;
mod values;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Location;

use self::values::with_variables;
pub use self::{
    shipped::{SHIPPED, Shipped, shipped},
    steps::{
        Create, Flood, Kill, List, Mix, MoveTenant, Name, Pace, PodState, Scope, Step, Storm,
        WaitFor, Watch, Work,
    },
    thresholds::{Errors, Latency, Ratio, Slo, Threshold},
    values::{Bytes, Count, Number, Span, Variables},
};

/// The largest scenario that is read.
const LONGEST: usize = 1 << 20;

/// What is wrong with a scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// With line, column and what is allowed there.
    #[error("{file}: {message}")]
    Syntax { file: String, message: String },
    #[error("{file}, line {line}, column {column}: {message}")]
    Meaning { file: String, line: u64, column: u64, message: String },
    #[error("{file} has no variable {name:?} to set; it has: {known}")]
    Variable { file: String, name: String, known: String },
    #[error("{file} is longer than {LONGEST} bytes")]
    TooLong { file: String },
}

written! {
    /// A load test.
    pub struct Scenario {
        pub name: String,
        /// What it is for.
        #[serde(default)]
        pub description: String,
        /// Numbers and times that have names: `$NAME` stands for them.
        #[serde(default)]
        pub variables: BTreeMap<String, Variable>,
        /// Groups of tenants that are made for the run; one of a single tenant by default. On an API
        /// without tenants a namespace takes the place of each.
        #[serde(default)]
        pub tenants: Vec<Group>,
        /// Namespaces in each tenant; 1 by default.
        pub namespaces: Option<Count>,
        /// Hollow nodes that are there during the run.
        pub nodes: Option<Nodes>,
        /// Objects to make, by name.
        #[serde(default)]
        pub templates: BTreeMap<String, Value>,
        pub steps: Vec<Step>,
        /// What has to be measured for the run to pass.
        #[serde(default)]
        #[cfg_attr(test, schemars(with = "Vec<Threshold>"))]
        pub thresholds: Vec<serde_saphyr::Spanned<Threshold>>,
    }
}

/// What `$NAME` stands for.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Variable {
    pub full: Value,
    /// With `--small`.
    pub small: Value,
}

written! {
    /// Tenants that are treated alike.
    pub struct Group {
        /// What steps call it.
        pub name: Name,
        /// How many are made.
        pub count: Option<Count>,
        /// Tenants that are there already, in place of a number; the run makes namespaces in them.
        #[serde(default)]
        pub names: Vec<String>,
    }

    /// Hollow nodes: what behaves as node agents do, without machines.
    pub struct Nodes {
        pub count: Count,
        /// Pods that each of them takes; 110 by default.
        pub pods: Option<Count>,
        /// How long a pod takes from being bound to being ready; no time by default.
        pub start_delay: Option<Span>,
    }
}

/// What of a file is read first.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    variables: BTreeMap<String, Variable>,
}

impl Scenario {
    /// Reads and checks a scenario. `file` is what errors call it.
    pub fn parse(
        file: &str,
        text: &str,
        small: bool,
        set: &[(String, String)],
    ) -> Result<Self, ScenarioError> {
        if LONGEST < text.len() {
            return Err(ScenarioError::TooLong { file: file.to_owned() });
        }
        let syntax = |error: serde_saphyr::Error| ScenarioError::Syntax {
            file: file.to_owned(),
            message: error.to_string(),
        };
        let head: Head = serde_saphyr::from_str(text).map_err(syntax)?;
        let mut variables: Variables = head
            .variables
            .into_iter()
            .map(|(name, it)| (name, if small { it.small } else { it.full }))
            .collect();
        for (name, text) in set {
            let Some(value) = variables.get_mut(name) else {
                let known: Vec<&str> = variables.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let (file, name) = (file.to_owned(), name.clone());
                return Err(ScenarioError::Variable { file, name, known });
            };
            let number = serde_json::from_str(text).ok().filter(Value::is_number);
            *value = number.unwrap_or_else(|| Value::String(text.clone()));
        }
        let mut scenario: Self =
            with_variables(&variables, || serde_saphyr::from_str(text)).map_err(syntax)?;
        for template in scenario.templates.values_mut() {
            put_in(template, &variables);
        }
        check::check(&scenario).map_err(|error| error.in_file(file))?;
        Ok(scenario)
    }

    /// What a step is called in reports.
    pub fn step_name(&self, index: usize) -> String {
        self.steps.get(index).map_or_else(String::new, |step| match step.given_name() {
            Some(name) => name.value.clone(),
            None => format!("{}-{}", step.verb(), index + 1),
        })
    }

    /// The groups of tenants: those of the file, or one.
    pub fn groups(&self) -> Vec<(&str, u64, &[String])> {
        if self.tenants.is_empty() {
            return vec![("main", 1, &[])];
        }
        let of = |it: &Group| it.count.map_or(it.names.len() as u64, |count| count.0);
        self.tenants.iter().map(|it| (it.name.value.as_str(), of(it), &*it.names)).collect()
    }

    /// Whether it makes pods, itself or by way of those who do.
    pub fn makes_pods(&self) -> bool {
        self.templates
            .values()
            .any(|it| it["kind"] == "Pod" || it.pointer("/spec/template/spec/containers").is_some())
    }

    /// Whether anything is told to watches.
    pub(crate) fn watches(&self) -> bool {
        self.steps.iter().any(|it| matches!(it, Step::Watch(_)))
    }
}

/// Puts values of variables in the place of texts that are their names.
fn put_in(value: &mut Value, variables: &Variables) {
    match value {
        Value::String(text) => {
            if let Some(known) = text.strip_prefix('$').and_then(|name| variables.get(name)) {
                *value = known.clone();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|it| put_in(it, variables)),
        Value::Object(fields) => fields.values_mut().for_each(|it| put_in(it, variables)),
        _ => (),
    }
}

/// Something that is written well and means nothing.
#[derive(Debug)]
pub(crate) struct Wrong {
    at: Location,
    message: String,
}

impl Wrong {
    fn new(at: Location, message: String) -> Self {
        Self { at, message }
    }

    pub(crate) fn in_file(self, file: &str) -> ScenarioError {
        let Self { at, message } = self;
        let (line, column) = (at.line(), at.column());
        ScenarioError::Meaning { file: file.to_owned(), line, column, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a scenario that is well, up to its steps.
    const HEAD: &str = "name: t\nvariables:\n  n: {full: 100, small: 5}\ntemplates:\n  config: {apiVersion: v1, kind: ConfigMap}\n";

    #[track_caller]
    fn check(rest: &str, expected: &[&str]) {
        let error = Scenario::parse("t.yaml", &format!("{HEAD}{rest}"), false, &[]).unwrap_err();
        let error = error.to_string();
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }

    #[test]
    fn a_typo_is_told_with_its_place_and_what_is_allowed() {
        check("stpes: []\n", &["t.yaml: error: line 6 column 1", "unknown field `stpes`", "steps"]);
        check(
            "steps:\n  - creat: {template: config}\n",
            &["line 7 column 5", "unknown variant `creat`", "create, get, list, patch"],
        );
        check(
            "steps:\n  - create: {template: config, cuont: 3}\n",
            &["line 7 column 32", "unknown field `cuont`", "count"],
        );
        check(
            "steps:\n  - create: {template: config, count: $m}\n",
            &["line 7 column 39", "there is no variable $m; there are: n"],
        );
        check(
            "steps:\n  - get: {template: confg, count: 1}\n",
            &["t.yaml, line 7, column 21", "no template \"confg\"; there are: config"],
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let step = |it: &str| format!("steps:\n  - {it}\n");
        check(&step("create: {template: config}"), &["line 7", "does not end"]);
        check(&step("get: {template: config, count: 1}"), &["no earlier step creates config"]);
        check(
            &step("create: {template: config, count: 1, rate: 1, concurrency: 1}"),
            &["a rate or a concurrency, not both"],
        );
        check(
            &step("create: {template: config, count: 1, tenants: quiet}"),
            &["no group of tenants \"quiet\"; there are: none"],
        );
        check(&step("waitFor: {pods: ready, timeout: 1s}"), &["no template makes pods"]);
        check("steps: []\n", &["there are no steps"]);
    }

    #[test]
    fn a_threshold_that_cannot_be_measured_is_refused() {
        let with = |it: &str| {
            format!(
                "steps:\n  - create: {{name: fill, template: config, count: $n}}\nthresholds:\n  - {it}\n"
            )
        };
        let measured = |it: &str, expected: &str| {
            check(&with(it), &["line 9", "cannot be measured", expected])
        };
        measured("slo: pod-startup", "no template makes pods");
        measured("slo: api-read-only", "no step reads");
        measured("watchLag: {atMost: 1s}", "no step watches");
        measured("latency: {verb: list, atMost: 1s}", "verb \"list\"; there are: create");
        check(&with("slo: fast"), &["line 9", "unknown variant `fast`", "api-mutating"]);
        check(
            &with("throughput: {step: fil, atLeast: 1}"),
            &["no step \"fil\"; there are: fill, setup"],
        );
    }

    #[test]
    fn variables_are_small_or_set() {
        let text = format!("{HEAD}steps:\n  - create: {{template: config, count: $n}}\n");
        let count = |small, set: &[(String, String)]| {
            let scenario = Scenario::parse("t", &text, small, set).unwrap();
            scenario.steps[0].work().unwrap().pace.count
        };
        let set = [("n".to_owned(), "7".to_owned())];
        assert_eq!([count(false, &[]), count(true, &[]), count(true, &set)], [100, 5, 7].map(Some));
        let error = Scenario::parse("t", &text, false, &[("m".into(), "7".into())]).unwrap_err();
        assert_eq!(error.to_string(), "t has no variable \"m\" to set; it has: n");
    }

    #[test]
    fn what_is_shipped_is_sound() {
        for shipped in SHIPPED {
            for small in [false, true] {
                let scenario = Scenario::parse(shipped.name, shipped.text, small, &[]).unwrap();
                assert_eq!(scenario.name, shipped.name);
                assert!(!scenario.description.is_empty());
            }
        }
    }

    #[test]
    fn the_example_of_the_documentation_is_sound() {
        let text = include_str!("../../../docs/reference/loadtest.md");
        let (_, rest) = text.split_once("```yaml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let scenario = Scenario::parse("example", example, true, &[]).unwrap();
        assert_eq!(scenario.groups().len(), 2);
        let document = [Slo::ApiMutating, Slo::ApiReadOnly, Slo::PodStartup];
        assert!(document.iter().all(|it| text.contains(it.name())));
        assert!(SHIPPED.iter().all(|it| text.contains(&format!("| `{}` |", it.name))));
    }

    /// What a file says once, of all pods, each of them has.
    #[test]
    fn names_are_variables_and_templates_share_what_they_have_in_common() {
        let text = shipped("scheduling").unwrap().text;
        let set = [("shape".to_owned(), "spread".to_owned())];
        let scenario = Scenario::parse("scheduling", text, true, &set).unwrap();
        assert_eq!(scenario.templates.len(), 12);
        let is_made = |it: &Step| it.template().is_some_and(|name| name.value == "spread");
        assert_eq!(scenario.steps.iter().filter(|it| is_made(it)).count(), 2);
        for name in ["affinity", "antiaffinity", "spread", "filler", "important", "large"] {
            let (one, basic) = (&scenario.templates[name], &scenario.templates["basic"]);
            assert_ne!(one["spec"], basic["spec"], "{name}");
            assert_eq!(one["spec"]["tolerations"], basic["spec"]["tolerations"], "{name}");
            assert_eq!((&one["kind"], &one["metadata"]), (&basic["kind"], &basic["metadata"]));
        }
        let set = [("shape".to_owned(), "1".to_owned())];
        let error = Scenario::parse("scheduling", text, true, &set).unwrap_err().to_string();
        assert!(error.contains("$shape is 1, and no name"), "{error}");
    }

    /// The schema that is handed out is that of the types. `INSULA_BLESS=1` writes it.
    #[test]
    fn the_schema_is_that_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/loadtest.schema.json");
        let schema = schemars::schema_for!(Scenario);
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("INSULA_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap_or_default() == text, "{path} is old");
    }
}
