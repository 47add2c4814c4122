//! What travels over Kafka: wire types, headers and signatures. Pure data; no I/O.
//!
//! Values are JSON, headers are CloudEvents 1.0 in binary mode plus `traceparent` and our own
//! `ah_*`. Every value carries a schema version `v`; a reader accepts the versions before its own
//! (`version.rs`).
//!
//! Invariant: a type here serialises to what `topics/schemas/` documents.

mod audit;
mod command;
mod dead_letter;
mod event;
mod record;
mod signature;
mod state;
mod told;
mod version;

pub use audit::{AuditDecision, AuditRecord, ResolvedStep};
pub use command::{Command, CommandKind, OnConflict, RunKind, RunSpec};
pub use dead_letter::{DeadLetter, FailureClass, LetterId, RunEnd};
pub use event::{Event, EventBatch, EventId, EventType, QueuedState};
pub use record::{Headers, Outgoing, Topic, UnknownTopic, header};
pub use signature::{SignatureError, Signer};
pub use state::{
    BudgetRecord, KeyPolicy, KeyRecord, RateRule, SessionRecord, State, StateRecord, TenantRecord,
    session_record_key,
};
pub use told::{Data, Told};
pub use version::{OLDEST_VERSION, SCHEMA_VERSION, Unreadable, Versioned, read};
