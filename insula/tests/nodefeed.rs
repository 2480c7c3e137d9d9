//! The node feed as its protocol: what it carries, where it goes on, who may have one.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::collections::BTreeSet;

use harness::{Cloud, Kubectl, create, feed::Feed};
use serde_json::{Value, json};

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        // Nobody is misled by what is called like it.
        "metadata": {"name": name, "labels": {"nodeName": "n1"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
    })
}

fn set(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|it| (*it).to_owned()).collect()
}

fn cloud() -> (Cloud, Kubectl, Kubectl) {
    let cloud = Cloud::start(false, &["--partitions", "2"]);
    let admin = cloud.admin();
    for (tenant, partition) in [("acme", "p1"), ("globex", "p2")] {
        create(
            &admin,
            &json!({
                "apiVersion": "insula.io/v1", "kind": "Tenant", "metadata": {"name": tenant},
                "spec": {"partition": partition},
            }),
        );
        let where_it_is = "jsonpath={.status.phase} {.status.partition}";
        admin.until(&["get", "tenant", tenant, "-o", where_it_is], |it| {
            it == format!("Active {partition}")
        });
    }
    let users = ["acme", "globex"].map(|it| cloud.user(it, "dev", &format!("{it}-admins")));
    for user in &users {
        user.until(&["get", "serviceaccount", "default"], |_| true);
    }
    for node in ["n1", "n2"] {
        create(&admin, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}));
    }
    let [acme, globex] = users;
    (cloud, acme, globex)
}

#[tokio::test]
async fn it_tells_what_is_of_its_node_and_goes_on_where_it_was() {
    let (cloud, acme, globex) = cloud();
    create(&acme, &pod("a", "n1"));
    create(&acme, &pod("other", "n2"));
    create(&globex, &pod("g", "n1"));
    let agent = cloud.user("system", "system:node:n1", "system:nodes");
    let open = || Feed::open(agent.kubeconfig(), json!({"open": {"nodes": ["n1"]}}));
    let mut feed = open().await.unwrap();
    let (told, _) = feed.told(3).await;
    let state = ["ADDED Node system n1", "ADDED Pod acme a", "ADDED Pod globex g"];
    assert_eq!(told, set(&state));
    create(&globex, &pod("h", "n1"));
    create(&globex, &pod("other", "n2"));
    let (told, at) = feed.told(1).await;
    assert_eq!(told, set(&["ADDED Pod globex h"]));
    drop(feed);

    // What happens while nobody listens is told, and nothing else.
    create(&acme, &pod("b", "n1"));
    acme.ok(&["label", "pod", "other", "x=y"]);
    acme.ok(&["label", "pod", "a", "x=y"]);
    globex.ok(&["delete", "pod", "h", "--force", "--grace-period=0"]);
    let from =
        |at: &str| Feed::open(agent.kubeconfig(), json!({"open": {"nodes": ["n1"], "at": at}}));
    let mut feed = from(&at).await.unwrap();
    let missed = ["ADDED Pod acme b", "MODIFIED Pod acme a", "DELETED Pod globex h"];
    let mut told = BTreeSet::new();
    while !set(&missed).is_subset(&told) {
        told.append(&mut feed.told(1).await.0);
    }
    // On its way out a pod may be told of as it changes.
    told.remove("MODIFIED Pod globex h");
    assert_eq!(told, set(&missed));

    let gone = from("elsewhere=1,p9=2").await.err().unwrap();
    assert!(gone.is_expired(), "{gone:?}");
    assert_eq!(open().await.unwrap().told(4).await.0.len(), 4, "anew");
}

