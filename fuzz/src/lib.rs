//! The rooms of AgentHub that are fuzzed, made of the same files as the product, and without the libraries of
//! the others: Kafka, Arrow and search would take a quarter of an hour to instrument and are not fuzzed.

#![allow(dead_code, missing_docs, unused_imports)]

#[path = "../../src/lib/ids.rs"]
pub mod ids;
#[path = "../../src/lib/messages/mod.rs"]
pub mod messages;
#[path = "../../src/lib/privacy/mod.rs"]
pub mod privacy;

pub mod governance;
pub mod net;
