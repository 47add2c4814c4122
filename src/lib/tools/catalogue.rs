//! The tools, described: names, schemas and texts for the model. Depends on no implementation, so
//! that the API and the planner can use it.

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use jsonschema::Validator;
use serde_json::{Value, json};

use super::{CachePolicy, CacheScope, Effects, ToolSpec};
use crate::plan::ArgsProblem;

/// Every tool, in the order in which models see them: those that ship, then the operator's.
pub fn all() -> &'static [ToolSpec] {
    ALL.get_or_init(shipped)
}

/// Adds the operator's tools. To be called once, before anything else here: a catalogue that was
/// looked at does not change any more, and then this gives `false`.
#[must_use]
pub fn declare(tools: impl IntoIterator<Item = ToolSpec>) -> bool {
    let mut all = shipped();
    all.extend(tools);
    ALL.set(all).is_ok()
}

/// The tools that ship.
pub fn shipped() -> Vec<ToolSpec> {
    [&ADS_METRICS_MOCK, &RETRIEVAL, &HTTP_FETCH, &SUMMARIZE]
        .map(|spec| (**spec).clone())
        .into()
}

/// The tool with this name.
pub fn find(name: &str) -> Option<&'static ToolSpec> {
    all().iter().find(|tool| tool.name == name)
}

/// Checks arguments by the schema of the tool `name`. An unknown tool is a problem of its own.
pub fn validate_args(name: &str, args: &Value) -> Result<(), Vec<ArgsProblem>> {
    let one = |keyword: &str, message: &str| {
        Err(vec![ArgsProblem {
            path: String::new(),
            keyword: keyword.to_owned(),
            message: message.to_owned(),
        }])
    };
    let Some(compiled) = VALIDATORS.get(name) else {
        return one("tool", "there is no such tool");
    };
    let Ok(validator) = compiled else {
        return one("schema", "the tool's schema cannot be compiled");
    };
    let problems: Vec<_> = validator
        .iter_errors(args)
        .map(|error| ArgsProblem::from(&error))
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

/// Compiled once; a schema that does not compile is found by a test and refuses every call.
static VALIDATORS: LazyLock<HashMap<&'static str, Result<Validator, ()>>> = LazyLock::new(|| {
    all()
        .iter()
        .map(|spec| (spec.name, compile(&spec.parameters)))
        .collect()
});

/// Compiles a schema of arguments.
pub(super) fn compile(schema: &Value) -> Result<Validator, ()> {
    jsonschema::draft202012::options()
        .should_validate_formats(true)
        .build(schema)
        .map_err(|_| ())
}

/// Simulated advertising metrics.
pub static ADS_METRICS_MOCK: LazyLock<ToolSpec> = LazyLock::new(ads_metrics_mock);
/// Search in a tenant's documents.
pub static RETRIEVAL: LazyLock<ToolSpec> = LazyLock::new(retrieval);
/// GET of a public page.
pub static HTTP_FETCH: LazyLock<ToolSpec> = LazyLock::new(http_fetch);
/// Summary of a text by the model.
pub static SUMMARIZE: LazyLock<ToolSpec> = LazyLock::new(summarize);

static ALL: OnceLock<Vec<ToolSpec>> = OnceLock::new();

fn ads_metrics_mock() -> ToolSpec {
    ToolSpec {
        name: "ads_metrics_mock",
        version: 1,
        description: "Advertising metrics of one advertiser over the last days (simulated, the same \
            for the same question). Returns {advertiser_id, period_days, metric, value, unit, totals, \
            daily}: `value` is the metric asked for over the whole period (null when `all` was asked \
            for), `totals` holds every metric, `daily` one entry a day for periods of up to 31 days.",
        effects: Effects::None,
        parameters: schema(&json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["advertiser_id"],
            "properties": {
                "advertiser_id": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 64,
                    "pattern": "^[A-Za-z0-9_-]+$",
                    "description": "The advertiser's identifier, as the user gave it."
                },
                "metric": {
                    "type": "string",
                    "enum": [
                        "impressions", "clicks", "spend", "conversions", "revenue", "roas", "ctr", "cpc", "all"
                    ],
                    "default": "all",
                    "description": "The metric to answer with. roas = revenue / spend, ctr = clicks / impressions, cpc = spend / clicks."
                },
                "period_days": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 365,
                    "default": 7,
                    "description": "How many of the last days to look at."
                }
            }
        })),
        timeout: Duration::from_secs(5),
        cache: None, // made again faster than looked up
    }
}

