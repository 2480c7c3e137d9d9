//! Sends pods away that use devices with taints which their claims do not tolerate, or no longer
//! (KEP-5055).
//!
//! Drivers taint devices in their slices, which are the fleet's. What a claim of any tenant was given
//! says which devices it uses and what of them it tolerates. Rules by which administrators taint
//! devices are of a version of the API that is not served, as by default upstream.

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_client::{Change, Client, EventRecorder, EventType, ObjectKey, Tenanted};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Pod,
        resource::v1::{
            DeviceRequestAllocationResult, DeviceToleration, ResourceClaim, ResourceSlice,
        },
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use parking_lot::Mutex;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::{Informers, pool_of},
    objects::{controller_uid, disruption, is_pod_finished, node_of},
    pod_control::disrupt,
    queue::Queue,
    resource_claims::{Called, asked_by, called},
    taints::NO_EXECUTE,
};

/// A taint for which pods have to go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taint {
    key: String,
    value: String,
    since: Option<Timestamp>,
}

impl Taint {
    /// `None` if nobody has to go for it.
    fn new(key: &str, value: Option<&str>, effect: &str, since: Option<&Time>) -> Option<Self> {
        (effect == NO_EXECUTE).then(|| Self {
            key: key.to_owned(),
            value: value.unwrap_or_default().to_owned(),
            since: since.map(|it| it.0),
        })
    }
}

/// Whether a toleration is of a taint.
fn tolerates(it: &DeviceToleration, taint: &Taint) -> bool {
    let key = it.key.as_deref().unwrap_or_default();
    if it.effect.as_deref() != Some(NO_EXECUTE) || !key.is_empty() && key != taint.key {
        return false;
    }
    match it.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => it.value.as_deref().unwrap_or_default() == taint.value,
        Some(_) => false,
    }
}

/// When who has been given a device with these taints has to go, if ever. A taint that does not
/// say since when it is there counts from `seen`.
fn end(taints: &[Taint], tolerations: &[DeviceToleration], seen: Timestamp) -> Option<Timestamp> {
    let end_of = |taint: &Taint| {
        let since = taint.since.unwrap_or(seen);
        let of_it: Vec<_> = tolerations.iter().filter(|it| tolerates(it, taint)).collect();
        if of_it.iter().any(|it| it.toleration_seconds.is_none()) {
            return None;
        }
        let seconds = of_it.iter().filter_map(|it| it.toleration_seconds).min().unwrap_or(0);
        // So far away that no clock gets there.
        since.checked_add(SignedDuration::from_secs(seconds.max(0))).ok()
    };
    taints.iter().filter_map(end_of).min()
}

/// The taints of a device that the newest slices of its pool show.
fn in_slices(slices: &[Arc<Tenanted<ResourceSlice>>], device: &str) -> Vec<Taint> {
    let newest = slices.iter().map(|it| it.spec.pool.generation).max();
    let slices = slices.iter().filter(|it| Some(it.spec.pool.generation) == newest);
    let devices = slices.flat_map(|it| it.spec.devices.iter().flatten());
    let taints = devices.filter(|it| it.name == device).flat_map(|it| it.taints.iter().flatten());
    taints
        .filter_map(|it| {
            Taint::new(&it.key, it.value.as_deref(), &it.effect, it.time_added.as_ref())
        })
        .collect()
}

/// See the module. Keys are pods.
#[derive(Debug)]
pub(crate) struct DeviceTaints {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    /// Pods that will have to go: their uids, and since when it counts.
    waiting: Mutex<HashMap<ObjectKey, (String, Timestamp)>>,
}

impl DeviceTaints {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("device-taint-eviction");
        Self { client, informers, events, waiting: Mutex::default() }
    }

    /// The pods that hold a claim.
    fn add_holders(claim: &Tenanted<ResourceClaim>, queue: &Queue<ObjectKey>) {
        let holders = claim.status.iter().filter_map(|it| it.reserved_for.as_ref()).flatten();
        for it in holders.filter(|it| it.resource == "pods") {
            queue.add(ObjectKey::new(&claim.tenant, claim.namespace(), &it.name));
        }
    }

    fn slice_changed(&self, change: &Change<'_, ResourceSlice>, queue: &Queue<ObjectKey>) {
        for slice in [change.old, change.new].into_iter().flatten() {
            let pool = pool_of(&slice.spec.driver, &slice.spec.pool.name);
            for claim in self.informers.claims_from(&pool) {
                Self::add_holders(&claim, queue);
            }
        }
    }

    fn taints(&self, given: &DeviceRequestAllocationResult) -> Vec<Taint> {
        let slices = self.informers.slices_of(&pool_of(&given.driver, &given.pool));
        in_slices(&slices, &given.device)
    }

    /// When a pod has to go.
    fn end_of(&self, pod: &Tenanted<Pod>, seen: Timestamp) -> Option<Timestamp> {
        let mut first: Option<Timestamp> = None;
        for asked in asked_by(pod) {
            let (name, is_own) = match called(pod, asked) {
                Called::ByName(name) => (name, false),
                Called::Made(name) => (name, true),
                Called::ToBeMade(_) | Called::NotNeeded => continue,
            };
            let key = ObjectKey::new(&pod.tenant, pod.namespace(), name);
            let Some(claim) = self.informers.resource_claims.informer.get(&key) else { continue };
            if is_own && controller_uid(&claim.object) != Some(pod.uid()) {
                continue;
            }
            let Some(status) = &claim.status else { continue };
            if !status.reserved_for.iter().flatten().any(|it| it.uid == pod.uid()) {
                continue;
            }
            let given = status.allocation.as_ref().and_then(|it| it.devices.as_ref());
            for given in given.and_then(|it| it.results.as_ref()).into_iter().flatten() {
                let tolerations = given.tolerations.as_deref().unwrap_or_default();
                let end = end(&self.taints(given), tolerations, seen);
                first = [first, end].into_iter().flatten().min();
            }
        }
        first
    }

    fn say(&self, pod: &Tenanted<Pod>, message: &str) {
        self.events.record(pod, EventType::Normal, "DeviceTaintManagerEviction", message);
    }
}

