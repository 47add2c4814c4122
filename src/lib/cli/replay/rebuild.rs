//! `agenthub replay rebuild`: fills an empty Redis again.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use secrecy::ExposeSecret as _;

use crate::cli::output::{duration, print};
use crate::config::{Settings, Source};
use crate::kafka::KafkaSettings;
use crate::messages::Signer;
use crate::privacy::KeyRing;
use crate::replay::rebuild::{Progress, Rebuild, Report};
use crate::runs::Runs;
use crate::store::Redis;

const REDIS_TIMEOUT: Duration = Duration::from_secs(30);

/// Fill an empty Redis from agent.state, agent.events, audit.logs and the command topics.
///
/// Restores keys, sessions with their histories, ended runs, and live runs, which go on; not rate
/// windows and caches. Refuses a Redis that is not empty. While it works the API answers 503; workers
/// may run. Needs the settings and secrets of the installation; records are verified with the signing
/// secrets.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  agenthub replay rebuild --json\n\n\
    See \"When Redis loses data\" in docs/operations.md.")]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&Source::from_process()?)?;
    let secret = |name: &'static str| move |error: String| anyhow!("{name}: {error}");
    let signer = Signer::parse(settings.signing_secrets.expose_secret())
        .map_err(secret("AGENTHUB_SIGNING_SECRETS"))?;
    let ring = KeyRing::parse(settings.master_keys.expose_secret())
        .map_err(secret("AGENTHUB_MASTER_KEYS"))?;
    let redis = Redis::connect(&settings, REDIS_TIMEOUT)?;
    redis.check_durability().await?;
    let runs = Runs::new(redis, &settings);
    let rebuild = Rebuild::new(
        KafkaSettings::from(&settings),
        signer,
        ring,
        runs,
        &settings,
    );
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg:18} {bar:30} {percent}% [{elapsed}]");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut show = |progress: Progress| {
        bar.set_message(progress.phase);
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let report = rebuild.run(&mut show).await;
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else {
        print(&tell(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(report: &Report) -> String {
    let mut text = format!(
        "{} tenants, {} keys, {} sessions with {} events, {} ended and {} live runs, {} idempotency claims; \
         {} sessions had expired\n{} records read in {}\n",
        report.tenants,
        report.keys,
        report.sessions,
        report.events,
        report.ended_runs,
        report.live_runs,
        report.claims,
        report.expired_sessions,
        report.read,
        duration(report.duration_ms)
    );
    if report.runs_without_command > 0 {
        let count = report.runs_without_command;
        _ = writeln!(
            text,
            "left out: {count} runs whose commands have left the topics"
        );
    }
    for (reason, count) in &report.unusable {
        _ = writeln!(text, "left out: {count} records: {reason}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_told() {
        let mut report = Report {
            sessions: 3,
            ..Report::default()
        };
        assert_eq!(tell(&report).lines().count(), 2);
        report.unusable.insert("signature", 4);
        report.runs_without_command = 1;
        let text = tell(&report);
        assert!(
            text.contains("3 sessions") && text.contains("4 records: signature"),
            "{text}"
        );
        assert!(text.contains("1 runs whose commands"), "{text}");
    }
}
