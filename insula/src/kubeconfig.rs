//! Kubeconfigs: a server, its CA, and a client certificate of a user.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use insula_api::names::TenantName;
use insula_apiserver::pki::{Authority, Pair, write_private};
use serde_json::json;

use crate::{cli, data_dir::DataDir};

/// `insula kubeconfig`.
pub(crate) fn run(options: &cli::Kubeconfig) -> Result<()> {
    issue(&options.of, || {
        let directory = DataDir::open(&options.data_dir)?;
        if !directory.pki().join("ca.crt").exists() {
            bail!(
                "{} has no certificate authority; start `insula up --data-dir {}` once first",
                options.data_dir.display(),
                options.data_dir.display()
            );
        }
        let authority = Authority::open_or_create(&directory.pki())?;
        let server = fs::read_to_string(directory.path("endpoint")).context(
            "the data directory does not say where its API server is; start `insula up` once",
        )?;
        Ok((authority, server.trim().to_owned()))
    })
}

/// Writes a user's kubeconfig, with a new certificate. The authority and the server's URL are asked
/// for when it is known that there can be such a user.
pub(crate) fn issue(
    of: &cli::UserKubeconfig,
    by: impl FnOnce() -> Result<(Authority, String)>,
) -> Result<()> {
    let tenant = TenantName::parse(&of.tenant)?;
    check_names(&of.user, &of.group)?;
    let (authority, server) = by()?;
    let pair = authority.client(&tenant, &of.user, &of.group)?;
    write(of.out.as_deref(), &text(&server, &authority, &tenant, &of.user, &pair))
}

/// Refuses what cannot stand in a certificate.
pub(crate) fn check_names(user: &str, groups: &[String]) -> Result<()> {
    if user.is_empty() || user.chars().any(char::is_control) {
        bail!("{user:?} is not a user name");
    }
    if groups.iter().any(|it| it.is_empty() || it.chars().any(char::is_control)) {
        bail!("a group name is empty or has control characters");
    }
    Ok(())
}

/// Into a file that only its owner may read, or to standard output.
pub(crate) fn write(out: Option<&Path>, text: &str) -> Result<()> {
    match out {
        Some(path) => Ok(write_private(path, text)?),
        None => {
            print(text);
            Ok(())
        }
    }
}

#[allow(clippy::print_stdout, reason = "the kubeconfig is this command's output")]
fn print(text: &str) {
    print!("{text}");
}

/// A kubeconfig, as JSON, which is YAML too.
pub(crate) fn text(
    server: &str,
    authority: &Authority,
    tenant: &TenantName,
    user: &str,
    pair: &Pair,
) -> String {
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let name = format!("{user}@{tenant}");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": tenant.as_str(), "cluster": {
            "server": format!("{server}/tenants/{tenant}"),
            "certificate-authority-data": encode(authority.certificate()),
        }}],
        "users": [{"name": name, "user": {
            "client-certificate-data": encode(&pair.certificate),
            "client-key-data": encode(&pair.key),
        }}],
        "contexts": [{"name": name, "context": {
            "cluster": tenant.as_str(), "user": name, "namespace": "default",
        }}],
        "current-context": name,
    });
    format!("{config:#}\n")
}
