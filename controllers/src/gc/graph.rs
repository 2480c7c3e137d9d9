//! Who owns whom: the ownership graph of all objects of all tenants, by uid.
//!
//! The graph is fed by events and says which objects a change makes worth a look. It decides
//! nothing: what it does not know may still exist. All objects of all tenants are in it, so nothing
//! lies in it twice: uids are shared, and so are the owners that siblings have.
//!
//! # Invariants
//!
//! * An owner is only one that its dependent may have: of the same tenant, and of the same
//!   namespace or of none. Any other object with that uid is someone else's.
//! * `dependents` holds exactly the uids that nodes name as owners; `gone` those of them that were
//!   there, and are no more.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use insula_client::{ObjectKey, ResourceRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// An object waits with this finalizer until those that it owns are gone.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// An object waits with this finalizer until those that it owns no longer name it.
pub(super) const ORPHAN: &str = "orphan";

/// What the graph knows of an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) resource: Arc<ResourceRef>,
    pub(super) key: ObjectKey,
    pub(super) uid: Arc<str>,
    pub(super) owners: Arc<[OwnerReference]>,
    pub(super) is_deleting: bool,
    pub(super) waits_for_dependents: bool,
    pub(super) orphans_dependents: bool,
}

impl Node {
    pub(super) fn new(resource: &Arc<ResourceRef>, key: &ObjectKey, object: &ObjectMeta) -> Self {
        let has = |name: &str| object.finalizers.iter().flatten().any(|it| it == name);
        let is_deleting = object.deletion_timestamp.is_some();
        Self {
            resource: resource.clone(),
            key: key.clone(),
            uid: object.uid.as_deref().unwrap_or_default().into(),
            owners: object.owner_references.as_deref().unwrap_or_default().into(),
            is_deleting,
            waits_for_dependents: is_deleting && has(FOREGROUND),
            orphans_dependents: is_deleting && has(ORPHAN),
        }
    }

    /// Whether what the graph knows of the two states of an object is the same.
    pub(super) fn is_same(old: &ObjectMeta, new: &ObjectMeta) -> bool {
        old.uid == new.uid
            && old.deletion_timestamp == new.deletion_timestamp
            && old.owner_references == new.owner_references
            && old.finalizers == new.finalizers
    }

    /// Whether `owner` keeps waiting as long as this object is there.
    pub(super) fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|it| it.uid == owner && it.block_owner_deletion == Some(true))
    }

    /// Whether this object can own one with `dependent`'s key.
    pub(super) fn can_own(&self, dependent: &ObjectKey) -> bool {
        self.key.tenant == dependent.tenant
            && (self.key.namespace.is_empty() || self.key.namespace == dependent.namespace)
    }
}

