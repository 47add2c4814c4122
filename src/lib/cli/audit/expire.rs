//! `agenthub audit expire`.

use std::process::ExitCode;

use anyhow::anyhow;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::place::{PlaceArgs, open, signer};
use crate::cli::output::print;
use crate::config::Source;
use crate::ids::TenantId;
use crate::rollup::{self, Expiry};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub audit expire --older-than-days 400 --dry-run\n  \
    agenthub audit expire --older-than-days 30 --tenant demo\n\n\
    Needs AGENTHUB_AUDIT_SIGNING_KEY: a signed record says which files may be absent. The roll-up\n\
    does the same by itself where AGENTHUB_AUDIT_RETENTION_DAYS says so.")]
pub(super) struct Args {
    /// Remove files of hours that ended this many days ago or earlier.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    older_than_days: u32,
    /// Only of this tenant; of every one when absent, and of unauthenticated requests.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// A folder, or `s3://bucket/prefix`; `AGENTHUB_STORAGE_URL` when absent.
    #[arg(long, value_name = "FOLDER|S3-URL")]
    store: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let source = Source::from_process()?;
    let signer = signer(&source)?;
    let keys = args.place.keys(&source, signer.public())?;
    let store = open(&source, args.store)?.store;
    let age = SignedDuration::from_hours(i64::from(args.older_than_days) * 24);
    let before = Timestamp::now()
        .checked_sub(age)
        .map_err(|_| anyhow!("--older-than-days is too large"))?;
    let expiry = Expiry {
        tenant: args.tenant,
        except: Vec::new(),
        before_ms: u64::try_from(before.as_millisecond()).unwrap_or(0),
        dry_run: args.dry_run,
    };
    let removed = rollup::expire(store, &signer, &keys, &expiry).await?;
    let text = if args.json {
        format!(
            "{}\n",
            json!({ "dry_run": args.dry_run, "removed": removed })
        )
    } else {
        let verb = if args.dry_run {
            "would remove"
        } else {
            "removed"
        };
        let rollup::Removed { files, rows, bytes } = removed;
        format!("{verb} {files} files with {rows} rows, {bytes} bytes\n")
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
