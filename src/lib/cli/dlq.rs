//! `agenthub dlq`: finds, shows and redrives dead letters.
#![allow(clippy::doc_markdown)] // doc comments are the help's text

mod filter;
mod redrive;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use self::filter::Filter;
use super::output::{one_line, print, table};
use crate::config::{RedisSettings, Source};
use crate::dlq::{GroupView, View};
use crate::ids::TenantId;
use crate::messages::LetterId;
use crate::privacy::mask::{self, Masker};
use crate::store::Redis;

const TIMEOUT: Duration = Duration::from_secs(5);
const MOST_ERROR: usize = 80;

/// List, show and redrive dead letters: records that could not be handled and runs that failed for
/// good, and why.
///
/// List and show are for operators: they read the index in Redis (REDIS_URL, AGENTHUB_NAMESPACE),
/// whatever the tenant. Redrive speaks to the API. Everything is shown masked.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub dlq list --class unsigned --limit 20\n  \
    agenthub dlq list --group\n  \
    agenthub dlq show execute.commands.2.1041\n  \
    agenthub dlq redrive execute.commands.2.1041")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List letters, the latest first, or groups of them.
    #[command(after_help = "Examples:\n  \
        agenthub dlq list --tenant acme --tool http_fetch --since 2h --json\n  \
        agenthub dlq list --group\n  \
        agenthub dlq list --fingerprint 6f1d5b0c2a7e9943")]
    List {
        #[command(flatten)]
        filter: Filter,
        /// List groups of letters about equal failures, with their counts.
        #[arg(long, conflicts_with_all = ["fingerprint", "class", "tool", "run", "since", "until"])]
        group: bool,
        /// Only the group with this fingerprint.
        #[arg(long)]
        fingerprint: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one letter; exit code 1 when there is none of that id.
    #[command(after_help = "Example:\n  agenthub dlq show audit.logs.0.17")]
    Show {
        /// The letter's id: topic, partition and offset of the record.
        id: LetterId,
        /// Whose letter it is; every tenant is asked when this is not given.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    Redrive(redrive::Args),
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Redrive(args) => redrive::run(args).await,
        Command::List {
            filter,
            group: true,
            limit,
            json,
            ..
        } => {
            let (redis, masker) = open()?;
            let groups = groups(&redis, &masker, filter.tenant, limit).await?;
            print(&if json {
                format!("{}\n", json!({ "data": groups }))
            } else {
                table(&groups.iter().map(group_row).collect::<Vec<_>>())
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::List {
            filter,
            fingerprint,
            limit,
            json,
            ..
        } => {
            let (redis, masker) = open()?;
            let letters = list(&redis, &masker, &filter, fingerprint, limit).await?;
            if json {
                println!("{}", json!({ "data": letters }));
            } else {
                letters.iter().for_each(print_line);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { id, tenant, json } => {
            let (redis, masker) = open()?;
            for tenant in tenants(&redis, tenant).await? {
                let Some(indexed) = redis.letter(&tenant, &id.indexed()).await? else {
                    continue;
                };
                let history = redis.letter_history(&tenant, &indexed.letter).await?;
                let view = View::new(&indexed, &masker).with_history(&history, &masker);
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

fn open() -> anyhow::Result<(Redis, Masker)> {
    let source = Source::from_process()?;
    let redis = RedisSettings::load(&source)?;
    let namespace: String = source.setting("AGENTHUB_NAMESPACE")?;
    crate::config::check_namespace(&namespace)?;
    let redis = Redis::open(&redis, &namespace, TIMEOUT)?;
    Ok((redis, masker(&source)?))
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
    filter: &Filter,
    group: Option<String>,
    limit: usize,
) -> anyhow::Result<Vec<View>> {
    let wanted = filter.letters(group);
    let mut letters = Vec::new();
    for tenant in tenants(redis, filter.tenant.clone()).await? {
        letters.extend(redis.letters(&tenant, &wanted, None, limit).await?);
    }
    letters.sort_by_key(|indexed| std::cmp::Reverse(indexed.letter.last_ms));
    letters.truncate(limit);
    Ok(letters
        .iter()
        .map(|indexed| View::new(indexed, masker))
        .collect())
}

async fn groups(
    redis: &Redis,
    masker: &Masker,
    tenant: Option<TenantId>,
    limit: usize,
) -> anyhow::Result<Vec<GroupView>> {
    let mut groups = Vec::new();
    for tenant in tenants(redis, tenant).await? {
        let found = redis.letter_groups(&tenant, limit).await?;
        groups.extend(found.into_iter().map(|group| (tenant.clone(), group)));
    }
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.last_ms));
    groups.truncate(limit);
    Ok(groups
        .iter()
        .map(|(tenant, group)| GroupView::new(tenant, group, masker))
        .collect())
}

fn group_row(group: &GroupView) -> [String; 8] {
    [
        group.fingerprint.clone(),
        group.count.to_string(),
        group.first.clone(),
        group.last.clone(),
        one_line(&group.tenant, 64),
        group.class.to_string(),
        one_line(group.tool.as_deref().unwrap_or("-"), 64),
        one_line(&group.error, MOST_ERROR),
    ]
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
    let optional = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            row(name, value);
        }
    };
    optional("code", &view.code);
    optional("tool", &view.tool);
    optional("step", &view.step_id);
    optional("breaker", &view.breaker);
    row("group", &view.group);
    row("tenant", view.tenant.as_deref().unwrap_or(TenantId::SYSTEM));
    if let Some(run) = &view.run_id {
        row("run", run);
    }
    if let Some(redriven) = &view.redriven {
        row(
            "redriven",
            &format!("{} as {}", redriven.at, redriven.run_id),
        );
    }
    for earlier in &view.redrives {
        let run = earlier.run_id.as_deref().unwrap_or("-");
        let text = format!(
            "{} {} {run}: {}",
            earlier.last, earlier.class, earlier.error
        );
        row("before it", &text);
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
        for fine in [
            "dlq show t/0/1",
            "dlq show a.t.0.1",
            "dlq list --group",
            "dlq list --tool http_fetch --since 2h --until 2026-01-31T12:00:00Z",
            "dlq redrive --api-key k t.0.1 t.0.2 --force",
            "dlq redrive --api-key k --group 0f --dry-run --rate 0.5",
            "dlq redrive --api-key k --all --tool http_fetch --yes",
        ] {
            assert!(parse(fine).is_ok(), "{fine}");
        }
        for wrong in [
            "dlq list --class odd",
            "dlq list --tenant A_B",
            "dlq show",
            "dlq show t",
            "dlq list --group --class unsigned",
            "dlq list --since soon",
            "dlq redrive --api-key k",
            "dlq redrive --api-key k t.0.1 --all",
            "dlq redrive --api-key k --all --rate 0",
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
