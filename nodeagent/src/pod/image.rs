//! Images: their names, the credentials to fetch them, and fetching each only once at a time.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;

use crate::cri::{RuntimeClient, RuntimeError, v1::AuthConfig};

/// Completes an image's name as users write it: without tag and digest it means `:latest`.
///
/// The error is a text for users.
pub(crate) fn complete_name(image: &str) -> Result<String, String> {
    let invalid = |why: &str| {
        Err(format!(
            "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}"
        ))
    };
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    // A colon before the last slash is a registry's port.
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let (host, repository) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("", path),
    };
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || b"._-".contains(&it))
            && part.starts_with(|it: char| it.is_ascii_alphanumeric())
            && part.ends_with(|it: char| it.is_ascii_alphanumeric())
    };
    let is_host = host.bytes().all(|it| it.is_ascii_alphanumeric() || b".:-[]".contains(&it));
    if repository.chars().any(|it| it.is_ascii_uppercase()) {
        return invalid("repository name must be lowercase");
    }
    if !is_host || image.len() > 1024 || !repository.split('/').all(is_part) {
        return invalid("invalid reference format");
    }
    let is_tag = |tag: &str| {
        (1..=128).contains(&tag.len())
            && tag.bytes().all(|it| it.is_ascii_alphanumeric() || b"._-".contains(&it))
            && !tag.starts_with(['.', '-'])
    };
    let is_digest = |digest: &str| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|it| it.is_ascii_hexdigit())
        })
    };
    if tag.is_some_and(|it| !is_tag(it)) || digest.is_some_and(|it| !is_digest(it)) {
        return invalid("invalid reference format");
    }
    match (tag, digest) {
        (None, None) => Ok(format!("{image}:latest")),
        _ => Ok(image.to_owned()),
    }
}

/// When to fetch an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    pub(crate) fn of(policy: Option<&str>, image: &str) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ if image.ends_with(":latest") => Self::Always,
            _ => Self::IfNotPresent,
        }
    }
}

type Outcome = Option<Result<(), Arc<RuntimeError>>>;
/// By image and a hash of the credentials.
type UnderWay = HashMap<(String, u64), watch::Receiver<Outcome>>;

/// Fetches images; many pods that want the same one wait for a single fetch.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    runtime: RuntimeClient,
    under_way: Arc<Mutex<UnderWay>>,
}

impl Images {
    pub(crate) fn new(runtime: RuntimeClient) -> Self {
        Self { runtime, under_way: Arc::default() }
    }

    /// Fetches an image with the first of `credentials` that does.
    ///
    /// The fetch goes on if the future is dropped: another pod will want the image.
    pub(crate) async fn pull(
        &self,
        image: &str,
        credentials: Vec<AuthConfig>,
    ) -> Result<(), Arc<RuntimeError>> {
        let mut hasher = DefaultHasher::new();
        for it in &credentials {
            (&it.username, &it.password, &it.identity_token, &it.registry_token).hash(&mut hasher);
        }
        let key = (image.to_owned(), hasher.finish());
        let mut outcome = {
            let mut under_way = self.under_way.lock();
            match under_way.get(&key) {
                Some(outcome) => outcome.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    under_way.insert(key.clone(), receiver.clone());
                    let (images, image) = (self.clone(), image.to_owned());
                    tokio::spawn(async move {
                        let result = fetch(&images.runtime, &image, credentials).await;
                        images.under_way.lock().remove(&key);
                        sender.send_replace(Some(result));
                    });
                    receiver
                }
            }
        };
        match outcome.wait_for(Option::is_some).await {
            Ok(done) => done.clone().unwrap_or(Ok(())),
            // The fetching task ended early, as it does when the agent ends.
            Err(_) => Err(Arc::new(RuntimeError::Interrupted { call: "PullImage" })),
        }
    }
}

