//! What may be asked of each path: the operations of documents.
//!
//! Names and parameters are upstream's, so that what generators make of the documents is called
//! as people know it. What all operations of a path have in common is said once, of the path.

use insula_api::{
    resources::{Resource, Subresource},
    schema::{Gvk, Schema},
};
use serde_json::{Map, Value, json};

use super::{
    path_of,
    schemas::{META, Schemas, reference},
    words::{
        COLLECTION, DELETE, FORCE, JSON, LOG, PRETTY, PROTOBUF, Parameter, REVISION, WATCH, WRITE,
        YAML, capital, connecting, content, names, parameter, responses, with_article,
    },
};
use crate::strategy;

/// The paths of a document, as they are collected.
pub(super) struct Paths<'a> {
    pub schemas: &'a mut Schemas,
    pub paths: &'a mut Map<String, Value>,
}

/// One operation, before it is written.
struct Operation<'a> {
    method: &'static str,
    action: &'static str,
    /// `read`, in `readCoreV1NamespacedPodLog`.
    verb: String,
    /// What follows the kind there.
    rest: String,
    description: String,
    kind: &'a Gvk,
    parameters: Vec<&'static [Parameter]>,
    body: Option<Body>,
    answers: Vec<(&'static str, Value)>,
    media_types: Vec<&'static str>,
}

/// What is sent.
struct Body {
    schema: Value,
    media_types: Vec<&'static str>,
    required: bool,
}

/// What operations of one resource have in common.
struct Of<'a> {
    resource: &'a Resource,
    gvk: Gvk,
    is_custom: bool,
    /// `CoreV1`.
    version: String,
    /// `core_v1`.
    tag: String,
    /// The schema of one, and of a list of them.
    one: Value,
    list: Value,
    media_types: Vec<&'static str>,
}