#[tokio::test]
async fn heartbeats_renew_leases() {
    let (cloud, ..) = cloud();
    let admin = cloud.admin();
    let old = "2020-01-01T00:00:00.000000Z";
    create(
        &admin,
        &json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "n1", "namespace": "kube-node-lease", "labels": {"mine": "stays"}},
            "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 40, "renewTime": old},
        }),
    );
    let nodes = json!({"open": {"nodes": ["n1", "n2"]}});
    let mut feed = Feed::open(admin.kubeconfig(), nodes).await.unwrap();
    feed.told(2).await;
    let beat = feed.beat().await;
    assert_eq!(beat, json!({"renewed": 1, "missing": ["n2"], "wants": ["usage"]}));
    let lease = admin.ok(&["get", "lease", "n1", "-n", "kube-node-lease", "-o", "json"]);
    let lease: Value = serde_json::from_str(&lease).unwrap();
    assert_eq!(lease["metadata"]["labels"]["mine"], "stays");
    assert_eq!(lease["spec"]["holderIdentity"], "n1");
    assert!(old < lease["spec"]["renewTime"].as_str().unwrap(), "{lease}");
    // An agent of its own goes on with it.
    let patch = r#"{"spec":{"renewTime":"2031-01-01T00:00:00.000000Z"}}"#;
    admin.ok(&["patch", "lease", "n1", "-n", "kube-node-lease", "--type=merge", "-p", patch]);
}

#[tokio::test]
async fn nobody_gets_what_is_not_theirs() {
    let (cloud, acme, _) = cloud();
    let agent = cloud.user("system", "system:node:n1", "system:nodes");
    let nobody = cloud.user("system", "nobody", "nobodies");
    let admin = cloud.admin();
    let refused = async |who: &Kubectl, open: Value| {
        Feed::open(who.kubeconfig(), open).await.err().unwrap().to_string()
    };
    let of = |nodes: &[&str]| json!({"open": {"nodes": nodes}});
    let said = refused(&agent, of(&["n2"])).await;
    assert!(said.contains("node 'n1' may only access its own"), "{said}");
    let said = refused(&agent, of(&["n1", "n2"])).await;
    assert!(said.contains("node 'n1' may only access its own"), "{said}");
    let said = refused(&nobody, of(&["n1"])).await;
    assert!(said.contains("cannot post path \"/insula/nodefeed\""), "{said}");
    // Who may do everything in a tenant may do nothing to nodes.
    let said = refused(&acme, of(&["n1"])).await;
    assert!(said.contains("User \"dev\" cannot watch resource \"pods\""), "{said}");
    let said = refused(&admin, of(&[])).await;
    assert!(said.contains("a feed is of 1 to 10000 nodes"), "{said}");
    let said = refused(&admin, json!({"beat": {}})).await;
    assert!(said.contains("a feed begins with"), "{said}");
    let said = refused(&admin, json!({"opne": {}})).await;
    assert!(said.contains("this cannot be said on a feed: unknown variant `opne`"), "{said}");
    // What is wrong later ends the feed with the reason.
    let mut feed = Feed::open(admin.kubeconfig(), of(&["n1"])).await.unwrap();
    feed.told(1).await;
    feed.say(&json!({"open": {"nodes": ["n2"]}})).await;
    assert_eq!(feed.end().await["message"], "the feed is open already");
}

#[tokio::test]
async fn a_feed_ends_with_the_permission() {
    let (cloud, acme, _) = cloud();
    let admin = cloud.admin();
    // At home, where nodes are, and in all tenants, where pods are.
    for (name, tenants) in [("home", "system"), ("crew", "*")] {
        create(
            &admin,
            &json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": name, "annotations": {"insula.io/tenants": tenants}},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "crew"}],
            }),
        );
    }
    let crew = cloud.user("system", "crew", "crews");
    let open = json!({"open": {"nodes": ["n1"]}});
    let mut feed = Feed::open(crew.kubeconfig(), open).await.unwrap();
    feed.told(1).await;
    admin.ok(&["delete", "clusterrolebinding", "crew"]);
    let ended = feed.end().await;
    assert_eq!(ended["code"], 403, "{ended}");
    let why = ended["message"].as_str().unwrap();
    assert!(why.contains("User \"crew\" cannot watch resource \"pods\""), "{why}");
    // Others' go on.
    create(&acme, &pod("a", "n1"));
    let agent = cloud.user("system", "system:node:n1", "system:nodes");
    let mut feed =
        Feed::open(agent.kubeconfig(), json!({"open": {"nodes": ["n1"]}})).await.unwrap();
    assert!(feed.told(2).await.0.contains("ADDED Pod acme a"));
}
