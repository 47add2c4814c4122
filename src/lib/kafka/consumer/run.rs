//! The loop itself: the one owner of the assignment, the tasks and the offsets.

mod rebalance;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use metrics::{Counter, Gauge};
use rdkafka::consumer::{CommitMode, Consumer as _, MessageStream};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::rebalance::Revocation;
use super::assignment::{Assignment, Place};
use super::attempts::{self, Attempts, Recipient};
use super::catch_up::CatchUp;
use super::membership::{Change, Client, Member, Membership};
use super::record::{AckSlot, Done, Incoming};
use super::state::ConsumerState;
use super::{ConsumerError, ConsumerOptions, Ended, StartFrom};
use crate::messages::Topic;
use crate::runtime::clock;

/// Between two looks at deadlines, and so the delay of a stored offset.
const TICK: Duration = Duration::from_millis(50);
/// Between two times that the delay of each partition is shown.
const SHOW: Duration = Duration::from_secs(1);
/// How long the loop waits for a free task before it pauses the partitions. A pause throws away what
/// was fetched ahead, which is too dear for handlers that take milliseconds.
const HOLD: Duration = Duration::from_millis(50);
/// Messages, and acknowledgements, taken in one go.
const BATCH: usize = 64;
/// Records remembered behind slow ones, over all partitions, at which intake stops.
const MAX_WINDOW: usize = 200_000;
/// How long the brokers may take to tell what the group has committed.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the brokers may take for the last commit, and for the group to be left.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
type Received<'a> = KafkaResult<BorrowedMessage<'a>>;

pub(super) struct Run {
    member: Member,
    topics: Vec<(Topic, Arc<str>)>,
    recipient: Recipient,
    options: ConsumerOptions,
    state: Arc<ConsumerState>,
    meters: Meters,

    assignment: Assignment,
    /// Partitions whose start was decided by [`StartFrom`](super::StartFrom).
    placed: HashSet<Place>,
    revocation: Option<Revocation>,
    tasks: JoinSet<()>,
    to_done: UnboundedSender<Done>,
    done: UnboundedReceiver<Done>,
    /// Tells the tasks that they are not to try again.
    stopping: CancellationToken,
    stop_at: Option<Instant>,
    paused: bool,
    full_since: Option<Instant>,
    /// How far a job still has to read.
    catch_up: Option<CatchUp>,
    shown: Option<Instant>,
}

struct Meters {
    group: String,
    records: Counter,
    in_flight: Gauge,
    frontier_age: Gauge,
    assigned: Gauge,
}

impl Meters {
    fn new(group: &str) -> Self {
        let group = group.to_owned();
        let gauge = |name: &'static str| metrics::gauge!(name, "group" => group.clone());
        Self {
            records: metrics::counter!("agenthub_consumer_records_total", "group" => group.clone()),
            in_flight: gauge("agenthub_consumer_in_flight"),
            frontier_age: gauge("agenthub_consumer_frontier_age_seconds"),
            assigned: gauge("agenthub_consumer_assigned_partitions"),
            group,
        }
    }

    fn rebalance(&self, kind: &'static str) {
        metrics::counter!("agenthub_consumer_rebalances_total",
            "group" => self.group.clone(), "kind" => kind)
        .increment(1);
    }
}

impl Run {
    pub(super) fn new(
        client: Client,
        changes: UnboundedReceiver<Change>,
        topics: Vec<(Topic, Arc<str>)>,
        recipient: Recipient,
        options: ConsumerOptions,
        state: Arc<ConsumerState>,
    ) -> Self {
        let (to_done, done) = mpsc::unbounded_channel();
        let until = options.until.as_deref().cloned();
        Self {
            catch_up: until.map(CatchUp::new),
            member: Member {
                client: Arc::new(client),
                changes,
                unanswered: None,
            },
            topics,
            recipient,
            options,
            meters: Meters::new(state.group()),
            state,
            assignment: Assignment::default(),
            placed: HashSet::new(),
            revocation: None,
            tasks: JoinSet::new(),
            to_done,
            done,
            stopping: CancellationToken::new(),
            stop_at: None,
            paused: false,
            full_since: None,
            shown: None,
        }
    }

