//! Reading: one object, and lists in pages.
//!
//! Answers are made of the stored bytes: an object is sent as it lies in the store, a list is
//! those bytes with commas between.

use std::sync::Arc;

use base64::{
    Engine as _, alphabet,
    engine::general_purpose::{GeneralPurpose, NO_PAD},
};
use insula_partition::{
    snapshot::{Entry, Snapshot},
    store::{ReadAt, Revision, Store, StoreError},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    Server,
    accept::Form,
    error::{ApiError, Result},
    fair::Pieces,
    matcher::Matcher,
    registry::{self, Served, Whose},
    request::ListOptions,
    revision::Vector,
};

/// What a list answers: entries of one page in key order, and the list's metadata.
#[derive(Debug)]
pub(crate) struct Page {
    pub entries: Vec<(Arc<str>, Entry)>,
    pub revision: Vector,
    pub token: Option<String>,
    pub remaining: Option<usize>,
}

impl Page {
    /// Lets go of it. What it holds may be held by nobody else any more, and there may be much.
    pub(crate) async fn forget(mut self) {
        let mut pieces = Pieces::default();
        while self.entries.pop().is_some() {
            pieces.copied(0).await;
        }
    }
}

/// Where a paged list goes on. Opaque to clients.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Token {
    /// The version of this form.
    #[serde(rename = "v")]
    version: String,
    /// The revision of all pages; empty to go on with whatever is there.
    #[serde(rename = "rv")]
    revision: String,
    /// The key to go on with.
    start: String,
    /// When the first page was read, in seconds.
    #[serde(rename = "at")]
    begun: i64,
    /// How many objects are left from there on, if that is told: counted once for all pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<usize>,
}

/// How long a list can be paged through as it was when it began: as long as upstream's servers
/// promise, and clients count on being told when it is over.
const PAGED_WITHIN: i64 = 300;
/// How many objects are brought into the version of a request at once.
const SHOWN_TOGETHER: usize = 500;
const TOKEN_VERSION: &str = "insula.io/v1";

impl Token {
    fn new(revision: String, start: String, begun: i64) -> Self {
        Self { version: TOKEN_VERSION.into(), revision, start, begun, left: None }
    }

    fn encode(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    }

    fn decode(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            let text = "invalid continue token: continue key is not valid";
            ApiError::bad_request(format!("{text}{why}"))
        };
        // Bits too many in the last character are nobody's concern, as in Go.
        const LENIENT: GeneralPurpose =
            GeneralPurpose::new(&alphabet::URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));
        let bytes = LENIENT.decode(text);
        let bytes = bytes.map_err(|error| bad(&not_base64(text, &error)))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| match bytes.first() {
            // As Go's decoder would say it.
            Some(first) if !first.is_ascii() => {
                let told = char::from(*first).escape_debug().to_string();
                let told = told.replace("\\u{", "\\u00").replace('}', "");
                bad(&format!(": invalid character '{told}' looking for beginning of value"))
            }
            _ => bad(""),
        })?;
        if token.version != TOKEN_VERSION {
            return Err(bad(""));
        }
        Ok(token)
    }

    /// What is wrong with a token that is not used.
    pub(crate) fn check(text: &str) -> Result<()> {
        Self::decode(text).map(drop)
    }

    /// The list can no longer be had as it was.
    fn is_late(&self, now: i64) -> bool {
        !self.revision.is_empty() && !(0..=PAGED_WITHIN).contains(&(now - self.begun))
    }

    /// The answer when it is late: with a token for whatever is there now.
    fn expired(&self) -> ApiError {
        let mut error = ApiError::expired(
            "The provided continue parameter is too old to display a consistent list \
             result. You can start a new list without the continue parameter, or use the \
             continue token in this response to retrieve the remainder of the results. \
             Continuing with the provided token results in an inconsistent list - objects \
             that were created, modified, or deleted between the time the first chunk was \
             returned and now may show up in the list.",
        );
        error.fresh_token = Some(Self::new(String::new(), self.start.clone(), self.begun).encode());
        error
    }
}

