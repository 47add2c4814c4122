//! The operator's command line.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    agenthub::cli::Cli::parse().run().await
}
