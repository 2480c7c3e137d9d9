//! What devices there are, and what is asked of them.

use serde_json::Value;

use super::at::{At, Check};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.resource.v1.CELDeviceSelector", expression),
    ("api.resource.v1.DeviceRequest", request),
    ("api.resource.v1.DeviceSelector", |it| {
        if !it.has("cel") {
            it.required("cel", "");
        }
    }),
    ("api.resource.v1.ResourcePool", |it| {
        let count = it.number("resourceSliceCount").unwrap_or(0);
        if count <= 0 {
            it.invalid("resourceSliceCount", &count.into(), "must be greater than zero");
        }
        let generation = it.number("generation").unwrap_or(0);
        if generation < 0 {
            it.invalid("generation", &generation.into(), "must be greater than or equal to zero");
        }
    }),
    ("api.resource.v1.ResourceSliceSpec", slice),
];

/// Longest expression, in bytes.
const LONGEST: usize = 10 * 1024;

fn expression(it: &mut At<'_>) {
    let text = it.text("expression").to_owned();
    if LONGEST < text.len() {
        let at = it.at("expression");
        return it.errors.push(FieldError::too_long(at, LONGEST));
    }
    if let Err(error) = insula_cel::syntax(&text) {
        it.invalid("expression", &text.into(), &error.to_string());
    }
}

fn request(it: &mut At<'_>) {
    match (it.has("exactly"), it.list("firstAvailable").is_empty()) {
        (false, true) => {
            it.required("", "exactly one of `exactly` or `firstAvailable` is required")
        }
        (true, false) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            it.invalid("", &Value::Null, why);
        }
        _ => (),
    }
}

fn slice(it: &mut At<'_>) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut set = Vec::new();
    if it.get("nodeName").is_some_and(|it| it == "") {
        let why = "must be either unset or set to a non-empty string";
        it.invalid("nodeName", &"".into(), why);
    } else if it.has("nodeName") {
        set.push("`nodeName`");
    }
    if it.has("nodeSelector") {
        set.push("`nodeSelector`");
    }
    for (field, shown) in
        [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")]
    {
        match it.get(field).and_then(Value::as_bool) {
            Some(true) => set.push(shown),
            Some(false) => {
                it.invalid(field, &false.into(), "must be either unset or set to true");
            }
            None => (),
        }
    }
    match set.len() {
        0 => it.required("", ONE),
        1 => (),
        _ => {
            let shown = format!("{{{}}}", set.join(", "));
            it.invalid("", &shown.into(), &format!("{ONE}, but multiple fields are set"));
        }
    }
    if it.has("sharedCounters") && it.has("devices") {
        let why = "only one of `sharedCounters` or `devices` is allowed";
        it.invalid("", &"".into(), why);
    }
}
