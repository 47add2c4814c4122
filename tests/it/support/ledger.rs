//! A ledger of one tenant on the real Redis, without any process.

use std::time::Duration;

use agenthub::config::Rule;
use agenthub::ids::{KeyId, RunId, SessionId, TenantId};
use agenthub::messages::{CommandKind, KeyPolicy, KeyRecord, RunKind, Told};
use agenthub::runs::{
    Acquire, Acquired, Admission, Admit, Admitting, Begin, Claim, Gate, Next, Recorded, RunStatus,
    Runs, SessionCreation, Transition,
};
use agenthub::store::Redis;
use redis::AsyncCommands;

use super::{namespace, settings};

/// A ledger, one tenant, one session.
pub struct Ledger {
    pub runs: Runs,
    pub redis: Redis,
    pub tenant: TenantId,
    pub session: SessionId,
    pub key_id: KeyId,
}

/// Hash of the secret of the ledger's key.
pub const SECRET_HASH: &str = "5ec4e7";

impl Ledger {
    pub async fn new(extra: &[(&str, &str)]) -> Self {
        let settings = settings(&namespace(), extra);
        let redis = Redis::connect(&settings, Duration::from_secs(5)).unwrap();
        let ledger = Self {
            runs: Runs::new(redis.clone(), &settings),
            redis,
            tenant: "acme".parse().unwrap(),
            session: SessionId::generate(),
            key_id: KeyId::generate(),
        };
        ledger.put_key("client", "active").await;
        ledger.redis.add_tenant(&ledger.tenant).await.unwrap();
        ledger.create_session(&ledger.session).await;
        ledger
    }

    pub async fn put_key(&self, role: &str, status: &str) {
        let record = KeyRecord {
            tenant: self.tenant.clone(),
            key_id: self.key_id.clone(),
            name: "test".into(),
            role: role.into(),
            status: status.into(),
            version: 1,
            hash: SECRET_HASH.into(),
            old_hash: None,
            old_until_ms: None,
            created_ms: 1,
            expires_ms: None,
            rotated_by: None,
            policy: KeyPolicy::default(),
        };
        self.redis.put_key(&record).await.unwrap();
    }

    pub async fn create_session(&self, session: &SessionId) {
        let creation = SessionCreation {
            session,
            key: "wrapped",
            context: None,
            subject: None,
            metadata: None,
            budget: None,
            ttl_ms: 60_000,
            key_id: &self.key_id,
            generation: 1,
            claim: None,
        };
        self.runs
            .create_session(&self.tenant, &creation)
            .await
            .unwrap();
    }

    pub fn gate(&self, rules: &[Rule]) -> Gate {
        Gate {
            key_id: self.key_id.clone(),
            secret_hash: SECRET_HASH.into(),
            roles: vec!["client", "admin"],
            ip: None,
            model: None,
            tools: Vec::new(),
            tools_allowed: None,
            not_before: None,
            cost: 1,
            key_rules: rules.iter().map(|r| (*r).into()).collect(),
            tenant_rules: Vec::new(),
        }
    }

