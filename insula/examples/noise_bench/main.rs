//! What one tenant feels of another that floods the server.
//!
//! ```text
//! cargo run --profile dist -p insula --example noise_bench [-- --seconds 40] [-- --peer]
//! ```
//!
//! Tenant `globex` gets an object, creates one, and waits to be told of it by a watch, some 60 of
//! each a second, while tenant `acme` does as much as it can (it writes, lists everything, has
//! 10,000 watches, and puts large objects), and alone before and after that. Printed is how much
//! slower the quiet one is. With `--peer` a kube-apiserver is asked the same, with a namespace and a user in the
//! place of each tenant.
//!
//! Both load generators run on the machine of the server. The flood is a process of its own that has
//! what nobody else wants of a processor, so that what is seen is the server's doing and not that
//! of whoever makes the noise; the quiet tenant's comes before all others, so that its own waiting
//! for a processor is not counted. Times are by the quiet client's clock.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints")]

#[path = "../api_bench/client.rs"]
mod client;
mod flood;
mod neighbour;
mod quiet;
#[path = "../api_bench/subject.rs"]
#[allow(dead_code, reason = "another bench measures more of it")]
mod subject;

use std::{error::Error, path::PathBuf, time::Duration};

use clap::Parser as _;
use flood::Flood;
use neighbour::Neighbour;
use quiet::Times;
use subject::{Subject, Which};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;
pub(crate) const JSON: &str = "application/json";

#[derive(Debug, Clone, clap::Parser)]
struct Asked {
    /// How long each state is measured
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// A kube-apiserver as well
    #[arg(long)]
    peer: bool,
    /// These kinds of noise alone: write, list, watch, large
    #[arg(long, value_delimiter = ',')]
    noise: Vec<String>,
    #[arg(long, hide = true)]
    flood: Option<PathBuf>,
}

fn main() -> Result<(), Failure> {
    let asked = Asked::parse();
    if let Some(orders) = asked.flood {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        return builder.worker_threads(2).enable_all().build()?.block_on(flood::run(&orders));
    }
    // Needs to be root, and does without.
    let _ = rustix::process::setpriority_process(None, -15);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build()?.block_on(measured(&asked))
}

async fn measured(asked: &Asked) -> Result<(), Failure> {
    let seconds = Duration::from_secs(asked.seconds);
    let subjects: &[Which] =
        if asked.peer { &[Which::Embedded, Which::Peer] } else { &[Which::Embedded] };
    for which in subjects {
        let subject = match Subject::start(*which).await {
            Ok(subject) => subject,
            Err(error) => {
                eprintln!("left out: {error}");
                continue;
            }
        };
        println!("\n{}", subject.name);
        let (noisy, quiet) =
            (Neighbour::new(&subject, "acme").await?, Neighbour::new(&subject, "globex").await?);
        flood::prepare(&noisy).await?;
        quiet::prepare(&quiet).await?;
        quiet::hurry(true);
        // Once for what is done but once.
        quiet::measure(&quiet, Duration::from_secs(2)).await?;
        let mut alone = quiet::measure(&quiet, seconds / 2).await?;
        let mut flood = Flood::start(&noisy, &asked.noise)?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let begun = subject.cpu()?;
        let beside = quiet::measure(&quiet, seconds).await?;
        let used = (subject.cpu()? - begun).as_secs_f64() / seconds.as_secs_f64();
        let told = flood.stop()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        // Half of what is compared with is from after, so that what changed meanwhile is in it.
        alone.extend(quiet::measure(&quiet, seconds / 2).await?);
        quiet::hurry(false);
        for (name, alone, beside) in alone.pairs(&beside) {
            println!("    {name:22} {}", Times::compared(alone, beside));
        }
        println!("    the noise: {told}; the server used {used:.2} processors");
        subject.stop().await?;
    }
    Ok(())
}
