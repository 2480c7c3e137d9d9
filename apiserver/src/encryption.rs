//! What is sealed where it is stored, and with which keys: the file that says so.
//!
//! Upstream's `EncryptionConfiguration`, as much of it as means something here:
//!
//! ```yaml
//! apiVersion: apiserver.config.k8s.io/v1
//! kind: EncryptionConfiguration
//! resources:
//! - resources: [secrets, widgets.example.com]
//!   providers:
//!   - aesgcm: {keys: [{name: one, secret: BASE64 of 32 bytes}]}
//!   - identity: {}
//! ```
//!
//! The keys wrap the data keys of tenants (`insula_partition::seal`); the first wraps, all unwrap.
//! With `identity` in front nothing more is sealed, and what is stays readable. What lies there as
//! it was written is always read.

mod upkeep;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use insula_partition::{
    seal::{ClusterKey, SealError, Settings, Vault},
    store::Collection,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::upkeep::{PATH, look_after};
use crate::pki::{PkiError, write_private};

const API_VERSION: &str = "apiserver.config.k8s.io/v1";
const KIND: &str = "EncryptionConfiguration";

/// Most keys of a file.
const MAX_KEYS: usize = 16;

/// What cannot be sealed: objects of nodes lie in other places than the keys of their tenant, and
/// what pods, services and claims use is weighed by partitions, which have no keys.
const NOT_SEALED: [&str; 6] = [
    "nodes",
    "leases.coordination.k8s.io",
    "csinodes.storage.k8s.io",
    "pods",
    "services",
    "persistentvolumeclaims",
];

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptionError {
    #[error("cannot read the encryption configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the encryption configuration is not YAML of the form that is asked for: {0}")]
    Form(String),
    #[error("the encryption configuration: {0}")]
    Meaning(String),
    #[error("the encryption configuration: key {name:?}")]
    Key {
        name: String,
        #[source]
        source: SealError,
    },
    #[error("no key could be made")]
    Random(#[source] SealError),
    #[error("key {0} is not there")]
    Unknown(String),
    #[error("key {0} is the one that wraps; have another one do so first")]
    Wraps(String),
    #[error("cannot write the encryption configuration")]
    Write(#[from] PkiError),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    resources: Vec<Sealed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aesgcm: Option<Keys>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<Identity>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    secret: String,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Key {
    fn read(&self) -> Result<ClusterKey, EncryptionError> {
        let failed = |source| EncryptionError::Key { name: self.name.clone(), source };
        // Decoders tell of the bytes that they did not like.
        let secret = STANDARD.decode(&self.secret).map_err(|_| {
            EncryptionError::Meaning(format!("the secret of key {:?} is not base64", self.name))
        })?;
        ClusterKey::new(&self.name, &secret).map_err(failed)
    }

    fn make() -> Result<(String, Self), EncryptionError> {
        let secret = ClusterKey::random().map_err(EncryptionError::Random)?;
        let id = ClusterKey::new("", &secret).map_err(EncryptionError::Random)?.id().to_owned();
        Ok((id.clone(), Self { name: id, secret: STANDARD.encode(secret) }))
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionFile {
    /// With their ids, the one that wraps first.
    keys: Vec<(String, Key)>,
    resources: Vec<String>,
    /// Whether what is written is to be sealed.
    seals: bool,
}

impl EncryptionFile {
    /// A file with one new key, that has secrets sealed.
    pub fn new() -> Result<Self, EncryptionError> {
        Ok(Self { keys: vec![Key::make()?], resources: vec!["secrets".into()], seals: true })
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, EncryptionError> {
        let wrong = |why: &str| Err(EncryptionError::Meaning(why.to_owned()));
        let read: Document = serde_saphyr::from_str(text)
            // Told without the text around it: there are keys in it.
            .map_err(|error| EncryptionError::Form(without_snippet(&error.to_string())))?;
        if (read.api_version.as_str(), read.kind.as_str()) != (API_VERSION, KIND) {
            return wrong(&format!("it has to be a {KIND} of {API_VERSION}"));
        }
        let [sealed] = read.resources.as_slice() else {
            return wrong("resources has to have one entry, which names all that is sealed");
        };
        if let Some(name) = sealed.resources.iter().find(|it| !is_sealable(it)) {
            return wrong(&format!(
                "{name:?} cannot be sealed: name resources one by one as NAME or NAME.GROUP; \
                 nodes and leases cannot be"
            ));
        }
        let seals = match sealed.providers.as_slice() {
            [Provider { aesgcm: Some(_), identity: None }] => true,
            [
                Provider { aesgcm: Some(_), identity: None },
                Provider { aesgcm: None, identity: Some(_) },
            ] => true,
            [
                Provider { aesgcm: None, identity: Some(_) },
                Provider { aesgcm: Some(_), identity: None },
            ] => false,
            _ => return wrong("providers have to be one aesgcm, and identity before or behind it"),
        };
        let keys = sealed.providers.iter().filter_map(|it| it.aesgcm.as_ref());
        let keys: Vec<&Key> = keys.flat_map(|it| &it.keys).collect();
        if keys.is_empty() || MAX_KEYS < keys.len() {
            return wrong(&format!("there have to be 1 to {MAX_KEYS} keys"));
        }
        let mut known: Vec<(String, Key)> = Vec::new();
        for key in keys {
            let id = key.read()?.id().to_owned();
            if known.iter().any(|(other, it)| *other == id || it.name == key.name) {
                return wrong(&format!("key {:?} is there twice", key.name));
            }
            known.push((id, key.clone()));
        }
        Ok(Self { keys: known, resources: sealed.resources.clone(), seals })
    }

    /// The file's text.
    pub fn text(&self) -> Result<String, EncryptionError> {
        let keys = self.keys.iter().map(|(_, key)| key.clone()).collect();
        let mut providers = vec![
            Provider { aesgcm: Some(Keys { keys }), identity: None },
            Provider { aesgcm: None, identity: Some(Identity {}) },
        ];
        if !self.seals {
            providers.reverse();
        }
        let resources = vec![Sealed { resources: self.resources.clone(), providers }];
        let document = Document { api_version: API_VERSION.into(), kind: KIND.into(), resources };
        serde_saphyr::to_string(&document).map_err(|error| EncryptionError::Form(error.to_string()))
    }

    /// The file at `path`, made with a new key if there is none.
    pub fn open_or_create(path: &Path) -> Result<Self, EncryptionError> {
        match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let file = Self::new()?;
                write_private(path, &file.text()?)?;
                Ok(file)
            }
            Err(source) => Err(EncryptionError::Read { path: path.to_owned(), source }),
            Ok(text) => Self::parse(&text),
        }
    }

    /// The file at `path`.
    pub fn open(path: &Path) -> Result<Self, EncryptionError> {
        let failed = |source| EncryptionError::Read { path: path.to_owned(), source };
        Self::parse(&std::fs::read_to_string(path).map_err(failed)?)
    }

    /// What a server goes by.
    pub fn settings(&self) -> Result<Settings, EncryptionError> {
        let keys = self.keys.iter().map(|(_, key)| key.read()).collect::<Result<_, _>>()?;
        let sealed = match self.seals {
            true => self.resources.iter().map(|it| collection_of(it)).collect(),
            false => Vec::new(),
        };
        Ok(Settings::new(keys, sealed))
    }

    /// A vault that goes by it.
    pub fn vault(&self) -> Result<Arc<Vault>, EncryptionError> {
        Ok(Vault::new(self.settings()?))
    }

    /// Id and name of each key, of the one that wraps first.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &str)> {
        self.keys.iter().map(|(id, key)| (id.as_str(), key.name.as_str()))
    }

    /// Makes a key that unwraps, but does not wrap yet; returns its id.
    pub fn add(&mut self) -> Result<String, EncryptionError> {
        if MAX_KEYS <= self.keys.len() {
            let why = format!("there have to be 1 to {MAX_KEYS} keys");
            return Err(EncryptionError::Meaning(why));
        }
        let (id, key) = Key::make()?;
        self.keys.push((id.clone(), key));
        Ok(id)
    }

    /// Has a key wrap from now on.
    pub fn wrap_with(&mut self, id: &str) -> Result<(), EncryptionError> {
        let at = self.at(id)?;
        self.keys[..=at].rotate_right(1);
        Ok(())
    }

    /// Takes out a key: what it still wraps is lost without a copy of it.
    pub fn remove(&mut self, id: &str) -> Result<(), EncryptionError> {
        match self.at(id)? {
            0 => Err(EncryptionError::Wraps(id.to_owned())),
            at => {
                self.keys.remove(at);
                Ok(())
            }
        }
    }

    fn at(&self, id: &str) -> Result<usize, EncryptionError> {
        let found = self.keys.iter().position(|(known, key)| known == id || key.name == id);
        found.ok_or_else(|| EncryptionError::Unknown(id.to_owned()))
    }
}

fn is_sealable(name: &str) -> bool {
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let is_name = !name.is_empty() && name.len() < 256 && name.bytes().all(good);
    is_name && !name.starts_with('.') && !name.ends_with('.') && !NOT_SEALED.contains(&name)
}

/// Where the objects of a resource lie, given as `NAME` or `NAME.GROUP`.
fn collection_of(name: &str) -> Collection {
    let (resource, group) = name.split_once('.').unwrap_or((name, ""));
    Collection::new(group, resource)
}

/// The first line of what a reader of YAML says; the lines below show the text.
fn without_snippet(told: &str) -> String {
    told.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(resources: &str, providers: &str) -> String {
        format!(
            "apiVersion: {API_VERSION}\nkind: {KIND}\nresources:\n- resources: {resources}\n  providers: {providers}\n"
        )
    }

    const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = crate::error::chain(&EncryptionFile::parse(text).unwrap_err());
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(SECRET), "{error}");
    }

    #[test]
    fn a_file_reads_back_and_keys_take_turns_in_it() {
        let mut file = EncryptionFile::new().unwrap();
        let first = file.keys().next().unwrap().0.to_owned();
        let second = file.add().unwrap();
        assert!(matches!(file.remove(&first), Err(EncryptionError::Wraps(_))));
        file.wrap_with(&second).unwrap();
        assert_eq!(file.keys().map(|it| it.0).collect::<Vec<_>>(), [&*second, &*first]);
        assert_eq!(EncryptionFile::parse(&file.text().unwrap()).unwrap(), file);
        let settings = file.settings().unwrap();
        assert_eq!(settings.keys()[0].id(), second);
        assert!(settings.seals(&Collection::new("", "secrets")));
        assert!(!settings.seals(&Collection::new("", "configmaps")));
        file.remove(&first).unwrap();
        assert!(matches!(file.remove("x"), Err(EncryptionError::Unknown(_))));
        assert!(!format!("{file:?}").contains(&file.keys[0].1.secret));
    }

    #[test]
    fn upstreams_form_is_read() {
        let aesgcm = format!("{{aesgcm: {{keys: [{{name: one, secret: {SECRET}}}]}}}}");
        let text =
            with("[secrets, widgets.example.com]", &format!("[{aesgcm}, {{identity: {{}}}}]"));
        let settings = EncryptionFile::parse(&text).unwrap().settings().unwrap();
        assert!(settings.seals(&Collection::new("example.com", "widgets")));
        let text = with("[secrets]", &format!("[{{identity: {{}}}}, {aesgcm}]"));
        let settings = EncryptionFile::parse(&text).unwrap().settings().unwrap();
        assert!(!settings.seals(&Collection::new("", "secrets")) && settings.keys().len() == 1);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_keys() {
        let aesgcm = |keys: &str| format!("[{{aesgcm: {{keys: {keys}}}}}]");
        let good = aesgcm(&format!("[{{name: one, secret: {SECRET}}}]"));
        refused("kind: x", "YAML");
        refused(&with("[secrets]", &good).replace("Configuration", "Config"), "it has to be a");
        refused(&with("['*.*']", &good), "one by one");
        refused(&with("[leases.coordination.k8s.io]", &good), "cannot be");
        refused(&with("[secrets]", "[{identity: {}}]"), "aesgcm");
        refused(&with("[secrets]", "[{kms: {name: x}}]"), "kms");
        refused(&with("[secrets]", &aesgcm("[]")), "1 to 16");
        refused(&with("[secrets]", &aesgcm("[{name: one, secret: AAEC}]")), "32 bytes");
        refused(
            &with("[secrets]", &aesgcm(&format!("[{{name: one, secret: {SECRET}x}}]"))),
            "base64",
        );
        let twice = format!("[{{name: one, secret: {SECRET}}}, {{name: two, secret: {SECRET}}}]");
        refused(&with("[secrets]", &aesgcm(&twice)), "twice");
        refused(&with("[secrets]", &good.replace("name: one", "nome: one")), "nome");
    }
}
