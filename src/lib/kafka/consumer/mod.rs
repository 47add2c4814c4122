//! The consumer loop: reads the topics of a group and hands each record to a [`Handler`], or all of
//! them in order to a [`Sink`].
//!
//! What it promises:
//! - Each record is handled at least once. An offset is committed only when it and every record
//!   before it in its partition is acknowledged.
//! - At most `max_in_flight` records are handled at once. The loop goes on polling while they are:
//!   it pauses the partitions, so that the group never takes it for dead.
//! - A record that makes the handler fail again and again is put aside, and its partition goes on.
//! - A rebalance waits for the records of the revoked partitions to a deadline, and drops whatever
//!   they report later.

mod assignment;
mod attempts;
mod catch_up;
mod membership;
mod record;
mod run;
mod state;

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::StreamConsumer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::KafkaSettings;
use super::producer::ClientError;
use crate::messages::Topic;

pub use attempts::{Handler, Sink};
pub use record::{Ack, Incoming};
pub use state::{ConsumerSnapshot, ConsumerState};

/// Where a consumer begins to read a partition that it is assigned for the first time. When the
/// same partition comes back to the same process, it goes on at the committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartFrom {
    /// At the committed offset; at the earliest one when nothing was committed.
    #[default]
    Committed,
    /// At the earliest offset.
    Earliest,
    /// At the end.
    Latest,
    /// At the first record made at or after this time, in milliseconds since the epoch.
    Timestamp(i64),
}

impl FromStr for StartFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "committed" => Ok(Self::Committed),
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            time => {
                let time: Result<jiff::Timestamp, _> = time.parse();
                time.map(|time| Self::Timestamp(time.as_millisecond()))
                    .map_err(|_| {
                        "expected earliest, latest, committed or a time such as 2026-01-31T12:00:00Z"
                            .to_owned()
                    })
            }
        }
    }
}

/// How a consumer ended that nothing went wrong with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// Everything before the ends that it was to read up to is handled and committed.
    CaughtUp,
}

/// How a consumer works.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// How it introduces itself to the brokers.
    pub client_id: String,
    /// Records that are handled at once; at least 1.
    pub max_in_flight: usize,
    /// Where it begins.
    pub from: StartFrom,
    /// Where it ends, for jobs: the offset after the last record, by topic and partition; partitions
    /// that have nothing to read are left out. It never ends by itself when absent.
    pub until: Option<Arc<HashMap<(Topic, i32), i64>>>,
    /// How long records may take to end when it stops.
    pub drain: Duration,
    /// How long records may take to end when their partition is revoked. Meanwhile the others of
    /// the group wait, and so do the partitions that stay.
    pub revoke_drain: Duration,
    /// Times that a record is tried before it is put aside; at least 1.
    pub max_attempts: u32,
    /// Pause before the second try; it doubles with each.
    pub retry_backoff: Duration,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            client_id: "agenthub".to_owned(),
            max_in_flight: 256,
            from: StartFrom::Committed,
            until: None,
            drain: Duration::from_secs(10),
            revoke_drain: Duration::from_secs(3),
            max_attempts: 3,
            retry_backoff: Duration::from_millis(100),
        }
    }
}

/// After which a member of a classic group that is not heard of is taken for dead.
const SESSION_TIMEOUT_MS: &str = "10000";

/// Why a consumer ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// The client could not be made, or failed for good.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl From<rdkafka::error::KafkaError> for ConsumerError {
    fn from(error: rdkafka::error::KafkaError) -> Self {
        Self::Client(error.into())
    }
}

/// A member of a consumer group, not running yet.
pub struct Consumer {
    run: run::Run,
}

impl Consumer {
    /// A consumer of `topics` in `group` (both without the namespace). Joins the group when it runs.
    ///
    /// Must be called within a runtime, and after the metrics recorder was installed.
    pub fn new(
        settings: &KafkaSettings,
        group: &str,
        topics: &[Topic],
        handler: Arc<dyn Handler>,
        options: ConsumerOptions,
    ) -> Result<Self, ConsumerError> {
        let recipient = attempts::Recipient::Tasks(handler);
        Self::create(settings, group, topics, recipient, options)
    }

