//! Integration tests: against real Kafka and Redis, and of the source and its documentation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod architecture;
mod documentation;
mod kafka;
mod ledger;
mod main_job;
mod support;
