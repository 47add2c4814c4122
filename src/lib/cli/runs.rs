//! `agenthub runs`: lists, shows, cancels, retries and resolves runs.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Client, Connection, Run, id};
use super::follow;
use super::output::{dollars, json_line, json_list, one_line, print, read, table};

const MOST_GOAL: usize = 60;
const STATUSES: [&str; 9] = [
    "queued",
    "planning",
    "executing",
    "retry_wait",
    "cancelling",
    "succeeded",
    "failed",
    "cancelled",
    "timed_out",
];

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub runs list --status failed --limit 5\n  \
    agenthub runs show run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12\n  \
    agenthub runs cancel run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12 --force\n  \
    agenthub runs retry run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List runs, the newest first.
    #[command(after_help = "Example:\n  agenthub runs list --status failed --limit 5")]
    List {
        #[command(flatten)]
        common: Common,
        /// Only runs of this session.
        #[arg(long, value_name = "SESSION_ID", value_parser = id)]
        session: Option<String>,
        /// Only runs in this state.
        #[arg(long, value_parser = STATUSES)]
        status: Option<String>,
        /// The most runs that are listed.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show a run: its steps, what it gave and what it cost.
    #[command(
        after_help = "Example:\n  agenthub runs show run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12 --json"
    )]
    Show {
        #[command(flatten)]
        common: Common,
        /// The run.
        #[arg(value_parser = id)]
        run_id: String,
    },
    /// Cancel a run.
    #[command(after_help = "Example:\n  agenthub runs cancel run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12")]
    Cancel {
        #[command(flatten)]
        common: Common,
        /// The run.
        #[arg(value_parser = id)]
        run_id: String,
        /// Drop the calls under way instead of letting them end.
        #[arg(long)]
        force: bool,
    },
    /// Retry a run that did not succeed: a new run takes over its plan and its finished steps.
    #[command(after_help = "Example:\n  agenthub runs retry run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12")]
    Retry {
        #[command(flatten)]
        common: Common,
        /// The run that did not succeed.
        #[arg(value_parser = id)]
        run_id: String,
    },
    /// Say what became of a step whose outcome is unknown; a retry then makes it, or builds on it.
    #[command(
        after_help = "Example:\n  agenthub runs resolve run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12 --step pay --outcome succeeded"
    )]
    Resolve {
        #[command(flatten)]
        common: Common,
        /// The run.
        #[arg(value_parser = id)]
        run_id: String,
        /// The step.
        #[arg(long, value_name = "STEP_ID", value_parser = id)]
        step: String,
        /// Whether its effect happened.
        #[arg(long, value_parser = ["succeeded", "failed"])]
        outcome: String,
        /// What it gave, JSON, for the steps that build on it.
        #[arg(long, value_name = "JSON", value_parser = json_value)]
        output: Option<Value>,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn json_value(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("expected JSON: {error}"))
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List {
            common,
            session,
            status,
            limit,
        } => {
            let client = Client::new(&common.connection)?;
            let limit = usize::try_from(limit)?;
            let runs = client
                .runs(session.as_deref(), status.as_deref(), limit)
                .await?;
            if common.json {
                print(&json_list(&runs))?;
            } else {
                let rows = runs.iter().map(|run| Ok(row(&read(run)?)));
                print(&table(&rows.collect::<anyhow::Result<Vec<_>>>()?))?;
            }
        }
        Command::Show { common, run_id } => {
            let client = Client::new(&common.connection)?;
            let (raw, run) = follow::read_run(&client, &run_id).await?;
            let text = if common.json {
                json_line(raw.get())
            } else {
                follow::describe(&run)
            };
            print(&text)?;
        }
        Command::Cancel {
            common,
            run_id,
            force,
        } => {
            let client = Client::new(&common.connection)?;
            let status = client.cancel(&run_id, force).await?;
            let text = if common.json {
                json!({ "run_id": run_id, "status": status }).to_string()
            } else {
                format!("{run_id} {}", one_line(&status, 32))
            };
            print(&format!("{text}\n"))?;
        }
        Command::Retry { common, run_id } => {
            let client = Client::new(&common.connection)?;
            let run = client.retry(&run_id, None).await?;
            let text = if common.json {
                json!({ "run_id": run, "retry_of": run_id }).to_string()
            } else {
                format!("{} retries {run_id}", one_line(&run, 64))
            };
            print(&format!("{text}\n"))?;
        }
        Command::Resolve {
            common,
            run_id,
            step,
            outcome,
            output,
        } => {
            let client = Client::new(&common.connection)?;
            client
                .resolve(&run_id, &step, &outcome, output.as_ref())
                .await?;
            let text = if common.json {
                json!({ "run_id": run_id, "step_id": step, "status": outcome }).to_string()
            } else {
                format!("{run_id} {step} {outcome}")
            };
            print(&format!("{text}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(run: &Run) -> [String; 5] {
    [
        one_line(&run.run_id, 64),
        one_line(&run.status, 32),
        one_line(&run.created_at, 40),
        dollars(run.usage.cost_micro_usd),
        one_line(run.goal.as_deref().unwrap_or("-"), MOST_GOAL),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::RunStatus;

    #[test]
    fn every_status_can_be_asked_for() {
        assert_eq!(RunStatus::ALL.map(RunStatus::as_str), STATUSES);
    }

    #[test]
    fn a_run_is_a_row() {
        let run: Run = serde_json::from_value(json!({
            "run_id": "run_1", "status": "failed", "created_at": "2026-01-01T00:00:00.000Z",
            "usage": {"cost_micro_usd": 194}, "goal": "a\nb",
        }))
        .unwrap();
        assert_eq!(
            row(&run),
            [
                "run_1",
                "failed",
                "2026-01-01T00:00:00.000Z",
                "$0.000194",
                "a b"
            ]
        );
        assert_eq!(row(&Run::default())[4], "-");
    }
}
