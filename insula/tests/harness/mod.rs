//! A whole cloud for one test: its own directory, port, and (if it has a node) containerd.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

pub(crate) mod etcd;
pub(crate) mod extension;
pub(crate) mod feed;
pub(crate) mod issuer;
pub(crate) mod json;
pub(crate) mod replicas;
pub(crate) mod servers;
pub(crate) mod socket;
pub(crate) mod webhook;

pub(crate) use webhook::own_address;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How long a debug build on a busy machine may take to get ready.
const READY: Duration = Duration::from_secs(180);
/// Nodes take pods however full the disk is that the tests run on.
pub(crate) const ROOM: &str = "nodefs.available<1Mi";

/// See the module.
pub(crate) struct Cloud {
    dir: tempfile::TempDir,
    child: Option<Child>,
    /// `https://127.0.0.1:PORT`.
    pub(crate) endpoint: String,
    socket: Option<String>,
    extra: Vec<String>,
    /// What runs the program, such as `strace`.
    wrapper: Vec<String>,
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The binary under test.
pub(crate) fn insula() -> Command {
    Command::new(env!("CARGO_BIN_EXE_insula"))
}

impl Cloud {
    /// API server, controllers and scheduler, without a node.
    pub(crate) fn without_node() -> Self {
        Self::start(false, &[])
    }

    /// With a node on a private containerd.
    pub(crate) fn with_node() -> Self {
        Self::start(true, &[])
    }

    pub(crate) fn start(node: bool, extra: &[&str]) -> Self {
        // Short, because a unix socket's path is.
        Self::start_in(Path::new("/tmp"), node, extra)
    }

    /// Without a node, with an audit log by `policy`; returns where the log is.
    pub(crate) fn audited(dir: &Path, policy: &str) -> (Self, PathBuf) {
        let (file, log) = (dir.join("policy.yaml"), dir.join("audit.log"));
        fs::write(&file, policy).unwrap();
        let [file, path] = [&file, &log].map(|it| it.to_str().unwrap());
        (Self::start(false, &["--audit-policy-file", file, "--audit-log-path", path]), log)
    }

    /// Without a node, with all it keeps below `parent`.
    pub(crate) fn on(parent: &Path, extra: &[&str]) -> Self {
        Self::start_in(parent, false, extra)
    }

    /// On what `insula restore` made at `data`, which is moved below `parent`.
    pub(crate) fn restored(parent: &Path, data: &Path, extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("ins").tempdir_in(parent).unwrap();
        let moved =
            Command::new("cp").arg("-a").arg(data).arg(dir.path().join("run")).status().unwrap();
        assert!(moved.success());
        let extra = extra.iter().map(|it| (*it).to_owned()).collect();
        let (endpoint, wrapper) = (String::new(), Vec::new());
        let mut cloud = Self { dir, child: None, endpoint, socket: None, extra, wrapper };
        cloud.up("127.0.0.1:0");
        cloud
    }

    /// Without a node, run by another program: `wrapper` and its arguments.
    pub(crate) fn under(wrapper: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("ins").tempdir_in("/tmp").unwrap();
        let wrapper = wrapper.iter().map(|it| (*it).to_owned()).collect();
        let (endpoint, extra) = (String::new(), Vec::new());
        let mut cloud = Self { dir, child: None, endpoint, socket: None, extra, wrapper };
        cloud.up("127.0.0.1:0");
        cloud
    }

