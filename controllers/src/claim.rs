//! Which objects an owner manages: those it made, and orphans that its selector matches.
//!
//! An object that has no managing owner and matches is adopted; one that is managed but no longer
//! matches is released. [`sort`] decides, [`claim`] acts, and [`wake_claimants`] asks for that when
//! an object changes.

use std::sync::Arc;

use insula_api::selector::{Selector, SelectorError};
use insula_client::{Change, Client, Kind, Object, ObjectKey, Patch, Tenanted, chain};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use crate::{
    controller::ReconcileError,
    informers::Selectors,
    objects::{controller_of, controller_reference, selects},
    queue::Queue,
};

/// A kind that manages the objects that its selector matches.
pub(crate) trait Claimant: Kind + k8s_openapi::Resource {
    /// `None` where there is no specification, or it selects nothing.
    fn selector(&self) -> Option<Result<Selector, SelectorError>>;
}

/// Whether `owner` would manage `object` if nobody did. An invalid selector matches nothing; the
/// owner's own reconcile reports it.
pub(crate) fn wants<O: Claimant>(owner: &O, object: &impl Object) -> bool {
    matches!(owner.selector(), Some(Ok(selector)) if selects(&selector, object))
}

/// Asks for reconciles of those whom a change of an object concerns: who manages it or did, and,
/// where nobody does, all who want it.
pub(crate) fn wake_claimants<O: Claimant, D: Object>(
    change: &Change<'_, D>,
    owners: &Selectors<O>,
    queue: &Queue<ObjectKey>,
) {
    for object in [change.old, change.new].into_iter().flatten() {
        if let Some(owner) = controller_of(&object.object).filter(|it| it.kind == O::KIND) {
            queue.add(ObjectKey::new(&object.tenant, object.namespace(), &owner.name));
        }
    }
    let Some(object) = change.new.filter(|it| !it.is_deleting()) else { return };
    if controller_of(&object.object).is_some() {
        return;
    }
    owners.selecting(object).iter().for_each(|owner| queue.add(owner.key()));
}

/// What to do with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Keep,
    Adopt,
    Release,
    /// Someone else's, or nobody's.
    Leave,
}

/// Decides about one object.
fn sort<D: Object>(
    owner_uid: &str,
    owner_deleting: bool,
    selector: &Selector,
    object: &Tenanted<D>,
) -> Claim {
    let matches = selects(selector, &object.object);
    match controller_of(&object.object) {
        Some(controller) if controller.uid != owner_uid => Claim::Leave,
        Some(_) if matches => Claim::Keep,
        // What an owner that goes away does not want any more, the garbage collector will judge.
        Some(_) if owner_deleting => Claim::Leave,
        Some(_) => Claim::Release,
        None if matches && !owner_deleting && !object.is_deleting() => Claim::Adopt,
        None => Claim::Leave,
    }
}

/// Adopts and releases as needed; returns the objects that `owner` manages.
pub(crate) async fn claim<O: Kind, D: Kind>(
    client: &Client,
    owner: &Tenanted<O>,
    selector: &Selector,
    candidates: Vec<Arc<Tenanted<D>>>,
) -> Result<Vec<Arc<Tenanted<D>>>, ReconcileError> {
    let mut claimed = Vec::with_capacity(candidates.len());
    let mut owner_checked = false;
    for object in candidates {
        match sort(owner.uid(), owner.is_deleting(), selector, &object) {
            Claim::Keep => claimed.push(object),
            Claim::Leave => (),
            Claim::Adopt => {
                // The local copy may not know that the owner is gone.
                if !owner_checked {
                    check_owner(client, owner).await?;
                    owner_checked = true;
                }
                match adopt(client, owner, &object).await {
                    Ok(adopted) => claimed.push(Arc::new(adopted)),
                    Err(error) if error.is_not_found() => (),
                    Err(error) => return Err(error.into()),
                }
            }
            Claim::Release => match release(client, owner, &object).await {
                Ok(()) => (),
                // Gone, or another object under this name, or released already.
                Err(error) if error.is_not_found() || error.is_conflict() || error.is_invalid() => {
                    tracing::debug!(object = %object.key(), error = chain(&error), "not released");
                }
                Err(error) => return Err(error.into()),
            },
        }
    }
    Ok(claimed)
}

async fn check_owner<O: Kind>(client: &Client, owner: &Tenanted<O>) -> Result<(), ReconcileError> {
    let api = client.tenant(&owner.tenant).namespaced::<O>(owner.namespace());
    let live = api.get(owner.name()).await?;
    if live.uid() != owner.uid() || live.is_deleting() {
        return Err(ReconcileError::Incomplete(format!("{} is going away", owner.key())));
    }
    Ok(())
}

async fn adopt<O: Kind, D: Kind>(
    client: &Client,
    owner: &Tenanted<O>,
    object: &Tenanted<D>,
) -> Result<Tenanted<D>, insula_client::Error> {
    let reference: OwnerReference = controller_reference(owner);
    // The uid makes the server refuse should this be another object by now.
    let patch = Patch::Strategic(json!({
        "metadata": {"uid": object.uid(), "ownerReferences": [reference]},
    }));
    let api = client.tenant(&object.tenant).namespaced::<D>(object.namespace());
    api.patch(object.name(), &patch).await
}

async fn release<O: Kind, D: Kind>(
    client: &Client,
    owner: &Tenanted<O>,
    object: &Tenanted<D>,
) -> Result<(), insula_client::Error> {
    let patch = Patch::Strategic(json!({
        "metadata": {
            "uid": object.uid(),
            "ownerReferences": [{"$patch": "delete", "uid": owner.uid()}],
        },
    }));
    let api = client.tenant(&object.tenant).namespaced::<D>(object.namespace());
    api.patch(object.name(), &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};

    use super::*;

    #[track_caller]
    fn check(
        owner: Option<&str>,
        matches: bool,
        owner_deleting: bool,
        deleting: bool,
        expected: Claim,
    ) {
        let mut pod = Pod::default();
        let labels = [("app".to_owned(), if matches { "web" } else { "db" }.to_owned())];
        pod.metadata.labels = Some(labels.into());
        pod.metadata.owner_references = owner.map(|uid| {
            vec![OwnerReference {
                uid: uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]
        });
        pod.metadata.deletion_timestamp = deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        let pod = Tenanted { tenant: TenantName::parse("acme").unwrap(), object: pod };
        let selector = Selector::parse("app=web").unwrap();
        assert_eq!(sort("me", owner_deleting, &selector, &pod), expected);
    }

    #[test]
    fn claims() {
        check(Some("me"), true, false, false, Claim::Keep);
        check(Some("me"), true, true, true, Claim::Keep);
        check(Some("me"), false, false, false, Claim::Release);
        check(Some("me"), false, true, false, Claim::Leave);
        check(Some("other"), true, false, false, Claim::Leave);
        check(None, true, false, false, Claim::Adopt);
        check(None, true, true, false, Claim::Leave);
        check(None, true, false, true, Claim::Leave);
        check(None, false, false, false, Claim::Leave);
    }
}
