//! Which records are wanted. Pure.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};
use serde_json_path::JsonPath;

use crate::ids::{RunId, TenantId};
use crate::kafka::StoredRecord;
use crate::messages::header;

/// Why a record was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skipped {
    /// Its key is another one.
    Key,
    /// It is another tenant's.
    Tenant,
    /// It is about another run.
    Run,
    /// The expression does not hold.
    Where,
    /// It has no valid signature of this installation for its topic.
    Signature,
    /// It comes from a topic that is no queue of work, or from another installation.
    Topic,
    /// It names no run.
    NoRun,
    /// A new run was started for the same one already.
    Seen,
    /// The API refused to start a new run for it.
    Refused,
}

impl Skipped {
    /// The name in summaries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "another_key",
            Self::Tenant => "another_tenant",
            Self::Run => "another_run",
            Self::Where => "where_does_not_hold",
            Self::Signature => "signature",
            Self::Topic => "topic",
            Self::NoRun => "no_run",
            Self::Seen => "same_run",
            Self::Refused => "refused_by_the_api",
        }
    }
}

/// An expression over a record: a `JSONPath` filter (RFC 9535) such as `@.value.kind == 'plan'`, or a
/// whole query that begins with `$`, which holds when it finds anything.
#[derive(Debug, Clone)]
pub struct Filter {
    text: String,
    path: JsonPath,
    /// Whether the record is the one element of the list that is asked, as `@` wants it.
    listed: bool,
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let listed = !text.starts_with('$');
        let query = if listed {
            format!("$[?{text}]")
        } else {
            text.to_owned()
        };
        let path = JsonPath::parse(&query).map_err(|error| {
            format!(
                "not a filter expression of RFC 9535 such as \"@.value.kind == 'plan'\": {error}"
            )
        })?;
        Ok(Self {
            text: text.to_owned(),
            path,
            listed,
        })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Filter {
    fn holds(&self, record: &StoredRecord) -> bool {
        let document = document(record);
        if self.listed {
            !self.path.query(&Value::Array(vec![document])).is_empty()
        } else {
            !self.path.query(&document).is_empty()
        }
    }
}

/// A record as expressions see it. A value that is not JSON is null there.
fn document(record: &StoredRecord) -> Value {
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes).into_owned());
    let value = record.value.as_deref();
    let value: Option<Value> = value.and_then(|value| serde_json::from_slice(value).ok());
    let headers = record.headers.iter();
    let headers: Map<String, Value> = headers
        .filter_map(|(name, value)| Some((name.clone(), text(value.as_deref()?))))
        .collect();
    json!({
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": record.key.as_deref().map(text),
        "headers": headers,
        "value": value,
    })
}

/// What a record must be to be wanted.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Its key.
    pub key: Option<String>,
    /// Whose it is.
    pub tenant: Option<TenantId>,
    /// The run that it is about.
    pub run: Option<RunId>,
    /// What holds of it.
    pub filter: Option<Filter>,
}

impl Selection {
    /// Whether the record is wanted; if not, what stands against it first.
    pub fn check(&self, record: &StoredRecord) -> Result<(), Skipped> {
        let key = self.key.as_ref().map(String::as_bytes);
        if key.is_some() && key != record.key.as_deref() {
            return Err(Skipped::Key);
        }
        let tenant = self.tenant.as_ref().map(TenantId::as_str);
        if tenant.is_some() && tenant != record.header(header::TENANT) {
            return Err(Skipped::Tenant);
        }
        let run = self.run.as_ref().map(RunId::as_str);
        if run.is_some() && run != record.header(header::CE_SUBJECT) {
            return Err(Skipped::Run);
        }
        match &self.filter {
            Some(filter) if !filter.holds(record) => Err(Skipped::Where),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;

    use super::*;

    /// A record of the run `run`, whose value is `value`.
    pub(in crate::replay) fn record(run: &RunId, value: &str) -> StoredRecord {
        let header =
            |name: &str, value: &str| (name.to_owned(), Some(Bytes::from(value.to_owned())));
        StoredRecord {
            partition: 2,
            offset: 7,
            timestamp_ms: Some(1_000),
            key: Some(Bytes::from(run.to_string())),
            value: Some(Bytes::from(value.to_owned())),
            headers: vec![
                header(header::TENANT, "acme"),
                header(header::CE_SUBJECT, run.as_str()),
                header(header::CE_TYPE, "agenthub.command.plan"),
            ],
        }
    }

    fn holds(expression: &str) -> bool {
        let value =
            r#"{"kind":"plan","wake":3,"spec":{"metadata":{"team":"ads"},"tools":["a","b"]}}"#;
        let filter: Filter = expression.parse().unwrap();
        filter.holds(&record(&RunId::generate(), value))
    }

    #[test]
    fn expressions_see_value_headers_and_place() {
        for (expression, expected) in [
            ("@.value.kind == 'plan'", true),
            ("@.value.kind == 'execute'", false),
            ("@.value.wake >= 2 && @.value.wake < 4", true),
            ("@.value.spec.metadata.team == 'ads' || false == true", true),
            ("!@.value.spec.metadata.owner", true),
            ("@.headers.ah_tenant == \"acme\"", true),
            ("@.headers['ce_type'] == 'agenthub.command.execute'", false),
            (
                "match(@.headers.ce_type, 'agenthub\\\\.command\\\\..*')",
                true,
            ),
            (
                "@.partition == 2 && @.offset == 7 && @.timestamp_ms == 1000",
                true,
            ),
            ("@.value.spec.tools[?@ == 'b']", true),
            ("$.value.spec.tools[?@ == 'c']", false),
            ("$..team", true),
        ] {
            assert_eq!(holds(expression), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for wrong in ["", "kind", "@.value.kind = 'plan'", "@.value.", "$["] {
            let error = wrong.parse::<Filter>().unwrap_err();
            assert!(error.contains("RFC 9535"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_value_that_is_not_json_and_one_that_is_null_match_no_field() {
        let run = RunId::generate();
        let filter: Filter = "@.value.kind".parse().unwrap();
        assert!(!filter.holds(&record(&run, "no json")));
        let mut null = record(&run, "");
        null.value = None;
        assert!(!filter.holds(&null));
    }

    #[test]
    fn every_criterion_must_hold_and_the_first_that_does_not_is_named() {
        let (run, other) = (RunId::generate(), RunId::generate());
        let wanted = Selection {
            key: Some(run.to_string()),
            tenant: Some("acme".parse().unwrap()),
            run: Some(run.clone()),
            filter: Some("@.value.kind == 'plan'".parse().unwrap()),
        };
        let check = |change: fn(&mut Selection), run: &RunId| {
            let mut selection = wanted.clone();
            change(&mut selection);
            selection.check(&record(run, r#"{"kind":"plan"}"#))
        };
        assert_eq!(check(|_| {}, &run), Ok(()));
        assert_eq!(check(|_| {}, &other), Err(Skipped::Key));
        assert_eq!(check(|s| s.key = None, &other), Err(Skipped::Run));
        let tenant = |s: &mut Selection| s.tenant = "umbrella".parse().ok();
        assert_eq!(check(tenant, &run), Err(Skipped::Tenant));
        let filter = |s: &mut Selection| s.filter = "@.value.x".parse().ok();
        assert_eq!(check(filter, &run), Err(Skipped::Where));
        assert_eq!(Selection::default().check(&record(&run, "")), Ok(()));
    }
}
