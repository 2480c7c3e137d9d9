//! `insula tenant`: a tenant and its first administrator in one line.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use insula_api::{
    kinds::{Subject, TenantPhase},
    names::TenantName,
};
use insula_apiserver::pki::Authority;
use insula_client::{Client, Tenant};
use serde_json::{Value, json};

use crate::{cli, data_dir::DataDir, kubeconfig, signals::run_until_signalled};

const GROUP: &str = "rbac.authorization.k8s.io";
/// How long a tenant may take to be ready, and how often that is looked at.
const READY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// `insula tenant create`.
pub(crate) fn create(options: &cli::TenantCreate) -> Result<()> {
    let tenant = TenantName::parse(&options.name)?;
    if tenant.is_system() {
        bail!("\"system\" is the platform's own tenant, which is there already");
    }
    kubeconfig::check_names(&options.admin, &[])?;
    let (pki, admin) = match (&options.data_dir, &options.pki) {
        (_, Some(pki)) => (pki.clone(), pki.join("admin.kubeconfig")),
        (Some(dir), None) => {
            let directory = DataDir::open(dir)?;
            (directory.pki(), directory.path("admin.kubeconfig"))
        }
        (None, None) => bail!("say which cloud: --data-dir DIR or --pki DIR"),
    };
    if !pki.join("ca.key").exists() {
        bail!("{} has no certificate authority", pki.display());
    }
    let authority = Authority::open_or_create(&pki)?;
    let server = server(&admin)?;
    let is_new = run_until_signalled(async |shutdown| {
        let work = make(&admin, &tenant, options);
        tokio::select! {
            done = work => done,
            () = shutdown.cancelled() => bail!("interrupted; the tenant may be there"),
        }
    })?;
    let pair = authority.client(&tenant, &options.admin, &[""; 0])?;
    let text = kubeconfig::text(&server, &authority, &tenant, &options.admin, &pair);
    kubeconfig::write(options.out.as_deref(), &text)?;
    let done = if is_new { "created" } else { "unchanged" };
    tell(&format!("tenant.insula.io/{tenant} {done}"));
    if let Some(out) = &options.out {
        tell(&format!("kubeconfig of {}: {}", options.admin, out.display()));
    }
    Ok(())
}

/// Not on the standard output, which the kubeconfig may be.
#[allow(clippy::print_stderr, reason = "what the operator wants to know")]
fn tell(text: &str) {
    eprintln!("{text}");
}

/// The server that a kubeconfig of the platform names.
fn server(path: &Path) -> Result<String> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not ours", path.display()))?;
    let server = config.pointer("/clusters/0/cluster/server").and_then(Value::as_str);
    let server = server.with_context(|| format!("{} names no server", path.display()))?;
    Ok(server.strip_suffix("/tenants/system").unwrap_or(server).to_owned())
}

/// Makes the tenant and waits until it is ready. False if it was there already.
async fn make(admin: &Path, name: &TenantName, options: &cli::TenantCreate) -> Result<bool> {
    let client = Client::from_kubeconfig(admin, "insula-tenant").await?;
    let tenants = client.system().api::<Tenant>();
    let user = Subject {
        kind: "User".into(),
        name: options.admin.clone(),
        api_group: Some(GROUP.into()),
        namespace: None,
    };
    let wanted = json!({
        "apiVersion": "insula.io/v1", "kind": "Tenant",
        "metadata": {
            "name": name.as_str(),
            "labels": {"pod-security.kubernetes.io/enforce": options.pod_security},
        },
        "spec": {"partition": options.partition, "admins": [user]},
    });
    let is_new = match tenants.create(&serde_json::from_value(wanted)?).await {
        Err(error) if error.is_already_exists() => {
            let found = tenants.get(name.as_str()).await?;
            if !found.spec.admins.contains(&user) {
                bail!(
                    "tenant {name} is there already, and {} is none of its first administrators; \
                     whoever is can bind the role cluster-admin to others",
                    options.admin
                );
            }
            false
        }
        made => made.map(|_| true)?,
    };
    let begun = tokio::time::Instant::now();
    loop {
        let status = tenants.get(name.as_str()).await?.status.clone().unwrap_or_default();
        match status.phase {
            Some(TenantPhase::Active) => return Ok(is_new),
            Some(TenantPhase::Terminating) => bail!("tenant {name} is being deleted"),
            _ if READY < begun.elapsed() => bail!(
                "tenant {name} was made, and did not get ready within {} s: do the controllers run?",
                READY.as_secs()
            ),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}
