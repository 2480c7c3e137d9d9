//! Who is who: every way to prove it, keys that change, and what nobody is let in with.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

#[path = "../harness/mod.rs"]
mod harness;

mod bad;
mod issuers;
mod keys;
mod providers;
mod requests;
mod roles;
mod tokens;

use std::process::Command;

use harness::Cloud;

/// A request of somebody who shows no certificate: status and body. `path` is as the server sees
/// it.
#[track_caller]
fn bare(cloud: &Cloud, path: &str, more: &[&str]) -> (u16, String) {
    bare_at(&cloud.endpoint, cloud.path("ca.crt").to_str().unwrap(), path, more)
}

#[track_caller]
fn bare_at(endpoint: &str, ca: &str, path: &str, more: &[&str]) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args(["-sS", "--path-as-is", "--max-time", "30", "-w", "\n%{http_code}"]);
    let out = command.args(["--cacert", ca]).args(more).arg(format!("{endpoint}{path}")).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

/// As [`bare`], with a bearer token.
#[track_caller]
fn with_token(cloud: &Cloud, path: &str, token: &str) -> (u16, String) {
    bare(cloud, path, &["-H", &format!("Authorization: Bearer {token}")])
}

/// Where somebody reads who they are.
const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// Who a token is of in a tenant, as its server says.
#[track_caller]
fn who(cloud: &Cloud, tenant: &str, token: &str) -> serde_json::Value {
    let header = format!("Authorization: Bearer {token}");
    let path = format!("/tenants/{tenant}{REVIEW}");
    let more = ["-H", &header, "-H", "Content-Type: application/json", "-d", "{}"];
    let (code, body) = bare(cloud, &path, &more);
    assert_eq!(code, 201, "{body}");
    let review: serde_json::Value = serde_json::from_str(&body).unwrap();
    review["status"]["userInfo"].clone()
}
