//! The run: what is made, what is changed, what must come of it.

use std::{
    fmt::{Debug, Display},
    str::FromStr,
    time::{Duration, Instant},
};

use insula_api::names::TenantName;
use insula_client::{Client, Error, ListOptions, Patch, Tenant, Tenanted};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Namespace, Pod},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::{fleet::Fleet, history::Allowed, hollow};

/// How long the world may take to become as expected, on a machine that does much else.
const EVENTUALLY: Duration = Duration::from_secs(300);
const NAMESPACE: &str = "default";
const ALLOWED: Allowed = Allowed { pods: 3, surge: 1, unavailable: 1 };

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    n_tenants: usize,
    n_deployments: usize,
    lasts: Duration,
    seed: u64,
}

fn variable<T: FromStr<Err: Debug>>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |it| it.parse().unwrap())
}

impl Size {
    pub(crate) fn from_environment() -> Self {
        Self {
            n_tenants: variable("INSULA_TENANTS", 8),
            n_deployments: variable("INSULA_DEPLOYMENTS", 4),
            lasts: Duration::from_secs(variable("INSULA_SECONDS", 40)),
            seed: variable("INSULA_SEED", rand::random()),
        }
    }
}

fn deployment(name: &str) -> Deployment {
    let labels = json!({"app": name});
    let it = json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": ALLOWED.pods, "selector": {"matchLabels": labels},
            "revisionHistoryLimit": 2,
            "strategy": {"rollingUpdate": {
                "maxSurge": ALLOWED.surge, "maxUnavailable": ALLOWED.unavailable,
            }},
            "template": {
                "metadata": {"labels": labels, "annotations": {"round": "0"}},
                "spec": {"containers": [{"name": "c", "image": "none"}]},
            },
        },
    });
    serde_json::from_value(it).unwrap()
}

fn name(index: usize) -> String {
    format!("d{index}")
}

