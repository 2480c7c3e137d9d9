//! The six ways in which a control plane for many tenants has been seen to leak, each closed.

use http::Method;
use serde_json::{Value, json};

use crate::world::{World, canary, resource};

const MASTERS: &str = "system:masters";
const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn cluster_admin(subject: Value) -> Value {
    json!({
        "metadata": {"name": "b"}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    })
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name})
}

/// Whoever may do everything in a tenant does nothing to what all share.
#[tokio::test]
async fn hole_1_a_tenants_admin_does_not_reach_what_is_the_fleets() {
    let world = World::start().await;
    world.plant(&[]).await;
    let status = json!({"spec": {"providerID": "secret-id"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "10.9.8.7"}], "capacity": {"cpu": "4"}}});
    world.put("system", resource("", "nodes"), "", "n1", &status).await;
    let admin = world.certificate("acme", "admin", &["acme-admins"]);
    for (method, uri) in [
        (Method::GET, "/apis/insula.io/v1/tenants"),
        (Method::GET, "/apis/insula.io/v1/tenants/acme"),
        (Method::GET, "/apis/insula.io/v1/tenants/globex"),
        (Method::DELETE, "/apis/insula.io/v1/tenants/globex"),
        (Method::DELETE, "/apis/insula.io/v1/tenants/acme"),
        (Method::GET, "/apis/insula.io/v1/partitions"),
        (Method::DELETE, "/api/v1/nodes/n1"),
        (Method::DELETE, "/api/v1/nodes"),
        (Method::GET, "/api/v1/nodes/n1/proxy/metrics"),
        (Method::GET, "/api/v1/nodes/n1/status"),
        (Method::GET, "/apis/storage.k8s.io/v1/csinodes"),
        (Method::GET, "/apis/resource.k8s.io/v1/resourceslices"),
    ] {
        let (code, said) = world.says(&admin, method.clone(), uri, &Value::Null).await;
        assert_eq!(code, 403, "{method} {uri}: {said}");
    }
    for uri in ["/api/v1/nodes/n1", "/api/v1/nodes", "/api/v1/nodes?watch=1&timeoutSeconds=1"] {
        let answer = world.send(Some(&admin), &[], &Method::GET, uri, None).await;
        let text = answer.text();
        assert!(answer.code == 200 && text.contains("n1"), "{uri}: {text}");
        for hidden in ["10.9.8.7", "secret-id", &canary("system")] {
            assert!(!text.contains(hidden), "{uri} shows {hidden}: {text}");
        }
    }
    // A hook that refuses everything refuses its own tenant's.
    let hook = json!({"metadata": {"name": "no"}, "webhooks": [{
        "name": "no.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Fail", "timeoutSeconds": 1,
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}],
    }]});
    let hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    assert_eq!(world.says(&admin, Method::POST, hooks, &hook).await.0, 201);
    let map = json!({"metadata": {"name": "m"}});
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, said) = world.says(&admin, Method::POST, maps, &map).await;
    assert_eq!(code, 500, "{said}");
    world.make(&format!("/tenants/globex{maps}"), &map).await;
    world.make(maps, &map).await;
}

/// The superusers' group is the platform's; in a tenant it is a word.
#[tokio::test]
async fn hole_2_the_masters_of_a_tenant_are_nobody() {
    let world = World::start().await;
    world.plant(&[]).await;
    let masters = world.certificate("acme", "x", &[MASTERS]);
    for tenant in ["acme", "globex", "system", "all"] {
        for path in ["/api/v1/secrets", "/api/v1/nodes", "/apis/insula.io/v1/tenants"] {
            let uri = format!("/tenants/{tenant}{path}");
            assert_eq!(world.gets(&masters, &uri).await, 403, "{uri}");
        }
    }
    // Neither does a tenant make it more than that.
    let group = json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": MASTERS});
    let admin = world.certificate("acme", "admin", &["acme-admins"]);
    let uri = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(world.says(&admin, Method::POST, uri, &cluster_admin(group)).await.0, 201);
    assert_eq!(world.gets(&masters, "/api/v1/secrets").await, 200);
    for uri in ["/tenants/globex/api/v1/secrets", "/tenants/system/api/v1/secrets"] {
        assert_eq!(world.gets(&masters, uri).await, 403, "{uri}");
    }
    assert_eq!(world.gets(&masters, "/apis/insula.io/v1/tenants").await, 403);
}

