//! `agenthub dlq`: finds and shows dead letters.
#![allow(clippy::doc_markdown)] // doc comments are the help's text

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use secrecy::SecretString;
use serde_json::json;

use crate::config::Source;
use crate::dlq::View;
use crate::ids::TenantId;
use crate::messages::FailureClass;
use crate::privacy::mask::{self, Masker};
use crate::store::Redis;

const TIMEOUT: Duration = Duration::from_secs(5);

/// List and show dead letters: records that could not be handled, and why.
///
/// For operators: reads the index in Redis (REDIS_URL, AGENTHUB_NAMESPACE), whatever the tenant.
/// Everything is shown masked.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    agenthub dlq list --class unsigned --limit 20\n  \
    agenthub dlq show execute.commands/2/1041")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List letters, the latest first.
    #[command(after_help = "Example:\n  agenthub dlq list --tenant acme --json")]
    List {
        /// Only this tenant's; those of records that nobody vouches for are the tenant system's.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Only this class: undecodable, unsigned, too_many_deliveries or panicked.
        #[arg(long)]
        class: Option<FailureClass>,
        /// At most so many letters.
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one letter; exit code 1 when there is none of that id.
    #[command(after_help = "Example:\n  agenthub dlq show audit.logs/0/17")]
    Show {
        /// The letter's id: topic, partition and offset of the record.
        id: String,
        /// Whose letter it is; every tenant is asked when this is not given.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let source = Source::from_process()?;
    let url: SecretString = source.setting("REDIS_URL")?;
    let namespace: String = source.setting("AGENTHUB_NAMESPACE")?;
    crate::config::check_namespace(&namespace)?;
    let redis = Redis::open(&url, &namespace, TIMEOUT)?;
    let masker = masker(&source)?;
    match args.command {
        Command::List {
            tenant,
            class,
            limit,
            json,
        } => {
            let letters = list(&redis, &masker, tenant, class, limit).await?;
            if json {
                println!("{}", json!({ "data": letters }));
            } else {
                letters.iter().for_each(print_line);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { id, tenant, json } => {
            for tenant in tenants(&redis, tenant).await? {
                let Some(letter) = redis.letter(&tenant, &id).await? else {
                    continue;
                };
                let view = View::new(&letter, &masker);
                if json {
                    println!("{}", serde_json::to_string(&view)?);
                } else {
                    print_page(&view);
                }
                return Ok(ExitCode::SUCCESS);
            }
            eprintln!("agenthub: no dead letter {id}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The masker with the operator's patterns.
pub(super) fn masker(source: &Source) -> anyhow::Result<Masker> {
    let file: Option<PathBuf> = source.setting("AGENTHUB_MASK_PATTERNS_FILE")?;
    let patterns = match file {
        None => Vec::new(),
        Some(path) => {
            let text = std::fs::read_to_string(&path);
            mask::patterns(&text.with_context(|| path.display().to_string())?)
        }
    };
    Ok(Masker::new(&patterns)?)
}

/// The one that was named, else all that may have letters.
async fn tenants(redis: &Redis, named: Option<TenantId>) -> anyhow::Result<BTreeSet<TenantId>> {
    if let Some(tenant) = named {
        return Ok(BTreeSet::from([tenant]));
    }
    let mut tenants: BTreeSet<TenantId> = redis.tenants().await?.into_iter().collect();
    tenants.insert(TenantId::system());
    Ok(tenants)
}

async fn list(
    redis: &Redis,
    masker: &Masker,
    tenant: Option<TenantId>,
    class: Option<FailureClass>,
    limit: usize,
) -> anyhow::Result<Vec<View>> {
    let mut letters = Vec::new();
    for tenant in tenants(redis, tenant).await? {
        letters.extend(redis.letters(&tenant, class, limit).await?);
    }
    letters.sort_by_key(|indexed| std::cmp::Reverse(indexed.letter.last_ms));
    letters.truncate(limit);
    Ok(letters
        .iter()
        .map(|indexed| View::new(indexed, masker))
        .collect())
}

fn print_line(view: &View) {
    let tenant = view.tenant.as_deref().unwrap_or(TenantId::SYSTEM);
    println!(
        "{}  {}  {}  {tenant}  {}",
        view.last,
        view.id,
        view.class,
        line(&view.error)
    );
}

fn print_page(view: &View) {
    println!("{}", view.id);
    let row = |name: &str, value: &str| println!("  {name:<12} {}", line(value));
    row("class", view.class.as_str());
    row("error", &view.error);
    row("tenant", view.tenant.as_deref().unwrap_or(TenantId::SYSTEM));
    if let Some(run) = &view.run_id {
        row("run", run);
    }
    row("attempts", &view.attempts.to_string());
    row("made", &view.first);
    row("given up", &view.last);
    row("by", &view.worker);
    if let Some(trace) = &view.traceparent {
        row("traceparent", trace);
    }
    if let Some(key) = &view.key {
        row("key", key);
    }
    for (name, value) in &view.headers {
        row("header", &format!("{name}: {value}"));
    }
    let place = format!(
        "dead.letter/{}/{}",
        view.letter_partition, view.letter_offset
    );
    row("letter", &place);
    let cut = if view.value_cut {
        ", the beginning of which is"
    } else {
        ""
    };
    row("value", &format!("{} bytes{cut}", view.value_bytes));
    for text in view.value.iter().flat_map(|value| value.lines()) {
        println!("    {}", line(text));
    }
}

/// What came from outside must not steer the terminal.
fn line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn arguments_are_checked() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("dlq list --tenant acme --class unsigned --limit 3 --json").is_ok());
        assert!(parse("dlq show t/0/1").is_ok());
        for wrong in [
            "dlq list --class odd",
            "dlq list --tenant A_B",
            "dlq show",
            "dlq",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn control_characters_are_not_printed() {
        assert_eq!(line("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
