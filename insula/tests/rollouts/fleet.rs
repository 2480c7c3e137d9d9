//! A lab with an API server and replicas of the controllers, each on a host of its own.

use std::{path::Path, sync::Arc, thread, time::Duration};

use insula_client::Client;
use insula_lab::{error::LabError, file::LabFile, lab::Lab};
use jiff::SignedDuration;
use rand::{Rng as _, rngs::StdRng};

const REPLICAS: [&str; 3] = ["c1", "c2", "c3"];
const SERVER: &str = "s1";
/// Where the test itself is.
const CLIENT: &str = "client";

/// Taken down when dropped.
pub(crate) struct Fleet {
    lab: Arc<Lab>,
    _dir: tempfile::TempDir,
}

impl Fleet {
    pub(crate) fn up() -> Self {
        let program = env!("CARGO_BIN_EXE_insula");
        let replica = |(index, name): (usize, &&str)| {
            let address = 21 + index;
            format!(
                "
  {name}:
    on: {{core: {{address: 10.77.0.{address}}}}}
    run:
      {name}:
        command: [{program}, controllers, --kubeconfig, '{{lab}}/hosts/s1/run/admin.kubeconfig',
                  --root-ca, '{{lab}}/hosts/s1/run/ca.crt']
        after: [{SERVER}]
        skew: 0s
"
            )
        };
        let replicas: String = REPLICAS.iter().enumerate().map(replica).collect();
        let file = format!(
            "
networks: {{core: 10.77.0.0/24}}
hosts:
  {CLIENT}: {{on: {{core: {{address: 10.77.0.100}}}}}}
  {SERVER}:
    on: {{core: {{address: 10.77.0.11}}}}
    run:
      {SERVER}:
        command: [{program}, up, --data-dir, '{{dir}}/run', --listen, '{{address}}:6443',
                  --partitions, '2', --without, 'node,scheduler,controllers']
        ready: {{line: 'ready ', within: 180s}}
{replicas}"
        );
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabFile::parse(&file).unwrap(), dir.path(), Path::new(program)).unwrap();
        Self { lab: Arc::new(lab), _dir: dir }
    }

    /// Runs `work` where the client is.
    pub(crate) fn run<T: Send>(&self, work: impl AsyncFnOnce(&Self) -> T + Send) -> T {
        self.lab
            .on(CLIENT, || {
                // One thread: what is asked for first is asked first, and all of it is in there.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(work(self))
            })
            .unwrap()
    }

    /// The platform's administrator.
    pub(crate) async fn client(&self) -> Client {
        let kubeconfig = self.lab.host_dir(SERVER).join("run/admin.kubeconfig");
        let client = Client::from_kubeconfig(&kubeconfig, "rollouts").await.unwrap();
        client.with_timeout(Duration::from_secs(60))
    }

    /// Does something bad to one of the replicas, for as long as two to six seconds.
    pub(crate) async fn hurt(&self, random: &mut StdRng) {
        let one = REPLICAS[random.random_range(0..REPLICAS.len())];
        let pause = Duration::from_millis(random.random_range(2_000..6_000));
        let fault = random.random_range(0..6);
        let told = ["killed", "stopped", "paused", "cut off", "made deaf", "given another time"];
        eprintln!("{one} is {} for {pause:?}", told[fault]);
        match fault {
            0 => {
                self.at(move |lab| lab.kill(one)).await;
                tokio::time::sleep(pause).await;
                self.at(move |lab| lab.start(one)).await;
            }
            1 => {
                self.at(move |lab| lab.stop(one)).await;
                tokio::time::sleep(pause).await;
                self.at(move |lab| lab.start(one)).await;
            }
            2 => {
                self.at(move |lab| lab.pause(one)).await;
                tokio::time::sleep(pause).await;
                self.at(move |lab| lab.resume(one)).await;
            }
            3 => {
                self.at(move |lab| lab.cut(one, Some(SERVER))).await;
                tokio::time::sleep(pause).await;
                self.at(|lab| lab.heal()).await;
            }
            4 => {
                self.at(move |lab| lab.cut_one_way(one, SERVER)).await;
                tokio::time::sleep(pause).await;
                self.at(|lab| lab.heal()).await;
            }
            _ => {
                let skew = SignedDuration::from_secs(random.random_range(-7_200..7_200));
                self.at(move |lab| lab.skew(one, skew)).await;
                tokio::time::sleep(pause).await;
                self.at(move |lab| lab.skew(one, SignedDuration::ZERO)).await;
            }
        }
    }

    /// What takes time is done beside the client.
    async fn at(&self, act: impl FnOnce(&Lab) -> Result<(), LabError> + Send + 'static) {
        let lab = self.lab.clone();
        tokio::task::spawn_blocking(move || act(&lab)).await.unwrap().unwrap();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if thread::panicking() {
            for process in REPLICAS.iter().chain([&SERVER]) {
                let log = std::fs::read_to_string(self.lab.log(process)).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let last = lines.len().saturating_sub(40);
                eprintln!("== {process}\n{}", lines[last..].join("\n"));
            }
        }
        let down = self.lab.down();
        if !thread::panicking() {
            down.unwrap();
        }
    }
}