fn request(organization: &str, unit: &str) -> String {
    use base64::Engine as _;
    use rcgen::{CertificateParams, DnType, KeyPair};
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.distinguished_name.push(DnType::OrganizationName, organization);
    if !unit.is_empty() {
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
    }
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    base64::engine::general_purpose::STANDARD.encode(pem)
}

/// Nobody asks for a certificate of another tenant, or approves without the right to.
#[tokio::test]
async fn hole_3_no_certificate_of_another_tenant_is_asked_for() {
    let world = World::start().await;
    let admin = world.certificate("acme", "admin", &["acme-admins"]);
    let uri = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let asks = |name: &str, request: String| {
        json!({"metadata": {"name": name}, "spec": {"request": request, "usages": ["client auth"],
               "signerName": "kubernetes.io/kube-apiserver-client"}})
    };
    for (name, organization, unit) in [
        ("platform", "tenant:system", ""),
        ("other", "tenant:globex", ""),
        ("twice", "tenant:tenant:system", ""),
        ("masters", MASTERS, ""),
        ("unit", "tenant:acme", MASTERS),
    ] {
        let it = asks(name, request(organization, unit));
        let (code, said) = world.says(&admin, Method::POST, uri, &it).await;
        assert_eq!(code, 403, "{name}: {said}");
    }
    let own = asks("own", request("tenant:acme", "ops"));
    let (code, said) = world.says(&admin, Method::POST, uri, &own).await;
    assert_eq!(code, 201, "{said}");
    // To change requests is not to approve them.
    let role = json!({"metadata": {"name": "changes"}, "rules": [{"apiGroups": ["certificates.k8s.io"],
        "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"],
        "verbs": ["update", "patch"]}]});
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    assert_eq!(
        world.says(&admin, Method::POST, &format!("{roles}/clusterroles"), &role).await.0,
        201
    );
    let mut binding = cluster_admin(user("clerk"));
    binding["roleRef"]["name"] = "changes".into();
    let bindings = format!("{roles}/clusterrolebindings");
    assert_eq!(world.says(&admin, Method::POST, &bindings, &binding).await.0, 201);
    let clerk = world.certificate("acme", "clerk", &[]);
    let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True",
        "reason": "x", "message": "x"}]}});
    let signed = json!({"status": {"certificate": "eA=="}});
    for (part, it) in [("approval", &approved), ("status", &signed)] {
        let (code, said) =
            world.says(&clerk, Method::PATCH, &format!("{uri}/own/{part}"), it).await;
        assert_eq!(code, 403, "{part}: {said}");
        assert!(said["message"].as_str().unwrap().contains("not permitted to"), "{said}");
    }
}

/// What a user of the platform has in the platform's tenant, it has in no other.
#[tokio::test]
async fn hole_4_grants_of_the_platform_do_not_spread() {
    let world = World::start().await;
    world.plant(&[]).await;
    world.bind("system", "local", "cluster-admin", user("local"), None, Some("default")).await;
    world.bind("system", "wide", "cluster-admin", user("wide"), None, None).await;
    world.bind("system", "some", "cluster-admin", user("some"), Some("acme"), None).await;
    world.bind("system", "all", "cluster-admin", user("all"), Some("*"), None).await;
    let pods = "/api/v1/namespaces/default/pods";
    for (name, allowed) in [
        ("local", &["system"][..]),
        ("wide", &["system"]),
        ("some", &["acme"]),
        ("all", &["system", "acme", "globex", "all"]),
    ] {
        let certificate = world.certificate("system", name, &[]);
        for tenant in ["system", "acme", "globex", "all"] {
            let code = world.gets(&certificate, &format!("/tenants/{tenant}{pods}")).await;
            let expected = if allowed.contains(&tenant) { 200 } else { 403 };
            assert_eq!(code, expected, "{name} in {tenant}");
        }
    }
    // Taken back, it is gone at once.
    let uri = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/some";
    let other = json!({"metadata": {"annotations": {"insula.io/tenants": "globex"}}});
    assert_eq!(world.root(Method::PATCH, uri, &other).await.0, 200);
    let some = world.certificate("system", "some", &[]);
    assert_eq!(world.gets(&some, &format!("/tenants/acme{pods}")).await, 403);
    assert_eq!(world.gets(&some, &format!("/tenants/globex{pods}")).await, 200);
}