/// Why Go's decoder refuses a text.
fn not_base64(text: &str, error: &base64::DecodeError) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) => *at,
        // The last group lacks something.
        _ => text.len() / 4 * 4,
    };
    format!(": illegal base64 data at input byte {at}")
}

/// Reads one object.
pub(crate) async fn get(
    served: &Served,
    store: &dyn Store,
    key: &str,
    name: &str,
    at: ReadAt,
) -> Result<Entry> {
    opened(find(served, store, key, name, at).await?)
}

/// As [`get`], for those who can do with less than all of an object that cannot be opened.
pub(crate) async fn find(
    served: &Served,
    store: &dyn Store,
    key: &str,
    name: &str,
    at: ReadAt,
) -> Result<Entry> {
    let snapshot = store.read(&served.collection, at).await?;
    snapshot
        .get(key)
        .cloned()
        .ok_or_else(|| ApiError::not_found(&served.resource.group, &served.resource.name, name))
}

/// An entry that can be shown as it is; an error if it lies there sealed and cannot be opened.
pub(crate) fn opened(entry: Entry) -> Result<Entry> {
    Ok(Entry { value: entry.value.opened()?, ..entry })
}

/// As [`opened`], for who asked for `form`: metadata can be told without the key.
pub(crate) fn opened_for(form: Form, entry: Entry) -> Result<Entry> {
    match form {
        Form::PartialMetadata | Form::PartialMetadataList => {
            Ok(Entry { value: entry.value.glanced(), ..entry })
        }
        Form::Object | Form::Table => opened(entry),
    }
}

/// The partitions of a list, each with its view.
async fn snapshots(
    served: &Served,
    places: &[(Arc<str>, Arc<dyn Store>)],
    options: &ListOptions,
    token: Option<&Token>,
) -> Result<Vec<Snapshot>> {
    let names: Vec<&str> = places.iter().map(|(name, _)| &**name).collect();
    let at: Vec<ReadAt> = match (token, options.resource_version.as_str()) {
        (Some(token), _) if token.revision.is_empty() => vec![ReadAt::Latest; places.len()],
        (Some(token), _) => {
            let vector = Vector::parse(&token.revision, &names)?;
            vector.0.iter().map(|(_, revision)| ReadAt::Exactly(*revision)).collect()
        }
        (None, "") => vec![ReadAt::Latest; places.len()],
        (None, "0") => vec![ReadAt::Any; places.len()],
        (None, text) => {
            let vector = Vector::parse(text, &names)?;
            let at = |revision| {
                if options.is_exact() {
                    ReadAt::Exactly(revision)
                } else {
                    ReadAt::NotOlderThan(revision)
                }
            };
            vector.0.iter().map(|(_, revision)| at(*revision)).collect()
        }
    };
    let mut out = Vec::with_capacity(places.len());
    for ((_, store), at) in places.iter().zip(at) {
        match (store.read(&served.collection, at).await, token) {
            (Ok(snapshot), _) => out.push(snapshot),
            (Err(StoreError::Compacted { .. }), Some(token)) => return Err(token.expired()),
            (Err(error), _) => return Err(error.into()),
        }
    }
    Ok(out)
}

/// Whether views of several partitions make one list: what moves between them is in one of them,
/// and none was made before what it shows came to it.
pub(crate) fn check_together(
    places: &[(Arc<str>, Arc<dyn Store>)],
    snapshots: &[Snapshot],
) -> Result<()> {
    for snapshot in snapshots {
        snapshot.check_all()?;
    }
    let names = places.iter().map(|(name, _)| &**name);
    Ok(insula_partition::fences::check_together(names.zip(snapshots))?)
}

