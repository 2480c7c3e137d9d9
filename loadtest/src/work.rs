//! Steps that make requests to objects of a template: what one request is, and what is noted of it.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Prepared, Run},
    measure::{Outcome, Series, Times, outcome},
    pace::drive,
    places::collection,
    pool::Pool,
    scenario::{List, Mix, Pace, Scope, Step},
    template::{Names, Template},
};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// One kind of request.
#[derive(Debug)]
enum Ask {
    Create,
    Get,
    List { scope: Scope, query: String },
    Patch(Template),
    Scale(Bytes),
    Delete(Option<u64>),
}

/// A kind of request, how often it is made relative to others, and where it is counted.
#[derive(Debug)]
struct Kind {
    ask: Ask,
    weight: u32,
    series: Arc<Series>,
}

/// See the module.
pub(crate) struct Load {
    run: Arc<Run>,
    prepared: Arc<Prepared>,
    pool: Arc<Pool>,
    /// One request each turn, chosen by weight; or all of them, one after the other.
    kinds: Vec<Kind>,
    is_churn: bool,
    /// The path of the collection in each place of the pool.
    paths: Vec<String>,
}

/// The part of an answer to a write that is looked at.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    metadata: WrittenMeta<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMeta<'a> {
    #[serde(borrow)]
    resource_version: &'a str,
}

impl Load {
    pub(crate) fn new(run: &Arc<Run>, name: &str, step: &Step) -> Option<Self> {
        let work = step.work()?;
        let prepared = run.prepared.get(&work.template.value)?.clone();
        let pool = run.pool(&work.template.value, work.tenants.map(|it| it.value.as_str()));
        let asks = match step {
            Step::Create(_) => vec![(Ask::Create, 1)],
            Step::Get(_) => vec![(Ask::Get, 1)],
            Step::List(it) => vec![(Ask::List { scope: it.scope, query: query(it) }, 1)],
            Step::Patch(it) => vec![(Ask::Patch(patch(it.patch.as_ref())), 1)],
            Step::Scale(it) => {
                let body = json!({"spec": {"replicas": it.replicas.0}}).to_string();
                vec![(Ask::Scale(body.into()), 1)]
            }
            Step::Delete(it) => vec![(Ask::Delete(it.grace_period_seconds.map(|it| it.0)), 1)],
            Step::Churn(it) => {
                let grace = it.grace_period_seconds.map(|it| it.0);
                vec![(Ask::Create, 1), (Ask::Delete(grace), 1)]
            }
            Step::Flood(it) => mixed(it.mix),
            _ => return None,
        };
        let resource = prepared.name();
        let kinds = asks.into_iter().map(|(ask, weight)| {
            let series = run.recorder.series(name, ask.verb(), &resource, ask.scope());
            Kind { ask, weight, series }
        });
        let paths = pool
            .places
            .iter()
            .filter_map(|it| run.places.home(*it))
            .map(|(home, place)| collection(home, &prepared.resource, Some(&place.namespace)));
        Some(Self {
            kinds: kinds.collect(),
            is_churn: matches!(step, Step::Churn(_)),
            paths: paths.collect(),
            run: run.clone(),
            prepared,
            pool,
        })
    }

    /// Makes the requests.
    pub(crate) async fn drive(self, step: &Step, mut pace: Pace, stop: &CancellationToken) {
        if matches!(step, Step::Scale(_) | Step::Delete(_)) && pace.duration.is_none() {
            pace.count = pace.count.or_else(|| Some(self.pool.n_live()));
        }
        let (load, recorder) = (Arc::new(self), stop.clone());
        let run = load.run.clone();
        drive(pace, &run.recorder, &recorder, move |turn, intended| {
            let load = load.clone();
            async move { load.turn(turn, intended).await }
        })
        .await;
    }

    async fn turn(&self, turn: u64, intended: Instant) -> bool {
        if self.is_churn {
            let mut is_good = true;
            let mut intended = intended;
            for kind in &self.kinds {
                is_good &= self.one(kind, turn, intended).await;
                intended = Instant::now();
            }
            return is_good;
        }
        match self.choose() {
            Some(kind) => self.one(kind, turn, intended).await,
            None => false,
        }
    }

