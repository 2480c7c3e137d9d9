//! Where a run keeps its objects: tenants and namespaces of its own, which it makes and removes.
//!
//! Everything of a run carries its id as a label, so that what a run left that was killed can be
//! found and removed by the next.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use insula_client::Error;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    LoadError,
    measure::{Outcome, Recorder, Times, outcome},
    scenario::Scenario,
    target::{Resource, Target, prefix},
    template::RUN_LABEL,
};

/// Places that are made or removed at the same time.
const AT_ONCE: usize = 16;
/// How long a tenant may take to be ready, and how often that is looked at.
const READY: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);
/// Objects of a list page.
const PAGE: usize = 500;
const SETUP: &str = "setup";
const JSON: &str = "application/json";

/// A namespace of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index in [`Places::tenants`].
    pub(crate) tenant: usize,
    pub(crate) namespace: String,
}

/// A tenant, or what takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    /// Absent where there are no tenants.
    pub(crate) tenant: Option<String>,
    /// Whether the run made the tenant.
    pub(crate) is_ours: bool,
}

impl Home {
    /// The beginning of its paths.
    pub(crate) fn prefix(&self) -> String {
        prefix(self.tenant.as_deref())
    }

    pub(crate) fn name(&self) -> &str {
        self.tenant.as_deref().unwrap_or_default()
    }
}

/// All places of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    pub(crate) tenants: Vec<Home>,
    pub(crate) all: Vec<Place>,
    /// By name of the group, which of `all`.
    pub(crate) groups: Vec<(String, Vec<usize>)>,
}

impl Places {
    /// What a scenario asks for; nothing is made yet.
    pub(crate) fn plan(scenario: &Scenario, run: &str, has_tenants: bool) -> Self {
        let mut places = Self::default();
        let n_namespaces = scenario.namespaces.map_or(1, |it| it.0.max(1));
        if !has_tenants {
            places.tenants.push(Home { tenant: None, is_ours: false });
        }
        for (group, count, names) in scenario.groups() {
            let mut members = Vec::new();
            for index in 0..count {
                let given = usize::try_from(index).ok().and_then(|it| names.get(it));
                let own = given.cloned().unwrap_or_else(|| format!("lt-{run}-{group}-{index}"));
                let tenant = if has_tenants {
                    let is_ours = given.is_none();
                    places.tenants.push(Home { tenant: Some(own.clone()), is_ours });
                    places.tenants.len() - 1
                } else {
                    0
                };
                for n in 0..n_namespaces {
                    let namespace = match has_tenants {
                        true => format!("lt-{run}-{n}"),
                        false => format!("lt-{run}-{group}-{index}-{n}"),
                    };
                    members.push(places.all.len());
                    places.all.push(Place { tenant, namespace });
                }
            }
            places.groups.push((group.to_owned(), members));
        }
        places
    }

    /// The places of a group, or all.
    pub(crate) fn of(&self, group: Option<&str>) -> Vec<usize> {
        match group {
            None => (0..self.all.len()).collect(),
            Some(group) => {
                let found = self.groups.iter().find(|it| it.0 == group);
                found.map(|it| it.1.clone()).unwrap_or_default()
            }
        }
    }

    pub(crate) fn home(&self, place: usize) -> Option<(&Home, &Place)> {
        let place = self.all.get(place)?;
        Some((self.tenants.get(place.tenant)?, place))
    }

    /// Makes all tenants and namespaces, and counts that as requests of step `setup`.
    pub(crate) async fn make(
        &self,
        target: &Target,
        recorder: &Arc<Recorder>,
        run: &str,
        mut on_made: impl FnMut(u64),
    ) -> Result<(), LoadError> {
        let ours = self.tenants.iter().filter(|it| it.is_ours).filter_map(|it| it.tenant.as_ref());
        let tenants = recorder.series(SETUP, "create", "tenants.insula.io", "resource");
        let made = stream::iter(ours.map(|tenant| {
            let tenants = tenants.clone();
            async move {
                let object = json!({"apiVersion": "insula.io/v1", "kind": "Tenant",
                    "metadata": {"name": tenant, "labels": {RUN_LABEL: run}}, "spec": {}});
                create(target, &tenants, TENANTS, &object).await?;
                until_active(target, tenant).await
            }
        }));
        let mut made = made.buffer_unordered(AT_ONCE);
        while made.try_next().await?.is_some() {
            on_made(1);
        }
        let namespaces = recorder.series(SETUP, "create", "namespaces", "resource");
        let made = stream::iter((0..self.all.len()).filter_map(|it| self.home(it)).map(
            |(home, place)| {
                let namespaces = namespaces.clone();
                async move {
                    let object = json!({"apiVersion": "v1", "kind": "Namespace",
                        "metadata": {"name": place.namespace, "labels": {RUN_LABEL: run}}});
                    let path = home.prefix() + "/api/v1/namespaces";
                    create(target, &namespaces, &path, &object).await
                }
            },
        ));
        let mut made = made.buffer_unordered(AT_ONCE);
        while made.try_next().await?.is_some() {
            on_made(1);
        }
        Ok(())
    }

