//! What is measured.

pub mod load;
pub mod lone;
pub mod masking;
pub mod noisy;
pub mod parked;
pub mod read;
pub mod replay;
pub mod rollup;
pub mod scale;
pub mod slo;
pub mod waiting;

use std::path::PathBuf;

use crate::client::Api;

/// The running stack.
#[derive(Debug, Clone)]
pub struct Stack {
    pub api: Api,
    pub brokers: String,
    pub redis_url: String,
    /// Its state folder.
    pub state: PathBuf,
}
