//! The evaluator against a plain model: loops over what was written, as upstream's words say it.

use insula_partition::{
    snapshot::Entry,
    store::{Collection, Revision},
};
use proptest::{collection::vec, option, prelude::*, sample::select, test_runner::Config};

use super::*;

const LABEL: &str = "gathered";

#[derive(Debug, Clone)]
struct ModelRule {
    verbs: Vec<&'static str>,
    groups: Vec<&'static str>,
    resources: Vec<&'static str>,
    names: Vec<&'static str>,
}

#[derive(Debug, Clone)]
struct ModelClusterRole {
    name: &'static str,
    is_gathered: bool,
    gathers: bool,
    rules: Vec<ModelRule>,
}

#[derive(Debug, Clone)]
struct ModelBinding {
    /// `None` for those of the whole tenant.
    namespace: Option<&'static str>,
    is_cluster_role: bool,
    role: &'static str,
    subjects: Vec<(&'static str, &'static str)>,
    reach: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct ModelPolicy {
    cluster_roles: Vec<ModelClusterRole>,
    roles: Vec<(&'static str, &'static str, Vec<ModelRule>)>,
    bindings: Vec<ModelBinding>,
}

#[derive(Debug, Clone)]
struct Request {
    user: &'static str,
    group: &'static str,
    /// Of whom the objects are; `all` for all.
    whose: &'static str,
    verb: &'static str,
    api_group: &'static str,
    resource: &'static str,
    sub: &'static str,
    namespace: &'static str,
    name: &'static str,
}

impl ModelRule {
    fn matches(&self, it: &Request) -> bool {
        let verb = self.verbs.contains(&"*") || self.verbs.contains(&it.verb);
        let group = self.groups.contains(&"*") || self.groups.contains(&it.api_group);
        let combined = match it.sub {
            "" => it.resource.to_owned(),
            sub => format!("{}/{sub}", it.resource),
        };
        let resource = self.resources.iter().any(|rule| {
            *rule == "*"
                || *rule == combined
                || !it.sub.is_empty() && *rule == format!("*/{}", it.sub)
        });
        let name = self.names.is_empty() || self.names.contains(&it.name);
        verb && group && resource && name
    }
}

impl ModelPolicy {
    fn allows(&self, home: &str, it: &Request) -> bool {
        self.bindings.iter().any(|binding| {
            let applies = match (binding.namespace, binding.reach.filter(|_| home == "system")) {
                (Some(namespace), _) => it.whose == home && namespace == it.namespace,
                (None, None) => it.whose == home,
                (None, Some("*")) => true,
                (None, Some(named)) => named.split(',').any(|name| name == it.whose),
            };
            let is_meant = binding.subjects.iter().any(|(kind, name)| match *kind {
                "User" => *name == it.user,
                "Group" => *name == it.group,
                _ => it.user == format!("system:serviceaccount:n1:{name}"),
            });
            applies && is_meant && self.rules(binding).iter().any(|rule| rule.matches(it))
        })
    }

    fn rules(&self, binding: &ModelBinding) -> Vec<ModelRule> {
        if !binding.is_cluster_role {
            let own = self.roles.iter().filter(|(namespace, name, _)| {
                Some(*namespace) == binding.namespace && *name == binding.role
            });
            return own.flat_map(|(_, _, rules)| rules.clone()).collect();
        }
        let Some(role) = self.cluster_roles.iter().find(|it| it.name == binding.role) else {
            return Vec::new();
        };
        if !role.gathers {
            return role.rules.clone();
        }
        // None of those that gather is gathered: chains have a test of their own.
        let gathered = self.cluster_roles.iter().filter(|it| it.is_gathered && !it.gathers);
        gathered.flat_map(|it| it.rules.clone()).collect()
    }

    fn sources(&self, tenant: &str) -> Sources {
        let rules = |rules: &[ModelRule]| -> Value {
            let one = |it: &ModelRule| {
                json!({"verbs": it.verbs, "apiGroups": it.groups, "resources": it.resources,
                       "resourceNames": it.names})
            };
            rules.iter().map(one).collect()
        };
        let cluster_roles = self.cluster_roles.iter().map(|it| {
            let label = if it.is_gathered && !it.gathers { "true" } else { "false" };
            let mut role =
                json!({"metadata": {"labels": {LABEL: label}}, "rules": rules(&it.rules)});
            if it.gathers {
                role["aggregationRule"] =
                    json!({"clusterRoleSelectors": [{"matchLabels": {LABEL: "true"}}]});
            }
            (format!("{tenant}//{}", it.name), role)
        });
        let roles = self.roles.iter().map(|(namespace, name, own)| {
            (format!("{tenant}/{namespace}/{name}"), json!({"rules": rules(own)}))
        });
        let binding = |(number, it): (usize, &ModelBinding)| {
            let kind = if it.is_cluster_role { "ClusterRole" } else { "Role" };
            let subjects: Vec<Value> = it
                .subjects
                .iter()
                .map(|(kind, name)| json!({"kind": kind, "name": name, "namespace": "n1"}))
                .collect();
            let mut object = json!({"metadata": {}, "subjects": subjects,
                                    "roleRef": {"kind": kind, "name": it.role}});
            if let Some(reach) = it.reach {
                object["metadata"]["annotations"] = json!({reach::TENANTS: reach});
            }
            (format!("{tenant}/{}/b{number}", it.namespace.unwrap_or_default()), object)
        };
        let all = self.bindings.iter().enumerate();
        let (within, everywhere): (Vec<_>, Vec<_>) =
            all.partition(|(_, it)| it.namespace.is_some());
        let snapshot = |objects: Vec<(String, Value)>| {
            let entries = objects.into_iter().map(|(key, it)| {
                let value = it.to_string().into();
                (Arc::from(key.as_str()), Entry { value, modified: Revision(1) })
            });
            Snapshot::of(Collection::new(GROUP, "x"), Revision(1), entries)
        };
        Sources {
            cluster_roles: snapshot(cluster_roles.collect()),
            cluster_bindings: snapshot(everywhere.into_iter().map(binding).collect()),
            roles: snapshot(roles.collect()),
            bindings: snapshot(within.into_iter().map(binding).collect()),
        }
    }
}

fn some(of: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(of), 0..3)
}

