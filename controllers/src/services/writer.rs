//! Writes slices, and remembers what was written until it is seen.

use insula_client::{Change, Client, DeleteOptions, Error, ObjectKey};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::split::Changes;
use crate::{
    expectations::Expectations,
    objects::{controller_uid, generated_name},
};

/// See the module. Owners are who manages the slices, by uid.
#[derive(Debug)]
pub(super) struct SliceWriter {
    client: Client,
    expectations: Expectations,
}

impl SliceWriter {
    pub(super) fn new(client: Client) -> Self {
        Self { client, expectations: Expectations::default() }
    }

    /// Whether all that was written for an owner was seen.
    pub(super) fn is_settled(&self, owner: &str) -> bool {
        self.expectations.are_met(owner)
    }

    /// An owner is gone.
    pub(super) fn forget(&self, owner: &str) {
        self.expectations.forget(owner);
    }

    /// A slice has changed; returns whose it is.
    pub(super) fn seen<'c>(&self, change: &'c Change<'_, EndpointSlice>) -> Option<&'c str> {
        let slice = change.latest()?;
        let owner = controller_uid(&slice.object)?;
        match change.new {
            Some(_) => self.expectations.created(owner, slice.name()),
            None => self.expectations.deleted(owner, slice.uid()),
        }
        Some(owner)
    }

    /// Writes what is to be changed of what `of` owns, whose uid is `owner`; empty if it is gone.
    pub(super) async fn write(
        &self,
        of: &ObjectKey,
        owner: &str,
        changes: Changes,
    ) -> Result<(), Error> {
        let api = self.client.tenant(&of.tenant).namespaced::<EndpointSlice>(&of.namespace);
        for mut it in changes.create {
            let name = generated_name(&format!("{}-", of.name));
            it.metadata.name = Some(name.clone());
            self.expectations.expect_create(owner, &name);
            if let Err(error) = api.create(&it).await {
                self.expectations.created(owner, &name);
                return Err(error);
            }
        }
        for it in changes.update {
            api.update(&it).await?;
        }
        for it in changes.delete {
            // Of a slice that names somebody else, or nobody, nothing is heard here.
            let is_own = controller_uid(&it.object) == Some(owner);
            if is_own {
                self.expectations.expect_delete(owner, it.uid());
            }
            let outcome = api.delete(it.name(), &DeleteOptions::default().only_uid(it.uid())).await;
            if let Err(error) = outcome {
                if is_own {
                    self.expectations.deleted(owner, it.uid());
                }
                if !error.is_not_found() && !error.is_conflict() {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