impl Controller for DeviceTaints {
    const NAME: &'static str = "device-taint-eviction-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| {
            fn seen(pod: &Tenanted<Pod>) -> impl PartialEq {
                let claims = pod.status.as_ref().and_then(|it| it.resource_claim_statuses.as_ref());
                (node_of(pod), claims, pod.uid())
            }
            let Some(pod) = change.new else {
                it.waiting.lock().remove(change.key);
                return;
            };
            if asked_by(pod).next().is_some() && change.old.map(|it| seen(it)) != Some(seen(pod)) {
                keys.add(change.key.clone());
            }
        });
        let keys = queue.clone();
        self.informers.resource_claims.informer.on_change(move |change| {
            for claim in [change.old, change.new].into_iter().flatten() {
                Self::add_holders(claim, &keys);
            }
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.resource_slices.on_change(move |change| it.slice_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await
            && self.informers.resource_claims.informer.synced().await
            && self.informers.resource_slices.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let pod = self.informers.pods.informer.get(key);
        let placed =
            pod.filter(|it| !it.is_deleting() && !is_pod_finished(it) && node_of(it).is_some());
        let Some(pod) = placed else {
            self.waiting.lock().remove(key);
            return Ok(Next::WhenChanged);
        };
        let now = Timestamp::now();
        let seen = self.waiting.lock().get(key).filter(|it| it.0 == pod.uid()).map(|it| it.1);
        let seen = seen.unwrap_or(now);
        match self.end_of(&pod, seen) {
            None => {
                if self.waiting.lock().remove(key).is_some() {
                    self.say(&pod, "Cancelling deletion");
                }
                Ok(Next::WhenChanged)
            }
            Some(end) if now < end => {
                self.waiting.lock().insert(key.clone(), (pod.uid().to_owned(), seen));
                let wait = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                Ok(Next::After(wait.max(Duration::from_millis(10))))
            }
            Some(_) => {
                self.waiting.lock().remove(key);
                self.say(&pod, "Marking for deletion");
                let reason = "DeletionByDeviceTaintManager";
                let message = "Device Taint manager: deleting due to NoExecute taint";
                disrupt(&self.client, &pod, &disruption(reason, message)).await?;
                Ok(Next::WhenChanged)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::{Value, json};

    use super::*;

    /// The second at which the user of a device goes that was first looked at in second 100.
    #[track_caller]
    fn check(taints: &[(&str, Option<i64>)], tolerations: Value, expected: Option<i64>) {
        let second = |it| Timestamp::from_second(it).unwrap();
        let taint = |(key, since): &(&str, Option<i64>)| Taint {
            key: (*key).to_owned(),
            value: "v".into(),
            since: since.map(second),
        };
        let taints: Vec<_> = taints.iter().map(taint).collect();
        let tolerations: Vec<DeviceToleration> = serde_json::from_value(tolerations).unwrap();
        assert_eq!(end(&taints, &tolerations, second(100)).map(|it| it.as_second()), expected);
    }

    #[test]
    fn tolerated_for_so_long() {
        let of = |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        check(&[], json!([]), None);
        check(&[("a", Some(7))], json!([]), Some(7));
        check(&[("a", None)], json!([]), Some(100));
        check(&[("a", Some(7))], json!([of("a", None)]), None);
        check(&[("a", Some(7))], json!([of("a", Some(30))]), Some(37));
        check(&[("a", Some(7))], json!([of("a", Some(30)), of("", Some(20))]), Some(27));
        check(&[("a", Some(7))], json!([of("a", Some(30)), of("", None)]), None);
        check(&[("a", Some(7)), ("b", Some(9))], json!([of("a", None)]), Some(9));
        let equal = |value: &str| json!([{"key": "a", "value": value, "effect": "NoExecute"}]);
        check(&[("a", Some(7))], equal("v"), None);
        check(&[("a", Some(7))], equal("w"), Some(7));
        let placing = json!([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]);
        check(&[("a", Some(7))], placing, Some(7));
    }

    #[test]
    fn the_newest_slices_of_a_pool_count() {
        let slice = |name: &str, generation: i64, effect: &str| {
            let object = json!({
                "metadata": {"name": name},
                "spec": {"driver": "d", "pool": {"name": "p", "generation": generation,
                    "resourceSliceCount": 1}, "devices": [
                        {"name": "gpu", "taints": [{"key": "k", "effect": effect}]}]},
            });
            let object: ResourceSlice = serde_json::from_value(object).unwrap();
            Arc::new(Tenanted { tenant: TenantName::system(), object })
        };
        let old = slice("a", 1, "NoExecute");
        let alone = std::slice::from_ref(&old);
        assert_eq!(in_slices(alone, "gpu").len(), 1);
        assert!(in_slices(alone, "other").is_empty());
        assert!(in_slices(&[old.clone(), slice("b", 2, "NoSchedule")], "gpu").is_empty());
        assert_eq!(in_slices(&[old, slice("b", 2, "NoExecute")], "gpu").len(), 1);
    }
}