fn rules() -> impl Strategy<Value = Vec<ModelRule>> {
    let rule = (
        some(&["get", "list", "create", "*"]),
        some(&["", "apps", "*"]),
        some(&["pods", "pods/log", "*/log", "secrets", "*", "*/*", "pods/*"]),
        some(&["a", "b"]),
    );
    let rule = rule.prop_map(|(verbs, groups, resources, names)| ModelRule {
        verbs,
        groups,
        resources,
        names,
    });
    vec(rule, 0..3)
}

fn policy() -> impl Strategy<Value = ModelPolicy> {
    let cluster_role = (any::<bool>(), any::<bool>(), rules());
    let cluster_roles = vec(cluster_role, 3).prop_map(|all| {
        let named = ["r1", "r2", "r3"].into_iter().zip(all);
        let role = |(name, (is_gathered, gathers, rules))| ModelClusterRole {
            name,
            is_gathered,
            gathers,
            rules,
        };
        named.map(role).collect::<Vec<_>>()
    });
    let roles = vec(rules(), 4).prop_map(|all| {
        let places = [("n1", "r1"), ("n1", "r2"), ("n2", "r1"), ("n2", "r3")];
        places.into_iter().zip(all).map(|((space, name), rules)| (space, name, rules)).collect()
    });
    let subject = (
        select(&["User", "Group", "ServiceAccount"][..]),
        select(&["ann", "bob", "ops", "robot"][..]),
    );
    let reach = select(&["*", "acme", "acme,system", "globex"][..]);
    let binding = (
        option::of(select(&["n1", "n2"][..])),
        any::<bool>(),
        select(&["r1", "r2", "r3", "none"][..]),
        vec(subject, 0..3),
        option::of(reach),
    );
    let binding = binding.prop_map(|(namespace, is_cluster_role, role, subjects, reach)| {
        // Those of the whole tenant bind cluster roles only.
        let is_cluster_role = is_cluster_role || namespace.is_none();
        ModelBinding { namespace, is_cluster_role, role, subjects, reach }
    });
    (cluster_roles, roles, vec(binding, 0..6))
        .prop_map(|(cluster_roles, roles, bindings)| ModelPolicy { cluster_roles, roles, bindings })
}

fn request() -> impl Strategy<Value = Request> {
    let who = (
        select(
            &["ann", "bob", "system:serviceaccount:n1:robot", "system:serviceaccount:n2:robot"][..],
        ),
        select(&["ops", "devs"][..]),
        select(&["acme", "globex", "system", "all"][..]),
    );
    let what = (
        select(&["get", "list", "delete"][..]),
        select(&["", "apps"][..]),
        select(&["pods", "secrets"][..]),
        select(&["", "log"][..]),
        select(&["", "n1", "n2"][..]),
        select(&["", "a", "c"][..]),
    );
    (who, what).prop_map(|((user, group, whose), what)| {
        let (verb, api_group, resource, sub, namespace, name) = what;
        Request { user, group, whose, verb, api_group, resource, sub, namespace, name }
    })
}

proptest! {
    #![proptest_config(Config::with_cases(2000))]

    #[test]
    fn allows_what_the_plain_model_allows(
        written in policy(),
        requests in vec(request(), 8),
        home in select(&["acme", "system"][..]),
    ) {
        let tenant = TenantName::parse(home).unwrap();
        let policy = compile(&tenant, &written.sources(home));
        for it in requests {
            let identity = Identity::new(tenant.clone(), it.user, &[it.group]);
            let whose = match it.whose {
                "all" => Whose::All,
                name => Whose::One(TenantName::parse(name).unwrap()),
            };
            let attributes = Attributes {
                verb: it.verb.into(),
                group: it.api_group.into(),
                resource: it.resource.into(),
                subresource: it.sub.into(),
                namespace: it.namespace.into(),
                name: it.name.into(),
                path: String::new(),
            };
            let allowed = policy.allows(&identity, &whose, &attributes);
            prop_assert_eq!(allowed, written.allows(home, &it), "{:?} by {:?}", it, written);
        }
    }

    /// Whoever is found to lack nothing can do whatever the rules that are passed on let be done.
    #[test]
    fn nobody_passes_on_what_they_lack(
        held in rules(),
        wanted in rules(),
        requests in vec(request(), 16),
    ) {
        let read = |rules: &[ModelRule]| -> Vec<Rule> {
            let list = |of: &[&'static str]| of.iter().map(|it| (*it).to_owned()).collect();
            let rule = |it: &ModelRule| Rule {
                verbs: list(&it.verbs),
                api_groups: list(&it.groups),
                resources: list(&it.resources),
                resource_names: list(&it.names),
                non_resource_urls: Vec::new(),
            };
            rules.iter().map(rule).collect()
        };
        let own = read(&held);
        if missing(&own.iter().collect::<Vec<_>>(), &read(&wanted)).is_none() {
            for it in requests.iter().filter(|it| wanted.iter().any(|rule| rule.matches(it))) {
                prop_assert!(held.iter().any(|rule| rule.matches(it)), "{:?}", it);
            }
        }
    }
}
