//! Sends the corpus to a server.

use std::{path::Path, time::Duration};

use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::{
    Answers,
    answer::Answer,
    corpus::{Kind, NAMESPACE, Once, merge},
};

/// How long what takes its time is waited for, and between two looks.
const PATIENCE: u32 = 600;
const PAUSE: Duration = Duration::from_millis(100);
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const PARTIAL: &str = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";

/// All answers, by the name of the file for them. `fleet` is who asks for what is the platform's.
pub(crate) async fn all(user: &Path, fleet: &Path) -> Vec<(String, Answers)> {
    let (user, fleet) = (Asker::new(user).await, Asker::new(fleet).await);
    for asker in [&user, &fleet] {
        asker.prepare().await;
    }
    let mut all = Vec::new();
    for kind in Kind::all() {
        let asker = if kind.fleet { &fleet } else { &user };
        let title = kind.title();
        let answers = asker.life(&kind).await;
        let answers = answers.into_iter().map(|(step, it)| (format!("{title}: {step}"), it));
        all.push((title.replace(' ', "_"), answers.collect()));
    }
    all.push(("once".into(), user.each(Once::all()).await));
    all.push(("custom".into(), user.each(Once::of_custom()).await));
    all.push(("again".into(), user.each(Once::of_again()).await));
    all.push(("policies".into(), user.each(Once::of_policies()).await));
    all
}

/// One user at one server.
struct Asker {
    client: Client,
}

/// A request's method, path, content type and body.
type Ask<'a> = (Method, String, &'a str, Option<&'a Value>);

