//! Resource quotas: how much of what a namespace may have.
//!
//! The last in the chain, because what it lets in is charged: the usage in a quota's status grows
//! by compare and set, so two requests at the same time never both take what is left. What a
//! request was charged that then failed is given back, if nobody else has touched the quota since;
//! whatever else is freed is found by whoever counts again.

use std::collections::BTreeMap;

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::{
    object::{self, Stored},
    pods::add,
    quantity::Quantity,
    quota::{
        amounts::{Amounts, read},
        scopes,
        usage::{Kind, Of, is_matching, missing, usage},
    },
};
use insula_partition::{
    snapshot::Entry,
    store::{Change, Expect, ReadAt, Revision, Store, StoreError, Write},
};
use serde_json::{Value, json};

use crate::{
    admission::{Admission, Operation},
    error::{ApiError, Result},
    registry::{self, Served},
};

/// What one request is charged.
struct Charge {
    /// Of the quota's resources, what it uses more.
    more: Amounts,
}

/// A charge that was written.
#[derive(Debug)]
pub(in crate::admission) struct Receipt {
    key: String,
    /// The quota with it.
    at: Revision,
    more: Amounts,
}

/// Charges all quotas of the namespace, or refuses.
pub(in crate::admission) fn charge<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(it) = it.filter(|_| !admission.namespace.is_empty()) else { return Ok(()) };
        let resource = admission.resource();
        let kind = Of { group: &resource.group, resource: &resource.name };
        if !handles(kind.kind(), admission, it) {
            return Ok(());
        }
        let Some(served) = admission.server.registry.any_version("", "resourcequotas") else {
            return Ok(());
        };
        let (tenant, namespace) = (admission.tenant()?, admission.namespace.as_str());
        let prefix = registry::key(tenant, namespace, "");
        let snapshot = admission.server.at_hand(served, tenant, namespace, ReadAt::Any).await?;
        let found: Vec<(String, Entry)> = snapshot
            .range(&prefix, None)
            .map(|(key, entry)| (key.to_string(), entry.clone()))
            .collect();
        // All are looked at before any is charged.
        let mut charged = Vec::new();
        for (key, entry) in found {
            let stored = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
            if let Some(charge) = judge(admission, kind, it, &stored.object)? {
                charged.push((key, entry, stored, charge));
            }
        }
        if admission.dry_run {
            return Ok(());
        }
        for (key, entry, stored, charge) in charged {
            take(admission, kind, it, (key, entry), stored, charge).await?;
        }
        Ok(())
    }
    .boxed()
}

/// Whether the request can change what is used.
fn handles(kind: Kind, admission: &Admission<'_>, it: &Value) -> bool {
    let is_update = admission.operation == Operation::Update;
    match (kind, admission.subresource.as_ref()) {
        (Kind::Pods, "resize") => is_update,
        (Kind::Pods, "") if is_update => {
            let ends = |it: &Value| scopes::has_deadline(it);
            admission.old.is_some_and(|old| ends(old) != ends(it))
        }
        (Kind::Services | Kind::Claims, "") => true,
        // Reviews and the like are kept nowhere.
        (_, "") => {
            let resource = admission.resource();
            // Nor may what tells of a full quota fill it.
            !is_update && resource.is_stored() && resource.name != "events"
        }
        _ => false,
    }
}

/// What a quota is charged; `None` if it has nothing to do with the request.
fn judge(
    admission: &Admission<'_>,
    kind: Of<'_>,
    it: &Value,
    quota: &Value,
) -> Result<Option<Charge>> {
    let name = object::name(quota);
    let hard = read(object::at(quota, &["status", "hard"]));
    let restricted: Vec<&String> = hard.keys().filter(|name| is_matching(kind, name)).collect();
    if restricted.is_empty() || !scopes::match_all(kind.kind(), quota, it) {
        return Ok(None);
    }
    if let Some(why) = missing(kind, it, &restricted) {
        return Err(admission.forbidden(Some(it), &format!("failed quota: {name}: {why}")));
    }
    let used = read(object::at(quota, &["status", "used"]));
    if restricted.iter().any(|it| !used.contains_key(*it)) {
        let names: Vec<&str> = restricted.iter().map(|it| it.as_str()).collect();
        let why = format!("status unknown for quota: {name}, resources: {}", names.join(","));
        return Err(admission.forbidden(Some(it), &why));
    }
    let mut more = usage(kind, it);
    let negative: Vec<&str> =
        more.iter().filter(|(_, it)| it.is_negative()).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        let why = format!("quota usage is negative for resource(s): {}", negative.join(","));
        return Err(admission.forbidden(Some(it), &why));
    }
    if let Some(old) = admission.old.filter(|_| admission.operation == Operation::Update)
        && scopes::match_all(kind.kind(), quota, old)
    {
        for (name, before) in usage(kind, old) {
            if let Some(amount) = more.get_mut(&name) {
                *amount = amount.saturating_sub(before);
            }
        }
    }
    more.retain(|name, it| hard.contains_key(name) && !it.is_zero() && !it.is_negative());
    if more.is_empty() {
        return Ok(None);
    }
    let mut total = used.clone();
    add(&mut total, &more);
    let exceeded: Vec<&String> =
        more.keys().filter(|name| hard.get(*name) < total.get(*name)).collect();
    if exceeded.is_empty() {
        return Ok(Some(Charge { more }));
    }
    let told = |of: &Amounts| {
        let part = |name: &&String| format!("{name}={}", of.get(*name).unwrap_or(&Quantity::ZERO));
        exceeded.iter().map(part).collect::<Vec<_>>().join(",")
    };
    let why = format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        told(&more),
        told(&used),
        told(&hard)
    );
    Err(admission.forbidden(Some(it), &why))
}

