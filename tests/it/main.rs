//! Integration tests against real Kafka and Redis.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod dlq;
mod kafka;
mod rollup;