    pub(super) fn state(&self) -> Arc<ConsumerState> {
        Arc::clone(&self.state)
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<Ended, ConsumerError> {
        let client = Arc::clone(&self.member.client);
        let names: Vec<&str> = self.topics.iter().map(|(_, name)| &**name).collect();
        let outcome = match client.subscribe(&names) {
            Ok(()) => self.serve(client.stream(), &shutdown).await,
            Err(error) => Err(error.into()),
        };
        drop(client);
        self.finish().await;
        outcome
    }

    /// Returns when everything in flight is done after a stop, or the stop's deadline has passed; and
    /// when a job has caught up.
    async fn serve(
        &mut self,
        mut stream: MessageStream<'_, Membership>,
        shutdown: &CancellationToken,
    ) -> Result<Ended, ConsumerError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut done = Vec::with_capacity(BATCH);
        loop {
            let drained = self.tasks.is_empty();
            if self
                .stop_at
                .is_some_and(|at| self.in_flight() == 0 || Instant::now() >= at)
            {
                return Ok(Ended::Stopped);
            }
            if self.is_ending() && self.stop_at.is_none() && self.in_flight() == 0 {
                return Ok(Ended::CaughtUp);
            }
            // While paused the stream brings events only, and those must be served.
            let listening = self.paused || self.has_room();
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if self.stop_at.is_none() => self.stop(),
                Some(change) = self.member.changes.recv() => self.change(change).await?,
                _ = self.done.recv_many(&mut done, BATCH) => {
                    done.drain(..).for_each(|done| self.assignment.done(done));
                    self.revoke_if_drained(Instant::now())?;
                }
                Some(_) = self.tasks.join_next(), if !drained => self.reap(),
                _ = tick.tick() => {
                    self.tick()?;
                    self.catch_up().await?;
                }
                Some(message) = stream.next(), if listening => {
                    self.receive(message)?;
                    for _ in 1..BATCH {
                        if !self.has_room() {
                            break;
                        }
                        let Some(Some(message)) = stream.next().now_or_never() else {
                            break;
                        };
                        self.receive(message)?;
                    }
                    // The stream takes no part in the runtime's budget, so without this a full
                    // topic would keep the loop from everything that does.
                    tokio::task::coop::consume_budget().await;
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.takes_in() && !self.paused && !self.is_full()
    }

    /// Whether records are taken up; those that are not stay uncommitted.
    fn takes_in(&self) -> bool {
        self.stop_at.is_none() && !self.is_ending()
    }

    /// Whether a job has taken in all that it is to read.
    fn is_ending(&self) -> bool {
        self.catch_up.as_ref().is_some_and(CatchUp::has_ended)
    }

    /// Records that someone works on: a task that may have acknowledged its record already, or a
    /// sink that has not.
    fn in_flight(&self) -> usize {
        match &self.recipient {
            Recipient::Tasks(_) => self.tasks.len(),
            Recipient::Sink(_) => self.assignment.in_flight(),
        }
    }

    fn is_full(&self) -> bool {
        self.in_flight() >= self.options.max_in_flight.max(1)
            || self.assignment.window() >= MAX_WINDOW
    }

    fn receive(&mut self, message: Received<'_>) -> Result<(), ConsumerError> {
        let message = match message {
            Ok(message) => message,
            Err(error @ KafkaError::MessageConsumptionFatal(_)) => return Err(error.into()),
            Err(KafkaError::PartitionEOF(partition)) => {
                // It names no topic: of several, a record has to tell.
                if let ([(topic, _)], Some(job)) = (&*self.topics, &mut self.catch_up) {
                    job.at_end((*topic, partition));
                }
                return Ok(());
            }
            Err(error) => {
                // librdkafka goes on by itself: brokers that are away, topics not there yet.
                tracing::debug!(%error, "consumer error");
                return Ok(());
            }
        };
        let known = self.topics.iter().find(|(_, n)| **n == *message.topic());
        // After a stop nothing is taken up; what is not tracked stays uncommitted.
        let Some((topic, name)) = known.filter(|_| self.takes_in()) else {
            return Ok(());
        };
        let place = (*topic, message.partition());
        let now = Instant::now();
        let made_ms = message.timestamp().to_millis().unwrap_or(0);
        let tracked = self.assignment.track(place, message.offset(), now, made_ms);
        let Some(generation) = tracked else {
            return Ok(());
        };
        if let Some(job) = &mut self.catch_up {
            job.received(place, message.offset());
        }
        let record = Incoming::copy(&message, *topic, Arc::clone(name), generation);
        let slot = AckSlot::new(&record, self.to_done.clone());
        match &self.recipient {
            Recipient::Sink(sink) => sink.take(record, slot.ack()),
            Recipient::Tasks(handler) => {
                let attempts = Attempts {
                    max: self.options.max_attempts.max(1),
                    backoff: self.options.retry_backoff,
                };
                self.tasks.spawn(attempts::run(
                    Arc::clone(handler),
                    Arc::new(record),
                    slot,
                    attempts,
                    self.stopping.clone(),
                ));
            }
        }
        self.meters.records.increment(1);
        Ok(())
    }

    /// After a task ended: forgets those that did, and takes in more when there is room again.
    fn reap(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let busy = self.in_flight();
        self.state.set_in_flight(busy);
        if !self.is_full() {
            self.full_since = None;
        }
        let below_half = busy * 2 < self.options.max_in_flight.max(1)
            && self.assignment.window() * 2 < MAX_WINDOW;
        if self.paused && below_half && self.takes_in() {
            let resumed = self.set_paused(&self.assignment.places(), false);
            self.paused = !resumed;
        }
    }

    fn tick(&mut self) -> Result<(), ConsumerError> {
        let now = Instant::now();
        self.state.polled(now);
        self.store();
        self.revoke_if_drained(now)?;
        if self.is_full() && !self.paused {
            let since = *self.full_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= HOLD {
                self.pause_all();
            }
        }
        // The acknowledgement that empties a window may come after its task was reaped.
        self.reap();
        let age = self.assignment.age(now);
        self.state.set_frontier_age(age);
        self.state.set_paused(self.paused);
        self.meters.frontier_age.set(age.as_secs_f64());
        self.meters.in_flight.set(count(self.in_flight()));
        let due = |shown| now.saturating_duration_since(shown) >= SHOW;
        if self.shown.is_none_or(due) {
            self.shown = Some(now);
            self.show_delays();
        }
        Ok(())
    }

    /// Ends intake once a job has taken in all that it is to read. Of partitions that other members of
    /// the group have, what they committed counts.
    async fn catch_up(&mut self) -> Result<(), ConsumerError> {
        let takes_in = self.takes_in();
        let Some(job) = self.catch_up.as_mut().filter(|_| takes_in) else {
            return Ok(());
        };
        let held = self.assignment.places();
        let mut missing = job.missing();
        let elsewhere = missing.iter().all(|place| !held.contains(place));
        if !missing.is_empty() && elsewhere && job.is_time_to_look(Instant::now()) {
            // Where another start than the committed offset was asked for, what was committed before
            // says nothing.
            let from_committed = self.options.from == StartFrom::Committed;
            missing.retain(|place| from_committed || self.placed.contains(place));
            let list = self.list(missing.iter().map(|place| (*place, Offset::Invalid)));
            let client = Arc::clone(&self.member.client);
            let found =
                tokio::task::spawn_blocking(move || client.committed_offsets(list, LOOK_TIMEOUT));
            match found.await.map_err(|_| KafkaError::Canceled)? {
                Ok(found) => self.note_committed(&found),
                Err(error) => tracing::debug!(%error, "the group's offsets were not read"),
            }
        }
        let Some(job) = self
            .catch_up
            .as_mut()
            .filter(|job| job.missing().is_empty())
        else {
            return Ok(());
        };
        job.end();
        tracing::info!(group = self.state.group(), "caught up; intake ends");
        self.pause_all();
        // Even where that failed, the stream is to be served: `receive` drops what it brings.
        self.paused = true;
        self.state.set_paused(true);
        Ok(())
    }

    fn note_committed(&mut self, found: &TopicPartitionList) {
        for element in found.elements() {
            let known = self.topics.iter().find(|(_, n)| **n == *element.topic());
            if let (Some((topic, _)), Offset::Offset(next), Some(job)) =
                (known, element.offset(), &mut self.catch_up)
            {
                job.committed((*topic, element.partition()), next);
            }
        }
    }

    /// Shows how long ago the oldest record was made that holds a partition's offset back.
    fn show_delays(&self) {
        let now_ms = i64::try_from(clock::now_ms()).unwrap_or(i64::MAX);
        for ((topic, partition), made_ms) in self.assignment.oldest_made_ms() {
            let delay_ms = made_ms.map_or(0, |made_ms| now_ms.saturating_sub(made_ms).max(0));
            let delay = Duration::from_millis(delay_ms.unsigned_abs());
            self.state
                .show_delay(self.name(topic), partition, delay.as_secs_f64());
        }
    }

    fn stop(&mut self) {
        self.stop_at = Some(Instant::now() + self.options.drain);
        self.stopping.cancel();
        self.pause_all();
        // Even where that failed, the stream is to be served: `receive` drops what it brings.
        self.paused = true;
        self.state.set_paused(true);
    }

    fn pause_all(&mut self) {
        self.paused = self.set_paused(&self.assignment.places(), true);
    }

    /// Returns whether librdkafka did it.
    fn set_paused(&self, places: &[Place], paused: bool) -> bool {
        let list = self.list(places.iter().map(|place| (*place, Offset::Invalid)));
        let outcome = if paused {
            self.member.client.pause(&list)
        } else {
            self.member.client.resume(&list)
        };
        if let Err(error) = &outcome {
            tracing::warn!(%error, paused, "partitions were not paused or resumed");
        }
        outcome.is_ok()
    }

    /// Tells librdkafka the offsets that moved, to be committed with its next commit.
    fn store(&mut self) {
        let moved = self.assignment.take_moved();
        if moved.is_empty() {
            return;
        }
        let offsets = moved.into_iter().map(|(p, next)| (p, Offset::Offset(next)));
        let list = self.list(offsets);
        if let Err(error) = self.member.client.store_offsets(&list) {
            // The partition was lost meanwhile: its next owner handles the records again.
            tracing::debug!(%error, "offsets were not stored");
        }
    }

    /// Ends what is still running, commits what was done and leaves the group.
    async fn finish(mut self) {
        let left = self.in_flight();
        if left > 0 {
            tracing::warn!(
                left,
                "records still in flight at the deadline stay uncommitted"
            );
        }
        if tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("a handler does not give way");
        }
        while let Ok(done) = self.done.try_recv() {
            self.assignment.done(done);
        }
        self.store();
        if let Err(error) = self.finish_revocation() {
            tracing::warn!(%error, "partitions were not given back");
        }
        let client = Arc::clone(&self.member.client);
        // `self.member` is dropped in the closure: leaving the group blocks.
        let member = self.member;
        let closed = tokio::task::spawn_blocking(move || {
            let committed = client.commit_consumer_state(CommitMode::Sync);
            drop(client);
            drop(member);
            committed
        });
        let nothing_to_commit =
            |error: &KafkaError| error.rdkafka_error_code() == Some(RDKafkaErrorCode::NoOffset);
        match tokio::time::timeout(CLOSE_TIMEOUT, closed).await {
            Ok(Ok(Err(error))) if !nothing_to_commit(&error) => {
                tracing::warn!(%error, "the last offsets were not committed");
            }
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => tracing::warn!("the group could not be left in time"),
        }
        self.state.set_assigned(0, self.assignment.generation());
        self.state.set_in_flight(0);
    }
}

#[allow(clippy::cast_precision_loss)] // counts of tasks and partitions are small
fn count(number: usize) -> f64 {
    number as f64
}
