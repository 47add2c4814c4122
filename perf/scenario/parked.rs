//! Parked runs: a hundred thousand of them cost no CPU, and wake when their time comes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use agenthub::config::{Settings, Source};
use agenthub::ids::{KeyId, RunId, SessionId, TenantId};
use agenthub::messages::{
    CommandKind, KeyPolicy, KeyRecord, OnConflict, RunKind, RunSpec, SCHEMA_VERSION, Told,
};
use agenthub::privacy::{DataKey, KeyRing};
use agenthub::runs::{
    Acquire, Admission, Admit, Begin, Gate, Next, OutboxEntry, Outcome, Recorded, Runs,
    SessionCreation, Transition,
};
use agenthub::runtime::clock::now_ms;
use agenthub::store::Redis;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rdkafka::Message as _;
use rdkafka::consumer::StreamConsumer;
use redis::aio::MultiplexedConnection;
use secrecy::ExposeSecret as _;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Stack;
use crate::client::GOAL;
use crate::floor::kafka;
use crate::machine::Processes;
use crate::report::{Report, Row};
use crate::samples::Samples;

const TENANT: &str = "parked";
const SESSIONS: usize = 100;
/// Transitions under way at once.
const AT_ONCE: usize = 64;
/// Of all runs, those that are due together.
const DUE: usize = 500;
const DUE_IN_MS: u64 = 15_000;
/// When the others would be due: after the end.
const HOUR_MS: u64 = 3_600_000;
/// CPU is measured so often for so long; the median counts.
const WINDOWS: usize = 3;
const WINDOW: Duration = Duration::from_secs(10);
const MORE_CORES: f64 = 0.02;
const LATE_S: f64 = 1.0;
/// After this the rest is taken for lost.
const LOST: Duration = Duration::from_mins(1);
const SETTLED_WITHIN: Duration = Duration::from_mins(2);

/// Measures it with `count` parked runs.
pub async fn measure(stack: &Stack, count: usize, report: &mut Report) -> Result<()> {
    let ledger = Ledger::open().await?;
    let processes = Processes::find(&stack.state)?;
    let client = redis::Client::open(stack.redis_url.as_str())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let without = cores(&processes).await;
    let memory = processes.resident_mib("redis");

    let began = Instant::now();
    let due = DUE.min(count);
    ledger.park_all(count - due, now_ms() + HOUR_MS).await?;
    println!(
        "{} runs parked in {:.1} s",
        count - due,
        began.elapsed().as_secs_f64()
    );
    settled(&mut redis).await?;
    let memory = processes.resident_mib("redis") - memory;
    let with = cores(&processes).await;

    let commands = kafka::consumer(&stack.brokers, "plan.commands")?;
    let wake_at = now_ms() + DUE_IN_MS;
    let parked = ledger.park_all(due, wake_at).await?;
    ensure!(now_ms() < wake_at, "parking {due} runs took too long");
    let lateness = woken(&commands, parked, wake_at).await?;

    report.row(
        Row::context(
            &format!(
                "{count} parked runs: cores that planner, executor, Redis and Kafka use more than without"
            ),
            format!("{with:.3} cores"),
        )
        .floor(format!("{without:.3} cores"))
        .at_most(with - without, MORE_CORES),
    );
    #[allow(clippy::cast_precision_loss)] // small
    let each = memory * 1024.0 / (count - due).max(1) as f64;
    report.row(Row::context(
        "the same: memory of Redis for each",
        format!("{each:.1} KiB"),
    ));
    let last = lateness.percentile_ms(100) / 1000.0;
    report.row(
        Row::context(
            &format!("{due} of them due at once: seconds until the last one's command is on Kafka"),
            lateness.p50_p95(),
        )
        .at_most(last, LATE_S),
    );
    Ok(())
}

/// Cores that the workers and what they stand on use.
async fn cores(processes: &Processes) -> f64 {
    let used = || -> f64 {
        let cpu = processes.cpu();
        let names = ["planner", "executor", "redis", "kafka"];
        let of = |name| cpu.get(name).copied().unwrap_or_default();
        names.into_iter().map(of).sum()
    };
    let mut windows = Vec::with_capacity(WINDOWS);
    for _ in 0..WINDOWS {
        let (before, since) = (used(), Instant::now());
        sleep(WINDOW).await;
        windows.push((used() - before) / since.elapsed().as_secs_f64());
    }
    windows.sort_by(f64::total_cmp);
    windows[WINDOWS / 2]
}

