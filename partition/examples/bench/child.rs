//! This program run again as a process of its own, to be traced, weighed or killed.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{Failure, etcd, group, load::Outcome, memory, puts};

/// `child WHAT ARGUMENT..`
pub(crate) async fn run(arguments: &[String]) -> Result<(), Failure> {
    let parts: Vec<_> = arguments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["puts", dir, writers, milliseconds] => {
            let length = Duration::from_millis(milliseconds.parse()?);
            say(puts::as_child(Path::new(dir), writers.parse()?, length).await?);
        }
        ["fill", dir, objects] => memory::fill(Path::new(dir), objects.parse()?).await?,
        ["start", dir] => memory::start(Path::new(dir)).await?,
        ["member", dir, member, ports] => {
            Box::pin(group::member(Path::new(dir), member.parse()?, ports)).await?;
        }
        _ => return Err(format!("unknown: {parts:?}").into()),
    }
    Ok(())
}

/// An outcome, as a line of numbers.
pub(crate) fn say(outcome: Outcome) {
    let [median, of_100, worst] =
        [outcome.median, outcome.worst_of_100, outcome.worst].map(|latency| latency.as_nanos());
    println!("outcome {} {median} {of_100} {worst}", outcome.per_second);
}

pub(crate) fn read(line: &str) -> Result<Outcome, Failure> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let ["outcome", per_second, median, of_100, worst] = fields.as_slice() else {
        return Err(format!("not an outcome: {line}").into());
    };
    Ok(Outcome {
        per_second: per_second.parse()?,
        median: Duration::from_nanos(median.parse()?),
        worst_of_100: Duration::from_nanos(of_100.parse()?),
        worst: Duration::from_nanos(worst.parse()?),
    })
}

/// This program, about to be run as a child.
pub(crate) fn command() -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("child").stdout(Stdio::piped());
    Ok(command)
}

/// Durable puts by a process whose flushes take a millisecond longer.
pub(crate) fn slow_puts(dir: &Path, writers: usize, length: Duration) -> Result<Outcome, Failure> {
    let mut command = etcd::slow_flushes();
    command.arg(std::env::current_exe()?).args(["child", "puts"]).arg(dir);
    command.arg(writers.to_string()).arg(length.as_millis().to_string());
    let output = command.stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    read(text.lines().last().unwrap_or_default())
}
