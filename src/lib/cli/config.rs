//! `agenthub config`: checks and shows the configuration that a process would have.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Subcommand;
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use super::output::{one_line, print};
use crate::config::{ConfigError, REFERENCE, Setting, Settings, Source};
use crate::messages::Signer;
use crate::privacy::KeyRing;
use crate::rollup::{AuditSigner, PublicKeys};
use crate::tools::declared;

const HIDDEN: &str = "********";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub config check && echo fine\n  \
    agenthub config show --json | jq -r .KAFKA_BROKERS\n\n\
    Settings come from the environment, from <NAME>_FILE, from the file that AGENTHUB_CONFIG names,\n\
    or have their default.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether a process would start with this configuration; exit code 1 when it would not.
    #[command(after_help = "Example:\n  agenthub config check --json")]
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the value of every setting, those of secrets hidden.
    #[command(after_help = "Example:\n  agenthub config show | grep TIMEOUT")]
    Show {
        /// Print JSON; a setting that is required and not given is null.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
#[allow(clippy::unused_async)] // one form for every command
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Check { json: false } => {
            check(Source::from_process())?;
            print("ok\n")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { json: true } => {
            let outcome = check(Source::from_process());
            let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
            print(&format!(
                "{}\n",
                json!({ "ok": outcome.is_ok(), "error": error })
            ))?;
            Ok(outcome.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
        }
        Command::Show { json } => {
            let source = Source::from_process()?;
            let values = values(&source)?;
            let text = if json {
                as_json(&values)
            } else {
                as_text(&values)
            };
            print(&text)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Everything that a process checks of its configuration before it starts.
fn check(source: Result<Source, ConfigError>) -> anyhow::Result<()> {
    let settings = Settings::load(&source?)?;
    let secret = |name: &'static str| move |error: String| anyhow!("{name}: {error}");
    Signer::parse(settings.signing_secrets.expose_secret())
        .map_err(secret("AGENTHUB_SIGNING_SECRETS"))?;
    KeyRing::parse(settings.master_keys.expose_secret()).map_err(secret("AGENTHUB_MASTER_KEYS"))?;
    let audit_key = settings.audit_signing_key.expose_secret();
    if !audit_key.is_empty() {
        AuditSigner::parse(audit_key).map_err(secret("AGENTHUB_AUDIT_SIGNING_KEY"))?;
    }
    PublicKeys::parse(&settings.audit_public_keys).map_err(secret("AGENTHUB_AUDIT_PUBLIC_KEYS"))?;
    declared::load(settings.tools_file.as_deref()).context("AGENTHUB_TOOLS_FILE")?;
    Ok(())
}

type Values = Vec<(&'static Setting, Option<String>)>;

/// The value of every setting as it may be shown; `None` for one that is required and not given.
fn values(source: &Source) -> Result<Values, ConfigError> {
    let value = |setting: &'static Setting| {
        let text = match source.setting::<String>(setting.env) {
            Ok(text) if setting.secret && !text.is_empty() => Some(HIDDEN.to_owned()),
            Ok(text) => Some(text),
            Err(ConfigError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok((setting, text))
    };
    REFERENCE.iter().map(value).collect()
}

fn as_json(values: &Values) -> String {
    let pair =
        |(setting, value): &(&Setting, Option<String>)| (setting.env.to_owned(), json!(value));
    let object: Map<String, Value> = values.iter().map(pair).collect();
    format!("{}\n", Value::Object(object))
}

fn as_text(values: &Values) -> String {
    let mut text = String::new();
    for (setting, value) in values {
        match value {
            Some(value) => _ = writeln!(text, "{}={}", setting.env, one_line(value, usize::MAX)),
            None => _ = writeln!(text, "# {} is required and not given", setting.env),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn source(pairs: &[(&str, &str)]) -> Result<Source, ConfigError> {
        let env: BTreeMap<_, _> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Source::from_env(env)
    }

    const SIGNING: (&str, &str) = (
        "AGENTHUB_SIGNING_SECRETS",
        "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyISE=",
    );
    const MASTER: (&str, &str) = (
        "AGENTHUB_MASTER_KEYS",
        "m1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    );

    #[test]
    fn every_setting_is_shown_and_no_secret() {
        let source = source(&[
            SIGNING,
            ("KAFKA_BROKERS", "a:1"),
            ("REDIS_URL", "redis://:sesame@b/"),
        ])
        .unwrap();
        let values = values(&source).unwrap();
        let text = as_text(&values);
        assert_eq!(text.lines().count(), REFERENCE.len());
        assert!(
            text.starts_with("KAFKA_BROKERS=a:1\nREDIS_URL=********\nAGENTHUB_NAMESPACE=\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "\nAGENTHUB_SIGNING_SECRETS=********\n# AGENTHUB_MASTER_KEYS is required"
            ),
            "{text}"
        );
        assert!(text.contains("\nOPENAI_API_KEY=\n"), "{text}");
        let json: Value = serde_json::from_str(&as_json(&values)).unwrap();
        assert_eq!(json["AGENTHUB_MASTER_KEYS"], Value::Null);
        assert_eq!(json["AGENTHUB_LEASE_MS"], "10000");
        assert!(!format!("{text}{json}").contains("sesame"));
    }

    #[test]
    fn a_check_finds_what_would_stop_a_process() {
        let error = |pairs: &[(&str, &str)]| check(source(pairs)).unwrap_err().to_string();
        assert!(check(source(&[SIGNING, MASTER])).is_ok());
        assert!(error(&[SIGNING]).starts_with("AGENTHUB_MASTER_KEYS is required"));
        assert!(
            error(&[SIGNING, MASTER, ("AGENTHUB_LEASE_MS", "1")]).starts_with("AGENTHUB_LEASE_MS")
        );
        let audit = ("AGENTHUB_AUDIT_SIGNING_KEY", "a:short");
        assert!(error(&[SIGNING, MASTER, audit]).starts_with(audit.0));
        let audit = ("AGENTHUB_AUDIT_PUBLIC_KEYS", "a:short");
        assert!(error(&[SIGNING, MASTER, audit]).starts_with(audit.0));
        assert!(error(&[(SIGNING.0, "k1:short"), MASTER]).starts_with("AGENTHUB_SIGNING_SECRETS"));
        assert!(error(&[("AGENTHUB_LEESE_MS", "1")]).contains("did you mean"));
    }
}
