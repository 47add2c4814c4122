//! `agenthub why`: the whole story of a run, from the topics.

use std::process::ExitCode;

use anyhow::anyhow;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::output::{dollars, duration, one_line, print, table};
use super::replay::opening_keys;
use crate::config::Source;
use crate::ids::RunId;
use crate::kafka::{Extent, KafkaSettings, Place, StoredRecord, TopicReader};
use crate::messages::{Signer, Topic, header};
use crate::replay::{Happening, Keys, Story, cover};

/// Where a run leaves traces.
const TOPICS: [Topic; 5] = [
    Topic::PlanCommands,
    Topic::ExecuteCommands,
    Topic::AgentEvents,
    Topic::AuditLogs,
    Topic::DeadLetter,
];
/// Clocks differ; a run's id says when it was made.
const BEFORE_MS: i64 = 60_000;
const MOST_DETAIL: usize = 100;

/// Tell the whole story of a run: each decision with its time, the process that made it, and the partition
/// and offset that hold it; attempts, waits and cost; and why it ended as it did.
///
/// For operators: reads the topics (`KAFKA_BROKERS`, `AGENTHUB_NAMESPACE`) and believes what is signed
/// (`AGENTHUB_SIGNING_SECRETS`). What events tell is sealed: it is opened where `AGENTHUB_MASTER_KEYS` and
/// `REDIS_URL` are set and the session was not erased. What it shows is masked.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub why run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12\n  \
    agenthub why run_0190b3c2a7d87c3e9f1d2b4a6c8e0f12 --json\n\n\
    Exit codes: 0 told, 1 the topics hold nothing of the run, 2 wrong usage.")]
pub struct Args {
    /// The run.
    run_id: RunId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let source = Source::from_process()?;
    let settings = KafkaSettings::load(&source)?;
    let secrets: SecretString = source.setting("AGENTHUB_SIGNING_SECRETS")?;
    let signer = Signer::parse(secrets.expose_secret());
    let signer = signer.map_err(|error| anyhow!("AGENTHUB_SIGNING_SECRETS: {error}"))?;
    let extent = Extent {
        from: Place::Time(args.run_id.created_ms().saturating_sub(BEFORE_MS)),
        to: Place::Latest,
        partition: None,
    };
    let mut keys = opening_keys(&source)
        .inspect_err(|error| eprintln!("agenthub: what events tell stays sealed: {error:#}"))
        .ok();
    let mut story = Story::default();
    let mut unbelieved = 0_u64;
    for topic in TOPICS {
        let mut reader = TopicReader::open(&settings, topic, extent).await?;
        while let Some(record) = reader.next().await? {
            let key = record.key.as_deref().unwrap_or_default();
            let value = record.value.as_deref().unwrap_or_default();
            let headers = record.signed_headers();
            match signer.verify(reader.full_topic(), key, &headers, value) {
                Ok(()) => {
                    let record = opened(topic, record, &args.run_id, keys.as_mut()).await;
                    story.add(topic, reader.full_topic(), &args.run_id, &record);
                }
                Err(_) => unbelieved += 1,
            }
        }
    }
    story.finish();
    if story.happenings.is_empty() {
        eprintln!("agenthub: the topics hold nothing of {}", args.run_id);
        return Ok(ExitCode::FAILURE);
    }
    if args.json {
        let told = json!({ "run_id": args.run_id, "unsigned_records": unbelieved, "story": story });
        print(&format!("{told}\n"))?;
    } else {
        let rows: Vec<_> = story.happenings.iter().map(row).collect();
        print(&table(&rows))?;
        print(&sum(&story, unbelieved))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The record, what is sealed in it opened or replaced by why it does not open. Those of other runs are
/// left as they are.
async fn opened(
    topic: Topic,
    mut record: StoredRecord,
    run: &RunId,
    keys: Option<&mut Keys>,
) -> StoredRecord {
    if record.header(header::CE_SUBJECT) != Some(run.as_str()) {
        return record;
    }
    let value = record.value.as_deref();
    let Some(mut value) = value.and_then(|v| serde_json::from_slice::<Value>(v).ok()) else {
        return record;
    };
    match keys {
        Some(keys) => {
            keys.open(topic, record.header(header::TENANT), &mut value)
                .await;
        }
        None => cover(topic, &mut value),
    }
    record.value = Some(value.to_string().into());
    record
}

fn row(happening: &Happening) -> [String; 5] {
    let ms = i64::try_from(happening.ts).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
    let place = format!(
        "{}/{}/{}",
        happening.topic, happening.partition, happening.offset
    );
    [
        format!("{time:.3}"),
        one_line(&happening.what, 24),
        place,
        one_line(&happening.worker, 40),
        one_line(&happening.detail, MOST_DETAIL),
    ]
}

fn sum(story: &Story, unbelieved: u64) -> String {
    let mut lines = Vec::new();
    let ended = story.ended.as_deref().unwrap_or("has not ended");
    let took = story.took_ms.map(|ms| format!(" after {}", duration(ms)));
    let because = story.because.as_deref().map(|why| format!(": {why}"));
    lines.push(format!(
        "{ended}{}{}",
        took.unwrap_or_default(),
        one_line(&because.unwrap_or_default(), 400)
    ));
    if let Some(ms) = story.queued_ms {
        lines.push(format!("waited {} for a worker", duration(ms)));
    }
    let cost = u64::try_from(story.cost_micro_usd).unwrap_or(0);
    lines.push(format!("cost {}", dollars(cost)));
    if story.repeats > 0 {
        lines.push(format!(
            "{} records came more than once and are told once",
            story.repeats
        ));
    }
    if unbelieved > 0 {
        lines.push(format!(
            "{unbelieved} records of that time are not signed by this installation, and are passed over"
        ));
    }
    format!("\n{}\n", lines.join("\n"))
}
