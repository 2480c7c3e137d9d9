//! What flags say of storage: for `insula up` and `insula restore`, which have no file for it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use insula_partition::{
    etcd::EtcdConfig,
    partitions::{EtcdPartition, StoreConfig},
};

use crate::{cli::Storage, config::EtcdLogin};

/// What `--store`, `--partitions` and the flags for etcds ask for. 0 partitions: as many as there
/// are, or as a new cloud has.
pub(crate) fn config(storage: &Storage, partitions: u16) -> Result<StoreConfig> {
    if storage.store == "embedded" {
        if let Some(relaxed) = storage.etcd_relaxed.first() {
            bail!("--etcd-relaxed {relaxed}: it is for partitions of `--store etcd=..`");
        }
        return Ok(StoreConfig::Embedded { partitions });
    }
    let Some(list) = storage.store.strip_prefix("etcd=") else {
        bail!(
            "unknown store {:?}; use `embedded` or `etcd=NAME=URL[,URL..];NAME=URL..`",
            storage.store
        )
    };
    let mut partitions = named(list)?;
    for text in &storage.etcd_relaxed {
        for EtcdPartition { name, etcd } in named(text)? {
            match partitions.iter_mut().find(|it| it.name == name) {
                Some(partition) => partition.etcd.relaxed = etcd.endpoints,
                None => bail!("--etcd-relaxed {text}: --store has no partition {name}"),
            }
        }
    }
    let login = login(storage).read()?;
    for partition in &mut partitions {
        partition.etcd.tls.clone_from(&login.tls);
        partition.etcd.user.clone_from(&login.user);
    }
    Ok(StoreConfig::Etcd { partitions })
}

/// How to log in to etcds that are added later.
pub(crate) fn logins(storage: &Storage) -> Result<BTreeMap<String, EtcdConfig>> {
    Ok(BTreeMap::from([("*".to_owned(), login(storage).read()?)]))
}

fn named(text: &str) -> Result<Vec<EtcdPartition>> {
    match StoreConfig::parse_etcd(text)? {
        StoreConfig::Etcd { partitions } => Ok(partitions),
        _ => bail!("{text:?} names no etcd"),
    }
}

fn login(storage: &Storage) -> EtcdLogin {
    EtcdLogin {
        ca: storage.etcd_ca.clone(),
        certificate: storage.etcd_certificate.clone(),
        key: storage.etcd_key.clone(),
        user: storage.etcd_user.clone(),
        password_file: storage.etcd_password_file.clone(),
    }
}
