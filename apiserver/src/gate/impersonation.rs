//! Acting as somebody else, for those whom the rules let do so.
//!
//! Whoever is impersonated belongs to the tenant of who impersonates: headers never name a tenant.

mod modes;

use std::collections::BTreeMap;

use http::HeaderMap;

use self::modes::Mode;
use super::denied;
use crate::{
    Server,
    error::{ApiError, Result},
    identity::{AUTHENTICATED, Identity, UNAUTHENTICATED},
    rbac::Attributes,
    registry::Whose,
};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// Most things that one request may ask to be.
const MAX: usize = 256;
const ANONYMOUS: &str = "system:anonymous";
/// The group of what is impersonated.
const OWN: &str = "authentication.k8s.io";

/// Who a request wants to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    /// What the headers ask for; `None` if nothing.
    pub(super) fn read(headers: &HeaderMap) -> Result<Option<Self>> {
        let text = |value: &http::HeaderValue| {
            let text = String::from_utf8(value.as_bytes().to_vec());
            text.map_err(|_| ApiError::bad_request("an impersonation header is not UTF-8"))
        };
        let first = |name: &str| headers.get(name).map(text).transpose();
        let mut wanted = Self {
            user: first(USER)?.unwrap_or_default(),
            uid: first(UID)?.unwrap_or_default(),
            ..Self::default()
        };
        for value in headers.get_all(GROUP) {
            wanted.groups.push(text(value)?);
        }
        for (name, value) in headers {
            let Some(key) = name.as_str().strip_prefix(EXTRA) else { continue };
            wanted.extra.entry(unescaped(key)).or_default().push(text(value)?);
        }
        let count = wanted.groups.len() + wanted.extra.values().map(Vec::len).sum::<usize>();
        if MAX < count {
            return Err(ApiError::bad_request("too many impersonation headers"));
        }
        let more = 0 < count || !wanted.uid.is_empty();
        match (wanted.user.is_empty(), more) {
            (true, false) => Ok(None),
            (true, true) => Err(wanted.nobody()),
            (false, _) => Ok(Some(wanted)),
        }
    }

    /// The answer to groups and such of nobody, which upstream prints as Go does.
    fn nobody(&self) -> ApiError {
        let list = |list: &[String]| match list {
            [] => "[]string(nil)".to_owned(),
            list => {
                let items: Vec<String> = list.iter().map(|it| format!("{it:?}")).collect();
                format!("[]string{{{}}}", items.join(", "))
            }
        };
        let extra = match self.extra.is_empty() {
            true => "map[string][]string(nil)".to_owned(),
            false => {
                let entries = self.extra.iter().map(|(key, it)| format!("{key:?}:{}", list(it)));
                format!("map[string][]string{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
        };
        ApiError::bad_request(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{}, Extra:{extra}}} without \
             impersonating a user name",
            self.uid,
            list(&self.groups)
        ))
    }

    /// The namespace and name of a service account, if the user is one.
    fn account(&self) -> Option<(&str, &str)> {
        account(&self.user)
    }

    /// Who that is, beside `impersonator`.
    fn identity(self, mode: Mode, impersonator: &Identity) -> Identity {
        let mut groups = mode.groups(&self);
        let has = |wanted: &str| groups.iter().any(|it| it == wanted);
        let more = match self.user == ANONYMOUS {
            true => (!has(UNAUTHENTICATED)).then_some(UNAUTHENTICATED),
            false => (!has(AUTHENTICATED) && !has(UNAUTHENTICATED)).then_some(AUTHENTICATED),
        };
        groups.extend(more.map(str::to_owned));
        Identity {
            tenant: impersonator.tenant.clone(),
            user: self.user,
            uid: self.uid,
            groups,
            extra: self.extra,
        }
    }
}

/// The namespace and name of a service account, if the user is one.
fn account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let whole = !namespace.is_empty() && !name.is_empty() && !name.contains(':');
    whole.then_some((namespace, name))
}

