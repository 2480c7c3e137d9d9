//! Whether a definition gets the names that it asks for, and so is served.
//!
//! Any server may decide, and several may at once: each decision is one guarded write of the
//! definition that it is about. Two definitions that ask for the same name never both get it:
//!
//! * who asks later, by revision, gives way to who asked before and was not refused;
//! * who was refused first says so no longer ([`State::Retrying`]), and only then is looked at
//!   again, so that its claim has a new revision that others see.
//!
//! Of two that got the same name, take the one whose claim is newer: whoever accepted it saw the
//! other's claim, or its acceptance, and must have refused.

use std::collections::BTreeSet;

use insula_api::{
    names::TenantName,
    object::{self, Stored},
    time,
};
use insula_custom::definition::Names;
use insula_partition::{
    snapshot::{Entry, Snapshot},
    store::{Change, Expect, ReadAt, Revision, Store, StoreError, Write},
};
use serde_json::{Value, json};

use crate::{
    Server,
    custom::definitions,
    error::{ApiError, Result},
    ownership::Writer,
    registry::Served,
};

/// How often one call looks again after somebody else was faster.
const ROUNDS: usize = 64;

/// A definition, as far as names go.
struct Claim {
    key: String,
    modified: Revision,
    stored: Stored,
    group: String,
    asked: Names,
    accepted: Names,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has all that it asks for.
    Accepted,
    /// It asks, and was not answered.
    Pending,
    Refused,
    /// It was refused, and asks again.
    Retrying,
}

impl Claim {
    fn read(key: &str, entry: &Entry) -> Result<Self> {
        let stored = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        let it = &stored.object;
        let names = |path: &[&str]| -> Names {
            let found = object::at(it, path).cloned().unwrap_or_else(|| json!({}));
            serde_json::from_value(found).unwrap_or_default()
        };
        let (asked, accepted) = (names(&["spec", "names"]), names(&["status", "acceptedNames"]));
        let state = match insula_custom::check::condition(it, "NamesAccepted") {
            Some("True") if asked == accepted && insula_custom::check::is_established(it) => {
                State::Accepted
            }
            Some("False") => State::Refused,
            Some("Unknown") => State::Retrying,
            _ => State::Pending,
        };
        let group = object::text(it, &["spec", "group"]).to_owned();
        Ok(Self {
            key: key.to_owned(),
            modified: entry.modified,
            group,
            asked,
            accepted,
            state,
            stored,
        })
    }
}

/// Decides on all definitions of `tenant` that wait.
pub(crate) async fn settle(server: &Server, tenant: &TenantName) -> Result<()> {
    let served = definitions(server)?;
    let store = served.own(&server.partitions, tenant);
    for _ in 0..ROUNDS {
        let snapshot = store.read(&served.collection, ReadAt::Latest).await?;
        let claims = claims(&snapshot, tenant)?;
        if !round(server, served, &*store, &claims).await? {
            return Ok(());
        }
    }
    Err(ApiError::internal("definitions change faster than they can be decided on"))
}

fn claims(snapshot: &Snapshot, tenant: &TenantName) -> Result<Vec<Claim>> {
    let prefix = format!("{tenant}//");
    snapshot.range(&prefix, None).map(|(key, entry)| Claim::read(key, entry)).collect()
}

/// Decides what can be decided from what was read. True if it has to be read again.
async fn round(
    server: &Server,
    served: &Served,
    store: &dyn Store,
    claims: &[Claim],
) -> Result<bool> {
    let mut again = false;
    for claim in claims.iter().filter(|it| it.state != State::Accepted) {
        if object::is_deleting(&claim.stored.object) {
            continue;
        }
        let Some(status) = decide(claim, claims) else { continue };
        let mut it = claim.stored.object.clone();
        it["status"] = status;
        again = true;
        let place = (&*claim.key, claim.modified);
        if !write(server, served, store, place, &claim.stored, &it).await? {
            break;
        }
    }
    Ok(again)
}