impl Paths<'_> {
    /// Adds all of one resource; `schema` is that of a resource which is not built in.
    pub(super) fn add(&mut self, resource: &Resource, schema: Option<&str>) {
        let gvk = resource.gvk();
        let built_in = Schema::built_in().by_kind(&gvk).map(|id| Schema::built_in().get(id));
        let Some(name) = schema.or_else(|| built_in.map(|it| it.name)) else { return };
        let one = self.schemas.refer(name);
        let list = match schema {
            Some(name) => reference(&format!("{name}List")),
            None if !resource.has_verb("list") => Value::Null,
            None => {
                let kind = [&*resource.group, &resource.version, &resource.kind];
                self.schemas.refer_to_list(name, kind)
            }
        };
        let is_custom = schema.is_some();
        let has_proto =
            built_in.is_some_and(|it| it.fields.iter().any(|field| !field.proto.is_empty()));
        let (tag, version) = names(&resource.group, &resource.version);
        let of = Of {
            resource,
            is_custom,
            version,
            tag,
            one,
            list,
            media_types: match has_proto && !is_custom {
                true => vec![JSON, PROTOBUF, YAML],
                false => vec![JSON, YAML],
            },
            gvk,
        };
        let root = format!("/{}", path_of(&resource.group, &resource.version));
        let place = if resource.is_namespaced() { "/namespaces/{namespace}" } else { "" };
        let namespaced = if resource.is_namespaced() { "Namespaced" } else { "" };
        let collection = format!("{root}{place}/{}", resource.name);
        let item = format!("{collection}/{{name}}");
        let operations = self.of_collection(&of);
        self.path(&of, &collection, namespaced, operations);
        let operations = self.of_item(&of, &resource.verbs, None);
        self.path(&of, &item, namespaced, operations);
        for sub in &resource.subresources {
            self.subresource(&of, &item, namespaced, sub);
        }
        if resource.is_namespaced() && resource.has_verb("list") {
            let mut operation = of.listing();
            operation.rest = "ForAllNamespaces".into();
            self.path(&of, &format!("{root}/{}", resource.name), "", vec![operation]);
        }
        if resource.has_verb("watch") && !is_custom {
            self.watches(&of, &root, place, namespaced);
        }
    }

    /// The old paths of watches.
    fn watches(&mut self, of: &Of<'_>, root: &str, place: &str, namespaced: &str) {
        let name = &of.resource.name;
        let event = self.schemas.refer(&format!("{META}WatchEvent"));
        self.schemas.refer("io.k8s.apimachinery.pkg.runtime.RawExtension");
        let watch = |action, rest: &str, what: String| Operation {
            rest: rest.into(),
            description: format!(
                "watch {what} deprecated: use the 'watch' parameter with a list operation instead"
            ),
            verb: "watch".into(),
            answers: vec![("200", event.clone())],
            media_types: of.streamed(),
            parameters: vec![COLLECTION, WATCH, PRETTY],
            ..of.operation("get", action)
        };
        let kind = &of.resource.kind;
        let mut one = watch("watch", "", format!("changes to an object of kind {kind}."));
        one.description.push_str(", filtered to a single item with the 'fieldSelector' parameter.");
        let all = |rest| {
            let what = format!("individual changes to a list of {kind}.");
            let mut it = watch("watchlist", rest, what);
            it.description.push('.');
            it
        };
        let in_place = format!("{root}/watch{place}/{name}");
        self.path(of, &format!("{in_place}/{{name}}"), namespaced, vec![one]);
        self.path(of, &in_place, namespaced, vec![all("List")]);
        if of.resource.is_namespaced() {
            let everywhere = format!("{root}/watch/{name}");
            self.path(of, &everywhere, "", vec![all("ListForAllNamespaces")]);
        }
    }

    fn of_collection<'a>(&mut self, of: &'a Of<'_>) -> Vec<Operation<'a>> {
        let kind = &of.resource.kind;
        let mut out = Vec::new();
        for verb in &of.resource.verbs {
            match verb.as_str() {
                "list" => out.push(of.listing()),
                "create" => {
                    let description = format!("create {}", with_article(kind));
                    out.push(of.creating(description, "", &of.gvk, of.one.clone()));
                }
                "deletecollection" => {
                    let status = self.schemas.refer(&format!("{META}Status"));
                    // Definitions' are said to take what lists take.
                    let (other, body) = match of.is_custom {
                        true => (WATCH, None),
                        false => (DELETE, Some(self.deleting(of))),
                    };
                    out.push(Operation {
                        verb: "delete".into(),
                        description: format!("delete collection of {kind}"),
                        parameters: vec![COLLECTION, other, PRETTY],
                        body,
                        answers: vec![("200", status)],
                        ..of.operation("delete", "deletecollection")
                    });
                }
                _ => (),
            }
        }
        out
    }

    /// The body of a deletion.
    fn deleting(&mut self, of: &Of<'_>) -> Body {
        let schema = self.schemas.refer(&format!("{META}DeleteOptions"));
        Body { schema, media_types: of.sent(), required: false }
    }

    /// Operations on one object, or on a part of it.
    fn of_item<'a>(
        &mut self,
        of: &'a Of<'_>,
        verbs: &[String],
        sub: Option<(&'a Subresource, Value)>,
    ) -> Vec<Operation<'a>> {
        let kind = &of.resource.kind;
        let (what, rest, gvk, one) = match sub {
            None => (format!("the specified {kind}"), String::new(), &of.gvk, of.one.clone()),
            Some((sub, one)) => {
                let gvk = if of.is_custom { &of.gvk } else { &sub.kind };
                (format!("{} of the specified {kind}", sub.name), capital(&sub.name), gvk, one)
            }
        };
        let is_whole = rest.is_empty();
        let base = |method, action, verb: &str, description: String| Operation {
            verb: verb.into(),
            rest: rest.clone(),
            description,
            kind: gvk,
            parameters: vec![PRETTY],
            ..of.operation(method, action)
        };
        let mut out = Vec::new();
        for verb in verbs {
            match verb.as_str() {
                "get" => {
                    let mut it = base("get", "get", "read", format!("read {what}"));
                    it.answers = vec![("200", one.clone())];
                    if of.is_custom {
                        it.parameters.push(REVISION);
                    }
                    out.push(it);
                }
                "update" => {
                    let mut it = base("put", "put", "replace", format!("replace {what}"));
                    it.parameters.push(WRITE);
                    it.body =
                        Some(Body { schema: one.clone(), media_types: of.sent(), required: true });
                    it.answers = vec![("200", one.clone()), ("201", one.clone())];
                    out.push(it);
                }
                "patch" => {
                    let description = format!("partially update {what}");
                    let mut it = base("patch", "patch", "patch", description);
                    it.parameters.extend([WRITE, FORCE]);
                    let mut media_types = vec![
                        "application/apply-patch+yaml",
                        "application/json-patch+json",
                        "application/merge-patch+json",
                    ];
                    it.answers = vec![("200", one.clone())];
                    if !of.is_custom {
                        media_types.push("application/strategic-merge-patch+json");
                        it.answers.push(("201", one.clone()));
                    }
                    let schema = self.schemas.refer(&format!("{META}Patch"));
                    it.body = Some(Body { schema, media_types, required: true });
                    out.push(it);
                }
                "delete" if is_whole => {
                    let description = format!("delete {}", with_article(kind));
                    let mut it = base("delete", "delete", "delete", description);
                    it.parameters.push(DELETE);
                    it.body = Some(self.deleting(of));
                    // Namespaces are shown on their way only.
                    let is_shown = !of.is_custom
                        && kind != "Namespace"
                        && strategy::facts(of.resource).deleted_shown;
                    let answer = match is_shown {
                        true => one.clone(),
                        false => self.schemas.refer(&format!("{META}Status")),
                    };
                    it.answers = vec![("200", answer.clone()), ("202", answer)];
                    out.push(it);
                }
                _ => (),
            }
        }
        out
    }

    fn subresource(&mut self, of: &Of<'_>, item: &str, namespaced: &str, sub: &Subresource) {
        let path = format!("{item}/{}", sub.name);
        if sub.kind.kind.ends_with("Options") {
            self.connection(of, &path, namespaced, sub);
            return;
        }
        let known = Schema::built_in().by_kind(&sub.kind);
        let one = match known.map(|id| Schema::built_in().get(id).name) {
            Some(name) if sub.kind != of.gvk => self.schemas.refer(name),
            _ => of.one.clone(),
        };
        let mut operations = Vec::new();
        if sub.verbs.iter().any(|it| it == "create") {
            let kind = &of.resource.kind;
            let description = format!("create {} of {}", sub.name, with_article(kind));
            operations.push(of.creating(description, &sub.name, &sub.kind, one.clone()));
        }
        operations.extend(self.of_item(of, &sub.verbs, Some((sub, one))));
        for operation in &mut operations {
            if sub.name == "log" {
                operation.parameters.push(LOG);
                operation.answers = vec![("200", json!({"type": "string"}))];
                operation.media_types.push("text/plain");
            }
        }
        self.path(of, &path, namespaced, operations);
    }

    /// A connection to what an object stands for.
    fn connection(&mut self, of: &Of<'_>, path: &str, namespaced: &str, sub: &Subresource) {
        let is_proxy = sub.name == "proxy";
        let methods: &[&'static str] = match is_proxy {
            true => &["delete", "get", "head", "options", "patch", "post", "put"],
            false => &["get", "post"],
        };
        let operations = |suffix: &str| -> Vec<Operation<'_>> {
            let all = methods.iter().map(|method| Operation {
                verb: "connect".into(),
                rest: format!("{}{suffix}", capital(&sub.name)),
                description: format!(
                    "connect {} requests to {} of {}",
                    method.to_ascii_uppercase(),
                    sub.name,
                    of.resource.kind
                ),
                kind: &sub.kind,
                parameters: vec![connecting(&sub.kind.kind)],
                answers: vec![("200", json!({"type": "string"}))],
                media_types: vec!["*/*"],
                ..of.operation(method, "connect")
            });
            all.collect()
        };
        self.path(of, path, namespaced, operations(""));
        if is_proxy {
            self.path(of, &format!("{path}/{{path}}"), namespaced, operations("WithPath"));
        }
    }

    /// Adds a path with its operations.
    fn path(&mut self, of: &Of<'_>, path: &str, namespaced: &str, operations: Vec<Operation<'_>>) {
        if operations.is_empty() {
            return;
        }
        let common: Vec<Parameter> = {
            let mut rest = operations.iter().map(Operation::parameters);
            let first = rest.next().unwrap_or_default();
            rest.fold(first, |common, it| {
                common.into_iter().filter(|known| it.contains(known)).collect()
            })
        };
        let mut shared: Vec<Value> = common.iter().map(parameter).collect();
        for part in path.split('/') {
            let name = part.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
            if let Some(name) = name {
                let mut it = parameter(&(name, "string"));
                it["in"] = "path".into();
                it["required"] = true.into();
                shared.push(it);
            }
        }
        let key = |it: &Value| {
            let of = |name| it[name].as_str().unwrap_or_default().to_owned();
            (of("name"), of("in"))
        };
        shared.sort_by_key(key);
        let mut out = json!({ "parameters": shared });
        for operation in operations {
            let own = operation.parameters();
            let own: Vec<Value> =
                own.iter().filter(|it| !common.contains(it)).map(parameter).collect();
            let method = operation.method;
            out[method] = operation.write(of, namespaced, own);
        }
        self.paths.insert(path.to_owned(), out);
    }
}