/// What the graph knows of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// There, and not waiting for this dependent.
    Solid,
    /// There, but about to go once its dependents are gone.
    Waiting,
    /// Not known; it may exist all the same.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<Arc<str>, Node>,
    dependents: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    gone: HashSet<Arc<str>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The objects that name `uid` as an owner and may do so.
    pub(super) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Node> {
        let owner = self.nodes.get(uid);
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.nodes.get(uid))
            .filter(move |it| owner.is_none_or(|owner| owner.can_own(&it.key)))
    }

    /// What is known of the owner that `dependent` names.
    pub(super) fn owner_state(&self, dependent: &ObjectKey, owner: &str) -> OwnerState {
        match self.nodes.get(owner).filter(|it| it.can_own(dependent)) {
            Some(owner) if owner.waits_for_dependents => OwnerState::Waiting,
            Some(_) => OwnerState::Solid,
            None => OwnerState::Unknown,
        }
    }

    /// Whether the owner that `dependent` names is in another namespace of its tenant, where it
    /// can own nothing of this one.
    pub(super) fn is_elsewhere(&self, dependent: &ObjectKey, owner: &str) -> bool {
        let owner = self.nodes.get(owner).filter(|it| it.key.tenant == dependent.tenant);
        owner.is_some_and(|it| !it.can_own(dependent))
    }

    /// Whether an owner that is not there any more was, as far as can be told: those named by what
    /// came after them, from a backup or from elsewhere, never were.
    pub(super) fn was_there(&self, owner: &str) -> bool {
        self.gone.contains(owner)
    }

    /// Notes an object as it is now; returns the uids that are worth a look.
    pub(super) fn put(&mut self, mut node: Node) -> Vec<Arc<str>> {
        if let Some(known) = self.nodes.get(&node.uid) {
            node.uid = known.uid.clone();
        }
        if let Some(sibling) = self.sibling(&node) {
            node.owners = sibling.owners.clone();
        }
        let uid = node.uid.clone();
        self.gone.remove(&uid);
        let old = self.nodes.insert(uid.clone(), node.clone());
        let old_owners = old.as_ref().map(|it| &*it.owners).unwrap_or_default();
        let mut look = Vec::new();
        for owner in old_owners.iter().filter(|it| !names(&node.owners, &it.uid)) {
            self.unlink(&owner.uid, &uid);
        }
        for owner in &*node.owners {
            let known = self.nodes.get(&*owner.uid).map(|it| it.uid.clone());
            let owner = known.unwrap_or_else(|| owner.uid.as_str().into());
            self.dependents.entry(owner).or_default().insert(uid.clone());
        }
        // An owner may be waiting for just this: that nothing blocks it any more.
        for owner in old_owners {
            let blocked = owner.block_owner_deletion == Some(true);
            if blocked && !node.blocks(&owner.uid) {
                look.extend(self.if_waiting(&owner.uid));
            }
        }
        let began = |now: bool, was: fn(&Node) -> bool| now && !old.as_ref().is_some_and(was);
        let owners_changed = old.is_none() || old_owners != &*node.owners;
        if began(node.waits_for_dependents, |it| it.waits_for_dependents)
            || began(node.orphans_dependents, |it| it.orphans_dependents)
            || (owners_changed && self.is_questionable(&node))
        {
            look.push(uid);
        }
        look
    }

    /// Notes that an object is gone; returns the uids that are worth a look.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Arc<str>> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut look: Vec<Arc<str>> =
            self.dependents.get(uid).into_iter().flatten().cloned().collect();
        if !look.is_empty() {
            self.gone.insert(node.uid.clone());
        }
        for owner in &*node.owners {
            self.unlink(&owner.uid, uid);
            look.extend(self.if_waiting(&owner.uid));
        }
        look
    }

    /// Whether not all owners are known to be there and to stay.
    pub(super) fn is_questionable(&self, node: &Node) -> bool {
        let state = |owner: &OwnerReference| self.owner_state(&node.key, &owner.uid);
        node.owners.iter().any(|owner| state(owner) != OwnerState::Solid)
    }

    /// Whether there may be something to do about an object.
    pub(super) fn is_due(&self, node: &Node) -> bool {
        node.waits_for_dependents || node.orphans_dependents || self.is_questionable(node)
    }

    /// One that has the same owners.
    fn sibling(&self, node: &Node) -> Option<&Node> {
        let first = node.owners.first()?;
        let sibling = self.dependents.get(&*first.uid)?.first()?;
        self.nodes.get(sibling).filter(|it| it.owners == node.owners)
    }

    fn if_waiting(&self, owner: &str) -> Option<Arc<str>> {
        self.nodes.get(owner).filter(|it| it.waits_for_dependents).map(|it| it.uid.clone())
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
                self.gone.remove(owner);
            }
        }
    }
}

