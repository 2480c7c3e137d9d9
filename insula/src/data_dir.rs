//! The layout of a data directory.
//!
//! ```text
//! DIR/pki/           the CA, the signing key of tokens, certificates of this machine's processes
//! DIR/partitions/    storage
//! DIR/node/          the node agent's state
//! DIR/logs/          logs of containers
//! DIR/endpoint       URL of the API server, for `insula kubeconfig`
//! DIR/admin.kubeconfig, DIR/ca.crt
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Makes the directory if it is not there.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)
            .with_context(|| format!("cannot make the data directory {}", path.display()))?;
        Self::open(path)
    }

    /// Opens one that is there.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        match fs::canonicalize(path) {
            Ok(root) => Ok(Self { root }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("there is no data directory {}; start `insula up` first", path.display())
            }
            Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.path("pki")
    }
}
