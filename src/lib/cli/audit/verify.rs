//! `agenthub audit verify`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use serde_json::json;

use super::place::{PlaceArgs, open};
use crate::cli::output::print;
use crate::config::Source;
use crate::rollup::{self, Head, Misfit, PublicKeys, Verified, VerifyError, VerifyOptions};

/// The exit code of what could not be checked.
const UNCHECKED: u8 = 2;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub audit verify .agenthub/storage --public-key audit.pub\n  \
    curl -s \"$AGENTHUB_URL/v1/admin/audit/head\" -H \"Authorization: Bearer $AGENTHUB_ADMIN_KEY\" > head.json\n  \
    agenthub audit verify s3://bucket/prefix --public-key audit.pub --head head.json --json\n\n\
    Needs no network but the store's. Without a head it cannot be known whether the end of a chain\n\
    was cut off: keep one elsewhere.")]
pub(super) struct Args {
    /// A folder, or `s3://bucket/prefix`: what `AGENTHUB_STORAGE_URL` was; its value when absent.
    #[arg(value_name = "FOLDER|S3-URL")]
    store: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// A file with heads that were kept, as /v1/admin/audit/head answers; may be given several times.
    #[arg(long, value_name = "FILE")]
    head: Vec<PathBuf>,
    /// Open a file that was changed, and name the row that does not fit.
    #[arg(long)]
    explain: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) async fn run(args: Args) -> ExitCode {
    let told = match verify(&args).await {
        Ok(Ok(verified)) => print(&proven(&verified, args.json)).map(|()| ExitCode::SUCCESS),
        Ok(Err(misfit)) => print(&found(&misfit, args.json)).map(|()| ExitCode::FAILURE),
        Err(error) => Err(error),
    };
    told.unwrap_or_else(|error| {
        eprintln!("agenthub: {error:#}");
        ExitCode::from(UNCHECKED)
    })
}

async fn verify(args: &Args) -> anyhow::Result<Result<Verified, Misfit>> {
    let source = Source::from_process()?;
    let keys = args.place.keys(&source, PublicKeys::default())?;
    let mut heads = Vec::new();
    for path in &args.head {
        let name = path.display();
        let text = std::fs::read(path).with_context(|| format!("--head {name}"))?;
        let read = Head::read(&text, &keys).map_err(|e| anyhow!("--head {name}: {e}"))?;
        if read.is_empty() {
            return Err(anyhow!("--head {name}: it holds no head"));
        }
        heads.extend(read);
    }
    let store = open(&source, args.store.clone())?.store;
    let options = VerifyOptions {
        keys,
        heads,
        explain: args.explain,
    };
    match rollup::verify(store, &options).await {
        Ok(verified) => Ok(Ok(verified)),
        Err(VerifyError::Misfit(misfit)) => Ok(Err(misfit)),
        Err(VerifyError::Store(error)) => Err(error).context("the store cannot be read"),
    }
}

fn proven(verified: &Verified, as_json: bool) -> String {
    if as_json {
        return format!("{}\n", json!({ "verified": true, "proven": verified }));
    }
    let mut text = String::new();
    for chain in &verified.chains {
        _ = writeln!(
            text,
            "{}/{}: {} manifests, every offset before {}, {} dead letters",
            chain.topic, chain.partition, chain.manifests, chain.end, chain.dead_letters
        );
    }
    _ = writeln!(
        text,
        "verified: {} rows in {} files, {} heads, {} files expired, {} objects ignored",
        verified.rows,
        verified.files,
        verified.heads,
        verified.expired_files,
        verified.ignored_objects
    );
    text
}

fn found(misfit: &Misfit, as_json: bool) -> String {
    if as_json {
        return format!("{}\n", json!({ "verified": false, "misfit": misfit }));
    }
    format!("NOT VERIFIED: {}: {}\n", misfit.object, misfit.what)
}
