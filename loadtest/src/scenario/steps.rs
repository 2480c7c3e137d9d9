//! What a scenario does, step by step.

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::values::{Count, Number, Span, named};

/// A name with the place where it is written, or `$NAME` of a variable that is one. A schema shows it
/// as the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(Spanned<String>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut name = Spanned::<String>::deserialize(deserializer)?;
        if let Some(variable) = name.value.strip_prefix('$') {
            name.value = named(variable).map_err(D::Error::custom)?;
        }
        Ok(Self(name))
    }
}

impl std::ops::Deref for Name {
    type Target = Spanned<String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Name {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        String::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

/// One step. The next one begins when it has ended, or at once if it is in the background.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Step {
    /// Make objects of a template.
    Create(Create),
    /// Read objects that were made, one by one.
    Get(Get),
    /// Read many objects at once.
    List(List),
    /// Change objects that were made.
    Patch(Patch),
    /// Set the number of replicas of workloads that were made.
    Scale(Scale),
    /// Delete objects that were made, the oldest first.
    Delete(Delete),
    /// Make an object and delete the oldest one, again and again.
    Churn(Churn),
    /// Make requests of several kinds, mixed at random.
    Flood(Flood),
    /// Open watches, which stay open until the scenario ends.
    Watch(Watch),
    /// Wait until objects that were made have got somewhere.
    WaitFor(WaitFor),
    /// Do nothing.
    Pause(Pause),
    /// What pods took and processes used until here was preparation, and is not reported.
    Measure(Measure),
    /// End a process of the target, as the operator said how.
    Kill(Kill),
    /// Move tenants to other partitions.
    MoveTenant(MoveTenant),
    /// Have all hollow nodes lose their connections and come back at once.
    Storm(Storm),
}

/// How often and for how long a step asks.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Requests a second, whether or not earlier ones have been answered.
    pub rate: Option<f64>,
    /// Requests at the same time, each begun when one has been answered.
    pub concurrency: Option<u64>,
    /// At most so many are under way at a rate.
    pub max_in_flight: u64,
    pub count: Option<u64>,
    pub duration: Option<std::time::Duration>,
    pub background: bool,
}

/// More requests than this are not under way at once, if a step does not say otherwise.
const MAX_IN_FLIGHT: u64 = 2_000;

/// What all steps have that make requests to objects of a template.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    pub name: Option<&'a Name>,
    pub template: &'a Name,
    pub tenants: Option<&'a Name>,
    pub pace: Pace,
}

/// Defines the steps that make requests: what all of them have, and what each has of its own.
macro_rules! work {
    ($($(#[$doc:meta])* $step:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        written! {
        $(#[$doc])*
        pub struct $step {
            $($(#[$field_doc])* pub $field: $type,)*
            /// Which template's objects.
            pub template: Name,
            /// What the step is called in reports; by default what it does.
            pub name: Option<Name>,
            /// Which tenants' objects: the name of a group, all by default.
            pub tenants: Option<Name>,
            /// Requests a second, begun on time whether or not others have been answered.
            pub rate: Option<Number>,
            /// Requests at the same time, each begun when another has been answered; 8 by default.
            pub concurrency: Option<Count>,
            /// With a rate, how many may be under way at once; 2000 by default.
            pub max_in_flight: Option<Count>,
            /// How many requests in all.
            pub count: Option<Count>,
            /// For how long.
            pub duration: Option<Span>,
            /// Go on beside the next steps; without count and duration, until they have ended.
            #[serde(default)]
            pub background: bool,
        }
        }

        impl $step {
            pub(crate) fn work(&self) -> Work<'_> {
                Work {
                    name: self.name.as_ref(),
                    template: &self.template,
                    tenants: self.tenants.as_ref(),
                    pace: Pace {
                        rate: self.rate.map(|it| it.0),
                        concurrency: self.concurrency.map(|it| it.0),
                        max_in_flight: self.max_in_flight.map_or(MAX_IN_FLIGHT, |it| it.0),
                        count: self.count.map(|it| it.0),
                        duration: self.duration.map(|it| it.0),
                        background: self.background,
                    },
                }
            }
        }
    )*};
}

work! {
    /// See [`Step::Create`].
    Create {}
    /// See [`Step::Get`].
    Get {}
    /// See [`Step::List`].
    List {
        /// Objects of a namespace, of a tenant (all its namespaces), or of the whole cluster.
        #[serde(default)]
        scope: Scope,
        /// At most so many in an answer; no limit by default.
        limit: Option<Count>,
        /// Only objects with these labels: `app=web`.
        label_selector: Option<String>,
        /// Only objects with these fields: `spec.nodeName=n1`.
        field_selector: Option<String>,
    }
    /// See [`Step::Patch`].
    Patch {
        /// What is merged into the object; by default an annotation that differs each time.
        patch: Option<Value>,
    }
    /// See [`Step::Scale`].
    Scale {
        /// How many replicas each of them is to have.
        replicas: Count,
    }
    /// See [`Step::Delete`].
    Delete {
        /// Seconds that pods have to end; what they ask for themselves by default.
        grace_period_seconds: Option<Count>,
    }
    /// See [`Step::Churn`].
    Churn {
        /// Seconds that pods have to end; what they ask for themselves by default.
        grace_period_seconds: Option<Count>,
    }
    /// See [`Step::Flood`].
    Flood {
        /// How often each kind is made, relative to the others.
        mix: Mix,
    }
}

/// Where a list or a watch looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    #[default]
    Namespace,
    Tenant,
    Cluster,
}

impl Scope {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Tenant => "tenant",
            Self::Cluster => "cluster",
        }
    }
}

