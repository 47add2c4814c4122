//! `agenthub topics`: creates, checks, describes and shows the topics, and writes their documents.
#![allow(clippy::doc_markdown)] // doc comments are the help's text

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use super::dlq::masker;
use super::replay::opening_keys;
use super::replay::print::Printer;
use super::replay::source::Records;
use super::replay::{Where, Which};
use crate::config::Source;
use crate::kafka::KafkaSettings;
use crate::kafka::admin::{Action, Admin, ClusterInfo, Findings, Plan};
use crate::kafka::catalogue::Catalogue;
use crate::kafka::schemas;
use crate::messages::Topic;

/// Create, check and describe the topics that `topics/topics.toml` declares.
///
/// Reads KAFKA_BROKERS, AGENTHUB_NAMESPACE and AGENTHUB_KAFKA_PROPERTIES; needs no secrets, but for
/// what `cat --open` opens.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    KAFKA_BROKERS=127.0.0.1:9092 agenthub topics apply --dev\n  \
    agenthub topics verify && echo as declared")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create missing topics and set what differs. Never takes anything away.
    #[command(after_help = "Example:\n  agenthub topics apply --dev")]
    Apply {
        #[command(flatten)]
        common: Common,
        /// Add partitions where a topic has too few, although keys then move to other partitions.
        #[arg(long)]
        allow_repartition: bool,
    },
    /// Say how the cluster differs from the declaration; exit code 1 when it does.
    #[command(after_help = "Example:\n  agenthub topics verify --json")]
    Verify {
        #[command(flatten)]
        common: Common,
    },
    /// Show partitions, offsets, and how far each consumer group is behind.
    #[command(after_help = "Example:\n  agenthub topics describe")]
    Describe {
        #[command(flatten)]
        common: Common,
    },
    /// Print a topic's records, masked; sealed payloads are opened for who has the key ring.
    #[command(after_help = "Example:\n  \
        agenthub topics cat agent.events --run run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12 --open\n\n\
        --open reads AGENTHUB_MASTER_KEYS and, for the sessions' wrapped keys, REDIS_URL.")]
    Cat(Box<Cat>),
    /// Print the message schemas and the AsyncAPI description, or write them to a folder.
    #[command(after_help = "Example:\n  agenthub topics schemas --write topics")]
    Schemas {
        /// The folder; `schemas/*.json` and `asyncapi.yaml` are written below it.
        #[arg(long, value_name = "FOLDER")]
        write: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Cat {
    /// The topic, without the namespace.
    topic: Topic,
    #[command(flatten)]
    extent: Where,
    #[command(flatten)]
    which: Which,
    /// Open sealed payloads.
    #[arg(long)]
    open: bool,
    /// Do not mask: show personal data and secrets as they are.
    #[arg(long)]
    unmasked: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Take the declaration's development values: few partitions, one replica.
    #[arg(long)]
    dev: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Apply {
            common,
            allow_repartition,
        } => {
            let (admin, catalogue) = open(&common)?;
            let plan = admin.apply(&catalogue, allow_repartition).await?;
            print_plan(&plan, common.json);
            Ok(success(plan.refused.is_empty()))
        }
        Command::Verify { common } => {
            let (admin, catalogue) = open(&common)?;
            let findings = admin.verify(&catalogue).await?;
            print_findings(&findings, common.json);
            Ok(success(findings.is_empty()))
        }
        Command::Describe { common } => {
            let (admin, catalogue) = open(&common)?;
            let cluster = admin.describe(&catalogue).await?;
            if common.json {
                println!("{}", serde_json::to_string(&cluster)?);
            } else {
                print_cluster(&cluster);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Cat(cat) => print_records(&cat).await,
        Command::Schemas { write } => {
            for (path, text) in schemas::documents()? {
                match &write {
                    None => println!("# {path}\n{text}"),
                    Some(folder) => write_file(&folder.join(path), &text)?,
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn print_records(cat: &Cat) -> anyhow::Result<ExitCode> {
    let source = Source::from_process()?;
    let kafka = KafkaSettings::load(&source)?;
    let keys = if cat.open {
        Some(opening_keys(&source)?)
    } else {
        None
    };
    let masker = if cat.unmasked {
        None
    } else {
        Some(masker(&source)?)
    };
    let mut records = Records::of_topic(&kafka, cat.topic, cat.extent.extent()).await?;
    let mut printer = Printer::new(cat.json, masker, keys);
    let selection = cat.which.selection();
    let mut count = 0;
    while !cat.which.is_reached(count)
        && let Some(found) = records.next().await?
    {
        if selection.check(&found.record).is_ok() {
            printer.print(&found).await?;
            count += 1;
        }
    }
    printer.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn open(common: &Common) -> anyhow::Result<(Admin, Catalogue)> {
    let settings = KafkaSettings::load(&Source::from_process()?)?;
    Ok((Admin::new(&settings)?, Catalogue::embedded(common.dev)?))
}

fn success(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn write_file(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(name)?;
    }
    std::fs::write(path, text).with_context(name)?;
    println!("{}", name());
    Ok(())
}

fn print_plan(plan: &Plan, as_json: bool) {
    let done = if plan.refused.is_empty() {
        &plan.actions[..]
    } else {
        &[]
    };
    let texts: Vec<String> = done.iter().map(action_text).collect();
    let left: Vec<String> = plan.left.iter().map(|(t, d)| format!("{t} {d}")).collect();
    if as_json {
        let document = json!({"done": texts, "left": left, "refused": plan.refused});
        println!("{document}");
        return;
    }
    for text in &texts {
        println!("{text}");
    }
    for text in &left {
        println!("left as it is: {text}");
    }
    for text in &plan.refused {
        eprintln!("agenthub: refused, nothing was changed: {text}");
    }
    if texts.is_empty() && plan.refused.is_empty() {
        println!("nothing to do");
    }
}

fn action_text(action: &Action) -> String {
    match action {
        Action::Create(topic) => format!("created {topic}"),
        Action::Grow(topic, partitions) => format!("{topic} has {partitions} partitions now"),
        Action::Configure(topic, config) => {
            let values: Vec<String> = config.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("{topic}: set {}", values.join(", "))
        }
    }
}

fn print_findings(findings: &Findings, as_json: bool) {
    let topics: Vec<String> = findings
        .topics
        .iter()
        .map(|(topic, difference)| format!("{topic} {difference}"))
        .collect();
    if as_json {
        let document = json!({
            "as_declared": findings.is_empty(), "topics": topics, "brokers": findings.brokers,
        });
        println!("{document}");
        return;
    }
    for text in &topics {
        println!("{text}");
    }
    for text in &findings.brokers {
        println!("broker {text}");
    }
    if findings.is_empty() {
        println!("as declared");
    }
}

fn print_cluster(cluster: &ClusterInfo) {
    println!("brokers: {}", cluster.brokers.join(", "));
    for topic in &cluster.topics {
        if !topic.exists {
            println!("\n{}  does not exist\n  {}", topic.name, topic.purpose);
            continue;
        }
        println!("\n{}\n  {}", topic.name, topic.purpose);
        println!("  partition  leader  in sync     start       end");
        for p in &topic.partitions {
            let in_sync = format!("{}/{}", p.in_sync, p.replicas);
            println!(
                "  {:>9}  {:>6}  {in_sync:>7}  {:>8}  {:>8}",
                p.partition, p.leader, p.start, p.end
            );
        }
        for group in &topic.groups {
            println!("  group {}: {} behind", group.group, group.lag);
        }
    }
}
