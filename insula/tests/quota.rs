//! Quotas of tenants, by kubectl: the platform sets them, the tenant sees them and makes its own
//! below, and nobody gets past one.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{fmt::Write as _, thread, time::Duration};

use harness::{Cloud, Kubectl, etcd::Etcd, texts};

/// The tenant's own API, for a user of the platform.
fn at(cloud: &Cloud, tenant: &str) -> String {
    format!("{}/tenants/{tenant}", cloud.endpoint)
}

fn quota(name: &str, hard: &[(&str, &str)], more: &str) -> String {
    let mut text =
        format!("apiVersion: insula.io/v1\nkind: TenantQuota\nmetadata: {{name: {name}}}\nspec:\n");
    text.push_str(more);
    text.push_str("  hard:\n");
    for (name, amount) in hard {
        writeln!(text, "    {name}: \"{amount}\"").unwrap();
    }
    text
}

/// The platform sets a quota of a tenant.
fn set(cloud: &Cloud, tenant: &str, hard: &[(&str, &str)]) {
    let platform = quota("platform", hard, "");
    let out = cloud.admin().feed(&["--server", &at(cloud, tenant), "apply", "-f", "-"], &platform);
    assert!(out.status.success(), "{}", texts(&out).1);
}

fn used(user: &Kubectl, quota: &str, name: &str) -> String {
    let path = format!("jsonpath={{.status.used.{}}}", name.replace('.', "\\."));
    user.ok(&["get", "tenantquota", quota, "-o", &path])
}

fn until_used(user: &Kubectl, quota: &str, name: &str, wanted: &str) {
    let path = format!("jsonpath={{.status.used.{}}}", name.replace('.', "\\."));
    user.until(&["get", "tenantquota", quota, "-o", &path], |it| it == wanted);
}

fn map(user: &Kubectl, name: &str) -> Result<(), String> {
    let out = user.run(&["create", "configmap", name]);
    if out.status.success() { Ok(()) } else { Err(texts(&out).1) }
}

/// Makes config maps from many sides at once until they are refused: how many there are then.
fn fill(user: &Kubectl, begin: &str) -> usize {
    let made = |writer: usize| {
        (0..8).take_while(|n| map(user, &format!("{begin}-{writer}-{n}")).is_ok()).count()
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..6).map(|writer| scope.spawn(move || made(writer))).collect();
        writers.into_iter().map(|it| it.join().unwrap()).sum()
    })
}

fn maps(user: &Kubectl) -> usize {
    user.ok(&["get", "configmaps", "-A", "-o", "name"]).lines().count()
}

