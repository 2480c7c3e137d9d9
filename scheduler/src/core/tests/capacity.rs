//! Volumes that are to be made where their driver has room for them.

use k8s_openapi::api::{
    core::v1::PersistentVolumeClaim,
    storage::v1::{CSIDriver, CSIStorageCapacity, StorageClass},
};

use super::*;

fn put_capacity(core: &mut Core, tenant: &str, name: &str, zone: &str, sizes: (&str, &str)) {
    let (capacity, largest) = sizes;
    let it: CSIStorageCapacity = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "csi"}, "storageClassName": "late",
        "capacity": capacity, "maximumVolumeSize": largest,
        "nodeTopology": {"matchLabels": {"zone": zone}},
    }))
    .unwrap();
    let key = ObjectKey::new(&TenantName::parse(tenant).unwrap(), "csi", name);
    core.world.storage.put_capacity(&key, Some(&it));
}

fn put_claim(core: &mut Core, size: &str) {
    let object: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "c", "namespace": "ns"},
        "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}}},
    }))
    .unwrap();
    let it = Tenanted { tenant: TenantName::parse("acme").unwrap(), object };
    core.world.storage.put_claim(&it.key(), Some(&it));
}

fn put_driver(core: &mut Core, is_measured: bool) {
    let it: CSIDriver =
        serde_json::from_value(json!({"spec": {"storageCapacity": is_measured}})).unwrap();
    let key = ObjectKey::new(&TenantName::system(), "", "disks.example.com");
    core.world.storage.put_driver(&key, Some(&it));
}

#[test]
fn volumes_are_made_where_there_is_room() {
    let in_zone = |zone: &str| {
        let zone = zone.to_owned();
        node("4", "4Gi", move |it| it["metadata"]["labels"]["zone"] = json!(zone))
    };
    let mut core = core(vec![("a", in_zone("a")), ("b", in_zone("b"))]);
    let class: StorageClass = serde_json::from_value(json!({
        "provisioner": "disks.example.com", "volumeBindingMode": "WaitForFirstConsumer",
    }))
    .unwrap();
    let class = Tenanted { tenant: TenantName::system(), object: class };
    let key = ObjectKey::new(&TenantName::system(), "", "late");
    core.world.storage.put_class(&key, Some(&class));
    put_claim(&mut core, "10Gi");
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    let pod = pod("p", json!({"spec": {"containers": [], "volumes": volumes}}));
    let none = "0/2 nodes are available: 2 node(s) did not have enough free storage.";
    assert_eq!(best(&mut core, &pod), ["a".into(), "b".into()].into(), "nobody counts");
    put_driver(&mut core, true);
    assert_eq!(look(&mut core, &pod), none);
    put_capacity(&mut core, "system", "in-a", "a", ("20Gi", "5Gi"));
    put_capacity(&mut core, "globex", "in-b", "b", ("1Ti", "1Ti"));
    assert_eq!(look(&mut core, &pod), none, "too small, and another tenant's");
    put_capacity(&mut core, "acme", "in-b", "b", ("1Ti", "10Gi"));
    assert_eq!(best(&mut core, &pod), ["b".into()].into());
    put_claim(&mut core, "11Gi");
    assert_eq!(look(&mut core, &pod), none);
    put_driver(&mut core, false);
    assert_eq!(best(&mut core, &pod), ["a".into(), "b".into()].into());
}
