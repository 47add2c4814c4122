//! `agenthub-llm-sim`: a server that speaks OpenAI's chat-completions format and answers by rules,
//! for development without a provider, for tests and for load.
//!
//! It is a simulator and says so: in its name, its model list, its fingerprint and its log. The same
//! request has the same answer. `goal` reads what a goal asks for, `plan` makes function calls of
//! it, `respond` puts a conversation to these, `wire` and `stream` are the format, `server` the
//! HTTP side. `usage` counts a quarter of the bytes as tokens.
#![doc = ""]
#![doc = include_str!("SCRIPTS.md")]

mod connection;
mod goal;
mod plan;
mod respond;
mod script;
mod server;
mod stream;
mod summary;
mod wire;

#[cfg(test)]
pub(super) mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use script::ScriptError;
pub use server::{Simulator, serve};

/// A simulator of an OpenAI-compatible endpoint: no language model, but fixed rules.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "agenthub-llm-sim", version, after_long_help = include_str!("SCRIPTS.md"))]
pub struct Options {
    /// Address to listen on; port 0 takes a free one. Printed as `{"listening":"ADDRESS:PORT"}`.
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub addr: SocketAddr,
    /// Milliseconds before each answer.
    #[arg(long, default_value_t = 0)]
    pub latency_ms: u64,
    /// Further milliseconds, from 0 to this, the same for the same request.
    #[arg(long, default_value_t = 0)]
    pub jitter_ms: u64,
    /// File with scripted answers (see below, or `--help`).
    #[arg(long)]
    pub script: Option<PathBuf>,
}
