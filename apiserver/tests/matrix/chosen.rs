//! Users of the platform who work in some tenants: what they have there, and what they can pass on.

use http::Method;
use serde_json::{Value, json};

use crate::world::World;

const GROUP: &str = "rbac.authorization.k8s.io";

fn binding(name: &str, role: &str, reach: Option<&str>) -> Value {
    let mut it = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "apiGroup": GROUP, "name": "friend"}],
    });
    if let Some(reach) = reach {
        it["metadata"]["annotations"] = json!({"insula.io/tenants": reach});
    }
    it
}

fn bindings(tenant: &str) -> String {
    format!("/tenants/{tenant}/apis/{GROUP}/v1/clusterrolebindings")
}

#[tokio::test]
async fn nobody_takes_to_a_tenant_what_they_lack_there() {
    let world = World::start().await;
    let user = |name: &str| json!({"kind": "User", "apiGroup": GROUP, "name": name});
    // Has everything in the platform's tenant, and everything in acme; another lacks secrets there.
    world.bind("system", "home", "cluster-admin", user("boss"), None, None).await;
    world.bind("system", "acme", "cluster-admin", user("guest"), Some("acme"), None).await;
    world.bind("system", "both", "cluster-admin", user("both"), Some("system, acme"), None).await;
    let of = |name: &str| world.certificate("system", name, &[]);
    let (boss, guest, both) = (of("boss"), of("guest"), of("both"));
    let tries = async |certificate: &[u8], tenant: &str, it: Value| {
        let (code, said) = world.says(certificate, Method::POST, &bindings(tenant), &it).await;
        (code, said["message"].as_str().unwrap_or_default().to_owned())
    };
    let lacks = "attempting to grant RBAC permissions not currently held";
    // At home, as ever.
    assert_eq!(tries(&boss, "system", binding("a", "view", None)).await.0, 201);
    for reach in ["acme", "*", "system,acme"] {
        let (code, said) = tries(&boss, "system", binding("b", "view", Some(reach))).await;
        assert!(code == 403 && said.contains(lacks), "{reach}: {code} {said}");
    }
    assert_eq!(tries(&both, "system", binding("c", "view", Some("acme,system"))).await.0, 201);
    for reach in ["acme,globex", "*"] {
        let (code, said) = tries(&both, "system", binding("d", "view", Some(reach))).await;
        assert!(code == 403 && said.contains(lacks), "{reach}: {code} {said}");
    }
    // A binding that is there is not taken further, either.
    let further = json!({"metadata": {"annotations": {"insula.io/tenants": "globex"}}});
    let uri = format!("{}/c", bindings("system"));
    let (code, said) = world.says(&both, Method::PATCH, &uri, &further).await;
    assert_eq!(code, 403, "{said}");
    // In the tenant itself a guest gives what it has there; elsewhere nothing.
    assert_eq!(tries(&guest, "acme", binding("e", "view", None)).await.0, 201);
    assert_eq!(tries(&guest, "globex", binding("e", "view", None)).await.0, 403);
    assert_eq!(tries(&guest, "system", binding("e", "view", None)).await.0, 403);
    // Roles of the platform may be bound to reach any tenant: only who has it all there widens one.
    let role = json!({"metadata": {"name": "wide"}, "rules": [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]});
    let roles = format!("/apis/{GROUP}/v1/clusterroles");
    let (code, said) = world.says(&boss, Method::POST, &roles, &role).await;
    assert_eq!(code, 403, "{said}");
    let (code, said) =
        world.says(&guest, Method::POST, &format!("/tenants/acme{roles}"), &role).await;
    assert_eq!(code, 201, "{said}");
}

#[tokio::test]
async fn rights_in_a_namespace_of_the_platform_count_in_no_tenants() {
    let world = World::start().await;
    let user = json!({"kind": "User", "apiGroup": GROUP, "name": "clerk"});
    // May make bindings in every tenant, and has everything in one namespace of the platform.
    let role = json!({"metadata": {"name": "binder"}, "rules": [
        {"apiGroups": [GROUP], "resources": ["rolebindings"], "verbs": ["create"]}]});
    world.make(&format!("/apis/{GROUP}/v1/clusterroles"), &role).await;
    world.bind("system", "binder", "binder", user.clone(), Some("*"), None).await;
    world.bind("system", "all", "cluster-admin", user, None, Some("default")).await;
    let clerk = world.certificate("system", "clerk", &[]);
    let path = format!("/apis/{GROUP}/v1/namespaces/default/rolebindings");
    let it = binding("x", "cluster-admin", None);
    let (code, said) = world.says(&clerk, Method::POST, &format!("/tenants/acme{path}"), &it).await;
    assert_eq!(code, 403, "{said}");
    assert_eq!(world.says(&clerk, Method::POST, &path, &it).await.0, 201);
}

#[tokio::test]
async fn what_names_no_tenants_is_refused() {
    let world = World::start().await;
    for bad in ["", "all", "Acme", "acme,*", "acme globex"] {
        let it = binding("x", "view", Some(bad));
        let (code, said) = world.root(Method::POST, &bindings("system"), &it).await;
        assert_eq!(code, 422, "{bad:?}: {said}");
        let field = &said["details"]["causes"][0]["field"];
        assert_eq!(field, "metadata.annotations[insula.io/tenants]");
    }
    // A tenant's own bindings are about it.
    let admin = world.certificate("acme", "admin", &["acme-admins"]);
    let it = binding("x", "view", Some("globex"));
    let (code, said) = world.says(&admin, Method::POST, &bindings("acme"), &it).await;
    assert_eq!(code, 422, "{said}");
}

/// A tenant that is not there is told of only to who could work in it.
#[tokio::test]
async fn a_guest_learns_of_no_other_tenant() {
    let world = World::start().await;
    let user = json!({"kind": "User", "apiGroup": GROUP, "name": "guest"});
    world.bind("system", "acme", "cluster-admin", user, Some("acme,later"), None).await;
    let guest = world.certificate("system", "guest", &[]);
    for path in ["/api/v1/pods", "/api/v1/pods/x", "/apis/example.com/v1/things", "/api/v1/nodes"] {
        let there = world.gets(&guest, &format!("/tenants/globex{path}")).await;
        let nowhere = world.gets(&guest, &format!("/tenants/nowhere{path}")).await;
        assert_eq!((there, nowhere), (403, 403), "{path}");
    }
    assert_eq!(world.gets(&guest, "/tenants/acme/api/v1/pods").await, 200);
    assert_eq!(world.gets(&guest, "/tenants/later/api/v1/pods").await, 404);
    // What may be done in a tenant says nothing of the fleet, by whatever path.
    for path in
        ["/api/v1/nodes", "/tenants/acme/api/v1/nodes", "/tenants/acme/apis/insula.io/v1/tenants"]
    {
        assert_eq!(world.gets(&guest, path).await, 403, "{path}");
    }
    // Who asks what he may is told the same.
    let review = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "secrets"}}});
    for (tenant, allowed) in [("acme", true), ("globex", false), ("system", false)] {
        let uri =
            format!("/tenants/{tenant}/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
        let (_, said) = world.says(&guest, Method::POST, &uri, &review).await;
        assert_eq!(said["status"]["allowed"], allowed, "{tenant}: {said}");
    }
}
