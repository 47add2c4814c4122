//! `agenthub mask`: what the exits do, for a pipe.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::Context;

use crate::privacy::mask::Masker;

/// Most bytes that are read: the whole input is looked at together, so that a key of many lines is found.
const MAX_INPUT: u64 = 256 << 20;

/// Masks secrets and personal data in standard input (at most 256 MiB). JSON stays JSON; JSON Lines
/// are masked line by line; everything else as text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  echo 'mail ann@example.org' | agenthub mask")]
pub struct Args {
    /// Say on standard error what was found where, without showing it.
    #[arg(long)]
    explain: bool,
    /// A further regular expression whose matches are masked; may be given several times.
    #[arg(long, value_name = "REGEX")]
    pattern: Vec<String>,
}

/// Runs the command.
#[allow(clippy::unused_async)] // one form for every command
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let masker = Masker::new(&args.pattern)?;
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(MAX_INPUT + 1)
        .read_to_end(&mut bytes)
        .context("standard input")?;
    anyhow::ensure!(
        bytes.len() as u64 <= MAX_INPUT,
        "the input is larger than 256 MiB"
    );
    let text = String::from_utf8_lossy(&bytes);
    if args.explain {
        explain(&masker, &text);
    }
    let mut out = std::io::stdout().lock();
    out.write_all(mask(&masker, &text).as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn mask(masker: &Masker, text: &str) -> String {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
    if json(text) {
        let end = if text.ends_with('\n') { "\n" } else { "" };
        return format!("{}{end}", masker.json_text(text));
    }
    let mut lines = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .peekable();
    if lines.peek().is_some() && lines.all(|line| line.starts_with(['{', '[']) && json(line)) {
        let rows: Vec<String> = text
            .lines()
            .map(|line| masker.json_text(line).into_inner())
            .collect();
        return rows.join("\n") + "\n";
    }
    masker.text(text).to_string()
}

fn explain(masker: &Masker, text: &str) {
    for hit in masker.hits(text) {
        let before = &text[..hit.range.start];
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        eprintln!(
            "line {line}, column {column}: {}, {} bytes",
            hit.class,
            hit.range.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_and_text_keep_their_form() {
        let masker = Masker::new(&[]).unwrap();
        let cases = [
            (
                "{\"a\":\"x@example.org\"}\n",
                "{\"a\":\"[masked:email]\"}\n",
            ),
            (
                "{\"password\":\"p\"}\n{\"b\":1}\n",
                "{\"password\":\"[masked:field]\"}\n{\"b\":1}\n",
            ),
            ("to x@example.org\n{}\n", "to [masked:email]\n{}\n"),
        ];
        for (text, expected) in cases {
            assert_eq!(mask(&masker, text), expected);
        }
    }
}
