//! The planner worker.

use std::process::ExitCode;

fn main() -> ExitCode {
    agenthub::app::worker(agenthub::app::Role::Planner)
}
