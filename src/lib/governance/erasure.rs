//! Erasing sessions: one, or all that are about somebody. The data key goes, and with it what any topic or
//! file still holds of the session.
//!
//! Which sessions are about somebody is read from `agent.state`, which has each before Redis has it, and
//! still has the keys of those that expired: Redis forgets these, and they must be erased too.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use crate::ids::{SessionId, TenantId};
use crate::kafka::{Extent, KafkaSettings, ProduceError, Producer, ReadError, TopicReader};
use crate::messages::{
    Outgoing, SessionRecord, Signer, State, StateRecord, Topic, read, session_record_key,
};
use crate::privacy::KeyRing;
use crate::runs::Runs;
use crate::store::{AofRewrite, StoreError};

/// Why an erasure did not come to its end. A repeat goes on with what is left.
#[derive(Debug, thiserror::Error)]
pub enum ErasureError {
    /// `agent.state` could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Kafka did not take an erasure; the session and those after it are as they were.
    #[error(transparent)]
    Produce(#[from] ProduceError),
    /// Redis was not to be had.
    #[error(transparent)]
    Redis(#[from] StoreError),
}

/// What is to be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// One session, whether Redis still knows it or not.
    Session(SessionId),
    /// Every session with this subject.
    Subject(String),
}

/// A session that was, or would be, erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErasedSession {
    /// The session.
    pub session_id: SessionId,
    /// Whether Redis knew it; an expired one is on `agent.state` alone.
    pub live: bool,
    /// Its runs in Redis.
    pub runs: u64,
}

/// What an erasure did, and what it found afterwards.
#[derive(Debug, Clone, Serialize)]
pub struct Erasure {
    /// The tenant.
    pub tenant: TenantId,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The sessions.
    pub sessions: Vec<ErasedSession>,
    /// Keys of these sessions in Redis afterwards; 0 proves that they are gone.
    pub left_in_redis: u64,
    /// Of these sessions, those whose newest record on `agent.state` still has a key afterwards; 0 proves
    /// that every one is followed by its erasure.
    pub left_on_agent_state: u64,
    /// What became of the rewrite of Redis' append-only file; absent where nothing was erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aof_rewrite: Option<AofRewrite>,
    /// Records on `agent.state` that do not decode, are not signed, or whose key or subject does not open:
    /// they could not be looked into.
    pub unreadable_records: u64,
}

/// Erases.
#[derive(Debug)]
pub struct Erasures {
    kafka: KafkaSettings,
    producer: Producer,
    signer: Signer,
    ring: KeyRing,
    runs: Runs,
}

/// The newest records of sessions, by key, and how many records could not be read.
type Found = (BTreeMap<String, SessionRecord>, u64);

impl Erasures {
    /// Erasures on the given Kafka and Redis. `signer` tells whose records are believed, and `ring` opens
    /// the subjects.
    pub fn new(
        kafka: KafkaSettings,
        producer: Producer,
        signer: Signer,
        ring: KeyRing,
        runs: Runs,
    ) -> Self {
        Self {
            kafka,
            producer,
            signer,
            ring,
            runs,
        }
    }

    /// Erases the sessions of `tenant`, or with `dry_run` only says which they are. Sessions that are
    /// created meanwhile are not among them.
    ///
    /// # Errors
    /// The first store that does not answer; what was erased by then stays erased.
    pub async fn erase(
        &self,
        tenant: &TenantId,
        whom: &Whom,
        dry_run: bool,
    ) -> Result<Erasure, ErasureError> {
        let (ids, unreadable_records) = match whom {
            Whom::Session(session) => (vec![session.clone()], 0),
            Whom::Subject(subject) => self.about(tenant, subject).await?,
        };
        let mut sessions = Vec::with_capacity(ids.len());
        for session_id in ids {
            let (live, runs) = self.runs.session_extent(tenant, &session_id).await?;
            sessions.push(ErasedSession {
                session_id,
                live,
                runs,
            });
        }
        let mut erasure = Erasure {
            tenant: tenant.clone(),
            dry_run,
            sessions,
            left_in_redis: 0,
            left_on_agent_state: 0,
            aof_rewrite: None,
            unreadable_records,
        };
        if dry_run || erasure.sessions.is_empty() {
            return Ok(erasure);
        }
        for ErasedSession { session_id, .. } in &erasure.sessions {
            self.producer
                .publish(&erased_record(tenant, session_id, None))
                .await?;
            // The ends of its runs are in their outboxes, which sweepers produce.
            self.runs.delete_session(tenant, session_id).await?;
        }
        erasure.aof_rewrite = Some(self.runs.redis().rewrite_aof().await?);
        let (kept, _) = self.sessions(tenant).await?;
        for ErasedSession { session_id, .. } in &erasure.sessions {
            erasure.left_in_redis += self.runs.left_of_session(tenant, session_id).await?;
            let key = session_record_key(tenant, session_id);
            erasure.left_on_agent_state += u64::from(kept.contains_key(&key));
        }
        Ok(erasure)
    }

    /// The sessions about a subject, and how many records could not be looked into.
    async fn about(
        &self,
        tenant: &TenantId,
        subject: &str,
    ) -> Result<(Vec<SessionId>, u64), ErasureError> {
        let (sessions, mut unreadable) = self.sessions(tenant).await?;
        let mut found = Vec::new();
        for record in sessions.into_values() {
            let Some(sealed) = &record.subject else {
                continue;
            };
            let opened = self
                .ring
                .unwrap(&record.wrapped_key, tenant, &record.session_id)
                .and_then(|key| key.open(sealed));
            match opened {
                Ok(text) if text == subject.as_bytes() => found.push(record.session_id),
                Ok(_) => {}
                Err(_) => unreadable += 1,
            }
        }
        Ok((found, unreadable))
    }

    /// The sessions of a tenant that `agent.state` has, erased ones not among them.
    async fn sessions(&self, tenant: &TenantId) -> Result<Found, ErasureError> {
        let prefix = format!("session/{tenant}/");
        let mut reader = TopicReader::open(&self.kafka, Topic::AgentState, Extent::ALL).await?;
        let (mut sessions, mut unreadable) = (BTreeMap::new(), 0);
        while let Some(record) = reader.next().await? {
            let key = record.key.as_deref().unwrap_or_default();
            let Some(name) = std::str::from_utf8(key)
                .ok()
                .filter(|name| name.starts_with(&prefix))
            else {
                continue;
            };
            let value = record.value.as_deref().unwrap_or_default();
            let headers = record.signed_headers();
            if self
                .signer
                .verify(reader.full_topic(), key, &headers, value)
                .is_err()
            {
                unreadable += 1;
            } else if record.value.is_none() {
                sessions.remove(name);
            } else if let Ok(StateRecord {
                state: State::Session(session),
                ..
            }) = read(value)
            {
                sessions.insert(name.to_owned(), session);
            } else {
                unreadable += 1;
            }
        }
        Ok((sessions, unreadable))
    }
}

/// The record that replaces a session's on `agent.state` by a null value, so that compaction removes its
/// data key. It is on Kafka before Redis forgets the session.
pub fn erased_record(
    tenant: &TenantId,
    session: &SessionId,
    traceparent: Option<String>,
) -> Outgoing {
    let key = session_record_key(tenant, session);
    Outgoing {
        topic: Topic::AgentState,
        ce_id: format!("{key}/erased"),
        key,
        ce_type: "agenthub.state.session".to_owned(),
        tenant: tenant.clone(),
        run_id: None,
        not_after_ms: None,
        traceparent,
        value: Bytes::new(),
    }
}
