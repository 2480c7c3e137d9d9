//! Certificates for those who ask for one.

use base64::Engine as _;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

use crate::{
    bare,
    harness::{Cloud, Kubectl, servers::Servers, texts},
};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// Somebody's key, and a request for it.
struct Person {
    key: KeyPair,
    request: String,
}

impl Person {
    fn new(user: &str, organization: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        if !organization.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        Self { key, request }
    }

    fn asks(&self, name: &str, signer: &str, usages: &[&str]) -> Value {
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {
                "request": base64::engine::general_purpose::STANDARD.encode(&self.request),
                "signerName": signer, "usages": usages, "expirationSeconds": 3600,
            },
        })
    }
}

fn signed(user: &Kubectl, name: &str) -> String {
    let path = "jsonpath={.status.certificate}";
    let text = user.until(&["get", "csr", name, "-o", path], |it| !it.is_empty());
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn approved_requests_are_signed_for_their_tenant() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    let dir = tempfile::tempdir().unwrap();
    let ann = Person::new("ann", "acme-admins");
    let out =
        acme.feed(&["create", "-f", "-"], &ann.asks("ann", CLIENT, &["client auth"]).to_string());
    assert!(out.status.success(), "{}", texts(&out).1);
    // Nobody else sees it, and nobody signs it unasked.
    assert!(globex.fails(&["get", "csr", "ann"]).contains("not found"));
    assert_eq!(acme.ok(&["get", "csr", "ann", "-o", "jsonpath={.status}"]), "{}");
    acme.ok(&["certificate", "approve", "ann"]);
    let certificate = signed(&acme, "ann");
    let (crt, key) = (dir.path().join("crt"), dir.path().join("key"));
    std::fs::write(&crt, certificate).unwrap();
    std::fs::write(&key, ann.key.serialize_pem()).unwrap();
    let own = ["--cert", crt.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, body) = bare(&cloud, maps, &own);
    assert!(code == 200 && body.contains("kube-root-ca.crt"), "{body}");
    assert_eq!(bare(&cloud, &format!("/tenants/globex{maps}"), &own).0, 403);
    let printed = acme.ok(&["get", "csr", "ann"]);
    assert!(printed.contains("Approved,Issued"), "{printed}");

    // Who is somebody of another tenant, or more than a user, is refused before anything is kept.
    for (organization, why) in [
        ("tenant:globex", "for another tenant is not allowed"),
        ("system:masters", "with system:masters group is not allowed"),
        ("system:insula-servers", "with system:insula-servers group is not allowed"),
    ] {
        let it = Person::new("eve", organization).asks("eve", CLIENT, &["client auth"]);
        let out = acme.feed(&["create", "-f", "-"], &it.to_string());
        assert!(texts(&out).1.contains(why), "{}", texts(&out).1);
    }
    // What only the signer knows is told in the status, once and for all.
    let node = "kubernetes.io/kube-apiserver-client-kubelet";
    let usages = ["digital signature", "client auth"];
    for (name, it) in [
        ("usage", Person::new("eve", "").asks("usage", CLIENT, &["client auth", "server auth"])),
        ("node", Person::new("system:node:n1", "system:nodes").asks("node", node, &usages)),
    ] {
        let out = acme.feed(&["create", "-f", "-"], &it.to_string());
        assert!(out.status.success(), "{}", texts(&out).1);
        acme.ok(&["certificate", "approve", name]);
        let path = "jsonpath={.status.conditions[?(@.type=='Failed')].reason}";
        let why = acme.until(&["get", "csr", name, "-o", path], |it| !it.is_empty());
        assert_eq!(why, "SignerValidationFailure");
        let path = "jsonpath={.status.certificate}";
        assert_eq!(acme.ok(&["get", "csr", name, "-o", path]), "");
    }
    // Who may not approve for the signer does not.
    acme.ok(&[
        "create",
        "clusterrole",
        "half",
        "--verb=get,update",
        "--resource=certificatesigningrequests,certificatesigningrequests/approval",
    ]);
    acme.ok(&["create", "clusterrolebinding", "half", "--clusterrole=half", "--user=half"]);
    let it = Person::new("bob", "").asks("bob", CLIENT, &["client auth"]);
    acme.feed(&["create", "-f", "-"], &it.to_string());
    let said = acme.fails(&["certificate", "approve", "bob", "--as=half"]);
    assert!(said.contains("not permitted to approve"), "{said}");
}

/// A node of several servers begins with a bootstrap token; only the controllers have the key.
#[test]
fn nodes_begin_with_a_token() {
    let mut servers = Servers::new();
    servers.add("s1", "all", &[]);
    servers.controllers("s1");
    let admin = servers.admin("s1");
    let out = admin.feed(&["create", "-f", "-"], r#"
apiVersion: v1
kind: Secret
type: bootstrap.kubernetes.io/token
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
stringData: {token-id: abcdef, token-secret: 0123456789abcdef, usage-bootstrap-authentication: "true"}
"#);
    assert!(out.status.success(), "{}", texts(&out).1);
    admin.ok(&[
        "create",
        "clusterrolebinding",
        "b",
        "--clusterrole=system:node-bootstrapper",
        "--group=system:bootstrappers",
    ]);
    let node = Person::new("system:node:n1", "system:nodes");
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let body = node.asks("n1", signer, &["digital signature", "client auth"]).to_string();
    let (endpoint, ca) = (format!("https://{}", servers.address("s1")), servers.path("pki/ca.crt"));
    let ca = ca.to_str().unwrap();
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let more = [
        "-H",
        "Authorization: Bearer abcdef.0123456789abcdef",
        "-H",
        "Content-Type: application/json",
        "-d",
        &body,
    ];
    let (code, said) = crate::bare_at(&endpoint, ca, path, &more);
    assert_eq!(code, 201, "{said}");
    let made: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(made["spec"]["username"], "system:bootstrap:abcdef");
    // Whoever may begin nodes is approved by itself; that is for the administrator to say.
    let path = "jsonpath={.status.conditions}";
    assert_eq!(admin.ok(&["get", "csr", "n1", "-o", path]), "");
    admin.ok(&[
        "create",
        "clusterrolebinding",
        "a",
        "--clusterrole=system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "--group=system:bootstrappers",
    ]);
    let certificate = signed(&admin, "n1");
    let path = "jsonpath={.status.conditions[*]['type','reason','message']}";
    let said = admin.ok(&["get", "csr", "n1", "-o", path]);
    let message = "Auto approving kubelet client certificate after SubjectAccessReview.";
    assert_eq!(said, format!("Approved AutoApproved {message}"));
    let (crt, key) = (servers.path("n1.crt"), servers.path("n1.key"));
    std::fs::write(&crt, certificate).unwrap();
    std::fs::write(&key, node.key.serialize_pem()).unwrap();
    let own = ["--cert", crt.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let itself = "/api/v1/nodes?fieldSelector=metadata.name%3Dn1";
    let (code, said) = crate::bare_at(&endpoint, ca, itself, &own);
    assert_eq!(code, 200, "{said}");
    let (code, said) = crate::bare_at(&endpoint, ca, "/apis/apps/v1/deployments", &own);
    assert!(code == 403 && said.contains("system:node:n1"), "{said}");
}
