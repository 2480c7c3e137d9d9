//! A server with three tenants, everyone of the model, and in each tenant an object of each kind
//! that says whose it is.

use std::{collections::HashMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use insula_api::{
    names::TenantName,
    object,
    resources::{self, Resource, Scope},
    versions,
};
use insula_apiserver::{
    Server,
    identity::{Identity, MASTERS},
    pki::Authority,
};
use insula_partition::{
    map::ShardKey,
    partitions::{Partitions, PartitionsConfig, StoreConfig},
    store::{Change, Collection, Expect, Write},
};
use serde_json::{Value, json};

use crate::{
    model::{Model, Person},
    routes::{GONE, NAMESPACE, THERE},
};

pub(crate) const TENANTS: [&str; 3] = ["acme", "globex", "system"];
/// Most of an answer that is looked at: watches go on.
const ENOUGH: usize = 4 << 20;

/// What stands in all that a tenant has.
pub(crate) fn canary(tenant: &str) -> String {
    format!("canary-of-{tenant}")
}

/// How somebody proves who they are.
enum Proof {
    Nothing,
    Certificate(Vec<u8>),
    Token(String),
}

/// See the module.
pub(crate) struct World {
    pub(crate) server: Arc<Server>,
    pub(crate) partitions: Arc<Partitions>,
    proofs: HashMap<String, Proof>,
    authority: Authority,
    _dir: tempfile::TempDir,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// All that its reader gets, but for what is another each time and the object's name, which is
    /// the reader's own word.
    pub(crate) fn told(&self) -> (u16, Vec<(String, String)>, String) {
        let varies = ["date", "audit-id", "content-length"];
        let headers = self.headers.iter().filter(|it| !varies.contains(&it.0.as_str()));
        let text = |it: &http::HeaderValue| String::from_utf8_lossy(it.as_bytes()).into_owned();
        let headers = headers.map(|(name, it)| (name.to_string(), text(it))).collect();
        (self.code, headers, self.text().replace(GONE, THERE))
    }
}

fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

impl World {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = PartitionsConfig::alone(
            dir.path().join("data"),
            StoreConfig::Embedded { partitions: 2 },
        );
        let partitions = Arc::new(Partitions::open(config).await.unwrap());
        let server = Server::alone_on(dir.path(), partitions.clone()).await.unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let proofs = HashMap::new();
        let world = Self { server, partitions, proofs, authority, _dir: dir };
        for tenant in ["acme", "globex"] {
            let group = format!("{tenant}-admins");
            let admins = json!([{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io",
                                 "name": group}]);
            let it = json!({"metadata": {"name": tenant}, "spec": {"admins": admins}});
            world.make("/apis/insula.io/v1/tenants", &it).await;
            let namespace = json!({"metadata": {"name": NAMESPACE}});
            world.make(&format!("/tenants/{tenant}/api/v1/namespaces"), &namespace).await;
        }
        world
    }

    /// Sends a request as the platform's superuser, in this process.
    pub(crate) async fn root(&self, method: Method, uri: &str, body: &Value) -> (u16, Value) {
        let patch = "application/merge-patch+json";
        let kind = if method == Method::PATCH { patch } else { "application/json" };
        let request = Request::builder().method(method).uri(uri).header(header::CONTENT_TYPE, kind);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let caller = Identity::new(TenantName::system(), "tester", &[MASTERS]);
        let response = self.server.handle_trusted(request, caller).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Creates what has to be accepted.
    pub(crate) async fn make(&self, uri: &str, it: &Value) -> Value {
        let (code, made) = self.root(Method::POST, uri, it).await;
        assert_eq!(code, StatusCode::CREATED.as_u16(), "{uri}: {made}");
        made
    }

    /// Binds a cluster role in a tenant, everywhere or in a namespace.
    pub(crate) async fn bind(
        &self,
        tenant: &str,
        name: &str,
        role: &str,
        subject: Value,
        reach: Option<&str>,
        namespace: Option<&str>,
    ) {
        let group = "rbac.authorization.k8s.io";
        let mut it = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [subject],
        });
        if let Some(reach) = reach {
            it["metadata"]["annotations"] = json!({"insula.io/tenants": reach});
        }
        let place = match namespace {
            Some(namespace) => format!("namespaces/{namespace}/rolebindings"),
            None => "clusterrolebindings".into(),
        };
        self.make(&format!("/tenants/{tenant}/apis/{group}/v1/{place}"), &it).await;
    }

    /// Everyone of the model is there, and has what the model says.
    pub(crate) async fn settle(&mut self, model: &Model) {
        let group = |name: &str| json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": name});
        self.bind("acme", "viewers", "view", group("viewers"), None, None).await;
        self.bind("system", "auditors", "view", group("auditors"), Some("*"), None).await;
        self.bind("system", "keepers", "edit", group("keepers"), None, None).await;
        // What is bound in a namespace of the platform is not bound in those of that name.
        self.bind(
            "system",
            "keepers",
            "cluster-admin",
            group("auditors"),
            None,
            Some("kube-public"),
        )
        .await;
        self.bind("system", "guests", "cluster-admin", group("guests"), Some("acme"), None).await;
        let accounts = format!("/tenants/acme/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
        self.make(&accounts, &json!({"metadata": {"name": "robot"}})).await;
        let robot = json!({"kind": "ServiceAccount", "namespace": NAMESPACE, "name": "robot"});
        self.bind("acme", "robots", "edit", robot, None, Some(NAMESPACE)).await;
        for person in &model.people {
            let proof = self.prove(person).await;
            self.proofs.insert(person.name.clone(), proof);
        }
    }

    async fn prove(&self, person: &Person) -> Proof {
        if person.home.is_empty() {
            return Proof::Nothing;
        }
        if let Some((namespace, account)) = person.user.split_once(':')
            && namespace == NAMESPACE
        {
            let uri = format!(
                "/tenants/{}/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token",
                person.home
            );
            let made = self.make(&uri, &json!({"spec": {}})).await;
            return Proof::Token(made["status"]["token"].as_str().unwrap().into());
        }
        let groups: Vec<&str> =
            Some(&*person.group).filter(|it| !it.is_empty()).into_iter().collect();
        Proof::Certificate(self.certificate(&person.home, &person.user, &groups))
    }

    /// A certificate of the cloud's authority.
    pub(crate) fn certificate(&self, tenant: &str, user: &str, groups: &[&str]) -> Vec<u8> {
        let tenant = TenantName::parse(tenant).unwrap();
        der(&self.authority.client(&tenant, user, groups).unwrap().certificate)
    }

    /// Asks as one of the model's people.
    pub(crate) async fn ask(&self, who: &Person, method: &Method, uri: &str) -> Answer {
        let mut headers = Vec::new();
        let certificate = match &self.proofs[&who.name] {
            Proof::Nothing => None,
            Proof::Certificate(it) => Some(it.as_slice()),
            Proof::Token(token) => {
                headers.push(("authorization", format!("Bearer {token}")));
                None
            }
        };
        if who.name == "forger" {
            for (name, value) in [
                ("x-remote-user", "root"),
                ("x-remote-group", MASTERS),
                ("x-remote-extra-insula.io%2ftenant", "system"),
                ("x-insula-tenant", "globex"),
                ("x-forwarded-client-cert", "Subject=\"CN=root,O=tenant:system\""),
            ] {
                headers.push((name, value.into()));
            }
        }
        self.send(certificate, &headers, method, uri, None).await
    }

    /// Asks as one who has a certificate, with a whole object.
    pub(crate) async fn says(
        &self,
        certificate: &[u8],
        method: Method,
        uri: &str,
        it: &Value,
    ) -> (u16, Value) {
        let body = (!it.is_null()).then(|| it.to_string());
        let answer = self.send(Some(certificate), &[], &method, uri, body).await;
        (answer.code, serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    /// The code of the answer to a read by one who has a certificate.
    pub(crate) async fn gets(&self, certificate: &[u8], uri: &str) -> u16 {
        self.says(certificate, Method::GET, uri, &Value::Null).await.0
    }

    /// Asks over a connection with this certificate. What is written is no object, if none is given.
    pub(crate) async fn send(
        &self,
        certificate: Option<&[u8]>,
        headers: &[(&str, String)],
        method: &Method,
        uri: &str,
        body: Option<String>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let kind = match *method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let is_bare = *method == Method::GET || *method == Method::DELETE;
        let body = body.unwrap_or_else(|| if is_bare { String::new() } else { "{".into() });
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let response = self.server.handle_from(request, certificate).await;
        let (head, mut body) = response.into_parts();
        let is_watch = uri.contains("timeoutSeconds") && head.status == StatusCode::OK;
        let mut all = BytesMut::new();
        while all.len() < ENOUGH {
            // A watch tells what there is at once, and then nothing.
            let next = match is_watch && !all.is_empty() {
                true => break,
                false => body.frame().await,
            };
            let Some(Ok(frame)) = next else { break };
            all.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        }
        Answer { code: head.status.as_u16(), headers: head.headers, body: all.freeze() }
    }

    /// An object of each kind in each tenant, written as it lies in the store.
    pub(crate) async fn plant(&self, custom: &[Resource]) {
        for resource in resources::built_in().iter().chain(custom) {
            if !is_planted(resource) || versions::other(&resource.gvk()).is_some() {
                continue;
            }
            for tenant in TENANTS {
                if resource.scope == Scope::Fleet && tenant != "system" {
                    continue;
                }
                self.put(tenant, resource, NAMESPACE, THERE, &json!({"spec": {}})).await;
            }
        }
    }

    /// Writes one object with the tenant's canary, and more of it.
    pub(crate) async fn put(
        &self,
        tenant: &str,
        resource: &Resource,
        namespace: &str,
        name: &str,
        more: &Value,
    ) {
        let namespace = if resource.is_namespaced() { namespace } else { "" };
        let mut it = json!({
            "apiVersion": resource.api_version(), "kind": resource.kind,
            "metadata": {
                "name": name, "tenant": tenant, "uid": uuid::Uuid::new_v4().to_string(),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"canary": canary(tenant)},
            },
        });
        if !namespace.is_empty() {
            it["metadata"]["namespace"] = namespace.into();
        }
        for (field, value) in more.as_object().into_iter().flatten() {
            it[field] = value.clone();
        }
        let key = match (&*resource.group, &*resource.name, tenant) {
            ("", "nodes", _) => ShardKey::Node(name.into()),
            (_, _, "system") => ShardKey::System,
            _ => ShardKey::Tenant(tenant.into()),
        };
        let write = Write::durable(
            Collection::new(&resource.group, &resource.name),
            format!("{tenant}/{namespace}/{name}"),
            Expect::Absent,
            Change::Put(object::encode(&it).into()),
        );
        self.partitions.place(&key).store.write(write).await.unwrap();
    }
}

/// Whether objects of a kind lie in the store as they are, and do nothing there.
pub(crate) fn is_planted(resource: &Resource) -> bool {
    let made = ["apiservices", "customresourcedefinitions", "componentstatuses"];
    // Metrics are what agents say of pods that they run, and none run here.
    let is_ours = ["insula.io", "metrics.k8s.io"].contains(&&*resource.group);
    resource.is_stored() && !is_ours && !made.contains(&&*resource.name)
}

/// A built-in resource.
pub(crate) fn resource(group: &str, name: &str) -> &'static Resource {
    let found = resources::built_in().iter().find(|it| it.group == group && it.name == name);
    found.unwrap_or_else(|| panic!("no {name}"))
}