/// Writes a definition as it was decided, as the server's own doing. False if somebody else was
/// faster.
pub(super) async fn write(
    server: &Server,
    served: &Served,
    store: &dyn Store,
    (key, modified): (&str, Revision),
    old: &Stored,
    it: &Value,
) -> Result<bool> {
    let change = match crate::write::is_finished(it) {
        true => Change::Delete,
        false => {
            let writer = Writer::of_server(served, "status");
            let managed = writer.updated(server, &old.object, it, &old.managed, None).await?;
            Change::Put(object::encode_with(it, managed.as_deref()).into())
        }
    };
    let write = Write::durable(served.collection.clone(), key, Expect::At(modified), change);
    match store.write(write).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The new status of a definition that waits; `None` if it stays as it is.
fn decide(claim: &Claim, all: &[Claim]) -> Option<Value> {
    let others = all.iter().filter(|it| it.key != claim.key && it.group == claim.group);
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for other in others {
        let is_before = other.modified < claim.modified
            && matches!(other.state, State::Pending | State::Retrying)
            && !object::is_deleting(&other.stored.object);
        for names in
            [Some(&other.accepted), is_before.then_some(&other.asked)].into_iter().flatten()
        {
            resources.insert(names.plural.as_str());
            resources.insert(names.singular.as_str());
            resources.extend(names.short_names.iter().map(String::as_str));
            kinds.insert(names.kind.as_str());
            kinds.insert(names.list_kind.as_str());
        }
    }
    let (asked, have) = (&claim.asked, &claim.accepted);
    let mut names = have.clone();
    let mut refusal: Option<(&str, String)> = None;
    let mut take = |reason: &'static str, asked: &str, have: &str, used: &BTreeSet<&str>| {
        let is_free = asked == have || !used.contains(asked);
        if !is_free {
            refusal = Some((reason, format!("{asked:?} is already in use")));
        }
        is_free
    };
    if take("PluralConflict", &asked.plural, &have.plural, &resources) {
        names.plural.clone_from(&asked.plural);
    }
    if take("SingularConflict", &asked.singular, &have.singular, &resources) {
        names.singular.clone_from(&asked.singular);
    }
    let mut are_free = true;
    for short in asked.short_names.iter().filter(|it| !have.short_names.contains(it)) {
        are_free &= take("ShortNamesConflict", short, "", &resources);
    }
    if are_free {
        names.short_names.clone_from(&asked.short_names);
    }
    if take("KindConflict", &asked.kind, &have.kind, &kinds) {
        names.kind.clone_from(&asked.kind);
    }
    if take("ListKindConflict", &asked.list_kind, &have.list_kind, &kinds) {
        names.list_kind.clone_from(&asked.list_kind);
    }
    names.categories.clone_from(&asked.categories);
    let mut status = claim.stored.object.get("status").cloned().unwrap_or_else(|| json!({}));
    let mut set = |kind: &str, value: &str, reason: &str, message: &str| {
        set_condition(&mut status, kind, value, reason, message);
    };
    match &refusal {
        Some((reason, message)) => {
            set("NamesAccepted", "False", reason, message);
            if !insula_custom::check::is_established(&claim.stored.object) {
                set("Established", "False", "NotAccepted", "not all names are accepted");
            }
        }
        None if claim.state == State::Refused => {
            set("NamesAccepted", "Unknown", "Retrying", "the names may have become free");
            return Some(status);
        }
        None => {
            set("NamesAccepted", "True", "NoConflicts", "no conflicts found");
            if !insula_custom::check::is_established(&claim.stored.object) {
                let message = "the initial names have been accepted";
                set("Established", "True", "InitialNamesAccepted", message);
            }
        }
    }
    status["acceptedNames"] = as_value(&names);
    (claim.stored.object.get("status") != Some(&status)).then_some(status)
}

fn as_value(names: &Names) -> Value {
    let mut it = json!({
        "plural": names.plural, "singular": names.singular,
        "kind": names.kind, "listKind": names.list_kind,
    });
    if !names.short_names.is_empty() {
        it["shortNames"] = json!(names.short_names);
    }
    if !names.categories.is_empty() {
        it["categories"] = json!(names.categories);
    }
    it
}

