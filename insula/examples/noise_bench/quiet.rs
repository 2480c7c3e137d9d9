//! The quiet tenant: a few requests at a time, and how long each took.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;

use crate::{Failure, JSON, client::Client, neighbour::Neighbour};

/// Between the beginnings of two rounds.
const EVERY: Duration = Duration::from_millis(16);
const PATIENCE: Duration = Duration::from_secs(30);

/// How long requests took, in order.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    fn at(&self, part: f64) -> Duration {
        let at = (self.0.len() as f64 * part) as usize;
        self.0.get(at).or_else(|| self.0.last()).copied().unwrap_or_default()
    }

    pub(crate) fn compared(alone: &Self, beside: &Self) -> String {
        let column = |part| {
            let millis = |it: &Self| it.at(part).as_secs_f64() * 1e3;
            let (alone, beside) = (millis(alone), millis(beside));
            format!("{alone:7.2} -> {beside:8.2} ms ({:5.2}x)", beside / alone.max(1e-6))
        };
        format!("p50 {}   p99 {}   of {}", column(0.5), column(0.99), beside.0.len())
    }
}

/// What was measured in one state.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    get: Times,
    create: Times,
    told: Times,
}

impl Measured {
    /// As if both had been measured at once.
    pub(crate) fn extend(&mut self, other: Self) {
        for (mine, more) in [
            (&mut self.get, other.get),
            (&mut self.create, other.create),
            (&mut self.told, other.told),
        ] {
            mine.0.extend(more.0);
            mine.0.sort_unstable();
        }
    }

    pub(crate) fn pairs<'a>(
        &'a self,
        other: &'a Self,
    ) -> [(&'static str, &'a Times, &'a Times); 3] {
        [
            ("get", &self.get, &other.get),
            ("create", &self.create, &other.create),
            ("create, until told", &self.told, &other.told),
        ]
    }
}

/// Has this process before all others, and those that it starts as others are; or as before.
/// Needs to be root, and does without.
pub(crate) fn hurry(yes: bool) {
    let class: &[&str] = if yes { &["--fifo", "--reset-on-fork"] } else { &["--other"] };
    let (level, own) = (u8::from(yes).to_string(), std::process::id().to_string());
    let mut command = Command::new("chrt");
    command.args(class).args(["--pid", &level, &own]);
    let _ = command.stderr(Stdio::null()).status();
}

pub(crate) async fn prepare(neighbour: &Neighbour) -> Result<(), Failure> {
    let client = neighbour.connect().await?;
    let map = json!({"metadata": {"name": "known"}, "data": {"a": "b"}}).to_string();
    let (code, answer) = client.ask(Method::POST, &neighbour.path("configmaps"), JSON, map).await?;
    match code {
        StatusCode::CREATED => Ok(()),
        _ => Err(format!("{code}: {}", String::from_utf8_lossy(&answer)).into()),
    }
}

/// Asks for some time.
pub(crate) async fn measure(neighbour: &Neighbour, time: Duration) -> Result<Measured, Failure> {
    let maps = neighbour.path("configmaps");
    let client = neighbour.connect().await?;
    let mut watch = Told::begin(&neighbour.connect().await?, &maps).await?;
    let mut measured = Measured::default();
    let begun = Instant::now();
    let mut clock = tokio::time::interval(EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for n in 0_u64.. {
        if time <= begun.elapsed() {
            break;
        }
        clock.tick().await;
        let sent = Instant::now();
        let (code, _) =
            client.ask(Method::GET, &format!("{maps}/known"), JSON, String::new()).await?;
        measured.get.0.push(sent.elapsed());
        check(code, StatusCode::OK)?;
        let name = format!("m{}-{n}", begun.elapsed().as_nanos());
        let map = json!({"metadata": {"name": &name}, "data": {"a": "x".repeat(500)}});
        let sent = Instant::now();
        let create = client.ask(Method::POST, &maps, JSON, map.to_string());
        let create = async { create.await.map(|it| (it.0, sent.elapsed())) };
        let told = async { watch.until(&name).await.map(|()| sent.elapsed()) };
        let ((code, created), told) =
            tokio::time::timeout(PATIENCE, async { tokio::try_join!(create, told) }).await??;
        check(code, StatusCode::CREATED)?;
        measured.create.0.push(created);
        measured.told.0.push(told);
        let path = format!("{maps}/{name}");
        let (code, _) = client.ask(Method::DELETE, &path, JSON, String::new()).await?;
        check(code, StatusCode::OK)?;
    }
    for times in [&mut measured.get, &mut measured.create, &mut measured.told] {
        times.0.sort_unstable();
    }
    Ok(measured)
}

fn check(code: StatusCode, wanted: StatusCode) -> Result<(), Failure> {
    match code == wanted {
        true => Ok(()),
        false => Err(format!("the quiet one was answered {code}").into()),
    }
}

/// A watch, and what it has told.
struct Told {
    body: Incoming,
    text: Vec<u8>,
}

impl Told {
    async fn begin(client: &Client, maps: &str) -> Result<Self, Failure> {
        let (_, list) =
            client.ask(Method::GET, &format!("{maps}?limit=1"), JSON, String::new()).await?;
        let list: serde_json::Value = serde_json::from_slice(&list)?;
        let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let path = format!("{maps}?watch=1&resourceVersion={revision}");
        let response = client.send(Method::GET, &path, JSON, String::new()).await?;
        check(response.status(), StatusCode::OK)?;
        Ok(Self { body: response.into_body(), text: Vec::new() })
    }

    /// Waits until something of this name was told.
    async fn until(&mut self, name: &str) -> Result<(), Failure> {
        let wanted = format!("\"{name}\"");
        loop {
            let found = self.text.windows(wanted.len()).any(|it| it == wanted.as_bytes());
            if found {
                self.text.clear();
                return Ok(());
            }
            let frame = self.body.frame().await.ok_or("the quiet one's watch ended")??;
            if let Some(data) = frame.data_ref() {
                self.text.extend_from_slice(data);
            }
        }
    }
}
