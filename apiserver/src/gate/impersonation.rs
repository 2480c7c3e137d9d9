//! Acting as somebody else, for those whom the rules let do so.
//!
//! Whoever is impersonated belongs to the tenant of who impersonates: headers never name a tenant.

use std::collections::BTreeMap;

use http::HeaderMap;

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

    /// The answer to groups and such of nobody, with each as upstream prints it.
    fn nobody(&self) -> ApiError {
        const GROUP_VERSION: &str = "authentication.k8s.io/v1";
        let mut all: Vec<String> =
            self.groups.iter().map(|it| format!("{{Group  {it}    }}")).collect();
        for (key, values) in &self.extra {
            let shown =
                values.iter().map(|it| format!("{{UserExtra  {it}  {GROUP_VERSION}  {key}}}"));
            all.extend(shown);
        }
        if !self.uid.is_empty() {
            all.push(format!("{{UID  {}  {GROUP_VERSION}  }}", self.uid));
        }
        ApiError::bad_request(format!("requested [{}] without impersonating a user", all.join(" ")))
    }

    /// The namespace and name of a service account, if the user is one.
    fn account(&self) -> Option<(&str, &str)> {
        let (namespace, name) =
            self.user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        let whole = !namespace.is_empty() && !name.is_empty() && !name.contains(':');
        whole.then_some((namespace, name))
    }

    /// Everything that its sender must be allowed to impersonate.
    fn needed(&self) -> Vec<Attributes> {
        let attributes = |group: &str, resource: &str, subresource: &str, name: &str| Attributes {
            verb: "impersonate".into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Attributes::default()
        };
        const OWN: &str = "authentication.k8s.io";
        let mut needed = vec![match self.account() {
            Some((namespace, name)) => Attributes {
                namespace: namespace.into(),
                ..attributes("", "serviceaccounts", "", name)
            },
            None => attributes("", "users", "", &self.user),
        }];
        needed.extend(self.groups.iter().map(|it| attributes("", "groups", "", it)));
        for (key, values) in &self.extra {
            needed.extend(values.iter().map(|it| attributes(OWN, "userextras", key, it)));
        }
        if !self.uid.is_empty() {
            needed.push(attributes(OWN, "uids", "", &self.uid));
        }
        needed
    }

    /// Who that is, beside `impersonator`.
    fn identity(self, impersonator: &Identity) -> Identity {
        let account = self.account().map(|(namespace, _)| namespace.to_owned());
        let mut groups = self.groups;
        if let Some(namespace) = account.filter(|_| groups.is_empty()) {
            groups.push("system:serviceaccounts".into());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
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

impl Server {
    /// Who `identity` is to act as, if it may.
    pub(super) async fn impersonated(
        &self,
        identity: &Identity,
        wanted: Wanted,
    ) -> Result<Identity> {
        // At home, wherever the request goes: that is where the other is known, too.
        let home = Whose::One(identity.tenant.clone());
        for attributes in wanted.needed() {
            if !self.may(identity, &home, &attributes).await? {
                return Err(denied(identity, &attributes));
            }
        }
        let other = wanted.identity(identity);
        tracing::debug!(tenant = %identity.tenant, user = identity.user, to = other.user, "impersonates");
        Ok(other)
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
        let shown: Vec<String> = wanted
            .needed()
            .iter()
            .map(|it| format!("{}/{}/{} {}", it.group, it.resource, it.subresource, it.name))
            .collect();
        let own = "authentication.k8s.io";
        assert_eq!(
            shown,
            [
                "/users/ jane",
                "/groups/ ops",
                "/groups/ devs",
                &format!("{own}/userextras/a/b x"),
                &format!("{own}/uids/ 7")
            ]
        );
        let identity = wanted.identity(&acme());
        assert_eq!(identity.tenant.as_str(), "acme");
        assert_eq!(identity.groups, ["ops", "devs", AUTHENTICATED]);
    }

    #[test]
    fn accounts_have_the_groups_of_accounts() {
        let account = wanted(&[(USER, "system:serviceaccount:ns:default")]).unwrap().unwrap();
        let needed = account.needed();
        assert_eq!(
            (&*needed[0].resource, &*needed[0].namespace, &*needed[0].name),
            ("serviceaccounts", "ns", "default")
        );
        let groups = account.identity(&acme()).groups;
        assert_eq!(groups, ["system:serviceaccounts", "system:serviceaccounts:ns", AUTHENTICATED]);
        let nobody = wanted(&[(USER, ANONYMOUS)]).unwrap().unwrap();
        assert_eq!(nobody.identity(&acme()).groups, [UNAUTHENTICATED]);
    }

    #[test]
    fn groups_of_nobody_are_refused() {
        assert_eq!(wanted(&[]).unwrap(), None);
        let error = wanted(&[(GROUP, "ops")]).unwrap_err();
        assert_eq!(error.message, "requested [{Group  ops    }] without impersonating a user");
        assert!(wanted(&[(UID, "1")]).is_err());
        assert_eq!(unescaped("a%2Fb%zz"), "a%2Fb%zz");
        assert_eq!(unescaped("%e2%82%ac"), "€");
    }
}