    fn start_in(parent: &Path, node: bool, extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("ins").tempdir_in(parent).unwrap();
        let socket = node.then(|| {
            let out = Command::new(root().join("install/containerd.sh"))
                .args(["start", "--root"])
                .arg(dir.path())
                .output()
                .unwrap();
            assert!(out.status.success(), "containerd: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap().trim().to_owned()
        });
        let extra = extra.iter().map(|it| (*it).to_owned()).collect();
        let (endpoint, wrapper) = (String::new(), Vec::new());
        let mut cloud = Self { dir, child: None, endpoint, socket, extra, wrapper };
        cloud.up("127.0.0.1:0");
        cloud
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn up(&mut self, listen: &str) {
        let mut command = match self.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(env!("CARGO_BIN_EXE_insula"));
                command
            }
            None => insula(),
        };
        command.arg("up").arg("--data-dir").arg(self.data_dir()).args(["--listen", listen]);
        command.args(["--node-port", "0"]);
        match &self.socket {
            Some(socket) => {
                command.arg("--container-runtime-endpoint").arg(format!("unix://{socket}"));
                command.args(["--eviction-hard", ROOM]);
            }
            None => {
                command.args(["--without", "node"]);
            }
        }
        command.args(&self.extra).stdout(Stdio::piped());
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut child = command.stderr(log).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        self.child = Some(child);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let line =
            lines.recv_timeout(READY).unwrap_or_else(|_| panic!("not ready\n{}", self.log()));
        self.endpoint = line.strip_prefix("ready ").unwrap_or_else(|| panic!("{line}")).to_owned();
    }