/// How often each kind of request is made, relative to the others.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mix {
    pub create: u32,
    pub get: u32,
    pub list: u32,
    pub patch: u32,
    pub delete: u32,
}

written! {
    /// See [`Step::Watch`].
    pub struct Watch {
        /// Which template's objects.
        pub template: Name,
        /// How many watches in each namespace, in each tenant, or of the whole cluster.
        pub count: Count,
        /// What each watch is about.
        #[serde(default)]
        pub scope: Scope,
        pub name: Option<Name>,
        /// Which tenants': the name of a group, all by default.
        pub tenants: Option<Name>,
    }

    /// See [`Step::WaitFor`].
    pub struct WaitFor {
        /// What is waited for.
        pub pods: PodState,
        /// How many pods; all that have been created by default.
        pub count: Option<Count>,
        /// The scenario fails if it takes longer.
        pub timeout: Span,
        pub name: Option<Name>,
    }
}

/// How far a pod has got, as watches tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum PodState {
    Created,
    Scheduled,
    Running,
    Ready,
    /// None is left.
    Gone,
}

written! {
    /// See [`Step::Pause`].
    pub struct Pause {
        pub duration: Span,
        pub name: Option<Name>,
    }

    /// See [`Step::Measure`].
    pub struct Measure {
        pub name: Option<Name>,
    }

    /// See [`Step::Kill`].
    pub struct Kill {
        /// What the operator called it: `--command NAME=COMMAND` or `--process NAME=PID`.
        pub target: Name,
        pub name: Option<Name>,
    }

    /// See [`Step::MoveTenant`].
    pub struct MoveTenant {
        /// Which tenants: the name of a group, all by default. One after the other.
        pub tenants: Option<Name>,
        /// To which partition; by default the one after that where the tenant is.
        pub partition: Option<String>,
        /// The scenario fails if one takes longer.
        pub timeout: Span,
        pub name: Option<Name>,
    }

    /// See [`Step::Storm`].
    pub struct Storm {
        /// The scenario fails if it takes longer until all are back.
        pub timeout: Span,
        pub name: Option<Name>,
    }
}

impl Step {
    /// What it does, in one word.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Get(_) => "get",
            Self::List(_) => "list",
            Self::Patch(_) => "patch",
            Self::Scale(_) => "scale",
            Self::Delete(_) => "delete",
            Self::Churn(_) => "churn",
            Self::Flood(_) => "flood",
            Self::Watch(_) => "watch",
            Self::WaitFor(_) => "wait",
            Self::Pause(_) => "pause",
            Self::Measure(_) => "measure",
            Self::Kill(_) => "kill",
            Self::MoveTenant(_) => "move",
            Self::Storm(_) => "storm",
        }
    }

    /// What it asks of objects of a template, if it does.
    pub fn work(&self) -> Option<Work<'_>> {
        Some(match self {
            Self::Create(it) => it.work(),
            Self::Get(it) => it.work(),
            Self::List(it) => it.work(),
            Self::Patch(it) => it.work(),
            Self::Scale(it) => it.work(),
            Self::Delete(it) => it.work(),
            Self::Churn(it) => it.work(),
            Self::Flood(it) => it.work(),
            _ => return None,
        })
    }

    /// The name that the scenario gives it.
    pub(crate) fn given_name(&self) -> Option<&Name> {
        match self {
            Self::Watch(it) => it.name.as_ref(),
            Self::WaitFor(it) => it.name.as_ref(),
            Self::Pause(it) => it.name.as_ref(),
            Self::Measure(it) => it.name.as_ref(),
            Self::Kill(it) => it.name.as_ref(),
            Self::MoveTenant(it) => it.name.as_ref(),
            Self::Storm(it) => it.name.as_ref(),
            _ => self.work().and_then(|it| it.name),
        }
    }

    /// The group of tenants that it names.
    pub(crate) fn tenants(&self) -> Option<&Name> {
        match self {
            Self::Watch(it) => it.tenants.as_ref(),
            Self::MoveTenant(it) => it.tenants.as_ref(),
            _ => self.work().and_then(|it| it.tenants),
        }
    }

    /// The template that it names.
    pub(crate) fn template(&self) -> Option<&Name> {
        match self {
            Self::Watch(it) => Some(&it.template),
            _ => self.work().map(|it| it.template),
        }
    }
}
