//! Volumes of CSI drivers as attachments, nodes and agents call them.

use aws_lc_rs::digest::{SHA256, digest};
use insula_api::names::TenantName;
use insula_client::Tenanted;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeSpec},
    storage::v1::VolumeAttachmentSource,
};

use crate::objects::annotation;

/// Says, of a volume of a tenant, for which handle the platform vouches. Only users of the platform
/// write it; API servers see to that.
const VOUCHED: &str = "insula.io/handle-vouched";

/// A volume as its driver knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    pub(crate) driver: String,
    pub(crate) handle: String,
}

impl Disk {
    /// `None` if the volume is of no driver.
    pub(crate) fn of(spec: &PersistentVolumeSpec) -> Option<Self> {
        let csi = spec.csi.as_ref()?;
        Some(Self { driver: csi.driver.clone(), handle: csi.volume_handle.clone() })
    }

    /// As nodes have it in their status.
    pub(crate) fn id(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// What is so called in the status of a node; `None` if that is no volume of a driver.
    pub(super) fn of_id(id: &str) -> Option<Self> {
        let (driver, handle) = id.strip_prefix("kubernetes.io/csi/")?.split_once('^')?;
        Some(Self { driver: driver.to_owned(), handle: handle.to_owned() })
    }

    /// The name of its attachment to a node, as upstream makes it, so that others find it.
    pub(crate) fn attachment(&self, node: &str) -> String {
        use std::fmt::Write as _;

        let text = format!("{}{}{node}", self.handle, self.driver);
        let mut name = "csi-".to_owned();
        for byte in digest(&SHA256, text.as_bytes()).as_ref() {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }

    /// How what is attached is called: a volume of the platform by its name, one of a tenant by
    /// what it is. Two volumes of the platform with the same handle are not found to be one.
    pub(crate) fn sources(source: &VolumeAttachmentSource) -> Vec<String> {
        let of_platform = source.persistent_volume_name.as_deref().map(by_name);
        let inline = source.inline_volume_spec.as_ref().and_then(Self::of);
        of_platform.or_else(|| inline.map(|it| it.id())).into_iter().collect()
    }

    /// How the attachments of this volume, which is this disk, are called.
    pub(super) fn source(&self, volume: &Tenanted<PersistentVolume>) -> String {
        if volume.tenant.is_system() { by_name(volume.name()) } else { self.id() }
    }

    /// Whether the platform says that whoever owns the volume owns the disk.
    pub(super) fn is_vouched(&self, volume: &Tenanted<PersistentVolume>) -> bool {
        let whose = format!("{}^{}", self.driver, self.handle);
        volume.tenant.is_system() || annotation(&volume.object, VOUCHED) == Some(whose.as_str())
    }
}

fn by_name(name: &str) -> String {
    format!("{}/{name}", TenantName::system())
}

/// Whether a volume may be on one node only.
pub(super) fn is_exclusive(spec: &PersistentVolumeSpec) -> bool {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    // Of one that does not say its driver decides.
    !modes.is_empty() && !modes.iter().any(|it| it == "ReadWriteMany" || it == "ReadOnlyMany")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        let disk = Disk { driver: "d".into(), handle: "h".into() };
        assert_eq!(disk.id(), "kubernetes.io/csi/d^h");
        assert_eq!(Disk::of_id(&disk.id()), Some(disk.clone()));
        assert_eq!(Disk::of_id("kubernetes.io/other/d"), None);
        // The digest of "hdn".
        let expected = "csi-9072ed11cc1acb5fa433a877ff339b6311d013f33bddd1d0092711a8ace5b16d";
        assert_eq!(disk.attachment("n"), expected);
    }

    #[track_caller]
    fn check(modes: &[&str], expected: bool) {
        let spec = PersistentVolumeSpec {
            access_modes: Some(modes.iter().map(|it| (*it).to_owned()).collect()),
            ..PersistentVolumeSpec::default()
        };
        assert_eq!(is_exclusive(&spec), expected, "{modes:?}");
    }

    #[test]
    fn modes_say_how_many_nodes() {
        check(&["ReadWriteOnce"], true);
        check(&["ReadWriteOncePod"], true);
        check(&["ReadWriteOnce", "ReadOnlyMany"], false);
        check(&["ReadWriteMany"], false);
        check(&[], false);
    }
}
