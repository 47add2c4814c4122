//! `agenthub erase`: erases what is known of somebody, and says what is left and for how long.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;

use super::output::{duration, print};
use crate::config::{Settings, Source};
use crate::governance::{Erasure, Erasures, Whom};
use crate::ids::{SessionId, TenantId};
use crate::kafka::catalogue::Catalogue;
use crate::kafka::{KafkaSettings, Producer};
use crate::messages::{Signer, Topic};
use crate::privacy::KeyRing;
use crate::runs::Runs;
use crate::store::{AofRewrite, Redis};

const REDIS_TIMEOUT: Duration = Duration::from_secs(30);
/// Nobody waits for an answer here.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Erase a session, or all sessions about somebody: their runs are cancelled, and their data keys go, and
/// with these whatever a topic or file still holds. Says what is left where, and for how long.
///
/// For operators: speaks to Kafka and Redis (`KAFKA_BROKERS`, `REDIS_URL`, `AGENTHUB_NAMESPACE`) and reads
/// `AGENTHUB_SIGNING_SECRETS` and `AGENTHUB_MASTER_KEYS`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub erase --tenant acme --subject customer-4711 --dry-run\n  \
    agenthub erase --tenant acme --subject customer-4711 --json\n  \
    agenthub erase --tenant acme --session ses_0190b3c2a7d87c3e9f1d2b4a6c8e0f12\n\n\
    Exit codes: 0 erased, or nothing to erase; 1 not, or not all, erased; 2 wrong usage.")]
pub struct Args {
    /// The tenant.
    #[arg(long)]
    tenant: TenantId,
    #[command(flatten)]
    whom: WhomArgs,
    /// Only say which sessions would be erased.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct WhomArgs {
    /// The session, expired ones too.
    #[arg(long, value_name = "SESSION_ID")]
    session: Option<SessionId>,
    /// Whom the sessions are about, as `subject` was given when they were created.
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
}