fn names(owners: &[OwnerReference], uid: &str) -> bool {
    owners.iter().any(|it| it.uid == uid)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use insula_api::names::TenantName;

    use super::*;

    fn key(place: &str, uid: &str) -> ObjectKey {
        let (tenant, namespace) = place.split_once('/').unwrap_or((place, ""));
        ObjectKey::new(&TenantName::parse(tenant).unwrap(), namespace, uid)
    }

    /// A node whose owners are named by uid; those with `!` block.
    fn node(place: &str, uid: &str, owners: &str) -> Node {
        let resource = ResourceRef {
            group: Cow::Borrowed(""),
            version: Cow::Borrowed("v1"),
            plural: Cow::Borrowed("things"),
            kind: Cow::Borrowed("Thing"),
            namespaced: true,
        };
        let owner = |text: &str| OwnerReference {
            uid: text.trim_end_matches('!').to_owned(),
            block_owner_deletion: Some(text.ends_with('!')),
            ..OwnerReference::default()
        };
        Node {
            resource: Arc::new(resource),
            key: key(place, uid),
            uid: uid.into(),
            owners: owners.split_whitespace().map(owner).collect(),
            is_deleting: false,
            waits_for_dependents: false,
            orphans_dependents: false,
        }
    }

    fn waiting(place: &str, uid: &str) -> Node {
        Node { is_deleting: true, waits_for_dependents: true, ..node(place, uid, "") }
    }

    const NS: &str = "acme/ns";

    fn shown(uids: Vec<Arc<str>>) -> Vec<String> {
        uids.iter().map(|it| it.to_string()).collect()
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        assert!(graph.put(node(NS, "owner", "")).is_empty());
        assert!(graph.put(node(NS, "a", "owner")).is_empty(), "its owner is there");
        assert_eq!(shown(graph.remove("owner")), ["a"]);
        assert!(graph.remove("a").is_empty());
        assert!(graph.dependents.is_empty() && graph.nodes.is_empty() && graph.gone.is_empty());
    }

    #[test]
    fn an_owner_was_there_or_never_was() {
        let mut graph = Graph::default();
        graph.put(node(NS, "owner", ""));
        graph.put(node(NS, "a", "owner"));
        graph.put(node(NS, "b", "nobody"));
        graph.remove("owner");
        graph.put(node(NS, "late", "owner"));
        graph.remove("a");
        assert!(graph.was_there("owner"), "one still names it");
        assert!(!graph.was_there("nobody"));
        graph.remove("late");
        assert!(!graph.was_there("owner"), "nothing is kept of what nobody names");
    }

    /// What is told once more, when a tenant is taken over, changes nothing in the graph.
    #[test]
    fn what_was_left_to_do_is_due_however_long_it_is_known() {
        let mut graph = Graph::default();
        for (it, is_due) in [
            (node(NS, "owner", ""), false),
            (node(NS, "a", "owner"), false),
            (node(NS, "orphan", "nobody"), true),
            (waiting(NS, "ends"), true),
            (Node { orphans_dependents: true, ..node(NS, "lets", "") }, true),
        ] {
            graph.put(it.clone());
            assert!(graph.put(it.clone()).is_empty(), "it is known");
            assert_eq!(graph.is_due(&it), is_due, "{}", it.uid);
        }
    }

    #[test]
    fn an_object_with_an_unknown_owner_is_looked_at() {
        let mut graph = Graph::default();
        assert_eq!(shown(graph.put(node(NS, "a", "owner"))), ["a"]);
        assert!(graph.put(node(NS, "a", "owner")).is_empty(), "once");
        assert!(graph.put(node(NS, "owner", "")).is_empty());
        assert!(!graph.is_questionable(&node(NS, "a", "owner")));
    }

    #[test]
    fn owners_of_other_places_do_not_count() {
        let mut graph = Graph::default();
        graph.put(node("acme/other", "elsewhere", ""));
        graph.put(node("globex/ns", "foreign", ""));
        graph.put(node("acme", "cluster", ""));
        let state = |owner| graph.owner_state(&key(NS, "a"), owner);
        assert_eq!(state("elsewhere"), OwnerState::Unknown);
        assert_eq!(state("foreign"), OwnerState::Unknown);
        assert_eq!(state("cluster"), OwnerState::Solid);
        assert_eq!(shown(graph.put(node(NS, "a", "foreign cluster"))), ["a"]);
        assert_eq!(graph.dependents("foreign").count(), 0);
        assert_eq!(graph.dependents("cluster").count(), 1);
    }

    #[test]
    fn a_waiting_owner_is_looked_at_when_it_begins_and_when_nothing_blocks_it() {
        let mut graph = Graph::default();
        graph.put(node(NS, "owner", ""));
        graph.put(node(NS, "a", "owner!"));
        graph.put(node(NS, "b", "owner!"));
        assert_eq!(shown(graph.put(waiting(NS, "owner"))), ["owner"]);
        assert!(graph.put(waiting(NS, "owner")).is_empty());
        assert_eq!(graph.owner_state(&key(NS, "a"), "owner"), OwnerState::Waiting);
        assert_eq!(shown(graph.remove("a")), ["owner"]);
        assert_eq!(shown(graph.put(node(NS, "b", "owner"))), ["owner", "b"], "b no longer blocks");
        assert_eq!(graph.dependents("owner").filter(|it| it.blocks("owner")).count(), 0);
    }

    #[test]
    fn siblings_share_their_owners() {
        let mut graph = Graph::default();
        graph.put(node(NS, "owner", ""));
        for it in ["a", "b"] {
            graph.put(node(NS, it, "owner"));
        }
        assert!(Arc::ptr_eq(&graph.nodes["a"].owners, &graph.nodes["b"].owners));
        graph.put(node(NS, "b", "owner other"));
        assert_eq!((graph.nodes["a"].owners.len(), graph.nodes["b"].owners.len()), (1, 2));
    }

    #[test]
    fn changed_owners_move_the_edges() {
        let mut graph = Graph::default();
        graph.put(node(NS, "x", ""));
        graph.put(node(NS, "y", ""));
        graph.put(node(NS, "a", "x"));
        graph.put(node(NS, "a", "y"));
        assert!(graph.remove("x").is_empty());
        assert_eq!(shown(graph.remove("y")), ["a"]);
    }
}
