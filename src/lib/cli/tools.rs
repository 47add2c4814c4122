//! `agenthub tools`: the tools that plans may use.

use std::process::ExitCode;

use super::client::{Breaker, Client, Connection, Tool};
use super::output::{duration, json_list, one_line, print, read, table};

const MOST_DESCRIPTION: usize = 100;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub tools\n  \
    agenthub tools --json | jq '.data[] | select(.name == \"retrieval\") | .parameters'\n\n\
    The columns: name, what a repeated call does, how long an attempt may take, its circuit breaker, what it is \
    for.")]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON, the schemas of the arguments included.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let tools = Client::new(&args.connection)?.tools().await?;
    if args.json {
        print(&json_list(&tools))?;
    } else {
        let rows = tools.iter().map(|tool| Ok(row(&read(tool)?)));
        print(&table(&rows.collect::<anyhow::Result<Vec<_>>>()?))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(tool: &Tool) -> [String; 5] {
    [
        one_line(&tool.name, 64),
        one_line(&tool.effects, 32),
        duration(tool.timeout_ms),
        breaker(&tool.breaker),
        one_line(&tool.description, MOST_DESCRIPTION),
    ]
}

fn breaker(breaker: &Breaker) -> String {
    let state = if breaker.state.is_empty() {
        "–".to_owned() // an API that does not tell
    } else {
        one_line(&breaker.state, 32)
    };
    breaker.retry_after_ms.map_or(state.clone(), |wait| {
        format!("{state} for {}", duration(wait))
    })
}
