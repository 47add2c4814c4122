//! The transitions and reads that the API makes. Each passes the gate inside its script.

use std::collections::HashMap;

use redis::{AsyncCommands, Value};
use serde::Serialize;

use super::reply::{Reply, unexpected};
use super::{Gate, LimitRow, OutboxEntry, Refusal, RunStatus, RunView, Runs, SessionView, scripts};
use crate::ids::{KeyId, RunId, SessionId, TenantId};
use crate::messages::{CommandKind, RunKind, Told};
use crate::privacy::Sealed;
use crate::store::StoreError;

/// A request to start a run.
#[derive(Debug, Serialize)]
pub struct Admit<'a> {
    /// Who asks.
    pub gate: Gate,
    /// The claim of its `Idempotency-Key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Claim<'a>>,
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The run to be.
    pub run: &'a RunId,
    /// Its session.
    pub session: &'a SessionId,
    /// What it does.
    pub kind: RunKind,
    /// Which worker has it first.
    pub stage: CommandKind,
    /// JSON text of its specification, without what its key allows, which the gate tells.
    pub spec: &'a str,
    /// Milliseconds since the epoch at which it times out.
    pub deadline: u64,
    /// Whether it waits for no other run of its session.
    pub parallel: bool,
    /// Whether it is refused when its session has a live run.
    pub reject: bool,
    /// The most that it may cost, in millionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// The run whose finished steps it takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<&'a RunId>,
    /// Trace context of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<&'a str>,
    /// The plan of an `execute` run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<&'a Sealed>,
    /// What `run.queued` tells.
    pub queued: Told,
    /// What a rebuild needs beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_state: Option<Sealed>,
    /// JSON text of the audit record.
    pub audit: &'a str,
}

/// The claim of an `Idempotency-Key`.
#[derive(Debug, Serialize)]
pub struct Claim<'a> {
    /// Hash of the key and its scope, in hexadecimal.
    pub key: &'a str,
    /// Hash of what was asked for, in hexadecimal.
    pub fingerprint: &'a str,
    /// Milliseconds that it is remembered.
    pub ttl_ms: u64,
}

/// A run that starts because an operator redrives a dead letter.
#[derive(Debug, Clone, Serialize)]
pub struct Redrive<'a> {
    /// The letter, by its name in the index.
    pub letter: &'a str,
    /// Whether a letter that was redriven before is redriven again.
    pub force: bool,
    /// Whether the request passed the gate of the operator's own tenant, which governs the others: the
    /// gate's key is then the one that the run is for, and is not asked again.
    pub operator: bool,
}

/// What became of a request to start a run.
#[derive(Debug)]
pub enum Admission {
    /// It was refused.
    Refused(Refusal),
    /// The same request started this run before.
    Replayed {
        /// Where the limits stand.
        limits: Vec<LimitRow>,
        /// The run.
        run: RunId,
    },
    /// The run is in the ledger.
    Admitted(Admitting),
}

/// A run that is in the ledger, and whose outbox is still to be produced.
#[derive(Debug)]
pub struct Admitting {
    /// Where the limits stand.
    pub limits: Vec<LimitRow>,
    /// What is to be produced.
    pub outbox: Vec<OutboxEntry>,
    /// The role of the key.
    pub role: String,
}

/// What became of a request to cancel a run.
#[derive(Debug)]
pub enum Cancel {
    /// It was refused.
    Refused(Refusal),
    /// The run had ended before.
    Ended {
        /// Where the limits stand.
        limits: Vec<LimitRow>,
        /// How it ended.
        status: Option<RunStatus>,
    },
    /// It has ended, or its worker will hear of it.
    Accepted {
        /// Where the limits stand.
        limits: Vec<LimitRow>,
        /// `cancelled` or `cancelling`.
        status: Option<RunStatus>,
        /// What is to be produced.
        outbox: Vec<OutboxEntry>,
        /// The kind of the run when it ended with this.
        ended: Option<RunKind>,
    },
}

/// What became of a step whose outcome is unknown.
#[derive(Debug, Serialize)]
pub struct Resolve<'a> {
    /// Who says so.
    pub gate: Gate,
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The run.
    pub run: &'a RunId,
    /// The step.
    pub step: &'a str,
    /// JSON text of the step's entry as it was read.
    pub was: &'a str,
    /// JSON text of the step's entry as it is to be.
    pub entry: &'a str,
    /// Names the audit record.
    pub audit_id: &'a str,
    /// JSON text of the audit record.
    pub audit: &'a str,
}