impl Asker {
    async fn new(kubeconfig: &Path) -> Self {
        let file = Kubeconfig::read_from(kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(file, &options).await.unwrap();
        config.default_retry = false;
        Self { client: Client::try_from(config).unwrap() }
    }

    async fn send(&self, request: Request<Vec<u8>>) -> Answer {
        let response = self.client.send(request.map(Body::from)).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer::new(&http::Response::from_parts(head, ()), &bytes)
    }

    async fn ask(&self, (method, path, content_type, body): Ask<'_>) -> Answer {
        self.ask_for((method, path, content_type, body), JSON).await
    }

    async fn ask_for(&self, (method, path, content_type, body): Ask<'_>, accept: &str) -> Answer {
        let body = body.map(|it| it.to_string().into_bytes()).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(path);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.header(header::ACCEPT, accept).header(header::USER_AGENT, "differ");
        self.send(request.body(body).unwrap()).await
    }

    /// The namespace, and what pods in it need.
    async fn prepare(&self) {
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        self.ask((Method::POST, "/api/v1/namespaces".into(), JSON, Some(&namespace))).await;
        let account = json!({"metadata": {"name": "default"}});
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
        self.ask((Method::POST, path, JSON, Some(&account))).await;
    }

    /// An object from its making to its end, and those that are never made.
    async fn life(&self, kind: &Kind) -> Vec<(String, Answer)> {
        let mut answers = Vec::new();
        let all = kind.path();
        let one = format!("{all}/{}", kind.name());
        let named = format!("fieldSelector=metadata.name%3D{}", kind.name());
        let post = |query: &str| (Method::POST, format!("{all}{query}"));
        let mut note = |name: &str, answer: Answer| answers.push((name.to_owned(), answer));

        for (index, patch) in kind.bad.iter().enumerate() {
            let (method, path) = post("?dryRun=All&fieldValidation=Strict");
            let object = kind.with(patch);
            note(&format!("bad {index:03}"), self.ask((method, path, JSON, Some(&object))).await);
        }
        let odd = kind.with(&json!({"nope": 1, "metadata": {"odd": 2}}));
        for how in ["Strict", "Warn", "Ignore"] {
            let (method, path) = post(&format!("?dryRun=All&fieldValidation={how}"));
            let answer = self.ask((method, path, JSON, Some(&odd))).await;
            note(&format!("unknown fields {how}"), answer);
        }
        let foreign = kind.with(&json!({"kind": "Nope"}));
        note("another kind", self.ask((Method::POST, all.clone(), JSON, Some(&foreign))).await);
        let foreign = kind.with(&json!({"apiVersion": "nope/v1"}));
        note("another version", self.ask((Method::POST, all.clone(), JSON, Some(&foreign))).await);
        let typed = kind.with(&json!({"metadata": {"labels": [1]}}));
        note("another type", self.ask((Method::POST, all.clone(), JSON, Some(&typed))).await);
        note("no such", self.ask((Method::GET, one.clone(), JSON, None)).await);
        note("change of no such", {
            self.ask((Method::PATCH, one.clone(), MERGE, Some(&kind.change))).await
        });
        note("put of no such", {
            let object = kind.with(&json!({}));
            self.ask((Method::PUT, format!("{one}?dryRun=All"), JSON, Some(&object))).await
        });

        note("create", {
            let (method, path) = post("?fieldManager=maker");
            self.ask((method, path, JSON, Some(&kind.object))).await
        });
        note("create again", self.ask((Method::POST, all.clone(), JSON, Some(&kind.object))).await);
        note("get", self.ask((Method::GET, one.clone(), JSON, None)).await);
        note("get table", self.ask_for((Method::GET, one.clone(), JSON, None), TABLE).await);
        note("get partial", self.ask_for((Method::GET, one.clone(), JSON, None), PARTIAL).await);
        note("list", self.ask((Method::GET, format!("{all}?{named}"), JSON, None)).await);
        let answer = self.ask_for((Method::GET, format!("{all}?{named}"), JSON, None), TABLE).await;
        note("list table", answer);
        let path = format!("{all}?fieldSelector=spec.nope%3D1");
        note("list by no field", self.ask((Method::GET, path, JSON, None)).await);

        let live = self.live(&one).await;
        note("put as it is", self.ask((Method::PUT, one.clone(), JSON, Some(&live))).await);
        // Of some kinds upstream writes even what changes nothing.
        let mut changed = self.live(&one).await;
        merge(&mut changed, &kind.change);
        note("put changed", {
            let path = format!("{one}?fieldManager=changer");
            self.ask((Method::PUT, path, JSON, Some(&changed))).await
        });
        note("put stale", self.ask((Method::PUT, one.clone(), JSON, Some(&changed))).await);
        merge(&mut changed, &json!({"metadata": {"resourceVersion": null}}));
        note("put unconditional", {
            let path = format!("{one}?dryRun=All");
            self.ask((Method::PUT, path, JSON, Some(&changed))).await
        });
        merge(&mut changed, &json!({"metadata": {"name": "renamed"}}));
        note("put renamed", self.ask((Method::PUT, one.clone(), JSON, Some(&changed))).await);
        for (index, patch) in kind.frozen.iter().enumerate() {
            let path = format!("{one}?dryRun=All");
            let answer = self.ask((Method::PATCH, path, MERGE, Some(patch))).await;
            note(&format!("frozen {index:03}"), answer);
        }

        let label = |value: &str| json!({"metadata": {"labels": {"differ": value}}});
        for (name, content_type, patch) in [
            ("merge patch", MERGE, label("a")),
            ("strategic patch", STRATEGIC, label("b")),
            (
                "json patch",
                JSON_PATCH,
                json!([{"op": "replace", "path": "/metadata/labels/differ", "value": "c"}]),
            ),
            (
                "json patch that does not apply",
                JSON_PATCH,
                json!([{"op": "test", "path": "/metadata/name", "value": "x"}]),
            ),
            (
                "json patch of nothing",
                JSON_PATCH,
                json!([{"op": "remove", "path": "/metadata/nope/a"}]),
            ),
            ("json patch that is none", JSON_PATCH, json!({"op": "remove"})),
            ("patch of unknown form", "application/nope", label("d")),
            ("patch to a bad label", MERGE, label("not a value!")),
            ("patch of the uid", MERGE, json!({"metadata": {"uid": "0"}})),
        ] {
            let path = format!("{one}?fieldManager=patcher");
            note(name, self.ask((Method::PATCH, path, content_type, Some(&patch))).await);
        }

        let mut applied = json!({
            "apiVersion": kind.object["apiVersion"],
            "kind": kind.object["kind"],
            "metadata": {"name": kind.name(), "labels": {"applied": "a"}},
        });
        let apply = |query: &str| (Method::PATCH, format!("{one}?{query}"));
        let (method, path) = apply("fieldManager=first");
        note("apply", self.ask((method, path, APPLY, Some(&applied))).await);
        let (method, path) = apply("");
        note("apply by nobody", self.ask((method, path, APPLY, Some(&applied))).await);
        applied["metadata"]["labels"]["applied"] = json!("b");
        let (method, path) = apply("fieldManager=second");
        note("apply in conflict", self.ask((method, path, APPLY, Some(&applied))).await);
        let (method, path) = apply("fieldManager=second&force=true");
        note("apply by force", self.ask((method, path, APPLY, Some(&applied))).await);

        let (method, path) = (Method::GET, format!("{one}/status"));
        note("status", self.ask((method, path, JSON, None)).await);
        let patch = json!({"metadata": {"labels": {"by": "status"}}, "status": {}});
        let (method, path) = (Method::PATCH, format!("{one}/status?fieldManager=reporter"));
        note("status patch", self.ask((method, path, MERGE, Some(&patch))).await);

        let other = json!({"preconditions": {"uid": "0"}});
        note("delete another", self.ask((Method::DELETE, one.clone(), JSON, Some(&other))).await);
        let stale = json!({"preconditions": {"resourceVersion": "1"}});
        note("delete stale", self.ask((Method::DELETE, one.clone(), JSON, Some(&stale))).await);
        let bad = json!({"propagationPolicy": "Nope"});
        note("delete somehow", self.ask((Method::DELETE, one.clone(), JSON, Some(&bad))).await);
        let path = format!("{one}?dryRun=All");
        note("delete dry", self.ask((Method::DELETE, path, JSON, None)).await);
        let now = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        note("delete", self.ask((Method::DELETE, one.clone(), JSON, Some(&now))).await);
        let path = format!("{all}?labelSelector=differ%3Dnone");
        note("delete all of none", self.ask((Method::DELETE, path, JSON, Some(&now))).await);
        answers
    }

    /// The object as it is, with nothing taken out.
    async fn live(&self, path: &str) -> Value {
        let request = Request::get(path).body(Body::from(Vec::new())).unwrap();
        let body = self.client.send(request).await.unwrap().into_body();
        serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap()
    }

    /// Requests by themselves, one after the other.
    async fn each(&self, list: Vec<Once>) -> Answers {
        let mut answers = Answers::new();
        for it in list {
            let mut answer = self.once(&it).await;
            for _ in 0..PATIENCE {
                if it.until.is_none_or(|code| answer.code == code) {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
                answer = self.once(&it).await;
            }
            assert!(
                answers.insert(it.name.clone(), answer).is_none(),
                "{} is there twice",
                it.name
            );
        }
        answers
    }

    async fn once(&self, it: &Once) -> Answer {
        let mut request = Request::builder().method(it.method.as_str()).uri(&it.path);
        request = request.header(header::USER_AGENT, "differ");
        for (name, value) in &it.headers {
            request = request.header(name, value);
        }
        let body = match &it.body {
            None => Vec::new(),
            Some(Value::String(text)) => text.clone().into_bytes(),
            Some(value) => value.to_string().into_bytes(),
        };
        self.send(request.body(body).unwrap()).await
    }
}