/// Reads one page of a list.
pub(crate) async fn list(
    server: &Server,
    served: &Served,
    places: &[(Arc<str>, Arc<dyn Store>)],
    whose: &Whose,
    namespace: &str,
    options: &ListOptions,
) -> Result<Page> {
    let matcher =
        Matcher::parse(options.labels.as_deref(), options.fields.as_deref(), &served.resource)?;
    let token = options.token.as_deref().map(Token::decode).transpose()?;
    let now = Timestamp::now().as_second();
    if let Some(token) = token.as_ref().filter(|it| it.is_late(now)) {
        return Err(token.expired());
    }
    let mut snapshots = snapshots(served, places, options, token.as_ref()).await?;
    let prefix = registry::prefix(whose, namespace);
    let wanted = options.name();
    let one = wanted.as_deref().map(|name| Named::new(served, whose, namespace, name));
    let mut on_node = Vec::new();
    if let Some(node) = matcher.node(&served.resource) {
        let is_fixed = token.is_some() || options.is_exact();
        for (place, snapshot) in places.iter().zip(&mut snapshots) {
            on_node.push(pods_on((server, served), place, snapshot, is_fixed, node, &prefix).await);
        }
    }
    if 1 < snapshots.len() {
        check_together(places, &snapshots)?;
    }
    let start = token.as_ref().map(|token| token.start.as_str());
    // Of each partition a page needs no more than its own entries.
    let enough = if 0 < options.limit { options.limit + 1 } else { usize::MAX };
    let mut entries: Vec<(Arc<str>, Entry)> = Vec::new();
    let mut pieces = Pieces::default();
    for (index, snapshot) in snapshots.iter().enumerate() {
        let keys = on_node.get(index).and_then(Option::as_ref);
        let found = candidates(snapshot, &prefix, start, keys.or(one.as_ref()));
        let found = found.filter(|(key, _)| options.is_of_slots(key));
        if served.is_converted() {
            entries.extend(shown(server, served, &matcher, found, enough).await?);
            continue;
        }
        let most = entries.len().saturating_add(enough);
        for (key, entry) in found {
            if most <= entries.len() {
                break;
            }
            if matcher.matches(&served.resource, entry) {
                entries.push((key.clone(), entry.clone()));
            }
            match matcher.is_empty() {
                true => pieces.copied(0).await,
                false => pieces.read(0).await,
            }
        }
    }
    if 1 < snapshots.len() {
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
    }
    let names = places.iter().map(|(name, _)| name.clone());
    let revision = Vector(names.zip(snapshots.iter().map(Snapshot::revision)).collect());
    let (mut next, mut remaining) = (None, None);
    if 0 < options.limit && options.limit < entries.len() {
        let start = entries[options.limit].0.to_string();
        entries.truncate(options.limit);
        let mut token = match token.filter(|it| !it.revision.is_empty()) {
            Some(token) => Token { start, ..token },
            None => Token::new(revision.to_string(), start, now),
        };
        if matcher.is_empty() && options.slots.is_none() {
            let known = token.left.and_then(|left| left.checked_sub(options.limit));
            let count = || {
                let left = snapshots.iter().map(|it| it.range(&prefix, Some(&token.start)).count());
                left.sum()
            };
            remaining = Some(known.unwrap_or_else(count));
            token.left = remaining;
        }
        next = Some(token.encode());
    }
    Ok(Page { entries, revision, token: next, remaining })
}

/// The objects that a selector can mean.
pub(crate) enum Named {
    /// Of one key.
    Key(Arc<str>),
    /// Of these, in order.
    Keys(Vec<Arc<str>>),
    /// In all namespaces; how their keys end.
    End(String),
}

impl Named {
    fn new(served: &Served, whose: &Whose, namespace: &str, name: &str) -> Self {
        match whose {
            Whose::One(tenant) if !served.resource.is_namespaced() || !namespace.is_empty() => {
                Self::Key(registry::key(tenant, namespace, name).into())
            }
            _ => Self::End(format!("/{name}")),
        }
    }
}

