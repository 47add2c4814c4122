//! `agenthub replay`: prints, keeps or re-enqueues what topics hold.
#![allow(clippy::doc_markdown)] // doc comments are the help's text

mod args;
mod as_new;
pub mod print;
mod rebuild;
pub mod source;

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use secrecy::{ExposeSecret as _, SecretString};

use super::output::{duration, print as print_text};
use crate::config::{Settings, Source};
use crate::kafka::{KafkaSettings, NotForwarded, Producer, Verified};
use crate::messages::{Signer, Topic, header};
use crate::privacy::KeyRing;
use crate::replay::{Enqueue, Keys, Saved, Skipped, Summary};
use crate::runs::Runs;
use crate::runtime::clock;
use crate::store::Redis;
use source::{Found, Records};

pub use args::{Where, Which};

/// How long a record may wait for its acknowledgement: nobody waits for an answer here.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(30);
const REDIS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the progress is shown at most.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

/// Print, keep or re-enqueue what a topic holds.
///
/// Without --out, --enqueue or --as-new the records are printed, masked. Commands are re-enqueued with
/// their original bytes and headers; a run that has ended is never executed again. What --enqueue and
/// --as-new would do is counted first; --execute does it.
///
/// Reads KAFKA_BROKERS, AGENTHUB_NAMESPACE and AGENTHUB_KAFKA_PROPERTIES; --enqueue reads
/// AGENTHUB_SIGNING_SECRETS too, --as-new AGENTHUB_URL and AGENTHUB_API_KEY.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
    agenthub replay --topic agent.events --from 2026-01-31T12:00:00Z --run run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12\n  \
    agenthub replay --topic plan.commands --where \"@.value.spec.metadata.team == 'ads'\" --out commands.jsonl\n  \
    agenthub replay --topic execute.commands --from 1041 --partition 2 --enqueue --rate 100 --execute\n  \
    agenthub replay --in commands.jsonl --enqueue --execute"
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    extent: Where,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    action: Action,
    /// Do what --enqueue or --as-new say; without it they only count.
    #[arg(long)]
    execute: bool,
    /// Re-enqueue or start at most so many a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Open what is sealed in records that are printed; what an erased session left opens no more. Reads
    /// REDIS_URL and AGENTHUB_MASTER_KEYS too.
    #[arg(long, conflicts_with_all = ["out", "enqueue", "as_new"])]
    open: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Rebuild(rebuild::Args),
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct From {
    /// The topic, without the namespace.
    #[arg(long)]
    topic: Option<Topic>,
    /// A file that --out wrote, instead of a topic; --from, --to and --partition do not apply to it.
    #[arg(long = "in", value_name = "FILE", conflicts_with_all = ["from", "to", "partition"])]
    file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Action {
    /// Write the records to a new file, every byte of them, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Put commands onto their topic once more.
    #[arg(long)]
    enqueue: bool,
    /// Start a new run, with retry_of, for each run that the records are about.
    #[arg(long)]
    as_new: bool,
}

/// What happens to the wanted records.
#[allow(clippy::large_enum_variant)] // there is one of it
enum Sink {
    Print(print::Printer),
    Save(PathBuf, BufWriter<File>),
    /// Checked and counted.
    Count(Signer),
    Enqueue(Signer, Enqueue),
    AsNew(as_new::AsNew),
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(Command::Rebuild(args)) = &args.command {
        return rebuild::run(args).await;
    }
    let source = Source::from_process()?;
    let mut settings = KafkaSettings::load(&source)?;
    settings.produce_timeout = settings.produce_timeout.max(PRODUCE_TIMEOUT);
    if let (true, Some(topic)) = (args.action.enqueue, args.from.topic) {
        refuse_log_topics(topic)?;
    }
    if args.execute && !args.action.enqueue && !args.action.as_new {
        bail!("--execute needs --enqueue or --as-new");
    }
    let records = match (args.from.topic, &args.from.file) {
        (Some(topic), _) => Records::of_topic(&settings, topic, args.extent.extent()).await?,
        (None, Some(path)) => Records::of_file(settings.clone(), path).await?,
        (None, None) => bail!("--topic or --in is needed"),
    };
    let sink = sink(&args, &source, &settings)?;
    replay(&args, records, sink).await
}

/// Only topics of commands are queues of work. What is on the others was counted, indexed or rolled up
/// by its place, so that a second copy would count twice, or bring back an old state.
fn refuse_log_topics(topic: Topic) -> anyhow::Result<()> {
    if topic.carries_commands() {
        return Ok(());
    }
    let instead = match topic {
        Topic::DeadLetter => "`agenthub dlq` looks at dead letters",
        Topic::AgentState => "an old key or session would replace the newer one",
        _ => {
            "a second copy would be counted twice by the audit roll-up and by whoever reads events"
        }
    };
    bail!("{}: {instead}", NotForwarded::NoCommand(topic))
}

fn sink(args: &Args, source: &Source, settings: &KafkaSettings) -> anyhow::Result<Sink> {
    if let Some(path) = &args.action.out {
        let file = create(path).with_context(|| path.display().to_string())?;
        return Ok(Sink::Save(path.clone(), BufWriter::new(file)));
    }
    if args.action.as_new {
        return Ok(Sink::AsNew(as_new::AsNew::new(args.rate, args.execute)?));
    }
    if !args.action.enqueue {
        let masker = super::dlq::masker(source)?;
        let keys = if args.open {
            Some(opening_keys(source)?)
        } else {
            None
        };
        return Ok(Sink::Print(print::Printer::new(
            args.json,
            Some(masker),
            keys,
        )));
    }
    let secrets: SecretString = source.setting("AGENTHUB_SIGNING_SECRETS")?;
    let signer = Signer::parse(secrets.expose_secret())
        .map_err(|error| anyhow!("AGENTHUB_SIGNING_SECRETS: {error}"))?;
    if !args.execute {
        return Ok(Sink::Count(signer));
    }
    let producer = Producer::new(settings, signer.clone(), "agenthub-replay")?;
    Ok(Sink::Enqueue(signer, Enqueue::new(producer, args.rate)))
}

/// What opens sealed payloads: the ring, and the ledger, which keeps the sessions' keys.
pub(super) fn opening_keys(source: &Source) -> anyhow::Result<Keys> {
    let settings = Settings::load(source)?;
    let ring = KeyRing::parse(settings.master_keys.expose_secret())
        .map_err(|error| anyhow!("AGENTHUB_MASTER_KEYS: {error}"))?;
    let redis = Redis::connect(&settings, REDIS_TIMEOUT)?;
    Ok(Keys::new(Runs::new(redis, &settings), ring))
}

/// A new file that its owner alone can read.
fn create(path: &std::path::Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

async fn replay(args: &Args, mut records: Records, mut sink: Sink) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut summary = Summary {
        dry_run: (args.action.enqueue || args.action.as_new) && !args.execute,
        ..Summary::default()
    };
    let bar = progress(&sink, records.total());
    let outcome = tokio::select! {
        outcome = go(args, &mut records, &mut sink, &mut summary, &bar) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    let outcome = match outcome {
        Ok(()) => sink.finish().await,
        Err(error) => {
            // What was handed over is on its way all the same.
            let _finished = sink.finish().await;
            Err(error)
        }
    };
    bar.finish_and_clear();
    if let Some(produced) = sink.produced() {
        summary.produced = produced;
    }
    summary.took(begun.elapsed());
    let text = tell(&summary, args)?;
    if matches!(sink, Sink::Print(_)) {
        eprint!("{text}");
    } else {
        print_text(&text)?;
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn go(
    args: &Args,
    records: &mut Records,
    sink: &mut Sink,
    summary: &mut Summary,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let selection = args.which.selection();
    let mut shown = Instant::now();
    while !args.which.is_reached(summary.matched)
        && let Some(found) = records.next().await?
    {
        summary.read += 1;
        match selection.check(&found.record) {
            Err(reason) => summary.skip(reason),
            Ok(()) => sink.take(found, summary).await?,
        }
        if shown.elapsed() >= SHOWN_EVERY {
            shown = Instant::now();
            bar.set_position(records.done());
            bar.set_message(format!("{} matched", summary.matched));
        }
    }
    Ok(())
}

impl Sink {
    async fn take(&mut self, found: Found, summary: &mut Summary) -> anyhow::Result<()> {
        let size = found.record.size();
        match self {
            Self::Print(printer) => printer.print(&found).await?,
            Self::Save(path, file) => {
                let name = || path.display().to_string();
                let saved = Saved::new(&found.full_topic, &found.record);
                serde_json::to_writer(&mut *file, &saved).with_context(name)?;
                file.write_all(b"\n").with_context(name)?;
                summary.produced += 1;
            }
            Self::AsNew(starter) => return starter.take(&found, summary).await,
            Self::Count(signer) => {
                if verify(found, signer, summary).is_none() {
                    return Ok(());
                }
            }
            Self::Enqueue(signer, enqueue) => {
                let Some(command) = verify(found, signer, summary) else {
                    return Ok(());
                };
                enqueue.send(&command).await?;
            }
        }
        summary.matched(size);
        Ok(())
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Print(printer) => printer.finish(),
            Self::Save(path, file) => {
                let written = file.flush().and_then(|()| file.get_ref().sync_all());
                written.with_context(|| path.display().to_string())
            }
            Self::Enqueue(_, enqueue) => Ok(enqueue.finish().await?),
            Self::Count(_) | Self::AsNew(_) => Ok(()),
        }
    }

    fn produced(&self) -> Option<u64> {
        match self {
            Self::Enqueue(_, enqueue) => Some(enqueue.produced()),
            _ => None,
        }
    }
}

/// A command that may go onto its topic again; what may not is counted.
fn verify(found: Found, signer: &Signer, summary: &mut Summary) -> Option<Verified> {
    let Some(topic) = found.topic else {
        summary.skip(Skipped::Topic);
        return None;
    };
    let not_after = found.record.header(header::NOT_AFTER);
    let not_after: Option<u64> = not_after.and_then(|text| text.parse().ok());
    match Verified::check(found.record, topic, &found.full_topic, signer) {
        Ok(command) => {
            if not_after.is_some_and(|ms| ms < clock::now_ms()) {
                summary.past_their_time += 1;
            }
            Some(command)
        }
        Err(NotForwarded::NoCommand(_)) => {
            summary.skip(Skipped::Topic);
            None
        }
        Err(NotForwarded::Signature(_)) => {
            summary.skip(Skipped::Signature);
            None
        }
    }
}

/// A bar, where somebody can see it and nothing else is written there.
fn progress(sink: &Sink, total: u64) -> ProgressBar {
    let busy = matches!(sink, Sink::Print(_)) && std::io::stdout().is_terminal();
    let target = if busy {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr() // hides itself where it is no terminal
    };
    let style = ProgressStyle::with_template("{bar:30} {percent}% {msg} [{elapsed}, {eta} left]");
    let bar = ProgressBar::with_draw_target(Some(total), target);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn tell(summary: &Summary, args: &Args) -> anyhow::Result<String> {
    if args.json {
        return Ok(format!("{}\n", serde_json::to_string(summary)?));
    }
    let skipped: Vec<String> = summary
        .skipped
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let skipped = if skipped.is_empty() {
        String::new()
    } else {
        format!(", skipped: {}", skipped.join(", "))
    };
    let expired = match summary.past_their_time {
        0 => String::new(),
        count => format!("; {count} are past their time, and workers will do nothing about them"),
    };
    let done = match (summary.dry_run, &args.action) {
        (true, _) => "; a dry run: nothing was done, --execute does it".to_owned(),
        (
            false,
            Action {
                out: Some(path), ..
            },
        ) => {
            format!("; {} written to {}", summary.produced, path.display())
        }
        (false, Action { enqueue: true, .. }) => format!("; {} re-enqueued", summary.produced),
        (false, Action { as_new: true, .. }) => format!("; {} runs started", summary.produced),
        (false, _) => String::new(),
    };
    Ok(format!(
        "{} read, {} matched ({} bytes){skipped}{expired}{done}; {}, {} records/s\n",
        summary.read,
        summary.matched,
        summary.bytes,
        duration(summary.duration_ms),
        summary.per_second()
    ))
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
        for right in [
            "replay --topic plan.commands",
            "replay --topic agent.events --from 5 --to latest --partition 1 --key k --tenant acme",
            "replay --topic plan.commands --where @.value.wake>1 --enqueue --execute --rate 10",
            "replay --in file --enqueue",
            "replay --topic audit.logs --out file --json",
            "replay rebuild",
            "replay rebuild --json",
        ] {
            assert!(parse(right).is_ok(), "{right}: {:?}", parse(right));
        }
        for wrong in [
            "replay",
            "replay --topic odd",
            "replay --topic plan.commands --in file",
            "replay --in file --from 3",
            "replay --topic plan.commands --enqueue --out file",
            "replay --topic plan.commands --rate 0",
            "replay --topic plan.commands --from yesterday",
            "replay --topic plan.commands --where kind",
            "replay --topic plan.commands --run run_1",
            "replay --topic plan.commands rebuild",
            "replay rebuild --force",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_commands_are_put_onto_their_topic_again() {
        for topic in Topic::ALL {
            let refused = refuse_log_topics(topic);
            assert_eq!(refused.is_ok(), topic.carries_commands(), "{topic}");
        }
        let error = refuse_log_topics(Topic::AuditLogs).unwrap_err().to_string();
        assert!(
            error.contains("audit.logs") && error.contains("twice"),
            "{error}"
        );
    }

    #[test]
    fn a_summary_says_what_was_done_and_what_was_not() {
        let args = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().args;
        let mut summary = Summary {
            read: 10,
            matched: 3,
            bytes: 90,
            past_their_time: 2,
            dry_run: true,
            duration_ms: 2_000,
            ..Summary::default()
        };
        for _ in 0..7 {
            summary.skip(Skipped::Tenant);
        }
        let text = tell(&summary, &args("replay --topic plan.commands --enqueue")).unwrap();
        assert_eq!(
            text,
            "10 read, 3 matched (90 bytes), skipped: another_tenant 7; 2 are past their time, and \
             workers will do nothing about them; a dry run: nothing was done, --execute does it; \
             2.0 s, 5 records/s\n"
        );
        let json = tell(
            &summary,
            &args("replay --topic plan.commands --enqueue --json"),
        )
        .unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["skipped"]["another_tenant"], 7);
    }
}
