//! A custom resource whose definition is made of Rust types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResource, CustomResourceExt as _,
    api::PostParams,
    runtime::wait::{await_condition, conditions},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::soon;

/// See the module.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "harbour.example.com",
    version = "v1",
    kind = "Boat",
    namespaced,
    status = "BoatStatus",
    shortname = "bt",
    selectable = ".spec.owner",
    scale(spec_replicas_path = ".spec.masts", status_replicas_path = ".status.masts"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner")
)]
#[serde(rename_all = "camelCase")]
pub(super) struct BoatSpec {
    pub(super) owner: String,
    #[schemars(range(min = 0, max = 7))]
    pub(super) masts: i32,
    #[serde(default = "sails")]
    pub(super) moved_by: Moved,
}

/// What moves a boat.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
pub(super) enum Moved {
    Oars,
    Sails,
}

fn sails() -> Moved {
    Moved::Sails
}

/// What has become of a boat.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub(super) struct BoatStatus {
    pub(super) masts: i32,
    #[serde(default)]
    pub(super) papers: String,
}

/// A boat that is nowhere yet.
pub(super) fn boat(name: &str, owner: &str, masts: i32) -> Boat {
    Boat::new(name, BoatSpec { owner: owner.into(), masts, moved_by: Moved::Oars })
}

/// Has boats served.
pub(super) async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &Boat::crd()).await.unwrap();
    let served = await_condition(definitions, Boat::crd_name(), conditions::is_crd_established());
    soon("definition of boats", served).await.unwrap();
}
