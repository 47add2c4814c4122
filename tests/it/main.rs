//! Integration tests: against real Kafka and Redis, and of the source and its documentation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A test tells one story, however long, and its tables are read once.
#![allow(clippy::too_many_lines, clippy::type_complexity, clippy::similar_names)]

mod agent;
mod api;
mod architecture;
mod audit;
mod audit_chain;
mod bad_input;
mod bad_tools;
mod breaker;
mod budgets;
mod cache;
mod chart;
mod cluster;
mod clusters;
mod consumers;
mod dashboards;
mod dead_letters;
mod deployment;
mod dlq;
mod documentation;
mod edges;
mod faults;
mod idempotency;
mod k6;
mod kafka;
mod keys;
mod ledger;
mod logs;
mod main_job;
mod metrics;
mod outages;
mod permissions;
mod properties;
mod rebuild;
mod replay;
mod retry;
mod rollup;
mod round_trips;
mod scaling;
mod secrecy;
mod secure;
mod state_machine;
mod storm;
mod streams;
mod support;
mod tenants;
mod traces;
mod upgrade;
mod why;