fn retrieval() -> ToolSpec {
    ToolSpec {
        name: "retrieval",
        version: 1,
        description: "Full-text search in the organisation's documents. Returns {query, results: \
            [{title, snippet, score, source}], total}, best first; `source` is the document's path and \
            heading. Use the words that the documents would use; an empty list means that nothing \
            matches.",
        effects: Effects::None,
        parameters: schema(&json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["query"],
            "properties": {
                "query": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 512,
                    "description": "The words to look for, in plain language; there is no query syntax."
                },
                "top_k": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 20,
                    "default": 5,
                    "description": "The most results to return."
                }
            }
        })),
        timeout: Duration::from_secs(30),
        cache: None, // local, and what was added must be found at once
    }
}

fn http_fetch() -> ToolSpec {
    ToolSpec {
        name: "http_fetch",
        version: 1,
        description: "Fetch a public web page by HTTP GET and return its readable text, its title and \
            its final URL. Private and local addresses are refused.",
        effects: Effects::None,
        parameters: schema(&json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["url"],
            "properties": {
                "url": {
                    "type": "string",
                    "format": "uri",
                    "minLength": 1,
                    "maxLength": 2048,
                    "description": "The absolute http or https URL."
                },
                "max_chars": {
                    "type": "integer",
                    "minimum": 100,
                    "maximum": 100_000,
                    "description": "The most characters of text to return."
                }
            }
        })),
        timeout: Duration::from_secs(15),
        // Pages change; whoever can do with older ones says for how long.
        cache: Some(for_tenant(Duration::ZERO)),
    }
}

fn summarize() -> ToolSpec {
    ToolSpec {
        name: "summarize",
        version: 1,
        description: "Summarise a text, or the output of an earlier step, with a language model. \
            Returns {summary}.",
        effects: Effects::None,
        parameters: schema(&json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["text"],
            "properties": {
                "text": {
                    "type": ["string", "object", "array", "number", "boolean"],
                    "minLength": 1,
                    "maxLength": 200_000,
                    "minProperties": 1,
                    "maxProperties": 1_000,
                    "minItems": 1,
                    "maxItems": 10_000,
                    "description": "What to summarise: a text, or any JSON such as the output of a step (`${steps.s1.output}`)."
                },
                "instruction": {
                    "type": "string",
                    "maxLength": 500,
                    "description": "What the summary is for: its focus, length or form."
                }
            }
        })),
        timeout: Duration::from_mins(1),
        cache: Some(for_tenant(Duration::from_mins(10))),
    }
}

fn for_tenant(ttl: Duration) -> CachePolicy {
    let scope = CacheScope::Tenant;
    CachePolicy { ttl, scope }
}

