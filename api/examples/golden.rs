//! Compares our decoders with upstream's golden files.
//!
//! Usage: `cargo run -p insula-api --example golden -- DIR`, where DIR holds pairs of
//! `<group>.<version>.<kind>.json` and `.pb` with every field set, as in the `testdata` folder of
//! the Go API types. Each pair must decode to the same value, without unknown fields.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::{error::Error, fs, path::Path, process::ExitCode};

use insula_api::{
    decode, proto, resources,
    schema::{Gvk, Schema},
};
use serde_json::Value;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: golden DIR")?;
    let (mut same, mut differ) = (0, 0);
    for resource in resources::built_in() {
        let group = if resource.group.is_empty() { "core" } else { &resource.group };
        let stem = format!("{group}.{}.{}", resource.version, resource.kind);
        let path = |end: &str| Path::new(&dir).join(format!("{stem}.{end}"));
        if !path("json").exists() {
            println!("{stem}: no golden file");
            continue;
        }
        let problems = compare(&resource.gvk(), &fs::read(path("json"))?, &fs::read(path("pb"))?);
        if problems.is_empty() {
            same += 1;
        } else {
            differ += 1;
            println!("{stem}:");
            for problem in problems.iter().take(8) {
                println!("  {problem}");
            }
        }
    }
    println!("{same} kinds are the same, {differ} differ");
    Ok(if differ == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare(gvk: &Gvk, json: &[u8], pb: &[u8]) -> Vec<String> {
    let schema = Schema::built_in();
    let mut problems = Vec::new();
    let from_json = match decode::json(schema, schema.by_kind(gvk), json) {
        Ok(decoded) => {
            problems.extend(decoded.findings);
            decoded.value
        }
        Err(error) => return vec![format!("json: {error}")],
    };
    match proto::decode(schema, pb, Some(gvk)) {
        Ok((_, from_pb)) => differences("", &from_json, &from_pb, &mut problems),
        Err(error) => problems.push(format!("protobuf: {error}")),
    }
    problems
}

fn differences(path: &str, json: &Value, pb: &Value, out: &mut Vec<String>) {
    match (json, pb) {
        (Value::Object(left), Value::Object(right)) => {
            for (key, value) in left {
                match right.get(key) {
                    Some(other) => differences(&format!("{path}.{key}"), value, other, out),
                    None => out.push(format!("{path}.{key} is missing in protobuf: {value}")),
                }
            }
            for key in right.keys().filter(|key| !left.contains_key(*key)) {
                out.push(format!("{path}.{key} is only in protobuf"));
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (value, other)) in left.iter().zip(right).enumerate() {
                differences(&format!("{path}[{index}]"), value, other, out);
            }
        }
        _ if json == pb => (),
        _ => out.push(format!("{path}: {json} in JSON, {pb} in protobuf")),
    }
}
