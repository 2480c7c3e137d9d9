//! Where an object lies in etcd: `<prefix><group>/<resource>/<key>`.

use crate::store::Collection;

/// The part of an etcd's keys that belongs to one partition.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    /// `prefix` with exactly one `/` at each end.
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: format!("/{}/", prefix.trim_matches('/')) }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn of(&self, collection: &Collection, key: &str) -> String {
        format!("{}{collection}/{key}", self.prefix)
    }

    /// A key that is no object: a write to it passes through the watch like any other, and so
    /// proves that all before it has passed.
    pub(crate) fn marker(&self) -> String {
        format!("{}.marker", self.prefix)
    }

    /// By how much the partition's revisions are higher than etcd's.
    pub(crate) fn offsets(&self) -> String {
        format!("{}.offsets", self.prefix)
    }

    /// Whose partition this is.
    pub(crate) fn identity(&self) -> String {
        format!("{}.identity", self.prefix)
    }

    /// What all keys begin with that are ours and no objects.
    pub(crate) fn own(&self) -> String {
        format!("{}.", self.prefix)
    }

    /// The end of those keys.
    pub(crate) fn own_end(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// Collection and key of the object that lies at `key`; `None` if it is no object.
    pub(crate) fn split<'a>(&self, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let (group, _) = rest.split_once('/')?;
        let (resource, key) = rest.get(group.len() + 1..)?.split_once('/')?;
        let valid = !group.is_empty() && !resource.is_empty();
        valid.then(|| (&rest[..group.len() + 1 + resource.len()], key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back() {
        for prefix in ["/insula", "insula/", "/insula/"] {
            let keys = Keys::new(prefix);
            let pods = Collection::new("", "pods");
            let key = keys.of(&pods, "acme/default/web");
            assert_eq!(key, "/insula/core/pods/acme/default/web");
            assert_eq!(keys.split(key.as_bytes()), Some(("core/pods", "acme/default/web")));
            assert_eq!(keys.split(keys.of(&pods, "").as_bytes()), Some(("core/pods", "")));
        }
    }

    #[test]
    fn other_keys_are_no_objects() {
        let keys = Keys::new("/insula");
        let others: [&[u8]; 6] = [
            b"/insulae/core/pods/a",
            b"/insula/core/pods",
            b"/insula//pods/a",
            b"/insula/core//a",
            b"/insula/core/pods/\xff",
            b"",
        ];
        for other in others {
            assert_eq!(keys.split(other), None);
        }
        assert_eq!(keys.split(keys.marker().as_bytes()), None);
    }
}
