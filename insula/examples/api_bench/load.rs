//! Many requests, and what they cost the server.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};

use crate::{Failure, JSON, client::Client, subject::Subject};

/// What was measured of one subject.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Operations in a second; zero if that is not what was measured.
    pub(crate) rate: f64,
    /// CPU time of the server for one operation.
    pub(crate) cpu: Duration,
    pub(crate) median: Duration,
    pub(crate) slowest: Duration,
    /// Bytes.
    pub(crate) memory: u64,
}

impl Row {
    pub(crate) fn of_time(name: &str, time: Duration) -> Self {
        Self { name: name.into(), median: time, ..Self::default() }
    }

    pub(crate) fn of_memory(name: &str, memory: u64) -> Self {
        Self { name: name.into(), memory, ..Self::default() }
    }

    /// How often `other` fits into this row's needs.
    pub(crate) fn ratio_to(&self, other: &Self) -> String {
        let of = |mine: f64, others: f64| format!("{:.1}x", mine / others.max(1e-12));
        if 0 < self.memory {
            return of(self.memory as f64, other.memory as f64);
        }
        let time = of(self.median.as_secs_f64(), other.median.as_secs_f64());
        if self.cpu.is_zero() {
            return time;
        }
        let cpu = of(self.cpu.as_secs_f64(), other.cpu.as_secs_f64());
        match 0.0 < self.rate {
            true => format!("cpu {cpu}, rate {}", of(other.rate, self.rate)),
            false => format!("cpu {cpu}, time {time}"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if 0 < self.memory {
            return match self.memory {
                small @ ..1_000_000 => write!(f, "{:.1} KB", small as f64 / 1e3),
                large => write!(f, "{:.1} MB", large as f64 / 1e6),
            };
        }
        if 0.0 < self.rate {
            write!(f, "{:9.0}/s ", self.rate)?;
        }
        if !self.cpu.is_zero() {
            write!(f, "{:10.1} us CPU ", self.cpu.as_secs_f64() * 1e6)?;
        }
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:8.2} ms", millis(self.median))?;
        if !self.slowest.is_zero() {
            write!(f, ", p99 {:.2} ms", millis(self.slowest))?;
        }
        Ok(())
    }
}

/// A request: method, path, content type and body.
pub(crate) type Ask = (Method, String, &'static str, String);

/// Sends `count` requests, one after the other on each of `clients`.
pub(crate) async fn measure<F>(
    name: &str,
    subject: &Subject,
    clients: &[Client],
    count: usize,
    expected: StatusCode,
    make: F,
) -> Result<Row, Failure>
where
    F: Fn(usize) -> Ask + Sync,
{
    // Made before, so that it is not part of what is measured.
    let asks: Arc<Vec<Ask>> = Arc::new((0..count).map(make).collect());
    let (begun, used) = (Instant::now(), subject.cpu()?);
    let tasks: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(at, client)| {
            let (client, asks, step) = (client.clone(), asks.clone(), clients.len());
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(asks.len() / step + 1);
                for (method, path, content_type, body) in asks.iter().skip(at).step_by(step) {
                    let sent = Instant::now();
                    let answer = client.ask(method.clone(), path, content_type, body.clone());
                    let (code, answer) = answer.await?;
                    times.push(sent.elapsed());
                    if code != expected {
                        let text = String::from_utf8_lossy(&answer).into_owned();
                        return Err::<_, Failure>(format!("{code} {path}: {text}").into());
                    }
                }
                Ok(times)
            })
        })
        .collect();
    let mut times = Vec::with_capacity(count);
    for task in tasks {
        times.extend(task.await??);
    }
    let took = begun.elapsed();
    let cpu = (subject.cpu()? - used) / u32::try_from(count)?;
    times.sort_unstable();
    Ok(Row {
        name: name.into(),
        rate: count as f64 / took.as_secs_f64(),
        cpu,
        median: times[count / 2],
        slowest: times[count * 99 / 100],
        memory: 0,
    })
}

/// Asks for `path` a few times, one after the other.
pub(crate) async fn once(
    name: &str,
    subject: &Subject,
    client: &Client,
    path: &str,
    times: usize,
) -> Result<Row, Failure> {
    let mut taken = Vec::with_capacity(times);
    let mut used = Vec::with_capacity(times);
    for _ in 0..times {
        let (begun, cpu) = (Instant::now(), subject.cpu()?);
        let (code, _) = client.ask(Method::GET, path, JSON, String::new()).await?;
        taken.push(begun.elapsed());
        // What the server does after its last byte is of this request too.
        tokio::time::sleep(Duration::from_millis(50)).await;
        used.push(subject.cpu()? - cpu);
        if code != StatusCode::OK {
            return Err(format!("{code} {path}").into());
        }
    }
    taken.sort_unstable();
    used.sort_unstable();
    let (median, cpu) = (taken[times / 2], used[times / 2]);
    Ok(Row { name: name.into(), cpu, median, ..Row::default() })
}
