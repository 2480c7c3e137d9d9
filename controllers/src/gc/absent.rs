//! Owners that were looked for on the server and are not there.
//!
//! A uid never comes again, so what many objects name need be looked for once, as when a set with a
//! thousand pods goes. Kept for a minute only: a restore may bring back what was gone.

use std::{collections::HashMap, time::Duration};

use insula_client::ObjectKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::time::Instant;

const KEPT: Duration = Duration::from_secs(60);
/// Forgotten all at once beyond.
const MAX: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Absent {
    /// By where an owner was looked for, and as what; since when it is known.
    since: HashMap<(ObjectKey, String, String, String), Instant>,
}

impl Absent {
    /// Where the owner of an object is, of which API version, kind and uid.
    fn place(dependent: &ObjectKey, owner: &OwnerReference) -> (ObjectKey, String, String, String) {
        let key = ObjectKey::new(&dependent.tenant, &dependent.namespace, &owner.name);
        (key, owner.api_version.clone(), owner.kind.clone(), owner.uid.clone())
    }

    pub(super) fn has(&self, dependent: &ObjectKey, owner: &OwnerReference) -> bool {
        let since = self.since.get(&Self::place(dependent, owner));
        since.is_some_and(|since| since.elapsed() < KEPT)
    }

    pub(super) fn add(&mut self, dependent: &ObjectKey, owner: &OwnerReference) {
        if MAX <= self.since.len() {
            self.since.clear();
        }
        self.since.insert(Self::place(dependent, owner), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;

    use super::*;

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: "web".into(),
            uid: uid.into(),
            ..OwnerReference::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_is_absent_for_its_namespace_and_for_a_while() {
        let in_namespace = |name| ObjectKey::new(&TenantName::system(), name, "pod");
        let mut absent = Absent::default();
        absent.add(&in_namespace("a"), &owner("1"));
        assert!(absent.has(&in_namespace("a"), &owner("1")));
        assert!(!absent.has(&in_namespace("a"), &owner("2")));
        assert!(!absent.has(&in_namespace("b"), &owner("1")));
        tokio::time::advance(KEPT).await;
        assert!(!absent.has(&in_namespace("a"), &owner("1")));
    }

    #[test]
    fn as_many_are_known_as_there_is_room_for() {
        let mut absent = Absent::default();
        let dependent = ObjectKey::new(&TenantName::system(), "a", "pod");
        for n in 0..3 * MAX {
            absent.add(&dependent, &owner(&n.to_string()));
            assert!(absent.has(&dependent, &owner(&n.to_string())) && absent.since.len() <= MAX);
        }
    }
}