/// Tries until it is done: servers may be slow, and what is needed may not be there yet.
async fn until_done<T, E: Display>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let begin = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) if EVENTUALLY < begin.elapsed() => panic!("{what}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Makes a tenant with its deployments.
async fn make(client: &Client, tenant: &TenantName, size: Size) {
    let made = json!({
        "apiVersion": "insula.io/v1", "kind": "Tenant", "metadata": {"name": tenant.to_string()},
    });
    let tenants = client.system().api::<Tenant>();
    let made = serde_json::from_value(made).unwrap();
    until_done("a tenant", async || match tenants.create(&made).await {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    })
    .await;
    let scope = client.tenant(tenant);
    until_done("a namespace", async || scope.api::<Namespace>().get(NAMESPACE).await).await;
    let deployments = scope.namespaced::<Deployment>(NAMESPACE);
    for index in 0..size.n_deployments {
        deployments.create(&deployment(&name(index))).await.unwrap();
    }
}

pub(crate) async fn run(fleet: &Fleet, size: Size) {
    eprintln!("{size:?}");
    let mut random = StdRng::seed_from_u64(size.seed);
    let client = fleet.client().await;
    let tenants: Vec<TenantName> =
        (0..size.n_tenants).map(|n| TenantName::parse(&format!("t{n}")).unwrap()).collect();
    let (history, watches) = hollow::follow(&client).await;
    for tenant in &tenants {
        make(&client, tenant, size).await;
    }
    let mut rounds = vec![vec![0_u64; size.n_deployments]; size.n_tenants];
    until_all_are_as_asked(&client, &tenants, &rounds).await;

    let begin = Instant::now();
    let mut n_rolled = 0;
    while begin.elapsed() < size.lasts {
        let mut choices = StdRng::seed_from_u64(random.random());
        let roll = async {
            loop {
                let (tenant, index) = (
                    choices.random_range(0..size.n_tenants),
                    choices.random_range(0..size.n_deployments),
                );
                let round = &mut rounds[tenant][index];
                *round += 1;
                roll(&client, &tenants[tenant], &name(index), *round).await;
                n_rolled += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = roll => (),
            () = fleet.hurt(&mut random) => (),
        }
    }
    // One may have been interrupted between its number and its patch.
    for (tenant, rounds) in tenants.iter().zip(&rounds) {
        for (index, round) in rounds.iter().enumerate() {
            roll(&client, tenant, &name(index), *round).await;
        }
    }
    let wait = Instant::now();
    until_all_are_as_asked(&client, &tenants, &rounds).await;
    eprintln!("{n_rolled} roll-outs; the last ended {:?} after the last fault", wait.elapsed());
    assert!(watches.iter().all(|it| !it.is_finished()));
    match history.lock().unwrap().judge(ALLOWED) {
        Ok(n_made) => eprintln!("{n_made} pods were made"),
        Err(why) => panic!("{why} ({size:?})"),
    }
}

/// Gives a deployment a new template.
async fn roll(client: &Client, tenant: &TenantName, name: &str, round: u64) {
    let template = json!({"metadata": {"annotations": {"round": round.to_string()}}});
    let patch = Patch::Merge(json!({"spec": {"template": template}}));
    let deployments = client.tenant(tenant).namespaced::<Deployment>(NAMESPACE);
    deployments.patch(name, &patch).await.unwrap();
}

async fn until_all_are_as_asked(client: &Client, tenants: &[TenantName], rounds: &[Vec<u64>]) {
    for (tenant, rounds) in tenants.iter().zip(rounds) {
        let told = format!("the pods of {tenant}");
        until_done(&told, async || is_as_asked(client, tenant, rounds).await).await;
    }
}

/// Whether a tenant has exactly the pods that it asked for; why not.
async fn is_as_asked(client: &Client, tenant: &TenantName, rounds: &[u64]) -> Result<(), String> {
    let scope = client.tenant(tenant);
    let all = ListOptions::default();
    let read = |error: Error| error.to_string();
    let pods = scope.namespaced::<Pod>(NAMESPACE).list_all(&all).await.map_err(read)?;
    let sets = scope.namespaced::<ReplicaSet>(NAMESPACE).list_all(&all).await.map_err(read)?;
    let deployments =
        scope.namespaced::<Deployment>(NAMESPACE).list_all(&all).await.map_err(read)?;
    let live = pods.iter().filter(|it| !it.is_deleting()).count();
    if live != rounds.len() * ALLOWED.pods {
        return Err(format!("{live} pods"));
    }
    let known: Vec<&str> = sets.iter().map(|it| it.uid()).collect();
    let of = |pod: &Pod| pod.metadata.owner_references.iter().flatten().next().cloned();
    let orphan =
        pods.iter().find(|it| of(it).is_none_or(|owner| !known.contains(&owner.uid.as_str())));
    if let Some(orphan) = orphan {
        return Err(format!("{} has no set", orphan.name()));
    }
    for (index, round) in rounds.iter().enumerate() {
        let name = name(index);
        let is_of_it = |it: &&Tenanted<Pod>| {
            it.metadata.labels.iter().flatten().any(|(key, value)| key == "app" && *value == name)
        };
        let rounds = pods.iter().filter(is_of_it).map(|pod| {
            let annotations = pod.metadata.annotations.iter().flatten();
            annotations.filter(|it| it.0 == "round").map(|it| it.1.clone()).next()
        });
        let rounds: Vec<Option<String>> = rounds.collect();
        if rounds.len() != ALLOWED.pods || rounds.iter().any(|it| *it != Some(round.to_string())) {
            return Err(format!("{name} is of {rounds:?}, not all of {round}"));
        }
        let deployment = deployments.iter().find(|it| it.name() == name).ok_or("gone")?;
        let status = serde_json::to_value(&deployment.status).unwrap_or_default();
        let wanted = json!(ALLOWED.pods);
        for field in ["replicas", "updatedReplicas", "availableReplicas"] {
            if status[field] != wanted {
                return Err(format!("{name} has {field} {}", status[field]));
            }
        }
        if status["observedGeneration"] != json!(deployment.metadata.generation) {
            return Err(format!("{name} is not looked at"));
        }
        if status.get("unavailableReplicas").is_some_and(|it| !matches!(it, Value::Null)) {
            return Err(format!("{name} has pods that are not available"));
        }
    }
    Ok(())
}
