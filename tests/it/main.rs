//! Integration tests against real Kafka and Redis.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kafka;
mod ledger;
mod main_job;
mod support;