/// What became of a [`Resolve`].
#[derive(Debug)]
pub enum Resolved {
    /// It was refused.
    Refused(Refusal),
    /// It is in the journal.
    Done {
        /// Where the limits stand.
        limits: Vec<LimitRow>,
        /// What is to be produced.
        outbox: Vec<OutboxEntry>,
    },
}

/// What a governed read gave.
#[derive(Debug)]
pub enum Read<T> {
    /// It was refused.
    Refused(Refusal),
    /// It was allowed.
    Found {
        /// Where the limits stand.
        limits: Vec<LimitRow>,
        /// The role of the key.
        role: String,
        /// Milliseconds since the epoch, by Redis' clock.
        now_ms: u64,
        /// What was read.
        value: T,
    },
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Only runs of this session.
    pub session: Option<SessionId>,
    /// Only what was created before this one.
    pub before: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// A session to be created; `agent.state` already holds it.
#[derive(Debug, Serialize)]
pub struct SessionCreation<'a> {
    /// The session.
    pub session: &'a SessionId,
    /// Its wrapped data key.
    pub key: &'a str,
    /// Its context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<Sealed>,
    /// Whom it is about; sealed text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Sealed>,
    /// The client's own labels; sealed JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Sealed>,
    /// The most that its runs may cost together, in millionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// Milliseconds to live.
    pub ttl_ms: u64,
    /// The key that created it.
    pub key_id: &'a KeyId,
    /// Generation of its event numbers.
    pub generation: u64,
    /// The claim of the request that creates it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<super::Fence>,
}

#[derive(Serialize)]
struct ReadArgs<'a> {
    gate: Gate,
    want: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'a str>,
    limit: u32,
}

impl Runs {
    /// Admits a request that starts a run, or refuses it; one round trip.
    pub async fn admit(&self, admit: &Admit<'_>) -> Result<Admission, StoreError> {
        self.admit_as(admit, admit.tenant).await
    }