    /// Removes everything of the run, and waits until it is gone or `patience` ends; what is left
    /// then, if anything.
    pub(crate) async fn remove(
        &self,
        target: &Target,
        run: &str,
        resources: &[Resource],
        patience: Duration,
    ) -> Vec<String> {
        let deadline = Instant::now() + patience;
        let mine = format!("labelSelector={RUN_LABEL}%3D{run}");
        let mut wrong = BTreeSet::new();
        // Objects first: where no controllers are, namespaces do not empty themselves.
        let homes = self.tenants.iter().filter(|it| !it.is_ours);
        for home in homes {
            for resource in resources {
                let inside = self.all.iter().filter(|it| self.tenants.get(it.tenant) == Some(home));
                let paths: Vec<String> = match resource.namespaced {
                    true => {
                        inside.map(|it| collection(home, resource, Some(&it.namespace))).collect()
                    }
                    false => vec![collection(home, resource, None)],
                };
                for path in paths {
                    wipe(target, &path, &mine, &mut wrong).await;
                }
            }
        }
        let ours: Vec<String> = self
            .tenants
            .iter()
            .filter(|it| it.is_ours)
            .map(|it| format!("{TENANTS}/{}", it.name()))
            .chain(self.all.iter().filter_map(|place| {
                let home = self.tenants.get(place.tenant).filter(|it| !it.is_ours)?;
                Some(format!("{}/api/v1/namespaces/{}", home.prefix(), place.namespace))
            }))
            .collect();
        let left = remove_all(target, ours, deadline).await;
        wrong.extend(left);
        wrong.into_iter().collect()
    }
}

/// The path of a resource's objects in a place.
pub(crate) fn collection(home: &Home, resource: &Resource, namespace: Option<&str>) -> String {
    let Resource { base, plural, namespaced } = resource;
    match namespace.filter(|_| *namespaced) {
        Some(namespace) => format!("{}{base}/namespaces/{namespace}/{plural}", home.prefix()),
        None => format!("{}{base}/{plural}", home.prefix()),
    }
}

const TENANTS: &str = "/apis/insula.io/v1/tenants";

async fn create(
    target: &Target,
    series: &crate::measure::Series,
    path: &str,
    object: &Value,
) -> Result<(), LoadError> {
    let begun = std::time::Instant::now();
    let content = Some((JSON, object.to_string().into()));
    let answer = target.connection().ask(&Method::POST, path, content).await;
    let failure = answer.map_or_else(Some, |it| it.error());
    let times = Times { intended: begun, sent: begun, done: std::time::Instant::now() };
    let became = failure.as_ref().map_or(Outcome::Answered, outcome);
    series.count(times, &became);
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let what = format!("{} {name}", object["kind"].as_str().unwrap_or_default());
    failure.map_or(Ok(()), |source| Err(LoadError::Setup { what, source: Box::new(source) }))
}

