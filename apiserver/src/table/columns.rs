//! The columns of each resource, as upstream's printers have them.

use insula_api::resources::Resource;

use super::{Cell, Cell::Computed, Cell::Path, Cell::Since, Column, cells, pod};

const fn text(name: &'static str, cell: Cell) -> Column {
    Column { name, kind: "string", priority: 0, cell }
}

const fn wide(name: &'static str, cell: Cell) -> Column {
    Column { name, kind: "string", priority: 1, cell }
}

const fn count(name: &'static str, cell: Cell) -> Column {
    Column { name, kind: "integer", priority: 0, cell }
}

const NAME: Column = text("Name", Path("metadata.name", ""));
const AGE: Column = text("Age", Since("metadata.creationTimestamp"));
const CONTAINERS: Column = wide("Containers", Computed(cells::template_containers));
const IMAGES: Column = wide("Images", Computed(cells::template_images));
const SELECTOR: Column = wide("Selector", Computed(cells::label_selector));

/// The columns of `resource`.
pub(super) fn of(resource: &Resource) -> &'static [Column] {
    match (&*resource.group, &*resource.name) {
        ("", "pods") => {
            const IT: &[Column] = &[
                NAME,
                text("Ready", Computed(pod::ready)),
                text("Status", Computed(pod::status)),
                text("Restarts", Computed(pod::restarts)),
                AGE,
                wide("IP", Path("status.podIP", "<none>")),
                wide("Node", Path("spec.nodeName", "<none>")),
                wide("Nominated Node", Path("status.nominatedNodeName", "<none>")),
                wide("Readiness Gates", Computed(pod::readiness_gates)),
            ];
            IT
        }
        ("apps", "deployments") => {
            const IT: &[Column] = &[
                NAME,
                text("Ready", Computed(cells::ready_of_replicas)),
                count("Up-to-date", Path("status.updatedReplicas", "0")),
                count("Available", Path("status.availableReplicas", "0")),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ];
            IT
        }
        ("apps", "replicasets") | ("", "replicationcontrollers") => {
            const IT: &[Column] = &[
                NAME,
                count("Desired", Path("spec.replicas", "0")),
                count("Current", Path("status.replicas", "0")),
                count("Ready", Path("status.readyReplicas", "0")),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ];
            IT
        }
        ("apps", "statefulsets") => {
            const IT: &[Column] =
                &[NAME, text("Ready", Computed(cells::ready_of_replicas)), AGE, CONTAINERS, IMAGES];
            IT
        }
        ("apps", "daemonsets") => {
            const IT: &[Column] = &[
                NAME,
                count("Desired", Path("status.desiredNumberScheduled", "0")),
                count("Current", Path("status.currentNumberScheduled", "0")),
                count("Ready", Path("status.numberReady", "0")),
                count("Up-to-date", Path("status.updatedNumberScheduled", "0")),
                count("Available", Path("status.numberAvailable", "0")),
                text("Node Selector", Computed(cells::node_selector)),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ];
            IT
        }
        ("batch", "jobs") => {
            const IT: &[Column] = &[
                NAME,
                text("Status", Computed(cells::job_status)),
                text("Completions", Computed(cells::job_completions)),
                text("Duration", Computed(cells::job_duration)),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ];
            IT
        }
        ("batch", "cronjobs") => {
            const IT: &[Column] = &[
                NAME,
                text("Schedule", Path("spec.schedule", "")),
                text("Timezone", Path("spec.timeZone", "<none>")),
                text("Suspend", Computed(cells::suspend)),
                count("Active", Computed(cells::active_jobs)),
                text("Last Schedule", Since("status.lastScheduleTime")),
                AGE,
            ];
            IT
        }
        ("", "services") => {
            const IT: &[Column] = &[
                NAME,
                text("Type", Path("spec.type", "ClusterIP")),
                text("Cluster-IP", Path("spec.clusterIP", "<none>")),
                text("External-IP", Computed(cells::external_ip)),
                text("Port(s)", Computed(cells::service_ports)),
                AGE,
                wide("Selector", Computed(cells::service_selector)),
            ];
            IT
        }
        ("", "nodes") => {
            const IT: &[Column] = &[
                NAME,
                text("Status", Computed(cells::node_status)),
                text("Roles", Computed(cells::node_roles)),
                AGE,
                text("Version", Path("status.nodeInfo.kubeletVersion", "")),
                wide("Internal-IP", Computed(cells::node_internal_ip)),
                wide("External-IP", Computed(cells::node_external_ip)),
                wide("OS-Image", Path("status.nodeInfo.osImage", "<unknown>")),
                wide("Kernel-Version", Path("status.nodeInfo.kernelVersion", "<unknown>")),
                wide(
                    "Container-Runtime",
                    Path("status.nodeInfo.containerRuntimeVersion", "<unknown>"),
                ),
            ];
            IT
        }
        ("" | "events.k8s.io", "events") => {
            const IT: &[Column] = &[
                Column {
                    name: "Last Seen",
                    kind: "string",
                    priority: 0,
                    cell: Computed(cells::event_last_seen),
                },
                text("Type", Path("type", "")),
                text("Reason", Path("reason", "")),
                text("Object", Computed(cells::event_object)),
                wide("Subobject", Path("involvedObject.fieldPath", "")),
                wide("Source", Computed(cells::event_source)),
                text("Message", Path("message", "")),
                wide("First Seen", Since("firstTimestamp")),
                Column { name: "Count", kind: "integer", priority: 1, cell: Path("count", "1") },
                wide("Name", Path("metadata.name", "")),
            ];
            IT
        }
        ("", "namespaces")
        | ("", "persistentvolumes")
        | ("insula.io", "partitions" | "tenants" | "servers" | "partitionmoves") => {
            status_columns(&resource.name)
        }
        ("", "secrets") => {
            const IT: &[Column] =
                &[NAME, text("Type", Path("type", "")), count("Data", Computed(cells::data)), AGE];
            IT
        }
        ("", "configmaps") => {
            const IT: &[Column] = &[NAME, count("Data", Computed(cells::data)), AGE];
            IT
        }
        ("", "serviceaccounts" | "limitranges") | ("networking.k8s.io", "networkpolicies") => {
            const IT: &[Column] = &[NAME, AGE];
            IT
        }
        ("", "persistentvolumeclaims") => {
            const IT: &[Column] = &[
                NAME,
                text("Status", Path("status.phase", "")),
                text("Volume", Path("spec.volumeName", "")),
                text("Capacity", Path("status.capacity.storage", "")),
                text("Access Modes", Computed(cells::access_modes)),
                text("StorageClass", Path("spec.storageClassName", "")),
                text("VolumeAttributesClass", Path("spec.volumeAttributesClassName", "<unset>")),
                AGE,
                wide("VolumeMode", Path("spec.volumeMode", "<unset>")),
            ];
            IT
        }
        ("storage.k8s.io", "storageclasses") => {
            const IT: &[Column] = &[
                NAME,
                text("Provisioner", Path("provisioner", "")),
                text("ReclaimPolicy", Path("reclaimPolicy", "Delete")),
                text("VolumeBindingMode", Path("volumeBindingMode", "Immediate")),
                text("AllowVolumeExpansion", Path("allowVolumeExpansion", "false")),
                AGE,
            ];
            IT
        }
        ("scheduling.k8s.io", "priorityclasses") => {
            const IT: &[Column] = &[
                NAME,
                count("Value", Path("value", "0")),
                text("Global-Default", Path("globalDefault", "false")),
                AGE,
                text("PreemptionPolicy", Path("preemptionPolicy", "PreemptLowerPriority")),
            ];
            IT
        }
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => {
            const IT: &[Column] =
                &[NAME, text("Created At", Path("metadata.creationTimestamp", ""))];
            IT
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            const IT: &[Column] = &[
                NAME,
                text("Role", Computed(cells::role_ref)),
                AGE,
                wide("Users", Computed(|it| cells::subjects(it, "User"))),
                wide("Groups", Computed(|it| cells::subjects(it, "Group"))),
                wide("ServiceAccounts", Computed(|it| cells::subjects(it, "ServiceAccount"))),
            ];
            IT
        }
        ("coordination.k8s.io", "leases") => {
            const IT: &[Column] = &[NAME, text("Holder", Path("spec.holderIdentity", "")), AGE];
            IT
        }
        ("node.k8s.io", "runtimeclasses") => {
            const IT: &[Column] = &[NAME, text("Handler", Path("handler", "")), AGE];
            IT
        }
        ("policy", "poddisruptionbudgets") => {
            const IT: &[Column] = &[
                NAME,
                text("Min Available", Path("spec.minAvailable", "N/A")),
                text("Max Unavailable", Path("spec.maxUnavailable", "N/A")),
                count("Allowed Disruptions", Path("status.disruptionsAllowed", "0")),
                AGE,
            ];
            IT
        }
        _ => {
            const IT: &[Column] =
                &[NAME, text("Created At", Path("metadata.creationTimestamp", ""))];
            IT
        }
    }
}

