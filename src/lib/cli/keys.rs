//! `agenthub keys`: creates, lists, rotates and revokes API keys. Acts on Kafka and Redis with the
//! signing secret, so that the first key can be made without one.
#![allow(clippy::doc_markdown)] // doc comments are the help's text

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Subcommand;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::output::{one_line, print, table};
use crate::config::{Settings, Source};
use crate::governance::{IssuedKey, KeyError, Keys, NewKey, Role, check_policy, parse_networks};
use crate::ids::{KeyId, TenantId};
use crate::kafka::{KafkaSettings, Producer};
use crate::messages::{KeyPolicy, KeyRecord, RateRule, Signer};
use crate::store::Redis;
use crate::tools::{catalogue, declared};

const REDIS_TIMEOUT: Duration = Duration::from_secs(5);
/// A process that has just started has to find its brokers first.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_NAME: usize = 128;
const MAX_EXPIRY_S: u64 = 10 * 365 * 24 * 3600;
const MAX_GRACE_S: u64 = 30 * 24 * 3600;

/// Create, list, rotate and revoke API keys.
///
/// Reads the settings of the processes: KAFKA_BROKERS, REDIS_URL, AGENTHUB_SIGNING_SECRETS and so on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    export AGENTHUB_API_KEY=$(agenthub keys create --tenant acme --role client --name laptop --json | jq -r .api_key)\n  \
    agenthub keys list --tenant acme\n  \
    agenthub keys rotate --tenant acme 5f0c2d9e8b7a4136 --grace-s 3600\n  \
    agenthub keys revoke --tenant acme 5f0c2d9e8b7a4136")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a key. It is shown once.
    #[command(
        after_help = "Example:\n  agenthub keys create --tenant acme --role client --name laptop"
    )]
    Create {
        #[command(flatten)]
        common: Common,
        /// What the key may do: client, developer or admin.
        #[arg(long)]
        role: Role,
        /// What people call it.
        #[arg(long, value_parser = name)]
        name: String,
        /// Seconds until it expires; never when absent.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=MAX_EXPIRY_S))]
        expires_in_s: Option<u64>,
        #[command(flatten)]
        policy: Policy,
    },
    /// List a tenant's keys, without their secrets.
    #[command(after_help = "Example:\n  agenthub keys list --tenant acme --json")]
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Give a key a new secret, which is shown once.
    #[command(
        after_help = "Example:\n  agenthub keys rotate --tenant acme 5f0c2d9e8b7a4136 --grace-s 3600"
    )]
    Rotate {
        #[command(flatten)]
        common: Common,
        /// The key's id.
        key_id: KeyId,
        /// Seconds that the old secret stays valid: a day, unless told otherwise; at most 30 days.
        #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600,
            value_parser = clap::value_parser!(u64).range(0..=MAX_GRACE_S))]
        grace_s: u64,
    },
    /// Revoke a key for good.
    #[command(after_help = "Example:\n  agenthub keys revoke --tenant acme 5f0c2d9e8b7a4136")]
    Revoke {
        #[command(flatten)]
        common: Common,
        /// The key's id.
        key_id: KeyId,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Whose keys.
    #[arg(long)]
    tenant: TenantId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What narrows a key beyond its role.
#[derive(Debug, Default, clap::Args)]
struct Policy {
    /// A rate limit of its own, such as 10/1000: at most 10 requests in any 1000 ms. May be repeated;
    /// the tenant's limits when absent.
    #[arg(long = "limit", value_name = "LIMIT/WINDOW_MS", value_parser = rate_rule)]
    limits: Vec<RateRule>,
    /// The tools that its runs may use, comma-separated; all when absent.
    #[arg(long, value_name = "TOOLS", value_delimiter = ',')]
    tools_allowed: Vec<String>,
    /// The models that may plan its runs, comma-separated; all when absent.
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    models_allowed: Vec<String>,
    /// The addresses and networks that it may be used from, comma-separated; all when absent.
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',')]
    ips_allowed: Vec<String>,
}

