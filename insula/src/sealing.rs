//! With which keys a server starts on what is stored: not without those that it takes to open it,
//! unless it is told that they are lost.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use insula_apiserver::{encryption::EncryptionFile, pki::write_private};
use insula_partition::{
    partitions::Partitions,
    seal::{self, Vault},
};

/// See the module.
pub(crate) struct Sealing {
    file: Option<EncryptionFile>,
    /// Where the keys come from; where they are written to, if they are new.
    path: Option<PathBuf>,
    is_new: bool,
    /// Whether to start although there is what nobody can open.
    accepts_lost: bool,
}

impl Sealing {
    /// With the keys at `path`, if one is given: it has to be there. Else nothing is sealed.
    pub(crate) fn configured(path: Option<&Path>, accepts_lost: bool) -> Result<Self> {
        let file = path.map(EncryptionFile::open).transpose()?;
        if file.is_none() {
            tracing::warn!(
                "no encryption is configured: secrets lie in the store as they are, for whoever \
                 reads its disk or a backup; name a file of keys as `encryption`"
            );
        }
        Ok(Self { file, path: path.map(Path::to_owned), is_new: false, accepts_lost })
    }

    /// With the keys at `path`, or, where there are none yet, with a new one. That is written when
    /// it is known that nothing needs another.
    pub(crate) fn own(path: &Path, accepts_lost: bool) -> Result<Self> {
        let is_new =
            !path.try_exists().with_context(|| format!("cannot see {}", path.display()))?;
        let file = if is_new { EncryptionFile::new()? } else { EncryptionFile::open(path)? };
        Ok(Self { file: Some(file), path: Some(path.to_owned()), is_new, accepts_lost })
    }

    pub(crate) fn vault(&self) -> Result<Arc<Vault>> {
        Ok(match &self.file {
            Some(file) => file.vault()?,
            None => Arc::default(),
        })
    }

    /// Refuses what is stored if it cannot be opened. Before anything is written to it.
    pub(crate) async fn check(&self, partitions: &Partitions) -> Result<()> {
        let mut lacking: BTreeMap<String, u64> = BTreeMap::new();
        for name in partitions.names() {
            let Some(store) = partitions.store(&name).filter(|_| partitions.is_local(&name)) else {
                continue;
            };
            // One that is not ready yet is somebody else's to tell.
            let Ok(found) = seal::lacking(&*store, partitions.vault()).await else { continue };
            for (key, count) in found {
                *lacking.entry(key).or_default() += count;
            }
        }
        if !lacking.is_empty() {
            let keys: Vec<&str> = lacking.keys().map(String::as_str).collect();
            let why = format!(
                "what is stored is sealed with keys that {} does not have: {} ({} of the tenants' \
                 data keys)",
                self.place(),
                keys.join(", "),
                lacking.values().sum::<u64>()
            );
            if !self.accepts_lost {
                bail!(
                    "{why}; put the file with them back, from a copy or another server's, or add \
                     them to its keys; if they are lost for good, and what they sealed with \
                     them, start once with --accept-lost-keys"
                );
            }
            tracing::warn!("{why}; that stays closed");
        }
        match (&self.file, &self.path) {
            (Some(file), Some(path)) if self.is_new => Ok(write_private(path, &file.text()?)?),
            _ => Ok(()),
        }
    }

    fn place(&self) -> String {
        match &self.path {
            None => "a server without `encryption` in its configuration".into(),
            Some(path) if self.is_new => format!("{}, which is not there,", path.display()),
            Some(path) => path.display().to_string(),
        }
    }
}