#[test]
fn the_platform_limits_a_tenant() {
    let mut cloud = Cloud::start(false, &["--without", "node,scheduler"]);
    let (acme, globex) = cloud.tenants();
    let count = "count/configmaps";
    let namespaces = acme.ok(&["get", "namespaces", "-o", "name"]).lines().count();
    acme.until(&["get", "configmaps", "-A", "-o", "name"], |it| {
        it.lines().filter(|it| it.contains("kube-root-ca.crt")).count() == namespaces
    });
    let first = maps(&acme);
    let most = (first + 10).to_string();
    set(&cloud, "acme", &[(count, &most), ("requests.cpu", "2"), ("pods", "3")]);

    // The tenant sees it with what it uses, and cannot change it.
    until_used(&acme, "platform", count, &first.to_string());
    let described = acme.ok(&["describe", "tenantquota", "platform"]);
    assert!(described.contains("Hard:") && described.contains("Used:"), "{described}");
    assert!(acme.ok(&["get", "tq"]).contains(&format!("count/configmaps: {first}/{most}")));
    let body = quota("platform", &[(count, "1000")], "");
    let why = "is forbidden: this quota is the platform's, and not changed by the tenant";
    for (arguments, body) in [
        (&["apply", "-f", "-"][..], &*body),
        (&["replace", "-f", "-"], &*body),
        (&["delete", "tenantquota", "platform"], ""),
        (&["delete", "tenantquotas", "--all"], ""),
        (&["label", "tenantquota", "platform", "a=b"], ""),
    ] {
        let (_, said) = texts(&acme.feed(arguments, body));
        assert!(said.contains(why), "{arguments:?}: {said}");
    }

    // Exactly so many, from many sides; then refused in upstream's words. Others notice nothing.
    assert_eq!(fill(&acme, "m"), 10);
    let said = map(&acme, "more").unwrap_err();
    let words = format!(
        "configmaps \"more\" is forbidden: exceeded quota: platform, requested: {count}=1, \
         used: {count}={most}, limited: {count}={most}"
    );
    assert!(said.contains(&words), "{said}");
    map(&globex, "more").unwrap();
    until_used(&acme, "platform", count, &most);

    // A kill changes nothing of it.
    cloud.kill();
    cloud.again();
    assert!(map(&acme, "more").unwrap_err().contains("exceeded quota: platform"));
    acme.ok(&["delete", "configmap", "m-0-0"]);
    map(&acme, "more").unwrap();
    assert!(map(&acme, "evenmore").unwrap_err().contains("exceeded quota: platform"));

    // Lowered below what there is: nothing goes, nothing comes, what is there can be changed.
    set(&cloud, "acme", &[(count, "1"), ("requests.cpu", "2"), ("pods", "3")]);
    assert!(map(&acme, "evenmore").unwrap_err().contains(&format!("limited: {count}=1")));
    acme.ok(&["label", "configmap", "more", "a=b"]);
    acme.ok(&["delete", "configmap", "more"]);
    assert_eq!(maps(&acme), first + 9);

    // Pods by what they ask for, and those that do not say.
    let pod = |name: &str, cpu: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  \
             - {{name: c, image: x, resources: {{requests: {{{cpu}}}}}}}\n"
        )
    };
    let create = |body: &str| texts(&acme.feed(&["create", "-f", "-"], body)).1;
    assert_eq!(create(&pod("one", "cpu: 1500m")), "");
    let said = create(&pod("two", "cpu: 600m"));
    let words = "exceeded quota: platform, requested: requests.cpu=600m, used: requests.cpu=1500m";
    assert!(said.contains(words), "{said}");
    let said = create(&pod("two", "memory: 1Gi"));
    assert!(said.contains("failed quota: platform: must specify requests.cpu for: c"), "{said}");
    assert_eq!(create(&pod("two", "cpu: 500m")), "");
    until_used(&acme, "platform", "requests.cpu", "2");
    until_used(&acme, "platform", "pods", "2");

    // What is billed grows, and is there for the platform in its metrics.
    let path = "jsonpath={.status.total.pods} {.status.since} {.status.time}";
    let total = acme.ok(&["get", "tenantquota", "platform", "-o", path]);
    assert_eq!(total.split(' ').count(), 3, "{total}");
    let metrics = cloud.admin().ok(&["get", "--raw", "/metrics"]);
    let row = "insula_tenant_usage{tenant=\"acme\",resource=\"pods\"} 2.0";
    assert!(metrics.contains(row), "{metrics}");
    assert!(metrics.contains("insula_tenant_limit{tenant=\"acme\",resource=\"pods\"} 3.0"));

    // So do requests and bytes, which each server adds; one that is killed adds nothing twice.
    let billed = |wanted: &dyn Fn([f64; 4]) -> bool| {
        let rows = ["read-requests", "write-requests", "bytes-received", "bytes-sent"];
        let path = rows.map(|it| format!("{{.status.total.insula\\.io/{it}}} ")).concat();
        let parse = |text: &str| {
            let found: Vec<f64> = text.split_whitespace().map_while(|it| it.parse().ok()).collect();
            <[f64; 4]>::try_from(found).ok()
        };
        let path = format!("jsonpath={path}");
        let get = ["get", "tenantquota", "platform", "-o", &path];
        acme.until(&get, |it| parse(it).is_some_and(wanted));
        parse(&acme.ok(&get)).unwrap()
    };
    let before = billed(&|[reads, writes, received, sent]| {
        10.0 < reads && 5.0 < writes && 500.0 < received && 1000.0 < sent
    });
    cloud.kill();
    cloud.again();
    let after = billed(&|it| before[0] < it[0]);
    let asked = after[0] - before[0];
    assert!(asked < 1000.0, "what was counted before the kill is added once: {before:?} {after:?}");
    assert!(before.iter().zip(after).all(|(before, after)| *before <= after), "{after:?}");

    // Taken away, all is as before.
    cloud.admin().ok(&["--server", &at(&cloud, "acme"), "delete", "tenantquota", "platform"]);
    map(&acme, "atlast").unwrap();
}

