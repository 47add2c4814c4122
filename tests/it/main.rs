//! Integration tests: against real Kafka and Redis, and of the source and its documentation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
mod architecture;
mod bad_input;
mod dlq;
mod documentation;
mod faults;
mod kafka;
mod ledger;
mod main_job;
mod outages;
mod rollup;
mod scaling;
mod streams;
mod support;