impl<'a> Of<'a> {
    fn operation(&'a self, method: &'static str, action: &'static str) -> Operation<'a> {
        Operation {
            method,
            action,
            verb: String::new(),
            rest: String::new(),
            description: String::new(),
            kind: &self.gvk,
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            media_types: self.media_types.clone(),
        }
    }

    fn listing(&'a self) -> Operation<'a> {
        let watched = self.resource.has_verb("watch") && !self.is_custom;
        let verb = if watched { "list or watch" } else { "list" };
        Operation {
            verb: "list".into(),
            description: format!("{verb} objects of kind {}", self.resource.kind),
            parameters: vec![COLLECTION, WATCH, PRETTY],
            answers: vec![("200", self.list.clone())],
            media_types: self.streamed(),
            ..self.operation("get", "list")
        }
    }

    fn creating(
        &'a self,
        description: String,
        sub: &str,
        kind: &'a Gvk,
        one: Value,
    ) -> Operation<'a> {
        Operation {
            verb: "create".into(),
            rest: capital(sub),
            description,
            kind,
            parameters: vec![WRITE, PRETTY],
            answers: ["200", "201", "202"].map(|code| (code, one.clone())).into(),
            body: Some(Body { schema: one, media_types: self.sent(), required: true }),
            ..self.operation("post", "post")
        }
    }

    /// What bodies are sent as.
    fn sent(&self) -> Vec<&'static str> {
        if self.is_custom { self.media_types.clone() } else { vec!["*/*"] }
    }

