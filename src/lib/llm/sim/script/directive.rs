//! `[[sim: {…}]]` in a goal. Pure.

use serde_json::value::RawValue;

const OPEN: &str = "[[sim:";
const CLOSE: &str = "]]";

/// A directive and where it stands.
pub(in super::super) struct Directive<'a> {
    /// The JSON in it, or what stands there instead.
    pub(in super::super) script: &'a str,
    start: usize,
    end: usize,
}

/// The first directive of `goal`.
pub(in super::super) fn find(goal: &str) -> Option<Directive<'_>> {
    let start = goal.find(OPEN)?;
    let inside = &goal[start + OPEN.len()..];
    // The JSON itself may hold `]]`: its end is where the value ends.
    let mut values = serde_json::Deserializer::from_str(inside).into_iter::<&RawValue>();
    let (script, length) = if let Some(Ok(value)) = values.next() {
        (value.get(), values.byte_offset())
    } else {
        let length = inside.find(CLOSE).unwrap_or(inside.len());
        (inside[..length].trim(), length)
    };
    let rest = &inside[length..];
    let close = rest.trim_start();
    let after = close.strip_prefix(CLOSE).unwrap_or(close);
    Some(Directive {
        script,
        start,
        end: goal.len() - after.len(),
    })
}

/// `goal` without its directive.
pub(in super::super) fn without(goal: &str) -> String {
    match find(goal) {
        Some(found) => format!("{}{}", goal[..found.start].trim_end(), &goal[found.end..]),
        None => goal.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_may_hold_brackets() {
        for (goal, script, rest) in [
            (
                r#"Do it [[sim: {"a": [[1]]} ]] now"#,
                r#"{"a": [[1]]}"#,
                "Do it now",
            ),
            (r#"[[sim:{"b":"]]"}]]"#, r#"{"b":"]]"}"#, ""),
            ("x [[sim: oops]] y", "oops", "x y"),
            (r#"x [[sim: {"a": 1}"#, r#"{"a": 1}"#, "x"),
            ("x [[sim:", "", "x"),
        ] {
            assert_eq!(find(goal).unwrap().script, script, "{goal}");
            assert_eq!(without(goal), rest, "{goal}");
        }
        assert!(find("plain").is_none());
    }
}
