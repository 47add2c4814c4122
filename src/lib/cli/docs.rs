//! `agenthub docs`: the documents that the `retrieval` tool searches.
//!
//! Talks to the object store alone, so that it needs none of the settings of the processes.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};

use crate::config::{Source, StorageSettings};
use crate::ids::TenantId;
use crate::tools::retrieval::corpus::{Added, Corpus, NewDocument};
use crate::tools::retrieval::intake::{self, FoundFile};
use crate::tools::retrieval::storage::Storage;

/// Files that are read and written before the next ones: bounds memory, and what an interruption
/// can cost.
const BATCH: usize = 64;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub docs add --tenant acme ./handbook README.md\n  \
    agenthub docs list --tenant acme --json\n  \
    agenthub docs remove --tenant acme handbook/old\n\n\
    Reads AGENTHUB_STORAGE_URL and, for s3:// URLs, the AWS_ settings.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Add Markdown, text and HTML files, or replace older versions of them.
    #[command(
        after_help = "Example:\n  agenthub docs add --tenant acme ./handbook README.md\n\n\
        A folder's documents are named from the folder's own name downwards: handbook/leave.md.\n\
        Files of other types, larger than 5 MiB or hidden, and symbolic links are left out."
    )]
    Add {
        #[command(flatten)]
        common: Common,
        /// Folders and files.
        #[arg(required = true)]
        places: Vec<PathBuf>,
    },
    /// List the documents.
    #[command(after_help = "Example:\n  agenthub docs list --tenant acme")]
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Remove a document, or all below a folder.
    #[command(after_help = "Example:\n  agenthub docs remove --tenant acme handbook/leave.md")]
    Remove {
        #[command(flatten)]
        common: Common,
        /// The document's name, as `list` shows it, or that of a folder.
        path: String,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Whose documents.
    #[arg(long)]
    tenant: TenantId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command. Fails when nothing could be added of what was named, and when nothing was
/// there to be removed.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = StorageSettings::load(&Source::from_process()?)?;
    let corpus = Corpus::new(Storage::open(&settings)?);
    match args.command {
        Command::Add { common, places } => add(&corpus, &common, places).await,
        Command::List { common } => list(&corpus, &common).await,
        Command::Remove { common, path } => remove(&corpus, &common, &path).await,
    }
}

async fn add(corpus: &Corpus, common: &Common, places: Vec<PathBuf>) -> anyhow::Result<ExitCode> {
    let found = tokio::task::spawn_blocking(move || intake::find(&places)).await??;
    let mut report = AddReport::default();
    for skipped in found.skipped {
        let file = skipped.file.display().to_string();
        report.skipped.push((file, skipped.reason));
    }
    let mut files = found.files.into_iter().peekable();
    while files.peek().is_some() {
        let batch: Vec<FoundFile> = files.by_ref().take(BATCH).collect();
        let read = tokio::task::spawn_blocking(move || read_batch(batch)).await?;
        report.skipped.extend(read.1);
        let outcomes = corpus.add(&common.tenant, read.0).await;
        let outcomes = outcomes.with_context(|| format!("after {} files", report.taken()))?;
        for (path, added) in outcomes {
            match added {
                Added::Added => report.added.push(path),
                Added::Updated => report.updated.push(path),
                Added::Unchanged => report.unchanged.push(path),
            }
        }
    }
    if common.json {
        print(&format!("{}\n", report.json()))?;
    } else {
        print(&report.text())?;
    }
    Ok(if report.taken() == 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

type Read = (Vec<NewDocument>, Vec<(String, String)>);

fn read_batch(files: Vec<FoundFile>) -> Read {
    let mut read = Read::default();
    for file in files {
        match intake::read(&file) {
            Ok(document) => read.0.push(document),
            Err(reason) => read.1.push((file.file.display().to_string(), reason)),
        }
    }
    read
}

/// What became of the files; paths in the corpus, and files with reasons where they were left out.
#[derive(Debug, Default)]
struct AddReport {
    added: Vec<String>,
    updated: Vec<String>,
    unchanged: Vec<String>,
    skipped: Vec<(String, String)>,
}

impl AddReport {
    fn taken(&self) -> usize {
        self.added.len() + self.updated.len() + self.unchanged.len()
    }

    fn json(&self) -> Value {
        let skipped = |(file, reason): &(String, String)| json!({"file": file, "reason": reason});
        json!({
            "added": self.added,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "skipped": self.skipped.iter().map(skipped).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (what, paths) in [("added", &self.added), ("updated", &self.updated)] {
            for path in paths {
                line(&mut text, &[&format!("{what:<10}"), path]);
            }
        }
        for (file, reason) in &self.skipped {
            line(&mut text, &["skipped   ", &format!("{file}: {reason}")]);
        }
        let counts = [
            format!("{} added,", self.added.len()),
            format!("{} updated,", self.updated.len()),
            format!("{} unchanged,", self.unchanged.len()),
            format!("{} skipped", self.skipped.len()),
        ];
        line(&mut text, &counts.each_ref().map(String::as_str));
        text
    }
}

fn line(text: &mut String, words: &[&str]) {
    text.push_str(&words.join(" "));
    text.push('\n');
}

async fn list(corpus: &Corpus, common: &Common) -> anyhow::Result<ExitCode> {
    let manifest = corpus.manifest(&common.tenant).await?;
    let mut text = String::new();
    if common.json {
        let documents: Vec<Value> = manifest
            .documents
            .iter()
            .map(|(path, entry)| {
                json!({
                    "path": path,
                    "title": entry.title,
                    "media_type": entry.media_type,
                    "bytes": entry.bytes,
                    "sha256": entry.content,
                    "added_ms": entry.added_ms,
                })
            })
            .collect();
        text = format!("{}\n", json!({ "data": documents }));
    } else {
        for (path, entry) in &manifest.documents {
            let size = format!("{} bytes", entry.bytes);
            line(&mut text, &[path, "", &size, "", &entry.title]);
        }
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn remove(corpus: &Corpus, common: &Common, path: &str) -> anyhow::Result<ExitCode> {
    let removed = corpus.remove(&common.tenant, path).await?;
    if common.json {
        print(&format!("{}\n", json!({ "removed": removed })))?;
    } else {
        let mut text = String::new();
        for path in &removed {
            line(&mut text, &["removed   ", path]);
        }
        print(&text)?;
    }
    if removed.is_empty() {
        eprintln!("agenthub: {} has no document {path:?}", common.tenant);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// To standard output; a reader that has gone away is an error, not a panic.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("standard output")
}
