//! The volumes of a pod, as directories and files on this machine.
//!
//! Everything here blocks on the disk and is called from threads that may. Setting up is level
//! triggered: it is repeated while the pod lives, and only what differs is touched.
//!
//! `<root>/pods/<uid>/volumes/<name>` is a volume, `.../subpaths/<container>/<n>` a mount of a part
//! of one.

mod atomic;
mod mounts;
mod payload;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume,
};

pub(crate) use self::payload::{TokenRequest, token_requests};
use crate::{
    cri::v1,
    pod::{
        env::{ConfigError, Environment, Place},
        quantity,
        references::References,
    },
};

/// Why a volume cannot be had. The text goes into events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{kind} references non-existent config key: {key}")]
    NoKey { kind: &'static str, key: String },
    #[error("invalid path {path:?} in a volume: it must stay below it")]
    Path { path: String },
    #[error("no service account token yet")]
    NoToken,
    #[error("volume {volume:?} is of a type that this node does not have")]
    Unsupported { volume: String },
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPath { path: String, wanted: &'static str },
    #[error("{action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One volume's trouble.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?}")]
pub(crate) struct SetUpError {
    pub volume: String,
    #[source]
    pub source: VolumeError,
}

/// Where each volume of a pod lies.
pub(crate) type VolumePaths = BTreeMap<String, PathBuf>;

/// Makes the volumes of `pod` hold what they should.
pub(crate) fn set_up(
    pod_dir: &Path,
    pod: &Pod,
    place: &Place,
    references: &References,
    tokens: &BTreeMap<TokenRequest, String>,
) -> Result<VolumePaths, SetUpError> {
    let spec = pod.spec.as_ref();
    let group = spec
        .and_then(|it| it.security_context.as_ref())
        .and_then(|it| it.fs_group)
        .and_then(|it| u32::try_from(it).ok());
    let volumes = spec.and_then(|it| it.volumes.as_deref()).unwrap_or_default();
    let mut paths = VolumePaths::new();
    for volume in volumes {
        let path = pod_dir.join("volumes").join(&volume.name);
        let done = if let Some(source) = &volume.host_path {
            host_path(source)
        } else if let Some(source) = &volume.empty_dir {
            empty_dir(source, path, group)
        } else {
            files(volume, path, pod, place, references, tokens, group)
        };
        match done {
            Ok(path) => paths.insert(volume.name.clone(), path),
            Err(source) => return Err(SetUpError { volume: volume.name.clone(), source }),
        };
    }
    Ok(paths)
}

fn files(
    volume: &Volume,
    path: PathBuf,
    pod: &Pod,
    place: &Place,
    references: &References,
    tokens: &BTreeMap<TokenRequest, String>,
    group: Option<u32>,
) -> Result<PathBuf, VolumeError> {
    let Some(payload) = payload::payload(volume, pod, place, references, tokens)? else {
        return Err(VolumeError::Unsupported { volume: volume.name.clone() });
    };
    let write = || {
        if is_secret(volume) {
            fs::create_dir_all(&path)?;
            mounts::mount_memory(&path, None)?;
        }
        atomic::write(&path, &payload, group)
    };
    match write() {
        Ok(_) => Ok(path),
        Err(source) => Err(VolumeError::Io { action: "cannot write", path, source }),
    }
}

/// What must never reach the disk.
fn is_secret(volume: &Volume) -> bool {
    let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
    volume.secret.is_some()
        || sources.into_iter().any(|it| it.secret.is_some() || it.service_account_token.is_some())
}

fn empty_dir(
    source: &EmptyDirVolumeSource,
    path: PathBuf,
    group: Option<u32>,
) -> Result<PathBuf, VolumeError> {
    let make = || {
        if !path.exists() {
            fs::create_dir_all(&path)?;
        }
        if source.medium.as_deref() == Some("Memory") {
            let size = source.size_limit.as_ref().and_then(quantity::whole);
            let size = size.and_then(|it| u64::try_from(it).ok()).filter(|&it| it > 0);
            mounts::mount_memory(&path, size)?;
        }
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        chown(&path, None, group)
    };
    match make() {
        Ok(()) => Ok(path),
        Err(source) => Err(VolumeError::Io { action: "cannot make", path, source }),
    }
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let io = |source| VolumeError::Io { action: "cannot use", path: path.clone(), source };
    let is_absent =
        || matches!(fs::metadata(&path), Err(error) if error.kind() == io::ErrorKind::NotFound);
    let wanted = match source.type_.as_deref().unwrap_or_default() {
        "" => return Ok(path),
        "DirectoryOrCreate" => {
            if is_absent() {
                fs::create_dir_all(&path).map_err(io)?;
            }
            "directory"
        }
        "FileOrCreate" => {
            if is_absent() {
                fs::OpenOptions::new().create(true).append(true).open(&path).map_err(io)?;
            }
            "file"
        }
        "Directory" => "directory",
        "File" => "file",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        "BlockDevice" => "block device",
        _ => "known type",
    };
    let kind = fs::metadata(&path).map_err(io)?.file_type();
    let fits = match wanted {
        "directory" => kind.is_dir(),
        "file" => kind.is_file(),
        "socket file" => kind.is_socket(),
        "character device" => kind.is_char_device(),
        "block device" => kind.is_block_device(),
        _ => false,
    };
    if fits { Ok(path) } else { Err(VolumeError::HostPath { path: source.path.clone(), wanted }) }
}

/// The mounts of one container, sub paths included.
pub(crate) fn container_mounts(
    pod_dir: &Path,
    container: &Container,
    environment: &Environment,
    paths: &VolumePaths,
) -> Result<Vec<v1::Mount>, ConfigError> {
    let mut mounts = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = paths.get(&wanted.name) else {
            return Err(ConfigError::Mount(format!("volume {:?} not found", wanted.name)));
        };
        let sub_path = match (&wanted.sub_path_expr, &wanted.sub_path) {
            (Some(expression), _) if !expression.is_empty() => environment.expand(expression),
            (_, Some(path)) => path.clone(),
            _ => String::new(),
        };
        let host_path = if sub_path.is_empty() {
            volume.clone()
        } else {
            let target = pod_dir.join("subpaths").join(&container.name).join(index.to_string());
            mounts::bind_sub_path(volume, &sub_path, &target).map_err(|error| {
                ConfigError::Mount(format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                    wanted.name, container.name
                ))
            })?;
            target
        };
        let propagation = match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
            _ => v1::MountPropagation::PropagationPrivate,
        };
        let container_path = if wanted.mount_path.starts_with('/') {
            wanted.mount_path.clone()
        } else {
            format!("/{}", wanted.mount_path)
        };
        mounts.push(v1::Mount {
            container_path,
            host_path: host_path.display().to_string(),
            readonly: wanted.read_only.unwrap_or(false),
            propagation: propagation.into(),
            ..Default::default()
        });
    }
    Ok(mounts)
}

