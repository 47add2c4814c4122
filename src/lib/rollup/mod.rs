//! The audit roll-up: `audit.logs` becomes Parquet files in an object store.
//!
//! What it promises today:
//! - Files are `audit/date=<day>/hour=<hour>/tenant=<tenant>/<topic>-<partition>-<first>-<last>.parquet`,
//!   by the records' own time in UTC; the numbers are the offsets of a file's first and last record.
//! - Each record of the topic is in one listed file, whatever dies when. A commit marker, written
//!   after its files and only if there is none of its name, lists the files of one range of offsets
//!   of a partition. The markers of a partition form a chain: each begins where the one before it
//!   ends, and is named by where it begins; so of two processes that write the same range one wins,
//!   and the other drops what the winner's marker covers. Files that no marker lists are leftovers, to
//!   be ignored by readers.
//! - A record that does not verify or decode goes to `dead.letter`, before the marker of its range.
//! - An offset is committed only after the marker that covers it. Work resumes from the last marker,
//!   not from the committed offset.
//!
//! A producer that was not sure of its acknowledgement may have written a record twice; both are in
//! the files, and have the same `id`.

mod batch;
mod commits;
mod intake;
mod layout;
mod parquet;
mod position;
mod row;
mod writer;

pub use commits::{Commits, ListedFile, Marker};
pub use intake::{Limits, Rollup};
pub use writer::{RollupError, Writer};
