//! The config maps and secrets that a pod names, read before they are used.
//!
//! Reading them up front keeps everything that uses them free of I/O.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Secret, Volume};

/// Names of what a pod refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub config_maps: BTreeSet<String>,
    pub secrets: BTreeSet<String>,
}

/// What those names stand for at one moment. A name that is not in it does not exist.
#[derive(Debug, Clone, Default)]
pub(crate) struct References {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
}

/// What the environment of the pod's containers needs.
pub(crate) fn of_environment(spec: &PodSpec) -> Names {
    let mut names = Names::default();
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        for from in container.env_from.iter().flatten() {
            names.config_maps.extend(from.config_map_ref.iter().map(|it| it.name.clone()));
            names.secrets.extend(from.secret_ref.iter().map(|it| it.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            names.config_maps.extend(source.config_map_key_ref.iter().map(|it| it.name.clone()));
            names.secrets.extend(source.secret_key_ref.iter().map(|it| it.name.clone()));
        }
    }
    names
}

/// What the pod's volumes need.
pub(crate) fn of_volumes(spec: &PodSpec) -> Names {
    let mut names = Names::default();
    for volume in spec.volumes.iter().flatten() {
        let Volume { config_map, secret, projected, .. } = volume;
        names.config_maps.extend(config_map.iter().map(|it| it.name.clone()));
        names.secrets.extend(secret.iter().filter_map(|it| it.secret_name.clone()));
        let sources = projected.iter().flat_map(|it| it.sources.iter().flatten());
        for source in sources {
            names.config_maps.extend(source.config_map.iter().map(|it| it.name.clone()));
            names.secrets.extend(source.secret.iter().map(|it| it.name.clone()));
        }
    }
    names
}