#[test]
fn a_tenant_limits_its_namespaces_further() {
    let cloud = Cloud::start(false, &["--without", "node,scheduler"]);
    let (acme, _) = cloud.tenants();
    for (name, team) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        acme.ok(&["create", "namespace", name]);
        acme.ok(&["label", "namespace", name, &format!("team={team}")]);
    }
    let team = "  namespaceSelector: {matchLabels: {team: a}}\n";
    let own = quota("team-a", &[("count/secrets", "3")], team);
    let apply = |body: &str| texts(&acme.feed(&["apply", "-f", "-"], body)).1;
    assert_eq!(apply(&own), "");
    let secret = |namespace: &str, name: &str| {
        texts(&acme.run(&["-n", namespace, "create", "secret", "generic", name])).1
    };
    for (namespace, name) in [("a1", "1"), ("a2", "1"), ("a1", "2"), ("b1", "1")] {
        assert_eq!(secret(namespace, name), "", "{namespace} {name}");
    }
    let said = secret("a2", "2");
    let words = "exceeded quota: team-a, requested: count/secrets=1, used: count/secrets=3";
    assert!(said.contains(words), "{said}");
    assert_eq!(secret("b1", "2"), "");
    until_used(&acme, "team-a", "count/secrets", "3");

    // Below the platform's: both have to allow it.
    set(&cloud, "acme", &[("count/secrets", "6")]);
    assert_eq!(secret("b1", "3"), "");
    assert!(secret("b1", "4").contains("exceeded quota: platform"));
    // A namespace that leaves the team takes what it has along.
    acme.ok(&["delete", "-n", "b1", "secret", "1"]);
    acme.ok(&["label", "namespace", "a1", "team-"]);
    until_used(&acme, "team-a", "count/secrets", "1");
    assert_eq!(secret("a2", "2"), "");

    // What makes no sense.
    for (body, why) in [
        (quota("x", &[("pods", "-1")], ""), "must be greater than or equal to 0"),
        (quota("x", &[("pods", "1500m")], ""), "must be an integer"),
        (quota("x", &[("widgets", "1")], ""), "must be a standard resource"),
        (quota("x", &[("insula.io/widgets", "1")], ""), "Unsupported value"),
        (quota("x", &[("pods", "many")], ""), "quantities must match"),
        (quota("x", &[], "  weight: 5\n"), "only the platform's quota has a weight"),
        (
            quota(
                "x",
                &[],
                "  namespaceSelector: {matchExpressions: [{key: a, operator: Near}]}\n",
            ),
            "not a valid",
        ),
    ] {
        let said = apply(&body);
        assert!(said.contains(why), "{body}{said}");
    }
    // An absurd size is as good as none.
    assert_eq!(apply(&quota("huge", &[("insula.io/bytes", "999999E")], "")), "");
    let platform = |more: &str| {
        let body = quota("platform", &[("pods", "1")], more);
        texts(&cloud.admin().feed(&["--server", &at(&cloud, "acme"), "apply", "-f", "-"], &body)).1
    };
    assert!(platform("  weight: 0\n").contains("must be between 1 and 10000"));
    assert!(platform(team).contains("takes no namespaceSelector"));
    assert_eq!(platform("  weight: 50\n"), "");
    let said = texts(&cloud.admin().feed(&["apply", "-f", "-"], &quota("x", &[], ""))).1;
    assert!(said.contains("the platform itself has no quota"), "{said}");
}

