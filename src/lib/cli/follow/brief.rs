//! A step's output as people skim it: plain values first, long texts and lists cut.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::output::{cut, one_line, printable};

/// Lines of one output, and of a text in it.
const MOST_LINES: usize = 24;
const MOST_TEXT_LINES: usize = 12;
const MOST_ITEMS: usize = 3;
const MOST_WIDTH: usize = 160;
/// Objects within objects that are spread over lines.
const MOST_DEPTH: usize = 3;

/// The output as lines, and whether something of it is not there.
pub fn brief(value: &Value) -> (String, bool) {
    let mut brief = Brief::default();
    match value {
        Value::Object(_) => brief.fields(value, 0),
        Value::Array(items) => brief.items(items, 0),
        Value::String(text) => brief.text(text, 0),
        other => brief.line(0, &other.to_string()),
    }
    (brief.lines, brief.shortened)
}

#[derive(Default)]
struct Brief {
    lines: String,
    count: usize,
    shortened: bool,
}

impl Brief {
    fn line(&mut self, depth: usize, line: &str) {
        self.shortened |= line.chars().count() > MOST_WIDTH;
        if self.count == MOST_LINES {
            self.shortened = true;
            return;
        }
        self.count += 1;
        let line = cut(line, MOST_WIDTH);
        _ = writeln!(self.lines, "{:1$}{line}", "", depth * 2);
    }

    /// An object's fields: those on one line first and lists last, so that no list hides them.
    fn fields(&mut self, object: &Value, depth: usize) {
        let fields = || object.as_object().into_iter().flatten();
        for (name, value) in fields() {
            if let Some(value) = flat(value, depth) {
                self.line(depth, &format!("{}: {value}", one_line(name, 64)));
            }
        }
        let spread = || fields().filter(|(_, value)| flat(value, depth).is_none());
        for (name, value) in spread().filter(|(_, value)| !value.is_array()) {
            self.line(depth, &format!("{}:", one_line(name, 64)));
            match value {
                Value::String(text) => self.text(text, depth + 1),
                value => self.fields(value, depth + 1),
            }
        }
        for (name, value) in spread() {
            if let Value::Array(items) = value {
                self.line(depth, &format!("{}:", one_line(name, 64)));
                self.items(items, depth + 1);
            }
        }
    }

    fn items(&mut self, items: &[Value], depth: usize) {
        for item in items.iter().take(MOST_ITEMS) {
            let item = match item {
                Value::String(text) => text.clone(),
                item => item.to_string(),
            };
            self.shortened |= item.contains('\n');
            self.line(depth, &format!("- {}", one_line(&item, MOST_WIDTH + 1)));
        }
        if let more @ 1.. = items.len().saturating_sub(MOST_ITEMS) {
            self.shortened = true;
            self.line(depth, &format!("… {more} more"));
        }
    }

    fn text(&mut self, text: &str, depth: usize) {
        let text = printable(text);
        for line in text.lines().take(MOST_TEXT_LINES) {
            self.line(depth, line);
        }
        if let more @ 1.. = text.lines().count().saturating_sub(MOST_TEXT_LINES) {
            self.shortened = true;
            self.line(depth, &format!("… {more} more lines"));
        }
    }
}

/// A value that fits behind its name.
fn flat(value: &Value, depth: usize) -> Option<String> {
    match value {
        Value::String(text) if text.contains('\n') => None,
        Value::String(text) => Some(printable(text)),
        Value::Array(items) => {
            let plain = items
                .iter()
                .all(|item| !item.is_object() && !item.is_array());
            let text = value.to_string();
            (plain && text.len() <= MOST_WIDTH / 2).then(|| printable(&text))
        }
        Value::Object(fields) if !fields.is_empty() && depth + 1 < MOST_DEPTH => None,
        other => Some(printable(&other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_come_before_lists() {
        let day = |n: u64| json!({"days_ago": n, "roas": 6.31});
        let output = json!({
            "daily": (1..=7).map(day).collect::<Vec<_>>(), "metric": "roas", "tags": ["a", "b"],
            "totals": {"roas": 6.2, "by": {"x": {"y": 1}}}, "note": "a\nb\u{1b}", "none": null,
        });
        let expected = "\
metric: roas
none: null
tags: [\"a\",\"b\"]
note:
  a
  b\u{fffd}
totals:
  roas: 6.2
  by:
    x: {\"y\":1}
daily:
  - {\"days_ago\":1,\"roas\":6.31}
  - {\"days_ago\":2,\"roas\":6.31}
  - {\"days_ago\":3,\"roas\":6.31}
  … 4 more
";
        assert_eq!(brief(&output), (expected.to_owned(), true));
    }

    #[test]
    fn what_is_short_is_whole() {
        assert_eq!(
            brief(&json!({"roas": 3.2})),
            ("roas: 3.2\n".to_owned(), false)
        );
        assert_eq!(brief(&json!("a\nb")), ("a\nb\n".to_owned(), false));
        assert_eq!(brief(&json!([1, "x"])), ("- 1\n- x\n".to_owned(), false));
        assert_eq!(brief(&json!(null)), ("null\n".to_owned(), false));
    }

    #[test]
    fn nothing_is_longer_than_its_bounds() {
        let long = "x".repeat(10_000);
        let many: serde_json::Map<_, _> =
            (0..100).map(|n| (format!("f{n}"), json!(long))).collect();
        for value in [
            json!(long),
            json!(vec![long.clone(); 9]),
            Value::Object(many),
        ] {
            let (text, shortened) = brief(&value);
            assert!(shortened);
            assert!(text.lines().count() <= MOST_LINES);
            assert!(
                text.lines()
                    .all(|line| line.chars().count() <= MOST_WIDTH + 2 * MOST_DEPTH)
            );
        }
    }
}
