//! Integration tests: against real Kafka and Redis, and of the source and its documentation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A test tells one story, however long, and its tables are read once.
#![allow(clippy::too_many_lines, clippy::type_complexity, clippy::similar_names)]

mod api;
mod architecture;
mod bad_input;
mod budgets;
mod consumers;
mod dead_letters;
mod dlq;
mod documentation;
mod faults;
mod kafka;
mod ledger;
mod main_job;
mod outages;
mod retry;
mod rollup;
mod scaling;
mod state_machine;
mod streams;
mod support;