/// Writes a charge into the quota's status, as it is by then.
async fn take(
    admission: &Admission<'_>,
    kind: Of<'_>,
    it: &Value,
    (key, mut entry): (String, Entry),
    mut stored: Stored,
    mut charge: Charge,
) -> Result<()> {
    let Some(served) = admission.server.registry.any_version("", "resourcequotas") else {
        return Ok(());
    };
    let (tenant, namespace) = (admission.tenant()?, admission.namespace.as_str());
    let (_, store) = served.place(&admission.server.partitions, tenant, namespace, "");
    // Whoever was faster took something: some request gets on each time, until this one's time is
    // over.
    loop {
        let mut used = read(object::at(&stored.object, &["status", "used"]));
        add(&mut used, &charge.more);
        match set(&*store, served, &key, &entry, &mut stored, &used).await {
            Ok(at) => {
                admission.receipts.lock().push(Receipt { key, at, more: charge.more });
                return Ok(());
            }
            Err(StoreError::Conflict { found: Some(found), .. }) => entry = found,
            // A quota that is gone limits nothing.
            Err(StoreError::Conflict { found: None, .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        admission.go_on().await?;
        stored = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        match judge(admission, kind, it, &stored.object)? {
            Some(again) => charge = again,
            None => return Ok(()),
        }
    }
}

/// Writes what is used into a quota that is still `entry`.
async fn set(
    store: &dyn Store,
    served: &Served,
    key: &str,
    entry: &Entry,
    stored: &mut Stored,
    used: &Amounts,
) -> Result<Revision, StoreError> {
    let texts: BTreeMap<&String, String> =
        used.iter().map(|(name, it)| (name, it.to_string())).collect();
    stored.object["status"]["used"] = json!(texts);
    let write = Write::durable(
        served.collection.clone(),
        key,
        Expect::At(entry.modified),
        Change::Put(stored.encoded().into()),
    );
    Ok(store.write(write).await?.entry.modified)
}

impl Admission<'_> {
    /// Nothing was written: what was charged for it is given back. A quota that somebody else has
    /// changed meanwhile is left to whoever counts, who may have counted already.
    pub(crate) async fn undo(&self) {
        let receipts = std::mem::take(&mut *self.receipts.lock());
        for receipt in receipts {
            if let Err(error) = self.give_back(&receipt).await {
                tracing::debug!(quota = receipt.key, %error, "a charge is left to be counted");
            }
        }
    }

    async fn give_back(&self, receipt: &Receipt) -> Result<()> {
        let Receipt { key, at, more } = receipt;
        let Some(served) = self.server.registry.any_version("", "resourcequotas") else {
            return Ok(());
        };
        let (tenant, namespace) = (self.tenant()?, self.namespace.as_str());
        let (_, store) = served.place(&self.server.partitions, tenant, namespace, "");
        let snapshot = store.read(&served.collection, ReadAt::NotOlderThan(*at)).await?;
        let Some(entry) = snapshot.get(key).filter(|it| it.modified == *at) else { return Ok(()) };
        let mut stored = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        let mut used = read(object::at(&stored.object, &["status", "used"]));
        for (name, amount) in more {
            if let Some(used) = used.get_mut(name) {
                *used = used.saturating_sub(*amount);
            }
        }
        match set(&*store, served, key, entry, &mut stored, &used).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