fn schema(body: &Value) -> Value {
    let mut schema = body.clone();
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_valid_closed_and_bounded() {
        for spec in all() {
            assert!(
                jsonschema::draft202012::meta::is_valid(&spec.parameters),
                "{}",
                spec.name
            );
            assert!(VALIDATORS[spec.name].is_ok(), "{}", spec.name);
            assert_eq!(
                spec.parameters["additionalProperties"],
                json!(false),
                "{}",
                spec.name
            );
            assert_eq!(
                find(spec.name).map(|found| found.version),
                Some(spec.version)
            );
            for (field, schema) in spec.parameters["properties"].as_object().unwrap() {
                let bounded = ["enum", "maxLength", "maximum"]
                    .iter()
                    .any(|key| schema.get(key).is_some());
                assert!(bounded, "{}.{field} has no bound", spec.name);
                assert!(schema["description"].is_string(), "{}.{field}", spec.name);
                if let Some(default) = schema.get("default") {
                    assert!(
                        jsonschema::is_valid(schema, default),
                        "{}.{field}",
                        spec.name
                    );
                }
            }
        }
    }

    #[test]
    fn only_results_of_tools_without_effects_are_kept() {
        for spec in all() {
            assert!(
                spec.cache.is_none() || spec.effects == Effects::None,
                "{}",
                spec.name
            );
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> = all().iter().map(|spec| spec.name).collect();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn examples_are_accepted() {
        for (tool, args) in [
            (
                "ads_metrics_mock",
                json!({"advertiser_id": "123", "metric": "roas", "period_days": 7}),
            ),
            ("ads_metrics_mock", json!({"advertiser_id": "acme_co-1"})),
            ("retrieval", json!({"query": "idempotency", "top_k": 20})),
            (
                "http_fetch",
                json!({"url": "https://example.org/a?b=c", "max_chars": 100}),
            ),
            (
                "summarize",
                json!({"text": "long", "instruction": "one sentence"}),
            ),
            ("summarize", json!({"text": {"results": [1, 2]}})),
        ] {
            assert_eq!(validate_args(tool, &args), Ok(()), "{tool} {args}");
        }
    }

    #[test]
    fn wrong_arguments_are_refused_where_they_are_wrong() {
        for (tool, args, path) in [
            ("ads_metrics_mock", json!({}), ""),
            (
                "ads_metrics_mock",
                json!({"advertiser_id": "1/2"}),
                "/advertiser_id",
            ),
            (
                "ads_metrics_mock",
                json!({"advertiser_id": 123}),
                "/advertiser_id",
            ),
            (
                "ads_metrics_mock",
                json!({"advertiser_id": "1", "metric": "ROAS"}),
                "/metric",
            ),
            (
                "ads_metrics_mock",
                json!({"advertiser_id": "1", "period_days": 0}),
                "/period_days",
            ),
            (
                "ads_metrics_mock",
                json!({"advertiser_id": "1", "period_days": 366}),
                "/period_days",
            ),
            ("retrieval", json!({"query": ""}), "/query"),
            ("retrieval", json!({"query": "a".repeat(513)}), "/query"),
            ("retrieval", json!({"query": "a", "top_k": 21}), "/top_k"),
            ("retrieval", json!({"query": "a", "k": 2}), ""),
            ("http_fetch", json!({"url": "not a url"}), "/url"),
            (
                "http_fetch",
                json!({"url": "https://a", "max_chars": 99}),
                "/max_chars",
            ),
            ("summarize", json!({"text": null}), "/text"),
            (
                "summarize",
                json!({"text": "a", "instruction": "i".repeat(501)}),
                "/instruction",
            ),
            ("no_such_tool", json!({}), ""),
            ("retrieval", json!("query"), ""),
        ] {
            let problems = validate_args(tool, &args).unwrap_err();
            assert_eq!(problems[0].path, path, "{tool} {args}: {problems:?}");
        }
    }

    #[test]
    fn problems_show_no_value_and_stay_short() {
        let secret = "sesame".repeat(1_000);
        for args in [
            json!({"query": secret}),
            json!({"query": [secret]}),
            json!({"query": "a", "top_k": secret}),
        ] {
            for problem in validate_args("retrieval", &args).unwrap_err() {
                assert!(!problem.message.contains("sesame"), "{}", problem.message);
            }
        }
        let long_name: Value = [
            ("query".to_owned(), json!("a")),
            ("x".repeat(100_000), json!(1)),
        ]
        .into_iter()
        .collect();
        let problems = validate_args("retrieval", &long_name).unwrap_err();
        assert!(problems[0].message.len() < 300);
    }
}
