//! What could carry one tenant's objects to another without being a path: tokens of pages,
//! revisions, forged proofs.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use serde_json::{Value, json};

use crate::world::{World, canary, resource};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn pages_and_revisions_of_others_show_ones_own() {
    let world = World::start().await;
    for tenant in ["acme", "globex"] {
        for number in 0..4 {
            let name = format!("m{number}");
            world.put(tenant, resource("", "configmaps"), "default", &name, &json!({})).await;
        }
    }
    let acme = world.certificate("acme", "admin", &["acme-admins"]);
    let globex = world.certificate("globex", "admin", &["globex-admins"]);
    let (_, page) =
        world.says(&globex, Method::GET, &format!("{MAPS}?limit=2"), &Value::Null).await;
    let theirs = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let revision = page["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let forged = |start: &str, revision: &str| {
        let now = jiff::Timestamp::now().as_second();
        let text =
            json!({"v": "insula.io/v1", "rv": revision, "start": start, "at": now, "left": 9});
        URL_SAFE_NO_PAD.encode(text.to_string())
    };
    let mut uris = vec![
        format!("{MAPS}?limit=2&continue={theirs}"),
        format!("{MAPS}?resourceVersion={revision}"),
        format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact"),
        format!("{MAPS}?watch=1&resourceVersion={revision}&timeoutSeconds=1"),
    ];
    for start in
        ["", "globex/", "globex/default/m0", "system/", "a", "zzz", "acme", "acme/../globex/"]
    {
        for revision in ["", &revision] {
            uris.push(format!("{MAPS}?limit=2&continue={}", forged(start, revision)));
            uris.push(format!("{MAPS}?continue={}", forged(start, revision)));
        }
    }
    let answers = uris.iter().map(async |uri| {
        let answer = world.send(Some(&acme), &[], &Method::GET, uri, None).await;
        let text = answer.text();
        // A revision of another partition may be in the future here.
        assert!(answer.code < 500 || answer.code == 504, "{uri}: {text}");
        for other in ["globex", "system"] {
            assert!(!text.contains(&canary(other)), "{uri}: {text}");
        }
        usize::from(text.contains(&canary("acme")))
    });
    let shown: usize = futures::future::join_all(answers).await.into_iter().sum();
    assert_ne!(shown, 0, "none of them showed anything");
}

#[tokio::test]
async fn forged_proofs_prove_nothing() {
    let world = World::start().await;
    world
        .make(
            "/tenants/acme/api/v1/namespaces/default/serviceaccounts",
            &json!({"metadata": {"name": "a"}}),
        )
        .await;
    world
        .make(
            "/tenants/globex/api/v1/namespaces/default/serviceaccounts",
            &json!({"metadata": {"name": "a"}}),
        )
        .await;
    let uri = "/tenants/acme/api/v1/namespaces/default/serviceaccounts/a/token";
    let made = world.make(uri, &json!({"spec": {}})).await;
    let good = made["status"]["token"].as_str().unwrap().to_owned();
    let parts: Vec<&str> = good.split('.').collect();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let encode = |it: &Value| URL_SAFE_NO_PAD.encode(it.to_string());
    let with = |field: &str, value: Value| {
        let mut claims = claims.clone();
        *claims.pointer_mut(field).unwrap() = value;
        format!("{}.{}.{}", parts[0], encode(&claims), parts[2])
    };
    let none = encode(&json!({"alg": "none", "typ": "JWT"}));
    let symmetric = encode(&json!({"alg": "HS256", "typ": "JWT"}));
    let bearer = async |token: &str, uri: &str| {
        let headers = [("authorization", format!("Bearer {token}"))];
        world.send(None, &headers, &Method::GET, uri, None).await.code
    };
    assert_eq!(bearer(&good, "/version").await, 200);
    assert_eq!(bearer(&good, "/tenants/globex/version").await, 403);
    let far = json!(4_000_000_000_u64);
    for forged in [
        with("/kubernetes.io/tenant", "globex".into()),
        with("/kubernetes.io/tenant", "system".into()),
        with("/sub", "system:serviceaccount:kube-system:x".into()),
        with("/exp", far),
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{symmetric}.{}.{}", parts[1], parts[2]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{good}x"),
        "x".repeat(300_000),
        String::new(),
    ] {
        assert_eq!(bearer(&forged, "/version").await, 401, "{forged:.80}");
    }
    // For somebody else.
    let other = world.make(uri, &json!({"spec": {"audiences": ["https://other"]}})).await;
    assert_eq!(bearer(other["status"]["token"].as_str().unwrap(), "/version").await, 401);
    // A passport counts only between servers, whoever shows it.
    let passport = format!(
        "{none}.{}.",
        encode(&json!({
            "iss": "s1", "aud": "s1", "exp": 4_000_000_000_u64, "iat": 0, "method": "GET",
            "target": "/api/v1/secrets", "epoch": 0,
            "caller": {"identity": {"tenant": "system", "user": "root", "groups": ["system:masters"]}},
        }))
    );
    let stranger = world.certificate("acme", "stranger", &[]);
    let root = world.certificate("system", "root", &["system:masters"]);
    for certificate in [None, Some(&stranger), Some(&root)] {
        let headers = [("x-insula-passport", passport.clone())];
        let certificate = certificate.map(Vec::as_slice);
        let answer = world.send(certificate, &headers, &Method::GET, "/api/v1/secrets", None).await;
        assert!([401, 403].contains(&answer.code), "{}: {}", answer.code, answer.text());
    }
}

/// A review of a token tells a tenant nothing of those of others.
#[tokio::test]
async fn reviews_speak_of_ones_own() {
    let world = World::start().await;
    let accounts = "/tenants/globex/api/v1/namespaces/default/serviceaccounts";
    world.make(accounts, &json!({"metadata": {"name": "a"}})).await;
    let made = world.make(&format!("{accounts}/a/token"), &json!({"spec": {}})).await;
    let token = made["status"]["token"].clone();
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = async |tenant: &str, token: &Value| {
        let admin = world.certificate(tenant, "admin", &[&format!("{tenant}-admins")]);
        let it = json!({"spec": {"token": token}});
        world.says(&admin, Method::POST, reviews, &it).await.1["status"].clone()
    };
    assert_eq!(review("globex", &token).await["authenticated"], true);
    let theirs = review("acme", &token).await;
    assert_eq!(theirs, review("acme", &json!("nonsense")).await);
    assert!(!theirs.to_string().contains("globex"), "{theirs}");
}
