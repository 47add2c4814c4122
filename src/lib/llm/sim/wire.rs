//! Requests and answers in OpenAI's chat-completions format, as far as the simulator speaks it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The model names that the simulator lists. It answers to every other name as well.
pub(super) const MODELS: [&str; 2] = ["agenthub-sim", "agenthub-sim-large"];
/// What the answers name as the system that made them.
pub(super) const FINGERPRINT: &str = "fp_agenthub_llm_sim";
/// `created` of every answer, 2025-01-01: the same request has the same answer.
pub(super) const CREATED: u64 = 1_735_689_600;

/// A request. What the simulator has no use for is ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Request<'a> {
    #[serde(borrow)]
    pub(super) model: Cow<'a, str>,
    pub(super) messages: Vec<Message>,
    #[serde(borrow, default)]
    pub(super) tools: Option<Vec<Tool<'a>>>,
    #[serde(borrow, default)]
    pub(super) tool_choice: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    #[serde(default)]
    pub(super) stream_options: Option<StreamOptions>,
    #[serde(default)]
    pub(super) max_completion_tokens: Option<u64>,
    #[serde(default)]
    pub(super) max_tokens: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    Function,
}

#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) role: Role,
    #[serde(default)]
    pub(super) content: Option<Content>,
    #[serde(default)]
    pub(super) tool_calls: Option<Vec<PastCall>>,
    #[serde(default)]
    pub(super) tool_call_id: Option<String>,
}

impl Message {
    /// The text of the message, its parts in one.
    pub(super) fn text(&self) -> Cow<'_, str> {
        match &self.content {
            None => Cow::Borrowed(""),
            Some(Content::Text(text)) => Cow::Borrowed(text),
            Some(Content::Parts(parts)) => {
                let texts: Vec<_> = parts.iter().filter_map(|p| p.text.as_deref()).collect();
                Cow::Owned(texts.join("\n"))
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
pub(super) struct Part {
    #[serde(default)]
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PastCall {
    #[serde(default)]
    pub(super) id: String,
    pub(super) function: PastFunction,
}

#[derive(Debug, Deserialize)]
pub(super) struct PastFunction {
    pub(super) name: String,
    #[serde(default)]
    pub(super) arguments: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tool<'a> {
    #[serde(borrow)]
    pub(super) function: Function<'a>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Function<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) description: Option<Cow<'a, str>>,
    /// Not read beyond what [`super::plan`] looks for: parsing every schema of every request would be
    /// most of the work.
    #[serde(borrow, default)]
    pub(super) parameters: Option<&'a RawValue>,
}

/// What the simulator answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) content: Option<String>,
    pub(super) calls: Vec<Call>,
}

impl Answer {
    pub(super) fn text(content: impl Into<String>) -> Self {
        Self {
            content: Some(content.into()),
            calls: Vec::new(),
        }
    }
}

/// A function that the answer calls.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) name: String,
    /// JSON, unless a script says otherwise.
    pub(super) arguments: String,
}

/// Tokens of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u64,
}

impl Usage {
    pub(super) fn new(prompt: u64, cached: u64, completion: u64, reasoning: u64) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt.saturating_add(completion),
            prompt_tokens_details: PromptDetails {
                cached_tokens: cached,
            },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: reasoning,
            },
        }
    }
}

/// The tokens that `bytes` bytes count as: a quarter, at least 1.
pub(super) fn tokens(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX).max(1)
}

