//! `agenthub dlq redrive`: has the API start new runs that go on after those that became dead letters.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::filter::{Filter, letter_id};
use crate::cli::client::{Client, ClientError, Connection};
use crate::cli::output::{one_line, print, read};

/// Times that the same letter is asked for while the API is away or wants to be left alone.
const TRIES: u32 = 6;
/// Longest wait that the API may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
const WAIT: Duration = Duration::from_secs(1);

/// Redrive letters: each becomes a new run that takes over the finished steps of the run that failed.
///
/// Over HTTP (AGENTHUB_URL, AGENTHUB_API_KEY) with a key of the role admin; a key of the tenant system
/// may name any tenant. A letter that was redriven before answers with the same run, unless --force is
/// given. Exit code 1 when a letter could not be redriven.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub dlq redrive execute.commands.2.1041\n  \
    agenthub dlq redrive --group 6f1d5b0c2a7e9943 --dry-run\n  \
    agenthub dlq redrive --all --tool http_fetch --since 2h --rate 2 --yes")]
#[allow(clippy::struct_excessive_bools)] // each is a switch of its own
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The letters.
    #[arg(value_name = "LETTER_ID", value_parser = letter_id, required_unless_present_any = ["group", "all"])]
    letters: Vec<String>,
    /// Every letter of the group with this fingerprint.
    #[arg(long, value_name = "FINGERPRINT", conflicts_with_all = ["letters", "all"])]
    group: Option<String>,
    /// Every letter that the filters let through.
    #[arg(long, conflicts_with = "letters")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Runs started each second at most.
    #[arg(long, default_value_t = 5.0, value_parser = rate)]
    rate: f64,
    /// Say what would be redriven, and start nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before redriving many.
    #[arg(long, short = 'y')]
    yes: bool,
    /// Also redrive letters that were redriven before.
    #[arg(long)]
    force: bool,
    /// Print one line of JSON for each letter.
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.001..=1000.0).contains(&rate) {
        Ok(rate)
    } else {
        Err("expected 0.001 to 1000".to_owned())
    }
}

/// As much of a letter as decides.
#[derive(Debug, Deserialize)]
struct Letter {
    id: String,
    class: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    run_id: Option<String>,
    #[serde(default)]
    redriven: Option<Value>,
}

/// What became of the letters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    started: usize,
    before: usize,
    skipped: usize,
    failed: usize,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.connection)?;
    let tenant = args.filter.tenant.as_ref().map(ToString::to_string);
    let (letters, mut summary) = if args.letters.is_empty() {
        choose(&client, &args).await?
    } else {
        (args.letters.clone(), Summary::default())
    };
    if args.dry_run {
        for id in &letters {
            tell(&args, id, "would be redriven", &json!({ "dry_run": true }))?;
        }
        eprintln!("agenthub: {} would be redriven", count(letters.len()));
        return Ok(ExitCode::SUCCESS);
    }
    let many = args.letters.is_empty() || letters.len() > 1;
    if many && !args.yes && !letters.is_empty() && !confirmed(letters.len())? {
        return Ok(ExitCode::FAILURE);
    }
    let pause = Duration::from_secs_f64(1.0 / args.rate);
    let mut next = tokio::time::Instant::now();
    for id in &letters {
        tokio::time::sleep_until(next).await;
        next = tokio::time::Instant::now() + pause;
        match redrive(&client, id, tenant.as_deref(), args.force).await {
            Ok(answer) => {
                let run = answer["run_id"].as_str().unwrap_or_default();
                let already = answer["already"] == true;
                let word = if already {
                    "was redriven as"
                } else {
                    "goes on as"
                };
                *(if already {
                    &mut summary.before
                } else {
                    &mut summary.started
                }) += 1;
                let text = format!("{word} {}", one_line(run, 64));
                tell(
                    &args,
                    id,
                    &text,
                    &json!({ "run_id": run, "already": already }),
                )?;
            }
            Err(error) => {
                summary.failed += 1;
                let error = error.to_string();
                tell(
                    &args,
                    id,
                    &format!("not redriven: {error}"),
                    &json!({ "error": error }),
                )?;
            }
        }
    }
    eprintln!(
        "agenthub: {} redriven, {} before, {} skipped, {} failed",
        summary.started, summary.before, summary.skipped, summary.failed
    );
    Ok(if summary.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The letters that the group and the filters name; those that cannot be redriven, or were before, are
/// left out.
async fn choose(client: &Client, args: &Args) -> anyhow::Result<(Vec<String>, Summary)> {
    let query = args.filter.query(args.group.as_deref());
    let mut letters = Vec::new();
    let mut summary = Summary::default();
    for raw in client.letters(&query).await? {
        let letter: Letter = read(&raw)?;
        let (class, error) = (one_line(&letter.class, 32), one_line(&letter.error, 80));
        if letter.run_id.is_none() {
            summary.skipped += 1;
            eprintln!(
                "agenthub: {} is skipped: no run ({class}: {error})",
                letter.id
            );
        } else if letter.redriven.is_some() && !args.force {
            summary.before += 1;
        } else {
            letters.push(letter.id);
        }
    }
    // The oldest first, as they came.
    letters.reverse();
    Ok((letters, summary))
}

fn confirmed(letters: usize) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "{} would be redriven: say --yes, or look with --dry-run",
            count(letters)
        );
    }
    eprint!("Redrive {}? [y/N] ", count(letters));
    std::io::stderr().flush().context("standard error")?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("standard input")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn count(letters: usize) -> String {
    match letters {
        1 => "1 letter".to_owned(),
        n => format!("{n} letters"),
    }
}

fn tell(args: &Args, id: &str, text: &str, facts: &Value) -> anyhow::Result<()> {
    if !args.json {
        return print(&format!("{id} {text}\n"));
    }
    let mut line = json!({ "letter_id": id });
    if let (Some(line), Some(facts)) = (line.as_object_mut(), facts.as_object()) {
        line.extend(facts.clone());
    }
    print(&format!("{line}\n"))
}

/// Asks for one letter. What may go well a little later is asked for again: under one key, so that it
/// starts one run.
async fn redrive(
    client: &Client,
    id: &str,
    tenant: Option<&str>,
    force: bool,
) -> Result<Value, ClientError> {
    let key = uuid::Uuid::new_v4().to_string();
    let mut tries = 1;
    loop {
        let error = match client.redrive(id, tenant, force, &key).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if !error.is_transient() || tries == TRIES {
            return Err(error);
        }
        let asked = match &error {
            ClientError::Refused { retry_after, .. } => *retry_after,
            _ => None,
        };
        tokio::time::sleep(asked.unwrap_or(WAIT * tries).min(LONGEST_WAIT)).await;
        tries += 1;
    }
}
