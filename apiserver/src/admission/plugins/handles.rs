//! Whose a volume's handle is: the platform says so, and nobody else (decision 55).
//!
//! A volume that a user of the platform makes for a tenant is marked with the driver and the handle
//! that were meant; only what is marked is attached to nodes. Rules of the tenant, which change what
//! passes them, can change neither without being found out.

use insula_api::object;
use serde_json::{Value, json};

use crate::{
    admission::{Admission, Operation, annotation},
    error::Result,
};

/// The annotation: `DRIVER^HANDLE`.
const VOUCHED: &str = "insula.io/handle-vouched";

/// What a volume is to its driver; empty if it has none.
fn handle(volume: &Value) -> String {
    let part = |name| object::text(volume, &["spec", "csi", name]);
    match part("driver") {
        "" => String::new(),
        driver => format!("{driver}^{}", part("volumeHandle")),
    }
}

/// Notes what a user of the platform says of a volume, and marks what such a one makes.
pub(in crate::admission) fn vouch(admission: &Admission<'_>, it: &mut Value) -> Result<()> {
    let is_platforms = admission.tenant()?.is_system();
    if is_platforms || !admission.call.identity.tenant.is_system() {
        return Ok(());
    }
    // Whatever comes later in the chain is not what the caller said.
    admission.vouched.get_or_init(|| {
        if admission.operation == Operation::Create && annotation(it, VOUCHED).is_none() {
            let handle = handle(it);
            if !handle.is_empty() {
                object::metadata_mut(it)
                    .entry("annotations")
                    .or_insert_with(|| json!({}))
                    .as_object_mut()
                    .map(|all| all.insert(VOUCHED.to_owned(), handle.into()));
            }
        }
        annotation(it, VOUCHED).map(str::to_owned)
    });
    Ok(())
}

/// Refuses marks that the platform did not set.
pub(in crate::admission) fn check(admission: &Admission<'_>, it: Option<&Value>) -> Result<()> {
    let Some(new) = it else { return Ok(()) };
    if admission.tenant()?.is_system() {
        return Ok(());
    }
    let mark = annotation(new, VOUCHED);
    let meant = match admission.vouched.get() {
        Some(said) => said.as_deref(),
        None => admission.old.and_then(|old| annotation(old, VOUCHED)),
    };
    if mark != meant {
        let why =
            format!("annotation {VOUCHED} is the platform's, which alone says whose a handle is");
        return Err(admission.forbidden(it, &why));
    }
    if let Some(mark) = mark.filter(|mark| *mark != handle(new)) {
        let why = format!("annotation {VOUCHED} is of {mark:?}, and the volume is not");
        return Err(admission.forbidden(it, &why));
    }
    Ok(())
}