#[test]
fn a_tenant_that_moves_takes_its_limit_along() {
    let cloud = Cloud::start(false, &["--without", "node,scheduler"]);
    let template = quota("default", &[("count/configmaps", "20")], "");
    let out = cloud.admin().feed(&["create", "-f", "-"], &template);
    assert!(out.status.success(), "{}", texts(&out).1);
    let (acme, _) = cloud.tenants();
    // New tenants begin with what the platform gives to all.
    until_used(&acme, "platform", "count/configmaps", &maps(&acme).to_string());
    let from = ["get", "tenant", "acme", "-o", "jsonpath={.status.partition}"];
    let from = cloud.admin().ok(&from);
    let to = if from == "p1" { "p2" } else { "p1" };
    let made = thread::scope(|scope| {
        let writers = scope.spawn(|| fill(&acme, "m"));
        let spec = format!(r#"{{"spec":{{"partition":"{to}"}}}}"#);
        cloud.admin().ok(&["patch", "tenant", "acme", "--type=merge", "-p", &spec]);
        let path = ["get", "tenant", "acme", "-o", "jsonpath={.status.partition}"];
        cloud.admin().until(&path, |it| it == to);
        writers.join().unwrap()
    });
    // Who was told to wait for the move gave up before the limit; the rest comes now.
    let left = 20 - maps(&acme);
    assert!(made <= 20 && fill(&acme, "n") == left, "{made} {left}");
    assert!(map(&acme, "more").unwrap_err().contains("exceeded quota: platform"));
    until_used(&acme, "platform", "count/configmaps", "20");
}

#[test]
fn a_limit_holds_in_an_etcd() {
    let (one, two) = (Etcd::start(), Etcd::start());
    let store = format!("etcd=one={};two={}", one.url, two.url);
    let mut cloud = Cloud::start(false, &["--store", &store, "--without", "node,scheduler"]);
    let (acme, _) = cloud.tenants();
    set(&cloud, "acme", &[("count/configmaps", "15"), ("insula.io/bytes", "10Mi")]);
    let first = maps(&acme);
    until_used(&acme, "platform", "count/configmaps", &first.to_string());
    assert_eq!(fill(&acme, "m"), 15 - first);
    cloud.kill();
    cloud.again();
    assert!(map(&acme, "more").unwrap_err().contains("exceeded quota: platform"));
    acme.ok(&["delete", "configmap", "m-0-0"]);
    assert_eq!(fill(&acme, "n"), 1);
    assert_ne!(used(&acme, "platform", "insula.io/bytes"), "0");
}

#[test]
fn requests_and_watches_are_limited_too() {
    let cloud = Cloud::start(false, &["--without", "node,scheduler"]);
    let (acme, globex) = cloud.tenants();
    set(&cloud, "acme", &[("insula.io/watches", "1"), ("insula.io/requests-in-flight", "0")]);
    let said = acme.until_refused();
    assert!(said.contains("Too many requests"), "{said}");
    // The platform passes, others notice nothing.
    cloud.admin().ok(&["--server", &at(&cloud, "acme"), "get", "configmaps"]);
    globex.ok(&["get", "configmaps"]);
    set(&cloud, "acme", &[("insula.io/watches", "1"), ("insula.io/requests-in-flight", "5")]);
    acme.until(&["get", "configmaps"], |_| true);
    let watching = || acme.command().args(["get", "configmaps", "--watch"]).spawn().unwrap();
    let mut first = watching();
    let watch = "/api/v1/configmaps?watch=1&timeoutSeconds=1";
    let refused = (0..200).find_map(|_| {
        // Of the two it may be the one that is refused, and gives up.
        if first.try_wait().unwrap().is_some() {
            first = watching();
        }
        thread::sleep(Duration::from_millis(500));
        let (code, headers, _) = acme.curl(watch, &[]);
        (code != 200).then(|| (code, headers.to_lowercase()))
    });
    let refused = refused.unwrap();
    assert_eq!(refused.0, 429);
    assert!(refused.1.contains("retry-after: 1"), "{}", refused.1);
    first.kill().unwrap();
    first.wait().unwrap();
}

impl Kubectl {
    /// What it is told when it asks often enough to be refused.
    fn until_refused(&self) -> String {
        loop {
            let (code, _, said) = self.curl("/api/v1/configmaps", &[]);
            if code == 429 {
                return said;
            }
        }
    }
}
