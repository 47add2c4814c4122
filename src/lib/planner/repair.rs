//! Asking the model again when its plan was refused.

use serde_json::{Value, json};

use crate::llm::{ChatAnswer, ChatMessage, ChatRequest, FunctionCall};
use crate::plan::PlanProblem;

/// How often a refused plan goes back to the model in one run.
pub const MAX_REPAIRS: u32 = 2;
/// Bytes of arguments that are not JSON, which the model is shown again.
const MAX_ECHO: usize = 2000;

/// What follows a refused plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterRefusal {
    /// The model is asked again with [`request`].
    Repair,
    /// The run fails with `plan_rejected`.
    GiveUp,
}

/// What follows a refused plan, when `repairs` have been asked for and `calls_left` model calls are
/// left to the run.
pub fn after_refusal(repairs: u32, calls_left: u32) -> AfterRefusal {
    if repairs < MAX_REPAIRS && calls_left > 0 {
        AfterRefusal::Repair
    } else {
        AfterRefusal::GiveUp
    }
}

/// The request for another plan: the conversation of `original`, the refused `answer`, and what is
/// wrong with it, told at each call and as a whole.
///
/// `original` is the first request, also for the second repair: only the latest refused answer is
/// shown, so that the conversation does not grow with each.
pub fn request(
    original: &ChatRequest,
    answer: &ChatAnswer,
    problems: &[PlanProblem],
) -> ChatRequest {
    let mut request = original.clone();
    let calls = echoed_calls(answer);
    let content = answer.content.clone().filter(|text| !text.is_empty());
    if content.is_some() || !calls.is_empty() {
        let replies: Vec<ChatMessage> = calls
            .iter()
            .enumerate()
            .map(|(index, call)| ChatMessage::Tool {
                tool_call_id: call.id.clone(),
                content: reply(index, problems),
            })
            .collect();
        request.messages.push(ChatMessage::Assistant {
            content,
            tool_calls: calls,
        });
        request.messages.extend(replies);
    }
    request.messages.push(ChatMessage::User {
        content: format!(
            "The plan was rejected:\n{}\nAnswer with the whole corrected plan.",
            list(problems.iter())
        ),
    });
    request
}

/// The calls of `answer` in a form that every provider takes back: distinct ids, since each is
/// answered by its own message, and arguments in JSON.
fn echoed_calls(answer: &ChatAnswer) -> Vec<FunctionCall> {
    let calls = answer.tool_calls.iter().enumerate();
    calls
        .map(|(index, call)| FunctionCall {
            id: format!("call_{index}"),
            name: call.name.clone(),
            arguments: echoed_arguments(&call.arguments),
        })
        .collect()
}

/// Arguments as the model is shown them again: always JSON.
pub(super) fn echoed_arguments(arguments: &str) -> String {
    if matches!(serde_json::from_str(arguments), Ok(Value::Object(_))) {
        arguments.to_owned()
    } else {
        json!({"invalid_json": start_of(arguments)}).to_string()
    }
}