/// Sets a condition; its time changes only with its status.
pub(crate) fn set_condition(
    status: &mut Value,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
) {
    let mut condition = json!({
        "type": kind, "status": value, "reason": reason, "message": message,
        "lastTransitionTime": time::now(),
    });
    let list = status.get("conditions").and_then(Value::as_array);
    let mut list = list.cloned().unwrap_or_default();
    match list.iter_mut().find(|it| it["type"] == kind) {
        Some(known) => {
            if known["status"] == value {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => list.push(condition),
    }
    status["conditions"] = list.into();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(name: &str, modified: u64, kind: &str) -> Claim {
        let names = json!({"plural": name, "singular": name, "kind": kind, "listKind": format!("{kind}List")});
        let it = json!({
            "metadata": {"name": format!("{name}.x.y"), "generation": 1},
            "spec": {"group": "x.y", "names": names},
            "status": {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}},
        });
        let entry = Entry { value: it.to_string().into(), modified: Revision(modified) };
        Claim::read(&format!("t//{name}.x.y"), &entry).unwrap()
    }

    fn state(status: &Value) -> (Option<String>, Option<String>) {
        let it = json!({ "status": status });
        let of = |kind| insula_custom::check::condition(&it, kind).map(str::to_owned);
        (of("NamesAccepted"), of("Established"))
    }

    #[test]
    fn who_asked_first_gets_the_name() {
        let all = [claim("a", 5, "Kind"), claim("b", 7, "Kind")];
        let (first, second) = (decide(&all[0], &all).unwrap(), decide(&all[1], &all).unwrap());
        let yes = Some("True".to_owned());
        let no = Some("False".to_owned());
        assert_eq!(state(&first), (yes.clone(), yes));
        assert_eq!(state(&second), (no.clone(), no));
        assert_eq!(second["conditions"][0]["reason"], "ListKindConflict");
        assert_eq!(second["acceptedNames"]["plural"], "b");
        assert_eq!(second["acceptedNames"]["kind"], "");
    }

    /// A store with guarded writes, and servers that decide from what they read at some time.
    fn simulate(steps: &[(u8, u8)]) {
        const N: usize = 3;
        let mut revision = 10;
        let mut stored: Vec<Option<(u64, Value)>> = vec![None; N];
        let mut views: Vec<Vec<Option<(u64, Value)>>> = vec![stored.clone(); 4];
        let read = |view: &[Option<(u64, Value)>]| -> Vec<Claim> {
            let found = view.iter().enumerate().filter_map(|(index, it)| {
                let (modified, it) = it.as_ref()?;
                let entry = Entry { value: it.to_string().into(), modified: Revision(*modified) };
                Claim::read(&index.to_string(), &entry).ok()
            });
            found.collect()
        };
        for (what, who) in steps {
            let (server, index) = (usize::from(*what) % views.len(), usize::from(*who) % N);
            revision += 1;
            match what % 5 {
                0 if stored[index].is_none() => {
                    stored[index] =
                        Some((revision, claim(&format!("n{index}"), 0, "Kind").stored.object));
                }
                1 if *who > 200 => stored[index] = None,
                0 | 1 => views[server] = stored.clone(),
                _ => {
                    let claims = read(&views[server]);
                    let Some(it) = claims.iter().find(|it| it.key == index.to_string()) else {
                        continue;
                    };
                    if it.state == State::Accepted {
                        continue;
                    }
                    let Some(status) = decide(it, &claims) else { continue };
                    let is_guarded =
                        stored[index].as_ref().is_some_and(|(at, _)| *at == it.modified.0);
                    if is_guarded {
                        let mut new = it.stored.object.clone();
                        new["status"] = status;
                        stored[index] = Some((revision, new));
                    }
                }
            }
            let accepted = stored
                .iter()
                .flatten()
                .filter(|(_, it)| object::text(it, &["status", "acceptedNames", "kind"]) == "Kind");
            assert!(accepted.count() <= 1, "two have one name: {steps:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_two_get_one_name(steps in proptest::collection::vec((any::<u8>(), any::<u8>()), 1..60)) {
            simulate(&steps);
        }
    }
}
