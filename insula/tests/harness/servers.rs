//! Several API servers as processes on loopback, each on an address of its own.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{Kubectl, ROOM, insula, root};

/// How long a debug build on a busy machine may take to get ready.
const READY: Duration = Duration::from_secs(180);

/// One server.
struct Process {
    name: String,
    address: String,
    child: Option<Child>,
}

/// See the module.
pub(crate) struct Servers {
    dir: tempfile::TempDir,
    servers: Vec<Process>,
    others: Vec<Child>,
    has_containerd: bool,
}

/// A loopback address that nobody else has: made of this process's id and a counter.
fn loopback() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let id = std::process::id();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{}", 64 + (id >> 8) % 128, id & 0xff, next % 250 + 1)
}

impl Servers {
    /// Makes the authority. No server is started yet.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("srv").tempdir_in("/tmp").unwrap();
        let servers = Self { dir, servers: Vec::new(), others: Vec::new(), has_containerd: false };
        servers.pki(&["init"]);
        servers
    }

    fn pki(&self, args: &[&str]) {
        let (verb, rest) = args.split_first().unwrap();
        let made = insula()
            .args(["pki", verb, "--dir"])
            .arg(self.path("pki"))
            .args(rest)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a further server: the first one begins the cluster, the others join it. `serve` is
    /// what `insula pki server --serve` takes.
    pub(crate) fn add(&mut self, name: &str, serve: &str, more: &[&str]) {
        let address = format!("{}:6443", loopback());
        let mut args = vec!["server", "--name", name, "--address", &address];
        args.extend(["--listen", &address, "--serve", serve]);
        args.extend(more);
        let join: Vec<String> = self
            .servers
            .iter()
            .flat_map(|it| ["--join".to_owned(), format!("{}={}", it.name, it.address)])
            .collect();
        args.extend(join.iter().map(String::as_str));
        self.pki(&args);
        self.servers.push(Process { name: name.into(), address, child: None });
        self.start(name);
    }

    /// Starts the first server with other values, in YAML, of some fields of its configuration.
    pub(crate) fn configure(&mut self, name: &str, fields: &[(&str, &str)]) {
        let address = format!("{}:6443", loopback());
        self.pki(&["server", "--name", name, "--address", &address, "--listen", &address]);
        let path = self.path("pki/servers").join(name).join("apiserver.yaml");
        let mut text = String::new();
        let mut left_out = false;
        for line in fs::read_to_string(&path).unwrap().lines() {
            // What is indented belongs to the field before it.
            if !line.starts_with([' ', '-']) {
                left_out = fields.iter().any(|(field, _)| line.starts_with(&format!("{field}:")));
            }
            if !left_out {
                text.push_str(line);
                text.push('\n');
            }
        }
        for (field, value) in fields {
            text.push_str(&format!("{field}: {value}\n"));
        }
        fs::write(&path, text).unwrap();
        self.servers.push(Process { name: name.into(), address, child: None });
        self.start(name);
    }

    fn process(&mut self, name: &str) -> &mut Process {
        self.servers.iter_mut().find(|it| it.name == name).unwrap()
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        &self.servers.iter().find(|it| it.name == name).unwrap().address
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn start(&mut self, name: &str) {
        let lines = self.spawn(name);
        let line = lines.recv_timeout(READY);
        let line = line.unwrap_or_else(|_| panic!("{name} is not ready\n{}", self.log(name)));
        assert!(line.starts_with("ready "), "{line}");
    }

    /// Starts a server. Gives its lines.
    pub(crate) fn spawn(&mut self, name: &str) -> mpsc::Receiver<String> {
        let config = self.path("pki/servers").join(name).join("apiserver.yaml");
        let log = self.path(&format!("{name}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut child = insula()
            .arg("apiserver")
            .arg("--config")
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        self.process(name).child = Some(child);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        lines
    }

    /// Ends a server at once, as a crash does.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut child = self.process(name).child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends a server by SIGTERM and checks that it ends well.
    pub(crate) fn terminate(&mut self, name: &str) {
        let mut child = self.process(name).child.take().unwrap();
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Duration::from_secs(40) < begin.elapsed() {
                let _ = child.kill();
                panic!("{name} does not end\n{}", self.log(name));
            }
            thread::sleep(Duration::from_millis(50));
        };
        assert!(status.success(), "{status}\n{}", self.log(name));
    }

    /// What a server has logged.
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// A user of a tenant, at one of the servers.
    pub(crate) fn user(&self, server: &str, tenant: &str, user: &str, group: &str) -> Kubectl {
        let out = self.path(&format!("{server}-{tenant}-{user}.kubeconfig").replace(':', "-"));
        let url = format!("https://{}", self.address(server));
        let made = insula()
            .args(["pki", "kubeconfig", "--dir"])
            .arg(self.path("pki"))
            .args(["--server", &url, "--tenant", tenant, "--user", user, "--group", group, "--out"])
            .arg(&out)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Kubectl::new(out)
    }

    /// The platform's administrator, at one of the servers.
    pub(crate) fn admin(&self, server: &str) -> Kubectl {
        self.user(server, "system", "admin", "system:masters")
    }

    /// Controllers that speak to one of the servers.
    pub(crate) fn controllers(&mut self, server: &str) {
        let user = self.user(server, "system", "system:kube-controller-manager", "system:masters");
        let log = fs::File::create(self.path("controllers.log")).unwrap();
        let child = insula()
            .args(["controllers", "--kubeconfig"])
            .arg(user.kubeconfig())
            .arg("--root-ca")
            .arg(self.path("pki/ca.crt"))
            .arg("--cluster-signing-cert-file")
            .arg(self.path("pki/ca.crt"))
            .arg("--cluster-signing-key-file")
            .arg(self.path("pki/ca.key"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.others.push(child);
    }

    /// A scheduler and a node on a private containerd, which speak to one of the servers.
    pub(crate) fn node(&mut self, server: &str) {
        let out = Command::new(root().join("install/containerd.sh"))
            .args(["start", "--root"])
            .arg(self.dir.path())
            .output()
            .unwrap();
        assert!(out.status.success(), "containerd: {}", String::from_utf8_lossy(&out.stderr));
        self.has_containerd = true;
        let socket = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        let url = format!("https://{}", self.address(server));
        let ip = self.address(server).split(':').next().unwrap().to_owned();
        self.pki(&["node", "--name", "n1", "--address", &ip, "--server", &url]);
        let home = self.path("pki/nodes/n1");
        let log = |name: &str| fs::File::create(self.path(name)).unwrap();
        let node = insula()
            .args(["node", "--node-name", "n1", "--node-ip", &ip, "--listen"])
            .arg(format!("{ip}:0"))
            .args(["--container-runtime-endpoint", &format!("unix://{socket}")])
            .args(["--eviction-hard", ROOM])
            .args(["--apiserver-address", self.address(server), "--kubeconfig"])
            .arg(home.join("node.kubeconfig"))
            .arg("--data-dir")
            .arg(self.path("node"))
            .arg("--tls-cert-file")
            .arg(home.join("node.crt"))
            .arg("--tls-private-key-file")
            .arg(home.join("node.key"))
            .arg("--client-ca-file")
            .arg(home.join("ca.crt"))
            .stdout(Stdio::null())
            .stderr(log("node.log"))
            .spawn()
            .unwrap();
        let user = self.user(server, "system", "system:kube-scheduler", "system:masters");
        let scheduler = insula()
            .args(["scheduler", "--kubeconfig"])
            .arg(user.kubeconfig())
            .stdout(Stdio::null())
            .stderr(log("scheduler.log"))
            .spawn()
            .unwrap();
        self.others.extend([node, scheduler]);
    }

    /// The tenants of the example, active.
    pub(crate) fn tenants(&self, server: &str) {
        let admin = self.admin(server);
        admin.ok(&["create", "-f", root().join("docs/examples/tenants.yaml").to_str().unwrap()]);
        for tenant in ["acme", "globex"] {
            admin.until(&["get", "tenant", tenant, "-o", "jsonpath={.status.phase}"], |phase| {
                phase == "Active"
            });
        }
    }

    /// As [`Kubectl::curl`]: status and body.
    pub(crate) fn curl(&self, user: &Kubectl, url: &str, more: &[&str]) -> (u16, String) {
        let (code, _, body) = user.curl(url, more);
        (code, body)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let servers = self.servers.iter_mut().filter_map(|it| it.child.take());
        for mut child in servers.chain(self.others.drain(..)) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.has_containerd {
            let _ = Command::new(root().join("install/containerd.sh"))
                .args(["stop", "--root"])
                .arg(self.dir.path())
                .output();
        }
        super::unmount_below(self.dir.path());
        if thread::panicking() {
            for server in &self.servers {
                let log = self.log(&server.name);
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- {}", server.name);
                for line in &lines[lines.len().saturating_sub(25)..] {
                    eprintln!("{line}");
                }
            }
        }
    }
}