    fn choose(&self) -> Option<&Kind> {
        if let [only] = self.kinds.as_slice() {
            return Some(only);
        }
        let sum: u32 = self.kinds.iter().map(|it| it.weight).sum();
        let mut at = rand::random_range(0..sum.max(1));
        self.kinds.iter().find(|kind| match at.checked_sub(kind.weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
    }

    /// Makes one request; whether it was answered with a success.
    async fn one(&self, kind: &Kind, turn: u64, intended: Instant) -> bool {
        let index = match &kind.ask {
            Ask::Create => Some(self.pool.next()),
            Ask::List { .. } => Some(turn),
            Ask::Delete(_) => self.pool.take(),
            Ask::Scale(_) => self.pool.at(turn),
            Ask::Get | Ask::Patch(_) => self.pool.any(),
        };
        // Nothing is there (yet): nothing is asked, and nothing counted.
        let Some(index) = index else { return false };
        let at = self.pool.place(index);
        let place = self.pool.places.get(at).and_then(|it| self.run.places.home(*it));
        let (Some((home, place)), Some(path)) = (place, self.paths.get(at)) else { return false };
        let name = self.pool.name(index);
        let (run, namespace, tenant) = (self.run.id.as_str(), &place.namespace, home.name());
        let names = Names { index, name: &name, namespace, tenant, run };
        let one = || format!("{path}/{name}");
        let (method, path, content) = match &kind.ask {
            Ask::Create => {
                if self.prepared.is_pod {
                    self.run.recorder.startup.asked(tenant, namespace, &name, intended);
                }
                let body = self.prepared.template.fill(&names);
                (Method::POST, path.clone(), Some((JSON, body)))
            }
            Ask::Get => (Method::GET, one(), None),
            Ask::List { scope, query } => {
                let path = match scope {
                    Scope::Namespace => path.clone(),
                    Scope::Tenant => collection(home, &self.prepared.resource, None),
                    Scope::Cluster => self.run.everywhere(&self.prepared.resource),
                };
                (Method::GET, path + query, None)
            }
            Ask::Patch(patch) => (Method::PATCH, one(), Some((MERGE, patch.fill(&names)))),
            Ask::Scale(body) => (Method::PATCH, one() + "/scale", Some((MERGE, body.clone()))),
            Ask::Delete(grace) => {
                let query =
                    grace.map_or_else(String::new, |it| format!("?gracePeriodSeconds={it}"));
                (Method::DELETE, one() + &query, None)
            }
        };
        let sent = Instant::now();
        let answer = self.run.target.connection().ask(&method, &path, content).await;
        let times = Times { intended, sent, done: Instant::now() };
        let answer = match answer {
            Ok(answer) => match answer.error() {
                None => Ok(answer),
                Some(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let became = match &answer {
            Ok(_) => Outcome::Answered,
            Err(error) => outcome(error),
        };
        kind.series.count(times, &became);
        match (answer, &kind.ask) {
            (Ok(answer), Ask::Create | Ask::Patch(_)) => {
                if matches!(kind.ask, Ask::Create) {
                    self.pool.made(index);
                }
                if self.run.is_watched
                    && let Ok(written) = serde_json::from_slice::<Written<'_>>(&answer.body)
                    && let Ok(revision) = written.metadata.resource_version.parse()
                {
                    self.run.recorder.lag.wrote(place.tenant, revision, sent);
                }
                true
            }
            (Ok(_), _) => true,
            // It may still be there.
            (Err(error), Ask::Delete(_)) if !error.is_not_found() => {
                self.pool.made(index);
                false
            }
            (Err(error), ask) => {
                if matches!(ask, Ask::Create) && self.prepared.is_pod {
                    self.run.recorder.startup.not_made(tenant, namespace, &name);
                }
                tracing::debug!(%error, "a request failed");
                false
            }
        }
    }
}

impl Ask {
    fn verb(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::List { .. } => "list",
            Self::Patch(_) => "patch",
            Self::Scale(_) => "scale",
            Self::Delete(_) => "delete",
        }
    }

    fn scope(&self) -> &'static str {
        match self {
            Self::List { scope, .. } => scope.name(),
            _ => "resource",
        }
    }
}

fn mixed(mix: Mix) -> Vec<(Ask, u32)> {
    let list = Ask::List { scope: Scope::Namespace, query: "?limit=500".into() };
    let all = vec![
        (Ask::Create, mix.create),
        (Ask::Get, mix.get),
        (list, mix.list),
        (Ask::Patch(patch(None)), mix.patch),
        (Ask::Delete(Some(0)), mix.delete),
    ];
    all.into_iter().filter(|it| 0 < it.1).collect()
}

/// What is merged into objects: an annotation that differs each time, if nothing else.
fn patch(given: Option<&Value>) -> Template {
    let other = json!({"metadata": {"annotations": {"insula.io/loadtest": "{random}"}}});
    Template::of(given.unwrap_or(&other))
}

/// The parameters of a list.
fn query(list: &List) -> String {
    let mut query = String::new();
    let mut add = |name: &str, value: String| {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(name);
        query.push('=');
        query.push_str(&value);
    };
    let escape = |text: &String| {
        let plain = |it: &u8| it.is_ascii_alphanumeric() || b"-._~".contains(it);
        text.bytes().fold(String::new(), |mut done, byte| {
            match plain(&byte) {
                true => done.push(char::from(byte)),
                false => done.push_str(&format!("%{byte:02X}")),
            }
            done
        })
    };
    if let Some(limit) = list.limit {
        add("limit", limit.0.to_string());
    }
    if let Some(labels) = &list.label_selector {
        add("labelSelector", escape(labels));
    }
    if let Some(fields) = &list.field_selector {
        add("fieldSelector", escape(fields));
    }
    query
}
