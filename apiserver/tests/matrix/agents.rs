//! What nodes' agents get: of every tenant what their own pods name, and no more.

use http::Method;
use serde_json::{Value, json};

use crate::world::{World, canary, resource};

const NAMESPACE: &str = "default";

async fn objects(world: &World) {
    for tenant in ["acme", "globex"] {
        for (group, kind) in [
            ("", "secrets"),
            ("", "configmaps"),
            ("", "serviceaccounts"),
            ("resource.k8s.io", "resourceclaims"),
        ] {
            for name in ["used", "spare", "late"] {
                world.put(tenant, resource(group, kind), NAMESPACE, name, &json!({})).await;
            }
        }
        for name in ["used", "spare"] {
            let claim = json!({"spec": {"volumeName": name}});
            world
                .put(tenant, resource("", "persistentvolumeclaims"), NAMESPACE, name, &claim)
                .await;
            let volume = json!({"spec": {
                "claimRef": {"namespace": NAMESPACE, "name": name},
                "csi": {"driver": "d", "nodeStageSecretRef":
                    {"namespace": NAMESPACE, "name": format!("of-{name}")}},
            }});
            world.put(tenant, resource("", "persistentvolumes"), "", name, &volume).await;
            let of = format!("of-{name}");
            world.put(tenant, resource("", "secrets"), NAMESPACE, &of, &json!({})).await;
        }
    }
}

fn pod(node: &str, name: &str) -> Value {
    json!({"spec": {
        "nodeName": node, "serviceAccountName": name, "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "containers": [{"name": "c", "image": "i", "terminationMessagePolicy": "File", "imagePullPolicy": "Always", "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}]}],
        "volumes": [
            {"name": "a", "configMap": {"name": name}},
            {"name": "b", "persistentVolumeClaim": {"claimName": name}},
        ],
        "resourceClaims": [{"name": "r", "resourceClaimName": name}],
    }})
}

/// All that a pod that is made of [`pod`] needs.
fn needed(tenant: &str, name: &str) -> Vec<String> {
    let core = format!("/tenants/{tenant}/api/v1");
    let here = format!("{core}/namespaces/{NAMESPACE}");
    let claims = format!("/tenants/{tenant}/apis/resource.k8s.io/v1/namespaces/{NAMESPACE}");
    vec![
        format!("{here}/secrets/{name}"),
        format!("{here}/secrets?fieldSelector=metadata.name%3D{name}"),
        format!("{here}/secrets?fieldSelector=metadata.name%3D{name}&watch=1&timeoutSeconds=1"),
        format!("{here}/configmaps/{name}"),
        format!("{here}/persistentvolumeclaims/{name}"),
        format!("{here}/serviceaccounts/{name}"),
        format!("{here}/secrets/of-{name}"),
        format!("{core}/persistentvolumes/{name}"),
        format!("{claims}/resourceclaims/{name}"),
    ]
}

