use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::llm::FunctionCall;

fn answer(content: Option<&str>, calls: &[(&str, &str)]) -> ChatAnswer {
    ChatAnswer {
        model: "m".into(),
        content: content.map(Into::into),
        tool_calls: calls
            .iter()
            .enumerate()
            .map(|(i, (name, arguments))| FunctionCall {
                id: format!("call_{i}"),
                name: (*name).into(),
                arguments: (*arguments).into(),
            })
            .collect(),
        truncated: false,
        usage: None,
    }
}

fn plan(content: Option<&str>, calls: &[(&str, &str)]) -> Plan {
    parse(&answer(content, calls), 100).unwrap()
}

/// `code path` of every problem.
fn refused(content: Option<&str>, calls: &[(&str, &str)]) -> Vec<String> {
    let problems = parse(&answer(content, calls), 100).unwrap_err();
    problems
        .iter()
        .map(|p| format!("{} {}", p.code, p.path))
        .collect()
}

fn ids(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|step| step.id.as_str()).collect()
}

#[test]
fn calls_become_steps() {
    let plan = plan(
        Some("I will look."),
        &[
            ("search", r#"{"step_id": "find", "args": {"q": "x"}}"#),
            (
                "functions.fetch",
                r#"{"step_id": "get", "args": {"url": "${steps.find.output.url}"}, "depends_on": ["find"], "timeout_s": 5}"#,
            ),
        ],
    );
    let expected = json!({
        "steps": [
            {"id": "find", "tool": "search", "args": {"q": "x"}},
            {
                "id": "get", "tool": "fetch", "args": {"url": "${steps.find.output.url}"},
                "depends_on": ["find"], "timeout_s": 5
            }
        ],
        "answer": "I will look."
    });
    assert_eq!(serde_json::to_value(plan).unwrap(), expected);
}

#[test]
fn usual_slips_are_understood() {
    let plan = plan(
        None,
        &[
            ("t", r#"{"q": "x", "n": 1}"#),
            (
                "t",
                r#"{"step_id": null, "args": "{\"q\": \"x\"}", "depends_on": "s1", "timeout_s": null}"#,
            ),
            ("t", ""),
            ("t", r#"{"step_id": "", "args": {}, "depends_on": null}"#),
        ],
    );
    assert_eq!(ids(&plan), ["s1", "s2", "s3", "s4"]);
    assert_eq!(plan.steps[0].args, json!({"q": "x", "n": 1}));
    assert_eq!(plan.steps[1].args, json!({"q": "x"}));
    assert_eq!(plan.steps[1].depends_on, ["s1"]);
    assert_eq!(plan.steps[2].args, json!({}));
}

#[test]
fn what_is_not_understood_is_left_to_the_check() {
    let plan = plan(
        None,
        &[
            ("t", r#"{"step_id": "a", "args": "text"}"#),
            ("", r#"{"args": [1]}"#),
        ],
    );
    assert_eq!(plan.steps[0].args, json!("text"));
    assert_eq!(plan.steps[1].args, json!([1]));
    assert_eq!(plan.steps[1].tool, "");
}

#[test]
fn every_broken_call_is_reported_with_its_place() {
    assert_eq!(
        refused(
            None,
            &[
                ("t", r#"{"step_id": "a", "args": {"q": "x}"#),
                ("t", r#"{"args": {}}"#),
                ("t", "[1]"),
                ("t", r#"{"step_id": 3, "args": {}}"#),
                ("t", r#"{"args": {}, "depends_on": [1]}"#),
                ("t", r#"{"args": {}, "timeout_s": -1}"#),
                ("t", r#"{"args": {}, "timeout_s": 4294967296}"#),
                ("t", r#"{"args": {}, "why": "because"}"#),
            ]
        ),
        [
            "arguments_not_json /steps/0",
            "arguments_not_object /steps/2",
            "invalid_field /steps/3/id",
            "invalid_field /steps/4/depends_on",
            "invalid_field /steps/5/timeout_s",
            "invalid_field /steps/6/timeout_s",
            "unknown_field /steps/7",
        ]
    );
}

#[test]
fn broken_json_is_told_with_its_position_and_not_repeated() {
    let broken = answer(None, &[("t", "{\"args\":\n  {\"secret\" 1}}")]);
    let problems = parse(&broken, 100).unwrap_err();
    assert!(
        problems[0].message.contains("line 2 column 13"),
        "{}",
        problems[0]
    );
    assert!(!problems[0].message.contains("secret"));
}

#[test]
fn given_ids_are_kept_and_made_ones_keep_clear_of_them() {
    let plan = plan(
        None,
        &[
            ("t", r#"{"args": {}}"#),
            ("t", r#"{"step_id": "s1", "args": {}}"#),
            ("t", r#"{"step_id": "s3", "args": {}}"#),
            ("t", r#"{"args": {}}"#),
        ],
    );
    assert_eq!(ids(&plan), ["s2", "s1", "s3", "s4"]);
}

#[test]
fn repeated_ids_are_changed_unless_referred_to() {
    let long = "x".repeat(32);
    let a = r#"{"step_id": "a", "args": {}}"#;
    let a2 = r#"{"step_id": "a-2", "args": {}}"#;
    let x = format!(r#"{{"step_id": "{long}", "args": {{}}}}"#);
    let renamed = plan(
        None,
        &[
            ("t", a),
            ("t", a),
            ("t", a2),
            ("t", a),
            ("t", &x),
            ("t", &x),
        ],
    );
    assert_eq!(ids(&renamed)[..4], ["a", "a-3", "a-2", "a-4"]);
    assert_eq!(ids(&renamed)[5], format!("{}-2", "x".repeat(30)));
    for reference in [
        r#"{"args": {}, "depends_on": ["a"]}"#,
        r#"{"args": {"x": ["see ${steps.a.output}"]}}"#,
    ] {
        let codes = refused(None, &[("t", a), ("t", a), ("t", reference)]);
        assert_eq!(codes, ["duplicate_step_id /steps/1/id"]);
    }
}

#[test]
fn text_is_an_answer() {
    for text in [
        "It is 42.",
        "```json\n{\"value\": 42}\n```",
        "{\"steps\": \"many\"}",
        "{\"steps\": []}",
        "{\"steps\": [{\"name\": \"no tool\"}]}",
        "```\nunclosed",
    ] {
        let plan = plan(Some(&format!(" {text}\n")), &[]);
        assert_eq!((plan.steps.len(), plan.answer.as_deref()), (0, Some(text)));
    }
}

#[test]
fn plans_written_as_text_are_read() {
    let json = r#"{"steps": [
        {"id": "a", "tool": "t", "args": {"q": 1}},
        {"step_id": "b", "tool": "u", "arguments": {}, "depends_on": ["a"]},
        {"tool": "v"}
    ], "answer": "so"}"#;
    for text in [
        json.to_owned(),
        format!("Here is the plan:\n```json\n{json}\n```\nDone."),
        format!("```\n{{\"not\": 1}}\n```\n```\n{json}\n```"),
    ] {
        let plan = plan(Some(&text), &[]);
        assert_eq!(ids(&plan), ["a", "b", "s3"]);
        assert_eq!(plan.steps[0].args, json!({"q": 1}));
        assert_eq!(plan.steps[1].depends_on, ["a"]);
        assert_eq!(plan.steps[2].tool, "v");
        assert_eq!(plan.answer.as_deref(), Some("so"));
    }
    let wrong = r#"```json
{"steps": [{"tool": "t", "args": {}, "timeout_s": "soon"}]}
```"#;
    assert_eq!(
        refused(Some(wrong), &[]),
        ["invalid_field /steps/0/timeout_s"]
    );
}

#[test]
fn unusable_answers_are_refused() {
    assert_eq!(refused(None, &[]), ["empty_answer "]);
    assert_eq!(refused(Some(" \n"), &[]), ["empty_answer "]);
    let mut cut = answer(Some("It is"), &[("t", r#"{"args": {}}"#)]);
    cut.truncated = true;
    assert_eq!(parse(&cut, 100).unwrap_err()[0].code, "answer_truncated");
}

#[test]
fn long_answers_are_not_read() {
    let calls = answer(None, &[("t", "not JSON"); 5]);
    assert_eq!(parse(&calls, 4).unwrap_err()[0].code, "too_many_steps");
    assert_eq!(parse(&calls, 5).unwrap_err()[0].code, "arguments_not_json");
    let written = answer(Some(r#"{"steps": [{"tool": "t"}, {"tool": "t"}]}"#), &[]);
    assert_eq!(parse(&written, 1).unwrap_err()[0].code, "too_many_steps");
}

proptest! {
    #[test]
    fn any_answer_is_decided_and_ids_are_unique(
        content in proptest::option::of(prop_oneof![
            any::<String>(),
            "(```(json)?\n?)?\\{\"steps\": ?\\[\\{\"tool\": ?\"t\"(, ?\"id\": ?\"[ab]\")?\\}\\]\\}(\n```)?",
        ]),
        calls in proptest::collection::vec(
            prop_oneof![
                any::<String>(),
                "\\{\"step_id\": ?\"[a-c]\"(, ?\"args\": ?\\{\\})?\\}",
                "\\{\"args\": ?\\{\\}(, ?\"depends_on\": ?\\[\"[a-c]\"\\])?\\}",
            ],
            0..6,
        ),
        truncated: bool,
    ) {
        let calls: Vec<(&str, &str)> = calls.iter().map(|c| ("t", c.as_str())).collect();
        let mut answer = answer(content.as_deref(), &calls);
        answer.truncated = truncated;
        match parse(&answer, 100) {
            Err(problems) => prop_assert!(!problems.is_empty()),
            Ok(plan) => {
                prop_assert!(!truncated);
                let unique: HashSet<&str> = ids(&plan).into_iter().collect();
                prop_assert_eq!(unique.len(), plan.steps.len());
                if !calls.is_empty() {
                    prop_assert_eq!(plan.steps.len(), calls.len());
                }
            }
        }
    }
}
