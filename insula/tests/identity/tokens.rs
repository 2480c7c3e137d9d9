//! Bootstrap tokens, tokens of a file, and tokens that are kept in secrets.

use std::fs;

use serde_json::{Value, json};

use crate::{
    bare,
    harness::{Cloud, Kubectl, texts},
    who, with_token,
};

fn secret(id: &str, changes: &[(&str, &str)]) -> Value {
    let mut it = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:workers",
        },
    });
    for (key, value) in changes {
        it["stringData"][*key] = (*value).into();
    }
    it
}

#[track_caller]
fn create(user: &Kubectl, it: &Value) {
    let out = user.feed(&["apply", "-f", "-"], &it.to_string());
    let (stdout, stderr) = texts(&out);
    assert!(out.status.success(), "{stdout}{stderr}");
}

#[test]
fn bootstrap_tokens_are_of_the_tenant_that_has_them() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    let path = "/tenants/acme/api/v1/nodes";
    let token = "abcdef.0123456789abcdef";
    assert_eq!(with_token(&cloud, path, token).0, 401);
    create(&acme, &secret("abcdef", &[]));
    let found = who(&cloud, "acme", token);
    assert_eq!(found["username"], "system:bootstrap:abcdef");
    let groups = ["system:bootstrappers", "system:bootstrappers:workers", "system:authenticated"];
    assert_eq!(found["groups"], json!(groups));
    assert_eq!(found["extra"]["insula.io/tenant"], json!(["acme"]));
    // Elsewhere it is nobody's.
    for path in ["/tenants/globex/api/v1/nodes", "/api/v1/nodes", "/tenants/system/api/v1/nodes"] {
        assert_eq!(with_token(&cloud, path, token).0, 401, "{path}");
    }
    assert_eq!(with_token(&cloud, path, "abcdef.0123456789abcdeX").0, 401);
    assert_eq!(with_token(&cloud, path, "abcdef.0123456789abcdee").0, 401);
    for (id, change) in [
        ("aaaaaa", ("expiration", "2020-01-01T00:00:00Z")),
        ("bbbbbb", ("usage-bootstrap-authentication", "false")),
        ("cccccc", ("auth-extra-groups", "system:masters")),
        ("dddddd", ("token-id", "dddddx")),
    ] {
        create(&acme, &secret(id, &[change]));
        assert_eq!(with_token(&cloud, path, &format!("{id}.0123456789abcdef")).0, 401, "{id}");
    }
    acme.ok(&["delete", "secret", "-n", "kube-system", "bootstrap-token-abcdef"]);
    assert_eq!(with_token(&cloud, path, token).0, 401);
    // The platform's are asked where no tenant is named.
    create(&cloud.admin(), &secret("abcdef", &[]));
    let (code, body) = with_token(&cloud, "/api/v1/secrets", token);
    assert!(code == 403 && body.contains("system:bootstrap:abcdef"), "{code} {body}");
}

#[test]
fn a_file_names_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.csv");
    fs::write(&file, "s3cret,dev,u1,\"acme-admins,ops\",acme\n").unwrap();
    let cloud = Cloud::start(false, &["--token-auth-file", file.to_str().unwrap()]);
    cloud.tenants();
    let found = who(&cloud, "acme", "s3cret");
    assert_eq!(found["username"], "dev");
    assert_eq!(found["uid"], "u1");
    assert_eq!(found["groups"], json!(["acme-admins", "ops", "system:authenticated"]));
    // Whose it is says the file, also where the path names nobody.
    assert_eq!(with_token(&cloud, "/api/v1/namespaces/default/configmaps", "s3cret").0, 200);
    let other = "/tenants/globex/api/v1/namespaces/default/configmaps";
    assert_eq!(with_token(&cloud, other, "s3cret").0, 403);
    assert_eq!(with_token(&cloud, "/api/v1/namespaces", "s3cre").0, 401);
    // Another file is another world, without a restart; one that is wrong is none.
    fs::write(&file, "other,dev,u1,acme-admins,acme\n").unwrap();
    cloud.log_until("static tokens");
    assert_eq!(with_token(&cloud, "/api/v1/namespaces/default/configmaps", "s3cret").0, 401);
    assert_eq!(with_token(&cloud, "/api/v1/namespaces/default/configmaps", "other").0, 200);
    fs::write(&file, "other,dev\n").unwrap();
    let log = cloud.log_until("five columns are needed");
    assert_eq!(with_token(&cloud, "/api/v1/namespaces/default/configmaps", "other").0, 200);
    assert!(!log.contains("s3cret"));
    assert_eq!(bare(&cloud, "/api/v1/namespaces", &[]).0, 401);
}

/// What clusters are registered with elsewhere: a token that lives as long as its secret.
#[test]
fn tokens_in_secrets_live_as_long_as_they() {
    let cloud = Cloud::without_node();
    let (acme, _) = cloud.tenants();
    acme.ok(&["create", "serviceaccount", "robot"]);
    let rights = ["create", "rolebinding", "robot", "--clusterrole=view"];
    acme.ok(&[&rights[..], &["--serviceaccount=default:robot"]].concat());
    let secret = |name: &str, account: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {
                "name": name, "annotations": {"kubernetes.io/service-account.name": account},
            },
        })
    };
    create(&acme, &secret("one", "robot"));
    create(&acme, &secret("two", "robot"));
    create(&acme, &secret("nobodys", "nobody"));
    acme.until(&["get", "secret", "nobodys", "--ignore-not-found", "-o", "name"], str::is_empty);
    let read = |name: &str, what: &str| {
        let path = format!("jsonpath={{{what}}}");
        acme.ok(&["get", "secret", name, "-o", &path])
    };
    let uid = acme.ok(&["get", "sa", "robot", "-o", "jsonpath={.metadata.uid}"]);
    let named = "jsonpath={.metadata.annotations.kubernetes\\.io/service-account\\.uid}";
    acme.until(&["get", "secret", "two", "-o", named], |it| it == uid);
    acme.until(&["get", "secret", "one", "-o", named], |it| it == uid);
    let decode = |text: String| {
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text);
        String::from_utf8(bytes.unwrap()).unwrap()
    };
    let token = |name: &str| decode(read(name, ".data.token"));
    assert_eq!(decode(read("one", ".data.namespace")), "default");
    assert!(decode(read("one", ".data.ca\\.crt")).contains("BEGIN CERTIFICATE"));
    let path = "/tenants/acme/api/v1/namespaces/default/pods";
    let (one, two) = (token("one"), token("two"));
    assert_eq!(with_token(&cloud, path, &one).0, 200);
    assert_eq!(with_token(&cloud, path, &two).0, 200);
    assert_eq!(with_token(&cloud, &path.replace("acme", "globex"), &one).0, 403);
    // Ended by its secret, and by its account.
    acme.ok(&["delete", "secret", "one"]);
    assert_eq!(with_token(&cloud, path, &one).0, 401);
    acme.ok(&["delete", "serviceaccount", "robot"]);
    assert_eq!(with_token(&cloud, path, &two).0, 401);
    acme.until(&["get", "secret", "two", "--ignore-not-found", "-o", "name"], str::is_empty);
}
