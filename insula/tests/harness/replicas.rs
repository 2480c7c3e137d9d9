//! Replicas of a part of the cloud as processes, which share its work.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Cloud, Kubectl};

/// How long the world may take to become as expected, on a machine that does much else.
pub(crate) const EVENTUALLY: Duration = Duration::from_secs(90);
const SLOTS: i64 = 16_384;

/// Replicas as processes, and what they log.
pub(crate) struct Replicas<'a> {
    cloud: &'a Cloud,
    user: Kubectl,
    /// The command that runs one, and what else it is told.
    command: Vec<String>,
    /// The resource that shows them, and the name of their table.
    shown: &'static str,
    table: &'static str,
    pub(crate) running: Vec<Child>,
    n_started: usize,
}

impl<'a> Replicas<'a> {
    /// Replicas of the controllers.
    pub(crate) fn new(cloud: &'a Cloud) -> Self {
        let ca = cloud.path("ca.crt");
        let command = ["controllers", "--root-ca", ca.to_str().unwrap()].map(str::to_owned).into();
        let user = cloud.user("system", "system:kube-controller-manager", "system:masters");
        let (shown, table) = ("controllerinstances", "controllers");
        Self { cloud, user, command, shown, table, running: Vec::new(), n_started: 0 }
    }

    /// Replicas of the scheduler.
    pub(crate) fn of_scheduler(cloud: &'a Cloud) -> Self {
        let command = vec!["scheduler".to_owned()];
        let user = cloud.user("system", "system:kube-scheduler", "system:masters");
        let (shown, table) = ("schedulerinstances", "schedulers");
        Self { cloud, user, command, shown, table, running: Vec::new(), n_started: 0 }
    }

    pub(crate) fn start(&mut self) {
        self.n_started += 1;
        let log = fs::File::create(self.cloud.path(&format!("replica-{}.log", self.n_started)));
        let child = super::insula()
            .args(&self.command)
            .arg("--kubeconfig")
            .arg(self.user.kubeconfig())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn();
        self.running.push(child.unwrap());
    }

    pub(crate) fn signal(&self, at: usize, signal: &str) {
        let id = self.running[at].id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    pub(crate) fn kill(&mut self, at: usize) {
        let mut child = self.running.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends one by SIGTERM.
    pub(crate) fn stop(&mut self, at: usize) {
        self.signal(at, "-TERM");
        let status = self.running.remove(at).wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Phase and slots of each replica, by name.
    pub(crate) fn instances(&self, admin: &Kubectl) -> BTreeMap<String, (String, i64)> {
        let list = get(admin, &[self.shown]);
        let items = list["items"].as_array().unwrap().iter();
        let one = |it: &Value| {
            let status = &it["status"];
            let phase = status["phase"].as_str().unwrap_or_default().to_owned();
            let name = it["metadata"]["name"].as_str().unwrap().to_owned();
            (name, (phase, status["slots"].as_i64().unwrap_or(0)))
        };
        items.map(one).collect()
    }

    /// Waits until so many replicas live and share all slots; returns how long that took.
    #[track_caller]
    pub(crate) fn until_shared(&self, admin: &Kubectl, n_replicas: usize) -> Duration {
        let begin = Instant::now();
        loop {
            let all = self.instances(admin);
            let active = all.values().filter(|(phase, _)| phase == "Active");
            let active: Vec<i64> = active.map(|(_, slots)| *slots).collect();
            if active.len() == n_replicas
                && active.iter().sum::<i64>() == SLOTS
                && active.iter().all(|slots| *slots != 0)
            {
                return begin.elapsed();
            }
            assert!(begin.elapsed() < EVENTUALLY, "{all:?}\n{}", self.logs());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Who holds slots, as the table says.
    pub(crate) fn holders(&self, admin: &Kubectl) -> BTreeSet<String> {
        let table = get(admin, &["slottable", self.table]);
        let claims = table["spec"]["claims"].as_array().cloned().unwrap_or_default();
        claims.iter().map(|claim| claim["holder"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn logs(&self) -> String {
        let log = |n| fs::read_to_string(self.cloud.path(&format!("replica-{n}.log")));
        let text = |n| format!("--- replica {n}\n{}", log(n).unwrap_or_default());
        (1..=self.n_started).map(text).collect()
    }
}

impl Drop for Replicas<'_> {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            let logs = self.logs();
            let lines: Vec<&str> = logs.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(120)..].join("\n"));
        }
    }
}

pub(crate) fn get(user: &Kubectl, args: &[&str]) -> Value {
    let args = [&["get"], args, &["-o", "json"]].concat();
    serde_json::from_str(&user.ok(&args)).unwrap()
}
