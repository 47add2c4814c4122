//! Masking: how many bytes a core masks in a second, and whether hostile texts take longer than their
//! length says.

use std::hint::black_box;
use std::time::{Duration, Instant};

use agenthub::privacy::mask::Masker;
use anyhow::Result;

use crate::machine::thread_cpu_seconds;
use crate::report::{Report, Row};

const PROSE: &str = include_str!("../texts/prose.txt");
const EVENTS: &str = include_str!("../texts/events.jsonl");
/// Long enough that the clock's resolution and one interruption do not count.
const TIME: Duration = Duration::from_millis(1500);
const HOSTILE_TIME: Duration = Duration::from_millis(150);
/// What begins rules: an unbounded look ahead or back would read these again and again.
const HOSTILE: &[&str] = &[
    "@",
    ".",
    "7",
    "-",
    ":",
    "a.",
    "a@",
    "-----BEGIN ",
    "eyJ",
    "ah_",
    "token=",
    "+1",
    "a:",
    "1.1.",
    "xkey=",
    "1.1.1.1 ",
    "a@b.co",
    "a://b:",
    "4111 ",
    "DE89 ",
    "Bearer ",
    "key:key:",
    "a-",
    "eyJa.",
];
/// Of those, what a body of the largest size may be made of.
const MEGABYTES: &[&str] = &["@", ".", "7", "-----BEGIN "];
const MEGABYTE: usize = 1_000_000;
const SHORT: usize = 64 << 10;
const LONG: usize = 256 << 10;

/// Measures it.
pub fn measure(report: &mut Report) -> Result<()> {
    let masker = Masker::new(&[])?;
    let text = |text: &String| drop(black_box(masker.text(black_box(text))));
    let prose = megabytes_per_second(&pieces(PROSE), TIME, text);
    report.row(
        Row::context(
            "masking prose, pieces of about 1 KiB, one core: MB/s",
            format!("{prose:.0} MB/s"),
        )
        .at_least(prose, 150.0),
    );
    let events: Vec<String> = EVENTS.lines().map(str::to_owned).collect();
    let as_json = |text: &String| drop(black_box(masker.json_text(black_box(text))));
    let parsed = megabytes_per_second(&events, TIME, as_json);
    let events = megabytes_per_second(&events, TIME, text);
    report.row(
        Row::context(
            "masking JSON lines of events and logs as text, one core: MB/s",
            format!("{events:.0} MB/s"),
        )
        .at_least(events, 150.0),
    );
    report.row(
        Row::context(
            "masking the same lines as JSON (parsed, masked, written): rate ÷ rate as text",
            format!("{parsed:.0} MB/s"),
        )
        .floor(format!("{events:.0} MB/s"))
        .figure(parsed / events),
    );
    let secret: Vec<String> = pieces(PROSE)
        .iter()
        .map(|piece| format!("{piece} write to ann.lee@mail.example.org"))
        .collect();
    let secret = megabytes_per_second(&secret, TIME, text);
    report.row(
        Row::context(
            "masking prose with one hit in each KiB: rate ÷ rate without",
            format!("{secret:.0} MB/s"),
        )
        .floor(format!("{prose:.0} MB/s"))
        .figure(secret / prose),
    );
    hostile(&masker, report);
    megabytes(&masker, report);
    Ok(())
}

/// Compares each text with one four times as long.
fn hostile(masker: &Masker, report: &mut Report) {
    let mut worst = (0.0_f64, "");
    let mut slowest = (f64::INFINITY, "");
    for unit in HOSTILE {
        let short = seconds(masker, &unit.repeat(SHORT / unit.len()));
        let long = seconds(masker, &unit.repeat(LONG / unit.len()));
        let growth = long / short;
        if growth > worst.0 {
            worst = (growth, unit);
        }
        #[allow(clippy::cast_precision_loss)] // a small number
        let rate = LONG as f64 / long / 1e6;
        if rate < slowest.0 {
            slowest = (rate, unit);
        }
    }
    let growth = worst.0 / 4.0;
    report.row(
        Row::context(
            "masking hostile texts: time for 4 × the length ÷ 4, worst of 24 texts",
            format!(
                "`{}` repeated; slowest {:.1} MB/s (`{}`)",
                worst.1, slowest.0, slowest.1
            ),
        )
        .at_most(growth, 1.5),
    );
}

/// A megabyte of each text, against a megabyte of prose.
fn megabytes(masker: &Masker, report: &mut Report) {
    let megabyte = |unit: &str| {
        let mut text = unit.repeat(MEGABYTE / unit.len() + 1);
        text.truncate(text.floor_char_boundary(MEGABYTE));
        seconds(masker, &text)
    };
    let prose = megabyte(PROSE);
    let times: Vec<(f64, &str)> = MEGABYTES
        .iter()
        .map(|unit| (megabyte(unit), *unit))
        .collect();
    let worst = times.iter().map(|(time, _)| *time).fold(0.0, f64::max);
    let told: Vec<String> = times
        .iter()
        .map(|(time, unit)| format!("`{unit}` {:.1} ms", time * 1e3))
        .collect();
    report.row(
        Row::context(
            "masking 1 MB of one hostile unit: CPU in ms, worst of four",
            told.join(", "),
        )
        .at_most(worst * 1e3, 50.0),
    );
    report.row(
        Row::context(
            "the same: time ÷ time of 1 MB of prose",
            format!("{:.1} ms", worst * 1e3),
        )
        .floor(format!("{:.1} ms", prose * 1e3))
        .figure(worst / prose),
    );
}

/// Pieces of about 1 KiB, as events and answers are.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for line in text.lines() {
        if pieces.last().is_some_and(|piece| piece.len() > 1024) {
            pieces.push(String::new());
        }
        if let Some(piece) = pieces.last_mut() {
            piece.push_str(line);
            piece.push('\n');
        }
    }
    pieces
}

/// Millions of bytes a second of CPU.
fn megabytes_per_second(texts: &[String], time: Duration, mask: impl Fn(&String)) -> f64 {
    // The automaton fills its cache.
    texts.iter().for_each(&mask);
    let (start, cpu) = (Instant::now(), thread_cpu_seconds());
    let mut bytes = 0;
    while start.elapsed() < time {
        for text in texts {
            mask(text);
            bytes += text.len();
        }
    }
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let bytes = bytes as f64;
    bytes / (thread_cpu_seconds() - cpu) / 1e6
}

/// Seconds of CPU for one text.
fn seconds(masker: &Masker, text: &str) -> f64 {
    #[allow(clippy::cast_precision_loss)] // a small number
    let bytes = text.len() as f64;
    let mask = |text: &String| drop(black_box(masker.text(black_box(text))));
    bytes / 1e6 / megabytes_per_second(&[text.to_owned()], HOSTILE_TIME, mask)
}
