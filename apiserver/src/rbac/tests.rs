use insula_partition::{
    snapshot::Entry,
    store::{Collection, Revision},
};

use super::*;

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
    let own = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect();
    Rule {
        verbs: own(verbs),
        api_groups: own(groups),
        resources: own(resources),
        resource_names: own(names),
        non_resource_urls: Vec::new(),
    }
}

fn get(resource: &str, sub: &str, name: &str) -> Attributes {
    Attributes {
        verb: "get".into(),
        resource: resource.into(),
        subresource: sub.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

#[test]
fn a_policy_depends_on_its_own_tenant() {
    let of = |all: &[(&str, u64)]| {
        let entries = all.iter().map(|(key, revision)| {
            let entry = Entry { value: "{}".into(), modified: Revision(*revision) };
            (Arc::from(*key), entry)
        });
        let none = || Snapshot::of(Collection::new(GROUP, "x"), Revision(0), []);
        Sources {
            cluster_roles: Snapshot::of(Collection::new(GROUP, "x"), Revision(0), entries),
            cluster_bindings: none(),
            roles: none(),
            bindings: none(),
        }
    };
    let acme = TenantName::parse("acme").unwrap();
    let digest = of(&[("acme//a", 1), ("globex//a", 2)]).digest(&acme);
    assert_eq!(of(&[("acme//a", 1), ("globex//a", 3)]).digest(&acme), digest);
    assert_ne!(of(&[("acme//a", 4), ("globex//a", 2)]).digest(&acme), digest);
    assert_ne!(of(&[("acme//a", 1), ("acme//b", 2)]).digest(&acme), digest);
}

#[test]
fn rules_match_as_upstreams() {
    assert!(rule(&["get"], &[""], &["pods"], &[]).allows(&get("pods", "", "x")));
    assert!(!rule(&["get"], &[""], &["pods"], &[]).allows(&get("pods", "log", "x")));
    assert!(rule(&["get"], &[""], &["pods/log"], &[]).allows(&get("pods", "log", "x")));
    assert!(rule(&["get"], &[""], &["*/log"], &[]).allows(&get("pods", "log", "x")));
    assert!(rule(&["*"], &["*"], &["*"], &[]).allows(&get("pods", "log", "x")));
    assert!(!rule(&["list"], &[""], &["pods"], &[]).allows(&get("pods", "", "x")));
    assert!(!rule(&["get"], &["apps"], &["pods"], &[]).allows(&get("pods", "", "x")));
    assert!(rule(&["get"], &[""], &["pods"], &["x"]).allows(&get("pods", "", "x")));
    assert!(!rule(&["get"], &[""], &["pods"], &["x"]).allows(&get("pods", "", "")));
}

#[test]
fn nobody_gives_what_they_lack() {
    let all = Rule::everything();
    let pods = rule(&["get", "list"], &[""], &["pods", "pods/log"], &[]);
    let one = rule(&["get"], &[""], &["pods"], &["x"]);
    assert_eq!(missing(&[&all], std::slice::from_ref(&pods)), None);
    assert_eq!(missing(&[&pods], std::slice::from_ref(&one)), None);
    assert!(missing(&[&one], std::slice::from_ref(&pods)).is_some());
    assert!(missing(&[&pods], &[Rule::everything()]).is_some());
    assert!(missing(&[], &[one]).is_some());
}

#[test]
fn paths_match_by_prefix() {
    let rule = Rule {
        verbs: vec!["get".into()],
        non_resource_urls: vec!["/api/*".into(), "/version".into()],
        ..Rule::default()
    };
    let path =
        |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
    assert!(rule.allows(&path("/api/v1")) && rule.allows(&path("/version")));
    assert!(!rule.allows(&path("/versions")) && !rule.allows(&path("/metrics")));
}
