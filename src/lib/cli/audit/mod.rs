//! `agenthub audit`: the audit files that the roll-up writes.

mod expire;
mod place;
mod records;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Subcommand;
use secrecy::ExposeSecret;
use serde_json::json;

use super::output::print;
use crate::rollup::AuditSigner;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub audit keygen\n  \
    agenthub audit verify s3://bucket/prefix --public-key audit.pub --head head.json\n  \
    agenthub audit query --tenant demo --from 2026-02-03T04:00:00Z\n\n\
    Where the files are comes from AGENTHUB_STORAGE_URL where it is not given, the keys of an S3\n\
    store from AWS_…")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key pair that signs the audit manifests.
    #[command(after_help = "Examples:\n  \
        agenthub audit keygen\n  \
        agenthub audit keygen --private-key audit.key --public-key audit.pub")]
    Keygen {
        /// The key's name; made from the public key when absent.
        #[arg(long)]
        id: Option<String>,
        /// Write the private key to this new file, readable by its owner alone, and do not print it.
        #[arg(long)]
        private_key: Option<PathBuf>,
        /// Write the public key to this new file as well.
        #[arg(long)]
        public_key: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the public key of `AGENTHUB_AUDIT_SIGNING_KEY`.
    #[command(after_help = "Example:\n  agenthub audit public-key > audit.pub")]
    PublicKey,
    /// Prove that nothing was removed, changed or reordered. Exit code 0: proven; 1: the object that is
    /// named does not fit; 2: it could not be checked.
    Verify(verify::Args),
    /// Print a tenant's records, the earliest first, or what they add up to.
    Query(records::QueryArgs),
    /// Write all of a tenant's records to standard output.
    Export(records::ExportArgs),
    /// Remove files of hours that are old enough, such that verify still passes.
    Expire(expire::Args),
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Keygen {
            id,
            private_key,
            public_key,
            json,
        } => keygen(id, private_key.as_deref(), public_key.as_deref(), json),
        Command::PublicKey => {
            let signer = place::signer(&crate::config::Source::from_process()?)?;
            print(&format!("{}\n", signer.public_text()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify(args) => Ok(verify::run(args).await),
        Command::Query(args) => records::query(args).await,
        Command::Export(args) => records::export(args).await,
        Command::Expire(args) => expire::run(args).await,
    }
}

fn keygen(
    id: Option<String>,
    private_file: Option<&Path>,
    public_file: Option<&Path>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let signer = AuditSigner::generate(id).map_err(|e| anyhow!("--id: {e}"))?;
    let private = signer.private_text();
    let public = signer.public_text();
    if let Some(path) = private_file {
        write_new(path, private.expose_secret(), 0o600)?;
    }
    if let Some(path) = public_file {
        write_new(path, &public, 0o644)?;
    }
    let shown = private_file.is_none().then(|| private.expose_secret());
    let text = if json {
        let mut pair = json!({ "key_id": signer.id(), "public_key": public });
        if let Some(private) = shown {
            pair["private_key"] = json!(private);
        }
        format!("{pair}\n")
    } else {
        let private = shown.map(|key| format!("AGENTHUB_AUDIT_SIGNING_KEY={key}\n"));
        format!("{}# public key: {public}\n", private.unwrap_or_default())
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a file that is not there yet: a key that others still need is not overwritten.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = options
        .open(path)
        .with_context(|| path.display().to_string())?;
    writeln!(file, "{text}").with_context(|| path.display().to_string())
}