/// Waits until Redis no longer rewrites its append-only file, which writing so many runs makes it do.
async fn settled(redis: &mut MultiplexedConnection) -> Result<()> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let info: String = redis::cmd("INFO")
            .arg("persistence")
            .query_async(redis)
            .await?;
        let quiet = ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"];
        if quiet
            .iter()
            .all(|field| info.lines().any(|line| line.trim_end() == *field))
        {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "Redis is still rewriting its append-only file"
        );
        sleep(Duration::from_millis(200)).await;
    }
}

/// How late the command of each run came.
async fn woken(
    commands: &StreamConsumer,
    mut asleep: BTreeSet<String>,
    wake_at: u64,
) -> Result<Samples> {
    let deadline = Duration::from_millis(wake_at.saturating_sub(now_ms())) + LOST;
    let deadline = tokio::time::Instant::now() + deadline;
    let mut lateness = Samples::default();
    while !asleep.is_empty() {
        let Ok(command) = tokio::time::timeout_at(deadline, commands.recv()).await else {
            bail!("{} runs were not woken", asleep.len());
        };
        let command = command?;
        let key = command.key().map(String::from_utf8_lossy);
        if !key.is_some_and(|run| asleep.remove(run.as_ref())) {
            continue;
        }
        let late = now_ms().checked_sub(wake_at);
        lateness.push(Duration::from_millis(
            late.context("a run was woken too early")?,
        ));
    }
    Ok(lateness)
}

/// The stack's own ledger, and a tenant of it.
#[derive(Clone)]
struct Ledger {
    runs: Runs,
    tenant: TenantId,
    key_id: KeyId,
    sessions: Vec<(SessionId, DataKey)>,
}

/// What the ledger knows of the key instead of its secret. Nobody presents it.
const SECRET_HASH: &str = "5ec4e7";

impl Ledger {
    async fn open() -> Result<Self> {
        let settings = Settings::load(&Source::from_process()?)?;
        let redis = Redis::connect(&settings, Duration::from_secs(30))?;
        let ring = KeyRing::parse(settings.master_keys.expose_secret()).map_err(|e| anyhow!(e))?;
        let mut ledger = Self {
            runs: Runs::new(redis.clone(), &settings),
            tenant: TENANT.parse()?,
            key_id: KeyId::generate(),
            sessions: Vec::with_capacity(SESSIONS),
        };
        let record = KeyRecord {
            tenant: ledger.tenant.clone(),
            key_id: ledger.key_id.clone(),
            name: "perf".into(),
            role: "client".into(),
            status: "active".into(),
            version: 1,
            hash: SECRET_HASH.into(),
            old_hash: None,
            old_until_ms: None,
            created_ms: now_ms(),
            expires_ms: None,
            rotated_by: None,
            policy: KeyPolicy::default(),
        };
        redis.put_key(&record).await?;
        redis.add_tenant(&ledger.tenant).await?;
        for _ in 0..SESSIONS {
            let session = SessionId::generate();
            let (key, wrapped) = ring.generate(&ledger.tenant, &session);
            let creation = SessionCreation {
                session: &session,
                key: &wrapped,
                context: None,
                subject: None,
                metadata: None,
                budget: None,
                ttl_ms: 2 * HOUR_MS,
                key_id: &ledger.key_id,
                generation: 1,
                claim: None,
            };
            ledger
                .runs
                .create_session(&ledger.tenant, &creation)
                .await?;
            ledger.sessions.push((session, key));
        }
        Ok(ledger)
    }

    /// Parks so many runs until then; their names.
    async fn park_all(&self, count: usize, wake_at: u64) -> Result<BTreeSet<String>> {
        let mut parking = JoinSet::new();
        for first in 0..AT_ONCE {
            let ledger = self.clone();
            parking.spawn(async move {
                let mut parked = Vec::new();
                for number in (first..count).step_by(AT_ONCE) {
                    let run = ledger.park(number, wake_at).await?;
                    parked.push(run.to_string());
                }
                anyhow::Ok(parked)
            });
        }
        let mut all = BTreeSet::new();
        while let Some(parked) = parking.join_next().await {
            all.extend(parked??);
        }
        Ok(all)
    }

