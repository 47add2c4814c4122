//! The audit roll-up.

use std::process::ExitCode;

fn main() -> ExitCode {
    agenthub::app::audit_rollup()
}
