//! The circuit breakers of a worker: one for each target of a tool and tenant, and for each endpoint of
//! a model. Each worker decides by what it sees itself; what it decides is shared through Redis, and
//! read at most once a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::executor::breaker::{
    ASK_AGAIN, Admission, Breaker, Change, Pass, Phase, Rules, Shared, Verdict,
};
use crate::ids::TenantId;
use crate::privacy::KeyCache;
use crate::runtime::{Supervisor, clock};
use crate::store::{OpenBreaker, Redis};

/// What was read of the other workers' breakers holds so long.
const FRESH: Duration = Duration::from_secs(1);
/// Reading them may not hold a step up for longer.
const READ_TIMEOUT: Duration = Duration::from_millis(500);
/// A probe of a worker that died counts no longer.
const PROBE_LASTS: Duration = Duration::from_mins(2);
/// Breakers of one tenant, and tenants, that are kept at hand; closed ones go first.
const MOST: usize = 4096;

/// What a breaker stands before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// Whose breaker it is.
    pub tenant: TenantId,
    /// Its name in Redis, which tells nothing but the tool: `<tool>`, or `<tool>|<digest of its target>`.
    pub name: String,
    /// For metrics and logs: the tool.
    pub tool: String,
}

impl Guarded {
    /// An endpoint of a model: it is everybody's.
    pub fn endpoint(name: &str) -> Self {
        let name = format!("llm/{name}");
        Self {
            tenant: TenantId::system(),
            tool: name.clone(),
            name,
        }
    }
}

/// The breakers of a worker.
#[derive(Debug)]
pub struct Breakers {
    redis: Redis,
    keys: KeyCache,
    supervisor: Supervisor,
    rules: Rules,
    tenants: Mutex<HashMap<TenantId, Tenant>>,
}

#[derive(Debug, Default)]
struct Tenant {
    read_ms: Option<u64>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    tool: String,
    breaker: Breaker,
    /// When it last changed here; what was read before says nothing of it.
    changed_ms: u64,
    used_ms: u64,
    /// Whether the other workers have not heard of its last change.
    unshared: bool,
}

/// Leave to make a call. Dropped without a report, it says nothing of the other side.
#[derive(Debug)]
pub struct Permit {
    breakers: Arc<Breakers>,
    guarded: Guarded,
    pass: Pass,
    /// The name of the probe that the other workers know of.
    probe: Option<String>,
    reported: bool,
    /// From when on a drop is not a change of mind, but the end of somebody's patience.
    hangs_at: Option<Instant>,
}

impl Permit {
    /// From `patience` on, a drop without a report means that the other side hangs.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.hangs_at = Some(Instant::now() + patience);
        self
    }

    /// Says what the call says of the other side.
    pub fn report(mut self, verdict: Verdict) {
        self.say(verdict);
    }

    fn say(&mut self, verdict: Verdict) {
        self.reported = true;
        self.breakers.report(&self.guarded, self.pass, verdict);
        if let Some(probe) = self.probe.take() {
            let (redis, guarded) = (self.breakers.redis.clone(), self.guarded.clone());
            self.breakers.supervisor.run_once("breaker", async move {
                let ended = redis.end_probe(&guarded.tenant, &guarded.name, &probe);
                if let Err(error) = ended.await {
                    tracing::debug!(%error, "the end of a probe was not shared");
                }
            });
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.reported {
            let hangs = self.hangs_at.is_some_and(|at| Instant::now() >= at);
            self.say(if hangs {
                Verdict::Failure
            } else {
                Verdict::Nothing
            });
        }
    }
}

impl Breakers {
    /// Breakers that are all closed.
    pub fn new(redis: Redis, keys: KeyCache, supervisor: Supervisor, settings: &Settings) -> Self {
        Self {
            redis,
            keys,
            supervisor,
            rules: Rules {
                consecutive: settings.breaker_failures,
                window: settings.breaker_window_ms.duration(),
                min_calls: settings.breaker_min_calls,
                failure_percent: settings.breaker_failure_percent,
                open: settings.breaker_open_ms.duration(),
                probes: settings.breaker_probes,
            },
            tenants: Mutex::default(),
        }
    }

    /// What the breaker of a tool, or of one of its targets, stands before.
    pub fn of_tool(&self, tenant: &TenantId, tool: &str, target: Option<&str>) -> Guarded {
        let name = target.map_or_else(
            || tool.to_owned(),
            |target| {
                let key = self.keys.tenant_key(tenant);
                let digest = key.digest(&[b"target", tool.as_bytes(), target.as_bytes()]);
                format!("{tool}|{}", &digest[..32])
            },
        );
        Guarded {
            tenant: tenant.clone(),
            name,
            tool: tool.to_owned(),
        }
    }

