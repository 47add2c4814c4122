//! What is said of a run as a whole: at its end, and when it is shown.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Map, Value};

use super::brief::brief;
use super::{End, View, read_run};
use crate::cli::client::{Client, Failure, Run, Step};
use crate::cli::output::{
    duration, failure, json_line, ms_between, one_line, printable, table, usage,
};

/// Reports the end of a run and maps it to an exit code: 0 when it succeeded.
pub async fn finish(
    client: &Client,
    id: &str,
    end: End,
    view: &mut View,
) -> anyhow::Result<ExitCode> {
    let run = match read_run(client, id).await {
        Ok((raw, run)) => {
            if view.is_json() {
                view.write(&json_line(raw.get()))?;
            }
            run
        }
        Err(error) => {
            let Some(status) = &end.status else {
                return Err(error);
            };
            eprintln!("agenthub: what the run gave and cost cannot be read: {error:#}");
            Run {
                run_id: id.to_owned(),
                status: status.clone(),
                ..Run::default()
            }
        }
    };
    // The stream's word is final; the record tells what a stream without an end left open.
    let status = end.status.as_ref().unwrap_or(&run.status);
    if !view.is_json() {
        view.write(&conclusion(&run, status))?;
    }
    if status == "succeeded" {
        return Ok(ExitCode::SUCCESS);
    }
    let why = run.error.as_ref().or(end.failure.as_ref());
    eprintln!(
        "agenthub: {}",
        complaint(id, status, why, end.step.as_deref())
    );
    Ok(ExitCode::FAILURE)
}

/// How it ended, and what it gave.
fn conclusion(run: &Run, status: &str) -> String {
    let sign = if status == "succeeded" { '✓' } else { '✗' };
    let took = run
        .ended_at
        .as_deref()
        .and_then(|end| ms_between(&run.created_at, end));
    let took = took
        .map(|ms| format!(" after {}", duration(ms)))
        .unwrap_or_default();
    let mut text = format!("{sign} {}{took}, {}\n", words(status), usage(run.usage));
    let result = result(run);
    if !result.is_empty() {
        text.push('\n');
        text.push_str(&result);
    }
    text
}

fn complaint(run: &str, status: &str, why: Option<&Failure>, step: Option<&str>) -> String {
    let was = if status == "cancelled" { "was " } else { "" };
    let mut text = format!("{run} {was}{}", words(status));
    if let Some(step) = step {
        _ = write!(text, " in step {}", one_line(step, 64));
    }
    // A reason that only repeats the status tells nothing.
    if let Some(why) = why
        .map(failure)
        .filter(|why| !why.is_empty() && why != status)
    {
        _ = write!(text, ": {why}");
    }
    text
}

fn words(status: &str) -> String {
    one_line(&status.replace('_', " "), 32)
}

/// The answer and the outputs, cut to what people read.
fn result(run: &Run) -> String {
    let empty = Map::new();
    let part = |name| run.result.as_ref().and_then(|result| result.get(name));
    let answer = part("answer").and_then(Value::as_str);
    let outputs = part("outputs").and_then(Value::as_object).unwrap_or(&empty);
    let (mut text, mut shortened) = (String::new(), false);
    if let Some(answer) = answer {
        _ = writeln!(text, "{}", printable(answer).trim_end());
    }
    for (step, output) in outputs {
        if !text.is_empty() {
            text.push('\n');
        }
        _ = writeln!(text, "{}:", one_line(step, 64));
        let (lines, cut) = brief(output);
        for line in lines.lines() {
            _ = writeln!(text, "  {line}");
        }
        shortened |= cut;
    }
    if shortened {
        _ = writeln!(
            text,
            "\nShortened; all of it: agenthub runs show {} --json",
            one_line(&run.run_id, 64)
        );
    }
    text
}

/// The whole run for people.
pub fn describe(run: &Run) -> String {
    let pair = |name: &str, value: String| [name.to_owned(), value];
    let mut status = words(&run.status);
    if let Some(why) = run
        .error
        .as_ref()
        .map(failure)
        .filter(|why| *why != run.status)
    {
        _ = write!(status, ": {why}");
    }
    let mut facts = vec![
        pair("run", one_line(&run.run_id, 64)),
        pair("session", one_line(&run.session_id, 64)),
        pair("kind", one_line(&run.kind, 32)),
        pair("status", status),
        pair("created", one_line(&run.created_at, 40)),
    ];
    if let Some(goal) = &run.goal {
        facts.insert(2, pair("goal", one_line(goal, 200)));
    }
    if let Some(ms) = run
        .ended_at
        .as_deref()
        .and_then(|end| ms_between(&run.created_at, end))
    {
        facts.push(pair("took", duration(ms)));
    }
    facts.push(pair("used", usage(run.usage)));
    let mut text = table(&facts);
    if !run.steps.is_empty() {
        let rows: Vec<_> = run.steps.iter().map(step).collect();
        text.push('\n');
        text.push_str(&table(&rows));
    }
    let result = result(run);
    if !result.is_empty() {
        text.push('\n');
        text.push_str(&result);
    }
    text
}

