//! Fills an empty Redis again from what the topics hold.
//!
//! Invariant: nothing is taken in before everything is there. The mark of the rebuild closes the API,
//! and the keys, without which no request passes the gate, come last.

mod money;
mod run;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use money::MoneyFold;
use session::{SessionFold, Terms};

use crate::config::Settings;
use crate::ids::{RunId, SessionId, TenantId};
use crate::kafka::{Extent, KafkaSettings, Place, ReadError, StoredRecord, TopicReader};
use crate::messages::{
    self, AuditRecord, BudgetRecord, CommandKind, EventBatch, EventType, KeyRecord, QueuedState,
    RunSpec, Signer, State, StateRecord, TenantRecord, Topic, Unreadable, Versioned, header,
};
use crate::privacy::{DataKey, KeyRing, Sealed};
use crate::runs::Runs;
use crate::runtime::clock;
use crate::store::StoreError;

/// Why nothing, or not everything, was restored.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// There is something in Redis.
    #[error(
        "this Redis is not empty: a rebuild fills an empty one, so that nothing is mixed or lost"
    )]
    NotEmpty,
    /// An earlier rebuild did not come to its end.
    #[error(
        "an earlier rebuild is under way or was broken off: when it was, empty this Redis and begin again"
    )]
    BrokenOff,
    /// A topic could not be read.
    #[error(transparent)]
    Kafka(#[from] ReadError),
    /// Redis did not take something.
    #[error(transparent)]
    Redis(#[from] StoreError),
}

/// What was restored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Tenants.
    pub tenants: u64,
    /// API keys, revoked ones too.
    pub keys: u64,
    /// Sessions.
    pub sessions: u64,
    /// Sessions on the topics whose time to live is over.
    pub expired_sessions: u64,
    /// Runs that have ended.
    pub ended_runs: u64,
    /// Runs that go on.
    pub live_runs: u64,
    /// Runs that were left out because their commands have left the topics.
    pub runs_without_command: u64,
    /// Events of the sessions' histories.
    pub events: u64,
    /// Claims of Idempotency-Keys.
    pub claims: u64,
    /// Records read.
    pub read: u64,
    /// Records that were not used, by reason.
    pub unusable: BTreeMap<&'static str, u64>,
    /// Milliseconds that it took.
    pub duration_ms: u64,
}

/// How far a rebuild is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it does.
    pub phase: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// How much there is.
    pub total: u64,
}

/// A rebuild.
#[derive(Debug)]
pub struct Rebuild {
    kafka: KafkaSettings,
    signer: Signer,
    ring: KeyRing,
    runs: Runs,
    history_events: usize,
    run_retention_ms: u64,
    idempotency_ttl_ms: u64,
}

/// Sessions by id, which is unique over all tenants.
type Sessions = HashMap<SessionId, SessionFold>;

/// What `agent.state` holds.
#[derive(Default)]
struct Stored {
    keys: BTreeMap<String, KeyRecord>,
    sessions: HashMap<String, SessionFold>,
    tenants: BTreeMap<String, TenantRecord>,
    budgets: BTreeMap<String, BudgetRecord>,
}

/// A command, with its specification as it is written.
#[derive(Deserialize)]
struct RawCommand<'a> {
    v: u16,
    kind: CommandKind,
    wake: u32,
    #[serde(default)]
    turn: u32,
    #[serde(borrow)]
    spec: &'a RawValue,
    plan: Option<Sealed>,
}

/// The events of a record, as far as a first look needs them.
#[derive(Deserialize)]
struct Glance {
    v: u16,
    events: Vec<GlancedEvent>,
}

#[derive(Deserialize)]
struct GlancedEvent {
    #[serde(rename = "type")]
    event_type: EventType,
    session_id: SessionId,
    run_id: RunId,
    ts: u64,
}

impl Rebuild {
    /// A rebuild of the Redis of `runs` from the topics of `kafka`. `signer` verifies every record,
    /// and `ring` opens what an admission sealed.
    pub fn new(
        kafka: KafkaSettings,
        signer: Signer,
        ring: KeyRing,
        runs: Runs,
        settings: &Settings,
    ) -> Self {
        Self {
            kafka,
            signer,
            ring,
            runs,
            history_events: settings.history_events as usize,
            run_retention_ms: settings.run_retention_s.saturating_mul(1000),
            idempotency_ttl_ms: settings.idempotency_ttl_s.saturating_mul(1000),
        }
    }

