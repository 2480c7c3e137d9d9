//! Many watchers and one writer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;

use crate::{Failure, JSON, client::Client, load::Row, objects, subject::Subject};

/// Watches on one connection: what servers allow at least.
const STREAMS: usize = 100;

/// Memory of an idle watch, then `writes` changes that each of `watchers` is told.
pub(crate) async fn measure(
    subject: &Subject,
    watchers: usize,
    writes: usize,
    path: &str,
) -> Result<Vec<Row>, Failure> {
    let connections = subject.connect(watchers.div_ceil(STREAMS)).await?;
    let writer = &subject.connect(1).await?[0];
    let before = subject.memory()?;
    let told = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::with_capacity(watchers);
    for n in 0..watchers {
        let client: Client = connections[n / STREAMS].clone();
        let uri = format!("{path}?watch=true&resourceVersion={}", revision(writer, path).await?);
        let response = client.send(Method::GET, &uri, JSON, String::new()).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("watch: {}", response.status()).into());
        }
        let told = told.clone();
        tasks.push(tokio::spawn(async move {
            let mut body = response.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                let lines =
                    frame.data_ref().map_or(0, |it| it.iter().filter(|b| **b == b'\n').count());
                told.fetch_add(lines, Ordering::Relaxed);
            }
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = subject.memory()?.saturating_sub(before) / watchers as u64;

    let (begun, used) = (Instant::now(), subject.cpu()?);
    for n in 0..writes {
        let (path, body) = objects::config_map(n);
        let (code, _) = writer.ask(Method::PUT, &path, JSON, body).await?;
        if code != StatusCode::OK {
            return Err(format!("put: {code}").into());
        }
    }
    let wanted = writes * watchers;
    let deadline = begun + Duration::from_secs(120);
    while told.load(Ordering::Relaxed) < wanted {
        if deadline < Instant::now() {
            let told = told.load(Ordering::Relaxed);
            return Err(format!("watchers were told of {told} of {wanted} changes").into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = begun.elapsed();
    let cpu = (subject.cpu()? - used).div_f64(wanted as f64);
    tasks.iter().for_each(|it| it.abort());
    Ok(vec![
        Row::of_memory(&format!("memory for each of {watchers} idle watches"), idle.max(1)),
        Row {
            name: format!("an event for one of {watchers} watchers"),
            rate: wanted as f64 / took.as_secs_f64(),
            cpu,
            median: took / u32::try_from(writes)?,
            ..Row::default()
        },
    ])
}

/// The revision of a collection as it is.
async fn revision(client: &Client, path: &str) -> Result<String, Failure> {
    let (_, list) =
        client.ask(Method::GET, &format!("{path}?limit=1"), JSON, String::new()).await?;
    let list: serde_json::Value = serde_json::from_slice(&list)?;
    Ok(list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned())
}
