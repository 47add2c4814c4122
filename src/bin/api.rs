//! The HTTP API.

use std::process::ExitCode;

fn main() -> ExitCode {
    agenthub::app::api()
}
