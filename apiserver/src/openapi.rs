//! OpenAPI v3, made from the type table: one document per group version, made when first asked.

mod custom;
mod gnostic;
mod operations;
mod schemas;
pub(crate) mod v2;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock, OnceLock},
};

use insula_api::resources::Resource;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use self::schemas::{META, Schemas};
use crate::{aggregation, compress::Packed, custom::OfTenant, registry::Registry};

/// Whom documents are for: what they say is what that caller is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub registry: &'a Registry,
    pub customs: &'a OfTenant,
    pub apis: &'a aggregation::OfTenant,
    /// Fleet resources are told to the platform alone.
    pub platform: bool,
}

/// A document and the hash that changes with it. They are long, and kept as most clients take them.
#[derive(Debug)]
pub(crate) struct Document {
    pub body: Packed,
    pub hash: String,
    message: OnceLock<Packed>,
}

impl Document {
    fn new(it: &Value) -> Self {
        let body = it.to_string();
        let hash = format!("{:032X}", xxhash_rust::xxh3::xxh3_128(body.as_bytes()));
        Self { body: Packed::new(body.as_bytes()), hash, message: OnceLock::new() }
    }

    /// The document as a message of protobuf, made when first asked for.
    pub(crate) fn message(&self) -> Packed {
        let made = || {
            // It is this program that wrote it.
            let it: Value = serde_json::from_slice(&self.body.unpacked()).unwrap_or_default();
            Packed::new(&gnostic::v3::document(&it))
        };
        self.message.get_or_init(made).clone()
    }
}

/// Documents of built-in group versions; they are the same for every tenant.
fn cache() -> &'static Mutex<HashMap<String, Arc<Document>>> {
    static CACHE: LazyLock<Mutex<HashMap<String, Arc<Document>>>> = LazyLock::new(Mutex::default);
    &CACHE
}

