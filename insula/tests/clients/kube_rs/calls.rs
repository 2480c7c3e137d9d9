//! What kube-rs asks besides watching.

use k8s_openapi::api::{
    apps::v1::Deployment,
    authentication::v1::TokenRequest,
    core::v1::{ConfigMap, ServiceAccount},
};
use kube::{
    Api, Client, Discovery, Error, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, ValidationDirective},
    core::{GroupVersionKind, ObjectMeta, PartialObjectMetaExt as _},
};
use serde_json::json;

use super::{
    boat::{self, Boat, Moved},
    client_of, soon,
};
use crate::harness::Cloud;

/// The code and reason of a refusal.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> (u16, String) {
    match answer.unwrap_err() {
        Error::Api(status) => (status.code, status.reason),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_and_dynamic_calls() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let client = client_of(&acme).await;
    boat::define(&client).await;
    is_discovered(&client).await;
    boats(&client).await;
    applied(&client).await;
    scaled(&client).await;
    let elsewhere: Api<ConfigMap> = Api::namespaced(client_of(&globex).await, "default");
    assert_eq!(refused(elsewhere.get("shared").await), (404, "NotFound".into()));
    asks_for_a_token(&client, &cloud.endpoint).await;
}

async fn is_discovered(client: &Client) {
    let kind = GroupVersionKind::gvk("harbour.example.com", "v1", "Boat");
    // Discovery follows a definition within a second.
    let each = Discovery::new(client.clone()).run().await.unwrap();
    let until = async {
        loop {
            let whole = Discovery::new(client.clone()).run_aggregated().await.unwrap();
            if whole.resolve_gvk(&kind).is_some() {
                return whole;
            }
        }
    };
    let whole = soon("boat in discovery", until).await;
    let groups = |it: &Discovery| -> Vec<String> {
        it.groups_alphabetical().iter().map(|it| it.name().to_owned()).collect()
    };
    assert_eq!(groups(&each), groups(&whole));
    let (_, abilities) = whole.resolve_gvk(&kind).unwrap();
    let mut parts: Vec<&str> =
        abilities.subresources.iter().map(|(it, _)| it.plural.as_str()).collect();
    parts.sort_unstable();
    assert_eq!(parts, ["scale", "status"]);
}

async fn boats(client: &Client) {
    let boats: Api<Boat> = Api::default_namespaced(client.clone());
    let create = PostParams::default();
    for (name, owner) in [("a", "ann"), ("b", "bob"), ("c", "ann"), ("d", "ann")] {
        boats.create(&create, &boat::boat(name, owner, 1)).await.unwrap();
    }
    assert_eq!(refused(boats.create(&create, &boat::boat("a", "x", 1)).await).0, 409);
    assert_eq!(refused(boats.create(&create, &boat::boat("e", "x", 8)).await).0, 422);

    let mut found = Vec::new();
    let mut page = ListParams::default().fields("spec.owner=ann").limit(2);
    loop {
        let list = boats.list(&page).await.unwrap();
        found.extend(list.items.iter().map(kube::ResourceExt::name_any));
        match list.metadata.continue_ {
            Some(token) if !token.is_empty() => page = page.continue_token(&token),
            _ => break,
        }
    }
    assert_eq!(found, ["a", "c", "d"]);

    // A default of the schema is that of the Rust type.
    let strict = PatchParams::apply("t").validation(ValidationDirective::Strict);
    let bare = json!({
        "apiVersion": "harbour.example.com/v1", "kind": "Boat", "metadata": { "name": "e" },
        "spec": { "owner": "eve", "masts": 0 },
    });
    let made = boats.patch("e", &strict, &Patch::Apply(&bare)).await.unwrap();
    assert_eq!(made.spec.moved_by, Moved::Sails);
    let mut wrong = bare.clone();
    wrong["spec"]["colour"] = "red".into();
    assert_eq!(refused(boats.patch("e", &strict, &Patch::Apply(&wrong)).await).0, 500);

    let change = json!([{ "op": "replace", "path": "/spec/masts", "value": 3 }]);
    let change: Patch<()> = Patch::Json(serde_json::from_value(change).unwrap());
    let changed = boats.patch("e", &PatchParams::default(), &change).await.unwrap();
    assert_eq!((changed.spec.masts, changed.metadata.generation), (3, Some(2)));
    let mut stale = made;
    stale.spec.masts = 5;
    assert_eq!(refused(boats.replace("e", &create, &stale).await), (409, "Conflict".into()));

    let only = boats.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(only.items.len(), 5);
    let labels =
        ObjectMeta { labels: Some([("l".into(), "v".into())].into()), ..ObjectMeta::default() };
    let labels = labels.into_request_partial::<Boat>();
    boats.patch_metadata("a", &PatchParams::apply("t"), &Patch::Apply(&labels)).await.unwrap();
    let some = ListParams::default().labels("l=v");
    boats.delete_collection(&DeleteParams::default(), &some).await.unwrap();
    assert!(boats.get_metadata_opt("a").await.unwrap().is_none());
    assert!(boats.get_opt("b").await.unwrap().is_some());
}