    /// As [`Runs::admit`], for a run that goes on after one that became a dead letter. The letter is
    /// marked in the same transition; one that was redriven before answers with that run.
    pub async fn admit_redrive(
        &self,
        admit: &Admit<'_>,
        redrive: &Redrive<'_>,
    ) -> Result<Admission, StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            #[serde(flatten)]
            admit: &'a Admit<'a>,
            redrive: &'a Redrive<'a>,
        }
        self.admit_as(&Args { admit, redrive }, admit.tenant).await
    }

    async fn admit_as(
        &self,
        args: &impl Serialize,
        tenant: &TenantId,
    ) -> Result<Admission, StoreError> {
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::ADMIT, tenant, args, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        match outcome.as_str() {
            "refused" => Ok(Admission::Refused(reply.refusal()?)),
            "replay" => {
                let limits = reply.limits()?;
                let run: String = reply.next()?;
                let run = run.parse().map_err(|_| unexpected("admit", "no run id"))?;
                Ok(Admission::Replayed { limits, run })
            }
            "admitted" => Ok(Admission::Admitted(Admitting {
                limits: reply.limits()?,
                outbox: reply.outbox(tenant)?,
                role: reply.next()?,
            })),
            other => Err(unexpected("admit", other)),
        }
    }

    /// The run as it is, for a request that passed the gate already.
    pub async fn passed_run(
        &self,
        tenant: &TenantId,
        run: &RunId,
    ) -> Result<Option<RunView>, StoreError> {
        let base = self.redis.base(tenant);
        let mut connection = self.redis.connection();
        let fields: HashMap<String, String> =
            connection.hgetall(format!("{base}:run:{run}")).await?;
        // Of an erased session there may be an outbox left, and nothing else.
        if !fields.contains_key("spec") {
            return Ok(None);
        }
        let key: Option<String> = match fields.get("session") {
            Some(session) => {
                connection
                    .hget(format!("{base}:ses:{session}"), "key")
                    .await?
            }
            None => None,
        };
        let fields = fields
            .into_iter()
            .filter(|(name, _)| !name.starts_with("o:"));
        let flat = fields.flat_map(|(name, value)| [name, value]).collect();
        let key = key.unwrap_or_default();
        Ok(Some(RunView::new(run.clone(), flat, key)))
    }

    /// Ends a run whose command could not be produced, unless a worker has it: `None` then.
    pub async fn abandon(
        &self,
        tenant: &TenantId,
        run: &RunId,
        data: &Told,
    ) -> Result<Option<Vec<OutboxEntry>>, StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            run: &'a RunId,
            data: &'a Told,
        }
        let args = Args { run, data };
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::ABANDON, tenant, &args, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        let outbox = reply.outbox(tenant)?;
        Ok((outcome == "abandoned").then_some(outbox))
    }

    /// Cancels a run.
    pub async fn cancel(
        &self,
        tenant: &TenantId,
        gate: Gate,
        run: &RunId,
        mode: super::CancelMode,
        audit: (&str, &str),
    ) -> Result<Cancel, StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            gate: Gate,
            run: &'a RunId,
            mode: super::CancelMode,
            tenant: &'a TenantId,
            audit_id: &'a str,
            audit: &'a str,
        }
        let args = Args {
            gate,
            run,
            mode,
            tenant,
            audit_id: audit.0,
            audit: audit.1,
        };
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::CANCEL, tenant, &args, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        if outcome == "refused" {
            return Ok(Cancel::Refused(reply.refusal()?));
        }
        let limits = reply.limits()?;
        let status: String = reply.next()?;
        let status = status.parse().ok();
        match outcome.as_str() {
            "ended" => Ok(Cancel::Ended { limits, status }),
            _ => Ok(Cancel::Accepted {
                limits,
                status,
                outbox: reply.outbox(tenant)?,
                ended: reply
                    .next::<Option<String>>()?
                    .and_then(|kind| RunKind::from_name(&kind)),
            }),
        }
    }

    /// Says what became of a step whose outcome is unknown; what is to be produced, or why not.
    pub async fn resolve(
        &self,
        tenant: &TenantId,
        resolve: &Resolve<'_>,
    ) -> Result<Resolved, StoreError> {
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::RESOLVE, tenant, resolve, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        match outcome.as_str() {
            "refused" => Ok(Resolved::Refused(reply.refusal()?)),
            "resolved" => Ok(Resolved::Done {
                limits: reply.limits()?,
                outbox: reply.outbox(tenant)?,
            }),
            other => Err(unexpected("resolve", other)),
        }
    }

    /// Passes the gate and reads nothing.
    pub async fn look(&self, tenant: &TenantId, gate: Gate) -> Result<Read<()>, StoreError> {
        let args = ReadArgs {
            gate,
            want: "nothing",
            id: None,
            before: None,
            limit: 0,
        };
        self.read(tenant, &args, |_| Ok(())).await
    }

    /// A run.
    pub async fn run(
        &self,
        tenant: &TenantId,
        gate: Gate,
        run: &RunId,
    ) -> Result<Read<RunView>, StoreError> {
        let args = ReadArgs {
            gate,
            want: "run",
            id: Some(run.as_str()),
            before: None,
            limit: 0,
        };
        self.read(tenant, &args, |mut reply| {
            let view = RunView::new(run.clone(), reply.next()?, reply.next()?);
            Ok(view)
        })
        .await
    }

    /// The wrapped data key of a session.
    pub async fn session_key(
        &self,
        tenant: &TenantId,
        gate: Gate,
        session: &SessionId,
    ) -> Result<Read<String>, StoreError> {
        let args = ReadArgs {
            gate,
            want: "session_key",
            id: Some(session.as_str()),
            before: None,
            limit: 0,
        };
        self.read(tenant, &args, |mut reply| reply.next()).await
    }

    /// Runs, the newest first.
    pub async fn runs(
        &self,
        tenant: &TenantId,
        gate: Gate,
        listing: &Listing,
    ) -> Result<Read<Vec<RunView>>, StoreError> {
        let args = ReadArgs {
            gate,
            want: "runs",
            id: listing.session.as_ref().map(SessionId::as_str),
            before: listing.before.as_deref(),
            limit: listing.limit,
        };
        self.read(tenant, &args, |mut reply| {
            let mut views = Vec::new();
            while let Some((id, fields, key)) =
                reply.next::<Option<(String, Vec<String>, String)>>()?
            {
                let id = id.parse().map_err(|_| unexpected("read", "no run id"))?;
                views.push(RunView::new(id, fields, key));
            }
            Ok(views)
        })
        .await
    }

    /// Sessions, the newest first.
    pub async fn sessions(
        &self,
        tenant: &TenantId,
        gate: Gate,
        listing: &Listing,
    ) -> Result<Read<Vec<SessionView>>, StoreError> {
        let before = listing.before.as_deref();
        let args = ReadArgs {
            gate,
            want: "sessions",
            id: None,
            before,
            limit: listing.limit,
        };
        self.read(tenant, &args, |mut reply| {
            let mut views = Vec::new();
            while let Some((id, fields, _)) =
                reply.next::<Option<(String, Vec<String>, String)>>()?
            {
                let id = id
                    .parse()
                    .map_err(|_| unexpected("read", "no session id"))?;
                views.push(SessionView::new(id, fields));
            }
            Ok(views)
        })
        .await
    }

    async fn read<T>(
        &self,
        tenant: &TenantId,
        args: &ReadArgs<'_>,
        value: impl FnOnce(Reply) -> Result<T, StoreError>,
    ) -> Result<Read<T>, StoreError> {
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::READ, tenant, args, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        if outcome == "refused" {
            return Ok(Read::Refused(reply.refusal()?));
        }
        let limits = reply.limits()?;
        let role = reply.next()?;
        let now_ms = reply.next()?;
        Ok(Read::Found {
            limits,
            role,
            now_ms,
            value: value(Reply::new(reply.next()?))?,
        })
    }

    /// A session; its time to live begins anew.
    pub async fn session(
        &self,
        tenant: &TenantId,
        gate: Gate,
        session: &SessionId,
    ) -> Result<Read<SessionView>, StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            gate: Gate,
            session: &'a SessionId,
        }
        let args = Args { gate, session };
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::SESSION_READ, tenant, &args, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        if outcome == "refused" {
            return Ok(Read::Refused(reply.refusal()?));
        }
        let limits = reply.limits()?;
        let value = SessionView::new(session.clone(), reply.next()?);
        Ok(Read::Found {
            limits,
            now_ms: reply.next()?,
            role: reply.next()?,
            value,
        })
    }

    /// Creates a session; when it was created and when it expires, in milliseconds since the epoch.
    /// `None` when another attempt at the same request has its claim by now: nothing is created then.
    pub async fn create_session(
        &self,
        tenant: &TenantId,
        creation: &SessionCreation<'_>,
    ) -> Result<Option<(u64, u64)>, StoreError> {
        let times: Vec<String> = self
            .redis
            .invoke(&scripts::SESSION_CREATE, tenant, creation, &self.settings)
            .await?;
        let [created, expires] = times.as_slice() else {
            return Ok(None);
        };
        Ok(Some((
            created.parse().unwrap_or(0),
            expires.parse().unwrap_or(0),
        )))
    }

    /// Whether there is a session, and how many runs it has, for an operator: no gate is passed.
    pub async fn session_extent(
        &self,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<(bool, u64), StoreError> {
        let base = self.redis.base(tenant);
        let mut connection = self.redis.connection();
        let live = connection.exists(format!("{base}:ses:{session}"));
        let live = self.redis.within(live).await?;
        let runs = connection.zcard(format!("{base}:sruns:{session}"));
        Ok((live, self.redis.within(runs).await?))
    }

    /// How many keys of a session there still are.
    pub async fn left_of_session(
        &self,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<u64, StoreError> {
        let base = self.redis.base(tenant);
        let keys: Vec<String> = ["ses", "ev", "sruns", "ord"]
            .iter()
            .map(|kind| format!("{base}:{kind}:{session}"))
            .collect();
        let mut connection = self.redis.connection();
        self.redis.within(connection.exists(keys)).await
    }

    /// Erases a session and its runs; how many there were, and what is to be produced.
    pub async fn delete_session(
        &self,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<(u64, Vec<OutboxEntry>), StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            session: &'a SessionId,
        }
        let values: Vec<Value> = self
            .redis
            .invoke(
                &scripts::SESSION_DELETE,
                tenant,
                &Args { session },
                &self.settings,
            )
            .await?;
        let mut reply = Reply::new(values);
        Ok((reply.next()?, reply.outbox(tenant)?))
    }
}
