//! OpenID Connect providers, each of one tenant.

use std::time::{Duration, Instant};

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::{
    harness::{
        Cloud, Kubectl,
        issuer::{Issuer, now},
        texts,
    },
    who, with_token,
};

const MAPS: &str = "/tenants/acme/api/v1/namespaces/default/configmaps";

#[track_caller]
fn apply(user: &Kubectl, it: &Value) {
    let out = user.feed(&["apply", "-f", "-"], &it.to_string());
    let (stdout, stderr) = texts(&out);
    assert!(out.status.success(), "{stdout}{stderr}");
}

/// The code for a token, as soon as it is `wanted`.
#[track_caller]
fn until(cloud: &Cloud, token: &str, wanted: u16) {
    let begin = Instant::now();
    loop {
        let (code, body) = with_token(cloud, MAPS, token);
        if code == wanted {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{code}: {body}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_tenant_says_whom_it_trusts() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let issuer = Issuer::start();
    let (rsa, ec) = (issuer.add("r1", Algorithm::RS256), issuer.add("e1", Algorithm::ES256));
    let claims = issuer.claims("ann");
    let token = rsa.sign(&claims);
    assert_eq!(with_token(&cloud, MAPS, &token).0, 401, "nobody trusts it yet");
    assert_eq!(issuer.asked(), 0);

    apply(&acme, &issuer.configuration());
    let mut with = claims.clone();
    with["groups"] = json!(["ops", "dev"]);
    for key in [&rsa, &ec] {
        let found = who(&cloud, "acme", &key.sign(&with));
        assert_eq!(found["username"], "idp:ann");
        assert_eq!(found["groups"], json!(["ops", "dev", "system:authenticated"]));
        assert_eq!(found["extra"]["insula.io/tenant"], json!(["acme"]));
    }
    assert_eq!(issuer.asked(), 2, "the keys are kept");
    // Known, and so far allowed nothing.
    let (code, body) = with_token(&cloud, MAPS, &token);
    assert!(code == 403 && body.contains("idp:ann"), "{body}");
    acme.ok(&["create", "rolebinding", "ann", "--clusterrole=view", "--user=idp:ann"]);
    assert_eq!(with_token(&cloud, MAPS, &token).0, 200);

    // It is good where it is trusted, whatever it says itself.
    let mut elsewhere = claims.clone();
    elsewhere["kubernetes.io"] = json!({"tenant": "globex"});
    elsewhere["tenant"] = json!("globex");
    let elsewhere = rsa.sign(&elsewhere);
    assert_eq!(with_token(&cloud, &MAPS.replace("acme", "globex"), &elsewhere).0, 401);
    assert_eq!(with_token(&cloud, "/api/v1/namespaces", &elsewhere).0, 401);
    assert_eq!(with_token(&cloud, "/tenants/all/api/v1/pods", &elsewhere).0, 401);
    assert_eq!(who(&cloud, "acme", &elsewhere)["extra"]["insula.io/tenant"], json!(["acme"]));
    // Another tenant that trusts it as well has users of its own.
    apply(&globex, &issuer.configuration());
    let found = who(&cloud, "globex", &token);
    assert_eq!(found["extra"]["insula.io/tenant"], json!(["globex"]));
    assert_eq!(with_token(&cloud, &MAPS.replace("acme", "globex"), &token).0, 403);

    // Whom it names for the platform is the platform's, in a tenant that does not trust it, too.
    globex.ok(&["delete", "authenticationconfiguration", "default"]);
    apply(&cloud.admin(), &issuer.configuration());
    let (code, body) = with_token(&cloud, &MAPS.replace("acme", "globex"), &token);
    assert!(code == 403 && body.contains("idp:ann"), "{body}");
    assert_eq!(with_token(&cloud, MAPS, &token).0, 200, "acme's own word comes first");

    // A token review asks the same.
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
    });
    let out = acme.feed(&["create", "-o", "json", "-f", "-"], &review.to_string());
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(found["status"]["user"]["username"], "idp:ann");
}

