//! What watches have told, and whether it was allowed.
//!
//! All that a tenant has lies in one partition, so what different watches tell of it has one
//! order: that of the revisions. It is judged in that order, after the fact.

use std::collections::{BTreeMap, BTreeSet};

use insula_client::{Tenanted, WatchEvent};
use k8s_openapi::{
    api::{apps::v1::ReplicaSet, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// What deployments allow while they roll, by default numbers of pods.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) pods: usize,
    pub(crate) surge: usize,
    pub(crate) unavailable: usize,
}

/// Something became so.
#[derive(Debug, Clone)]
enum Told {
    /// A set of a deployment wants so many pods.
    Set {
        uid: String,
        deployment: String,
        wants: usize,
    },
    SetGone {
        uid: String,
    },
    /// A pod of a set counts, and is ready or not.
    Pod {
        uid: String,
        set: String,
        is_ready: bool,
    },
    /// A pod is gone, or on its way out.
    PodGone {
        uid: String,
    },
}

impl Told {
    fn uid(&self) -> &str {
        match self {
            Self::Set { uid, .. }
            | Self::SetGone { uid }
            | Self::Pod { uid, .. }
            | Self::PodGone { uid } => uid,
        }
    }
}

/// All that was told, by tenant and revision.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<(String, u64), Told>);

fn owner(meta: &ObjectMeta) -> String {
    let owners = meta.owner_references.iter().flatten();
    owners.map(|it| it.uid.clone()).next().unwrap_or_default()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|it| it.conditions.iter().flatten());
    conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

impl History {
    fn add<K: insula_client::Object>(&mut self, it: &Tenanted<K>, told: Told) {
        let revision = it.resource_version().parse().unwrap();
        self.0.insert((it.tenant.to_string(), revision), told);
    }

    pub(crate) fn learn_pod(&mut self, event: &WatchEvent<Pod>) {
        let (it, is_gone) = match event {
            WatchEvent::Added(it) | WatchEvent::Modified(it) => (it, it.is_deleting()),
            WatchEvent::Deleted(it) => (it, true),
            WatchEvent::Bookmark { .. } => return,
        };
        let uid = it.uid().to_owned();
        let told = match is_gone {
            true => Told::PodGone { uid },
            false => Told::Pod { uid, set: owner(&it.metadata), is_ready: is_ready(it) },
        };
        self.add(it, told);
    }

    pub(crate) fn learn_set(&mut self, event: &WatchEvent<ReplicaSet>) {
        let (it, is_gone) = match event {
            WatchEvent::Added(it) | WatchEvent::Modified(it) => (it, it.is_deleting()),
            WatchEvent::Deleted(it) => (it, true),
            WatchEvent::Bookmark { .. } => return,
        };
        let uid = it.uid().to_owned();
        let wants = it.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1);
        let told = match is_gone {
            true => Told::SetGone { uid },
            false => Told::Set {
                uid,
                deployment: owner(&it.metadata),
                wants: usize::try_from(wants).unwrap(),
            },
        };
        self.add(it, told);
    }

    /// Goes through all of it, and says what was not allowed. Returns how many pods were made.
    pub(crate) fn judge(&self, allowed: Allowed) -> Result<usize, String> {
        let mut state = State::new(allowed);
        for (at, told) in &self.0 {
            state.learn(told).map_err(|why| {
                format!("{why}: tenant {}, revision {}\n{}", at.0, at.1, self.before(at, told))
            })?;
        }
        Ok(state.n_made)
    }

    /// What led to it: all that was told of the same deployment.
    fn before(&self, at: &(String, u64), told: &Told) -> String {
        let until = || self.0.range((at.0.clone(), 0)..=at.clone());
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        for (_, told) in until() {
            match told {
                Told::Set { uid, deployment: owner, .. } | Told::Pod { uid, set: owner, .. } => {
                    owners.insert(uid, owner);
                }
                Told::SetGone { .. } | Told::PodGone { .. } => (),
            }
        }
        let deployment = |told: &Told| {
            let mut it = told.uid();
            while let Some(owner) = owners.get(it) {
                it = owner;
            }
            it.to_owned()
        };
        let wanted = deployment(told);
        let of_it = until().filter(|(_, told)| deployment(told) == wanted);
        let lines: Vec<String> = of_it.map(|(at, told)| format!("{} {told:?}", at.1)).collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }
}

/// How things are at a revision.
struct State {
    allowed: Allowed,
    sets: BTreeMap<String, Set>,
    /// The set of each pod that counts, and whether it is ready.
    pods: BTreeMap<String, (String, bool)>,
    /// Deployments that once had all of their pods ready.
    complete: BTreeSet<String>,
    n_made: usize,
}

#[derive(Default)]
struct Set {
    deployment: String,
    wants: usize,
    /// The most that it ever wanted.
    wanted: usize,
}

impl State {
    fn new(allowed: Allowed) -> Self {
        Self {
            allowed,
            sets: BTreeMap::new(),
            pods: BTreeMap::new(),
            complete: BTreeSet::new(),
            n_made: 0,
        }
    }

    fn learn(&mut self, told: &Told) -> Result<(), String> {
        match told {
            Told::Set { uid, deployment, wants } => {
                let set = self.sets.entry(uid.clone()).or_default();
                set.deployment.clone_from(deployment);
                set.wants = *wants;
                set.wanted = set.wanted.max(*wants);
                let of_it = self.sets.values().filter(|it| it.deployment == *deployment);
                let all: usize = of_it.map(|it| it.wants).sum();
                match all <= self.allowed.pods + self.allowed.surge {
                    true => Ok(()),
                    false => Err(format!("the sets of a deployment want {all} pods")),
                }
            }
            Told::SetGone { uid } => {
                self.sets.remove(uid);
                Ok(())
            }
            Told::Pod { uid, set, is_ready } => {
                if self.pods.insert(uid.clone(), (set.clone(), *is_ready)).is_none() {
                    self.n_made += 1;
                }
                let n_pods = self.pods.values().filter(|(of, _)| of == set).count();
                let most = self.sets.get(set).map_or(0, |it| it.wanted);
                if most < n_pods {
                    return Err(format!(
                        "{n_pods} pods of a set that never wanted more than {most}"
                    ));
                }
                self.count(set)
            }
            Told::PodGone { uid } => match self.pods.remove(uid) {
                Some((set, _)) => self.count(&set),
                None => Ok(()),
            },
        }
    }

    /// Looks how many pods of a set's deployment are ready.
    fn count(&mut self, set: &str) -> Result<(), String> {
        let Some(deployment) = self.sets.get(set).map(|it| &it.deployment) else { return Ok(()) };
        let is_of_it =
            |set: &String| self.sets.get(set).is_some_and(|it| it.deployment == *deployment);
        let ready = self.pods.values().filter(|(set, is_ready)| *is_ready && is_of_it(set)).count();
        if self.allowed.pods <= ready {
            self.complete.insert(deployment.clone());
        }
        match self.complete.contains(deployment)
            && ready + self.allowed.unavailable < self.allowed.pods
        {
            true => Err(format!("only {ready} pods of a deployment are ready")),
            false => Ok(()),
        }
    }
}
