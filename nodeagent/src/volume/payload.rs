//! What the files of a config map, secret, downward API or projected volume hold.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume,
};

use super::VolumeError;
use crate::pod::{
    env::{ConfigError, Place, field_value, resource_value},
    references::References,
};

const DEFAULT_MODE: i32 = 0o644;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
}

/// Files by their path below the volume; no path leaves it.
pub(super) type Payload = BTreeMap<String, File>;

/// A service account token that a volume wants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenRequest {
    /// Empty for the API server's own.
    pub audience: String,
    pub expiration_seconds: i64,
}

impl TokenRequest {
    fn of(source: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.clone().unwrap_or_default(),
            expiration_seconds: source.expiration_seconds.unwrap_or(3600),
        }
    }
}

/// The tokens that the pod's volumes want.
pub(crate) fn token_requests(pod: &Pod) -> Vec<TokenRequest> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter_map(|it| it.projected.as_ref()).flat_map(|it| &it.sources);
    let tokens = sources.flatten().filter_map(|it| it.service_account_token.as_ref());
    tokens.map(TokenRequest::of).collect()
}

/// The files of a volume; `None` if its files are not written by the agent.
pub(super) fn payload(
    volume: &Volume,
    pod: &Pod,
    place: &Place,
    references: &References,
    tokens: &BTreeMap<TokenRequest, String>,
) -> Result<Option<Payload>, VolumeError> {
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        let items = Items::new(&source.items, source.default_mode, source.optional);
        add_config_map(&mut files, references, &source.name, &items)?;
    } else if let Some(source) = &volume.secret {
        let items = Items::new(&source.items, source.default_mode, source.optional);
        let name = source.secret_name.as_deref().unwrap_or_default();
        add_secret(&mut files, references, name, &items)?;
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        add_fields(&mut files, pod, place, items, source.default_mode)?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode;
        for source in source.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let items = Items::new(&source.items, mode, source.optional);
                add_config_map(&mut files, references, &source.name, &items)?;
            }
            if let Some(source) = &source.secret {
                let items = Items::new(&source.items, mode, source.optional);
                add_secret(&mut files, references, &source.name, &items)?;
            }
            if let Some(source) = &source.downward_api {
                let items = source.items.as_deref().unwrap_or_default();
                add_fields(&mut files, pod, place, items, mode)?;
            }
            if let Some(source) = &source.service_account_token {
                let request = TokenRequest::of(source);
                let token = tokens.get(&request).ok_or(VolumeError::NoToken)?;
                add(&mut files, &source.path, token.clone().into_bytes(), None, mode)?;
            }
            if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
                return Err(VolumeError::Unsupported { volume: volume.name.clone() });
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

/// Which keys become files, where, and how strictly.
struct Items<'a> {
    items: Option<&'a [KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
}

impl<'a> Items<'a> {
    fn new(items: &'a Option<Vec<KeyToPath>>, mode: Option<i32>, optional: Option<bool>) -> Self {
        let items = items.as_deref().filter(|it| !it.is_empty());
        Self { items, mode, optional: optional == Some(true) }
    }
}

fn add_config_map(
    files: &mut Payload,
    references: &References,
    name: &str,
    items: &Items<'_>,
) -> Result<(), VolumeError> {
    let Some(ConfigMap { data, binary_data, .. }) = references.config_maps.get(name) else {
        return if items.optional { Ok(()) } else { Err(missing("configmap", name)) };
    };
    let text = data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let bytes = binary_data.iter().flatten().map(|(key, value)| (key.as_str(), &value.0[..]));
    add_keys(files, "configmap", text.chain(bytes).collect(), items)
}

fn add_secret(
    files: &mut Payload,
    references: &References,
    name: &str,
    items: &Items<'_>,
) -> Result<(), VolumeError> {
    let Some(Secret { data, .. }) = references.secrets.get(name) else {
        return if items.optional { Ok(()) } else { Err(missing("secret", name)) };
    };
    let bytes = data.iter().flatten().map(|(key, value)| (key.as_str(), &value.0[..]));
    add_keys(files, "secret", bytes.collect(), items)
}

fn missing(kind: &'static str, name: &str) -> VolumeError {
    ConfigError::NoObject { kind, name: name.to_owned() }.into()
}

