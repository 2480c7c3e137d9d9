//! Which requests are written down, and how much of them: `audit.k8s.io/v1` Policy.

use serde::{Deserialize, Serialize};

use crate::record::{About, Who};

/// How much of a request is written down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    /// With its body.
    Request,
    /// With its body, and the answer's.
    RequestResponse,
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    RequestReceived,
    /// The head of an answer that goes on was sent.
    ResponseStarted,
    ResponseComplete,
    /// Known, because policies name it; nothing here comes to it.
    Panic,
}

/// See the module. The first rule that matches decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    metadata: serde_json::Map<String, serde_json::Value>,
    pub rules: Vec<Rule>,
    #[serde(default)]
    pub omit_stages: Vec<Stage>,
    #[serde(default)]
    pub omit_managed_fields: bool,
}

/// One rule. What it leaves out matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rule {
    pub level: Level,
    /// Our own: the tenants whose things are asked for.
    pub tenants: Vec<String>,
    pub users: Vec<String>,
    pub user_groups: Vec<String>,
    pub verbs: Vec<String>,
    pub resources: Vec<Resources>,
    pub namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: Option<bool>,
}

/// Resources of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    pub group: String,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
}

/// What a policy says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub level: Level,
    pub omitted: Vec<Stage>,
    pub omit_managed_fields: bool,
}

/// A request, as rules see it.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub who: Option<&'a Who>,
    pub verb: &'a str,
    pub about: Option<&'a About>,
    pub path: &'a str,
}

impl Policy {
    /// Why it cannot be used, if it cannot.
    pub(super) fn flaw(&self) -> Option<String> {
        if self.api_version != "audit.k8s.io/v1" || self.kind != "Policy" {
            return Some(format!(
                "it is a {} {}, not an audit.k8s.io/v1 Policy",
                self.api_version, self.kind
            ));
        }
        if self.rules.is_empty() {
            return Some("it has no rules".into());
        }
        let is_both = |it: &Rule| {
            !it.non_resource_urls.is_empty()
                && (!it.resources.is_empty() || !it.namespaces.is_empty())
        };
        let at = self.rules.iter().position(is_both)?;
        Some(format!("rules[{at}] is about resources and about other URLs at once"))
    }

    pub(super) fn judge(&self, subject: &Subject<'_>) -> Verdict {
        let rule = self.rules.iter().find(|it| it.matches(subject));
        let mut omitted = self.omit_stages.clone();
        omitted.extend(rule.iter().flat_map(|it| &it.omit_stages));
        Verdict {
            level: rule.map_or(Level::None, |it| it.level),
            omitted,
            omit_managed_fields: rule
                .and_then(|it| it.omit_managed_fields)
                .unwrap_or(self.omit_managed_fields),
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|it| it == wanted)
}

impl Rule {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let who = subject.who;
        let of =
            |list: &[String], test: &dyn Fn(&Who) -> bool| list.is_empty() || who.is_some_and(test);
        // Who acts, and not as whom.
        let named = of(&self.users, &|it| has(&self.users, &it.behind().user))
            && of(&self.user_groups, &|it| {
                it.behind().groups.iter().any(|group| has(&self.user_groups, group))
            })
            && of(&self.tenants, &|it| {
                it.whose.tenant().is_some_and(|it| has(&self.tenants, it.as_str()))
            });
        if !named || !self.verbs.is_empty() && !has(&self.verbs, subject.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            let Some(about) = subject.about else { return false };
            let in_namespace =
                self.namespaces.is_empty() || has(&self.namespaces, &about.namespace);
            let of_resource =
                self.resources.is_empty() || self.resources.iter().any(|it| it.matches(about));
            return in_namespace && of_resource;
        }
        if !self.non_resource_urls.is_empty() {
            let fits = |it: &String| match it.strip_suffix('*') {
                Some(prefix) => subject.path.starts_with(prefix),
                None => subject.path == it,
            };
            return subject.about.is_none() && self.non_resource_urls.iter().any(fits);
        }
        true
    }
}

