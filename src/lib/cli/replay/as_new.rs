//! New runs for those that records are about: asked of the API, which governs them.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use reqwest::StatusCode;

use super::source::Found;
use crate::cli::client::{Client, ClientError, Connection};
use crate::ids::RunId;
use crate::messages::header;
use crate::replay::{Pace, Skipped, Summary};

/// Times that the API is asked about one run while it says to come back later.
const MOST_ASKED: u32 = 30;
/// Pause before the API is asked again, where it names none.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the API is: by the environment alone, as most replays do not speak to it.
#[derive(Parser)]
struct Environment {
    #[command(flatten)]
    connection: Connection,
}

/// Starts a new run for each run that it hears of.
pub struct AsNew {
    client: Client,
    pace: Pace,
    execute: bool,
    seen: HashSet<RunId>,
}

impl AsNew {
    pub fn new(rate: Option<u32>, execute: bool) -> anyhow::Result<Self> {
        let environment = Environment::try_parse_from(["agenthub"]);
        let environment =
            environment.context("--as-new starts runs by the API: AGENTHUB_API_KEY is needed")?;
        Ok(Self {
            client: Client::new(&environment.connection)?,
            pace: Pace::new(rate),
            execute,
            seen: HashSet::new(),
        })
    }

    /// Starts a new run, unless one was started for the same run before.
    pub async fn take(&mut self, found: &Found, summary: &mut Summary) -> anyhow::Result<()> {
        let run = found.record.header(header::CE_SUBJECT);
        let Some(run) = run.and_then(|run| run.parse::<RunId>().ok()) else {
            summary.skip(Skipped::NoRun);
            return Ok(());
        };
        if !self.seen.insert(run.clone()) {
            summary.skip(Skipped::Seen);
            return Ok(());
        }
        if self.execute {
            let due = self.pace.next(tokio::time::Instant::now());
            tokio::time::sleep_until(due).await;
            match self.start(&run).await {
                Ok(()) => summary.produced += 1,
                // The API says no to this run: it has not ended, is unknown, or another tenant's.
                Err(ClientError::Refused { status, .. }) if is_about_the_run(status) => {
                    summary.skip(Skipped::Refused);
                    return Ok(());
                }
                Err(error) => return Err(error).with_context(|| run.to_string()),
            }
        }
        summary.matched(found.record.size());
        Ok(())
    }

    /// Asks the API, again while it is busy. A repeat of the same replay starts nothing twice: the
    /// request has the run's name.
    async fn start(&self, run: &RunId) -> Result<(), ClientError> {
        let name = format!("replay-{run}");
        let mut asked = 0;
        loop {
            asked += 1;
            match self.client.retry(run.as_str(), Some(&name)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_transient() && asked < MOST_ASKED => {
                    tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_about_the_run(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::GONE
    )
}
