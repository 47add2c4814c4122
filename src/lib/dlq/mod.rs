//! Dead letters: how they are written, and the index by which operators find them.
//!
//! Whoever gives a record or a run up writes a letter ([`letter`]). `agenthub-dlq` indexes each one in
//! Redis, where the API and `agenthub dlq` read it, and posts alerts to the operator's webhook.
//!
//! Invariant: the offset of a record that was given up moves only after its letter is on
//! `dead.letter`, and that of a letter only after it is in the index. Either may happen twice after a
//! crash; a letter's name is the place of its record, so the index holds it once.

mod alerts;
mod indexer;
pub mod letter;
mod view;

pub use alerts::{Alerter, Alerts, alerts};
pub use indexer::Indexer;
pub use view::{Earlier, GroupView, RedrivenView, View};
