//! A tenant of the server, and who asks in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use http::{Method, StatusCode};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Failure, JSON,
    client::Client,
    subject::{self, Subject},
};

/// See the module. Where there are no tenants, a namespace and a user of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Neighbour {
    address: String,
    namespace: String,
    pem: [Vec<u8>; 3],
    /// Where it can be written down.
    dir: PathBuf,
}

/// What the noisy process is to do.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    neighbour: Neighbour,
    kinds: Vec<String>,
}

impl Neighbour {
    /// Makes it.
    pub(crate) async fn new(subject: &Subject, name: &str) -> Result<Self, Failure> {
        let admin = &subject.connect(1).await?[0];
        let dir = subject.dir().to_owned();
        let pem = match subject.authority() {
            None => {
                let tenant = json!({"metadata": {"name": name}}).to_string();
                make(admin, "/apis/insula.io/v1/tenants", tenant).await?;
                let file = dir.join(format!("{name}.kubeconfig"));
                let group = format!("{name}-admins");
                let made = Command::new(subject::find("insula").ok_or("insula is not built")?)
                    .arg("kubeconfig")
                    .arg("--data-dir")
                    .arg(dir.join("data"))
                    .args(["--tenant", name, "--user", "dev", "--group", &group, "--out"])
                    .arg(&file)
                    .status()?;
                if !made.success() {
                    return Err("there is no kubeconfig".into());
                }
                subject::credentials(&file)?
            }
            Some((ca, key)) => {
                let mut params = CertificateParams::new(Vec::new())?;
                params.distinguished_name.push(DnType::CommonName, name);
                let group = "kubeadm:cluster-admins";
                params.distinguished_name.push(DnType::OrganizationName, group);
                let own = KeyPair::generate()?;
                let made = params.signed_by(&own, &Issuer::from_ca_cert_pem(ca, key)?)?;
                let root = fs::read(dir.join("certs").join("apiserver.crt"))?;
                [root, made.pem().into_bytes(), own.serialize_pem().into_bytes()]
            }
        };
        let address = subject.address().to_owned();
        let made = Self { address, namespace: name.to_owned(), pem, dir };
        let namespace = json!({"metadata": {"name": name}}).to_string();
        make(&made.connect().await?, "/api/v1/namespaces", namespace).await?;
        Ok(made)
    }

    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let [roots, certificate, key] = &self.pem;
        Client::connect(&self.address, subject::tls(roots, certificate, key)?).await
    }

    /// The path of a resource.
    pub(crate) fn path(&self, resource: &str) -> String {
        format!("/api/v1/namespaces/{}/{resource}", self.namespace)
    }

    /// Writes down what the noisy process is to do, and tells where.
    pub(crate) fn write(&self, kinds: &[String]) -> Result<PathBuf, Failure> {
        let file = self.dir.join("orders");
        let orders = Orders { neighbour: self.clone(), kinds: kinds.to_vec() };
        fs::write(&file, serde_json::to_vec(&orders)?)?;
        Ok(file)
    }

    pub(crate) fn read(file: &Path) -> Result<(Self, Vec<String>), Failure> {
        let orders: Orders = serde_json::from_slice(&fs::read(file)?)?;
        Ok((orders.neighbour, orders.kinds))
    }
}

/// Makes an object, when the server takes it.
async fn make(client: &Client, path: &str, body: String) -> Result<(), Failure> {
    for _ in 0..50 {
        let (code, answer) = client.ask(Method::POST, path, JSON, body.clone()).await?;
        match code {
            StatusCode::CREATED | StatusCode::CONFLICT => return Ok(()),
            _ => eprintln!("{code}: {}", String::from_utf8_lossy(&answer)),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(format!("{path} does not take what is made").into())
}