fn step(step: &Step) -> [String; 4] {
    let sign = match step.status.as_str() {
        "succeeded" => '✓',
        "failed" | "outcome_unknown" => '✗',
        "running" => '▸',
        "retrying" => '↻',
        _ => '·',
    };
    let times = (step.started_at.as_deref(), step.ended_at.as_deref());
    let mut told = words(&step.status);
    if let (Some(from), Some(to)) = times
        && let Some(ms) = ms_between(from, to)
    {
        _ = write!(told, " after {}", duration(ms));
    }
    if step.attempts > 1 {
        _ = write!(told, ", {} attempts", step.attempts);
    }
    if let Some(why) = &step.error {
        _ = write!(told, ": {}", failure(why));
    }
    [
        sign.to_string(),
        one_line(&step.id, 64),
        one_line(&step.tool, 64),
        told,
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(extra: &Value) -> Run {
        let mut run = json!({
            "run_id": "run_1", "session_id": "ses_1", "kind": "plan_execute", "status": "succeeded",
            "goal": "Get ROAS\nfor 123", "created_at": "2026-01-01T00:00:00.000Z",
            "ended_at": "2026-01-01T00:00:01.250Z",
            "usage": {"input_tokens": 812, "output_tokens": 120, "cost_micro_usd": 194},
        });
        run.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        serde_json::from_value(run).unwrap()
    }

    #[test]
    fn a_run_that_succeeded_ends_with_what_it_gave() {
        let result = json!({"answer": "ROAS is 3.2\u{1b}[0m.\n", "outputs": {"s1": {"roas": 3.2}, "s2": "a\nb"}});
        let expected = "\
✓ succeeded after 1.2 s, 812 tokens in, 120 out, $0.000194

ROAS is 3.2\u{fffd}[0m.

s1:
  roas: 3.2

s2:
  a
  b
";
        assert_eq!(
            conclusion(&run(&json!({"result": result})), "succeeded"),
            expected
        );
    }

    #[test]
    fn where_something_is_left_out_it_says_where_to_find_it() {
        let long = vec!["x"; 100].join("\n");
        let text = result(&run(&json!({"result": {"outputs": {"s1": long}}})));
        let end = "  … 88 more lines\n\nShortened; all of it: agenthub runs show run_1 --json\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn a_complaint_says_what_and_why() {
        let why = |code: &str, message: Option<&str>| Failure {
            code: code.to_owned(),
            message: message.map(str::to_owned),
        };
        let budget = why("budget_exceeded", Some("the run may cost $0.01"));
        let cases = [
            (
                complaint("run_1", "failed", Some(&budget), Some("s2")),
                "run_1 failed in step s2: the run may cost $0.01 (budget_exceeded)",
            ),
            (
                complaint("run_1", "cancelled", Some(&why("cancelled", None)), None),
                "run_1 was cancelled",
            ),
            (
                complaint("run_1", "timed_out", None, None),
                "run_1 timed out",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_run_is_described() {
        let run = run(&json!({
            "status": "failed", "error": {"code": "step_failed", "message": "step s2 failed"},
            "steps": [
                {"id": "s1", "tool": "retrieval", "status": "succeeded", "attempts": 1,
                    "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:00.012Z"},
                {"id": "s2", "tool": "http_fetch", "status": "failed", "attempts": 3,
                    "error": {"code": "blocked", "message": null}},
                {"id": "s3", "tool": "http_fetch", "status": "skipped", "attempts": 0},
            ],
        }));
        let expected = "\
run      run_1
session  ses_1
goal     Get ROAS for 123
kind     plan_execute
status   failed: step s2 failed (step_failed)
created  2026-01-01T00:00:00.000Z
took     1.2 s
used     812 tokens in, 120 out, $0.000194

✓  s1  retrieval   succeeded after 12 ms
✗  s2  http_fetch  failed, 3 attempts: blocked
·  s3  http_fetch  skipped
";
        assert_eq!(describe(&run), expected);
    }
}