    /// Reads what the other workers have found out of a tenant's breakers, unless that was read within
    /// the last second. When Redis does not answer, what this worker knows has to do.
    pub async fn read(&self, tenant: &TenantId) {
        let now = clock::now_ms();
        let first = {
            let mut tenants = self.tenants();
            if tenants.len() >= MOST && !tenants.contains_key(tenant) {
                tenants.retain(|_, kept| !kept.is_at_rest(now));
            }
            let known = tenants.entry(tenant.clone()).or_default();
            let fresh = known.read_ms.is_some_and(|read| now < read + millis(FRESH));
            if fresh {
                return;
            }
            let first = known.read_ms.is_none();
            if !first {
                // Who comes next within the second does not read again, nor wait for this one.
                known.read_ms = Some(now);
            }
            first
        };
        let read = tokio::time::timeout(READ_TIMEOUT, self.redis.open_breakers(tenant)).await;
        match read {
            Ok(Ok(open)) => self.adopt(tenant, now, open),
            Ok(Err(error)) => tracing::debug!(%error, "shared breakers were not read"),
            Err(_) => tracing::debug!("shared breakers were not read in time"),
        }
        if first {
            // Until here nothing was known of the tenant: whoever came meanwhile read for itself, since a
            // breaker that others opened must not be taken for a closed one.
            self.tenants().entry(tenant.clone()).or_default().read_ms = Some(now);
        }
    }

    /// Whether calls pass without further ado, as far as this worker knows.
    pub fn is_closed(&self, guarded: &Guarded) -> bool {
        self.phase(guarded) == Phase::Closed
    }

    /// The phase of a breaker, as far as this worker knows.
    pub fn phase(&self, guarded: &Guarded) -> Phase {
        let tenants = self.tenants();
        let entry = tenants
            .get(&guarded.tenant)
            .and_then(|tenant| tenant.entries.get(&guarded.name));
        entry.map_or(Phase::Closed, |entry| entry.breaker.phase(clock::now_ms()))
    }

    /// How long until a call may pass; nothing when one may now.
    pub fn wait(&self, guarded: &Guarded) -> Duration {
        let now = clock::now_ms();
        let tenants = self.tenants();
        let entry = tenants
            .get(&guarded.tenant)
            .and_then(|tenant| tenant.entries.get(&guarded.name));
        let asked = entry.map(|entry| entry.breaker.clone().admit(now).0);
        match asked {
            Some(Admission::Wait(wait)) => wait,
            Some(Admission::Pass(_)) | None => Duration::ZERO,
        }
    }

    /// Leave to make a call, or the time to wait before asking again.
    pub async fn admit(self: &Arc<Self>, guarded: &Guarded) -> Result<Permit, Duration> {
        self.read(&guarded.tenant).await;
        let now = clock::now_ms();
        let admission = self.with(guarded, now, |entry| entry.breaker.admit(now));
        let pass = match admission {
            Admission::Wait(wait) => return Err(wait),
            Admission::Pass(pass) => pass,
        };
        let mut permit = Permit {
            breakers: self.clone(),
            guarded: guarded.clone(),
            pass,
            probe: None,
            reported: false,
            hangs_at: None,
        };
        if pass.probe {
            let probe = uuid::Uuid::now_v7().to_string();
            let begun = self.redis.begin_probe(
                &guarded.tenant,
                &guarded.name,
                &probe,
                self.rules.probes,
                PROBE_LASTS,
            );
            match begun.await {
                Ok(true) => permit.probe = Some(probe),
                Ok(false) => return Err(ASK_AGAIN), // the permit's drop gives the pass back
                Err(error) => tracing::debug!(%error, "the probe is this worker's alone"),
            }
        }
        Ok(permit)
    }

    fn report(self: &Arc<Self>, guarded: &Guarded, pass: Pass, verdict: Verdict) {
        let now = clock::now_ms();
        let mut changed = None;
        self.with(guarded, now, |entry| {
            changed = entry.breaker.report(now, pass, verdict);
            entry.unshared |= changed.is_some();
            ((), changed)
        });
        if let Some(change) = changed {
            self.share(guarded.clone(), change, now);
        }
    }

