//! The ways of acting as somebody else, and what each has to be let do.
//!
//! All but the oldest are narrow: whoever is let be a node, an account or a user may be it only
//! for what it is let do while it is (`impersonate-on:MODE:VERB`), and never all at once. The
//! first that the rules allow is taken; the oldest comes last, for it allows everything.

use insula_api::names::is_dns1123_subdomain;

use super::{OWN, Wanted, account};
use crate::{identity::Identity, rbac::Attributes};

/// Who may be impersonated in no mode but the oldest.
const MASTERS: &str = crate::identity::MASTERS;
/// The group of all nodes.
const NODES: &str = "system:nodes";
/// In what is known of an account: the node that its pod is on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// An account acts as the node that its pod is on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Everybody else.
    UserInfo,
    /// The oldest.
    Legacy,
}

/// What somebody must be let do, or what nobody is.
pub(super) type Needed = Result<Vec<Attributes>, Box<(Attributes, String)>>;

impl Mode {
    /// In the order in which they are tried.
    pub(super) const ALL: [Self; 5] = [
        Self::AssociatedNode,
        Self::ArbitraryNode,
        Self::ServiceAccount,
        Self::UserInfo,
        Self::Legacy,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "",
        }
    }

    /// Whether `impersonator` can be `wanted` in this way at all.
    pub(super) fn fits(self, wanted: &Wanted, impersonator: &Identity) -> bool {
        let node = wanted.node();
        match self {
            Self::AssociatedNode => {
                let own = impersonator.extra.get(NODE_NAME).map(Vec::as_slice);
                wanted.is_name_alone()
                    && account(&impersonator.user).is_some()
                    && node.is_some_and(|node| matches!(own, Some([own]) if own == node))
            }
            Self::ArbitraryNode => wanted.is_name_alone() && node.is_some(),
            Self::ServiceAccount => wanted.is_name_alone() && wanted.account().is_some(),
            Self::UserInfo => node.is_none() && wanted.account().is_none(),
            Self::Legacy => true,
        }
    }

    /// Everything that is asked of the rules, in order: `asked` is what the request is to do.
    pub(super) fn needed(self, wanted: &Wanted, asked: &Attributes) -> Needed {
        let verb = match self {
            Self::Legacy => "impersonate".to_owned(),
            narrow => format!("impersonate:{}", narrow.name()),
        };
        // Of users and groups; the rest was in a group of its own from the beginning.
        let users = if self == Self::Legacy { "" } else { OWN };
        let attributes = |group: &str, resource: &str, subresource: &str, name: &str| Attributes {
            verb: verb.clone(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Attributes::default()
        };
        let mut needed = Vec::new();
        if self != Self::Legacy {
            let verb = format!("impersonate-on:{}:{}", self.name(), asked.verb);
            needed.push(Attributes { verb, ..asked.clone() });
        }
        needed.push(match (self, wanted.node(), wanted.account()) {
            // Whichever node it is on.
            (Self::AssociatedNode, ..) => attributes(OWN, "nodes", "", "*"),
            (Self::ArbitraryNode, Some(node), _) => attributes(OWN, "nodes", "", node),
            (_, _, Some((namespace, name))) => Attributes {
                namespace: namespace.into(),
                ..attributes(users, "serviceaccounts", "", name)
            },
            _ => attributes(users, "users", "", &wanted.user),
        });
        if !wanted.uid.is_empty() {
            needed.push(attributes(OWN, "uids", "", &wanted.uid));
        }
        if self != Self::Legacy {
            wanted.check_groups(|name| attributes(users, "groups", "", name))?;
            wanted.check_extra(|| attributes(OWN, "userextras", "", ""))?;
        }
        needed.extend(wanted.groups.iter().map(|it| attributes(users, "groups", "", it)));
        for (key, values) in &wanted.extra {
            needed.extend(values.iter().map(|it| attributes(OWN, "userextras", key, it)));
        }
        Ok(needed)
    }

    /// The groups of whoever is impersonated, if they follow from its name.
    pub(super) fn groups(self, wanted: &Wanted) -> Vec<String> {
        match (self, wanted.account()) {
            (Self::AssociatedNode | Self::ArbitraryNode, _) => vec![NODES.into()],
            (_, Some((namespace, _))) if wanted.groups.is_empty() => {
                vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
            }
            _ => wanted.groups.clone(),
        }
    }
}

impl Wanted {
    /// The name of a node, if the user is one.
    fn node(&self) -> Option<&str> {
        self.user.strip_prefix("system:node:").filter(|it| is_dns1123_subdomain(it))
    }

    fn is_name_alone(&self) -> bool {
        self.uid.is_empty() && self.groups.is_empty() && self.extra.is_empty()
    }

    fn check_groups(
        &self,
        about: impl Fn(&str) -> Attributes,
    ) -> Result<(), Box<(Attributes, String)>> {
        let refuse = |name: &str, what: &str| {
            Err(Box::new((about(name), format!("impersonating the {what} group is not allowed"))))
        };
        match &self.groups {
            groups if groups.iter().any(String::is_empty) => refuse("", "empty string"),
            groups if groups.iter().any(|it| it == MASTERS) => refuse(MASTERS, MASTERS),
            _ => Ok(()),
        }
    }

    fn check_extra(&self, about: impl Fn() -> Attributes) -> Result<(), Box<(Attributes, String)>> {
        for (key, values) in &self.extra {
            let what = match key {
                key if key.is_empty() => "the empty string key".to_owned(),
                key if !is_prefixed(key) => "an invalid key".to_owned(),
                key if key.chars().any(char::is_uppercase) => {
                    return Err(Box::new((
                        about(),
                        format!(
                            "impersonating a non-lowercase key in extra is not allowed: {key:?}"
                        ),
                    )));
                }
                _ if values.iter().any(String::is_empty) => "the empty string value".to_owned(),
                _ => continue,
            };
            let why = format!("impersonating {what} in extra is not allowed");
            return Err(Box::new((about(), why)));
        }
        Ok(())
    }
}

/// A domain, and a path behind it.
fn is_prefixed(key: &str) -> bool {
    let is_path = |it: &str| {
        !it.is_empty()
            && it
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte))
    };
    key.split_once('/').is_some_and(|(domain, path)| is_dns1123_subdomain(domain) && is_path(path))
}
