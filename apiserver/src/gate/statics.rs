//! Tokens that a file names, for development: whoever shows one is who the file says.
//!
//! Lines of `token,user,uid,"group,group",tenant`, as upstream's token file with the tenant behind.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use insula_api::names::{NameError, TenantName};

use crate::identity::{Identity, IdentityError};

/// Why a file of tokens cannot be used. Never shows a token.
#[derive(Debug, thiserror::Error)]
pub enum StaticTokensError {
    #[error("cannot read the tokens {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("line {0}: five columns are needed: token,user,uid,\"groups\",tenant")]
    Columns(usize),
    #[error("line {0}: the token is empty or there twice")]
    Token(usize),
    #[error("line {line}")]
    Tenant {
        line: usize,
        #[source]
        source: NameError,
    },
    #[error("line {line}")]
    User {
        line: usize,
        #[source]
        source: IdentityError,
    },
}

/// What finding a token takes as long for, whatever it begins with.
type Digest = [u8; 32];

/// See the module. Those of the moment: the file may be read again.
pub struct StaticTokens {
    path: PathBuf,
    tokens: ArcSwap<HashMap<Digest, Identity>>,
}

impl std::fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StaticTokens").field("path", &self.path).finish_non_exhaustive()
    }
}

impl StaticTokens {
    pub fn open(path: &Path) -> Result<Self, StaticTokensError> {
        Ok(Self { path: path.to_owned(), tokens: ArcSwap::from_pointee(read(path)?) })
    }

    /// Reads the file again. What cannot be read changes nothing.
    pub fn reload(&self) -> Result<(), StaticTokensError> {
        self.tokens.store(read(&self.path)?.into());
        Ok(())
    }

    /// Who a token is of.
    pub(super) fn holder(&self, token: &str) -> Option<Identity> {
        self.tokens.load().get(&hashed(token)).cloned()
    }
}

/// What stands for a secret where it has to be compared or told.
pub(super) fn hashed(secret: &str) -> Digest {
    let mut hashed = Digest::default();
    hashed.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    hashed
}

fn read(path: &Path) -> Result<HashMap<Digest, Identity>, StaticTokensError> {
    let text = fs::read_to_string(path)
        .map_err(|source| StaticTokensError::File { path: path.to_owned(), source })?;
    parse(&text)
}

fn parse(text: &str) -> Result<HashMap<Digest, Identity>, StaticTokensError> {
    let mut tokens = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let columns = columns(line);
        let [token, user, uid, groups, tenant] = columns.as_slice() else {
            return Err(StaticTokensError::Columns(number));
        };
        let tenant = TenantName::parse(tenant)
            .map_err(|source| StaticTokensError::Tenant { line: number, source })?;
        let groups: Vec<&str> =
            groups.split(',').map(str::trim).filter(|it| !it.is_empty()).collect();
        let mut identity = Identity::new(tenant, user, &groups);
        identity.uid.clone_from(uid);
        identity.check().map_err(|source| StaticTokensError::User { line: number, source })?;
        if token.is_empty() || tokens.insert(hashed(token), identity).is_some() {
            return Err(StaticTokensError::Token(number));
        }
    }
    Ok(tokens)
}

/// The columns of a line; commas between quotes belong to one.
fn columns(line: &str) -> Vec<String> {
    let mut columns = vec![String::new()];
    let mut is_quoted = false;
    for character in line.chars() {
        match character {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => columns.push(String::new()),
            other => columns.iter_mut().next_back().into_iter().for_each(|it| it.push(other)),
        }
    }
    columns.into_iter().map(|it| it.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_token() {
        let tokens = parse("# who\n\ns3cret,dev,u1,\"ops, acme-admins\",acme\n").unwrap();
        let mut dev =
            Identity::new(TenantName::parse("acme").unwrap(), "dev", &["ops", "acme-admins"]);
        dev.uid = "u1".into();
        assert_eq!(tokens.get(&hashed("s3cret")), Some(&dev));
        assert_eq!(tokens.get(&hashed("s3cre")), None);
    }

    #[test]
    fn what_is_wrong_is_told_without_the_token() {
        for (text, expected) in [
            ("s3cret,dev,u1", "five columns"),
            ("s3cret,dev,u1,,Acme", "line 1"),
            ("s3cret,,u1,,acme", "line 1"),
            (",dev,u1,,acme", "empty or there twice"),
            ("s3cret,a,1,,acme\ns3cret,b,2,,acme", "line 2"),
        ] {
            let error = crate::error::chain(&parse(text).unwrap_err());
            assert!(error.contains(expected) && !error.contains("s3cret"), "{error}");
        }
    }
}