async fn until_active(target: &Target, tenant: &str) -> Result<(), LoadError> {
    let what = || format!("tenant {tenant}");
    let deadline = Instant::now() + READY;
    loop {
        let read = target.read(&format!("{TENANTS}/{tenant}")).await;
        let read = read.map_err(|it| LoadError::Setup { what: what(), source: Box::new(it) })?;
        if read.pointer("/status/phase").is_some_and(|it| it == "Active") {
            return Ok(());
        }
        if deadline <= Instant::now() {
            return Err(LoadError::NotReady { what: what(), seconds: READY.as_secs() });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Deletes all objects of a collection that are ours.
async fn wipe(target: &Target, path: &str, mine: &str, wrong: &mut BTreeSet<String>) {
    let uri = format!("{path}?{mine}&gracePeriodSeconds=0&propagationPolicy=Background");
    match target.order(Method::DELETE, &uri, None).await {
        Err(error) if !error.is_not_found() => {
            wrong.insert(format!("{path}: {error}"));
        }
        _ => (),
    }
}

/// Deletes each, and waits until it is gone; what is left at the deadline.
async fn remove_all(target: &Target, paths: Vec<String>, deadline: Instant) -> Vec<String> {
    let removed = stream::iter(paths.into_iter().map(|path| async move {
        let gone = async {
            match target.order(Method::DELETE, &path, None).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => (),
            }
            loop {
                match target.read(&path).await {
                    Err(error) if error.is_not_found() => return Ok(()),
                    _ => tokio::time::sleep(LOOK).await,
                }
            }
        };
        match tokio::time::timeout_at(deadline, gone).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{path}: {error}")),
            Err(_) => Some(format!("{path} is still being deleted (do the controllers run?)")),
        }
    }));
    removed.buffer_unordered(AT_ONCE).filter_map(async |it| it).collect().await
}

/// Tenants, namespaces and hollow nodes that earlier runs left, by run.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    paths: Vec<String>,
    pub(crate) runs: BTreeSet<String>,
}

impl Leftovers {
    /// Looks for them, and for hollow nodes if the run has some. What is being deleted is on its
    /// way, and does not count.
    pub(crate) async fn find(
        target: &Target,
        homes: &[Home],
        has_nodes: bool,
    ) -> Result<Self, Error> {
        let mut found = Self::default();
        if target.has_tenants {
            found.look(target, TENANTS).await?;
        }
        if has_nodes {
            found.look(target, target.nodes()).await?;
        }
        for home in homes.iter().filter(|it| !it.is_ours) {
            found.look(target, &(home.prefix() + "/api/v1/namespaces")).await?;
        }
        Ok(found)
    }

    async fn look(&mut self, target: &Target, path: &str) -> Result<(), Error> {
        let mut next = String::new();
        loop {
            let uri = format!("{path}?labelSelector={RUN_LABEL}&limit={PAGE}{next}");
            let list = target.read(&uri).await?;
            for item in list["items"].as_array().into_iter().flatten() {
                let meta = &item["metadata"];
                if !meta["deletionTimestamp"].is_null() {
                    continue;
                }
                self.runs.extend(meta["labels"][RUN_LABEL].as_str().map(str::to_owned));
                self.paths.extend(meta["name"].as_str().map(|name| format!("{path}/{name}")));
            }
            match list["metadata"]["continue"].as_str().filter(|it| !it.is_empty()) {
                Some(token) => next = format!("&continue={token}"),
                None => return Ok(()),
            }
        }
    }

    /// Removes them; what is left when `patience` ends.
    pub(crate) async fn remove(self, target: &Target, patience: Duration) -> Vec<String> {
        remove_all(target, self.paths, Instant::now() + patience).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(has_tenants: bool) -> Places {
        let text = "name: t\nnamespaces: 2\ntenants:\n- {name: quiet, count: 2}\n\
                    - {name: given, names: [acme]}\nsteps: [pause: {duration: 1s}]\n";
        let scenario = Scenario::parse("t", text, false, &[]).unwrap();
        Places::plan(&scenario, "r1", has_tenants)
    }

    #[test]
    fn tenants_are_ours_unless_they_are_named() {
        let places = plan(true);
        let homes: Vec<(&str, bool)> =
            places.tenants.iter().map(|it| (it.name(), it.is_ours)).collect();
        assert_eq!(homes, [("lt-r1-quiet-0", true), ("lt-r1-quiet-1", true), ("acme", false)]);
        assert_eq!((places.of(Some("given")), places.of(None).len()), (vec![4, 5], 6));
        let (home, place) = places.home(5).unwrap();
        let pods = Resource { base: "/api/v1".into(), plural: "pods".into(), namespaced: true };
        let path = collection(home, &pods, Some(&place.namespace));
        assert_eq!(path, "/tenants/acme/api/v1/namespaces/lt-r1-1/pods");
    }

    #[test]
    fn namespaces_take_the_place_of_tenants() {
        let places = plan(false);
        assert_eq!(places.tenants, [Home { tenant: None, is_ours: false }]);
        let names: Vec<&str> = places.all.iter().map(|it| it.namespace.as_str()).collect();
        let expected = [
            "lt-r1-quiet-0-0",
            "lt-r1-quiet-0-1",
            "lt-r1-quiet-1-0",
            "lt-r1-quiet-1-1",
            "lt-r1-given-0-0",
            "lt-r1-given-0-1",
        ];
        assert_eq!(names, expected);
    }
}
