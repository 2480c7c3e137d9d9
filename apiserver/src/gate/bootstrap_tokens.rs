//! Bootstrap tokens: secrets of a tenant by which somebody new gets its first certificate.
//!
//! A token is `id.secret`; the secret `kube-system/bootstrap-token-<id>` of the tenant that the
//! request names says whether it is good, until when, and what for.

use std::str::FromStr as _;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use insula_api::{names::TenantName, object};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::statics::hashed;
use crate::{
    Server,
    error::Result,
    identity::{AUTHENTICATED, Identity},
};

const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAMESPACE: &str = "kube-system";
const GROUP: &str = "system:bootstrappers";
/// Most groups that one token may have.
const MAX_GROUPS: usize = 16;

/// A token that somebody shows, without what must stay secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootstrapToken {
    /// The tenant that is asked.
    pub(crate) tenant: TenantName,
    id: String,
    /// Of the secret that was shown.
    digest: [u8; 32],
}

impl BootstrapToken {
    /// Takes a token apart, if it has the form of one.
    pub(super) fn parse(text: &str, tenant: &TenantName) -> Option<Self> {
        let (id, secret) = text.split_once('.')?;
        let is_plain = |it: &str, length: usize| {
            it.len() == length
                && it.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let is_one = is_plain(id, 6) && is_plain(secret, 16);
        is_one.then(|| Self { tenant: tenant.clone(), id: id.to_owned(), digest: hashed(secret) })
    }

    /// Who it is of, with these groups beside those that all have.
    pub(crate) fn identity(&self, groups: &[String]) -> Identity {
        let mut all = vec![GROUP];
        all.extend(groups.iter().map(String::as_str));
        let mut identity =
            Identity::new(self.tenant.clone(), &format!("system:bootstrap:{}", self.id), &all);
        identity.groups.sort_by_key(|it| it == AUTHENTICATED);
        identity
    }

    /// The groups that a secret gives to who knows it, if this token is the one.
    fn groups(&self, secret: &Value, now: Timestamp) -> Option<Vec<String>> {
        if object::text(secret, &["type"]) != TYPE || object::is_deleting(secret) {
            return None;
        }
        let value = |key: &str| -> Option<String> {
            let text = secret["data"].get(key)?.as_str()?;
            String::from_utf8(STANDARD.decode(text).ok()?).ok()
        };
        let known = hashed(&value("token-secret")?);
        let is_same = verify_slices_are_equal(&known, &self.digest).is_ok();
        if !is_same || value("token-id")? != self.id {
            return None;
        }
        if let Some(expiration) = value("expiration") {
            // What cannot be read has expired.
            let until = Timestamp::from_str(&expiration).ok()?;
            if until <= now {
                return None;
            }
        }
        if value("usage-bootstrap-authentication").as_deref() != Some("true") {
            return None;
        }
        let extra = value("auth-extra-groups").unwrap_or_default();
        let groups: Vec<String> =
            extra.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect();
        let is_good = groups.len() <= MAX_GROUPS && groups.iter().all(|it| is_bootstrappers(it));
        is_good.then_some(groups)
    }
}

/// Whether a group is one that a token may have.
fn is_bootstrappers(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    rest.len() <= 255
        && rest.bytes().next_back().is_some_and(is_inner)
        && rest.bytes().all(|byte| is_inner(byte) || byte == b':' || byte == b'-')
}

impl Server {
    /// Who shows a bootstrap token, if there is such a one now.
    pub(super) async fn bootstrapper(&self, token: &BootstrapToken) -> Result<Option<Identity>> {
        let name = format!("bootstrap-token-{}", token.id);
        let secret = self.find(&token.tenant, "", "secrets", NAMESPACE, &name).await?;
        let groups = secret.and_then(|it| token.groups(&it, Timestamp::now()));
        Ok(groups.map(|it| token.identity(&it)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(changes: &[(&str, &str)]) -> Value {
        let mut it = json!({"type": TYPE, "metadata": {"name": "bootstrap-token-abcdef"}});
        let good = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", "system:bootstrappers:nodes"),
            ("expiration", "2026-01-02T00:00:00Z"),
        ];
        for (key, value) in good.iter().chain(changes) {
            it["data"][*key] = STANDARD.encode(value).into();
        }
        it
    }

    #[test]
    fn a_secret_says_who_is_good() {
        let acme = TenantName::parse("acme").unwrap();
        let parse = |text: &str| BootstrapToken::parse(text, &acme);
        for bad in ["abcdef", "abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "a.b.c", ""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let token = parse("abcdef.0123456789abcdef").unwrap();
        let now = Timestamp::from_str("2026-01-01T00:00:00Z").unwrap();
        let good = token.groups(&secret(&[]), now).unwrap();
        let identity = token.identity(&good);
        assert_eq!(identity.user, "system:bootstrap:abcdef");
        assert_eq!(identity.groups, [GROUP, "system:bootstrappers:nodes", AUTHENTICATED]);
        for change in [
            ("token-secret", "0123456789abcdeg"),
            ("token-id", "abcdeg"),
            ("usage-bootstrap-authentication", "false"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:a,"),
            ("expiration", "2026-01-01T00:00:00Z"),
            ("expiration", "soon"),
        ] {
            let is_good = token.groups(&secret(&[change]), now).is_some();
            assert_eq!(is_good, change.1.ends_with(','), "{change:?}");
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert_eq!(token.groups(&other, now), None);
    }
}
