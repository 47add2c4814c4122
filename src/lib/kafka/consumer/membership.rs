//! What librdkafka tells of the group, and the answers it waits for.
//!
//! rdkafka serves rebalances as events of the consumer's queue, on whichever thread polls it.
//! librdkafka then waits, with fetching paused, until the application assigns or unassigns; it does
//! not matter from where. So the callback only passes the change on, and the loop answers once the
//! revoked partitions are drained. It issues no second change before the first one is answered, and
//! commits the stored offsets of unassigned partitions itself before it lets the group go on
//! (`rd_kafka_assignment_serve_removals`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{
    BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol, StreamConsumer,
};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::state::{ConsumerState, Lag};
use crate::kafka::client::{Connection, log};

/// A change of the assignment that librdkafka waits for.
pub(super) enum Change {
    /// These partitions are ours now.
    Assign(TopicPartitionList),
    /// These partitions are to be given back.
    Revoke {
        partitions: TopicPartitionList,
        /// They are another member's already, so nothing may be committed for them.
        lost: bool,
    },
}

impl Change {
    /// Does what librdkafka waits for.
    pub(super) fn answer<C: ConsumerContext>(
        &self,
        consumer: &impl rdkafka::consumer::Consumer<C>,
    ) -> KafkaResult<()> {
        let incremental = matches!(
            consumer.rebalance_protocol(),
            RebalanceProtocol::Cooperative
        );
        match self {
            Self::Assign(partitions) if incremental => consumer.incremental_assign(partitions),
            Self::Assign(partitions) => consumer.assign(partitions),
            Self::Revoke { partitions, .. } if incremental => {
                consumer.incremental_unassign(partitions)
            }
            Self::Revoke { .. } => consumer.unassign(),
        }
    }
}

/// The context of a group's member.
pub(super) struct Membership {
    changes: UnboundedSender<Change>,
    closing: AtomicBool,
    connection: Connection,
    state: Arc<ConsumerState>,
}

impl Membership {
    pub(super) fn new(changes: UnboundedSender<Change>, state: Arc<ConsumerState>) -> Self {
        Self {
            changes,
            closing: AtomicBool::new(false),
            connection: Connection::default(),
            state,
        }
    }

    /// From here on nobody reads the changes: the callback answers them itself.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.connection.record(&error);
        tracing::debug!(target: "librdkafka", %error, reason, "client error");
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Lag>(statistics) {
            Ok(lag) => self.state.record_lag(&lag),
            Err(error) => tracing::debug!(%error, "statistics not understood"),
        }
    }
}

impl ConsumerContext for Membership {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let partitions = partitions.clone();
        let change = if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            Change::Assign(partitions)
        } else {
            let lost = consumer.assignment_lost();
            Change::Revoke { partitions, lost }
        };
        let unread = if self.closing.load(Ordering::Acquire) {
            Some(change)
        } else {
            self.changes.send(change).err().map(|unsent| unsent.0)
        };
        if let Some(Err(error)) = unread.map(|change| change.answer(consumer)) {
            tracing::warn!(%error, "change of the assignment was not accepted");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            // The offsets stay stored, so that the next commit includes them.
            metrics::counter!("agenthub_consumer_commit_errors_total").increment(1);
            tracing::warn!(%error, "offsets were not committed");
        }
    }
}

/// The client of a group's member.
pub(super) type Client = StreamConsumer<Membership>;

/// The group's member, which leaves in order when it is dropped.
pub(super) struct Member {
    pub client: Arc<Client>,
    pub changes: UnboundedReceiver<Change>,
    /// A change that librdkafka waits for.
    pub unanswered: Option<Change>,
}

impl Drop for Member {
    /// Answers what librdkafka waits for. It closes when its last owner drops it, and that would
    /// never end while a change is unanswered.
    fn drop(&mut self) {
        self.client.context().close();
        let unanswered = self.unanswered.take();
        let unread = std::iter::from_fn(|| self.changes.try_recv().ok());
        for change in unanswered.into_iter().chain(unread) {
            if let Err(error) = change.answer(&*self.client) {
                tracing::debug!(%error, "change of the assignment was not accepted");
            }
        }
    }
}