    /// Takes a run as far as a planner does that has to wait long for its model. What that would put onto
    /// Kafka is taken for acknowledged.
    async fn park(&self, number: usize, wake_at: u64) -> Result<RunId> {
        let (session, key) = &self.sessions[number % SESSIONS];
        let spec = RunSpec {
            tenant: self.tenant.clone(),
            run_id: RunId::generate(),
            session_id: session.clone(),
            key_id: self.key_id.clone(),
            kind: RunKind::Plan,
            created_ms: now_ms(),
            deadline_ms: now_ms() + 2 * HOUR_MS,
            goal: Some(key.seal(GOAL.as_bytes())),
            context: None,
            plan: None,
            tools_allowed: None,
            models_allowed: None,
            model: None,
            max_steps: 8,
            max_cost_micro_usd: None,
            on_conflict: OnConflict::Parallel,
            metadata: std::collections::BTreeMap::new(),
            retry_of: None,
            traceparent: None,
        };
        let text = serde_json::to_string(&spec)?;
        let run = &spec.run_id;
        let admitted = self.admit(&spec, &text).await?;
        let owner = run.as_str();
        let acquired = self.acquire(&spec, &text, owner).await?;
        let mut transition = Transition::new(run, owner, 1);
        transition.acked = numbers(&admitted).chain(numbers(&acquired)).collect();
        transition.next = Some(Next::Park { wake_at });
        match self.runs.record(&self.tenant, &transition).await? {
            Recorded::Done { outbox, .. } if outbox.is_empty() => Ok(spec.run_id),
            other => bail!("not parked: {other:?}"),
        }
    }

    async fn admit(&self, spec: &RunSpec, text: &str) -> Result<Vec<OutboxEntry>> {
        let audit = serde_json::json!({
            "v": SCHEMA_VERSION, "id": spec.run_id, "ts": spec.created_ms, "action": "request",
            "tenant": self.tenant,
        });
        let admit = Admit {
            gate: Gate {
                key_id: self.key_id.clone(),
                secret_hash: SECRET_HASH.into(),
                roles: vec!["client"],
                ip: None,
                model: None,
                tools: Vec::new(),
                tools_allowed: None,
                not_before: None,
                cost: 1,
                key_rules: Vec::new(),
                tenant_rules: Vec::new(),
            },
            idempotency: None,
            tenant: &self.tenant,
            run: &spec.run_id,
            session: &spec.session_id,
            kind: spec.kind,
            stage: CommandKind::Plan,
            spec: text,
            deadline: spec.deadline_ms,
            parallel: true,
            reject: false,
            budget: None,
            retry_of: None,
            traceparent: None,
            plan: None,
            queued: Told::nothing(),
            queued_state: None,
            audit: &audit.to_string(),
        };
        match self.runs.admit(&admit).await? {
            Admission::Admitted(admitting) => Ok(admitting.outbox),
            other => bail!("not admitted: {other:?}"),
        }
    }

    async fn acquire(&self, spec: &RunSpec, text: &str, owner: &str) -> Result<Vec<OutboxEntry>> {
        let acquire = Acquire {
            run: &spec.run_id,
            session: &spec.session_id,
            owner,
            lease_ms: 60_000,
            stage: CommandKind::Plan,
            max_deliveries: 3,
            not_after: spec.deadline_ms,
            spec: text,
            plan: None,
            kind: spec.kind,
            turn: 0,
            created: spec.created_ms,
            deadline: spec.deadline_ms,
            parallel: true,
            traceparent: None,
            key_id: &self.key_id,
            budget: None,
            retry_of: None,
            begin: Begin::default(),
        };
        let acquired = self.runs.acquire(&self.tenant, &acquire).await?;
        ensure!(
            acquired.outcome == Outcome::Acquired,
            "not acquired: {:?} (AGENTHUB_MAX_LIVE_RUNS holds parked runs, too)",
            acquired.outcome
        );
        Ok(acquired.outbox)
    }
}

fn numbers(entries: &[OutboxEntry]) -> impl Iterator<Item = u64> {
    entries.iter().map(|entry| entry.number)
}
