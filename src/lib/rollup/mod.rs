//! The audit roll-up: `audit.logs` becomes Parquet files in an object store, and a chain of signed
//! manifests that proves what they hold.
//!
//! What it promises:
//! - Files are `audit/date=<day>/hour=<hour>/tenant=<tenant>/<topic>-<partition>-<start>-<hash>.parquet`,
//!   by the records' own time in UTC; `start` is the first offset of the range that they belong to.
//! - Each record of the topic is in one listed file, whatever dies when. A manifest, written after its
//!   files and only if there is none of its name, lists the files of one range of offsets of a
//!   partition, with their hashes. The manifests of a partition form a chain: each is named by where it
//!   begins, which is where the one before it ends, names that one's hash, and is signed; so of two
//!   processes that write the same range one wins, and the other drops what the winner's manifest
//!   covers. Files that no manifest lists are leftovers, to be ignored by readers.
//! - A record that does not verify or decode goes to `dead.letter`, before the manifest of its range.
//! - An offset is committed only after the manifest that covers it. Work resumes from the last manifest,
//!   not from the committed offset, and only if that manifest's signature is believed.
//! - The end of each chain is told as a signed head: in Redis, for the API, and now and then on
//!   `audit.logs` itself.
//!
//! A producer that was not sure of its acknowledgement may have written a record twice; both are in
//! the files, and have the same `id`.

mod batch;
mod chain;
mod files;
mod heads;
mod inspect;
mod intake;
mod keeping;
mod keys;
mod layout;
mod manifest;
mod parquet;
mod position;
mod query;
mod retention;
mod row;
mod signed;
mod table;
mod totals;
mod verify;
mod writer;

pub use chain::{Chain, ChainError};
pub use intake::{Limits, Rollup};
pub use keeping::{Keeper, Retention};
pub use keys::{AuditSigner, PublicKeys};
pub use manifest::{Head, ListedFile, ListedTotals, Manifest};
pub use query::{Query, QueryError, Reader, Record, record_columns};
pub use retention::{Expiry, Removed, expire};
pub use signed::SignedError;
pub use totals::{HourlyTotals, Totals};
pub use verify::{Misfit, Verified, VerifiedChain, VerifyError, VerifyOptions, verify};
pub use writer::{RollupError, Writer, WriterParts};
