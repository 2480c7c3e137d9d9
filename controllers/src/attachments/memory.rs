//! What the controller remembers between its looks at nodes. All of it may be lost.

use std::{collections::HashMap, time::Duration};

use insula_client::{ObjectKey, fence::Fence};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::disk::Disk;

/// After this, what was taken and never showed was not given.
const EXPIRY: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memory {
    nodes: Mutex<HashMap<ObjectKey, OfNode>>,
    /// Volumes for one node only that were given to one, until local copies show it.
    taken: Mutex<HashMap<Disk, Taken>>,
}

/// What is remembered of a node, in one epoch.
#[derive(Debug)]
struct OfNode {
    fence: Option<Fence>,
    /// Since when nobody wants attachments, by their uids.
    unwanted: HashMap<String, Instant>,
    /// The last that was told of something.
    told: HashMap<String, String>,
}

#[derive(Debug)]
struct Taken {
    node: String,
    at: Instant,
    fence: Option<Fence>,
}

impl Memory {
    fn of<T>(&self, node: &ObjectKey, look: impl FnOnce(&mut OfNode) -> T) -> T {
        let mut nodes = self.nodes.lock();
        let fence = Fence::current();
        let new =
            || OfNode { fence: Fence::current(), unwanted: HashMap::new(), told: HashMap::new() };
        let it = nodes.entry(node.clone()).or_insert_with(new);
        if it.fence != fence {
            *it = new();
        }
        look(it)
    }

    /// Somebody wants an attachment.
    pub(super) fn is_wanted(&self, node: &ObjectKey, uid: &str) {
        if let Some(it) = self.nodes.lock().get_mut(node) {
            it.unwanted.remove(uid);
        }
    }

    /// For how long nobody has wanted an attachment.
    pub(super) fn unwanted_for(&self, node: &ObjectKey, uid: &str) -> Duration {
        self.of(node, |it| it.unwanted.entry(uid.to_owned()).or_insert_with(Instant::now).elapsed())
    }

    /// Whether `what` was not the last that was told of something.
    pub(super) fn is_news(&self, node: &ObjectKey, of: &str, what: &str) -> bool {
        let last = self.of(node, |it| it.told.insert(of.to_owned(), what.to_owned()));
        last.as_deref() != Some(what)
    }

    /// Forgets the attachments of a node that are not to be kept; the node, if none of it matters.
    pub(super) fn keep(&self, node: &ObjectKey, is_idle: bool, is_kept: impl Fn(&str) -> bool) {
        let mut nodes = self.nodes.lock();
        if is_idle {
            nodes.remove(node);
        } else if let Some(it) = nodes.get_mut(node) {
            it.unwanted.retain(|uid, _| is_kept(uid));
        }
    }

    /// Takes a volume for a node, unless another has just taken it.
    pub(super) fn take(&self, disk: &Disk, node: &str) -> bool {
        let mut taken = self.taken.lock();
        let fence = Fence::current();
        taken.retain(|_, it| it.fence == fence && it.at.elapsed() < EXPIRY);
        if taken.get(disk).is_some_and(|it| it.node != node) {
            return false;
        }
        taken.insert(disk.clone(), Taken { node: node.to_owned(), at: Instant::now(), fence });
        true
    }

    /// The local copy shows an attachment of this name: that is who has the volume.
    pub(super) fn shown(&self, attachment: &str) {
        self.taken.lock().retain(|disk, it| disk.attachment(&it.node) != attachment);
    }

    /// It was not given after all.
    pub(super) fn give_back(&self, disk: &Disk) {
        self.taken.lock().remove(disk);
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;

    use super::*;

    fn disk() -> Disk {
        Disk { driver: "d".into(), handle: "h".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_node_takes_a_volume() {
        let memory = Memory::default();
        assert!(memory.take(&disk(), "a"));
        assert!(memory.take(&disk(), "a"), "again");
        assert!(!memory.take(&disk(), "b"));
        memory.shown(&disk().attachment("a"));
        assert!(memory.take(&disk(), "b"), "from now on the copy knows");
        memory.give_back(&disk());
        assert!(memory.take(&disk(), "a"));
        tokio::time::advance(EXPIRY).await;
        assert!(memory.take(&disk(), "b"), "it was never given");
    }

    #[tokio::test(start_paused = true)]
    async fn another_epoch_begins_anew() {
        let memory = Memory::default();
        let node = ObjectKey::new(&TenantName::system(), "", "n");
        assert!(memory.is_news(&node, "v", "x"));
        assert!(!memory.is_news(&node, "v", "x"));
        memory.unwanted_for(&node, "uid");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(memory.unwanted_for(&node, "uid").as_secs(), 60);
        let later = Fence::new("controllers.1", 7).unwrap();
        later.around(async { assert_eq!(memory.unwanted_for(&node, "uid").as_secs(), 0) }).await;
    }
}
