//! What the platform shares with all tenants is not theirs to overwrite.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::Value;

use crate::{admission::Admission, custom::shared, error::Result};

/// Refuses a tenant's definition that has the name of one that the platform shares.
pub(in crate::admission) fn definition<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(new) = it.filter(|_| admission.old.is_none()) else { return Ok(()) };
        let name = object::name(new);
        if admission.tenant()?.is_system() || !shared::is_shared(admission.server, name).await? {
            return Ok(());
        }
        let why = format!("{name} is a definition of the platform, you cannot overwrite it");
        Err(admission.forbidden(it, &why))
    }
    .boxed()
}

/// Refuses a tenant's change of what the platform shows it.
pub(in crate::admission) fn keep(admission: &Admission<'_>, it: Option<&Value>) -> Result<()> {
    if admission.old.is_none_or(|old| admission.is_own(old)) {
        return Ok(());
    }
    let why = "it is the platform's, you see it but cannot change it";
    Err(admission.forbidden(it.or(admission.old), why))
}