/// `api/v1` or `apis/<group>/<version>`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`.
pub(crate) fn index(reader: Reader<'_>) -> Value {
    let Reader { registry, customs, apis, platform } = reader;
    let versions: BTreeSet<(&str, &str)> = registry
        .all()
        .iter()
        .chain(registry.stand_ins_beside(customs, apis))
        .chain(customs.all())
        .filter(|it| platform || !it.resource.is_platforms())
        .map(|it| (&*it.resource.group, &*it.resource.version))
        .collect();
    let groups: BTreeSet<&str> = registry.all().iter().map(|it| &*it.resource.group).collect();
    let groups = groups.into_iter().filter(|it| !it.is_empty()).map(|it| format!("apis/{it}"));
    let general = GENERAL.iter().map(|it| (*it).to_owned()).chain(groups);
    let mut paths = Map::new();
    for path in general.chain(versions.into_iter().map(|(group, version)| path_of(group, version)))
    {
        if let Some(document) = document(reader, &path) {
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

/// `/openapi/v3/<path>`; `None` if there is no such group version.
pub(crate) fn document(reader: Reader<'_>, path: &str) -> Option<Arc<Document>> {
    let Reader { registry, customs, apis, .. } = reader;
    let is_group = |group: &str| registry.all().iter().any(|it| it.resource.group == group);
    let group = path.strip_prefix("apis/").filter(|it| !it.contains('/') && is_group(it));
    if GENERAL.contains(&path) || group.is_some() {
        return Some(kept(path, || {
            let mut document = Parts::new(BTreeMap::new(), None);
            document.general(path);
            document.whole()
        }));
    }
    let mut parts = path.split('/');
    let (group, version) = match (parts.next()?, parts.next()?, parts.next(), parts.next()) {
        ("api", version, None, None) => ("", version),
        ("apis", group, Some(version), None) => (group, version),
        _ => return None,
    };
    let resources: Vec<&Resource> = registry
        .all()
        .iter()
        .chain(registry.stand_ins_beside(customs, apis))
        .map(|it| &*it.resource)
        .filter(|it| (&*it.group, &*it.version) == (group, version))
        .collect();
    if resources.is_empty() {
        return custom::document(customs, group, version);
    }
    Some(kept(path, || make(&resources)))
}

/// The document of a path that is the same for every tenant.
fn kept(path: &str, make: impl FnOnce() -> Value) -> Arc<Document> {
    if let Some(known) = cache().lock().get(path) {
        return known.clone();
    }
    let document = Arc::new(Document::new(&make()));
    cache().lock().insert(path.to_owned(), document.clone());
    document
}

/// Documents of what is of no group.
const GENERAL: &[&str] =
    &[".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"];

fn make(resources: &[&Resource]) -> Value {
    let of = resources.first().map(|it| (&*it.group, &*it.version));
    let mut document = Parts::new(BTreeMap::new(), of);
    document.versions(resources);
    for resource in resources {
        document.add(resource, None);
    }
    document.whole()
}

/// A document under way.
struct Parts {
    schemas: Schemas,
    paths: Map<String, Value>,
}

impl Parts {
    /// `own` has schemas that are not built in, `of` the one group version it is of.
    fn new(own: BTreeMap<String, Value>, of: Option<(&str, &str)>) -> Self {
        Self { schemas: Schemas::new(own, of), paths: Map::new() }
    }

    /// Adds a resource, with the name of its schema if it is not built in.
    fn add(&mut self, resource: &Resource, schema: Option<&str>) {
        let mut paths = operations::Paths { schemas: &mut self.schemas, paths: &mut self.paths };
        paths.add(resource, schema);
    }

    /// Adds what is asked of the group versions of `resources` themselves.
    fn versions(&mut self, resources: &[&Resource]) {
        let all: BTreeSet<(&str, &str)> =
            resources.iter().map(|it| (&*it.group, &*it.version)).collect();
        for (group, version) in all {
            let path = path_of(group, version);
            let (tag, name) = words::names(group, version);
            let id = format!("get{name}APIResources");
            self.describe(&path, &id, &tag, "get available resources", "APIResourceList");
        }
    }

    /// Adds a path that tells of the API.
    fn describe(&mut self, path: &str, id: &str, tag: &str, description: &str, kind: &str) {
        let answer = self.schemas.refer(&format!("{META}{kind}"));
        let it = words::described(id, tag, description, &answer);
        self.paths.insert(format!("/{path}/"), it);
    }

    /// Adds one of [`GENERAL`], or what is asked of a group.
    fn general(&mut self, path: &str) {
        let versions = "get available API versions";
        match path {
            "api" => self.describe(path, "getCoreAPIVersions", "core", versions, "APIVersions"),
            "apis" => self.describe(path, "getAPIVersions", path, versions, "APIGroupList"),
            _ if let Some(group) = path.strip_prefix("apis/") => {
                let (tag, name) = words::group_names(group);
                let id = format!("get{name}APIGroup");
                self.describe(path, &id, &tag, "get information of a group", "APIGroup");
            }
            _ => {
                let (id, tag, description, answer, media_type) = match path {
                    "version" => (
                        "getCodeVersion",
                        path,
                        "get the version information for this server",
                        self.schemas.refer("io.k8s.apimachinery.pkg.version.Info"),
                        "application/json",
                    ),
                    "openid/v1/jwks" => (
                        "getServiceAccountIssuerOpenIDKeyset",
                        "openid",
                        "get the keys that tokens of service accounts are signed with",
                        json!({"type": "string"}),
                        "application/jwk-set+json",
                    ),
                    _ => (
                        "getServiceAccountIssuerOpenIDConfiguration",
                        "WellKnown",
                        "get the discovery document of the issuer of service accounts' tokens",
                        json!({"type": "string"}),
                        "application/json",
                    ),
                };
                let it = words::single(id, tag, description, &answer, &[media_type]);
                self.paths.insert(format!("/{path}/"), it);
            }
        }
    }

    fn whole(self) -> Value {
        json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": crate::version::GIT_VERSION},
            "paths": self.paths,
            "components": {
                "schemas": self.schemas.all(),
                "securitySchemes": {"BearerToken": bearer()},
            },
        })
    }
}

/// How callers prove who they are.
fn bearer() -> Value {
    json!({
        "type": "apiKey", "name": "authorization", "in": "header",
        "description": "Bearer Token authentication",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The platform, which has nothing of its own.
    pub(super) fn everything() -> Reader<'static> {
        static IT: LazyLock<(Registry, OfTenant, aggregation::OfTenant)> =
            LazyLock::new(|| (Registry::built_in(), OfTenant::default(), Default::default()));
        let (registry, customs, apis) = &*IT;
        Reader { registry, customs, apis, platform: true }
    }

    #[test]
    fn documents_are_closed() {
        for (path, _) in index(everything())["paths"].as_object().unwrap() {
            let document = document(everything(), path).unwrap().body.unpacked();
            let value: Value = serde_json::from_slice(&document).unwrap();
            let schemas = value["components"]["schemas"].as_object().unwrap();
            let text = String::from_utf8(document.to_vec()).unwrap();
            for part in text.split("#/components/schemas/").skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(schemas.contains_key(name), "{path}: {name}");
            }
        }
    }

    fn of(group: &str, version: &str) -> Value {
        let body = document(everything(), &path_of(group, version)).unwrap().body.unpacked();
        serde_json::from_slice(&body).unwrap()
    }

    #[track_caller]
    fn check(document: &Value, path: &str, method: &str, id: &str, names: &[&str]) {
        let path = &document["paths"][path];
        assert_eq!(path[method]["operationId"], id);
        let own = path[method]["parameters"].as_array().into_iter().flatten();
        let all = own.chain(path["parameters"].as_array().unwrap());
        let all: BTreeSet<&str> = all.map(|it| it["name"].as_str().unwrap()).collect();
        for name in names {
            assert!(all.contains(name), "{id}: {name} of {all:?}");
        }
    }

    /// As in upstream's documents.
    #[test]
    fn operations_are_called_as_people_know_them() {
        let core = of("", "v1");
        let pod = "/api/v1/namespaces/{namespace}/pods/{name}";
        let at = |rest: &str| format!("{pod}{rest}");
        check(&core, pod, "put", "replaceCoreV1NamespacedPod", &["dryRun", "name", "pretty"]);
        check(&core, pod, "patch", "patchCoreV1NamespacedPod", &["force", "namespace"]);
        check(&core, &at("/log"), "get", "readCoreV1NamespacedPodLog", &["follow"]);
        check(&core, &at("/exec"), "post", "connectCoreV1PostNamespacedPodExec", &["command"]);
        let id = "connectCoreV1HeadNamespacedPodProxyWithPath";
        check(&core, &at("/proxy/{path}"), "head", id, &["path"]);
        check(&core, "/api/v1/pods", "get", "listCoreV1PodForAllNamespaces", &["watch"]);
        let id = "deleteCoreV1CollectionNamespacedPod";
        let all = "/api/v1/namespaces/{namespace}/pods";
        check(&core, all, "delete", id, &["propagationPolicy", "continue"]);
        check(&core, "/api/v1/watch/nodes", "get", "watchCoreV1NodeList", &["watch"]);
        let body = &core["paths"][pod]["put"]["requestBody"];
        let reference = &body["content"]["*/*"]["schema"]["$ref"];
        assert_eq!(reference, "#/components/schemas/io.k8s.api.core.v1.Pod");
        // What all operations of a path take is said of the path alone.
        let named = |it: &Value| it["name"] == "pretty";
        assert!(core["paths"][pod]["parameters"].as_array().unwrap().iter().any(named));
        assert!(!core["paths"][pod]["put"]["parameters"].as_array().unwrap().iter().any(named));
        let container = &core["components"]["schemas"]["io.k8s.api.core.v1.Container"];
        let policy = &container["properties"]["imagePullPolicy"];
        assert_eq!(policy["enum"], json!(["Always", "IfNotPresent", "Never"]));

        let roles = of("rbac.authorization.k8s.io", "v1");
        let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        check(&roles, path, "post", "createRbacAuthorizationV1ClusterRole", &["fieldManager"]);
        assert_eq!(roles["paths"][path]["post"]["tags"], json!(["rbacAuthorization_v1"]));
        let group = document(everything(), "apis/apps").unwrap().body.unpacked();
        let group: Value = serde_json::from_slice(&group).unwrap();
        assert_eq!(group["paths"]["/apis/apps/"]["get"]["operationId"], "getAppsAPIGroup");
    }

    #[test]
    fn kubectl_finds_what_it_reads() {
        let value = of("apps", "v1");
        let post = &value["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"]["post"];
        assert_eq!(post["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let names: Vec<&str> = post["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|it| it["name"].as_str())
            .collect();
        assert!(names.contains(&"fieldValidation"));
    }
}