/// Whoever acts as somebody else stays where he is.
#[tokio::test]
async fn hole_5_impersonation_stays_in_its_tenant() {
    let world = World::start().await;
    world.plant(&[]).await;
    let admin = world.certificate("acme", "admin", &["acme-admins"]);
    let root = world.certificate("system", "root", &[MASTERS]);
    let acts = async |certificate: &[u8], headers: &[(&str, &str)], method: Method, uri: &str| {
        let headers: Vec<_> = headers.iter().map(|(name, it)| (*name, (*it).to_owned())).collect();
        let body = (method == Method::POST).then(|| "{}".to_owned());
        let answer = world.send(Some(certificate), &headers, &method, uri, body).await;
        (answer.code, serde_json::from_slice::<Value>(&answer.body).unwrap_or_default())
    };
    let masters = [("impersonate-user", "root"), ("impersonate-group", MASTERS)];
    let (code, said) = acts(&admin, &masters, Method::POST, REVIEW).await;
    assert_eq!(code, 201, "{said}");
    let info = &said["status"]["userInfo"];
    assert_eq!(info["extra"]["insula.io/tenant"], json!(["acme"]), "{info}");
    for uri in
        ["/tenants/globex/api/v1/secrets", "/tenants/system/api/v1/secrets", "/api/v1/secrets"]
    {
        assert_eq!(acts(&admin, &masters, Method::GET, uri).await.0, 403, "{uri}");
    }
    // Neither a name nor a field of it takes anybody to another tenant.
    for headers in [
        [("impersonate-user", "globex:admin"), ("impersonate-group", "globex-admins")],
        [("impersonate-user", "x"), ("impersonate-extra-insula.io%2ftenant", "globex")],
        [
            ("impersonate-user", "system:serviceaccount:kube-system:x"),
            ("x-insula-tenant", "globex"),
        ],
    ] {
        let (_, said) = acts(&admin, &headers, Method::POST, REVIEW).await;
        let info = &said["status"]["userInfo"];
        assert_eq!(info["extra"]["insula.io/tenant"], json!(["acme"]), "{headers:?}: {said}");
        let uri = "/tenants/globex/api/v1/secrets";
        assert_eq!(acts(&admin, &headers, Method::GET, uri).await.0, 403, "{headers:?}");
    }
    // The platform acts as its own, too: not as a tenant's admin, and with no more than they have.
    let other = [("impersonate-user", "admin"), ("impersonate-group", "acme-admins")];
    assert_eq!(acts(&root, &other, Method::GET, "/tenants/acme/api/v1/secrets").await.0, 403);
    // Who may not act as others is refused.
    let stranger = world.certificate("acme", "stranger", &[]);
    assert_eq!(acts(&stranger, &masters, Method::GET, "/api/v1/secrets").await.0, 403);
}

/// A tenant is no part of a name.
#[tokio::test]
async fn hole_6_names_with_colons_name_no_tenant() {
    let world = World::start().await;
    world.plant(&[]).await;
    for name in
        ["globex:admin", "system:admin", "system:node:n1", "system:serviceaccount:kube-system:x"]
    {
        for groups in [&[][..], &["globex-admins"], &["system:nodes"], &["system:serviceaccounts"]]
        {
            let certificate = world.certificate("acme", name, groups);
            let (code, said) = world.says(&certificate, Method::POST, REVIEW, &json!({})).await;
            assert_eq!(code, 201, "{said}");
            let info = &said["status"]["userInfo"];
            assert_eq!(info["username"], name);
            assert_eq!(info["extra"]["insula.io/tenant"], json!(["acme"]));
            for tenant in ["acme", "globex", "system", "all"] {
                for path in ["/api/v1/secrets", "/api/v1/namespaces/default/pods"] {
                    let uri = format!("/tenants/{tenant}{path}");
                    assert_eq!(
                        world.gets(&certificate, &uri).await,
                        403,
                        "{name} {groups:?} {uri}"
                    );
                }
            }
        }
    }
}
