//! One text for each JSON value, so that equal arguments have equal names: RFC 8785 as far as names
//! need it. Object members are sorted by their UTF-16 code units, there is no white space, and a number
//! has one spelling. Pure.

use serde_json::{Number, Value};

/// Whole numbers up to this are exact in a double, and the same however they are written.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The canonical text of a value.
pub fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (n, (name, value)) in members.into_iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                text(name, out);
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::String(string) => text(string, out),
        Value::Number(number) => out.push_str(&spelling(number)),
        Value::Bool(_) | Value::Null => out.push_str(&value.to_string()),
    }
}

/// The library escapes what RFC 8785 escapes, in the same way.
fn text(string: &str, out: &mut String) {
    out.push_str(&Value::from(string).to_string());
}

/// Whole numbers without a point, others as the shortest text that reads back as the same double.
/// Whole numbers beyond a double's exactness keep all their digits: two of them are two arguments.
fn spelling(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= EXACT => {
            // Within the exact range, and -0 is 0.
            #[allow(clippy::cast_possible_truncation)]
            let whole = float as i64;
            whole.to_string()
        }
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_sorted_by_utf16_and_numbers_have_one_spelling() {
        // The members of RFC 8785's example of sorting (3.2.3).
        let value = json!({
            "\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7
        });
        let expected = "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}";
        assert_eq!(canonical(&value), expected);
        for (written, canonical_text) in [
            ("1.0", "1"),
            ("-0.0", "0"),
            ("1e3", "1000"),
            ("0.5", "0.5"),
            ("18446744073709551615", "18446744073709551615"),
            ("\"\\u0061\\u000a\\u0007\"", "\"a\\n\\u0007\""),
            (" [ 1 , null , true ] ", "[1,null,true]"),
        ] {
            let value: Value = serde_json::from_str(written).unwrap();
            assert_eq!(canonical(&value), canonical_text, "{written}");
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(|f| Number::from_f64(f).map_or(Value::Null, Value::Number)),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((".{0,4}", inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// The same value with the members of every object in another order of insertion.
    fn reversed(value: &Value) -> Value {
        match value {
            Value::Object(members) => {
                let members = members.iter().rev();
                Value::Object(members.map(|(k, v)| (k.clone(), reversed(v))).collect())
            }
            Value::Array(items) => Value::Array(items.iter().map(reversed).collect()),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn it_reads_back_and_is_its_own_canonical_text(value in values()) {
            let text = canonical(&value);
            let again: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(canonical(&again), text);
        }

        #[test]
        fn the_order_of_members_does_not_matter_and_what_differs_does(a in values(), b in values()) {
            prop_assert_eq!(canonical(&reversed(&a)), canonical(&a));
            prop_assert!(a == b || canonical(&a) != canonical(&b) || same_numbers(&a, &b));
        }
    }

    /// Values that differ in the spelling of numbers alone, such as 1 and 1.0.
    fn same_numbers(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_numbers(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .all(|(k, a)| b.get(k).is_some_and(|b| same_numbers(a, b)))
            }
            _ => a == b,
        }
    }
}