/// The pods of a node whose keys begin with `prefix`, if they are known without looking at all pods.
///
/// They may be known as of later than `snapshot`, which is then one of that time; unless it
/// `is_fixed`.
pub(crate) async fn pods_on(
    (server, served): (&Server, &Served),
    (partition, store): &(Arc<str>, Arc<dyn Store>),
    snapshot: &mut Snapshot,
    is_fixed: bool,
    node: &str,
    prefix: &str,
) -> Option<Named> {
    // Whoever may read less of it sees the same pods there.
    let whole = server.partitions.store(partition)?;
    let (revision, keys) = server.bound.keys(partition, &whole, node, prefix).await.ok()?;
    if revision != snapshot.revision() {
        if is_fixed || revision < snapshot.revision() {
            return None;
        }
        *snapshot = store.read(&served.collection, ReadAt::Exactly(revision)).await.ok()?;
    }
    Some(Named::Keys(keys))
}

/// Entries that a list may have, in key order.
pub(crate) fn candidates<'s>(
    snapshot: &'s Snapshot,
    prefix: &'s str,
    start: Option<&'s str>,
    named: Option<&'s Named>,
) -> Box<dyn Iterator<Item = (&'s Arc<str>, &'s Entry)> + Send + 's> {
    match named {
        None => Box::new(snapshot.range(prefix, start)),
        Some(Named::Key(key)) => {
            let is_ahead = start.is_none_or(|start| start <= &**key);
            let entry = snapshot.get(key).filter(|_| is_ahead);
            Box::new(entry.into_iter().map(move |entry| (key, entry)))
        }
        Some(Named::Keys(keys)) => {
            let ahead = keys.iter().filter(move |key| start.is_none_or(|start| start <= &***key));
            Box::new(ahead.filter_map(|key| Some((key, snapshot.get(key)?))))
        }
        Some(Named::End(end)) => {
            let found = snapshot.range(prefix, start);
            Box::new(found.filter(|(key, _)| key.ends_with(end.as_str())))
        }
    }
}

/// The first of `found` that match as they are shown, which may be otherwise than they are kept.
async fn shown<'s>(
    server: &Server,
    served: &Served,
    matcher: &Matcher,
    mut found: impl Iterator<Item = (&'s Arc<str>, &'s Entry)>,
    enough: usize,
) -> Result<Vec<(Arc<str>, Entry)>> {
    let mut matching: Vec<(Arc<str>, Entry)> = Vec::new();
    loop {
        let missing = enough.saturating_sub(matching.len());
        // Of those that a selector picks from it is not known how many are needed.
        let most = match missing {
            0 => break,
            _ if matcher.is_empty() => missing.min(SHOWN_TOGETHER),
            _ => SHOWN_TOGETHER,
        };
        let mut some: Vec<(Arc<str>, Entry)> =
            found.by_ref().take(most).map(|(key, entry)| (key.clone(), entry.clone())).collect();
        if some.is_empty() {
            break;
        }
        for (_, entry) in &mut some {
            *entry = opened(entry.clone())?;
        }
        server.show(served, some.iter_mut().map(|(_, entry)| entry)).await?;
        some.retain(|(_, entry)| matcher.matches(&served.resource, entry));
        matching.extend(some);
    }
    matching.truncate(enough);
    Ok(matching)
}

/// How fresh a read of one object must be.
pub(crate) fn read_at(resource_version: &str) -> Result<ReadAt> {
    match resource_version {
        "" => Ok(ReadAt::Latest),
        "0" => Ok(ReadAt::Any),
        text => match text.parse() {
            Ok(revision) => Ok(ReadAt::NotOlderThan(Revision(revision))),
            Err(_) => Err(crate::revision::invalid(text)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_can_be_paged_through_for_a_while() {
        let token = Token::decode(&Token::new("7".into(), "acme/ns/x".into(), 1000).encode());
        let token = token.unwrap();
        assert!(!token.is_late(1000) && !token.is_late(1300));
        assert!(token.is_late(1301) && token.is_late(999));
        let fresh = Token::decode(&token.expired().fresh_token.unwrap()).unwrap();
        assert_eq!((fresh.revision.as_str(), fresh.start.as_str()), ("", "acme/ns/x"));
        assert!(!fresh.is_late(100_000));
        assert!(Token::decode("e30").is_err() && Token::decode("!").is_err());
    }
}
