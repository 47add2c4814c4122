//! Composition roots, one per process: nothing else wires things together.

mod api;
mod base;
mod consumer;
mod dlq;
mod rollup;
mod worker;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use crate::config::{Settings, Source};

pub use self::worker::Role;

/// Options of every process. Everything else is configured by the environment; see `agenthub config`.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
}

/// Runs the API until it is told to stop.
pub fn api() -> ExitCode {
    run("agenthub-api", api::serve)
}

/// Runs a planner or an executor until it is told to stop.
pub fn worker(role: Role) -> ExitCode {
    run(role.service(), move |settings| {
        worker::serve(role, settings)
    })
}

/// Runs the audit roll-up until it is told to stop.
pub fn audit_rollup() -> ExitCode {
    run(rollup::SERVICE, rollup::serve)
}

/// Runs the indexer of dead letters until it is told to stop.
pub fn dlq() -> ExitCode {
    run(dlq::SERVICE, dlq::serve)
}

/// Exit codes: 0 stopped in order, 1 failed, 2 wrong usage or configuration.
fn run<F>(service: &'static str, serve: impl FnOnce(Arc<Settings>) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let options = Options::parse();
    let settings = match Source::from_process().and_then(|source| Settings::load(&source)) {
        Ok(settings) => Arc::new(settings),
        Err(error) => {
            eprintln!("{service}: configuration: {error}");
            return ExitCode::from(2);
        }
    };
    if options.check_config {
        println!("{service}: the configuration is valid");
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{service}: runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{service}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
