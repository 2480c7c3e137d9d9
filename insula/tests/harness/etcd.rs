//! A real etcd of one member, which can be killed and started again.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use insula_api::names::TenantName;
use insula_apiserver::pki::Authority;

/// See the module.
pub(crate) struct Etcd {
    child: Option<Child>,
    pub(crate) url: String,
    peer: String,
    arguments: Vec<String>,
    dir: tempfile::TempDir,
}

/// Certificates of an authority of its own, for etcds and those who ask them.
pub(crate) struct Certificates(tempfile::TempDir);

impl Certificates {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let server = authority.server("etcd", &["localhost"], &["127.0.0.1".parse().unwrap()]);
        let client = authority.client(&TenantName::system(), "anybody", &["etcd"]).unwrap();
        for (name, pair) in [("etcd", server.unwrap()), ("client", client)] {
            fs::write(dir.path().join(format!("{name}.crt")), pair.certificate).unwrap();
            fs::write(dir.path().join(format!("{name}.key")), pair.key).unwrap();
        }
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

impl Etcd {
    pub(crate) fn start() -> Self {
        Self::with("http", Vec::new())
    }

    /// One that shows a certificate and wants to see one.
    pub(crate) fn with_tls(certificates: &Certificates) -> Self {
        let flag = |flag: &str, name: &str| format!("--{flag}={}", certificates.text(name));
        let arguments = vec![
            flag("cert-file", "etcd.crt"),
            flag("key-file", "etcd.key"),
            flag("trusted-ca-file", "ca.crt"),
            "--client-cert-auth".to_owned(),
        ];
        Self::with("https", arguments)
    }

    fn with(scheme: &str, arguments: Vec<String>) -> Self {
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let (url, peer) = (format!("{scheme}://{}", free()), format!("http://{}", free()));
        let dir = tempfile::tempdir().unwrap();
        let mut etcd = Self { child: None, url, peer, arguments, dir };
        etcd.again();
        etcd
    }

    /// Where it keeps what it is given.
    pub(crate) fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it again on what it left.
    pub(crate) fn again(&mut self) {
        let (url, peer) = (&self.url, &self.peer);
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.dir.path())
            .args(["--listen-client-urls", url, "--advertise-client-urls", url])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let address = self.url.split("//").nth(1).unwrap();
        let begin = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(120), "etcd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What `etcdctl` prints.
    #[track_caller]
    pub(crate) fn ctl(&self, certificates: Option<&Certificates>, args: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]);
        if let Some(it) = certificates {
            command.args(["--cacert", &it.text("ca.crt"), "--cert", &it.text("client.crt")]);
            command.args(["--key", &it.text("client.key")]);
        }
        let out = command.args(args).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        text
    }

    /// Has it let in nobody but `root` and `insula`, whose password is `secret`.
    pub(crate) fn want_users(&self, certificates: &Certificates) {
        let ctl = |args: &[&str]| drop(self.ctl(Some(certificates), args));
        for user in ["root", "insula"] {
            ctl(&["user", "add", &format!("{user}:secret")]);
        }
        ctl(&["user", "grant-role", "root", "root"]);
        ctl(&["role", "add", "ours"]);
        // The partition's keys, and those of the partition map.
        ctl(&["role", "grant-permission", "--prefix=true", "ours", "readwrite", "/insula"]);
        ctl(&["user", "grant-role", "insula", "ours"]);
        ctl(&["auth", "enable"]);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file with a password, for its owner alone.
pub(crate) fn password(dir: &Path) -> PathBuf {
    let path = dir.join("password");
    fs::write(&path, "secret\n").unwrap();
    path
}
