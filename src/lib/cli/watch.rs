//! `agenthub watch`: follows a run to its end.

use std::process::ExitCode;

use futures_util::stream;

use super::client::{Client, Connection, id};
use super::follow::{self, View};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub watch run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12\n  \
    agenthub watch run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12 --json --after 1-7\n\n\
    Tells what has happened so far, then what happens. Ctrl-C stops watching; the run goes on.\n\
    Exit codes: 0 the run succeeded, 1 it failed, was cancelled or timed out, 2 wrong usage.")]
pub struct Args {
    /// The run.
    #[arg(value_parser = id)]
    run_id: String,
    #[command(flatten)]
    connection: Connection,
    /// The event after which to begin.
    #[arg(long, value_name = "EVENT_ID")]
    after: Option<crate::messages::EventId>,
    /// Print each event as a line of JSON, and the run as the last line.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.connection)?;
    // Says at once, not after retries, that there is no such run or no API.
    let (_, run) = follow::read_run(&client, &args.run_id).await?;
    let mut view = View::new(args.json);
    if !args.json {
        view.say(&format!(
            "run {} in session {}",
            args.run_id, run.session_id
        ))?;
    }
    let after = args.after.map(|event| event.to_string());
    let end = follow::follow(&client, &args.run_id, after, &mut view, stream::pending()).await?;
    follow::finish(&client, &args.run_id, end.unwrap_or_default(), &mut view).await
}
