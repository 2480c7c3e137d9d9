//! Virtual machines and containers on nodes of either kind.

use super::*;

/// A node with these statuses of its two runtimes, where it says them.
fn of_kind(containers: Option<&str>, machines: Option<&str>) -> Node {
    node("4", "4Gi", |it| {
        let said = [("ContainerRuntimeReady", containers), ("VmRuntimeReady", machines)];
        let conditions = it["status"]["conditions"].as_array_mut().unwrap();
        for (type_, status) in said {
            conditions.extend(status.map(|it| json!({"type": type_, "status": it})));
        }
    })
}

fn machine(name: &str, cpu: &str, memory: &str) -> Tenanted<Pod> {
    let requests = json!({"cpu": cpu, "memory": memory, "hugepages-2Mi": "2Mi"});
    let machine = json!({"name": "vm", "image": "disk", "resources": {"requests": requests}});
    pod(name, json!({"spec": {"virtualMachine": machine, "overhead": {"memory": "1Gi"}}}))
}

#[test]
fn pods_go_where_the_runtime_is() {
    let mut core = core(vec![
        ("stock", of_kind(None, None)),
        ("both", of_kind(Some("True"), Some("True"))),
        ("machines", of_kind(Some("False"), Some("True"))),
        ("neither", of_kind(Some("False"), Some("False"))),
    ]);
    let container = pod("c", asking("1", "1Gi"));
    assert_eq!(best(&mut core, &container), ["both".into(), "stock".into()].into());
    let machine = pod("m", json!({"spec": {"virtualMachine": {"image": "i"}}}));
    assert_eq!(best(&mut core, &machine), ["both".into(), "machines".into()].into());
}

#[test]
fn both_kinds_share_what_a_node_has() {
    let with_pages = |mut it: Node| {
        let allocatable = it.status.as_mut().unwrap().allocatable.as_mut().unwrap();
        allocatable.insert("hugepages-2Mi".into(), serde_json::from_value(json!("4Mi")).unwrap());
        it
    };
    let both = with_pages(of_kind(Some("True"), Some("True")));
    let mut core = core(vec![("n", both)]);
    assert_eq!(core.place(&pod("c", asking("1", "1Gi"))).as_deref(), Ok("n"));
    // With its overhead a machine of 2 GiB fills what is left.
    assert_eq!(core.place(&machine("m1", "1", "2Gi")).as_deref(), Ok("n"));
    assert_eq!(
        look(&mut core, &machine("m2", "1", "1Mi")),
        "0/1 nodes are available: 1 Insufficient memory."
    );
    assert_eq!(
        look(&mut core, &pod("c2", asking("3", "0"))),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    core.remove_pod(&machine("m1", "1", "1").key());
    assert_eq!(core.place(&machine("m3", "1", "1Gi")).as_deref(), Ok("n"));
}

#[test]
fn it_is_said_which_runtime_is_missing() {
    let mut core =
        core(vec![("a", of_kind(Some("False"), Some("True"))), ("b", of_kind(Some("True"), None))]);
    let unready = pod(
        "m",
        json!({"spec": {
            "virtualMachine": {"image": "i"}, "nodeSelector": {"zone": "a"},
        }}),
    );
    assert_eq!(look(&mut core, &unready), "a");
    core.put_node("a", &of_kind(Some("False"), Some("False")));
    let container = pod("c", asking("9", "1"));
    assert_eq!(
        look(&mut core, &container),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had no ready container runtime."
    );
    assert_eq!(
        look(&mut core, &unready),
        "0/2 nodes are available: 2 node(s) had no ready VM runtime."
    );
}

#[test]
fn a_machine_that_is_resized_holds_the_larger_of_both() {
    let mut core = core(vec![("n", of_kind(None, Some("True")))]);
    let resized = |asked: &str, given: &str| {
        let requests = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let machine = json!({"name": "vm", "image": "i", "resources": requests(asked)});
        pod(
            "m",
            json!({
                "spec": {"nodeName": "n", "virtualMachine": machine},
                "status": {"containerStatuses": [{
                    "name": "vm", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                    "resources": requests(given), "allocatedResources": {"cpu": given},
                }]},
            }),
        )
    };
    let free = |core: &Core| core.world.nodes.resource(CPU).unwrap().free(0);
    core.put_pod(&resized("1", "1"));
    assert_eq!(free(&core), 3000);
    core.put_pod(&resized("3", "1"));
    assert_eq!(free(&core), 1000);
    core.put_pod(&resized("1", "3"));
    assert_eq!(free(&core), 1000);
    core.put_pod(&resized("1", "1"));
    assert_eq!(free(&core), 3000);
}
