//! How the loop answers changes of the assignment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::{Run, count};
use crate::kafka::consumer::assignment::Place;
use crate::kafka::consumer::attempts::Recipient;
use crate::kafka::consumer::membership::Change;
use crate::kafka::consumer::{ConsumerError, StartFrom};
use crate::messages::Topic;

/// How long the brokers may take to look offsets up by time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Partitions that are to be given back once their records are done.
pub(super) struct Revocation {
    places: Vec<Place>,
    deadline: Instant,
}

impl Run {
    pub(super) async fn change(&mut self, change: Change) -> Result<(), ConsumerError> {
        // librdkafka gave up waiting for the answer.
        self.finish_revocation()?;
        match change {
            Change::Assign(list) => self.assign(list).await?,
            Change::Revoke { partitions, lost } => {
                let places = self.places(&partitions);
                self.meters.rebalance(if lost { "lost" } else { "revoke" });
                self.member.unanswered = Some(Change::Revoke { partitions, lost });
                let wait = if lost {
                    Duration::ZERO
                } else {
                    self.options.revoke_drain
                };
                if let (Recipient::Sink(sink), false) = (&self.recipient, lost) {
                    sink.revoking(&places);
                }
                let now = Instant::now();
                self.revocation = Some(Revocation {
                    places,
                    deadline: now + wait,
                });
                self.revoke_if_drained(now)?;
            }
        }
        let held = self.assignment.len();
        tracing::info!(
            group = self.state.group(),
            generation = self.assignment.generation(),
            partitions = held,
            "assignment changed"
        );
        Ok(())
    }

    async fn assign(&mut self, mut list: TopicPartitionList) -> Result<(), ConsumerError> {
        self.meters.rebalance("assign");
        let places = self.places(&list);
        if self.options.from != StartFrom::Committed {
            let new: Vec<Place> = places
                .iter()
                .copied()
                .filter(|place| self.placed.insert(*place))
                .collect();
            for (place, offset) in self.starts(new).await? {
                list.set_partition_offset(self.name(place.0), place.1, offset)?;
            }
        }
        self.answer(&Change::Assign(list))?;
        self.assignment.assign(&places);
        self.show_assignment();
        if !places.is_empty() {
            // A partition that comes back may still be paused from before.
            self.set_paused(&places, self.paused);
        }
        Ok(())
    }

    /// Where partitions begin that are assigned for the first time.
    async fn starts(&self, places: Vec<Place>) -> Result<Vec<(Place, Offset)>, ConsumerError> {
        let all = |offset: Offset| places.iter().map(|place| (*place, offset)).collect();
        let timestamp = match self.options.from {
            StartFrom::Committed => return Ok(Vec::new()),
            StartFrom::Earliest => return Ok(all(Offset::Beginning)),
            StartFrom::Latest => return Ok(all(Offset::End)),
            StartFrom::Timestamp(_) if places.is_empty() => return Ok(Vec::new()),
            StartFrom::Timestamp(ms) => Offset::Offset(ms),
        };
        let times = self.list(places.iter().map(|place| (*place, timestamp)));
        let client = Arc::clone(&self.member.client);
        let found =
            tokio::task::spawn_blocking(move || client.offsets_for_times(times, LOOKUP_TIMEOUT));
        let found = found.await.map_err(|_| KafkaError::Canceled)??;
        let starts = found.elements().into_iter().filter_map(|element| {
            let place = (self.topic(element.topic())?, element.partition());
            Some((place, element.offset()))
        });
        Ok(starts.collect())
    }

    /// Gives partitions back when their records are done or their time is over.
    pub(super) fn revoke_if_drained(&mut self, now: Instant) -> Result<(), ConsumerError> {
        let due = self
            .revocation
            .as_ref()
            .is_some_and(|r| now >= r.deadline || self.assignment.undone(&r.places) == 0);
        if due {
            self.finish_revocation()
        } else {
            Ok(())
        }
    }

    pub(super) fn finish_revocation(&mut self) -> Result<(), ConsumerError> {
        let Some(revocation) = self.revocation.take() else {
            return Ok(());
        };
        if let Some(job) = &mut self.catch_up {
            job.lost(&revocation.places);
        }
        let change = self.member.unanswered.take();
        let lost = matches!(change, Some(Change::Revoke { lost: true, .. }))
            || self.member.client.assignment_lost();
        if lost {
            // Their next owner commits; an offset of ours could undo its work.
            self.assignment.revoke(&revocation.places);
        }
        self.store();
        let answered = change.map_or(Ok(()), |change| self.answer(&change));
        self.assignment.revoke(&revocation.places);
        for &(topic, partition) in &revocation.places {
            self.state.gave_back(self.name(topic), partition);
        }
        self.show_assignment();
        answered
    }

    fn answer(&self, change: &Change) -> Result<(), ConsumerError> {
        Ok(change.answer(&*self.member.client)?)
    }

    fn show_assignment(&self) {
        let held = self.assignment.len();
        self.state.set_assigned(held, self.assignment.generation());
        self.meters.assigned.set(count(held));
    }

    fn topic(&self, name: &str) -> Option<Topic> {
        let known = self.topics.iter().find(|(_, known)| **known == *name);
        known.map(|(topic, _)| *topic)
    }

    pub(super) fn name(&self, topic: Topic) -> &str {
        let known = self.topics.iter().find(|(known, _)| *known == topic);
        known.map_or("", |(_, name)| name)
    }

    fn places(&self, list: &TopicPartitionList) -> Vec<Place> {
        let elements = list.elements().into_iter();
        elements
            .filter_map(|e| Some((self.topic(e.topic())?, e.partition())))
            .collect()
    }

    pub(super) fn list(&self, places: impl Iterator<Item = (Place, Offset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), offset) in places {
            let mut element = list.add_partition(self.name(topic), partition);
            if let Err(error) = element.set_offset(offset) {
                tracing::warn!(%error, "offset out of range");
            }
        }
        list
    }
}
