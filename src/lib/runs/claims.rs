//! Claims of `Idempotency-Key`s by requests that start no run.

use redis::Value;
use serde::Serialize;

use super::reply::{Reply, unexpected};
use super::{Gate, LimitRow, Refusal, Runs, scripts};
use crate::ids::TenantId;
use crate::store::StoreError;

/// A claim that is asked for, together with the gate.
#[derive(Debug, Serialize)]
pub struct Claiming<'a> {
    /// Who asks.
    pub gate: Gate,
    /// Hash of the key and its scope, in hexadecimal.
    pub key: &'a str,
    /// Hash of what was asked for, in hexadecimal.
    pub fingerprint: &'a str,
    /// Random name of this attempt; compared by equality.
    pub owner: &'a str,
    /// The id of what the request is to make, unless an earlier attempt has chosen one.
    pub subject: &'a str,
    /// Milliseconds until another attempt may take the claim.
    pub lease_ms: u64,
    /// Milliseconds that the outcome is remembered.
    pub ttl_ms: u64,
}

/// What became of it.
#[derive(Debug)]
pub enum Claimed {
    /// The request was refused, by the gate or by an earlier request with the same key.
    Refused(Refusal),
    /// The request was carried out before.
    Replay {
        /// Where the limits stand.
        limits: Vec<LimitRow>,
        /// The role of the key.
        role: String,
        /// What was answered; sealed.
        answer: String,
    },
    /// The request is this attempt's to carry out.
    Mine {
        /// Where the limits stand.
        limits: Vec<LimitRow>,
        /// The role of the key.
        role: String,
        /// The id of what it is to make.
        subject: String,
        /// Whether an earlier attempt may have made it.
        repeated: bool,
    },
}

/// How a claim ends.
#[derive(Debug, Clone, Copy)]
pub enum ClaimEnd<'a> {
    /// The request was carried out, and answered so; sealed.
    Done(&'a str),
    /// Nothing was done: the key is free again.
    Refused,
    /// It may have been done. The next attempt goes on with the same subject.
    Unknown,
}

/// What only the owner of a claim may write.
#[derive(Debug, Clone, Serialize)]
pub struct Fence {
    /// Hash of the key and its scope.
    pub key: String,
    /// The attempt.
    pub owner: String,
}

impl Runs {
    /// Passes the gate and claims; one round trip.
    pub async fn claim(
        &self,
        tenant: &TenantId,
        claiming: &Claiming<'_>,
    ) -> Result<Claimed, StoreError> {
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::CLAIM, tenant, claiming, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        if outcome == "refused" {
            return Ok(Claimed::Refused(reply.refusal()?));
        }
        let (limits, role) = (reply.limits()?, reply.next()?);
        match outcome.as_str() {
            "replay" => Ok(Claimed::Replay {
                limits,
                role,
                answer: reply.next()?,
            }),
            "claimed" => Ok(Claimed::Mine {
                limits,
                role,
                subject: reply.next()?,
                repeated: reply.next::<String>()? == "1",
            }),
            other => Err(unexpected("claim", other)),
        }
    }

    /// Settles a claim; whether it was still this attempt's.
    pub async fn settle(
        &self,
        tenant: &TenantId,
        fence: &Fence,
        settlement: ClaimEnd<'_>,
        ttl_ms: u64,
    ) -> Result<bool, StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            #[serde(flatten)]
            fence: &'a Fence,
            ttl_ms: u64,
            outcome: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            answer: Option<&'a str>,
        }
        let (outcome, answer) = match settlement {
            ClaimEnd::Done(answer) => ("done", Some(answer)),
            ClaimEnd::Refused => ("refused", None),
            ClaimEnd::Unknown => ("unknown", None),
        };
        let args = Args {
            fence,
            ttl_ms,
            outcome,
            answer,
        };
        let settled: u8 = self
            .redis
            .invoke(&scripts::SETTLE, tenant, &args, &self.settings)
            .await?;
        Ok(settled == 1)
    }
}
