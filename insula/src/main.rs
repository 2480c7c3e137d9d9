//! The one binary: every process of an Insula cloud.

mod apiserver;
mod backup;
mod cli;
mod components;
mod config;
mod data_dir;
mod keys;
mod kubeconfig;
mod lab;
mod loadtest;
mod logging;
mod observed;
mod pki;
mod reload;
mod sealing;
mod signals;
mod signing;
mod store;
mod tenant;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

// Many small objects of many sizes: measured, it keeps the process smaller than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Has the kernel hand out memory in small pages. In huge ones each buffer that comes and goes
/// costs clearing two megabytes, and what is left of them stays: measured, a fifth more memory for
/// each object. What this process starts inherits it.
fn small_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "memory comes in huge pages");
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start();
    let stays = matches!(
        cli.command,
        Command::Up(_)
            | Command::Apiserver(_)
            | Command::Controllers(_)
            | Command::Scheduler(_)
            | Command::Loadtest(_)
    );
    if stays {
        small_pages();
    }
    let ran = match cli.command {
        Command::Up(options) => up::run(&options),
        Command::Apiserver(options) => apiserver::run(&options),
        Command::Controllers(options) => components::controllers(&options),
        Command::Scheduler(options) => components::scheduler(&options),
        Command::Node(options) => components::node(&options),
        Command::Kubeconfig(options) => kubeconfig::run(&options),
        Command::Pki(command) => pki::run(&command),
        Command::Tenant(cli::TenantCommand::Create(options)) => tenant::create(&options),
        Command::Keys(command) => keys::run(&command),
        Command::Backup(options) => backup::take(&options),
        Command::Restore(options) => backup::restore(&options),
        Command::Lab(options) => lab::run(&options),
        // It has exit codes of its own.
        Command::Loadtest(command) => return loadtest::run(&command),
        Command::Completion { shell } => {
            cli::completion(shell);
            Ok(())
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::fail(&error);
            ExitCode::FAILURE
        }
    }
}
