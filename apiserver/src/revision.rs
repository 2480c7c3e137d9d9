//! `resourceVersion`: one partition's counter, or one per partition.
//!
//! What lies in one partition has that partition's revision as plain decimal, as clients expect.
//! Reads across partitions have a vector, opaque to clients: `p1=12,p2=34`.

use std::sync::Arc;

use insula_partition::store::Revision;

use crate::error::{ApiError, Result};

/// A point in the history of one or more partitions, in the order of the request's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vector(pub Vec<(Arc<str>, Revision)>);

/// The answer to what is no revision.
pub(crate) fn invalid(text: &str) -> ApiError {
    let shown: String = text.chars().take(64).collect();
    ApiError::bad_request(format!(
        "invalid resource version: resourceVersion: Invalid value: {shown:?}: \
         strconv.ParseUint: parsing {shown:?}: invalid syntax"
    ))
}

impl Vector {
    /// Reads what a client sent back. `names` are the partitions of the request.
    pub(crate) fn parse(text: &str, names: &[&str]) -> Result<Self> {
        let invalid = || invalid(text);
        if let Ok(revision) = text.parse() {
            return match names {
                [name] => Ok(Self(vec![((*name).into(), Revision(revision))])),
                // One partition's revision says nothing of the others: the client must relist.
                _ => Err(ApiError::expired(format!(
                    "too old resource version: {text} is not of a list across partitions"
                ))),
            };
        }
        let parts: Option<Vec<(&str, Revision)>> = text
            .split(',')
            .map(|part| {
                let (name, revision) = part.split_once('=')?;
                Some((name, Revision(revision.parse().ok()?)))
            })
            .collect();
        let parts = parts.ok_or_else(invalid)?;
        let found = names.iter().map(|name| {
            let part = parts.iter().find(|(known, _)| known == name);
            part.map(|(name, revision)| (Arc::from(*name), *revision))
        });
        match found.collect() {
            Some(vector) => Ok(Self(vector)),
            None => Err(ApiError::expired(
                "too old resource version: the partitions have changed since",
            )),
        }
    }
}

impl std::fmt::Display for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [(_, revision)] = self.0.as_slice() {
            return revision.fmt(f);
        }
        for (index, (name, revision)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{name}={revision}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_partition_is_plain() {
        let vector = Vector::parse("42", &["p1"]).unwrap();
        assert_eq!(vector.to_string(), "42");
    }

    #[test]
    fn several_are_a_vector() {
        let vector = Vector::parse("p1=1,p2=22", &["p1", "p2"]).unwrap();
        assert_eq!(vector.to_string(), "p1=1,p2=22");
        assert_eq!(Vector::parse("p1=1", &["p1", "p2"]).unwrap_err().reason, "Expired");
        assert_eq!(Vector::parse("42", &["p1", "p2"]).unwrap_err().reason, "Expired");
        assert_eq!(Vector::parse("nonsense", &["p1"]).unwrap_err().reason, "BadRequest");
    }
}
