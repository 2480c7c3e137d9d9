//! How to reach an etcd cluster, and as whom.

use std::{path::PathBuf, time::Duration};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::{
    error::OpenError,
    map::{Backend, EtcdPlace},
};

/// How to reach an etcd cluster.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// URLs of the members; `https` needs [`EtcdConfig::tls`] unless public roots will do.
    pub endpoints: Vec<String>,
    /// All keys begin with it. Two partitions on one cluster need two prefixes.
    pub prefix: String,
    pub tls: Option<EtcdTls>,
    pub user: Option<EtcdUser>,
    /// Another etcd for collections of which all is relaxed, reached in the same way.
    pub relaxed: Vec<String>,
}

impl EtcdConfig {
    /// Where objects lie unless configured otherwise.
    pub const PREFIX: &str = "/insula";

    /// A cluster without TLS and users.
    pub fn plain(endpoints: Vec<String>) -> Self {
        Self { endpoints, prefix: Self::PREFIX.into(), tls: None, user: None, relaxed: Vec::new() }
    }

    /// An etcd of the map, reached as `access` says.
    pub(crate) fn of(place: &EtcdPlace, access: Option<&Self>) -> Self {
        Self {
            endpoints: place.endpoints.clone(),
            prefix: place.prefix.clone(),
            tls: access.and_then(|access| access.tls.clone()),
            user: access.and_then(|access| access.user.clone()),
            relaxed: place.relaxed.clone(),
        }
    }

    /// What the map says of it.
    pub(crate) fn place(&self) -> Backend {
        Backend::Etcd(EtcdPlace {
            endpoints: self.endpoints.clone(),
            prefix: self.prefix.clone(),
            relaxed: self.relaxed.clone(),
        })
    }

    /// The etcd for collections of which all is relaxed, if there is one.
    pub(super) fn second(&self) -> Option<Self> {
        let second = Self { endpoints: self.relaxed.clone(), relaxed: Vec::new(), ..self.clone() };
        (!self.relaxed.is_empty()).then_some(second)
    }

    /// The same etcd, other keys.
    pub(crate) fn at_prefix(&self, prefix: &str) -> Self {
        Self { prefix: prefix.into(), relaxed: Vec::new(), ..self.clone() }
    }

    /// How the client is told. Reads the files.
    pub(super) fn connect_options(&self) -> Result<ConnectOptions, OpenError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            // Servers close connections that ping more often than every five seconds.
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(3))
            .with_tcp_keepalive(Duration::from_secs(10))
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(user) = &self.user {
            options = options.with_user(&user.name, &user.password);
        }
        if let Some(tls) = &self.tls {
            let read = |path: &PathBuf| {
                std::fs::read(path).map_err(|source| OpenError::io("read", path, source))
            };
            let mut connect =
                TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
            if let Some((certificate, key)) = &tls.identity {
                connect = connect.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            options = options.with_tls(connect);
        }
        Ok(options)
    }
}

/// PEM files for a TLS connection to etcd.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// Who may sign the members' certificates.
    pub ca: PathBuf,
    /// This process's own certificate and key, if the members ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Who to be in an etcd with authentication.
#[derive(Clone)]
pub struct EtcdUser {
    pub name: String,
    pub password: String,
}

impl std::fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}
