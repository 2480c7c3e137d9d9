//! Validation: what is wrong with an object, in upstream's words.
//!
//! Metadata is checked alike for every resource ([`metadata`]); what fields may hold is a table
//! ([`rules`]), what they may hold together are functions by type, and what may not change is a
//! table and functions again ([`updates`]).

mod amounts;
mod at;
mod certificates;
mod containers;
mod devices;
mod events;
mod formats;
mod job_status;
mod jobs;
mod metadata;
mod networks;
mod pod_updates;
mod pods;
mod policies;
mod rule;
mod rules;
mod scheduling;
mod services;
mod status;
mod storage;
mod updates;
mod workloads;

use insula_api::{
    object,
    schema::{Schema, TypeId},
};
use insula_custom::path::Path;
use serde_json::Value;

use self::at::Check;
pub(crate) use self::{
    formats::sloppy_address, metadata::KNOWN_FINALIZERS, services::cluster_addresses,
};
use crate::{
    admission, aggregation, custom,
    error::FieldError,
    providers::config,
    registry::{Nature, Served},
};

type Errors = Vec<FieldError>;

/// Checks between the fields of types, by the types' names.
const CHECKS: &[&[(&str, Check)]] = &[
    amounts::CHECKS,
    certificates::CHECKS,
    containers::CHECKS,
    devices::CHECKS,
    jobs::CHECKS,
    networks::CHECKS,
    pods::CHECKS,
    policies::CHECKS,
    scheduling::CHECKS,
    services::CHECKS,
    storage::CHECKS,
    workloads::CHECKS,
];

/// The object in the form in which its kind is checked: the one that is kept.
fn checked<'a>(served: &Served, it: &'a Value, kept: &'a mut Value) -> &'a Value {
    match served.other {
        Some(other) => {
            *kept = it.clone();
            other.keep(kept);
            kept
        }
        None => it,
    }
}

/// The type of the form in which a built-in kind is checked.
fn type_of(served: &Served) -> Option<TypeId> {
    match (&served.nature, served.other) {
        (Nature::BuiltIn(_), Some(other)) => Schema::built_in().by_kind(&other.stored),
        (Nature::BuiltIn(id), None) => Some(*id),
        (Nature::Custom(_), _) => None,
    }
}

fn walk(served: &Served, it: &Value, errors: &mut Errors) {
    if let Some(id) = type_of(served) {
        rules::walk(id, it, &Path::Root, errors);
    }
}

/// Checks a new object.
pub(crate) fn create(served: &Served, it: &Value) -> Errors {
    let mut errors = Vec::new();
    metadata::check(served, it, &mut errors);
    if events::is_events(&served.resource) {
        events::check(&served.resource, it, &mut errors);
        events::create(&served.resource, it, &mut errors);
        return errors;
    }
    match served.custom() {
        Some(custom) => errors.extend(custom.check(it, None, "")),
        None if custom::holds_definitions(served) => errors.extend(custom::check(it, None)),
        None if served.resource.group == admission::RULES => {
            errors.extend(admission::check_rules(&served.resource.name, it, None));
        }
        None => {
            let mut kept = Value::Null;
            let it = checked(served, it, &mut kept);
            walk(served, it, &mut errors);
            if aggregation::holds_services(served) {
                errors.extend(aggregation::check(it));
            }
            if config::holds(served) {
                errors.extend(config::check(it));
            }
            if let Some(id) = type_of(served) {
                updates::created(&served.resource, id, it, &mut errors);
            }
        }
    }
    errors
}

/// Checks what becomes of an object.
pub(crate) fn update(served: &Served, subresource: &str, old: &Value, new: &Value) -> Errors {
    let mut errors = Vec::new();
    metadata::check_update(served, old, new, &mut errors);
    if let Some(custom) = served.custom() {
        errors.extend(custom.check(new, Some(old), subresource));
        return errors;
    }
    if custom::holds_definitions(served) {
        if subresource.is_empty() {
            errors.extend(custom::check(new, Some(old)));
        }
        return errors;
    }
    if served.resource.group == admission::RULES && subresource.is_empty() {
        errors.extend(admission::check_rules(&served.resource.name, new, Some(old)));
        return errors;
    }
    if events::is_events(&served.resource) {
        events::check(&served.resource, new, &mut errors);
        if !served.resource.group.is_empty() {
            events::update(old, new, &mut errors);
        }
        return errors;
    }
    let Some(id) = type_of(served) else { return errors };
    let (mut old_kept, mut new_kept) = (Value::Null, Value::Null);
    let (old, new) = (checked(served, old, &mut old_kept), checked(served, new, &mut new_kept));
    match subresource {
        "" => {
            // What is on its way out needs no more than to let go of its finalizers.
            let is_leaving = object::is_deleting(old) && data(old).eq(data(new));
            if !is_leaving {
                walk(served, new, &mut errors);
                if aggregation::holds_services(served) {
                    errors.extend(aggregation::check(new));
                }
                if config::holds(served) {
                    errors.extend(config::check(new));
                }
            }
            updates::changed(&served.resource, id, old, new, &mut errors);
        }
        "ephemeralcontainers" => {
            walk(served, new, &mut errors);
            pod_updates::ephemeral_containers(id, old, new, &mut errors);
        }
        "resize" => {
            walk(served, new, &mut errors);
            pod_updates::resize(old, new, &mut errors);
        }
        "status" => status::update(&served.resource, id, old, new, &mut errors),
        "finalize" => metadata::finalizers_of_namespace(new, &mut errors),
        "approval" => certificates::update(old, new, true, &mut errors),
        _ => (),
    }
    errors
}

/// What a change of a service may not do, before anything is taken for it.
pub(crate) fn service_update(old: &Value, new: &Value) -> Errors {
    let mut errors = Vec::new();
    services::update(old, new, &mut errors);
    errors
}

/// All but the metadata.
fn data(it: &Value) -> impl Iterator<Item = (&String, &Value)> {
    it.as_object().into_iter().flatten().filter(|(name, _)| *name != "metadata")
}

#[cfg(test)]
mod tests;
