//! Composition roots, one per process: nothing else wires things together.

mod api;
mod base;
mod consumer;
mod dlq;
mod rollup;
mod worker;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches, Parser};

use self::consumer::Reading;
use crate::config::{Settings, Source};
use crate::kafka::StartFrom;
use crate::tools::declared;

pub use self::worker::Role;

/// What every process says of its end.
const EXIT_CODES: &str = "Exit codes: 0 stopped in order or caught up, 1 failed, 2 wrong usage or configuration.\n\
    SIGTERM and SIGINT stop it in order: readiness off, intake ends, work drains to AGENTHUB_DRAIN_MS,\n\
    offsets are committed, records are flushed.";

/// Options of every process. Everything else is configured by the environment; see `agenthub config`.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
}

/// Options of a process that consumes a topic. Everything else is configured by the environment; see
/// `agenthub config`.
#[derive(Debug, Parser)]
#[command(version)]
struct ConsumerOptions {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    reading: Reading,
}

/// Runs the API until it is told to stop.
pub fn api() -> ExitCode {
    const SERVICE: &str = "agenthub-api";
    let example = format!("Example:\n  {SERVICE} --check-config\n\n{EXIT_CODES}");
    let options: Options = parse(SERVICE, "Runs the HTTP API.", &example);
    run(SERVICE, &options, api::serve)
}

/// Runs a planner or an executor until it is told to stop, or has caught up.
pub fn worker(role: Role) -> ExitCode {
    let service = role.service();
    let about = match role {
        Role::Planner => "Makes plans of the goals on plan.commands.",
        Role::Executor => "Carries out the plans on execute.commands.",
    };
    consume(service, about, None, move |settings, reading| {
        worker::serve(role, settings, reading)
    })
}

/// Runs the audit roll-up until it is told to stop, or has caught up.
pub fn audit_rollup() -> ExitCode {
    let about = "Writes audit.logs to Parquet files.";
    // Its files say where it goes on, not the group's offsets.
    let refused = "--from: the roll-up goes on after what its files hold";
    consume(rollup::SERVICE, about, Some(refused), rollup::serve)
}

/// Runs the indexer of dead letters until it is told to stop, or has caught up.
pub fn dlq() -> ExitCode {
    let about = "Indexes dead.letter, and posts alerts about what is new there.";
    consume(dlq::SERVICE, about, None, dlq::serve)
}

/// Runs a process that consumes a topic. `no_start` says why it cannot begin elsewhere.
fn consume<F>(
    service: &'static str,
    about: &'static str,
    no_start: Option<&'static str>,
    serve: impl FnOnce(Arc<Settings>, Reading) -> F,
) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let example = format!(
        "Examples:\n  {service}\n  {service} --until-caught-up\n  \
         {service} --group backfill --from 2026-01-31T12:00:00Z --until-caught-up\n\n{EXIT_CODES}"
    );
    let example = match no_start {
        None => example,
        Some(_) => example.replace(" --from 2026-01-31T12:00:00Z", ""),
    };
    let ConsumerOptions { options, reading } = parse(service, about, &example);
    let elsewhere = no_start.filter(|_| reading.from != StartFrom::Committed);
    if let Some(problem) = elsewhere.or_else(|| reading.check().err()) {
        eprintln!("{service}: {problem}");
        return ExitCode::from(2);
    }
    run(service, &options, |settings| serve(settings, reading))
}

/// The options of a process, or its end with exit code 2.
fn parse<T: CommandFactory + FromArgMatches>(
    service: &'static str,
    about: &'static str,
    example: &str,
) -> T {
    let command = T::command().name(service).about(about);
    let matches = command.after_help(example.to_owned()).get_matches();
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Exit codes: 0 stopped in order, 1 failed, 2 wrong usage or configuration.
fn run<F>(
    service: &'static str,
    options: &Options,
    serve: impl FnOnce(Arc<Settings>) -> F,
) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let settings = match Source::from_process().and_then(|source| Settings::load(&source)) {
        Ok(settings) => Arc::new(settings),
        Err(error) => {
            eprintln!("{service}: configuration: {error}");
            return ExitCode::from(2);
        }
    };
    // A file that it would stumble over at once is a wrong configuration as well.
    if let Err(error) = declared::load(settings.tools_file.as_deref()) {
        eprintln!("{service}: configuration: AGENTHUB_TOOLS_FILE: {error}");
        return ExitCode::from(2);
    }
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