#[tokio::test]
async fn an_agent_reads_what_its_pods_name() {
    let world = World::start().await;
    objects(&world).await;
    let pods = resource("", "pods");
    let agent =
        |node: &str| world.certificate("system", &format!("system:node:{node}"), &["system:nodes"]);
    let (one, two) = (agent("n1"), agent("n2"));
    let all = async |certificate: &[u8], tenant: &str, name: &str, expected: u16| {
        for uri in needed(tenant, name) {
            let answer = world.send(Some(certificate), &[], &Method::GET, &uri, None).await;
            assert_eq!(answer.code, expected, "{uri}: {}", answer.text());
            assert_eq!(answer.text().contains(&canary(tenant)), expected == 200, "{uri}");
        }
    };
    // Nothing runs yet.
    all(&one, "acme", "used", 403).await;
    world.put("acme", pods, NAMESPACE, "p", &pod("n1", "used")).await;
    all(&one, "acme", "used", 200).await;
    // Neither what it does not name, nor what has the same name elsewhere; nor another node.
    all(&one, "acme", "spare", 403).await;
    all(&one, "globex", "used", 403).await;
    all(&two, "acme", "used", 403).await;
    world.put("globex", pods, NAMESPACE, "p", &pod("n2", "spare")).await;
    all(&two, "globex", "spare", 200).await;
    all(&two, "globex", "used", 403).await;
    all(&one, "globex", "spare", 403).await;
    all(&one, "acme", "used", 200).await;
    // Whether it is there makes no difference.
    let said = async |uri: &str| {
        let answer = world.send(Some(&one), &[], &Method::GET, uri, None).await;
        answer.text().replace("missing", "spare")
    };
    let secrets = "/tenants/acme/api/v1/namespaces/default/secrets";
    let there = said(&format!("{secrets}/spare")).await;
    assert_eq!(there, said(&format!("{secrets}/missing")).await);
    assert!(there.contains("no relationship found between node 'n1' and this object"), "{there}");
    // Lists of more than one thing, and what agents have no business with.
    for uri in [
        secrets.to_owned(),
        "/tenants/all/api/v1/secrets".into(),
        "/tenants/all/api/v1/secrets?fieldSelector=metadata.name%3Dused".into(),
        "/tenants/acme/api/v1/secrets?fieldSelector=metadata.name%3Dused".into(),
        "/tenants/all/api/v1/pods".into(),
        "/tenants/all/api/v1/pods?fieldSelector=spec.nodeName%3Dn2".into(),
        "/tenants/globex/api/v1/namespaces/default/pods/p".into(),
        "/api/v1/nodes".into(),
        "/api/v1/nodes/n2".into(),
        "/api/v1/namespaces/kube-node-lease/leases".into(),
    ] {
        assert_eq!(world.gets(&one, &uri).await, 403, "{uri}");
    }
    let own = "/tenants/all/api/v1/pods?fieldSelector=spec.nodeName%3Dn1";
    let (code, list) = world.says(&one, Method::GET, own, &Value::Null).await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (200, 1), "{list}");
    // An agent goes on without what its pod no longer names.
    let uri = "/tenants/acme/api/v1/namespaces/default/pods/p?gracePeriodSeconds=0";
    assert_eq!(world.root(Method::DELETE, uri, &Value::Null).await.0, 200);
    all(&one, "acme", "used", 403).await;
}

/// What comes to a pod later is its agent's, too.
#[tokio::test]
async fn what_a_pod_is_given_later_is_its_agents_too() {
    let world = World::start().await;
    objects(&world).await;
    let one = world.certificate("system", "system:node:n1", &["system:nodes"]);
    let late = "/tenants/acme/api/v1/namespaces/default/secrets/late";
    world.put("acme", resource("", "pods"), NAMESPACE, "p", &pod("n1", "used")).await;
    assert_eq!(world.gets(&one, late).await, 403);
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i",
        "envFrom": [{"secretRef": {"name": "late"}}]}]}});
    let uri = "/tenants/acme/api/v1/namespaces/default/pods/p/ephemeralcontainers";
    let (code, said) = world.root(Method::PATCH, uri, &debug).await;
    assert_eq!(code, 200, "{said}");
    assert_eq!(world.gets(&one, late).await, 200);
}

#[tokio::test]
async fn tokens_are_made_for_the_accounts_of_its_own_pods() {
    let world = World::start().await;
    objects(&world).await;
    world.put("acme", resource("", "pods"), NAMESPACE, "p", &pod("n1", "used")).await;
    world.put("acme", resource("", "pods"), NAMESPACE, "q", &pod("n2", "spare")).await;
    let one = world.certificate("system", "system:node:n1", &["system:nodes"]);
    let read = async |name: &str| {
        let uri = format!("/tenants/acme/api/v1/namespaces/default/pods/{name}");
        let (_, it) = world.root(Method::GET, &uri, &Value::Null).await;
        it["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let asks = |pod: &str, uid: &str| {
        json!({"spec": {"audiences": ["x"], "boundObjectRef":
            {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}})
    };
    let (p, q) = (read("p").await, read("q").await);
    let of = |tenant: &str, account: &str| {
        format!("/tenants/{tenant}/api/v1/namespaces/default/serviceaccounts/{account}/token")
    };
    for (uri, it, expected) in [
        (of("acme", "used"), asks("p", &p), 201),
        // Of another node's pod, of none, of another account, of another tenant.
        (of("acme", "spare"), asks("q", &q), 403),
        (of("acme", "used"), json!({"spec": {"audiences": ["x"]}}), 403),
        (of("acme", "used"), asks("q", &q), 403),
        (of("acme", "late"), asks("p", &p), 403),
        (of("globex", "used"), asks("p", &p), 403),
    ] {
        let (code, said) = world.says(&one, Method::POST, &uri, &it).await;
        assert_eq!(code, expected, "{uri} {it}: {said}");
    }
}