/// The tokens of the whole request.
pub(super) fn prompt_tokens(request: &Request<'_>) -> u64 {
    let messages = request.messages.iter().map(|message| {
        let calls = message.tool_calls.iter().flatten();
        let calls = calls.map(|c| c.function.name.len() + c.function.arguments.len());
        message.text().len() + calls.sum::<usize>()
    });
    let tools = request.tools.iter().flatten().map(|tool| {
        let function = &tool.function;
        function.name.len()
            + function.description.as_deref().map_or(0, str::len)
            + function.parameters.map_or(0, |p| p.get().len())
    });
    tokens(messages.sum::<usize>() + tools.sum::<usize>())
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

/// Cuts `answer` at `max_tokens`, in the middle of the arguments where it comes to that, as models do.
/// Returns the tokens that remain and why the answer ended.
pub(super) fn limit(answer: &mut Answer, max_tokens: Option<u64>) -> (u64, FinishReason) {
    let bytes = answer.content.as_deref().map_or(0, str::len)
        + answer
            .calls
            .iter()
            .map(|c| c.name.len() + c.arguments.len())
            .sum::<usize>();
    let used = tokens(bytes);
    let Some(max) = max_tokens.filter(|max| *max < used) else {
        let finish = if answer.calls.is_empty() {
            FinishReason::Stop
        } else {
            FinishReason::ToolCalls
        };
        return (used, finish);
    };
    let mut left = usize::try_from(max.saturating_mul(4)).unwrap_or(usize::MAX);
    if let Some(content) = &mut answer.content {
        content.truncate(content.floor_char_boundary(left));
        left -= content.len();
    }
    answer.calls.retain_mut(|call| {
        if call.name.len() >= left {
            left = 0;
            return false;
        }
        left -= call.name.len();
        let end = call.arguments.floor_char_boundary(left);
        call.arguments.truncate(end);
        left -= end;
        true
    });
    (max, FinishReason::Length)
}

/// A whole answer.
#[derive(Serialize)]
pub(super) struct Completion<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) system_fingerprint: &'static str,
    pub(super) choices: [Choice<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
}

#[derive(Serialize)]
pub(super) struct Choice<'a> {
    pub(super) index: u32,
    pub(super) message: AnswerMessage<'a>,
    pub(super) logprobs: Option<()>,
    pub(super) finish_reason: FinishReason,
}

#[derive(Serialize)]
pub(super) struct AnswerMessage<'a> {
    pub(super) role: &'static str,
    pub(super) content: Option<&'a str>,
    pub(super) refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<AnswerCall<'a>>,
}

#[derive(Serialize)]
pub(super) struct AnswerCall<'a> {
    pub(super) id: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) function: AnswerFunction<'a>,
}

#[derive(Serialize)]
pub(super) struct AnswerFunction<'a> {
    pub(super) name: &'a str,
    pub(super) arguments: &'a str,
}

/// The name of the call at `index` in the answer `id`.
pub(super) fn call_id(id: &str, index: usize) -> String {
    format!("call_{}_{index}", id.rsplit('-').next().unwrap_or(id))
}

/// The body of a whole answer.
pub(super) fn completion(
    id: &str,
    model: &str,
    answer: &Answer,
    finish_reason: FinishReason,
    usage: Option<Usage>,
) -> serde_json::Result<Vec<u8>> {
    let calls = answer
        .calls
        .iter()
        .enumerate()
        .map(|(at, call)| AnswerCall {
            id: call_id(id, at),
            kind: "function",
            function: AnswerFunction {
                name: &call.name,
                arguments: &call.arguments,
            },
        });
    serde_json::to_vec(&Completion {
        id,
        object: "chat.completion",
        created: CREATED,
        model,
        system_fingerprint: FINGERPRINT,
        choices: [Choice {
            index: 0,
            message: AnswerMessage {
                role: "assistant",
                content: answer.content.as_deref(),
                refusal: None,
                tool_calls: calls.collect(),
            },
            logprobs: None,
            finish_reason,
        }],
        usage,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_cut_at_the_token_limit() {
        let call = |arguments: &str| Call {
            name: "f".repeat(8),
            arguments: arguments.into(),
        };
        let whole = Answer {
            content: Some("é".repeat(8)),
            calls: vec![call("{\"a\":1}"), call("{}")],
        };
        let cut = |max| {
            let mut answer = whole.clone();
            let (used, finish) = limit(&mut answer, max);
            (answer, used, finish)
        };
        assert_eq!(cut(None), (whole.clone(), 11, FinishReason::ToolCalls));
        assert_eq!(cut(Some(11)), (whole.clone(), 11, FinishReason::ToolCalls));
        let (answer, used, finish) = cut(Some(7));
        assert_eq!((used, finish), (7, FinishReason::Length));
        assert_eq!(answer.calls, [call("{\"a\"")]);
        let (answer, ..) = cut(Some(1));
        assert_eq!(answer, Answer::text("éé"));
    }
}
