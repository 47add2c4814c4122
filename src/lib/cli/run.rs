//! `agenthub run`: submits a goal and follows the run to its end.

use std::pin::Pin;
use std::process::ExitCode;

use anyhow::Context;
use futures_util::{Stream, stream};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, Connection, NewRun, id};
use super::follow::{self, View};

/// The exit code of a process that an interrupt ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub run \"Get ROAS for advertiser 123 over 7 days\"\n  \
    agenthub run \"Summarise what the docs say about retries\" --max-cost-usd 0.05 --timeout-s 120\n  \
    agenthub run --mode agent \"Get ROAS for advertiser 123 and find what the docs say about it\"\n  \
    agenthub run \"Get ROAS for advertiser 123 over 7 days\" --json | tail -1 | jq .result\n\n\
    Ctrl-C asks the run to stop and follows it to its end; a second Ctrl-C drops the calls under way.\n\
    Exit codes: 0 the run succeeded, 1 it failed, was cancelled or timed out, 2 wrong usage, 130 Ctrl-C twice.")]
pub struct Args {
    /// What is to be reached.
    goal: String,
    #[command(flatten)]
    pub(super) connection: Connection,
    /// The session; a new one when absent.
    #[arg(long, value_name = "SESSION_ID", value_parser = id)]
    session: Option<String>,
    /// How the run goes about its goal: by a plan made first, or by a model that calls tools until it
    /// answers.
    #[arg(long, default_value = "plan_execute", value_parser = ["plan_execute", "agent"])]
    mode: String,
    /// The model that plans; the installation's default when absent.
    #[arg(long)]
    model: Option<String>,
    /// The most that the run may cost, in US dollars.
    #[arg(long, value_name = "USD", value_parser = amount)]
    max_cost_usd: Option<f64>,
    /// Seconds after which the run ends as timed out.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout_s: Option<u64>,
    /// Name of the request: the same command again follows the same run. Needs --session, because
    /// the same goal in a new session is another request.
    #[arg(long, value_name = "KEY", requires = "session", value_parser = idempotency_key)]
    idempotency_key: Option<String>,
    /// Print each event as a line of JSON, and the run as the last line.
    #[arg(long)]
    json: bool,
}

fn amount(text: &str) -> Result<f64, String> {
    let amount = text
        .parse::<f64>()
        .ok()
        .filter(|amount| amount.is_finite() && *amount >= 0.0);
    amount.ok_or_else(|| "expected an amount such as 0.05".to_owned())
}

fn idempotency_key(text: &str) -> Result<String, String> {
    if (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 255 visible ASCII characters".to_owned())
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.connection)?;
    // From the start, so that no interrupt after the submission leaves a run behind unseen.
    let interrupts = interrupts().context("signals")?;
    submit_and_follow(&client, &args, &mut View::new(args.json), interrupts).await
}

/// Ctrl-C, as often as it is pressed.
pub(super) type Interrupts = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// Each Ctrl-C.
fn interrupts() -> std::io::Result<Interrupts> {
    let mut signal = signal(SignalKind::interrupt())?;
    Ok(Box::pin(stream::poll_fn(move |context| {
        signal.poll_recv(context)
    })))
}

/// Submits the goal and follows the run. The first of `interrupts` after the submission asks for a
/// cancel.
pub(super) async fn submit_and_follow(
    client: &Client,
    args: &Args,
    view: &mut View,
    mut interrupts: Interrupts,
) -> anyhow::Result<ExitCode> {
    let submitting = submit(client, args);
    let (session, run) = tokio::select! {
        submitted = submitting => submitted?,
        () = next(&mut interrupts) => return Ok(ExitCode::from(INTERRUPTED)),
    };
    if !args.json {
        view.say(&format!("run {run} in session {session}"))?;
    }
    match follow::follow(client, &run, None, view, interrupts).await? {
        Some(end) => follow::finish(client, &run, end, view).await,
        None => Ok(ExitCode::from(INTERRUPTED)),
    }
}

async fn next(interrupts: &mut Interrupts) {
    use futures_util::StreamExt;
    if interrupts.next().await.is_none() {
        std::future::pending::<()>().await;
    }
}

async fn submit(client: &Client, args: &Args) -> anyhow::Result<(String, String)> {
    let session = match &args.session {
        Some(session) => session.clone(),
        None => client.create_session().await?,
    };
    let run = NewRun {
        session_id: &session,
        goal: &args.goal,
        mode: &args.mode,
        model: args.model.as_deref(),
        max_cost_usd: args.max_cost_usd,
        timeout_s: args.timeout_s,
    };
    let submitted = client.submit(&run, args.idempotency_key.as_deref()).await?;
    Ok((session, submitted.run_id))
}
