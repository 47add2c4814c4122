//! `agenthub audit query` and `agenthub audit export`.

use std::process::ExitCode;

use anyhow::anyhow;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::place::{PlaceArgs, open, time};
use crate::cli::output::{one_line, print, table};
use crate::config::Source;
use crate::ids::TenantId;
use crate::rollup::{HourlyTotals, PublicKeys, Query, Reader, Record, record_columns};

/// Characters of a cell for people.
const MOST_CELL: usize = 40;
/// The columns for people.
const SHOWN: [&str; 9] = [
    "ts",
    "action",
    "route",
    "status",
    "decision",
    "rule",
    "run_id",
    "target",
    "cost_micro_usd",
];

/// Which records.
#[derive(Debug, clap::Args)]
struct Selection {
    /// The tenant.
    #[arg(long, required_unless_present = "unauthenticated")]
    tenant: Option<TenantId>,
    /// Records that belong to no tenant, since their request was not authenticated.
    #[arg(long, conflicts_with = "tenant")]
    unauthenticated: bool,
    /// The first time: RFC 3339, a day in UTC, or how long ago (90m, 24h, 7d).
    #[arg(long, value_parser = time)]
    from: Timestamp,
    /// The time after the last one; now when absent.
    #[arg(long, value_parser = time)]
    to: Option<Timestamp>,
    /// A folder, or `s3://bucket/prefix`; `AGENTHUB_STORAGE_URL` when absent.
    #[arg(long, value_name = "FOLDER|S3-URL")]
    store: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Arguments of `query`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub audit query --tenant demo --from 24h --public-key audit.pub\n  \
    agenthub audit query --tenant demo --from 2026-02-01 --to 2026-03-01 --totals --csv\n\n\
    Reads files that a signed manifest lists, and of those the ones that are there: whether some are\n\
    missing says `agenthub audit verify`.")]
pub(super) struct QueryArgs {
    #[command(flatten)]
    selection: Selection,
    /// Print at most this many records.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Print what the records of each hour add up to.
    #[arg(long)]
    totals: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
    /// Print CSV.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    agenthub audit export --tenant demo --from 2026-02-01 --to 2026-03-01 --csv > february.csv\n  \
    agenthub audit export --tenant demo --from 7d | jq -r .route | sort | uniq -c")]
pub(super) struct ExportArgs {
    #[command(flatten)]
    selection: Selection,
    /// Write JSON, one object a line; this is the default.
    #[arg(long)]
    json: bool,
    /// Write CSV.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

impl Selection {
    fn reader(self) -> anyhow::Result<Reader> {
        let source = Source::from_process()?;
        let keys = self.place.keys(&source, PublicKeys::default())?;
        let store = open(&source, self.store)?.store;
        let to = self.to.unwrap_or_else(Timestamp::now);
        if to <= self.from {
            return Err(anyhow!("--to is not after --from"));
        }
        let query = Query {
            tenant: self.tenant,
            from_ms: self.from.as_millisecond(),
            to_ms: to.as_millisecond(),
        };
        Ok(Reader::new(store, keys, query))
    }
}

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    People,
    Json,
    Csv,
}

pub(super) async fn query(args: QueryArgs) -> anyhow::Result<ExitCode> {
    let form = match (args.json, args.csv) {
        (true, _) => Form::Json,
        (_, true) => Form::Csv,
        _ => Form::People,
    };
    let mut reader = args.selection.reader()?;
    if args.totals {
        let mut all = Vec::new();
        while let Some(totals) = reader.next_totals().await? {
            all.push(totals);
        }
        print(&totals_text(&all, form)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut left = args.limit;
    if form == Form::Csv {
        print(&csv_line(record_columns().into_iter()))?;
    }
    let mut shown = Vec::new();
    while left > 0 {
        let Some(mut records) = reader.next_hour().await? else {
            break;
        };
        records.truncate(left);
        left -= records.len();
        match form {
            Form::People => shown.extend(records.iter().map(people)),
            _ => print(&lines(&records, form)?)?,
        }
    }
    if form == Form::People {
        let head = SHOWN.map(str::to_uppercase);
        shown.insert(0, head);
        print(&table(&shown))?;
        if left == 0 {
            eprintln!("the first {} records; --limit shows more", args.limit);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let form = if args.csv { Form::Csv } else { Form::Json };
    let mut reader = args.selection.reader()?;
    if form == Form::Csv {
        print(&csv_line(record_columns().into_iter()))?;
    }
    while let Some(records) = reader.next_hour().await? {
        print(&lines(&records, form)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn people(record: &Record) -> [String; SHOWN.len()] {
    SHOWN.map(|name| one_line(&text(record.values.get(name)), MOST_CELL))
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn lines(records: &[Record], form: Form) -> anyhow::Result<String> {
    let mut lines = String::new();
    for record in records {
        if form == Form::Csv {
            let columns = record_columns().into_iter();
            lines += &csv_line(columns.map(|name| text(record.values.get(name))));
        } else {
            lines += &serde_json::to_string(&record.values)?;
            lines.push('\n');
        }
    }
    Ok(lines)
}

/// RFC 4180, but lines end with a line feed.
fn csv_line(cells: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut line = String::new();
    for (n, cell) in cells.enumerate() {
        let cell = cell.as_ref();
        if n > 0 {
            line.push(',');
        }
        if cell.contains(['"', ',', '\n', '\r']) {
            line.push('"');
            line += &cell.replace('"', "\"\"");
            line.push('"');
        } else {
            line += cell;
        }
    }
    line.push('\n');
    line
}

/// Totals as flat values, without the durations' buckets.
fn flat(totals: &HourlyTotals) -> anyhow::Result<Map<String, Value>> {
    let mut flat = match serde_json::to_value(totals)? {
        Value::Object(flat) => flat,
        _ => Map::new(),
    };
    flat.remove("durations_ms");
    flat.insert("refused".to_owned(), totals.totals.refused().into());
    Ok(flat)
}

const TOTALS: [&str; 11] = [
    "hour",
    "records",
    "requests",
    "refused",
    "errors",
    "p95_duration_ms",
    "input_tokens",
    "output_tokens",
    "cost_micro_usd",
    "refusals",
    "actions",
];

fn totals_text(all: &[HourlyTotals], form: Form) -> anyhow::Result<String> {
    let flats: Vec<Map<String, Value>> = all.iter().map(flat).collect::<Result<_, _>>()?;
    let cells = |flat: &Map<String, Value>| TOTALS.map(|name| text(flat.get(name)));
    Ok(match form {
        Form::Json => {
            let lines = flats
                .into_iter()
                .map(|flat| format!("{}\n", Value::Object(flat)));
            lines.collect()
        }
        Form::Csv => {
            let rows = flats.iter().map(|flat| csv_line(cells(flat).iter()));
            std::iter::once(csv_line(TOTALS.iter()))
                .chain(rows)
                .collect()
        }
        Form::People => {
            let head = TOTALS.map(str::to_uppercase);
            let rows: Vec<_> = std::iter::once(head)
                .chain(flats.iter().map(cells))
                .collect();
            table(&rows)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_quoted_where_it_must_be() {
        let cells = ["a", "b,c", "d\"e", "f\ng", ""];
        assert_eq!(csv_line(cells.iter()), "a,\"b,c\",\"d\"\"e\",\"f\ng\",\n");
    }
}
