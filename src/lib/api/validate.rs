//! Checks that several bodies share. Each error names the field.

use std::collections::BTreeMap;

use crate::error::ApiError;
use crate::tools::catalogue;

/// The client's own labels.
pub(super) type Labels = BTreeMap<String, String>;

const MAX_LABELS: usize = 16;
const MAX_LABEL_NAME: usize = 64;
const MAX_LABEL_VALUE: usize = 256;
const MAX_TOOLS: usize = 64;
/// The most that a run may be allowed to cost, in US dollars.
const MAX_COST_USD: f64 = 1_000_000.0;

/// A text of 1 to `max` characters.
pub(super) fn text(field: &str, text: Option<&str>, max: usize) -> Result<(), ApiError> {
    match text {
        Some(text) if text.trim().is_empty() => Err(ApiError::field(field, "must not be empty")),
        Some(text) if text.chars().count() > max => {
            Err(ApiError::field(field, format!("at most {max} characters")))
        }
        _ => Ok(()),
    }
}

/// A text of at least one character that is not space, and at most `max` bytes.
pub(super) fn bytes(field: &str, text: &str, max: usize) -> Result<(), ApiError> {
    if text.trim().is_empty() {
        return Err(ApiError::field(field, "must not be empty"));
    }
    if text.len() > max {
        return Err(ApiError::field(field, format!("at most {max} bytes")));
    }
    Ok(())
}

/// At most 16 labels with names of 1 to 64 and values of at most 256 characters.
pub(super) fn labels(labels: &Labels) -> Result<(), ApiError> {
    if labels.len() > MAX_LABELS {
        let problem = format!("at most {MAX_LABELS} labels");
        return Err(ApiError::field("/metadata", problem));
    }
    for (name, value) in labels {
        if name.is_empty() || name.chars().count() > MAX_LABEL_NAME {
            let problem = format!("names have 1 to {MAX_LABEL_NAME} characters");
            return Err(ApiError::field("/metadata", problem));
        }
        if value.chars().count() > MAX_LABEL_VALUE {
            let name = name.replace('~', "~0").replace('/', "~1");
            let problem = format!("at most {MAX_LABEL_VALUE} characters");
            return Err(ApiError::field(format!("/metadata/{name}"), problem));
        }
    }
    Ok(())
}

/// Names of tools that there are, at least one.
pub(super) fn tools(names: Option<&[String]>) -> Result<(), ApiError> {
    let Some(names) = names else { return Ok(()) };
    if names.is_empty() || names.len() > MAX_TOOLS {
        let problem = format!("1 to {MAX_TOOLS} names; leave it out to allow every tool");
        return Err(ApiError::field("/tools_allowed", problem));
    }
    for (index, name) in names.iter().enumerate() {
        if catalogue::find(name).is_none() {
            let field = format!("/tools_allowed/{index}");
            return Err(ApiError::field(field, "there is no such tool"));
        }
    }
    Ok(())
}

/// A number between two others, both included.
pub(super) fn range<T: PartialOrd + std::fmt::Display + Copy>(
    field: &str,
    value: T,
    least: T,
    most: T,
) -> Result<T, ApiError> {
    if value >= least && value <= most {
        Ok(value)
    } else {
        Err(ApiError::field(
            field,
            format!("expected {least} to {most}"),
        ))
    }
}

/// US dollars as millionths, rounded to the nearest.
pub(super) fn micro_usd(field: &str, usd: Option<f64>) -> Result<Option<u64>, ApiError> {
    let Some(usd) = usd else { return Ok(None) };
    let usd = range(field, usd, 0.0, MAX_COST_USD)?;
    // The decimal text is rounded exactly; multiplying a binary fraction is not.
    let digits = format!("{:.6}", usd.abs()).replace('.', "");
    let micro = digits
        .parse()
        .map_err(|_| ApiError::field(field, "expected a number"));
    micro.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(result: Result<impl std::fmt::Debug, ApiError>) -> String {
        let details = result.unwrap_err().details.unwrap();
        details["field"].as_str().unwrap().to_owned()
    }

    #[test]
    fn money_is_exact_to_the_micro_dollar() {
        let micro = |usd| micro_usd("/x", Some(usd)).unwrap().unwrap();
        assert_eq!(micro(0.0), 0);
        assert_eq!(micro(-0.0), 0);
        assert_eq!(micro(0.1), 100_000);
        assert_eq!(micro(1.000_001), 1_000_001);
        assert_eq!(micro(0.000_000_4), 0);
        assert_eq!(micro(4.35), 4_350_000);
        assert_eq!(micro_usd("/x", None).unwrap(), None);
        assert_eq!(field(micro_usd("/x", Some(-0.01))), "/x");
        assert_eq!(field(micro_usd("/x", Some(1e12))), "/x");
    }

    #[test]
    fn labels_are_bounded() {
        let many = (0..17).map(|i| (i.to_string(), String::new())).collect();
        assert_eq!(field(labels(&many)), "/metadata");
        let long = Labels::from([("a/b".to_owned(), "x".repeat(257))]);
        assert_eq!(field(labels(&long)), "/metadata/a~1b");
        let name = Labels::from([("x".repeat(65), String::new())]);
        assert_eq!(field(labels(&name)), "/metadata");
        let fine = Labels::from([("é".repeat(64), "é".repeat(256))]);
        assert!(labels(&fine).is_ok());
    }

    #[test]
    fn texts_and_tools_are_checked() {
        assert!(text("/s", None, 3).is_ok());
        assert_eq!(field(text("/s", Some(" "), 3)), "/s");
        assert_eq!(field(text("/s", Some("äöüß"), 3)), "/s");
        assert_eq!(field(bytes("/goal", "\n", 9)), "/goal");
        assert_eq!(field(bytes("/goal", "ää", 3)), "/goal");
        let known = catalogue::all()[0].name.to_owned();
        assert!(tools(Some(std::slice::from_ref(&known))).is_ok());
        assert_eq!(field(tools(Some(&[]))), "/tools_allowed");
        assert_eq!(
            field(tools(Some(&[known, "nope".to_owned()]))),
            "/tools_allowed/1"
        );
    }
}