    /// As [`Consumer::new`], for records that are gathered rather than handled one by one. The
    /// options on attempts do not apply.
    pub fn in_order(
        settings: &KafkaSettings,
        group: &str,
        topics: &[Topic],
        sink: Arc<dyn Sink>,
        options: ConsumerOptions,
    ) -> Result<Self, ConsumerError> {
        let recipient = attempts::Recipient::Sink(sink);
        Self::create(settings, group, topics, recipient, options)
    }

    fn create(
        settings: &KafkaSettings,
        group: &str,
        topics: &[Topic],
        recipient: attempts::Recipient,
        options: ConsumerOptions,
    ) -> Result<Self, ConsumerError> {
        let group = settings.group(group);
        let state = Arc::new(ConsumerState::new(group.clone()));
        let (to_changes, changes) = mpsc::unbounded_channel();
        let membership = membership::Membership::new(to_changes, Arc::clone(&state));
        let client: StreamConsumer<_> = {
            let mut config = config(settings, &group, &options.client_id);
            if options.until.is_some() {
                config.set("enable.partition.eof", "true");
            }
            config.create_with_context(membership)?
        };
        let topics = topics
            .iter()
            .map(|topic| (*topic, settings.topic(*topic).into()))
            .collect();
        Ok(Self {
            run: run::Run::new(client, changes, topics, recipient, options, state),
        })
    }

    /// What can be seen of the consumer while it runs.
    pub fn state(&self) -> Arc<ConsumerState> {
        self.run.state()
    }

    /// Runs until `shutdown` is cancelled: then it stops intake, waits for the records in flight to
    /// the deadline, commits, and leaves the group. With [`ConsumerOptions::until`] it also ends when
    /// it has caught up: then it waits for the records in flight as long as they take.
    ///
    /// # Errors
    /// When the client failed for good. The group has been left, and a new consumer is to be made.
    /// With the `consumer` protocol librdkafka 2.12 ends so when a member is put out of the group
    /// while it is to give partitions back.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Ended, ConsumerError> {
        self.run.run(shutdown).await
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}

fn config(settings: &KafkaSettings, group: &str, client_id: &str) -> ClientConfig {
    let mut own = vec![
        ("group.id", group),
        // Only what the loop stores is committed, every second and when partitions are given back.
        ("enable.auto.offset.store", "false"),
        ("enable.auto.commit", "true"),
        ("auto.commit.interval.ms", "1000"),
        ("auto.offset.reset", "earliest"),
        ("isolation.level", "read_committed"),
        ("max.poll.interval.ms", "300000"),
        ("statistics.interval.ms", "5000"),
        // What is fetched ahead is bounded, and thrown away by a pause: so it is kept small, and
        // asked for again soon.
        ("queued.max.messages.kbytes", "16384"),
        ("queued.min.messages", "10000"),
        ("fetch.queue.backoff.ms", "10"),
        ("fetch.message.max.bytes", "262144"),
        ("allow.auto.create.topics", "false"),
    ];
    if settings.consumer_protocol {
        // KIP-848: sessions, heartbeats and the assignor are the broker's. librdkafka refuses the
        // properties of the classic protocol beside it.
        own.push(("group.protocol", "consumer"));
    } else {
        own.push(("group.protocol", "classic"));
        // As long as the lease of a run: the partitions of a dead worker stand still no longer than
        // its runs do. Heartbeats come from a thread of librdkafka's, whatever the handlers do.
        own.push(("session.timeout.ms", SESSION_TIMEOUT_MS));
        own.push(("heartbeat.interval.ms", "1000"));
        own.push(("partition.assignment.strategy", "cooperative-sticky"));
    }
    settings.client(client_id, &own)
}