#[test]
fn providers_give_no_names_of_the_platform() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let issuer = Issuer::start();
    let key = issuer.add("k", Algorithm::ES256);
    let mut trusted = issuer.configuration();
    trusted["spec"]["jwt"][0]["claimMappings"] = json!({
        "username": {"claim": "sub", "prefix": ""},
        "groups": {"expression": "has(claims.groups) ? claims.groups : []"},
        "uid": {"expression": "claims.?id.orValue('')"},
        "extra": [{"key": "example.com/team", "valueExpression": "claims.?team.orValue('')"}],
    });
    trusted["spec"]["jwt"][0]["claimValidationRules"] = json!([
        {"expression": "claims.exp - claims.nbf <= 86400", "message": "lives too long"},
        {"claim": "hd", "requiredValue": "example.com"},
    ]);
    trusted["spec"]["jwt"][0]["userValidationRules"] =
        json!([{"expression": "!user.username.startsWith('x') && !('root' in user.groups)"}]);
    apply(&acme, &trusted);
    let claims = |changes: Value| {
        let mut claims = issuer.claims("ann");
        claims["hd"] = "example.com".into();
        for (key, value) in changes.as_object().unwrap() {
            claims[key] = value.clone();
        }
        key.sign(&claims)
    };
    let found = who(&cloud, "acme", &claims(json!({"team": "red", "groups": ["a"], "id": "7"})));
    // There is nothing at the end of uid if there is nothing in it.
    assert_eq!(found["extra"]["example.com/team"], json!(["red"]), "{found}");
    assert_eq!((&found["uid"], &found["username"]), (&json!("7"), &json!("ann")));
    let many: Vec<String> = (0..3000).map(|it| format!("group-{it}")).collect();
    for (change, why) in [
        (json!({"sub": "system:admin"}), "as only names of the platform do"),
        (json!({"sub": "system:serviceaccount:kube-system:default"}), "of the platform"),
        (json!({"groups": ["system:masters"]}), "of the platform"),
        (json!({"groups": many}), "too many"),
        (json!({"groups": "x".repeat(2000)}), "too long"),
        (json!({"sub": "a\nb"}), "no name may hold"),
        (json!({"sub": ""}), "no text"),
        (json!({"sub": 7}), "no text"),
        (json!({"sub": "xavier"}), "does not hold"),
        (json!({"groups": ["root"]}), "does not hold"),
        (json!({"hd": "example.org"}), "hd"),
        (json!({"exp": now() + 10_000_000}), "lives too long"),
        (json!({"aud": "somebody"}), "InvalidAudience"),
        (json!({"exp": now() - 60}), "ExpiredSignature"),
        (json!({"nbf": now() + 60}), "ImmatureSignature"),
        (json!({"iss": "https://other.example.com"}), "nobody knows the token"),
    ] {
        let (code, body) = with_token(&cloud, MAPS, &claims(change.clone()));
        assert_eq!(code, 401, "{change}: {body}");
        cloud.log_until(why);
    }
    // What is not understood is not let in, and what is let in is understood.
    for (field, bad) in [
        ("/spec/jwt/0/claimMappings/username/prefix", json!("system:")),
        ("/spec/jwt/0/issuer/url", json!("http://insecure.example.com")),
        ("/spec/jwt/0/claimMappings/groups/expression", json!("claims.groups +")),
        ("/metadata/name", json!("second")),
    ] {
        let mut it = trusted.clone();
        *it.pointer_mut(field).unwrap() = bad;
        let out = acme.feed(&["apply", "-f", "-"], &it.to_string());
        let (_, stderr) = texts(&out);
        assert!(!out.status.success() && stderr.contains("is invalid"), "{field}: {stderr}");
    }
}

#[test]
fn keys_of_providers_change_and_providers_go_away() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let issuer = Issuer::start();
    let old = issuer.add("old", Algorithm::RS256);
    apply(&acme, &issuer.configuration());
    acme.ok(&["create", "rolebinding", "ann", "--clusterrole=view", "--user=idp:ann"]);
    let old_token = old.sign(&issuer.claims("ann"));
    assert_eq!(with_token(&cloud, MAPS, &old_token).0, 200);
    // Away: who has been there stays.
    issuer.set_there(false);
    assert_eq!(with_token(&cloud, MAPS, &old_token).0, 200);
    let new = issuer.add("new", Algorithm::ES256);
    let new_token = new.sign(&issuer.claims("ann"));
    assert_eq!(with_token(&cloud, MAPS, &new_token).0, 401);
    let asked = issuer.asked();
    for _ in 0..20 {
        assert_eq!(with_token(&cloud, MAPS, &new_token).0, 401);
    }
    assert!(issuer.asked() <= asked + 1, "it is left alone");
    // Others never wait for it.
    let begin = Instant::now();
    acme.ok(&["get", "configmaps"]);
    assert!(begin.elapsed() < Duration::from_secs(5));
    // Back, with one key more, and then without the old one.
    issuer.set_there(true);
    until(&cloud, &new_token, 200);
    assert_eq!(with_token(&cloud, MAPS, &old_token).0, 200);
    issuer.forget();
    let last = issuer.add("last", Algorithm::ES256);
    until(&cloud, &last.sign(&issuer.claims("ann")), 200);
    assert_eq!(with_token(&cloud, MAPS, &old_token).0, 401);
    assert_eq!(with_token(&cloud, MAPS, &new_token).0, 401);

    // A tenant cannot have this host asked for anything.
    let mut here = issuer.configuration();
    here["spec"]["jwt"][0]["issuer"]["discoveryURL"] = "https://127.0.0.1:1/x".into();
    apply(&acme, &here);
    assert_eq!(with_token(&cloud, MAPS, &last.sign(&issuer.claims("ann"))).0, 401);
    cloud.log_until("is not an address that a tenant's server may have");
}
