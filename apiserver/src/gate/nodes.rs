//! What a node's agent may ask for: of every tenant what its own pods need, and no more.
//!
//! The rules of `system:node` say what agents do at all; this is which objects. Which pods run on
//! a node, and what they refer to, is kept up to date in [`bound`]; what is written of pods and
//! nodes is looked at by admission (`node_restriction`).

mod bound;
mod references;

use insula_api::{object, selector::FieldSelector};
use insula_partition::store::ReadAt;
use serde_json::Value;

pub(crate) use self::bound::Bound;
use self::references::Kind;
use super::denied;
use crate::{
    Server,
    call::Call,
    error::{ApiError, Result},
    rbac::Attributes,
    registry,
};

const LEASES: &str = "kube-node-lease";
const UNRELATED: &str = "no relationship found between node {node} and this object";

/// What has to be so for an agent to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing more than its rules.
    Nothing,
    /// The object is its own, by name.
    OwnName,
    /// All that is asked for is of its node, says a selector.
    OwnSelected,
    /// A pod on it refers to the object.
    Referred(Kind),
    /// The volume of a claim that a pod on it refers to.
    Volume,
    /// The object itself names the node.
    Names,
    /// It never is; why.
    Never(&'static str),
}

fn need(call: &Call, attributes: &Attributes) -> Need {
    const ONE: &str = "can only get individual resources of this type";
    let reads = matches!(call.verb, "get" | "list" | "watch");
    let gets = call.verb == "get";
    let (resource, sub) = (&*call.path.resource, &*call.path.subresource);
    let namespaced = |kind| match (reads && sub.is_empty(), attributes.name.is_empty()) {
        (false, _) => Need::Never("can only read resources of this type"),
        (true, true) => Need::Never("No Object name found"),
        (true, false) => Need::Referred(kind),
    };
    let one = |kind| if gets { Need::Referred(kind) } else { Need::Never(ONE) };
    let own = || match call.verb == "create" && call.path.name.is_empty() {
        true => Need::Nothing,
        false => Need::OwnName,
    };
    match (&*call.path.group, resource) {
        ("", "secrets") => namespaced(Kind::Secret),
        ("", "configmaps") => namespaced(Kind::ConfigMap),
        ("", "persistentvolumeclaims") if sub == "status" => Need::Referred(Kind::Claim),
        ("", "persistentvolumeclaims") => one(Kind::Claim),
        ("", "persistentvolumes") if gets => Need::Volume,
        ("", "persistentvolumes") => Need::Never(ONE),
        ("resource.k8s.io", "resourceclaims") => one(Kind::ResourceClaim),
        ("storage.k8s.io", "volumeattachments") if gets => Need::Names,
        ("storage.k8s.io", "volumeattachments") => Need::Never(ONE),
        ("", "serviceaccounts") if sub == "token" => Need::Referred(Kind::Account),
        ("", "serviceaccounts") => one(Kind::Account),
        ("", "pods") if reads && sub.is_empty() => match call.verb {
            "get" => Need::Referred(Kind::Pod),
            _ if !attributes.name.is_empty() && !attributes.namespace.is_empty() => {
                Need::Referred(Kind::Pod)
            }
            _ => Need::OwnSelected,
        },
        ("", "nodes") => own(),
        ("coordination.k8s.io", "leases") if call.path.namespace != LEASES => {
            Need::Never("can only access leases in the \"kube-node-lease\" system namespace")
        }
        ("coordination.k8s.io", "leases") | ("storage.k8s.io", "csinodes") => own(),
        ("resource.k8s.io", "resourceslices") => match call.verb {
            "create" => Need::Nothing,
            "list" | "watch" | "deletecollection" => Need::OwnSelected,
            _ => Need::Names,
        },
        _ => Need::Nothing,
    }
}

