//! What every process has that consumes a topic: options, probes, a consumer that is replaced when it
//! fails, and an end in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::sync::oneshot;

use super::base::{Base, Told};
use crate::config::Settings;
use crate::kafka::admin::Admin;
use crate::kafka::{Consumer, ConsumerError, ConsumerOptions, Ended, StartFrom};
use crate::messages::Topic;
use crate::runtime::{ProbeServer, bind};

const REPLACE_AFTER: Duration = Duration::from_secs(1);

/// How a topic is to be read, as far as the command line says.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Reading {
    /// Where to begin: `committed` goes on where the group is. Any other start resets the group, so it
    /// is refused while the group has members; use it for one process at a time, or with `--group`.
    #[arg(
        long,
        value_name = "earliest|latest|committed|TIME",
        default_value = "committed"
    )]
    pub(super) from: StartFrom,
    /// End with exit code 0 once everything that is on the topic now is handled and committed.
    #[arg(long)]
    pub(super) until_caught_up: bool,
    /// Consumer group, without the namespace, instead of the process' own.
    #[arg(long, value_name = "NAME", value_parser = group_name)]
    pub(super) group: Option<String>,
}

fn group_name(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 128 letters, digits, dots, hyphens and underscores".to_owned())
    }
}

impl Reading {
    /// What makes no sense together.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.until_caught_up && self.from == StartFrom::Latest {
            return Err("--until-caught-up has nothing to read with --from latest");
        }
        Ok(())
    }

    /// The group, without the namespace.
    pub(super) fn group(&self, own: &str) -> String {
        self.group.clone().unwrap_or_else(|| own.to_owned())
    }

    /// The options of a process' consumer. Asks the brokers only where the command line wants what
    /// needs an answer.
    pub(super) async fn options(
        &self,
        base: &Base,
        settings: &Settings,
        service: &str,
        group: &str,
        topic: Topic,
    ) -> anyhow::Result<ConsumerOptions> {
        if self.from != StartFrom::Committed {
            let members = Admin::new(&base.kafka)?.members(group).await?;
            if members > 0 {
                bail!(
                    "--from would reset the group {group}, which has {members} members: \
                     stop them, or use --group"
                );
            }
        }
        Ok(ConsumerOptions {
            client_id: service.to_owned(),
            max_in_flight: settings.max_in_flight,
            drain: settings.drain_ms.duration(),
            from: self.from,
            until: self.ends(base, topic).await?,
            ..ConsumerOptions::default()
        })
    }

    async fn ends(
        &self,
        base: &Base,
        topic: Topic,
    ) -> anyhow::Result<Option<Arc<HashMap<(Topic, i32), i64>>>> {
        if !self.until_caught_up {
            return Ok(None);
        }
        let ends = Admin::new(&base.kafka)?.ends(topic).await?;
        Ok(Some(Arc::new(ends)))
    }
}

/// Serves `/healthz`, `/readyz` and `/metrics` until the end.
pub(super) async fn serve_probes(base: &Base, addr: SocketAddr) -> anyhow::Result<()> {
    let listener = bind(addr).await.map_err(|e| anyhow!(e))?;
    tracing::info!(addr = %listener.local_addr()?, "probes");
    let probe = ProbeServer::new(base.health.clone(), base.telemetry.metrics());
    base.supervisor
        .run_once("probes", probe.serve(listener, base.shutdown.end()));
    Ok(())
}

/// A consumer that runs until the process is told to stop, or its job is done.
#[derive(Debug)]
pub(super) struct RunningConsumer {
    ended: oneshot::Receiver<Ended>,
}

/// Starts a consumer. One that failed for good is replaced by a new one: its records were not
/// committed and come again.
pub(super) fn start(
    base: &Base,
    make: impl Fn() -> Result<Consumer, ConsumerError> + Send + 'static,
) -> RunningConsumer {
    let (to_ended, ended) = oneshot::channel();
    let intake = base.shutdown.intake();
    base.supervisor.run_once("consumer", async move {
        let mut how = Ended::Stopped;
        while !intake.is_cancelled() {
            let outcome = match make() {
                Ok(consumer) => consumer.run(intake.clone()).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(Ended::Stopped) => {}
                Ok(Ended::CaughtUp) => {
                    how = Ended::CaughtUp;
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "the consumer failed and is replaced");
                    tokio::select! {
                        () = intake.cancelled() => {}
                        () = tokio::time::sleep(REPLACE_AFTER) => {}
                    }
                }
            }
        }
        let _ = to_ended.send(how);
    });
    RunningConsumer { ended }
}

impl RunningConsumer {
    /// Runs the process to its end: until it is told to stop, its job is done, the consumer panics, or
    /// `failed` says why it cannot go on.
    pub(super) async fn run(
        self,
        base: Base,
        failed: impl Future<Output = anyhow::Error>,
    ) -> anyhow::Result<()> {
        let mut has_ended = self.ended;
        let ended = async {
            tokio::select! {
                ended = &mut has_ended => match ended {
                    Ok(Ended::CaughtUp) => Ok(()),
                    Ok(Ended::Stopped) | Err(_) => Err(anyhow!("the consumer ended")),
                },
                error = failed => Err(error),
            }
        };
        let outcome = base.until_told(ended).await;
        if matches!(outcome, Ok(Told::ToStop)) {
            // It drains to its own deadline, commits and leaves the group.
            has_ended.await.context("the consumer")?;
        }
        base.finish().await;
        outcome.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        reading: Reading,
    }

    fn parse(line: &str) -> Result<Reading, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.reading)
    }

    #[test]
    fn where_to_begin_is_a_word_or_a_time() {
        assert_eq!(parse("x").unwrap().from, StartFrom::Committed);
        for (text, from) in [
            ("earliest", StartFrom::Earliest),
            ("latest", StartFrom::Latest),
            ("committed", StartFrom::Committed),
            (
                "2026-01-31T12:00:00Z",
                StartFrom::Timestamp(1_769_860_800_000),
            ),
        ] {
            assert_eq!(parse(&format!("x --from {text}")).unwrap().from, from);
        }
        assert!(parse("x --from yesterday").is_err());
        assert!(parse("x --group a/b").is_err());
        assert_eq!(parse("x --group job-1").unwrap().group("own"), "job-1");
    }

    #[test]
    fn a_job_from_the_end_has_nothing_to_do() {
        assert!(
            parse("x --from latest --until-caught-up")
                .unwrap()
                .check()
                .is_err()
        );
        assert!(
            parse("x --from earliest --until-caught-up")
                .unwrap()
                .check()
                .is_ok()
        );
    }
}