fn status_columns(name: &str) -> &'static [Column] {
    const NAMESPACE: &[Column] = &[NAME, text("Status", Path("status.phase", "")), AGE];
    const VOLUME: &[Column] = &[
        NAME,
        text("Capacity", Path("spec.capacity.storage", "")),
        text("Access Modes", Computed(cells::access_modes)),
        text("Reclaim Policy", Path("spec.persistentVolumeReclaimPolicy", "")),
        text("Status", Path("status.phase", "")),
        text("Claim", Computed(cells::claim)),
        text("StorageClass", Path("spec.storageClassName", "")),
        text("VolumeAttributesClass", Path("spec.volumeAttributesClassName", "<unset>")),
        text("Reason", Path("status.reason", "")),
        AGE,
        wide("VolumeMode", Path("spec.volumeMode", "<unset>")),
    ];
    const TENANT: &[Column] = &[
        NAME,
        text("Status", Path("status.phase", "")),
        AGE,
        wide("Partition", Path("status.partition", "")),
    ];
    const PARTITION: &[Column] = &[
        NAME,
        text("Status", Path("status.phase", "")),
        text("Backend", Path("spec.backend", "")),
        count("Slots", Path("status.slots", "0")),
        count("Objects", Path("status.objects", "0")),
        count("Bytes", Path("status.bytes", "0")),
        text("Revision", Path("status.revision", "")),
        text("Leader", Path("status.leader", "")),
        wide("Servers", Computed(|it| cells::list(it, "spec", "servers"))),
        wide("Ready", Computed(|it| cells::list(it, "status", "ready"))),
        wide("Slot Ranges", Computed(|it| cells::list(it, "status", "slotRanges"))),
        wide("Epoch", Path("status.epoch", "")),
        wide("Message", Path("status.message", "")),
    ];
    const SERVER: &[Column] = &[
        NAME,
        text("Status", Path("status.phase", "")),
        text("Address", Path("spec.address", "")),
        text("Leads", Computed(|it| cells::list(it, "status", "leads"))),
        text("Ready", Computed(|it| cells::list(it, "status", "ready"))),
        wide("Member Of", Computed(|it| cells::list(it, "status", "partitions"))),
        wide("Id", Path("status.id", "")),
    ];
    const MOVE: &[Column] = &[
        NAME,
        text("Phase", Path("status.phase", "")),
        text("Progress", Path("status.progress", "")),
        text("What", Computed(cells::moved)),
        text("From", Path("status.from", "")),
        text("To", Path("spec.to", "")),
        AGE,
        wide("Pause", Path("status.pauseMilliseconds", "")),
        wide("Server", Path("status.server", "")),
        wide("Message", Path("status.message", "")),
    ];
    match name {
        "persistentvolumes" => VOLUME,
        "tenants" => TENANT,
        "partitions" => PARTITION,
        "servers" => SERVER,
        "partitionmoves" => MOVE,
        _ => NAMESPACE,
    }
}
