//! The example of a controller, on a real API server.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

#[allow(dead_code, reason = "its beginning as a program is not tested")]
#[path = "../examples/greeter.rs"]
mod greeter;

mod cloud;

use insula_client::Patch;
use insula_controllers::Config;
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::json;

use self::cloud::Cloud;

#[tokio::test(flavor = "multi_thread")]
async fn the_example_works() {
    let cloud = Cloud::start(1).await;
    cloud.run_controllers(Config::new("the root of trust"));
    let acme = cloud.tenant("acme").await;
    cloud.tasks.spawn(greeter::greet(cloud.client.clone(), cloud.shutdown.clone()));
    let pod = json!({
        "metadata": {"name": "p", "labels": {"greet": "world"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    cloud.create::<Pod>(&acme, "default", pod).await;
    let api = cloud.client.tenant(&acme).namespaced::<Pod>("default");
    let greeting = async || {
        let pod = api.get("p").await.unwrap();
        pod.metadata.annotations.clone().unwrap_or_default().get("greeting").cloned()
    };
    let is = async |expected: &str| greeting().await.as_deref() == Some(expected);
    cloud.until("it is greeted", async || is("hello, world").await).await;
    let label = json!({"metadata": {"labels": {"greet": "moon"}}});
    api.patch("p", &Patch::Merge(label)).await.unwrap();
    cloud.until("it is greeted anew", async || is("hello, moon").await).await;
    let told = async || {
        let events = cloud.list::<Event>(&acme, "default").await;
        let of = |message: &str| events.iter().any(|it| it.message.as_deref() == Some(message));
        of("hello, world") && of("hello, moon")
    };
    cloud.until("its events are there", told).await;
    cloud.end().await;
}