async fn applied(client: &Client) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let with = |value: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "shared" },
            "data": { "k": value },
        })
    };
    let first = PatchParams::apply("first");
    maps.patch("shared", &first, &Patch::Apply(with("1"))).await.unwrap();
    let second = PatchParams::apply("second");
    let answer = maps.patch("shared", &second, &Patch::Apply(with("2"))).await;
    assert_eq!(refused(answer), (409, "Conflict".into()));
    let tried =
        maps.patch("shared", &second.clone().force().dry_run(), &Patch::Apply(with("2"))).await;
    assert_eq!(tried.unwrap().data.unwrap()["k"], "2");
    assert_eq!(maps.get("shared").await.unwrap().data.unwrap()["k"], "1");
    let taken = maps.patch("shared", &second.force(), &Patch::Apply(with("2"))).await.unwrap();
    assert_eq!(taken.data.as_ref().unwrap()["k"], "2");
    let managers: Vec<_> =
        taken.managed_fields().iter().map(|it| it.manager.clone().unwrap()).collect();
    assert_eq!(managers, ["second"]);

    let mut entry = maps.entry("shared").await.unwrap().or_insert(ConfigMap::default);
    entry.get_mut().data.as_mut().unwrap().insert("more".into(), "x".into());
    entry.commit(&PostParams::default()).await.unwrap();
    assert_eq!(maps.get("shared").await.unwrap().data.unwrap().len(), 2);
}

async fn scaled(client: &Client) {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let made: Deployment = serde_json::from_value(json!({
        "metadata": { "name": "d" },
        "spec": {
            "replicas": 0,
            "selector": { "matchLabels": { "a": "b" } },
            "template": {
                "metadata": { "labels": { "a": "b" } },
                "spec": { "containers": [{ "name": "c", "image": "i" }] },
            },
        },
    }))
    .unwrap();
    deployments.create(&PostParams::default(), &made).await.unwrap();
    let change = Patch::Merge(json!({ "spec": { "replicas": 2 } }));
    deployments.patch_scale("d", &PatchParams::default(), &change).await.unwrap();
    assert_eq!(deployments.get_scale("d").await.unwrap().spec.unwrap().replicas, Some(2));
    deployments.restart("d").await.unwrap();
    let template = deployments.get("d").await.unwrap().spec.unwrap().template;
    let annotations = template.metadata.unwrap().annotations.unwrap();
    assert!(annotations.contains_key("kube.kubernetes.io/restartedAt"));
    deployments.delete("d", &DeleteParams::background()).await.unwrap();
}

/// A token alone places its bearer in its tenant.
async fn asks_for_a_token(client: &Client, endpoint: &str) {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let asked = TokenRequest::default();
    let answer = accounts.create_token_request("default", &PostParams::default(), &asked).await;
    let token = answer.unwrap().status.unwrap().token;
    let mut config = kube::Config::new(endpoint.parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = Some(token.unwrap().into());
    let other = Client::try_from(config).unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(other);
    assert_eq!(refused(maps.get("shared").await), (403, "Forbidden".into()));
}
