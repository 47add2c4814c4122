//! Prints records: one line or one JSON object each, masked.

use std::io::{BufWriter, Stdout, Write as _};

use anyhow::Context as _;
use serde_json::Value;

use super::source::Found;
use crate::cli::output::one_line;
use crate::messages::header;
use crate::privacy::mask::Masker;
use crate::replay::{Keys, View, cover};

/// Characters of a value that a line shows.
const MOST_VALUE: usize = 4_000;

/// Prints records to standard output.
pub struct Printer {
    out: BufWriter<Stdout>,
    json: bool,
    /// Masks unless it is absent.
    masker: Option<Masker>,
    /// Opens sealed payloads where it is there.
    keys: Option<Keys>,
}

impl Printer {
    /// As JSON or as lines; without a masker as it is, with keys opened.
    pub fn new(json: bool, masker: Option<Masker>, keys: Option<Keys>) -> Self {
        Self {
            out: BufWriter::new(std::io::stdout()),
            json,
            masker,
            keys,
        }
    }

    /// Prints a record.
    pub async fn print(&mut self, found: &Found) -> anyhow::Result<()> {
        let record = &found.record;
        let value = record.value.as_deref();
        let mut value: Option<Value> = value.and_then(|v| serde_json::from_slice(v).ok());
        if let (Some(topic), Some(value)) = (found.topic, &mut value) {
            match &mut self.keys {
                Some(keys) => keys.open(topic, record.header(header::TENANT), value).await,
                None => cover(topic, value),
            }
        }
        let view = View::new(&found.full_topic, record, value, self.masker.as_ref());
        let line = if self.json {
            serde_json::to_string(&view)?
        } else {
            line(&view)
        };
        writeln!(self.out, "{line}").context("standard output")
    }

    /// Writes what is buffered.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.out.flush().context("standard output")
    }
}

fn line(view: &View) -> String {
    let text = |text: Option<&str>| one_line(text.unwrap_or("-"), 200);
    let value = match &view.value {
        Value::Null => "null".to_owned(),
        Value::String(value) => value.clone(),
        value => value.to_string(),
    };
    format!(
        "{}/{}  {}  {}  {}  {}  {}",
        view.partition,
        view.offset,
        text(view.time.as_deref()),
        text(view.key.as_deref()),
        text(view.header(header::CE_TYPE)),
        text(view.header(header::TENANT)),
        one_line(&value, MOST_VALUE)
    )
}