fn start_of(text: &str) -> &str {
    let mut end = text.len().min(MAX_ECHO);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn reply(index: usize, problems: &[PlanProblem]) -> String {
    let own: Vec<&PlanProblem> = problems
        .iter()
        .filter(|problem| problem.step_index() == Some(index))
        .collect();
    if own.is_empty() {
        "Not run: the plan was rejected. No problem was found in this step.".to_owned()
    } else {
        format!("Not run: the plan was rejected.\n{}", list(own.into_iter()))
    }
}

fn list<'a>(problems: impl Iterator<Item = &'a PlanProblem>) -> String {
    let lines: Vec<String> = problems.map(|problem| format!("- {problem}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original() -> ChatRequest {
        ChatRequest {
            model: "m".into(),
            messages: vec![ChatMessage::User {
                content: "goal".into(),
            }],
            functions: vec![],
            text_only: false,
            max_output_tokens: 7,
            traceparent: None,
        }
    }

    fn answer(content: Option<&str>, calls: &[(&str, &str)]) -> ChatAnswer {
        ChatAnswer {
            model: "m".into(),
            content: content.map(Into::into),
            tool_calls: calls
                .iter()
                .map(|(id, arguments)| FunctionCall {
                    id: (*id).into(),
                    name: "t".into(),
                    arguments: (*arguments).into(),
                })
                .collect(),
            truncated: false,
            usage: None,
        }
    }

    fn problems() -> Vec<PlanProblem> {
        vec![
            PlanProblem::new("unknown_tool", "/steps/1/tool", "there is no tool \"t\""),
            PlanProblem::new("invalid_timeout", "/steps/1/timeout_s", "too long"),
            PlanProblem::new("unknown_tool", "/steps/10/tool", "far away"),
        ]
    }

    #[test]
    fn every_call_is_answered_once_with_its_own_problems() {
        let answer = answer(
            Some("So:"),
            &[("x", "{\"a\": 1}"), ("x", "{broken"), ("", "[]")],
        );
        let repaired = request(&original(), &answer, &problems());
        let [goal, echo, first, second, third, last] = repaired.messages.as_slice() else {
            panic!("{:?}", repaired.messages);
        };
        assert_eq!(goal, &original().messages[0]);
        let ChatMessage::Assistant {
            content,
            tool_calls,
        } = echo
        else {
            panic!("{echo:?}");
        };
        assert_eq!(content.as_deref(), Some("So:"));
        let arguments: Vec<&str> = tool_calls.iter().map(|c| c.arguments.as_str()).collect();
        assert_eq!(
            arguments,
            [
                "{\"a\": 1}",
                "{\"invalid_json\":\"{broken\"}",
                "{\"invalid_json\":\"[]\"}"
            ]
        );
        for (index, reply) in [first, second, third].into_iter().enumerate() {
            let ChatMessage::Tool {
                tool_call_id,
                content,
            } = reply
            else {
                panic!("{reply:?}");
            };
            assert_eq!(tool_call_id, &tool_calls[index].id);
            assert_eq!(content.contains("no tool"), index == 1, "{content}");
            assert_eq!(content.contains("too long"), index == 1);
            assert!(!content.contains("far away"));
        }
        let ChatMessage::User { content } = last else {
            panic!("{last:?}");
        };
        assert!(content.starts_with("The plan was rejected:\n- /steps/1/tool: there is no tool"));
        assert!(content.contains("far away (unknown_tool)"));
        assert!(content.ends_with("Answer with the whole corrected plan."));
        assert_eq!(repaired.max_output_tokens, 7);
    }

    #[test]
    fn answers_without_calls_are_echoed_when_there_is_something() {
        let text = request(&original(), &answer(Some("text"), &[]), &problems());
        assert_eq!(text.messages.len(), 3);
        assert!(matches!(text.messages[1], ChatMessage::Assistant { .. }));
        for content in [None, Some("")] {
            let nothing = request(&original(), &answer(content, &[]), &problems());
            assert_eq!(nothing.messages.len(), 2);
        }
    }

    #[test]
    fn broken_arguments_are_echoed_in_part() {
        let long = "ä".repeat(MAX_ECHO);
        let repaired = request(&original(), &answer(None, &[("x", &long)]), &problems());
        let ChatMessage::Assistant { tool_calls, .. } = &repaired.messages[1] else {
            panic!("{:?}", repaired.messages);
        };
        let arguments: Value = serde_json::from_str(&tool_calls[0].arguments).unwrap();
        assert_eq!(arguments["invalid_json"].as_str().unwrap().len(), MAX_ECHO);
    }

    #[test]
    fn there_are_two_repairs_while_calls_are_left() {
        assert_eq!(after_refusal(0, 1), AfterRefusal::Repair);
        assert_eq!(after_refusal(1, 9), AfterRefusal::Repair);
        assert_eq!(after_refusal(2, 9), AfterRefusal::GiveUp);
        assert_eq!(after_refusal(0, 0), AfterRefusal::GiveUp);
    }
}
