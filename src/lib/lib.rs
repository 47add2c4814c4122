//! AgentHub: an event-driven runtime for LLM agents over Apache Kafka.
//!
//! The rooms stand in the order in which a request flows through them; `ARCHITECTURE.md` tells what
//! each one promises. The direction of dependencies is checked by `tests/it/architecture.rs`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod app;
pub mod cli;
pub mod config;

pub mod api;
pub mod governance;
pub mod stream;

pub mod dlq;
pub mod executor;
pub mod planner;
pub mod replay;
pub mod rollup;
pub mod worker;

pub mod kafka;
pub mod llm;
pub mod net;
pub mod runs;
pub mod store;
pub mod tools;

pub mod error;
pub mod ids;
pub mod messages;
pub mod plan;
pub mod pricing;
pub mod privacy;

pub mod runtime;
pub mod telemetry;
