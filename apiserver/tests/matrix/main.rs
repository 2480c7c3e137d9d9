//! Every route of every kind, in every form of URL, as everyone: allowed exactly where
//! `docs/security.md` says so, and what is denied tells nothing.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![allow(clippy::print_stderr, reason = "what was measured is worth knowing")]

mod agents;
mod chosen;
mod holes;
mod leaks;
mod model;
mod routes;
mod shared;
mod world;

use std::time::Instant;

use futures::{StreamExt as _, stream};
use http::Method;
use insula_api::resources::Scope;
use serde_json::{Value, json};

use self::{
    model::{Asked, Model, Outcome, Person},
    routes::{Form, GONE, Route, THERE},
    world::{Answer, TENANTS, World, canary, is_planted},
};

/// Requests under way at once.
const TOGETHER: usize = 32;
/// A tenant that is not there.
const NOWHERE: &str = "nowhere";

/// One request and what is to come of it.
struct Case<'a> {
    who: &'a Person,
    route: &'a Route,
    form: Form,
    tenant: &'a str,
}

impl Case<'_> {
    fn uri(&self) -> String {
        self.route.url(self.form, self.tenant)
    }

    fn expected(&self, model: &Model) -> Outcome {
        let route = self.route;
        let asked = Asked {
            verb: &route.verb,
            group: &route.resource.group,
            resource: &route.resource.name,
            subresource: &route.subresource,
            namespace: route.namespace,
            is_fleets: route.resource.scope == Scope::Fleet,
            tenant: self.tenant,
        };
        model.outcome(self.who, &asked)
    }

    /// What is wrong with an answer.
    fn judge(&self, model: &Model, answer: &Answer) -> Option<String> {
        let expected = self.expected(model);
        let text = answer.text();
        let fits = match expected {
            Outcome::Unknown => answer.code == 401,
            Outcome::Denied => answer.code == 403,
            Outcome::LetIn => answer.code != 401 && answer.code != 403,
        };
        if !fits {
            return Some(format!("{expected:?}, and is {}: {text}", answer.code));
        }
        let is_fleets = self.route.resource.scope == Scope::Fleet;
        let all_but_lists =
            self.tenant == "all" && !is_fleets && !matches!(&*self.route.verb, "list" | "watch");
        if all_but_lists && answer.code < 400 {
            return Some(format!("all tenants at once: {}", answer.code));
        }
        // Whose objects it may speak of.
        for tenant in TENANTS.iter().filter(|tenant| text.contains(&canary(tenant))) {
            let of_fleet = matches!(self.route.resource.scope, Scope::Fleet | Scope::Overlay);
            let may = expected == Outcome::LetIn
                && (*tenant == self.tenant
                    || self.tenant == "all"
                    || *tenant == "system" && of_fleet);
            if !may {
                return Some(format!("speaks of {tenant}: {text}"));
            }
        }
        // Who may read does read: the test asks what is there.
        let is_there =
            self.route.rest.ends_with(THERE) || matches!(&*self.route.verb, "list" | "watch");
        let reads = expected == Outcome::LetIn && self.route.is_read() && is_there;
        let in_part = is_fleets && self.who.home != "system";
        // Of all tenants' own kinds there is only metadata.
        let is_custom = self.route.resource.group == "example.com";
        let unreadable = all_but_lists || in_part || is_custom && self.tenant == "all";
        if reads && is_planted(&self.route.resource) && !unreadable {
            let whose = if is_fleets { "system" } else { self.tenant };
            let wanted = if whose == "all" { "acme" } else { whose };
            if !text.contains(&canary(wanted)) {
                return Some(format!("shows nothing of {wanted}: {} {text}", answer.code));
            }
        }
        None
    }
}

fn cases<'a>(model: &'a Model, routes: &'a [Route]) -> Vec<Case<'a>> {
    let mut cases = Vec::new();
    for who in &model.people {
        let home = if who.home.is_empty() { "acme" } else { &who.home };
        for (index, route) in routes.iter().enumerate() {
            let mut add = |form, tenant| cases.push(Case { who, route, form, tenant });
            for form in [Form::Short, Form::Full, Form::Prefix] {
                add(form, home);
            }
            // Of two forms of one thing one is asked, and the other for the next.
            let form = if index % 2 == 0 { Form::Full } else { Form::Prefix };
            let others = TENANTS.iter().filter(|it| **it != home);
            others.for_each(|tenant| add(form, *tenant));
            add(form, "all");
        }
    }
    cases
}

