//! The turns of an agent as clients see them: what its model called, and what it answered.
//!
//! The journal holds each answer as `{content, tool_calls: [{name, arguments}]}`. The calls of the n-th
//! answer are the steps `t<n>s1`, `t<n>s2`, ….

use serde_json::{Value, json};

use super::exit;
use super::run_body::{StepBody, StepState};
use super::run_view::Reader;
use crate::runs::{Journal, StepEntry};

/// Calls of one answer that are shown.
const MAX_CALLS: usize = 128;

/// The model's answers, in their order; none when one of them cannot be read.
pub(super) fn answers(reader: &Reader<'_>, journal: &Journal) -> Vec<Value> {
    let Some(key) = reader.key else {
        return Vec::new();
    };
    let calls = journal.model_calls.values();
    let answers: Option<Vec<Value>> = calls.map(|call| exit::open(key, &call.answer)).collect();
    answers.unwrap_or_default()
}

/// The calls of every turn, each with what the journal has of it. Without answers that can be read,
/// what the journal has.
pub(super) fn steps(reader: &Reader<'_>, answers: &[Value], journal: &Journal) -> Vec<StepBody> {
    if answers.is_empty() {
        let begun = |(id, entry): (&String, &StepEntry)| {
            reader.begun(StepBody::new(id, &entry.tool), entry)
        };
        return journal.steps.iter().map(begun).collect();
    }
    let mut steps = Vec::new();
    for (turn, answer) in (1..).zip(answers) {
        let calls = answer["tool_calls"].as_array().into_iter().flatten();
        for (number, call) in (1..).zip(calls.take(MAX_CALLS)) {
            steps.push(step(reader, &format!("t{turn}s{number}"), call, journal));
        }
    }
    steps
}

fn step(reader: &Reader<'_>, id: &str, call: &Value, journal: &Journal) -> StepBody {
    let entry = journal.steps.get(id);
    // The journal's name is the one that was called; the model's may be anything.
    let tool = match entry {
        Some(entry) => entry.tool.clone(),
        None => reader.exit.text(call["name"].as_str().unwrap_or_default()),
    };
    let mut body = StepBody::new(id, &tool);
    let args = call["arguments"].as_str().unwrap_or_default();
    body.args = Some(match serde_json::from_str::<Value>(args) {
        Ok(args) => reader.exit.json(&args),
        Err(_) => json!(reader.exit.text(args)),
    });
    match entry {
        Some(entry) => reader.begun(body, entry),
        None if reader.ended() => StepBody {
            status: StepState::Skipped,
            ..body
        },
        None => body,
    }
}

/// What a finished agent gave: its last answer.
pub(super) fn result(reader: &Reader<'_>, answers: &[Value]) -> Option<Value> {
    let answer = answers.last()?["content"].as_str()?;
    Some(json!({ "answer": reader.exit.text(answer.trim()) }))
}
