//! Clouds in a lab, for clients that are in the same lab.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use insula_client::Client;
use insula_lab::{file::LabFile, lab::Lab};

/// A cloud and where it runs. Taken down when dropped.
pub(crate) struct Cluster {
    pub(crate) lab: Arc<Lab>,
    /// Process names of its API servers; each has a host of the same name.
    pub(crate) servers: Vec<String>,
    kubeconfigs: Vec<PathBuf>,
    _dir: tempfile::TempDir,
}

/// Where clients are.
const CLIENT: &str = "client";

impl Cluster {
    /// One process with embedded storage on a disk of its own.
    pub(crate) fn one() -> Self {
        let program = env!("CARGO_BIN_EXE_insula");
        let file = format!(
            "
networks: {{core: 10.77.0.0/24}}
hosts:
  client: {{on: {{core: {{address: 10.77.0.100}}}}}}
  s1:
    on: {{core: {{address: 10.77.0.11}}}}
    disk: 256m
    run:
      s1:
        command: [{program}, up, --data-dir, '{{dir}}/run', --listen, '{{address}}:6443',
                  --without, 'node,scheduler']
        ready: {{line: 'ready '}}
"
        );
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabFile::parse(&file).unwrap(), dir.path(), Path::new(program)).unwrap();
        let kubeconfigs = vec![lab.host_dir("s1").join("run/admin.kubeconfig")];
        Self { lab: Arc::new(lab), servers: vec!["s1".into()], kubeconfigs, _dir: dir }
    }

    /// Three servers, each with a member of every partition on a disk of its own, and controllers:
    /// the lab that is made without a file.
    pub(crate) fn three() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("lab");
        let made = Command::new(env!("CARGO_BIN_EXE_insula"))
            .args(["lab", "up", "--servers", "3", "--dir"])
            .arg(&at)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let lab = Arc::new(Lab::open(&at).unwrap());
        let servers = ["s1", "s2", "s3"].map(str::to_owned).to_vec();
        let kubeconfig = |name: &String| at.join(format!("pki/admin-{name}.kubeconfig"));
        let kubeconfigs = servers.iter().map(kubeconfig).collect();
        Self { lab, servers, kubeconfigs, _dir: dir }
    }

    /// Runs `work` where clients are.
    pub(crate) fn run<T: Send>(&self, work: impl AsyncFnOnce(&Self) -> T + Send) -> T {
        self.lab
            .on(CLIENT, || {
                // One thread: what is asked for first is asked first, and all of it is in there.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(work(self))
            })
            .unwrap()
    }

    /// A platform administrator's client of one server, whose requests go there alone.
    pub(crate) async fn client(&self, server: usize) -> Client {
        let client = Client::from_kubeconfig(&self.kubeconfigs[server], "faults").await.unwrap();
        client.with_timeout(Duration::from_secs(5))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for server in &self.servers {
                let log = std::fs::read_to_string(self.lab.log(server)).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                eprintln!("== {server}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
        let down = self.lab.down();
        if !thread::panicking() {
            down.unwrap();
        }
    }
}
