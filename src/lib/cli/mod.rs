//! The operator's command line. One module per command; each has its arguments and a `run`.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

mod audit;
pub mod check_url;
mod client;
pub mod config;
pub mod dlq;
pub mod docs;
pub mod erase;
mod follow;
pub mod keys;
pub mod mask;
mod output;
pub mod replay;
pub mod run;
pub mod runs;
#[cfg(test)]
mod tests;
pub mod tools;
pub mod topics;
pub mod watch;
pub mod why;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// AgentHub's command line: governs, runs and watches LLM agents over Apache Kafka.
#[derive(Debug, Parser)]
#[command(name = "agenthub", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit a goal and follow the run to its end.
    Run(run::Args),
    /// Follow a run to its end.
    Watch(watch::Args),
    /// Tell the whole story of a run, and why it ended as it did.
    Why(why::Args),
    /// List, show, cancel, retry and resolve runs.
    Runs(runs::Args),
    /// List the tools that plans may use.
    Tools(tools::Args),
    /// Add documents to a tenant's corpus.
    Docs(docs::Args),
    /// Create, list, rotate and revoke API keys.
    Keys(keys::Args),
    /// Create, check and describe the topics.
    Topics(topics::Args),
    /// Print, keep or re-enqueue what topics hold.
    Replay(Box<replay::Args>),
    /// Erase a session, or what is known of somebody.
    Erase(erase::Args),
    /// List, show and redrive dead letters.
    Dlq(dlq::Args),
    /// Verify, read and expire the audit files, and make their keys.
    Audit(audit::Args),
    /// Mask secrets and personal data in standard input.
    Mask(mask::Args),
    /// Say whether a tool may fetch a URL, and why.
    CheckUrl(check_url::Args),
    /// Check and show the configuration.
    Config(config::Args),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// Runs the command that was given and returns the process' exit code.
    pub async fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Run(args) => run::run(args).await,
            Command::Watch(args) => watch::run(args).await,
            Command::Why(args) => why::run(args).await,
            Command::Runs(args) => runs::run(args).await,
            Command::Tools(args) => tools::run(args).await,
            Command::Docs(args) => docs::run(args).await,
            Command::Keys(args) => keys::run(args).await,
            Command::Topics(args) => topics::run(args).await,
            Command::Replay(args) => replay::run(*args).await,
            Command::Erase(args) => erase::run(args).await,
            Command::Dlq(args) => dlq::run(args).await,
            Command::Audit(args) => audit::run(args).await,
            Command::Mask(args) => mask::run(args).await,
            Command::CheckUrl(args) => check_url::run(args).await,
            Command::Config(args) => config::run(args).await,
            Command::Completions { shell } => {
                clap_complete::generate(
                    shell,
                    &mut Cli::command(),
                    "agenthub",
                    &mut std::io::stdout(),
                );
                Ok(ExitCode::SUCCESS)
            }
        };
        outcome.unwrap_or_else(|error| {
            eprintln!("agenthub: {error:#}");
            ExitCode::FAILURE
        })
    }
}