fn add_keys(
    files: &mut Payload,
    kind: &'static str,
    keys: BTreeMap<&str, &[u8]>,
    items: &Items<'_>,
) -> Result<(), VolumeError> {
    let Some(wanted) = items.items else {
        for (key, bytes) in keys {
            add(files, key, bytes.to_vec(), None, items.mode)?;
        }
        return Ok(());
    };
    for item in wanted {
        match keys.get(item.key.as_str()) {
            Some(bytes) => add(files, &item.path, bytes.to_vec(), item.mode, items.mode)?,
            None if items.optional => {}
            None => return Err(VolumeError::NoKey { kind, key: item.key.clone() }),
        }
    }
    Ok(())
}

fn add_fields(
    files: &mut Payload,
    pod: &Pod,
    place: &Place,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<(), VolumeError> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            field_value(pod, place, &field.field_path)?
        } else if let Some(resource) = &item.resource_field_ref {
            resource_value(pod, None, place, resource)?
        } else {
            continue;
        };
        add(files, &item.path, text.into_bytes(), item.mode, default_mode)?;
    }
    Ok(())
}

fn add(
    files: &mut Payload,
    path: &str,
    bytes: Vec<u8>,
    mode: Option<i32>,
    default_mode: Option<i32>,
) -> Result<(), VolumeError> {
    let is_inside = !path.is_empty()
        && path.len() <= 4096
        && path.split('/').all(|part| !part.is_empty() && part != "." && !part.starts_with(".."))
        && !path.contains('\0');
    if !is_inside {
        return Err(VolumeError::Path { path: path.to_owned() });
    }
    let mode = mode.or(default_mode).unwrap_or(DEFAULT_MODE);
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    files.insert(path.to_owned(), File { bytes, mode });
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn references() -> References {
        let config = json!({"metadata": {"name": "cfg"}, "data": {"a": "1", "b": "2"},
            "binaryData": {"bin": "AAE="}});
        let secret = json!({"metadata": {"name": "sec"}, "data": {"pw": "aHVudGVyMg=="}});
        References {
            config_maps: [("cfg".to_owned(), serde_json::from_value(config).unwrap())].into(),
            secrets: [("sec".to_owned(), serde_json::from_value(secret).unwrap())].into(),
        }
    }

    fn files(volume: Value) -> Result<String, VolumeError> {
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let pod =
            serde_json::from_value(json!({"metadata": {"name": "web", "labels": {"a": "b"}}}));
        let tokens = [(
            TokenRequest { audience: String::new(), expiration_seconds: 600 },
            "a.b.c".to_owned(),
        )];
        let found =
            payload(&volume, &pod.unwrap(), &Place::default(), &references(), &tokens.into())?;
        let line = |(path, file): (String, File)| {
            format!("{path}:{:o}:{}", file.mode, String::from_utf8_lossy(&file.bytes))
        };
        Ok(found.unwrap().into_iter().map(line).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn all_keys_or_some() {
        let all = files(json!({"configMap": {"name": "cfg", "defaultMode": 256}})).unwrap();
        assert_eq!(all, "a:400:1 b:400:2 bin:400:\0\u{1}");
        let some = files(json!({"configMap": {"name": "cfg",
            "items": [{"key": "a", "path": "x/y", "mode": 384}]}}));
        assert_eq!(some.unwrap(), "x/y:600:1");
        assert_eq!(files(json!({"secret": {"secretName": "sec"}})).unwrap(), "pw:644:hunter2");
    }

    #[test]
    fn projected_sources_share_a_directory() {
        let volume = json!({"projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            {"configMap": {"name": "cfg", "items": [{"key": "a", "path": "ca"}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"secret": {"name": "none", "optional": true}}]}});
        assert_eq!(files(volume).unwrap(), "ca:644:1 labels:644:a=\"b\" token:644:a.b.c");
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = |volume| files(volume).unwrap_err().to_string();
        assert_eq!(text(json!({"configMap": {"name": "no"}})), "configmap \"no\" not found");
        assert_eq!(text(json!({"secret": {"secretName": "no"}})), "secret \"no\" not found");
        let item = json!({"configMap": {"name": "cfg", "items": [{"key": "z", "path": "z"}]}});
        assert_eq!(text(item), "configmap references non-existent config key: z");
    }

    #[test]
    fn no_path_leaves_the_volume() {
        for path in ["../a", "/a", "a/../b", "..data", "a//b", ""] {
            let volume =
                json!({"configMap": {"name": "cfg", "items": [{"key": "a", "path": path}]}});
            assert!(matches!(files(volume), Err(VolumeError::Path { .. })), "{path:?}");
        }
    }
}