/// What a store still holds, and for how long at most.
#[derive(Debug, Serialize)]
struct Left {
    store: &'static str,
    #[serde(rename = "left")]
    what: String,
    /// Milliseconds; absent where nothing is left, or where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_within_ms: Option<u64>,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&Source::from_process()?)?;
    let secret = |name: &'static str| move |error: String| anyhow!("{name}: {error}");
    let signer = Signer::parse(settings.signing_secrets.expose_secret())
        .map_err(secret("AGENTHUB_SIGNING_SECRETS"))?;
    let ring = KeyRing::parse(settings.master_keys.expose_secret())
        .map_err(secret("AGENTHUB_MASTER_KEYS"))?;
    let mut kafka = KafkaSettings::from(&settings);
    kafka.produce_timeout = kafka.produce_timeout.max(PRODUCE_TIMEOUT);
    let redis = Redis::connect(&settings, REDIS_TIMEOUT).context("REDIS_URL")?;
    let producer = Producer::new(&kafka, signer.clone(), "agenthub")?;
    let runs = Runs::new(redis, &settings);
    let erasures = Erasures::new(kafka, producer, signer, ring, runs);
    let whom = match (args.whom.session, args.whom.subject) {
        (Some(session), _) => Whom::Session(session),
        (None, Some(subject)) => Whom::Subject(subject),
        (None, None) => return Err(anyhow!("--session or --subject is needed")),
    };
    let erasure = erasures.erase(&args.tenant, &whom, args.dry_run).await?;
    let left = left(&erasure, &Catalogue::embedded(false)?);
    let done = erasure.left_in_redis == 0
        && erasure.left_on_agent_state == 0
        && erasure.unreadable_records == 0;
    if args.json {
        let mut body = serde_json::to_value(&erasure)?;
        body["stores"] = json!(left);
        print(&format!("{body}\n"))?;
    } else {
        print(&tell(&erasure, &left))?;
    }
    Ok(if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What the stores still hold of erased sessions; empty where none was erased.
fn left(erasure: &Erasure, catalogue: &Catalogue) -> Vec<Left> {
    let Some(rewrite) = &erasure.aof_rewrite else {
        return Vec::new();
    };
    let ms = |topic: Topic, names: &[&str]| {
        let spec = catalogue.topics.iter().find(|spec| spec.topic == topic)?;
        let values = names
            .iter()
            .map(|name| spec.config.get(*name)?.parse::<u64>().ok());
        values.sum::<Option<u64>>()
    };
    let ciphertext = || "ciphertext that no key opens any more".to_owned();
    let topic = |store, topic| Left {
        store,
        what: ciphertext(),
        gone_within_ms: ms(topic, &["retention.ms"]),
    };
    vec![
        Left {
            store: "redis",
            what: match erasure.left_in_redis {
                0 => "nothing but ends of runs that Kafka has not acknowledged".to_owned(),
                keys => format!("{keys} keys: repeat the command"),
            },
            gone_within_ms: None,
        },
        Left {
            store: "redis append-only file",
            what: match rewrite {
                AofRewrite::Started => "the wrapped keys, until the rewrite that was started ends",
                AofRewrite::UnderWay => {
                    "the wrapped keys, maybe, until a rewrite that begins after this one: repeat BGREWRITEAOF"
                }
                AofRewrite::Refused => {
                    "the wrapped keys, until the next rewrite: this user may not start one (BGREWRITEAOF)"
                }
            }
            .to_owned(),
            gone_within_ms: None,
        },
        Left {
            store: "agent.state",
            what: match erasure.left_on_agent_state {
                0 => "the wrapped keys in segments, each followed by its erasure".to_owned(),
                sessions => format!("the keys of {sessions} sessions: repeat the command"),
            },
            gone_within_ms: ms(Topic::AgentState, &["max.compaction.lag.ms"]),
        },
        topic("plan.commands", Topic::PlanCommands),
        topic("execute.commands", Topic::ExecuteCommands),
        topic("agent.events", Topic::AgentEvents),
        topic("dead.letter", Topic::DeadLetter),
        Left {
            store: "audit.logs and its files",
            what: "who asked for what when, and its cost: no content, and the chain stays whole"
                .to_owned(),
            gone_within_ms: None,
        },
        Left {
            store: "memory of processes",
            what: "data keys of sessions that they touched, until others push them out or they end"
                .to_owned(),
            gone_within_ms: None,
        },
    ]
}

fn tell(erasure: &Erasure, left: &[Left]) -> String {
    let mut text = String::new();
    let would = if erasure.dry_run { "would be " } else { "" };
    for session in &erasure.sessions {
        let known = if session.live { "" } else { ", expired" };
        _ = writeln!(
            text,
            "{} {would}erased ({} runs{known})",
            session.session_id, session.runs
        );
    }
    if erasure.sessions.is_empty() {
        text.push_str("no session to erase\n");
    }
    if erasure.unreadable_records > 0 {
        let records = erasure.unreadable_records;
        _ = writeln!(
            text,
            "{records} records on agent.state could not be looked into: another ring's, or not signed here"
        );
    }
    for Left {
        store,
        what,
        gone_within_ms,
    } in left
    {
        let within = gone_within_ms.map(|ms| format!("; gone within {}", duration(ms)));
        _ = writeln!(text, "{store}: {what}{}", within.unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::ErasedSession;

    fn erasure(aof_rewrite: Option<AofRewrite>) -> Erasure {
        Erasure {
            tenant: "acme".parse().unwrap(),
            dry_run: aof_rewrite.is_none(),
            sessions: vec![ErasedSession {
                session_id: SessionId::generate(),
                live: false,
                runs: 0,
            }],
            left_in_redis: 0,
            left_on_agent_state: 0,
            aof_rewrite,
            unreadable_records: 0,
        }
    }

    #[test]
    fn what_is_left_is_told_with_its_end() {
        let catalogue = Catalogue::embedded(false).unwrap();
        let erased = erasure(Some(AofRewrite::Refused));
        let left = left(&erased, &catalogue);
        let state = left.iter().find(|left| left.store == "agent.state");
        assert_eq!(state.unwrap().gone_within_ms, Some(86_400_000));
        let text = tell(&erased, &left);
        assert!(
            text.contains("expired") && text.contains("BGREWRITEAOF"),
            "{text}"
        );
    }

    #[test]
    fn a_dry_run_says_what_it_would_do() {
        let dry = erasure(None);
        let left = left(&dry, &Catalogue::embedded(false).unwrap());
        assert!(left.is_empty());
        assert!(tell(&dry, &left).contains("would be erased"));
    }
}