    /// Does it. When it fails after its beginning, the mark stays and with it the API closed: Redis is
    /// to be emptied, and the rebuild begun again.
    pub async fn run(
        &self,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Report, RebuildError> {
        let begun = Instant::now();
        let redis = self.runs.redis();
        if redis.is_being_rebuilt().await? {
            return Err(RebuildError::BrokenOff);
        }
        if !redis.is_empty().await? {
            return Err(RebuildError::NotEmpty);
        }
        if !redis.begin_rebuild().await? {
            return Err(RebuildError::BrokenOff);
        }
        let mut report = Report::default();
        let stored = self.read_state(&mut report, progress).await?;
        let mut sessions = self
            .read_sessions(stored.sessions, &mut report, progress)
            .await?;
        let money = self
            .read_audit(&mut sessions, &mut report, progress)
            .await?;
        // Their limits first: they say how many runs may be live.
        self.write_tenants(&stored.tenants).await?;
        self.write_sessions(sessions, &mut report, progress).await?;
        self.write_money(&money, stored.budgets).await?;
        self.write_keys(stored.keys, &mut report).await?;
        redis.end_rebuild().await?;
        report.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(report)
    }

    /// Reads a topic, and hands each record whose signature fits to `take`.
    async fn read(
        &self,
        topic: Topic,
        from: Place,
        report: &mut Report,
        progress: &mut (dyn FnMut(Progress) + Send),
        take: &mut (dyn FnMut(&StoredRecord) -> Result<(), &'static str> + Send),
    ) -> Result<(), RebuildError> {
        let extent = Extent {
            from,
            ..Extent::ALL
        };
        let mut reader = TopicReader::open(&self.kafka, topic, extent).await?;
        let mut unusable = |reason| *report.unusable.entry(reason).or_default() += 1;
        while let Some(record) = reader.next().await? {
            report.read += 1;
            let verified = self.signer.verify(
                reader.full_topic(),
                record.key.as_deref().unwrap_or_default(),
                &record.signed_headers(),
                record.value.as_deref().unwrap_or_default(),
            );
            if verified.is_err() {
                unusable("signature");
            } else if let Err(reason) = take(&record) {
                unusable(reason);
            }
            if report.read.is_multiple_of(1000) {
                progress(Progress {
                    phase: topic.as_str(),
                    done: reader.total().saturating_sub(reader.remaining()),
                    total: reader.total(),
                });
            }
        }
        Ok(())
    }

    async fn read_state(
        &self,
        report: &mut Report,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Stored, RebuildError> {
        let mut stored = Stored::default();
        let mut take = |record: &StoredRecord| {
            let key = record.key.as_deref().unwrap_or_default();
            let key = String::from_utf8_lossy(key).into_owned();
            let Some(value) = &record.value else {
                stored.sessions.remove(&key);
                stored.keys.remove(&key);
                stored.tenants.remove(&key);
                stored.budgets.remove(&key);
                return Ok(());
            };
            let record: StateRecord = decode(value)?;
            if record.state.record_key() != key {
                return Err("undecodable");
            }
            match record.state {
                State::ApiKey(record) => {
                    stored.keys.insert(key, record);
                }
                State::Session(record) => {
                    stored.sessions.insert(key, SessionFold::new(record));
                }
                State::Tenant(record) => {
                    stored.tenants.insert(key, record);
                }
                State::Budget(record) => {
                    stored.budgets.insert(key, record);
                }
            }
            Ok(())
        };
        self.read(
            Topic::AgentState,
            Place::Earliest,
            report,
            progress,
            &mut take,
        )
        .await?;
        Ok(stored)
    }

    /// Reads what the topics say of the sessions that may still live. What has expired is told apart
    /// first, so that no more is kept in memory than Redis will hold.
    async fn read_sessions(
        &self,
        stored: HashMap<String, SessionFold>,
        report: &mut Report,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Sessions, RebuildError> {
        let mut sessions: Sessions = stored
            .into_values()
            .map(|session| (session.record.session_id.clone(), session))
            .collect();
        let mut glance = |record: &StoredRecord| {
            let batch: Glance = decode(record.value.as_deref().unwrap_or_default())?;
            for event in batch.events {
                if let Some(session) = owned(&mut sessions, &event.session_id, record) {
                    session.glance(&event.run_id, event.event_type, event.ts);
                }
            }
            Ok(())
        };
        self.read(
            Topic::AgentEvents,
            Place::Earliest,
            report,
            progress,
            &mut glance,
        )
        .await?;
        let now_ms = clock::now_ms();
        let all = sessions.len();
        sessions.retain(|_, session| session.may_live(now_ms));
        report.expired_sessions += count(all - sessions.len());
        let oldest = sessions.values().map(|s| s.record.created_ms).min();
        let Some(oldest) = oldest else {
            return Ok(sessions);
        };
        // Clocks differ a little.
        let from = oldest.saturating_sub(60_000);
        let from = Place::Time(i64::try_from(from).unwrap_or(0));

        for topic in [Topic::PlanCommands, Topic::ExecuteCommands] {
            let mut take = |record: &StoredRecord| command(&mut sessions, record);
            self.read(topic, from, report, progress, &mut take).await?;
        }
        let mut take = |record: &StoredRecord| {
            let batch: EventBatch = decode(record.value.as_deref().unwrap_or_default())?;
            for event in batch.events {
                if let Some(session) = owned(&mut sessions, &event.session_id, record) {
                    session.event(event);
                }
            }
            Ok(())
        };
        self.read(Topic::AgentEvents, from, report, progress, &mut take)
            .await?;
        Ok(sessions)
    }

    /// Reads what was spent: all of it, since budgets count by the month.
    async fn read_audit(
        &self,
        sessions: &mut Sessions,
        report: &mut Report,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<MoneyFold, RebuildError> {
        let mut money = MoneyFold::default();
        let mut owners: HashMap<RunId, SessionId> = HashMap::new();
        for (id, session) in &*sessions {
            owners.extend(session.run_ids().map(|run| (run.clone(), id.clone())));
        }
        let mut take = |record: &StoredRecord| {
            let audit: AuditRecord = decode(record.value.as_deref().unwrap_or_default())?;
            let tenant = audit.tenant.as_ref().map(TenantId::as_str);
            if tenant.is_some() && tenant != record.header(header::TENANT) {
                return Err("undecodable");
            }
            money.take(&audit);
            let of_run = audit.run_id.as_ref().and_then(|run| owners.get(run));
            if let Some(id) = audit.session_id.as_ref().or(of_run)
                && let Some(session) = owned(sessions, &id.clone(), record)
            {
                session.audit(&audit);
            }
            Ok(())
        };
        self.read(
            Topic::AuditLogs,
            Place::Earliest,
            report,
            progress,
            &mut take,
        )
        .await?;
        Ok(money)
    }

    async fn write_sessions(
        &self,
        sessions: Sessions,
        report: &mut Report,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), RebuildError> {
        let now_ms = clock::now_ms();
        let terms = Terms {
            now_ms,
            // Above every generation before, those of broken-off rebuilds included, which no topic has.
            generation: now_ms / 1000,
            history_events: self.history_events,
            run_retention_ms: self.run_retention_ms,
        };
        let mut ready = Vec::with_capacity(sessions.len());
        for (_, mut session) in sessions {
            let tenant = session.record.tenant.clone();
            let claims = self.look_up(&mut session, now_ms);
            match session.restore(terms) {
                Some(restored) => ready.push((tenant, restored, claims)),
                None => report.expired_sessions += 1,
            }
        }
        // Runs that were at work keep their slots before runs that waited for one.
        ready.sort_by(|(_, a, _), (_, b, _)| {
            (!a.at_work, &a.session.session).cmp(&(!b.at_work, &b.session.session))
        });
        let total = count(ready.len());
        for (done, (tenant, restored, claims)) in ready.into_iter().enumerate() {
            let id = &restored.session.session;
            let runs = &self.runs;
            runs.restore_history(&tenant, id, &restored.history).await?;
            runs.restore_ended(&tenant, id, &restored.ended).await?;
            for claim in &claims {
                let names = (claim.state.claim.as_str(), claim.state.fingerprint.as_str());
                runs.restore_claim(&tenant, names, &claim.run, claim.keep_ms)
                    .await?;
            }
            if !runs.restore_session(&tenant, &restored.session).await? {
                return Err(RebuildError::NotEmpty);
            }
            report.sessions += 1;
            report.events += count(restored.history.len());
            report.ended_runs += count(restored.ended.len());
            report.live_runs += count(restored.session.runs.len());
            report.runs_without_command += restored.without_command;
            report.claims += count(claims.len());
            progress(Progress {
                phase: "sessions",
                done: count(done + 1),
                total,
            });
        }
        Ok(())
    }

    /// Folds a session's events, and opens what is sealed as far as that is needed: the claims of its
    /// admissions, and plans for the tools of steps whose events were too long to name them.
    fn look_up(&self, session: &mut SessionFold, now_ms: u64) -> Vec<Claim> {
        let record = &session.record;
        let key = self
            .ring
            .unwrap(&record.wrapped_key, &record.tenant, &record.session_id);
        let key = match key {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::warn!(%error, session_id = %record.session_id, "the session's data key does not unwrap");
                None
            }
        };
        for run in session.fold_events(key.as_ref()) {
            let plan = run.plan().filter(|_| run.lacks_a_tool());
            let plan: Option<Value> = plan.and_then(|plan| open(key.as_ref()?, plan));
            if let Some(plan) = plan {
                run.name_tools(&plan);
            }
        }
        let states = session.queued_states();
        let claims = states.filter_map(|(run, ts, sealed)| {
            let keep_ms = ts
                .saturating_add(self.idempotency_ttl_ms)
                .saturating_sub(now_ms);
            let state = open(key.as_ref()?, sealed)?;
            (keep_ms > 0).then(|| Claim {
                run: run.clone(),
                state,
                keep_ms,
            })
        });
        claims.collect()
    }

    async fn write_tenants(
        &self,
        tenants: &BTreeMap<String, TenantRecord>,
    ) -> Result<(), RebuildError> {
        let redis = self.runs.redis();
        for record in tenants.values() {
            let lock = redis.lock(&record.tenant, "tenant").await?;
            redis.put_tenant(record, lock).await?;
        }
        Ok(())
    }

    async fn write_money(
        &self,
        money: &MoneyFold,
        budgets: BTreeMap<String, BudgetRecord>,
    ) -> Result<(), RebuildError> {
        for ((tenant, month), spent) in &money.spent {
            self.runs.restore_spent(tenant, month, spent).await?;
        }
        for ((tenant, day), used) in &money.used {
            self.runs.restore_used(tenant, day, used).await?;
        }
        for budget in budgets.values() {
            self.runs
                .restore_budget(&budget.tenant, budget.limit_micro_usd)
                .await?;
        }
        Ok(())
    }

    /// The keys of a tenant, and the tenant itself, which sweepers then look at: after all else.
    async fn write_keys(
        &self,
        keys: BTreeMap<String, KeyRecord>,
        report: &mut Report,
    ) -> Result<(), RebuildError> {
        let redis = self.runs.redis();
        let tenants: BTreeSet<&TenantId> = keys.values().map(|key| &key.tenant).collect();
        for tenant in &tenants {
            redis.add_tenant(tenant).await?;
        }
        for record in keys.values() {
            redis.put_key(record).await?;
        }
        report.tenants = count(tenants.len());
        report.keys = count(keys.len());
        Ok(())
    }
}

/// The claim of an `Idempotency-Key`.
struct Claim {
    run: RunId,
    state: QueuedState,
    keep_ms: u64,
}

/// Takes a command: the run as it was admitted, and how often it was woken.
fn command(sessions: &mut Sessions, record: &StoredRecord) -> Result<(), &'static str> {
    let raw: RawCommand<'_> = decode(record.value.as_deref().unwrap_or_default())?;
    let spec: RunSpec = serde_json::from_str(raw.spec.get()).map_err(|_| "undecodable")?;
    let key = record.key.as_deref().unwrap_or_default();
    if key != spec.run_id.as_str().as_bytes() {
        return Err("undecodable");
    }
    if let Some(session) = owned(sessions, &spec.session_id.clone(), record) {
        let run = session.run(&spec.run_id.clone());
        let spec = (spec, raw.spec.get());
        run.command(raw.kind, raw.wake, raw.turn, spec, raw.plan);
    }
    Ok(())
}

/// The session, when the record is of its tenant.
fn owned<'s>(
    sessions: &'s mut Sessions,
    id: &SessionId,
    record: &StoredRecord,
) -> Option<&'s mut SessionFold> {
    let session = sessions.get_mut(id)?;
    (record.header(header::TENANT) == Some(session.record.tenant.as_str())).then_some(session)
}

impl Versioned for RawCommand<'_> {
    fn version(&self) -> u16 {
        self.v
    }
}

impl Versioned for Glance {
    fn version(&self) -> u16 {
        self.v
    }
}

fn decode<'a, T: Deserialize<'a> + Versioned>(value: &'a [u8]) -> Result<T, &'static str> {
    messages::read(value).map_err(|error| match error {
        Unreadable::Version(_) => "unknown_version",
        Unreadable::Undecodable(_) => "undecodable",
    })
}

fn open<T: for<'a> Deserialize<'a>>(key: &DataKey, sealed: &Sealed) -> Option<T> {
    serde_json::from_slice(&key.open(sealed).ok()?).ok()
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
