//! The servers that are measured: processes of their own, on free ports of the loopback.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{Failure, JSON, client::Client};

/// How long a server may take to begin.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) started_in: Duration,
    /// The server is the last.
    children: Vec<Child>,
    /// How the server is started.
    command: Command,
    address: String,
    tls: Arc<ClientConfig>,
    /// Signs its clients' certificates, if it has no command for that.
    authority: Option<(String, KeyPair)>,
    dir: tempfile::TempDir,
}

impl Drop for Subject {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Who can be measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which {
    Embedded,
    OnEtcd,
    Peer,
}

impl Subject {
    pub(crate) async fn start(which: Which) -> Result<Self, Failure> {
        match which {
            Which::Embedded => Self::embedded().await,
            Which::OnEtcd => Self::on_etcd().await,
            Which::Peer => Self::peer().await,
        }
    }

    /// Ours, with the store in its process.
    async fn embedded() -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        Self::ours("insula, embedded store", dir, Vec::new(), &[]).await
    }

    /// Ours, with a real etcd behind it.
    async fn on_etcd() -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        let (etcd, url) = etcd(dir.path())?;
        let store = format!("etcd=p1={url}");
        Self::ours("insula, etcd", dir, vec![etcd], &["--store", &store]).await
    }

    async fn ours(
        name: &str,
        dir: tempfile::TempDir,
        mut children: Vec<Child>,
        more: &[&str],
    ) -> Result<Self, Failure> {
        let binary =
            find("insula").ok_or("insula is not built: cargo build --release -p insula")?;
        let data = dir.path().join("data");
        let address = format!("127.0.0.1:{}", free_port()?);
        let begun = Instant::now();
        let mut command = Command::new(binary);
        command
            .arg("up")
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen", &address, "--advertise-address", "127.0.0.1"])
            .args(["--without", "node,controllers,scheduler"])
            .args(more)
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log"))?);
        children.push(command.spawn()?);
        let file = data.join("admin.kubeconfig");
        while !file.exists() {
            if PATIENCE < begun.elapsed() {
                return Err("insula did not begin".into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let [roots, certificate, key] = credentials(&file)?;
        let tls = tls(&roots, &certificate, &key)?;
        Self::begun(name, begun, children, command, address, tls, dir).await
    }

    /// Kubernetes' own, with etcd.
    async fn peer() -> Result<Self, Failure> {
        let binary = find("kube-apiserver").ok_or("kube-apiserver is not here")?;
        let dir = tempfile::tempdir()?;
        let (etcd, url) = etcd(dir.path())?;
        let mut children = vec![etcd];
        let path = |name: &str| dir.path().join(name);
        // One authority for clients, and a key for tokens.
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate()?;
        let ca = params.self_signed(&ca_key)?;
        fs::write(path("ca.crt"), ca.pem())?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "bench");
        params.distinguished_name.push(DnType::OrganizationName, "kubeadm:cluster-admins");
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &Issuer::from_ca_cert_pem(&ca.pem(), &ca_key)?)?;
        let masters = masters(&ca.pem(), &ca_key)?;
        let tokens = KeyPair::generate()?;
        fs::write(path("sa.key"), tokens.serialize_pem())?;
        fs::write(path("sa.pub"), tokens.public_key_pem())?;
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let begun = Instant::now();
        let mut command = Command::new(binary);
        command
            .arg(format!("--etcd-servers={url}"))
            .arg(format!("--secure-port={port}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--cert-dir={}", path("certs").display()))
            .arg(format!("--client-ca-file={}", path("ca.crt").display()))
            .arg(format!("--service-account-signing-key-file={}", path("sa.key").display()))
            .arg(format!("--service-account-key-file={}", path("sa.pub").display()))
            .args(["--service-account-issuer=https://bench", "--authorization-mode=RBAC"])
            .args(["--service-cluster-ip-range=10.96.0.0/16"])
            // As many at once as the others allow.
            .args(["--max-requests-inflight=3000", "--max-mutating-requests-inflight=3000"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log"))?);
        children.push(command.spawn()?);
        let root = path("certs").join("apiserver.crt");
        while !root.exists() {
            if PATIENCE < begun.elapsed() {
                return Err("kube-apiserver did not begin".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let root = fs::read(root)?;
        let pem = key.serialize_pem();
        let tls_user = tls(&root, certificate.pem().as_bytes(), pem.as_bytes())?;
        let tls_masters = tls(&root, masters.0.as_bytes(), masters.1.as_bytes())?;
        let name = "kube-apiserver, etcd";
        let begun = Self::begun(name, begun, children, command, address, tls_masters, dir);
        let mut subject = begun.await?;
        // Whom RBAC has to look at, as with the others.
        let binding = serde_json::json!({
            "metadata": {"name": "bench"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "kubeadm:cluster-admins"}],
        });
        let uri = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        let admin = &subject.connect(1).await?[0];
        admin.ask(Method::POST, uri, JSON, binding.to_string()).await?;
        subject.tls = tls_user;
        subject.authority = Some((ca.pem(), ca_key));
        Ok(subject)
    }

    /// Waits until the server is ready.
    async fn begun(
        name: &str,
        begun: Instant,
        children: Vec<Child>,
        command: Command,
        address: String,
        tls: Arc<ClientConfig>,
        dir: tempfile::TempDir,
    ) -> Result<Self, Failure> {
        let mut subject = Self {
            name: name.into(),
            started_in: Duration::ZERO,
            children,
            command,
            address,
            tls,
            authority: None,
            dir,
        };
        subject.started_in = subject.ready(begun).await?;
        Ok(subject)
    }

    /// Waits until the server is ready, and tells how long it took.
    async fn ready(&self, begun: Instant) -> Result<Duration, Failure> {
        loop {
            if let Ok(clients) = self.connect(1).await
                && let Ok((StatusCode::OK, _)) =
                    clients[0].ask(Method::GET, "/readyz", JSON, String::new()).await
            {
                return Ok(begun.elapsed());
            }
            if PATIENCE < begun.elapsed() {
                return Err(format!("{} is not ready", self.name).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills the server and starts it again, with all that it has stored.
    pub(crate) async fn restart(&mut self) -> Result<Duration, Failure> {
        if let Some(mut server) = self.children.pop() {
            server.kill()?;
            server.wait()?;
        }
        let begun = Instant::now();
        self.children.push(self.command.spawn()?);
        self.ready(begun).await
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Where it keeps what it has.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Who signs its clients' certificates, if it has no command for that.
    pub(crate) fn authority(&self) -> Option<&(String, KeyPair)> {
        self.authority.as_ref()
    }

    pub(crate) async fn connect(&self, count: usize) -> Result<Vec<Client>, Failure> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(Client::connect(&self.address, self.tls.clone()).await?);
        }
        Ok(clients)
    }

    /// CPU time that the server's processes have used.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        let mut sum = Duration::ZERO;
        for child in &self.children {
            for task in fs::read_dir(format!("/proc/{}/task", child.id()))? {
                let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
                let nanos = text.split(' ').next().unwrap_or_default().parse()?;
                sum += Duration::from_nanos(nanos);
            }
        }
        Ok(sum)
    }

    /// Resident memory of the server's processes, in bytes.
    pub(crate) fn memory(&self) -> Result<u64, Failure> {
        let mut sum = 0;
        for child in &self.children {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
            let line = status.lines().find(|it| it.starts_with("VmRSS:")).unwrap_or_default();
            sum += 1024 * line.split_whitespace().nth(1).unwrap_or("0").parse::<u64>()?;
        }
        Ok(sum)
    }

    pub(crate) async fn stop(self) -> Result<(), Failure> {
        drop(self);
        // Its ports and pages are free before the next one begins.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }
}

/// What a kubeconfig has of PEM: whom its user believes, and who it is.
pub(crate) fn credentials(file: &Path) -> Result<[Vec<u8>; 3], Failure> {
    let kubeconfig: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(file)?)?;
    let data = |value: &serde_json::Value| {
        use base64::Engine as _;
        let text = value.as_str().unwrap_or_default();
        base64::engine::general_purpose::STANDARD.decode(text)
    };
    let user = &kubeconfig["users"][0]["user"];
    Ok([
        data(&kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"])?,
        data(&user["client-certificate-data"])?,
        data(&user["client-key-data"])?,
    ])
}

/// A certificate and key of a member of `system:masters`.
fn masters(ca: &str, key: &KeyPair) -> Result<(String, String), Failure> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "masters");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let own = KeyPair::generate()?;
    let certificate = params.signed_by(&own, &Issuer::from_ca_cert_pem(ca, key)?)?;
    Ok((certificate.pem(), own.serialize_pem()))
}

/// Starts an etcd and tells where it is.
fn etcd(dir: &Path) -> Result<(Child, String), Failure> {
    let binary = find("etcd").ok_or("etcd is not here")?;
    let (client, peer) = (free_port()?, free_port()?);
    let url = format!("http://127.0.0.1:{client}");
    let peers = format!("http://127.0.0.1:{peer}");
    let child = Command::new(binary)
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .args(["--quota-backend-bytes", "8589934592"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((child, url))
}

/// A program of this build, of `INSULA_PEERS`, or of PATH.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?.parent()?.parent()?.to_owned();
    let peers = std::env::var_os("INSULA_PEERS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).collect::<Vec<_>>();
    places.splice(0..0, peers.into_iter().chain([own]));
    places.into_iter().map(|it| it.join(name)).find(|it| it.is_file())
}

fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What a client needs of PEM: whom it believes, and who it is.
pub(crate) fn tls(
    roots: &[u8],
    certificate: &[u8],
    key: &[u8],
) -> Result<Arc<ClientConfig>, Failure> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots) {
        store.add(root?)?;
    }
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
