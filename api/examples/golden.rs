//! Compares our decoders and encoders with upstream's golden files.
//!
//! Usage: `cargo run -p insula-api --example golden -- DIR`, where DIR holds pairs of
//! `<group>.<version>.<kind>.json` and `.pb` with every field set, as in the `testdata` folder of
//! the Go API types. Each pair must decode to the same value, without unknown fields, and what we
//! encode must say what the file says, in whatever order.

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
    let Some(id) = schema.by_kind(gvk) else { return problems };
    let name = (gvk.api_version(), gvk.kind.as_str());
    // Without the spaces that the file has.
    let json = from_json.to_string();
    match proto::enveloped(schema, id, (&name.0, name.1), json.as_bytes()) {
        Ok(ours) => {
            match proto::decode(schema, &ours, None) {
                Ok((_, again)) => differences("encoded", &from_json, &again, &mut problems),
                Err(error) => problems.push(format!("encoded: {error}")),
            }
            let [ours, theirs] = [&ours, pb].map(|bytes| {
                let mut out = Vec::new();
                leaves(&[], &bytes[4..], &mut out);
                out.sort();
                out
            });
            for it in ours.iter().filter(|it| !theirs.contains(it)) {
                problems.push(format!("encoded only by us: {it:?}"));
            }
            for it in theirs.iter().filter(|it| !ours.contains(it)) {
                problems.push(format!("not encoded by us: {it:?}"));
            }
        }
        Err(error) => problems.push(format!("encoding: {error}")),
    }
    problems
}

/// What a message says, as its leaves with the tags that lead to them, in order: whatever order it
/// says it in, and however many pieces. Zeros are left out: Go writes many.
fn leaves(path: &[u64], bytes: &[u8], out: &mut Vec<(Vec<u64>, Vec<u8>)>) {
    for (tag, value) in fields(bytes).into_iter().flatten() {
        let path = [path, &[tag]].concat();
        if tag & 7 == 2 && fields(value).is_some() {
            leaves(&path, value, out);
        } else if !matches!(value, [] | [0]) {
            out.push((path, value.to_vec()));
        }
    }
}

/// The fields of a message; `None` if the bytes are none.
fn fields(mut rest: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    fn varint(rest: &mut &[u8]) -> Option<u64> {
        let end = rest.iter().take(10).position(|byte| byte & 0x80 == 0)?;
        let (number, tail) = rest.split_at(end + 1);
        *rest = tail;
        Some(number.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)))
    }
    let mut out = Vec::new();
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let before = rest;
        let value = match tag & 7 {
            0 => {
                varint(&mut rest)?;
                &before[..before.len() - rest.len()]
            }
            1 => rest.split_off(..8)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest.split_off(..length)?
            }
            _ => return None,
        };
        out.push((tag, value));
    }
    Some(out)
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
