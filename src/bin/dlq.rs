//! The indexer of dead letters.

use std::process::ExitCode;

fn main() -> ExitCode {
    agenthub::app::dlq()
}
