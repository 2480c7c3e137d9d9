//! Definitions that the platform shares: every tenant has them, and none can change them.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::world::World;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition(field: &str) -> Value {
    json!({
        "metadata": {"name": "widgets.example.com", "labels": {"insula.io/shared": "true"}},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema":
                {"openAPIV3Schema": {"type": "object", "properties": {field: {"type": "string"}}}}}],
        },
    })
}

/// Asks until the answer has this code.
async fn until(world: &World, certificate: &[u8], uri: &str, wanted: u16) -> Value {
    let mut last = (0, Value::Null);
    for _ in 0..200 {
        last = world.says(certificate, Method::GET, uri, &Value::Null).await;
        if last.0 == wanted {
            return last.1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{uri}: {last:?}");
}

#[tokio::test]
async fn a_shared_definition_is_every_tenants() {
    let world = World::start().await;
    let acme = world.certificate("acme", "admin", &["acme-admins"]);
    let globex = world.certificate("globex", "admin", &["globex-admins"]);
    // A tenant that had one of that name keeps its own; of another tenant nothing changes.
    let mut own = definition("theirs");
    own["metadata"]["labels"] = json!({});
    world.make(&format!("/tenants/globex{DEFINITIONS}"), &own).await;
    until(&world, &globex, WIDGETS, 200).await;
    assert_eq!(world.gets(&acme, WIDGETS).await, 404);
    world.make(DEFINITIONS, &definition("ours")).await;
    until(&world, &acme, WIDGETS, 200).await;

    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget",
                        "metadata": {"name": "w"}, "ours": "a", "theirs": "b"});
    for (certificate, kept, dropped) in [(&acme, "ours", "theirs"), (&globex, "theirs", "ours")] {
        let (code, made) = world.says(certificate, Method::POST, WIDGETS, &widget).await;
        assert_eq!(code, 201, "{made}");
        assert!(made[kept].is_string() && made[dropped].is_null(), "{made}");
        let list = world.says(certificate, Method::GET, WIDGETS, &Value::Null).await.1;
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "each has its own: {list}");
    }
    // All that tells of it does.
    let resources = world.says(&acme, Method::GET, "/apis/example.com/v1", &Value::Null).await.1;
    assert_eq!(resources["resources"][0]["name"], "widgets", "{resources}");
    let document =
        world.says(&acme, Method::GET, "/openapi/v3/apis/example.com/v1", &Value::Null).await.1;
    assert!(document.to_string().contains("ours"));

    // It is locked.
    let (code, said) = world.says(&acme, Method::POST, DEFINITIONS, &definition("mine")).await;
    assert_eq!(code, 403, "{said}");
    assert!(said["message"].as_str().unwrap().contains("you cannot overwrite it"), "{said}");
    let uri = format!("{DEFINITIONS}/widgets.example.com");
    until(&world, &acme, &uri, 200).await;
    let (code, said) = world.says(&acme, Method::DELETE, &uri, &Value::Null).await;
    assert_eq!(code, 403, "{said}");
    assert!(said["message"].as_str().unwrap().contains("it is the platform's"), "{said}");
    assert_eq!(
        world.says(&globex, Method::GET, &uri, &Value::Null).await.1["metadata"]["tenant"],
        "globex"
    );
    // Labels of a tenant share nothing.
    let mut mine = definition("mine");
    mine["metadata"]["name"] = "gears.example.org".into();
    mine["spec"]["group"] = "example.org".into();
    mine["spec"]["names"] = json!({"plural": "gears", "kind": "Gear"});
    assert_eq!(world.says(&acme, Method::POST, DEFINITIONS, &mine).await.0, 201);
    let gears = "/apis/example.org/v1/namespaces/default/gears";
    until(&world, &acme, gears, 200).await;
    assert_eq!(world.gets(&globex, gears).await, 404);
    // Beside definitions of its own it still has the platform's.
    assert_eq!(world.gets(&acme, WIDGETS).await, 200);

    // No longer shared, it is gone; shared again, so is all that was there.
    let label = |value: Value| json!({"metadata": {"labels": {"insula.io/shared": value}}});
    assert_eq!(world.root(Method::PATCH, &uri, &label(Value::Null)).await.0, 200);
    until(&world, &acme, WIDGETS, 404).await;
    until(&world, &acme, &uri, 404).await;
    assert_eq!(world.root(Method::PATCH, &uri, &label("true".into())).await.0, 200);
    until(&world, &acme, &format!("{WIDGETS}/w"), 200).await;

    // With it go its objects, in all tenants that have no own.
    assert_eq!(world.root(Method::DELETE, &uri, &Value::Null).await.0, 200);
    until(&world, &acme, WIDGETS, 404).await;
    let root = world.certificate("system", "root", &["system:masters"]);
    until(&world, &root, &uri, 404).await;
    world.make(DEFINITIONS, &definition("ours")).await;
    until(&world, &acme, WIDGETS, 200).await;
    assert_eq!(world.gets(&acme, &format!("{WIDGETS}/w")).await, 404);
    assert_eq!(world.gets(&globex, &format!("{WIDGETS}/w")).await, 200);
}