impl Resources {
    fn matches(&self, about: &About) -> bool {
        if self.group != about.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !has(&self.resource_names, &about.name) {
            return false;
        }
        let (resource, sub) = (&about.resource, &about.subresource);
        let whole = match sub.is_empty() {
            true => resource.clone(),
            false => format!("{resource}/{sub}"),
        };
        self.resources.iter().any(|it| {
            it == "*"
                || *it == whole
                || !sub.is_empty() && it.strip_prefix("*/") == Some(sub)
                || it.strip_suffix("/*") == Some(resource)
        })
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;

    use super::*;
    use crate::{identity::Identity, registry::Whose};

    fn policy(rules: &str) -> Policy {
        let text = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n{rules}"
        );
        serde_saphyr::from_str(&text).unwrap()
    }

    fn who() -> Who {
        let acme = TenantName::parse("acme").unwrap();
        let identity = Identity::new(acme.clone(), "dev", &["ops"]);
        Who { identity, impersonator: None, whose: Whose::One(acme) }
    }

    #[track_caller]
    fn check(rules: &str, verb: &str, resource: &str, sub: &str, expected: Level) {
        let (policy, who) = (policy(rules), who());
        assert_eq!(policy.flaw(), None);
        let about = About {
            resource: resource.into(),
            subresource: sub.into(),
            namespace: "ns".into(),
            name: "n".into(),
            ..About::default()
        };
        let about = (!resource.is_empty()).then_some(&about);
        let subject = Subject { who: Some(&who), verb, about, path: "/healthz/ping" };
        assert_eq!(policy.judge(&subject).level, expected, "{rules}");
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        use Level::{Metadata, None, Request, RequestResponse};
        check("- level: None\n  users: [dev]\n- level: Metadata\n", "get", "pods", "", None);
        check("- level: None\n  users: [eve]\n- level: Metadata\n", "get", "pods", "", Metadata);
        check("- {level: Request, userGroups: [ops], verbs: [create]}\n", "get", "pods", "", None);
        check("- {level: Request, userGroups: [ops], verbs: [get]}\n", "get", "pods", "", Request);
        check("- {level: Request, tenants: [globex]}\n", "get", "pods", "", None);
        check(
            "- {level: Request, tenants: [acme], namespaces: [ns]}\n",
            "get",
            "pods",
            "",
            Request,
        );
        let pods = "- level: RequestResponse\n  resources: [{group: '', resources: [pods]}]\n";
        check(pods, "get", "pods", "", RequestResponse);
        check(pods, "get", "pods", "log", None);
        for resources in ["pods/log", "pods/*", "*/log", "*"] {
            let rule =
                format!("- level: Metadata\n  resources: [{{resources: ['{resources}']}}]\n");
            check(&rule, "get", "pods", "log", Metadata);
        }
        check(
            "- level: Metadata\n  resources: [{resources: [pods], resourceNames: [x]}]\n",
            "get",
            "pods",
            "",
            None,
        );
        check("- {level: Metadata, nonResourceURLs: ['/healthz*']}\n", "get", "", "", Metadata);
        check("- {level: Metadata, nonResourceURLs: ['/healthz']}\n", "get", "", "", None);
        check("- {level: Metadata, nonResourceURLs: ['*']}\n", "get", "pods", "", None);
    }

    #[test]
    fn flaws_are_named() {
        let rule = "- {level: Metadata, nonResourceURLs: ['*'], namespaces: [a]}\n";
        assert_eq!(
            policy(rule).flaw().unwrap(),
            "rules[0] is about resources and about other URLs at once"
        );
        let other: Policy =
            serde_saphyr::from_str("{apiVersion: v1, kind: Policy, rules: []}").unwrap();
        assert!(other.flaw().unwrap().contains("not an audit.k8s.io/v1 Policy"));
        assert!(
            serde_saphyr::from_str::<Policy>("{apiVersion: v1, kind: P, rules: [{levle: None}]}")
                .is_err()
        );
    }
}
