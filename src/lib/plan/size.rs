//! The size of JSON, without making its text.

use std::io::{self, Write};

use serde_json::Value;

/// Bytes of `value` as compact JSON, or `None` when they are more than `limit`. Stops counting there.
pub(super) fn json_bytes(value: &Value, limit: usize) -> Option<usize> {
    let mut counter = Counter { count: 0, limit };
    serde_json::to_writer(&mut counter, value).ok()?;
    Some(counter.count)
}

/// How deeply arrays and objects are nested in `value`; a scalar has depth 0.
pub(super) fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

struct Counter {
    count: usize,
    limit: usize,
}

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.count = self.count.saturating_add(bytes.len());
        if self.count > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_what_would_be_written() {
        for value in [
            json!(null),
            json!("ä\n\u{1}"),
            json!({"a": [1, -2.5, {"b\"": true}]}),
        ] {
            let exact = value.to_string().len();
            assert_eq!(json_bytes(&value, exact), Some(exact));
            assert_eq!(json_bytes(&value, exact - 1), None);
        }
    }

    #[test]
    fn depth_counts_containers() {
        assert_eq!(depth(&json!(1)), 0);
        assert_eq!(depth(&json!({})), 1);
        assert_eq!(depth(&json!({"a": [], "b": [[{"c": 1}]]})), 4);
    }
}