    /// Tells the other workers, while the work goes on.
    fn share(self: &Arc<Self>, guarded: Guarded, change: Change, at_ms: u64) {
        let this = self.clone();
        self.supervisor.run_once("breaker", async move {
            let (tenant, name) = (&guarded.tenant, guarded.name.as_str());
            let shared = match change {
                Change::Opened { lasts, trips } => {
                    this.redis.share_open(tenant, name, lasts, trips).await
                }
                Change::Closed => this.redis.share_closed(tenant, name).await,
                Change::HalfOpened => Ok(()),
            };
            match shared {
                Ok(()) => this.with(&guarded, at_ms, |entry| {
                    if entry.changed_ms == at_ms {
                        entry.unshared = false;
                        entry.changed_ms = clock::now_ms();
                    }
                    ((), None)
                }),
                // It holds here; the others find out by themselves.
                Err(error) => {
                    tracing::warn!(%error, tool = guarded.tool, "a breaker was not shared");
                }
            }
        });
    }

    /// Takes in what was read at `read_ms`.
    fn adopt(&self, tenant: &TenantId, read_ms: u64, open: Vec<OpenBreaker>) {
        let now = clock::now_ms();
        let mut shared: HashMap<String, Shared> = HashMap::new();
        for breaker in open {
            let guarded = Guarded {
                tenant: tenant.clone(),
                tool: breaker.tool().to_owned(),
                name: breaker.name,
            };
            self.with(&guarded, now, |_| ((), None));
            let (remaining, trips) = (breaker.remaining, breaker.trips);
            shared.insert(guarded.name, Shared { remaining, trips });
        }
        let mut tenants = self.tenants();
        let Some(known) = tenants.get_mut(tenant) else {
            return;
        };
        let mut to_show = !shared.is_empty();
        for (name, entry) in &mut known.entries {
            let theirs = shared.get(name).copied();
            // What changed here meanwhile, or is not shared yet, is not undone by an older look.
            if theirs.is_none() && (entry.unshared || entry.changed_ms >= read_ms) {
                continue;
            }
            if let Some(change) = entry.breaker.adopt(now, theirs) {
                entry.changed_ms = now;
                to_show = true;
                tell(&entry.tool, change, "shared");
            }
        }
        drop(tenants);
        if to_show {
            self.show();
        }
    }

    fn with<T>(
        &self,
        guarded: &Guarded,
        now: u64,
        act: impl FnOnce(&mut Entry) -> (T, Option<Change>),
    ) -> T {
        let mut tenants = self.tenants();
        let tenant = tenants.entry(guarded.tenant.clone()).or_default();
        if tenant.entries.len() >= MOST && !tenant.entries.contains_key(&guarded.name) {
            tenant.entries.retain(|_, entry| !entry.is_at_rest(now));
        }
        let entry = tenant.entries.entry(guarded.name.clone());
        let entry = entry.or_insert_with(|| Entry {
            tool: guarded.tool.clone(),
            breaker: Breaker::new(self.rules),
            changed_ms: 0,
            used_ms: now,
            unshared: false,
        });
        entry.used_ms = now;
        let (value, change) = act(entry);
        if let Some(change) = change {
            entry.changed_ms = now;
            tell(&entry.tool, change, "here");
            drop(tenants);
            self.show();
        }
        value
    }

    /// The gauge of each tool: the worst of its breakers that this worker knows.
    fn show(&self) {
        let now = clock::now_ms();
        let mut worst: HashMap<String, u8> = HashMap::new();
        for tenant in self.tenants().values() {
            for entry in tenant.entries.values() {
                let phase = match entry.breaker.phase(now) {
                    Phase::Closed => 0,
                    Phase::HalfOpen => 1,
                    Phase::Open => 2,
                };
                let worst = worst.entry(entry.tool.clone()).or_default();
                *worst = phase.max(*worst);
            }
        }
        for (tool, phase) in worst {
            metrics::gauge!("agenthub_breaker_state", "tool" => tool).set(f64::from(phase));
        }
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, Tenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenant {
    fn is_at_rest(&self, now: u64) -> bool {
        self.entries.values().all(|entry| entry.is_at_rest(now))
    }
}

impl Entry {
    /// Whether forgetting it loses nothing of weight.
    fn is_at_rest(&self, now: u64) -> bool {
        self.breaker.phase(now) == Phase::Closed && now > self.used_ms + 60_000
    }
}

fn tell(tool: &str, change: Change, found: &'static str) {
    let to = match change {
        Change::Opened { lasts, trips } => {
            let open_ms = millis(lasts);
            tracing::warn!(tool, found, open_ms, trips, "a circuit breaker opened");
            "open"
        }
        Change::HalfOpened => {
            tracing::info!(tool, found, "a circuit breaker lets probes pass");
            "half_open"
        }
        Change::Closed => {
            tracing::info!(tool, found, "a circuit breaker closed");
            "closed"
        }
    };
    metrics::counter!("agenthub_breaker_transitions_total", "tool" => tool.to_owned(), "to" => to)
        .increment(1);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
