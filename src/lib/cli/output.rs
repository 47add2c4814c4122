//! What the commands write: to standard output, and how figures and texts from elsewhere look there.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::client::{Failure, Usage};

/// Writes to standard output; a reader that has gone away is an error, not a panic.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("standard output")
}

/// One line of JSON. Line breaks between its parts, the only ones that JSON can have, are dropped.
pub fn json_line(json: &str) -> String {
    let mut line = json.replace(['\n', '\r'], " ");
    line.push('\n');
    line
}

/// The items of a list as `{"data": […]}`, each as the API wrote it.
pub fn json_list(items: &[Box<RawValue>]) -> String {
    let items: Vec<&str> = items.iter().map(|item| item.get()).collect();
    json_line(&format!("{{\"data\":[{}]}}", items.join(",")))
}

/// Reads what the API wrote.
pub fn read<T: DeserializeOwned>(raw: &RawValue) -> anyhow::Result<T> {
    serde_json::from_str(raw.get()).context("the API's answer is not understood")
}

/// A text from elsewhere, for a terminal: control characters, which could move its cursor or change
/// its settings, and marks that change the direction of writing are replaced. Lines stay lines.
pub fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => '\n',
        '\t' => ' ',
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.replace("\r\n", "\n").chars().map(shown).collect()
}

/// A text from elsewhere on one line of at most `most` characters.
pub fn one_line(text: &str, most: usize) -> String {
    let line = printable(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    cut(&line, most)
}

/// The first `most` characters, the last of them an ellipsis where there were more.
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text
            .chars()
            .take(most.saturating_sub(1))
            .chain(['…'])
            .collect(),
    }
}

/// A span of time.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {:02} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {:02} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// Milliseconds from one RFC 3339 time to another; `None` when one of them is no time.
pub fn ms_between(from: &str, to: &str) -> Option<u64> {
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    let ms = time(to)?.as_millisecond() - time(from)?.as_millisecond();
    u64::try_from(ms).ok()
}

/// Millionths of a US dollar as dollars, with as many digits as there are but at least two.
pub fn dollars(micro_usd: u64) -> String {
    let fraction = format!("{:06}", micro_usd % 1_000_000);
    let digits = fraction.trim_end_matches('0').len().max(2);
    format!("${}.{}", micro_usd / 1_000_000, &fraction[..digits])
}

/// Tokens and cost.
pub fn usage(usage: Usage) -> String {
    format!(
        "{} tokens in, {} out, {}",
        usage.input_tokens,
        usage.output_tokens,
        dollars(usage.cost_micro_usd)
    )
}

/// A reason: `message (code)`.
pub fn failure(failure: &Failure) -> String {
    match failure.message.as_deref() {
        Some(message) if !message.is_empty() => reason(message, &failure.code),
        _ => one_line(&failure.code, MOST_CODE),
    }
}

const MOST_MESSAGE: usize = 400;
const MOST_CODE: usize = 64;

/// A message and its code on one line.
pub fn reason(message: &str, code: &str) -> String {
    let (message, code) = (one_line(message, MOST_MESSAGE), one_line(code, MOST_CODE));
    match (message.is_empty(), code.is_empty()) {
        (false, false) => format!("{message} ({code})"),
        (false, true) => message,
        (true, _) => code,
    }
}

/// Columns of rows, aligned; the last column as long as it is.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_elsewhere_steers_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[2Jb\u{9b}1m\r\nc\td\u{202e}"),
            "a\u{fffd}[2Jb\u{fffd}1m\nc d\u{fffd}"
        );
        assert_eq!(one_line(" a\n\n b\u{7} ", 9), "a b\u{fffd}");
        assert_eq!(one_line("äöüß", 3), "äö…");
        assert_eq!(one_line("äöü", 3), "äöü");
    }

    #[test]
    fn figures_are_for_people() {
        let spans = [0, 999, 1_000, 59_999, 60_000, 3_599_000, 7_260_000].map(duration);
        let expected = [
            "0 ms",
            "999 ms",
            "1.0 s",
            "59.9 s",
            "1 min 00 s",
            "59 min 59 s",
            "2 h 01 min",
        ];
        assert_eq!(spans, expected);
        let amounts = [0, 412, 1_500_000, 12_345_678].map(dollars);
        assert_eq!(amounts, ["$0.00", "$0.000412", "$1.50", "$12.345678"]);
    }

    #[test]
    fn times_that_are_none_have_no_span() {
        let from = "2026-01-01T00:00:00.000Z";
        assert_eq!(ms_between(from, "2026-01-01T00:00:01.234Z"), Some(1234));
        assert_eq!(ms_between(from, "2025-01-01T00:00:00Z"), None);
        assert_eq!(ms_between(from, ""), None);
    }

    #[test]
    fn json_stays_on_its_line() {
        assert_eq!(json_line("{\n\"a\":\r\n1}"), "{ \"a\":  1}\n");
        let items =
            ["{\"b\":1,\"a\":2}", "3"].map(|s| RawValue::from_string(s.to_owned()).unwrap());
        assert_eq!(json_list(&items), "{\"data\":[{\"b\":1,\"a\":2},3]}\n");
    }

    #[test]
    fn columns_are_aligned() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(table(&[row("ä", "x"), row("bcd", "")]), "ä    x\nbcd\n");
    }
}