impl Server {
    /// Who `identity` is to act as for what it has `asked` of `whose`, if it may.
    pub(super) async fn impersonated(
        &self,
        identity: &Identity,
        wanted: Wanted,
        whose: &Whose,
        asked: &Attributes,
    ) -> Result<Identity> {
        let mut refused = None;
        for mode in Mode::ALL {
            if !mode.fits(&wanted, identity) {
                continue;
            }
            match self.check_mode(identity, &wanted, mode, whose, asked).await? {
                Ok(()) => {
                    let other = wanted.identity(mode, identity);
                    tracing::debug!(tenant = %identity.tenant, user = identity.user, to = other.user, ?mode, "impersonates");
                    return Ok(other);
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(ApiError::unauthorized))
    }

    /// Whether `identity` may act in this way, or why not.
    async fn check_mode(
        &self,
        identity: &Identity,
        wanted: &Wanted,
        mode: Mode,
        whose: &Whose,
        asked: &Attributes,
    ) -> Result<Result<(), ApiError>> {
        let needed = match mode.needed(wanted, asked) {
            Ok(needed) => needed,
            Err(refused) => {
                let (attributes, why) = *refused;
                let mut error = denied(identity, &attributes);
                error.message = format!("{}: {why}", error.message);
                return Ok(Err(error));
            }
        };
        // At home, wherever the request goes: that is where the other is known, too.
        let home = Whose::One(identity.tenant.clone());
        for attributes in needed {
            let is_about_request = attributes.verb.starts_with("impersonate-on:");
            let place = if is_about_request { whose } else { &home };
            if !self.may(identity, place, &attributes).await? {
                return Ok(Err(denied(identity, &attributes)));
            }
        }
        Ok(Ok(()))
    }
}

/// A key of extra fields: what a header's name cannot hold is written as `%XX`.
fn unescaped(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = rest.split_at_checked(2).and_then(|(digits, tail)| {
            let digits = std::str::from_utf8(digits).ok()?;
            let is_hex = digits.bytes().all(|it| it.is_ascii_hexdigit());
            Some((u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?, tail))
        });
        match digits {
            Some((byte, tail)) => {
                out.push(byte);
                rest = tail;
            }
            // As it came, then.
            None => return key.to_owned(),
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use insula_api::names::TenantName;

    use super::*;

    fn wanted(sent: &[(&'static str, &'static str)]) -> Result<Option<Wanted>> {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Wanted::read(&headers)
    }

    fn acme() -> Identity {
        Identity::new(TenantName::parse("acme").unwrap(), "dev", &["acme-admins"])
    }

    #[test]
    fn all_that_is_asked_for_is_asked_about() {
        let wanted = wanted(&[
            (USER, "jane"),
            (GROUP, "ops"),
            (GROUP, "devs"),
            (UID, "7"),
            ("impersonate-extra-a%2fb", "x"),
        ]);
        let wanted = wanted.unwrap().unwrap();
        let asked =
            Attributes { verb: "list".into(), resource: "pods".into(), ..Attributes::default() };
        let shown = |mode: Mode| -> Vec<String> {
            let needed = mode.needed(&wanted, &asked).unwrap();
            let shown = needed.iter().map(|it| {
                let Attributes { verb, group, resource, subresource, name, .. } = it;
                format!("{verb} {group}/{resource}/{subresource} {name}")
            });
            shown.collect()
        };
        assert_eq!(
            shown(Mode::Legacy),
            [
                "impersonate /users/ jane",
                "impersonate authentication.k8s.io/uids/ 7",
                "impersonate /groups/ ops",
                "impersonate /groups/ devs",
                "impersonate authentication.k8s.io/userextras/a/b x",
            ]
        );
        assert_eq!(
            shown(Mode::UserInfo),
            [
                "impersonate-on:user-info:list /pods/ ",
                "impersonate:user-info authentication.k8s.io/users/ jane",
                "impersonate:user-info authentication.k8s.io/uids/ 7",
                "impersonate:user-info authentication.k8s.io/groups/ ops",
                "impersonate:user-info authentication.k8s.io/groups/ devs",
                "impersonate:user-info authentication.k8s.io/userextras/a/b x",
            ]
        );
        let identity = wanted.identity(Mode::Legacy, &acme());
        assert_eq!(identity.tenant.as_str(), "acme");
        assert_eq!(identity.groups, ["ops", "devs", AUTHENTICATED]);
    }

    #[test]
    fn accounts_have_the_groups_of_accounts() {
        let account = wanted(&[(USER, "system:serviceaccount:ns:default")]).unwrap().unwrap();
        for (mode, group) in [(Mode::Legacy, ""), (Mode::ServiceAccount, OWN)] {
            let needed = mode.needed(&account, &Attributes::default()).unwrap();
            let needed = needed.last().unwrap();
            assert_eq!(
                (&*needed.group, &*needed.resource, &*needed.namespace, &*needed.name),
                (group, "serviceaccounts", "ns", "default")
            );
        }
        let groups = account.identity(Mode::ServiceAccount, &acme()).groups;
        assert_eq!(groups, ["system:serviceaccounts", "system:serviceaccounts:ns", AUTHENTICATED]);
        let nobody = wanted(&[(USER, ANONYMOUS)]).unwrap().unwrap();
        assert_eq!(nobody.identity(Mode::Legacy, &acme()).groups, [UNAUTHENTICATED]);
    }

    #[test]
    fn the_narrow_modes_are_for_some_and_never_for_all() {
        let fitting = |sent: &[(&'static str, &'static str)], by: &Identity| -> Vec<Mode> {
            let wanted = wanted(sent).unwrap().unwrap();
            Mode::ALL.into_iter().filter(|it| it.fits(&wanted, by)).collect()
        };
        let node = [(USER, "system:node:n1")];
        assert_eq!(fitting(&node, &acme()), [Mode::ArbitraryNode, Mode::Legacy]);
        let mut agent = Identity { user: "system:serviceaccount:ns:agent".into(), ..acme() };
        let key = "authentication.kubernetes.io/node-name".to_owned();
        agent.extra.insert(key.clone(), vec!["n1".into()]);
        assert_eq!(
            fitting(&node, &agent),
            [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::Legacy]
        );
        agent.extra.insert(key, vec!["n2".into()]);
        assert_eq!(fitting(&node, &agent), [Mode::ArbitraryNode, Mode::Legacy]);
        assert_eq!(fitting(&[node[0], (GROUP, "g")], &agent), [Mode::Legacy]);
        assert_eq!(fitting(&[(USER, "jane")], &agent), [Mode::UserInfo, Mode::Legacy]);
        let account = [(USER, "system:serviceaccount:ns:a")];
        assert_eq!(fitting(&account, &agent), [Mode::ServiceAccount, Mode::Legacy]);

        let masters = wanted(&[(USER, "jane"), (GROUP, "system:masters")]).unwrap().unwrap();
        let refused = Mode::UserInfo.needed(&masters, &Attributes::default()).unwrap_err();
        assert_eq!(refused.1, "impersonating the system:masters group is not allowed");
        assert!(Mode::Legacy.needed(&masters, &Attributes::default()).is_ok());
        for (key, is_good) in [("impersonate-extra-a%2fb", true), ("impersonate-extra-ab", false)] {
            let extra = wanted(&[(USER, "jane"), (key, "x")]).unwrap().unwrap();
            let needed = Mode::UserInfo.needed(&extra, &Attributes::default());
            assert_eq!(needed.is_ok(), is_good, "{key}");
        }
        let node = wanted(&node).unwrap().unwrap();
        assert_eq!(
            node.identity(Mode::ArbitraryNode, &acme()).groups,
            ["system:nodes", AUTHENTICATED]
        );
    }

    #[test]
    fn groups_of_nobody_are_refused() {
        assert_eq!(wanted(&[]).unwrap(), None);
        let error = wanted(&[(GROUP, "ops")]).unwrap_err();
        assert_eq!(
            error.message,
            "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"ops\"}, \
             Extra:map[string][]string(nil)} without impersonating a user name"
        );
        assert!(wanted(&[(UID, "1")]).is_err());
        assert_eq!(unescaped("a%2Fb%zz"), "a%2Fb%zz");
        assert_eq!(unescaped("%e2%82%ac"), "€");
    }
}