impl Policy {
    fn read(self) -> anyhow::Result<KeyPolicy> {
        let given = |list: Vec<String>| (!list.is_empty()).then_some(list);
        let networks = given(self.ips_allowed);
        let networks = networks.map(|texts| parse_networks("--ips-allowed", &texts));
        let policy = KeyPolicy {
            limits: (!self.limits.is_empty()).then_some(self.limits),
            tools_allowed: given(self.tools_allowed),
            models_allowed: given(self.models_allowed),
            ips_allowed: networks.transpose()?,
        };
        check_policy(&policy, |name| catalogue::find(name).is_some())?;
        Ok(policy)
    }
}

fn rate_rule(text: &str) -> Result<RateRule, String> {
    let rule = text.split_once('/').and_then(|(limit, window)| {
        Some(RateRule {
            limit: limit.parse().ok()?,
            window_ms: window.parse().ok()?,
        })
    });
    rule.ok_or_else(|| "expected <limit>/<window in ms> such as 10/1000".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let name = text.trim();
    if (1..=MAX_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(format!("expected 1 to {MAX_NAME} characters on one line"))
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&Source::from_process()?)?;
    let tools = declared::load(settings.tools_file.as_deref())?;
    anyhow::ensure!(
        catalogue::declare(tools.into_iter().map(|tool| tool.spec)),
        "the tools were looked at too early"
    );
    let keys = open(&settings)?;
    let text = match args.command {
        Command::Create {
            common,
            role,
            name,
            expires_in_s,
            policy,
        } => {
            let new = NewKey {
                tenant: common.tenant,
                name,
                role,
                expires_in_s,
                policy: policy.read()?,
            };
            let (record, issued) = keys.create(new).await.map_err(|error| explain(&error))?;
            shown_once(&record, &issued, common.json)
        }
        Command::List { common } => {
            let keys = keys
                .list(&common.tenant)
                .await
                .map_err(|error| explain(&error))?;
            if common.json {
                let data: Vec<Value> = keys.iter().map(|(key, used)| body(key, *used)).collect();
                format!("{}\n", json!({ "data": data }))
            } else {
                table(
                    &keys
                        .iter()
                        .map(|(key, used)| row(key, *used))
                        .collect::<Vec<_>>(),
                )
            }
        }
        Command::Rotate {
            common,
            key_id,
            grace_s,
        } => {
            let rotated = keys.rotate(&common.tenant, &key_id, grace_s, None).await;
            let (record, issued) = rotated.map_err(|error| explain(&error))?;
            shown_once(&record, &issued, common.json)
        }
        Command::Revoke { common, key_id } => {
            let record = keys
                .revoke(&common.tenant, &key_id)
                .await
                .map_err(|error| explain(&error))?;
            if common.json {
                format!("{}\n", body(&record, None))
            } else {
                format!("{key_id} revoked\n")
            }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn open(settings: &Settings) -> anyhow::Result<Keys> {
    let signer = Signer::parse(settings.signing_secrets.expose_secret())
        .map_err(|error| anyhow!("AGENTHUB_SIGNING_SECRETS: {error}"))?;
    let mut kafka = KafkaSettings::from(settings);
    kafka.produce_timeout = kafka.produce_timeout.max(PRODUCE_TIMEOUT);
    let redis = Redis::connect(settings, REDIS_TIMEOUT).context("REDIS_URL")?;
    let producer = Producer::new(&kafka, signer.clone(), "agenthub")?;
    Ok(Keys::new(redis, producer, signer))
}

/// One line that names the setting to look at.
fn explain(error: &KeyError) -> anyhow::Error {
    let setting = match error {
        KeyError::Kafka(_) => "kafka (KAFKA_BROKERS): ",
        KeyError::Redis(_) => "redis (REDIS_URL): ",
        KeyError::Unknown | KeyError::Reserved | KeyError::Record(_) => "",
    };
    anyhow!("{}", one_line(&format!("{setting}{error}"), usize::MAX))
}

/// A key with its secret, which nobody can show again.
fn shown_once(record: &KeyRecord, issued: &IssuedKey, json: bool) -> String {
    if json {
        let mut body = body(record, None);
        if let Value::Object(fields) = &mut body {
            fields.insert("api_key".to_owned(), json!(issued.text));
        }
        return format!("{body}\n");
    }
    let mut text = format!(
        "key {} of {} ({}, {}), shown this once:\n\n{}\n",
        record.key_id,
        record.tenant,
        record.role,
        one_line(&record.name, MAX_NAME),
        issued.text
    );
    if let Some(until) = record.old_until_ms {
        _ = writeln!(text, "\nThe old one is valid until {}.", time(until));
    }
    text
}

/// As the API's key routes answer.
fn body(record: &KeyRecord, used_ms: Option<u64>) -> Value {
    let mut body = json!({
        "key_id": record.key_id,
        "tenant": record.tenant,
        "name": record.name,
        "role": record.role,
        "status": record.status,
        "version": record.version,
        "created_at": time(record.created_ms),
    });
    let times = [
        ("expires_at", record.expires_ms),
        ("old_secret_valid_until", record.old_until_ms),
        ("last_used_at", used_ms),
    ];
    if let Value::Object(fields) = &mut body {
        if let Ok(Value::Object(policy)) = serde_json::to_value(&record.policy) {
            fields.extend(policy);
        }
        let given = times
            .into_iter()
            .filter_map(|(name, ms)| Some((name.to_owned(), json!(time(ms?)))));
        fields.extend(given);
    }
    body
}

fn row(record: &KeyRecord, used_ms: Option<u64>) -> [String; 6] {
    let since = |word: &str, ms: Option<u64>| {
        ms.map_or_else(
            || format!("never {word}"),
            |ms| format!("{word} {}", time(ms)),
        )
    };
    [
        record.key_id.to_string(),
        record.role.clone(),
        record.status.clone(),
        since("expires", record.expires_ms),
        since("used", used_ms),
        one_line(&record.name, MAX_NAME),
    ]
}

/// RFC 3339 with milliseconds, in UTC.
fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::ProduceError;
    use crate::messages::Topic;

    fn record() -> KeyRecord {
        KeyRecord {
            tenant: "acme".parse().unwrap(),
            key_id: KeyId::generate(),
            name: "laptop".to_owned(),
            role: "client".to_owned(),
            status: "active".to_owned(),
            version: 2,
            hash: "hash".to_owned(),
            old_hash: Some("old hash".to_owned()),
            old_until_ms: Some(1_700_000_000_007),
            created_ms: 1_700_000_000_000,
            expires_ms: None,
            rotated_by: None,
            policy: KeyPolicy::default(),
        }
    }

    #[test]
    fn a_key_is_shown_with_its_secret_and_listed_without() {
        let record = record();
        let issued = IssuedKey {
            text: "ah_secret".to_owned(),
            secret_hash: "hash".to_owned(),
        };
        let shown: Value = serde_json::from_str(&shown_once(&record, &issued, true)).unwrap();
        assert_eq!(shown["api_key"], "ah_secret");
        assert_eq!(shown["key_id"], json!(record.key_id));
        assert_eq!(shown["old_secret_valid_until"], "2023-11-14T22:13:20.007Z");
        let text = shown_once(&record, &issued, false);
        assert!(text.contains("once:\n\nah_secret\n"), "{text}");
        assert!(
            text.contains("valid until 2023-11-14T22:13:20.007Z"),
            "{text}"
        );
        let listed = body(&record, Some(1_700_000_000_000)).to_string();
        assert!(
            !listed.contains("hash") && listed.contains("last_used_at"),
            "{listed}"
        );
        let row = row(&record, None);
        assert_eq!(
            row[1..],
            ["client", "active", "never expires", "never used", "laptop"]
        );
    }

    #[test]
    fn what_is_away_is_named_on_one_line() {
        let away = KeyError::Kafka(ProduceError::Unknown {
            topic: Topic::AgentState,
            reason: "timed\nout".to_owned(),
        });
        let text = explain(&away).to_string();
        assert!(
            text.starts_with("kafka (KAFKA_BROKERS): ") && !text.contains('\n'),
            "{text}"
        );
        assert_eq!(explain(&KeyError::Unknown).to_string(), "no such key");
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(name(" laptop ").unwrap(), "laptop");
        assert!(name(" ").is_err());
        assert!(name("a\u{1b}[m").is_err());
        assert!(name(&"x".repeat(MAX_NAME + 1)).is_err());
    }
}
