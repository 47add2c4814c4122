//! Measures AgentHub against floors that do only the unavoidable I/O; see `perf/run`.
//!
//! Every comparison is a ratio of two figures of one run, taken in turns, since absolute figures of a
//! shared machine say little.

mod client;
mod floor;
mod machine;
mod report;
mod samples;
mod scenario;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use client::Api;
use machine::Processes;
use report::{Report, Row};
use scenario::{
    Stack, load, lone, masking, noisy, parked, read, replay, rollup, scale, slo, waiting,
};

/// Measures a running stack. `perf/run` starts one and calls this.
#[derive(Debug, Parser)]
#[command(name = "perf")]
struct Args {
    /// Measure only these; else all that share a stack.
    parts: Vec<Part>,
    /// The API.
    #[arg(long, env = "AGENTHUB_URL", default_value = "")]
    url: String,
    /// A key of it.
    #[arg(
        long,
        env = "AGENTHUB_CLIENT_KEY",
        default_value = "",
        hide_env_values = true
    )]
    key: String,
    /// The stack's Kafka.
    #[arg(long, env = "KAFKA_BROKERS", default_value = "")]
    brokers: String,
    /// The stack's Redis.
    #[arg(long, env = "REDIS_URL", default_value = "")]
    redis: String,
    /// The stack's state folder.
    #[arg(long, env = "STACK_STATE", default_value = ".agenthub/perf")]
    state: PathBuf,
    /// Seconds of saturation.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Runs of `waiting`, `noisy` and `parked`, for a trial; else those of their targets.
    #[arg(long)]
    count: Option<usize>,
    /// Write the table to this file.
    #[arg(long)]
    results: Option<PathBuf>,
    /// Go on with the rows that an earlier call kept in this file, and keep them there.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// The code that is measured, for the page.
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Be the floor (a) until the input ends.
    #[arg(long, hide = true)]
    serve_floor: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Masking, which needs no stack.
    Masking,
    /// Reads of a session.
    Read,
    /// One plan or run at a time.
    Lone,
    /// Many runs at once.
    Load,
    /// Commands that are put onto their topic again.
    Replay,
    /// The audit roll-up, which needs Kafka and Redis alone.
    Rollup,
    /// Runs that wait in a tool. This and those below need a stack of their own each (`perf/run`).
    Waiting,
    /// Planners against runs a second.
    Scale,
    /// A tenant beside another's backlog.
    Noisy,
    /// Parked runs.
    Parked,
    /// The service levels; only when asked for, and alone (`perf/slo`).
    Slo,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if args.serve_floor {
        return floor::http::serve(&args.redis).await;
    }
    let machine = machine::describe(&args.commit);
    println!("{machine}");
    let mut report = Report::resume(args.keep.as_deref(), machine)?;
    let measured = measure(&args, &mut report).await;
    if let Err(error) = &measured {
        report.row(Row::failed(
            "a measurement that failed",
            &format!("{error:#}"),
        ));
    }
    println!("\n{}", report.table());
    if let Some(kept) = &args.keep {
        report.keep(kept)?;
    }
    let slo = args.parts.contains(&Part::Slo);
    if let Some(path) = &args.results {
        let head = if slo {
            include_str!("slo_head.md")
        } else {
            include_str!("results_head.md")
        };
        report.write(path, head)?;
        println!("written to {}", path.display());
    }
    measured?;
    ensure!(!slo || report.all_met(), "a service level is not met");
    Ok(())
}

async fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let alone = [Part::Masking, Part::Rollup];
    if args.parts.is_empty() || args.parts.iter().any(|part| !alone.contains(part)) {
        let stack = Stack {
            api: Api::new(&args.url, args.key.clone())?,
            brokers: args.brokers.clone(),
            redis_url: args.redis.clone(),
            state: args.state.clone(),
        };
        if let [part] = args.parts[..]
            && part.needs_its_own_stack()
        {
            return with_its_own_stack(part, &stack, args, report).await;
        }
        ensure!(
            !args.parts.iter().any(|part| part.needs_its_own_stack()),
            "one of these parts needs a stack of its own: see perf/run"
        );
        idle(&stack, report)?;
        if wanted(Part::Read) {
            let reading = read::measure(&stack, report);
            bounded(60, reading).await.context("reads")?;
        }
        if wanted(Part::Lone) {
            let alone = lone::measure(&stack, report);
            bounded(120, alone).await.context("lone runs")?;
        }
        if wanted(Part::Load) {
            let time = Duration::from_secs(args.seconds);
            let loading = load::measure(&stack, time, report);
            bounded(120 + args.seconds, loading).await.context("load")?;
        }
        if wanted(Part::Replay) {
            let replaying = replay::measure(&stack, report);
            bounded(120, replaying).await.context("replay")?;
        }
    }
    if wanted(Part::Rollup) {
        let rolling = rollup::measure(&args.brokers, &args.redis, report);
        bounded(120, rolling).await.context("the roll-up")?;
    }
    if wanted(Part::Masking) {
        masking::measure(report)?;
    }
    Ok(())
}

impl Part {
    /// Whether `perf/run` starts a stack for it alone, with settings of its own.
    fn needs_its_own_stack(self) -> bool {
        let own = [
            Self::Slo,
            Self::Waiting,
            Self::Scale,
            Self::Noisy,
            Self::Parked,
        ];
        own.contains(&self)
    }
}

/// Measures a part that has the stack to itself.
async fn with_its_own_stack(
    part: Part,
    stack: &Stack,
    args: &Args,
    report: &mut Report,
) -> Result<()> {
    match part {
        Part::Waiting => {
            let waiting = waiting::measure(stack, args.count.unwrap_or(10_000), report);
            bounded(180, waiting).await.context("runs that wait")
        }
        Part::Scale => {
            let scaling = scale::measure(stack, report);
            bounded(300, scaling).await.context("planners")
        }
        Part::Noisy => {
            let beside = noisy::measure(stack, args.count.unwrap_or(50_000), report);
            bounded(600, beside).await.context("a noisy tenant")
        }
        Part::Parked => {
            let parked = parked::measure(stack, args.count.unwrap_or(100_000), report);
            bounded(600, parked).await.context("parked runs")
        }
        _ => {
            let time = Duration::from_secs(args.seconds);
            let measuring = slo::measure(stack, time, report);
            let measured = bounded(120 + 3 * args.seconds, measuring).await;
            measured.context("service levels")
        }
    }
}

/// Memory before any load.
fn idle(stack: &Stack, report: &mut Report) -> Result<()> {
    let processes = Processes::find(&stack.state)?;
    for name in ["api", "planner", "executor"] {
        let resident = processes.resident_mib(name);
        report.row(
            Row::context(
                &format!("resident memory of an idle {name} in MiB"),
                format!("{resident:.1} MiB"),
            )
            .at_most(resident, 40.0),
        );
    }
    Ok(())
}

/// A measurement that hangs is a failed one.
async fn bounded(seconds: u64, measuring: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::time::timeout(Duration::from_secs(seconds), measuring)
        .await
        .context("took too long")?
}
