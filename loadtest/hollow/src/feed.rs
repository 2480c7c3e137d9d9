//! Hearing of pods on the node feed: one stream for all nodes of a crew, on which their heartbeats
//! ride.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures::future::BoxFuture;
use insula_client::Client;
use insula_nodeagent::feed::{NodeFeed, Told};
use tokio::sync::mpsc::UnboundedSender;

use crate::{Shared, crew::News, requests::is_well, usage::Usage};

/// Has `told` hear of the pods of a crew's nodes, and tells what they use; never ends by itself.
pub(crate) fn follow(
    shared: Arc<Shared>,
    client: Client,
    numbers: Range<u32>,
    told: UnboundedSender<News>,
    usage: Usage,
) -> BoxFuture<'static, ()> {
    let (names, known) = (shared.clone(), numbers.clone());
    let feed = NodeFeed::new(client, move || known.clone().map(|it| names.name(it)).collect());
    let feed = feed.telling(Box::new(move || usage.take()));
    let mut is_counted = false;
    feed.run(move |it| {
        let number = |name: &str| shared.number(name).filter(|it| numbers.contains(it));
        // Who no longer listens has ended.
        let tell = |news| drop(told.send(news));
        let counters = &shared.counters;
        match it {
            Told::Pod(pod) => {
                let node = pod.spec.as_ref().and_then(|it| it.node_name.as_deref());
                if let Some(number) = node.and_then(number) {
                    tell(News::Pod(number, Arc::from(pod)));
                }
            }
            Told::Gone(uid) => tell(News::Gone(uid)),
            Told::Only(uids) => {
                tell(News::Only(uids));
                if !std::mem::replace(&mut is_counted, true) {
                    let count = u64::from(numbers.end - numbers.start);
                    counters.listening.fetch_add(count, Relaxed);
                }
            }
            Told::NoNode(name) => {
                if let Some(number) = number(&name) {
                    tell(News::Node(number));
                }
            }
            // Somebody may have written that it is not ready, or what it has not.
            Told::Node(text) => match text.parse() {
                Ok(node) => {
                    if let Some(number) = number(node.name())
                        && !is_well(&shared, number, &node)
                    {
                        tell(News::Node(number));
                    }
                }
                Err(error) => tracing::warn!(%error, "a node cannot be read"),
            },
            Told::Beat { renewed, missing, after } => {
                counters.beats.fetch_add(renewed, Relaxed);
                counters.late.took(after);
                missing.iter().filter_map(|it| number(it)).for_each(|it| tell(News::NoLease(it)));
            }
            Told::Cut(_) => drop(counters.failures.fetch_add(1, Relaxed)),
        }
    })
}