/// Removes all of a pod's files. Repeating it does no harm.
pub(crate) fn tear_down(pod_dir: &Path) -> Result<(), VolumeError> {
    let io = |action| move |source| VolumeError::Io { action, path: pod_dir.to_path_buf(), source };
    mounts::unmount_all(pod_dir).map_err(io("cannot unmount"))?;
    match fs::remove_dir_all(pod_dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io("cannot remove")(source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn host_path_types() {
        let directory = tempfile::tempdir().unwrap();
        let of = |name: &str, kind: &str| {
            let path = directory.path().join(name).display().to_string();
            host_path(&HostPathVolumeSource { path, type_: Some(kind.to_owned()) })
        };
        assert!(of("absent", "").is_ok());
        assert!(of("absent", "Directory").is_err());
        assert!(of("d", "DirectoryOrCreate").unwrap().is_dir());
        assert!(of("f", "FileOrCreate").unwrap().is_file());
        assert!(of("f", "File").is_ok());
        let error = of("f", "Directory").unwrap_err().to_string();
        assert!(error.ends_with("/f is not a directory"), "{error}");
        assert!(of("d", "Socket").is_err());
    }

    #[test]
    fn what_was_set_up_is_torn_down() {
        let directory = tempfile::tempdir().unwrap();
        let pod_dir = directory.path().join("pods/u");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "securityContext": {"fsGroup": 4242},
            "containers": [{"name": "c", "volumeMounts": [
                {"name": "tmp", "mountPath": "/t", "subPath": "a/b"},
                {"name": "mem", "mountPath": "m", "readOnly": true}]}],
            "volumes": [{"name": "tmp", "emptyDir": {}},
                {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "key", "secret": {"secretName": "none", "optional": true}},
                {"name": "info", "downwardAPI": {"items": [
                    {"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}))
        .unwrap();
        for _ in 0..2 {
            let (place, references) = (Place::default(), References::default());
            let paths = set_up(&pod_dir, &pod, &place, &references, &BTreeMap::new()).unwrap();
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let mounts =
                container_mounts(&pod_dir, container, &Environment::default(), &paths).unwrap();
            assert_eq!((mounts[1].container_path.as_str(), mounts[1].readonly), ("/m", true));
            fs::write(Path::new(&mounts[0].host_path).join("f"), "x").unwrap();
            assert_eq!(fs::read_to_string(paths["tmp"].join("a/b/f")).unwrap(), "x");
            assert_eq!(fs::read_to_string(paths["info"].join("n")).unwrap(), "p");
            let table = fs::read_to_string("/proc/self/mounts").unwrap();
            let in_memory =
                |name: &str| table.contains(&format!("tmpfs {} tmpfs", paths[name].display()));
            assert!(in_memory("key") && in_memory("mem") && !in_memory("info"));
            use std::os::unix::fs::MetadataExt;
            assert_eq!(fs::metadata(&paths["mem"]).unwrap().gid(), 4242);
        }
        tear_down(&pod_dir).unwrap();
        assert!(!pod_dir.exists());
        tear_down(&pod_dir).unwrap();
    }

    #[test]
    fn other_volumes_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [],
            "volumes": [{"name": "data", "nfs": {"server": "s", "path": "/"}}]}}))
        .unwrap();
        let (place, references) = (Place::default(), References::default());
        let error = set_up(directory.path(), &pod, &place, &references, &BTreeMap::new());
        assert!(error.unwrap_err().to_string().contains("\"data\""));
    }
}