    /// What the cloud has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// What the cloud has logged, as soon as `text` is in it.
    #[track_caller]
    pub(crate) fn log_until(&self, text: &str) -> String {
        let begin = Instant::now();
        loop {
            let log = self.log();
            if log.contains(text) {
                return log;
            }
            assert!(begin.elapsed() < EVENTUALLY, "{text:?} is not in\n{log}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the process by SIGTERM and checks that it ends well.
    pub(crate) fn terminate(&mut self) {
        let mut child = self.child.take().unwrap();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Ends the process at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        if self.wrapper.is_empty() {
            child.kill().unwrap();
        } else {
            // The wrapper ends by itself, and finishes what it writes.
            let inner = inner(&child).unwrap();
            assert!(Command::new("kill").arg("-KILL").arg(inner).status().unwrap().success());
        }
        child.wait().unwrap();
    }

    /// Starts again on the same directory and address.
    pub(crate) fn again(&mut self) {
        let address = self.endpoint.trim_start_matches("https://").to_owned();
        self.up(&address);
    }

    /// Starts again with other arguments.
    pub(crate) fn again_with(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(|it| (*it).to_owned()).collect();
        self.again();
    }

    /// Tries to start again, with more arguments; returns what it says when it does not.
    #[track_caller]
    pub(crate) fn refuses(&self, more: &[&str]) -> String {
        let mut command = insula();
        command.arg("up").arg("--data-dir").arg(self.data_dir());
        command.args(["--listen", "127.0.0.1:0", "--without", "node"]).args(more);
        let out = command.output().unwrap();
        assert!(!out.status.success(), "it started");
        String::from_utf8(out.stderr).unwrap()
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The process's resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let id = self.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find(|it| it.starts_with("VmRSS:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// A user of the platform: cluster admin.
    pub(crate) fn admin(&self) -> Kubectl {
        Kubectl::new(self.path("admin.kubeconfig"))
    }

    /// A user of a tenant.
    pub(crate) fn user(&self, tenant: &str, user: &str, group: &str) -> Kubectl {
        let out = self.dir.path().join(format!("{tenant}-{user}.kubeconfig"));
        let made = insula()
            .arg("kubeconfig")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--tenant", tenant, "--user", user, "--group", group, "--out"])
            .arg(&out)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Kubectl::new(out)
    }

    /// The tenants of the example, active; with an administrator of each.
    pub(crate) fn tenants(&self) -> (Kubectl, Kubectl) {
        let admin = self.admin();
        admin.ok(&["create", "-f", root().join("docs/examples/tenants.yaml").to_str().unwrap()]);
        for tenant in ["acme", "globex"] {
            admin.until(&["get", "tenant", tenant, "-o", "jsonpath={.status.phase}"], |phase| {
                phase == "Active"
            });
        }
        (self.user("acme", "dev", "acme-admins"), self.user("globex", "dev", "globex-admins"))
    }

    /// Lets a tenant's pods ask for anything.
    pub(crate) fn trust(&self, tenant: &str) {
        let label = "pod-security.kubernetes.io/enforce=privileged";
        self.admin().ok(&["label", "tenant", tenant, label]);
    }
}

/// The process that a wrapper started.
fn inner(wrapper: &Child) -> std::io::Result<String> {
    let id = wrapper.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    Ok(children.trim().to_owned())
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Whoever ends a wrapper may only let go of what is in it.
            if !self.wrapper.is_empty()
                && let Ok(inner) = inner(&child)
            {
                let _ = Command::new("kill").arg("-KILL").arg(inner).status();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("{line}");
            }
        }
        if self.socket.is_some() {
            let _ = Command::new(root().join("install/containerd.sh"))
                .args(["stop", "--root"])
                .arg(self.dir.path())
                .output();
        }
        unmount_below(self.dir.path());
    }
}

/// Takes away what a node left mounted: the memory that pods' volumes are in. The directory cannot
/// be removed before.
pub(crate) fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    let below: Vec<&str> = points.filter(|point| Path::new(point).starts_with(dir)).collect();
    for point in below.iter().rev() {
        let _ = Command::new("umount").args(["-l", point]).status();
    }
}

/// The stock kubectl with one kubeconfig and a cache of its own.
pub(crate) struct Kubectl {
    kubeconfig: PathBuf,
    cache: PathBuf,
}

/// How long the world may take to become as expected.
const EVENTUALLY: Duration = Duration::from_secs(120);

/// Creates by kubectl what must be accepted; what it says on standard error.
#[track_caller]
pub(crate) fn create(kubectl: &Kubectl, manifest: &(impl std::fmt::Display + ?Sized)) -> String {
    let out = kubectl.feed(&["create", "-f", "-"], &manifest.to_string());
    let (stdout, stderr) = texts(&out);
    assert!(out.status.success(), "{stdout}{stderr}");
    stderr
}

/// Creates by kubectl what must be refused; what it says on standard error.
#[track_caller]
pub(crate) fn refused(kubectl: &Kubectl, manifest: &(impl std::fmt::Display + ?Sized)) -> String {
    let out = kubectl.feed(&["create", "-f", "-"], &manifest.to_string());
    let (stdout, stderr) = texts(&out);
    assert!(!out.status.success(), "{stdout}");
    stderr
}

impl Kubectl {
    pub(crate) fn new(kubeconfig: PathBuf) -> Self {
        let cache = kubeconfig.with_extension("cache");
        Self { kubeconfig, cache }
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache);
        command.env_remove("KUBECONFIG");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Runs with `input` on standard input.
    pub(crate) fn feed(&self, args: &[&str], input: &str) -> Output {
        use std::io::Write as _;
        let mut child = self
            .command()
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A request by `curl` with this user's certificate; `url` is a path, or a whole URL. Gives
    /// status, headers and body.
    #[track_caller]
    pub(crate) fn curl(&self, url: &str, more: &[&str]) -> (u16, String, String) {
        self.try_curl(url, more).unwrap()
    }

    /// As [`Kubectl::curl`]; an error if there is no answer.
    pub(crate) fn try_curl(
        &self,
        url: &str,
        more: &[&str],
    ) -> Result<(u16, String, String), String> {
        let (code, headers, body) = self.try_fetch(url, more)?;
        Ok((code, headers, String::from_utf8(body).unwrap()))
    }

    /// As [`Kubectl::curl`], with a body that need not be text.
    #[track_caller]
    pub(crate) fn fetch(&self, url: &str, more: &[&str]) -> (u16, String, Vec<u8>) {
        self.try_fetch(url, more).unwrap()
    }

    /// A `curl` with this user's certificate.
    pub(crate) fn curl_command(&self) -> Command {
        use base64::Engine as _;
        let config = self.config();
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let file = |part: &serde_json::Value, field: &str, name: &str| {
            let text = part[field].as_str().unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            let path = self.kubeconfig.with_extension(name);
            // Others may be reading it at this moment.
            if fs::read(&path).ok().as_ref() != Some(&bytes) {
                let new = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
                fs::write(&new, bytes).unwrap();
                new.persist(&path).unwrap();
            }
            path
        };
        let mut command = Command::new("curl");
        command
            .arg("--cacert")
            .arg(file(cluster, "certificate-authority-data", "ca"))
            .arg("--cert")
            .arg(file(user, "client-certificate-data", "crt"))
            .arg("--key")
            .arg(file(user, "client-key-data", "key"));
        command
    }

    /// A connection with this user's certificate.
    pub(crate) fn connect(&self) -> socket::Stream {
        self.connect_as(true)
    }

    /// A connection of somebody who shows no certificate.
    pub(crate) fn connect_unknown(&self) -> socket::Stream {
        self.connect_as(false)
    }

    fn connect_as(&self, known: bool) -> socket::Stream {
        use base64::Engine as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
        let config = self.config();
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let pem = |part: &serde_json::Value, field: &str| {
            let text = part[field].as_str().unwrap();
            base64::engine::general_purpose::STANDARD.decode(text).unwrap()
        };
        let certificates = |pem: &[u8]| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_slice_iter(pem).map(Result::unwrap).collect()
        };
        let mut roots = rustls::RootCertStore::empty();
        for ca in certificates(&pem(cluster, "certificate-authority-data")) {
            roots.add(ca).unwrap();
        }
        let own = certificates(&pem(user, "client-certificate-data"));
        let key = PrivateKeyDer::from_pem_slice(&pem(user, "client-key-data")).unwrap();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots);
        let tls = match known {
            true => tls.with_client_auth_cert(own, key).unwrap(),
            false => tls.with_no_client_auth(),
        };
        let server = cluster["server"].as_str().unwrap().trim_start_matches("https://");
        let address = server.split('/').next().unwrap();
        let name = ServerName::try_from(address.split(':').next().unwrap().to_owned()).unwrap();
        let connection = rustls::ClientConnection::new(std::sync::Arc::new(tls), name).unwrap();
        let stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(EVENTUALLY)).unwrap();
        rustls::StreamOwned::new(connection, stream)
    }