async fn fetch(
    runtime: &RuntimeClient,
    image: &str,
    credentials: Vec<AuthConfig>,
) -> Result<(), Arc<RuntimeError>> {
    let mut attempts: Vec<_> = credentials.into_iter().map(Some).collect();
    if attempts.is_empty() {
        attempts.push(None);
    }
    let mut result = Ok(());
    for auth in attempts {
        result = runtime.pull_image(image, auth).await.map_err(Arc::new);
        if result.is_ok() {
            break;
        }
    }
    result
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "lowercase")]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// The credentials in pull secrets that are meant for an image's registry.
pub(crate) fn credentials<'a>(
    image: &str,
    secrets: impl Iterator<Item = &'a Secret>,
) -> Vec<AuthConfig> {
    let mut found = Vec::new();
    for secret in secrets {
        let data = |key: &str| secret.data.as_ref().and_then(|it| it.get(key)).map(|it| &it.0[..]);
        let auths = if let Some(json) = data(".dockerconfigjson") {
            serde_json::from_slice::<DockerConfig>(json).map(|it| it.auths)
        } else if let Some(json) = data(".dockercfg") {
            serde_json::from_slice::<HashMap<String, DockerAuth>>(json)
        } else {
            continue;
        };
        match auths {
            Ok(auths) => {
                let fitting = auths.into_iter().filter(|(registry, _)| fits(registry, image));
                found.extend(fitting.map(|(registry, auth)| auth_config(registry, auth)));
            }
            Err(error) => {
                let name = secret.metadata.name.as_deref().unwrap_or_default();
                tracing::warn!(name, %error, "pull secret is not readable");
            }
        }
    }
    found
}

fn auth_config(server_address: String, auth: DockerAuth) -> AuthConfig {
    let decoded = STANDARD.decode(&auth.auth).ok().and_then(|it| String::from_utf8(it).ok());
    let (username, password) = match decoded.as_deref().and_then(|it| it.split_once(':')) {
        Some((username, password)) => (username.to_owned(), password.to_owned()),
        None => (auth.username, auth.password),
    };
    AuthConfig {
        username,
        password,
        server_address,
        identity_token: auth.identitytoken,
        registry_token: auth.registrytoken,
        ..AuthConfig::default()
    }
}

/// Whether credentials for `registry`, a host with or without scheme and path, are for `image`.
fn fits(registry: &str, image: &str) -> bool {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = bare.trim_end_matches('/').split_once('/').unwrap_or((bare, ""));
    let (image_host, image_path) = match image.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("docker.io", image),
    };
    let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    let same_host = host.trim_end_matches('/') == image_host
        || hub.contains(&host) && hub.contains(&image_host);
    // `v1` and `v2` name the registry's protocol, not a part of image names.
    let path = path.trim_start_matches("v1").trim_start_matches("v2").trim_matches('/');
    same_host && image_path.starts_with(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("localhost/insula/busybox:1", "localhost/insula/busybox:1"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("r.io/a__b/c-d", "r.io/a__b/c-d:latest"),
        ] {
            assert_eq!(complete_name(name).as_deref(), Ok(expected));
        }
        let digest = format!("r.io/a@sha256:{}", "0".repeat(64));
        assert_eq!(complete_name(&digest).as_deref(), Ok(digest.as_str()));
        for bad in ["", "Upper", "a//b", "a b", "a:", "a:b c", "a@sha256:x", "-a", "r.io/"] {
            assert!(complete_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn policies() {
        assert_eq!(PullPolicy::of(None, "a:latest"), PullPolicy::Always);
        assert_eq!(PullPolicy::of(None, "a:1"), PullPolicy::IfNotPresent);
        assert_eq!(PullPolicy::of(Some("Never"), "a:latest"), PullPolicy::Never);
    }

    #[test]
    fn credentials_go_to_their_registry_only() {
        let config = json!({"auths": {
            "https://r.io": {"auth": STANDARD.encode("me:pw")},
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"}}});
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": "s"},
            "data": {".dockerconfigjson": STANDARD.encode(config.to_string())}}))
        .unwrap();
        let users = |image| {
            let found = credentials(image, std::iter::once(&secret));
            found.into_iter().map(|it| it.username).collect::<Vec<_>>()
        };
        assert_eq!(users("r.io/a:1"), ["me"]);
        assert_eq!(users("busybox:1"), ["hub"]);
        assert!(users("r.io.evil/a").is_empty());
        assert!(users("other.io/a").is_empty());
    }
}