impl Server {
    /// Refuses what is not the business of the agent of `node`.
    pub(super) async fn check_node(
        &self,
        call: &Call,
        node: &str,
        attributes: &Attributes,
    ) -> Result<()> {
        let quoted = format!("'{node}'");
        let unrelated = || UNRELATED.replace("{node}", &quoted);
        let why = match need(call, attributes) {
            Need::Nothing => return Ok(()),
            Need::OwnName if attributes.name == node => return Ok(()),
            Need::OwnName => format!("node {quoted} may only access its own"),
            Need::OwnSelected if selects(call, node) => return Ok(()),
            Need::OwnSelected => {
                "can only list/watch with a spec.nodeName field selector of the own node".into()
            }
            Need::Never(why) => why.into(),
            Need::Referred(kind) => {
                if self.is_referred(call, node, kind, &attributes.name).await? {
                    return Ok(());
                }
                unrelated()
            }
            Need::Volume => {
                if self.is_mounted(call, node).await? {
                    return Ok(());
                }
                unrelated()
            }
            Need::Names => {
                let found =
                    self.kept(call, &call.path.group, &call.path.resource, "", &call.path.name);
                if found.await?.is_some_and(|it| object::text(&it, &["spec", "nodeName"]) == node) {
                    return Ok(());
                }
                unrelated()
            }
        };
        let mut error = denied(&call.identity, attributes);
        error.message = format!("{}: {why}", error.message);
        Err(error)
    }

    /// Whether a pod on `node`, in the tenant and namespace of `call`, refers to an object.
    async fn is_referred(&self, call: &Call, node: &str, kind: Kind, name: &str) -> Result<bool> {
        let Some(tenant) = call.whose.tenant() else { return Ok(false) };
        let place = self.partitions.place(&registry::shard_of_tenant(tenant));
        let prefix = format!("{tenant}/{}/", call.path.namespace);
        if self.bound.refers(&place, node, &prefix, kind, name).await? {
            return Ok(true);
        }
        // A volume's own secrets are asked for on behalf of whoever claims it.
        if kind != Kind::Secret {
            return Ok(false);
        }
        let prefix = format!("{tenant}/");
        for (namespace, claim) in self.bound.claims(&place, node, &prefix).await? {
            let claim = self.kept(call, "", "persistentvolumeclaims", &namespace, &claim).await?;
            let Some(claim) = claim else { continue };
            let volume = object::text(&claim, &["spec", "volumeName"]);
            let Some(volume) = self.kept(call, "", "persistentvolumes", "", volume).await? else {
                continue;
            };
            if claims(&volume, &claim)
                && references::secrets_of_volume(&volume)
                    .any(|it| it == (&*call.path.namespace, name))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the volume that is asked for is that of a claim of a pod on `node`.
    async fn is_mounted(&self, call: &Call, node: &str) -> Result<bool> {
        let Some(tenant) = call.whose.tenant() else { return Ok(false) };
        let found = self.kept(call, "", "persistentvolumes", "", &call.path.name).await?;
        let Some(volume) = found else { return Ok(false) };
        let claim = &volume["spec"]["claimRef"];
        let (namespace, name) =
            (object::text(claim, &["namespace"]), object::text(claim, &["name"]));
        if namespace.is_empty() || name.is_empty() {
            return Ok(false);
        }
        let place = self.partitions.place(&registry::shard_of_tenant(tenant));
        let prefix = format!("{tenant}/{namespace}/");
        self.bound.refers(&place, node, &prefix, Kind::Claim, name).await
    }

    /// An object of the tenant of `call`.
    async fn kept(
        &self,
        call: &Call,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<std::sync::Arc<Value>>> {
        let Some(tenant) = call.whose.tenant() else { return Ok(None) };
        let Some(served) = self.registry.any_version(group, resource) else { return Ok(None) };
        let (_, store) = served.place(&self.partitions, tenant, namespace, name);
        let snapshot = store.read(&served.collection, ReadAt::Any).await?;
        let found = snapshot.get(&registry::key(tenant, namespace, name));
        found.map(|it| self.parsed.of(&it.value).map_err(ApiError::internal)).transpose()
    }
}

/// Whether `volume` and `claim` are each other's.
fn claims(volume: &Value, claim: &Value) -> bool {
    let of = &volume["spec"]["claimRef"];
    object::text(of, &["namespace"]) == object::namespace(claim)
        && object::text(of, &["name"]) == object::name(claim)
}

/// Whether only what is of `node` is asked for.
fn selects(call: &Call, node: &str) -> bool {
    let selector = call.query.get("fieldSelector").map(FieldSelector::parse);
    matches!(selector, Some(Ok(selector)) if selector.required("spec.nodeName") == Some(node))
}