    fn config(&self) -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(&self.kubeconfig).unwrap()).unwrap()
    }

    /// What a path is at this user's server.
    pub(crate) fn url(&self, path: &str) -> String {
        let config = self.config();
        format!("{}{path}", config["clusters"][0]["cluster"]["server"].as_str().unwrap())
    }

    fn try_fetch(&self, url: &str, more: &[&str]) -> Result<(u16, String, Vec<u8>), String> {
        let url = if url.starts_with('/') { self.url(url) } else { url.to_owned() };
        let mut command = self.curl_command();
        command.args(["-sS", "-i", "--max-time", "30", "-w", "\n%{http_code}"]).args(more).arg(url);
        let out = command.output().unwrap();
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        let answer = out.stdout;
        let end = answer.iter().rposition(|byte| *byte == b'\n').unwrap();
        let code = std::str::from_utf8(&answer[end + 1..]).unwrap().parse().unwrap();
        let body = answer.windows(4).position(|it| it == b"\r\n\r\n").unwrap();
        let headers = String::from_utf8(answer[..body].to_vec()).unwrap().to_lowercase();
        Ok((code, headers, answer[body + 4..end].to_vec()))
    }

    /// What a command that must succeed prints.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = texts(&out);
        assert!(out.status.success(), "kubectl {}: {stdout}{stderr}", args.join(" "));
        stdout
    }

    /// What a command that must fail says.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = texts(&out);
        assert!(!out.status.success(), "kubectl {} succeeded: {stdout}", args.join(" "));
        stderr
    }

    /// Repeats a command until it succeeds with an answer that is as wanted.
    #[track_caller]
    pub(crate) fn until(&self, args: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let out = self.run(args);
            let (stdout, stderr) = texts(&out);
            if out.status.success() && wanted(&stdout) {
                return stdout;
            }
            assert!(
                begin.elapsed() < EVENTUALLY,
                "kubectl {}: still {stdout}{stderr}",
                args.join(" ")
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Standard output and error as text.
pub(crate) fn texts(out: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out.stdout), text(&out.stderr))
}
