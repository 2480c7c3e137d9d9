//! What services are given: addresses and ports, each of which one service has.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{collections::BTreeSet, sync::Arc};

use harness::{Api, MERGE};
use serde_json::{Value, json};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn service(name: &str, spec: Value) -> Value {
    let mut whole = json!({"ports": [{"port": 80}]});
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": whole})
}

/// The addresses that are taken, but for the API's own.
async fn taken(api: &Api) -> BTreeSet<String> {
    let list = api.get(ADDRESSES).await;
    let names = list["items"].as_array().unwrap().iter().map(|it| it["metadata"]["name"].clone());
    names.map(|it| it.as_str().unwrap().to_owned()).filter(|it| it != "10.96.0.1").collect()
}

#[tokio::test]
async fn a_tenant_begins_with_the_api_as_a_service() {
    let api = Api::start().await;
    let it = api.get(&format!("{SERVICES}/kubernetes")).await;
    assert_eq!(it["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(it["spec"]["ports"][0]["port"], 443);
    let address = api.get(&format!("{ADDRESSES}/10.96.0.1")).await;
    assert_eq!(address["spec"]["parentRef"]["name"], "kubernetes");
    let networks = api.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes").await;
    assert_eq!(networks["spec"]["cidrs"], json!(["10.96.0.0/16"]));
    assert_eq!(networks["status"]["conditions"][0]["status"], "True");
    let slice =
        api.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await;
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["127.0.0.1"]));
    let endpoints = api.get("/api/v1/namespaces/default/endpoints/kubernetes").await;
    assert_eq!(endpoints["subsets"][0]["ports"][0]["port"], 6443);
    for name in ["system-node-critical", "system-cluster-critical"] {
        api.get(&format!("/apis/scheduling.k8s.io/v1/priorityclasses/{name}")).await;
    }
    api.get("/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/catch-all").await;
}

