//! Pods on a real containerd, from the API object to the process and back. Needs root.

mod health;
mod lifecycle;
mod restart;

use serde_json::{Value, json};

use crate::testing::shell_container;

/// A container that runs until it is asked to end, and then ends at once.
fn sleeper(name: &str) -> Value {
    shell_container(name, "trap 'exit 0' TERM; while :; do sleep 0.1; done")
}

/// `container` with more fields.
fn with(mut container: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    container.as_object_mut().unwrap().extend(fields);
    container
}

/// An action that runs a shell command.
fn exec(command: &str) -> Value {
    json!({"exec": {"command": ["sh", "-c", command]}})
}