    /// What lists are sent as, which may be watches.
    fn streamed(&self) -> Vec<&'static str> {
        let mut out = self.media_types.clone();
        if !self.is_custom {
            out.push("application/json;stream=watch");
            if out.contains(&PROTOBUF) {
                out.push("application/vnd.kubernetes.protobuf;stream=watch");
            }
        }
        out
    }
}

impl Operation<'_> {
    fn parameters(&self) -> Vec<Parameter> {
        let mut all = self.parameters.concat();
        all.sort_unstable();
        all
    }

    fn write(self, of: &Of<'_>, namespaced: &str, parameters: Vec<Value>) -> Value {
        let how = match self.action {
            "deletecollection" => "Collection".to_owned(),
            "connect" => capital(self.method),
            _ => String::new(),
        };
        let (version, kind) = (&of.version, &of.resource.kind);
        let id = format!("{}{version}{how}{namespaced}{kind}{}", self.verb, self.rest);
        let kind = self.kind;
        let mut out = json!({
            "operationId": id,
            "description": self.description,
            "tags": [of.tag],
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind":
                {"group": kind.group, "version": kind.version, "kind": kind.kind},
            "responses": responses(&self.answers, &self.media_types),
        });
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        if let Some(body) = self.body {
            out["requestBody"] = json!({ "content": content(&body.schema, &body.media_types) });
            if body.required {
                out["requestBody"]["required"] = true.into();
            }
        }
        out
    }
}
