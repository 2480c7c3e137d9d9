//! An API server as a store of values: each key is a ConfigMap.

use futures::{FutureExt as _, future::BoxFuture};
use insula_client::{Api, DeleteOptions, Error, Tenanted};
use insula_history::{
    drive::{Failure, Subject},
    op::{Expect, Id, Seen},
};
use k8s_openapi::api::core::v1::ConfigMap;

/// ConfigMaps of one namespace, named after a prefix and the key's number.
pub(crate) struct ConfigMaps {
    pub(crate) api: Api<ConfigMap>,
    pub(crate) prefix: String,
}

/// What became of a write, as far as the answer tells.
fn failure(error: &Error) -> Failure {
    match error.code() {
        Some(404 | 409) => Failure::Conflict,
        // It was never looked at.
        Some(401 | 403 | 429) => Failure::Refused,
        None if is_unreached(error) => Failure::Refused,
        _ => Failure::Unknown,
    }
}

/// There was no connection to send it on.
fn is_unreached(error: &Error) -> bool {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |it| it.source());
    causes.any(|cause| {
        let client = cause.downcast_ref::<hyper_util::client::legacy::Error>();
        client.is_some_and(hyper_util::client::legacy::Error::is_connect)
    })
}

pub(crate) fn revision(object: &ConfigMap) -> Option<u64> {
    object.metadata.resource_version.as_deref()?.parse().ok()
}

fn number(object: &ConfigMap, field: &str) -> Option<u64> {
    object.data.as_ref()?.get(field)?.parse().ok()
}

/// A ConfigMap with one number in it.
pub(crate) fn config_map(name: &str, field: &str, number: u64) -> ConfigMap {
    let mut object = ConfigMap::default();
    object.metadata.name = Some(name.to_owned());
    object.data = Some([(field.to_owned(), number.to_string())].into());
    object
}

impl ConfigMaps {
    fn name(&self, key: u32) -> String {
        format!("{}-{key}", self.prefix)
    }
}

fn written(answer: Result<Tenanted<ConfigMap>, Error>) -> Result<Option<u64>, Failure> {
    answer.map(|object| revision(&object)).map_err(|error| failure(&error))
}

impl Subject for ConfigMaps {
    fn get(&self, key: u32) -> BoxFuture<'_, Result<Option<Seen>, Failure>> {
        async move {
            let Ok(found) = self.api.get_opt(&self.name(key)).await else {
                return Err(Failure::Refused);
            };
            Ok(found.map(|object| {
                let (id, revision) = (number(&object, "id").unwrap(), revision(&object).unwrap());
                Seen { id, revision }
            }))
        }
        .boxed()
    }

    fn put(&self, key: u32, id: Id, expect: Expect) -> BoxFuture<'_, Result<Option<u64>, Failure>> {
        async move {
            let mut object = config_map(&self.name(key), "id", id);
            match expect {
                Expect::Absent => written(self.api.create(&object).await),
                Expect::Version(seen) => {
                    object.metadata.resource_version = Some(seen.revision.to_string());
                    written(self.api.update(&object).await)
                }
                Expect::Present => written(self.api.update(&object).await),
                Expect::Anything => unreachable!("the plan says that there are none"),
            }
        }
        .boxed()
    }

    fn delete(&self, key: u32, expect: Expect) -> BoxFuture<'_, Result<Option<u64>, Failure>> {
        async move {
            let mut options = DeleteOptions::default();
            match expect {
                // There is no such delete: it would always be refused.
                Expect::Absent => return Err(Failure::Refused),
                Expect::Version(seen) => options = options.only_version(seen.revision.to_string()),
                _ => {}
            }
            match self.api.delete(&self.name(key), &options).await {
                Ok(_) => Ok(None),
                Err(error) => Err(failure(&error)),
            }
        }
        .boxed()
    }
}
