//! The platform's own kinds: tenants get a partition, and what servers make is not written.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::{names::TenantName, object};
use serde_json::Value;

use super::pod_security;
use crate::{
    admission::{Admission, Operation},
    bootstrap,
    error::Result,
    tenants::ending,
    views,
};

/// A new tenant lives on a partition.
pub(in crate::admission) fn place(admission: &Admission<'_>, it: &mut Value) -> Result<()> {
    if admission.resource().name == "tenants"
        && admission.operation == Operation::Create
        // A name that cannot be is refused by validation, with all else that is wrong.
        && let Ok(name) = TenantName::parse(object::name(it))
    {
        bootstrap::place(admission.server, &name, it)?;
    }
    Ok(())
}

/// What of the platform may be written, and how.
pub(in crate::admission) fn check<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let (server, old) = (admission.server, admission.old);
        match (admission.resource().name.as_str(), it) {
            ("tenants", None) if admission.name == "system" => {
                Err(admission.forbidden(None, "the platform's own tenant may not be deleted"))
            }
            ("tenants", Some(new)) => {
                pod_security::check_labels(admission, new)?;
                bootstrap::check_partition(server, new, old)?;
                if let Some(old) = old
                    && ending::lets_go(new, old)
                    && !admission.call.query.dry_run()?
                    && let Ok(name) = TenantName::parse(object::name(new))
                {
                    ending::end(server, &name).await?;
                }
                Ok(())
            }
            (name, new) => match views::Kind::of(name) {
                Some(kind) => views::check(server, kind, new, old).await,
                None => Ok(()),
            },
        }
    }
    .boxed()
}