#[tokio::test]
async fn addresses_come_and_go_with_services() {
    let api = Api::start().await;
    let made = api.make(SERVICES, &service("a", json!({}))).await;
    let spec = &made["spec"];
    let address = spec["clusterIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.96."), "{address}");
    assert_eq!(spec["clusterIPs"], json!([address]));
    assert_eq!(
        (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
    assert_eq!(
        (&spec["type"], &spec["internalTrafficPolicy"]),
        (&json!("ClusterIP"), &json!("Cluster"))
    );
    assert_eq!(taken(&api).await, [address.clone()].into());
    let held = api.get(&format!("{ADDRESSES}/{address}")).await;
    assert_eq!(
        held["spec"]["parentRef"],
        json!({"group": "", "resource": "services", "namespace": "default", "name": "a"})
    );

    // By name, and not twice.
    api.make(SERVICES, &service("b", json!({"clusterIP": "10.96.0.77"}))).await;
    let (code, said) = api.post(SERVICES, &service("c", json!({"clusterIP": "10.96.0.77"}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        said["details"]["causes"][0]["message"],
        "Invalid value: [\"10.96.0.77\"]: failed to allocate IP 10.96.0.77: provided IP is already allocated"
    );
    let (code, said) = api.post(SERVICES, &service("c", json!({"clusterIP": "10.1.0.1"}))).await;
    assert_eq!(code, 422);
    assert!(said["message"].as_str().unwrap().contains("is not in the valid range"), "{said}");

    // What is refused takes nothing, and neither does what is only tried.
    let (code, _) = api.post(SERVICES, &service("d", json!({"ports": [{"port": 0}]}))).await;
    assert_eq!(code, 422);
    let (code, tried) = api.post(&format!("{SERVICES}?dryRun=All"), &service("d", json!({}))).await;
    assert_eq!(code, 201);
    assert!(tried["spec"]["clusterIP"].is_string());
    let (code, _) = api.post(SERVICES, &service("a", json!({}))).await;
    assert_eq!(code, 409);
    assert_eq!(taken(&api).await, [address.clone(), "10.96.0.77".into()].into());

    // An update that leaves it out keeps it; another cannot be had.
    let (code, same) = api.put(&format!("{SERVICES}/a"), &service("a", json!({}))).await;
    assert_eq!((code, same["spec"]["clusterIP"].as_str()), (200, Some(&*address)), "{same}");
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let other = json!({"spec": {"clusterIP": "10.96.0.99", "clusterIPs": ["10.96.0.99"]}});
    let (code, said) = api.patch(&format!("{SERVICES}/a"), MERGE, &other).await;
    assert_eq!(code, 422);
    assert!(said["message"].as_str().unwrap().contains("may not change once set"), "{said}");

    // Another type has none; and back.
    let away = json!({"spec": {"type": "ExternalName", "externalName": "example.com"}});
    let (code, it) = api.patch(&format!("{SERVICES}/a"), MERGE, &away).await;
    assert_eq!((code, it["spec"].get("clusterIP")), (200, None), "{it}");
    assert_eq!(taken(&api).await, ["10.96.0.77".into()].into());
    let back = json!({"spec": {"type": "ClusterIP", "externalName": null}});
    let (code, it) = api.patch(&format!("{SERVICES}/a"), MERGE, &back).await;
    assert_eq!(code, 200, "{it}");
    assert_eq!(taken(&api).await.len(), 2);
    for name in ["a", "b"] {
        let (code, gone) = api.delete(&format!("{SERVICES}/{name}")).await;
        assert_eq!((code, gone["kind"].as_str()), (200, Some("Service")));
    }
    assert_eq!(taken(&api).await, BTreeSet::new());
    let none = service("headless", json!({"clusterIP": "None", "selector": {"a": "b"}}));
    assert_eq!(api.make(SERVICES, &none).await["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(taken(&api).await, BTreeSet::new());
}

#[tokio::test]
async fn ports_of_nodes_come_and_go() {
    let api = Api::start().await;
    let both = json!([{"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"}]);
    let made = api.make(SERVICES, &service("a", json!({"type": "NodePort", "ports": both}))).await;
    let ports = made["spec"]["ports"].as_array().unwrap();
    let port = ports[0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port));
    assert_eq!(ports[1]["nodePort"], port);
    assert_eq!(made["spec"]["externalTrafficPolicy"], "Cluster");

    let wants = |port: u64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let (code, said) = api.post(SERVICES, &service("b", wants(port))).await;
    assert_eq!(code, 422);
    assert_eq!(
        said["message"],
        format!(
            "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"
        )
    );
    let (code, said) = api.post(SERVICES, &service("b", wants(80))).await;
    assert_eq!(code, 422);
    assert!(said["message"].as_str().unwrap().contains("The range of valid ports is 30000-32767"));

    // Of a service that needs them no longer, others can have them.
    let (code, it) =
        api.patch(&format!("{SERVICES}/a"), MERGE, &json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!(code, 200, "{it}");
    assert_eq!(it["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(it["spec"].get("externalTrafficPolicy"), None);
    api.make(SERVICES, &service("b", wants(port))).await;
    assert_eq!(api.delete(&format!("{SERVICES}/b")).await.0, 200);

    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let made = api.make(SERVICES, &service("c", local)).await;
    let health = made["spec"]["healthCheckNodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&health));
    assert_ne!(made["spec"]["ports"][0]["nodePort"], health);
    let (_, it) = api
        .patch(
            &format!("{SERVICES}/c"),
            MERGE,
            &json!({"spec": {"externalTrafficPolicy": "Cluster"}}),
        )
        .await;
    assert_eq!(it["spec"].get("healthCheckNodePort"), None, "{it}");
    let plain = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    let made = api.make(SERVICES, &service("d", plain)).await;
    assert_eq!(made["spec"]["ports"][0].get("nodePort"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_have_no_address_twice() {
    let api = Arc::new(Api::start().await);
    let tasks = (0..40).map(|index| {
        let api = api.clone();
        tokio::spawn(async move {
            let spec = json!({"type": "NodePort"});
            let made = api.make(SERVICES, &service(&format!("s{index}"), spec)).await;
            (
                made["spec"]["clusterIP"].to_string(),
                made["spec"]["ports"][0]["nodePort"].to_string(),
            )
        })
    });
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for task in tasks.collect::<Vec<_>>() {
        let (address, port) = task.await.unwrap();
        assert!(addresses.insert(address) && ports.insert(port));
    }
    // One name asked for by all goes to one.
    let tasks = (0..8).map(|index| {
        let api = api.clone();
        let it = service(&format!("t{index}"), json!({"clusterIP": "10.96.0.9"}));
        tokio::spawn(async move { api.post(SERVICES, &it).await.0 })
    });
    let mut codes = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        codes.push(task.await.unwrap());
    }
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 1, "{codes:?}");
}
