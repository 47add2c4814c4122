//! What is said of each event, where a terminal cannot show it live.

use serde_json::Value;
use std::fmt::Write as _;

use crate::cli::client::{Event, Usage};
use crate::cli::output::{duration, one_line, reason, usage};

/// Most characters of a step's arguments.
const MOST_ARGS: usize = 100;
const MOST_NAME: usize = 64;

/// The text for an event, without the last line's end; `None` when there is nothing to say. A run's end
/// is told by the report.
pub fn line(event: &Event) -> Option<String> {
    let text = match event.kind.as_str() {
        "run.queued" => "· queued".to_owned(),
        "plan.started" => {
            let doing = match event.number("turn") {
                Some(turn) => format!("· turn {turn}"),
                None => "· planning".to_owned(),
            };
            match event.text("model") {
                "" => doing,
                model => format!("{doing} with {}", one_line(model, MOST_NAME)),
            }
        }
        "plan.created" => planned(event),
        "run.started" => "· executing".to_owned(),
        "step.started" => format!("▸ {}", step_with_args(event)),
        "step.completed" => {
            let took = event
                .number("duration_ms")
                .map(|ms| format!("  {}", duration(ms)));
            format!("✓ {}{}", step(event), took.unwrap_or_default())
        }
        "step.retrying" => {
            let wait = event
                .number("retry_in_ms")
                .map(|ms| format!("; again in {}", duration(ms)));
            format!(
                "↻ {}  {}{}",
                step(event),
                why(event),
                wait.unwrap_or_default()
            )
        }
        "step.failed" => format!("✗ {}  {}", step(event), why(event)),
        "step.progress" => match event.text("message") {
            "" => return None,
            message => format!("· {}  {}", step(event), one_line(message, 200)),
        },
        "budget.warning" => format!("! budget: {}", one_line(&event.data.to_string(), 200)),
        _ => return None,
    };
    Some(text)
}

/// The step's name and tool, with the attempt when it is not the first.
pub fn step(event: &Event) -> String {
    let name = event.step_id.as_deref().unwrap_or("?");
    let text = format!(
        "{} {}",
        one_line(name, MOST_NAME),
        one_line(event.text("tool"), MOST_NAME)
    );
    match event.attempt {
        Some(attempt @ 2..) => format!("{text} (attempt {attempt})"),
        _ => text.trim_end().to_owned(),
    }
}

/// The step and what its tool is called with.
pub fn step_with_args(event: &Event) -> String {
    match event.data.get("args") {
        None | Some(Value::Null) => step(event),
        Some(args) => format!(
            "{}  {}",
            step(event),
            one_line(&args.to_string(), MOST_ARGS)
        ),
    }
}

fn why(event: &Event) -> String {
    reason(event.text("message"), event.text("code"))
}

fn planned(event: &Event) -> String {
    let steps = event.data.pointer("/plan/steps").and_then(Value::as_array);
    let steps = steps.map(Vec::as_slice).unwrap_or_default();
    let plural = if steps.len() == 1 { "" } else { "s" };
    let used = Usage {
        input_tokens: event.number("input_tokens").unwrap_or(0),
        output_tokens: event.number("output_tokens").unwrap_or(0),
        cost_micro_usd: event.number("cost_micro_usd").unwrap_or(0),
    };
    let what = match event.number("turn") {
        Some(_) => format!("· {} call{plural}", steps.len()),
        None => format!("· planned {} step{plural}", steps.len()),
    };
    let mut text = format!("{what}: {}", usage(used));
    for step in steps {
        let name = |field| {
            one_line(
                step.get(field).and_then(Value::as_str).unwrap_or("?"),
                MOST_NAME,
            )
        };
        _ = write!(text, "\n    {} {}", name("id"), name("tool"));
        let before: Vec<&str> = step
            .get("depends_on")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        if !before.is_empty() {
            _ = write!(text, "  after {}", one_line(&before.join(", "), MOST_ARGS));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = include_str!("recorded.jsonl");

    #[test]
    fn a_run_is_told_line_by_line() {
        let lines: Vec<String> = RECORDED
            .lines()
            .filter_map(|json| line(&serde_json::from_str(json).unwrap()))
            .collect();
        let expected = "\
· queued
· planning with gpt-4o-mini
· planned 2 steps: 812 tokens in, 120 out, $0.000194
    s1 ads_metrics_mock
    s2 http_fetch  after s1
· executing
▸ s1 ads_metrics_mock  {\"advertiser_id\":\"123\",\"days\":7}
✓ s1 ads_metrics_mock  12 ms
▸ s2 http_fetch  {\"url\":\"https://a.example/\"}
↻ s2 http_fetch  503 from a.example (upstream_unavailable); again in 740 ms
▸ s2 http_fetch (attempt 2)  {\"url\":\"https://a.example/\"}
✗ s2 http_fetch (attempt 2)  the page is gone (not_found)";
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn what_is_missing_or_unknown_is_left_out() {
        let told = |json: &str| line(&serde_json::from_str(json).unwrap());
        assert_eq!(told(r#"{"type":"step.slept"}"#), None);
        assert_eq!(told(r#"{"type":"run.succeeded","data":{}}"#), None);
        assert_eq!(told(r#"{"type":"step.progress","step_id":"s1"}"#), None);
        assert_eq!(
            told(r#"{"type":"step.completed","step_id":"s1"}"#).unwrap(),
            "✓ s1"
        );
        let turn = told(r#"{"type":"plan.started","data":{"model":"m","turn":2}}"#);
        assert_eq!(turn.unwrap(), "· turn 2 with m");
        let called = told(r#"{"type":"plan.created","data":{"turn":2,"plan":{"steps":[]}}}"#);
        assert_eq!(called.unwrap(), "· 0 calls: 0 tokens in, 0 out, $0.00");
        assert_eq!(told(r#"{"type":"llm.delta","data":{"text":"x"}}"#), None);
        let planned = told(r#"{"type":"plan.created","data":{"plan":{"steps":[{}]}}}"#).unwrap();
        assert_eq!(
            planned,
            "· planned 1 step: 0 tokens in, 0 out, $0.00\n    ? ?"
        );
    }
}