    pub async fn try_admit(&self, run: &RunId, change: impl FnOnce(&mut Admit<'_>)) -> Admission {
        let spec = spec(run, &self.session);
        let mut admit = Admit {
            gate: self.gate(&[]),
            idempotency: None::<Claim<'_>>,
            tenant: &self.tenant,
            run,
            session: &self.session,
            kind: RunKind::PlanExecute,
            stage: CommandKind::Plan,
            spec: &spec,
            deadline: now_ms() + 60_000,
            parallel: false,
            reject: false,
            budget: None,
            retry_of: None,
            traceparent: None,
            plan: None,
            queued: Told::nothing(),
            queued_state: None,
            audit: "{}",
        };
        change(&mut admit);
        self.runs.admit(&admit).await.unwrap()
    }

    pub async fn admit(&self) -> RunId {
        let run = RunId::generate();
        self.admitted(&run).await;
        run
    }

    pub async fn admitted(&self, run: &RunId) -> Admitting {
        match self.try_admit(run, |_| {}).await {
            Admission::Admitted(admitting) => admitting,
            other => panic!("not admitted: {other:?}"),
        }
    }

    pub async fn acquire(&self, run: &RunId, owner: &str, stage: CommandKind) -> Acquired {
        self.acquire_for(run, owner, stage, 10_000).await
    }

    pub async fn acquire_for(
        &self,
        run: &RunId,
        owner: &str,
        stage: CommandKind,
        lease_ms: u64,
    ) -> Acquired {
        self.acquire_of(run, owner, stage, lease_ms, 3).await
    }

    pub async fn acquire_turn(
        &self,
        run: &RunId,
        owner: &str,
        stage: CommandKind,
        turn: u32,
    ) -> Acquired {
        self.take(run, owner, stage, (10_000, 3), turn).await
    }

    pub async fn acquire_of(
        &self,
        run: &RunId,
        owner: &str,
        stage: CommandKind,
        lease_ms: u64,
        max_deliveries: u32,
    ) -> Acquired {
        self.take(run, owner, stage, (lease_ms, max_deliveries), 0)
            .await
    }

    async fn take(
        &self,
        run: &RunId,
        owner: &str,
        stage: CommandKind,
        (lease_ms, max_deliveries): (u64, u32),
        turn: u32,
    ) -> Acquired {
        let spec = spec(run, &self.session);
        let acquire = Acquire {
            run,
            session: &self.session,
            owner,
            lease_ms,
            stage,
            max_deliveries,
            not_after: now_ms() + 60_000,
            spec: &spec,
            plan: None,
            kind: RunKind::PlanExecute,
            turn,
            created: now_ms(),
            deadline: now_ms() + 60_000,
            parallel: false,
            traceparent: None,
            key_id: &self.key_id,
            budget: None,
            retry_of: None,
            begin: Begin::default(),
        };
        self.runs.acquire(&self.tenant, &acquire).await.unwrap()
    }

    pub async fn record(
        &self,
        run: &RunId,
        owner: &str,
        number: u64,
        next: Option<Next>,
    ) -> Recorded {
        let mut transition = Transition::new(run, owner, number);
        transition.next = next;
        self.runs.record(&self.tenant, &transition).await.unwrap()
    }

    pub async fn status(&self, run: &RunId) -> Option<RunStatus> {
        let status: Option<String> = self
            .redis
            .connection()
            .hget(self.key(&format!("run:{run}")), "status")
            .await
            .unwrap();
        status.and_then(|s| s.parse().ok())
    }

    pub fn key(&self, rest: &str) -> String {
        format!("{}:{rest}", self.redis.base(&self.tenant))
    }

    /// The terminal events that a run has told.
    pub async fn terminal_events(&self, run: &RunId) -> usize {
        let beginning = "0-0".parse().unwrap();
        let history = self
            .runs
            .history(&self.tenant, &self.session, beginning, 10_000)
            .await
            .unwrap();
        history
            .iter()
            .filter(|e| e.run_id == *run && e.event_type.is_terminal())
            .count()
    }

    pub async fn timer(&self, run: &RunId) -> Option<u64> {
        self.redis
            .connection()
            .zscore(self.key("timers"), run.as_str())
            .await
            .unwrap()
    }

    pub async fn outbox_len(&self, run: &RunId) -> usize {
        let fields: Vec<String> = self
            .redis
            .connection()
            .hkeys(self.key(&format!("run:{run}")))
            .await
            .unwrap();
        fields.iter().filter(|f| f.starts_with("o:")).count()
    }
}

#[allow(clippy::unnecessary_wraps)] // what `record` takes
pub fn end(status: RunStatus) -> Option<Next> {
    Some(Next::End {
        status,
        data: Told::nothing(),
        state: None,
    })
}

pub fn now_ms() -> u64 {
    agenthub::runtime::clock::now_ms()
}

fn spec(run: &RunId, session: &SessionId) -> String {
    format!(r#"{{"run_id":"{run}","session_id":"{session}"}}"#)
}
