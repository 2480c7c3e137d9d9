//! A controller as kube's users write it: it owns objects, keeps a status, cleans up behind a
//! finalizer and tells of it in events, also after the server was away.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::{core::v1::ConfigMap, events::v1};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{
        Controller,
        controller::Action,
        events::{Event, EventType, Recorder, Reporter},
        finalizer::{self, finalizer},
        wait::{await_condition, conditions},
        watcher,
    },
};
use serde_json::json;

use super::{
    boat::{self, Boat},
    client_of, soon,
};
use crate::harness::Cloud;

const WHO: &str = "harbour-master";

/// Every boat has papers, of its owner; of what left the harbour there is a note.
async fn reconcile(
    boat: Arc<Boat>,
    client: Arc<Client>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    let boats: Api<Boat> = Api::default_namespaced((*client).clone());
    let maps: Api<ConfigMap> = Api::default_namespaced((*client).clone());
    finalizer(&boats, "harbour.example.com/papers", boat, |event| async {
        let apply = PatchParams::apply(WHO).force();
        match event {
            finalizer::Event::Apply(boat) => {
                let name = format!("papers-{}", boat.name_any());
                let papers = json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": { "name": name, "ownerReferences": [boat.controller_owner_ref(&())] },
                    "data": { "owner": boat.spec.owner },
                });
                maps.patch(&name, &apply, &Patch::Apply(papers)).await?;
                let status = json!({
                    "apiVersion": "harbour.example.com/v1",
                    "kind": "Boat",
                    "status": { "masts": boat.spec.masts, "papers": name },
                });
                boats.patch_status(&boat.name_any(), &apply, &Patch::Apply(status)).await?;
                let recorder = Recorder::new((*client).clone(), Reporter::from(WHO));
                let event = Event {
                    type_: EventType::Normal,
                    reason: "Registered".into(),
                    note: Some(format!("of {}", boat.spec.owner)),
                    action: "Register".into(),
                    secondary: None,
                };
                recorder.publish(&event, &boat.object_ref(&())).await?;
            }
            finalizer::Event::Cleanup(boat) => {
                let mut note = ConfigMap::default();
                note.metadata.name = Some(format!("left-{}", boat.name_any()));
                maps.create(&PostParams::default(), &note).await?;
            }
        }
        Ok(Action::requeue(Duration::from_secs(3600)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_keeps_its_objects() {
    let mut cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let client = client_of(&acme).await;
    boat::define(&client).await;
    let boats: Api<Boat> = Api::default_namespaced(client.clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut running = tokio::task::JoinSet::new();
    running.spawn(
        Controller::new(boats.clone(), watcher::Config::default().streaming_lists())
            .owns(maps.clone(), watcher::Config::default())
            .run(
                reconcile,
                |_, _, _| Action::requeue(Duration::from_millis(100)),
                Arc::new(client.clone()),
            )
            .for_each(|_| std::future::ready(())),
    );

    boats.create(&PostParams::default(), &boat::boat("argo", "jason", 2)).await.unwrap();
    let has_papers = |owner: &'static str| {
        move |it: Option<&ConfigMap>| {
            it.and_then(|it| it.data.as_ref()?.get("owner")).is_some_and(|it| it == owner)
        }
    };
    let papers = await_condition(maps.clone(), "papers-argo", has_papers("jason"));
    let papers = soon("papers", papers).await.unwrap().unwrap();
    let is_known = |it: Option<&Boat>| {
        it.and_then(|it| it.status.as_ref()).is_some_and(|it| it.papers == "papers-argo")
    };
    soon("status", await_condition(boats.clone(), "argo", is_known)).await.unwrap();
    assert_eq!(boats.get_scale("argo").await.unwrap().status.unwrap().replicas, 2);

    // What somebody takes away comes back.
    maps.delete("papers-argo", &DeleteParams::default()).await.unwrap();
    let is_new = |it: Option<&ConfigMap>| it.is_some_and(|it| it.uid() != papers.uid());
    soon("papers", await_condition(maps.clone(), "papers-argo", is_new)).await.unwrap();

    cloud.terminate();
    cloud.again();
    soon("server", async { while client.apiserver_version().await.is_err() {} }).await;
    let change = Patch::Merge(json!({ "spec": { "owner": "medea" } }));
    boats.patch("argo", &PatchParams::default(), &change).await.unwrap();
    let changed = await_condition(maps.clone(), "papers-argo", has_papers("medea"));
    soon("changed papers", changed).await.unwrap();
    let events: Api<v1::Event> = Api::default_namespaced(client.clone());
    let told = ListParams::default().fields("reason=Registered");
    let is_told = async {
        let of = |it: &v1::Event, note: &str| it.note.as_deref() == Some(note);
        while !events.list(&told).await.unwrap().iter().any(|it| of(it, "of medea")) {}
    };
    soon("event", is_told).await;

    // Its controller cleans up first, then it is gone, then what it owned is.
    let uid = boats.get("argo").await.unwrap().uid().unwrap();
    boats.delete("argo", &DeleteParams::foreground()).await.unwrap();
    let gone = await_condition(boats.clone(), "argo", conditions::is_deleted(&uid));
    soon("end of the boat", gone).await.unwrap();
    maps.get("left-argo").await.unwrap();
    let gone = await_condition(maps.clone(), "papers-argo", |it: Option<&ConfigMap>| it.is_none());
    soon("end of the papers", gone).await.unwrap();
}