/// Runs checks, many at once, and fails with the first of what they found.
async fn all_fine<F: Future<Output = Option<String>>>(checks: impl IntoIterator<Item = F>) {
    let mut count = 0;
    let mut wrong = Vec::new();
    let mut found = stream::iter(checks).buffer_unordered(TOGETHER);
    while let Some(found) = found.next().await {
        count += 1;
        wrong.extend(found);
    }
    wrong.sort();
    let shown: Vec<&String> = wrong.iter().take(20).collect();
    assert!(wrong.is_empty(), "{} of {count} are wrong: {shown:#?}", wrong.len());
    assert_ne!(count, 0);
}

async fn definition(world: &World, tenant: &str, plural: &str, kind: &str) {
    let it = json!({
        "metadata": {"name": format!("{plural}.example.com"), "annotations": {"canary": canary(tenant)}},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema":
                {"openAPIV3Schema": {"type": "object", "description": canary(tenant),
                                     "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    });
    let uri = format!("/tenants/{tenant}/apis/apiextensions.k8s.io/v1/customresourcedefinitions");
    world.make(&uri, &it).await;
    // Served as soon as its names are decided on.
    for _ in 0..200 {
        let uri = format!("/tenants/{tenant}/apis/example.com/v1/{plural}");
        if world.root(Method::GET, &uri, &Value::Null).await.0 == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{plural} of {tenant} are not served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allowed_exactly_where_the_model_says() {
    let model = Model::read();
    let mut world = World::start().await;
    world.settle(&model).await;
    for tenant in TENANTS {
        definition(&world, tenant, "widgets", "Widget").await;
    }
    let custom = [routes::custom("example.com", "widgets", "Widget")];
    world.plant(&custom).await;
    let routes = routes::all(&custom);
    let begun = Instant::now();
    let cases = cases(&model, &routes);
    let count = cases.len();
    let (model, world) = (&model, &world);
    all_fine(cases.iter().map(async |case| {
        let (uri, method) = (case.uri(), &case.route.method);
        let answer = world.ask(case.who, method, &uri).await;
        let wrong = case.judge(model, &answer)?;
        Some(format!("{} {method} {uri} is to be {wrong}", case.who.name))
    }))
    .await;
    eprintln!("{count} requests in {:?}", begun.elapsed());
}

/// Whether a tenant or an object is there makes no difference to who may not see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_tells_nothing() {
    let model = Model::read();
    let mut world = World::start().await;
    world.settle(&model).await;
    let custom = [];
    world.plant(&custom).await;
    let routes = routes::all(&custom);
    let (model, world) = (&model, &world);
    // Another tenant that is there, and one that is not.
    let mut pairs = Vec::new();
    for who in &model.people {
        for (index, route) in routes.iter().enumerate() {
            let form = if index % 2 == 0 { Form::Full } else { Form::Prefix };
            let other = if who.home == "globex" { "acme" } else { "globex" };
            let there = Case { who, route, form, tenant: other };
            if there.expected(model) != Outcome::LetIn {
                pairs.push((who, &route.method, there.uri(), route.url(form, NOWHERE)));
            }
            // An object at home that is there, and one that is not.
            let at_home = Case { who, route, form: Form::Short, tenant: &who.home };
            if route.rest.ends_with(THERE) && at_home.expected(model) != Outcome::LetIn {
                let uri = at_home.uri();
                let gone = uri.replace(THERE, GONE);
                pairs.push((who, &route.method, uri, gone));
            }
        }
    }
    all_fine(pairs.iter().map(async |(who, method, there, gone)| {
        let one = world.ask(who, method, there).await;
        let two = world.ask(who, method, gone).await;
        // But for the name, which is the asker's own word.
        let (one, two) = (one.told(), two.told());
        (one != two).then(|| format!("{} {method} {there}: {one:?} and not {two:?}", who.name))
    }))
    .await;
}

/// A path names one tenant, and what lies in no namespace is not reached through one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_mean_nothing_reach_nothing() {
    let model = Model::read();
    let mut world = World::start().await;
    world.settle(&model).await;
    // Everything, in one namespace.
    let robot = json!({"kind": "ServiceAccount", "namespace": "default", "name": "robot"});
    world.bind("acme", "all", "cluster-admin", robot, None, Some("default")).await;
    world.plant(&[]).await;
    let routes = routes::all(&[]);
    let (model, world) = (&model, &world);
    let misplaced: Vec<Route> = routes.iter().filter_map(Route::misplaced).collect();
    let asked = model.people.iter().flat_map(|who| {
        let nested = routes.iter().map(|it| (&it.method, it.nested("acme", "globex"), 400..=401));
        let odd = misplaced.iter().map(|it| (&it.method, it.url(Form::Short, ""), 401..=405));
        nested.chain(odd).map(move |(method, uri, codes)| (who, method, uri, codes))
    });
    let asked: Vec<_> = asked.collect();
    all_fine(asked.iter().map(async |(who, method, uri, codes)| {
        let answer = world.ask(who, method, uri).await;
        let text = answer.text();
        let fine = codes.contains(&answer.code) && !text.contains("canary-of");
        (!fine).then(|| format!("{} {method} {uri}: {} {text}", who.name, answer.code))
    }))
    .await;
    // A namespace through another one is a path of that kind, too.
    let robot = model.people.iter().find(|it| it.name == "robot").unwrap();
    for (method, uri) in [
        (Method::DELETE, "/api/v1/namespaces/default/namespaces/m-there?dryRun=All"),
        (Method::GET, "/api/v1/namespaces/default/namespaces/m-there"),
        (Method::GET, "/api/v1/namespaces/default/namespaces"),
    ] {
        let answer = world.ask(robot, &method, uri).await;
        assert!([403, 404].contains(&answer.code), "{uri}: {} {}", answer.code, answer.text());
    }
}

/// What is no resource: discovery, documents, metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_documents_are_each_tenants_own() {
    let model = Model::read();
    let mut world = World::start().await;
    world.settle(&model).await;
    definition(&world, "acme", "widgets", "Widget").await;
    definition(&world, "globex", "gadgets", "Gadget").await;
    for who in &model.people {
        for (path, whom) in &model.paths {
            let known = !who.home.is_empty();
            let at_home = match (&**whom, known) {
                ("everyone", _) => true,
                ("known", known) => known,
                (name, _) => name == who.name,
            };
            let is_platform = who.home == "system";
            for tenant in [None, Some("acme"), Some("globex"), Some(NOWHERE)] {
                let is_home = tenant.is_none_or(|it| it == who.home);
                let uri = match tenant {
                    Some(tenant) => format!("/tenants/{tenant}{path}"),
                    None => path.clone(),
                };
                let answer = world.ask(who, &Method::GET, &uri).await;
                let text = answer.text();
                let place = format!("{} {uri}: {} {text:.300}", who.name, answer.code);
                if !known {
                    let is_open = whom == "everyone";
                    assert_eq!(answer.code == 200, is_open, "{place}");
                    continue;
                }
                // Whoever sees all tenants may hear that one is not there.
                let is_let = match &**whom {
                    "everyone" => is_home || is_platform,
                    "known" => is_home || is_platform,
                    // Of all tenants together, and so of none.
                    _ => at_home && (tenant.is_none() || who.home == tenant.unwrap_or_default()),
                };
                let is_told = answer.code == 404 && tenant == Some(NOWHERE) && is_platform;
                assert!((answer.code != 403) == is_let || is_told, "{place}");
                for (of, plural) in [("acme", "widgets"), ("globex", "gadgets")] {
                    let shown = text.contains(plural) || text.contains(&canary(of));
                    let whose = tenant.unwrap_or(&who.home);
                    assert!(!shown || whose == of, "{place}");
                }
            }
        }
    }
    // The test would notice: each tenant sees its own.
    let admin = model.people.iter().find(|it| it.name == "admin").unwrap();
    for path in ["/apis/example.com/v1", "/openapi/v2", "/openapi/v3/apis/example.com/v1"] {
        let text = world.ask(admin, &Method::GET, path).await.text();
        assert!(text.contains("widgets") && !text.contains("gadgets"), "{path}: {text:.300}");
    }
}
