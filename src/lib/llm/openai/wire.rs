//! Between the project's types and OpenAI's. Pure.

use async_openai::types::chat::{
    ChatCompletionMessageToolCall, ChatCompletionMessageToolCalls,
    ChatCompletionRequestAssistantMessage, ChatCompletionRequestMessage,
    ChatCompletionRequestSystemMessage, ChatCompletionRequestToolMessage,
    ChatCompletionRequestUserMessage, ChatCompletionStreamOptions, ChatCompletionTool,
    ChatCompletionToolChoiceOption, ChatCompletionTools, CompletionUsage,
    CreateChatCompletionRequest, CreateChatCompletionResponse, FinishReason,
    FunctionCall as WireCall, FunctionObject, ToolChoiceOptions,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::failure;
use crate::llm::{ChatAnswer, ChatMessage, ChatRequest, Function, FunctionCall, LlmError};
use crate::pricing::Usage;

/// The request in the library's types.
pub(super) fn request(request: ChatRequest) -> CreateChatCompletionRequest {
    let tools: Vec<_> = request.functions.into_iter().map(tool).collect();
    CreateChatCompletionRequest {
        model: request.model,
        messages: request.messages.into_iter().map(message).collect(),
        // Without tools there is nothing to choose, and OpenAI says so.
        tool_choice: (request.text_only && !tools.is_empty()).then_some(
            ChatCompletionToolChoiceOption::Mode(ToolChoiceOptions::None),
        ),
        // An empty list is refused by OpenAI.
        tools: (!tools.is_empty()).then_some(tools),
        max_completion_tokens: Some(request.max_output_tokens),
        ..CreateChatCompletionRequest::default()
    }
}

/// The request for an answer in pieces, the last of which tells the usage.
pub(super) fn streamed(of: ChatRequest) -> CreateChatCompletionRequest {
    CreateChatCompletionRequest {
        stream: Some(true),
        stream_options: Some(ChatCompletionStreamOptions {
            include_usage: Some(true),
            include_obfuscation: None,
        }),
        ..request(of)
    }
}

/// An answer's body.
pub(super) fn read(body: &[u8]) -> Result<ChatAnswer, LlmError> {
    let normal = normalise(body).map_err(|e| failure::malformed(&e))?;
    answer(serde_json::from_slice(&normal).map_err(|e| failure::malformed(&e))?)
}

fn tool(function: Function) -> ChatCompletionTools {
    ChatCompletionTools::Function(ChatCompletionTool {
        function: FunctionObject {
            name: function.name,
            description: Some(function.description),
            parameters: Some(function.parameters),
            strict: None,
        },
    })
}

fn message(message: ChatMessage) -> ChatCompletionRequestMessage {
    match message {
        ChatMessage::System { content } => ChatCompletionRequestSystemMessage {
            content: content.into(),
            name: None,
        }
        .into(),
        ChatMessage::User { content } => ChatCompletionRequestUserMessage {
            content: content.into(),
            name: None,
        }
        .into(),
        ChatMessage::Assistant {
            content,
            tool_calls,
        } => {
            let calls: Vec<_> = tool_calls.into_iter().map(call).collect();
            // One of the two must be there.
            let content = content.or_else(|| calls.is_empty().then(String::new));
            ChatCompletionRequestAssistantMessage {
                content: content.map(Into::into),
                tool_calls: (!calls.is_empty()).then_some(calls),
                ..ChatCompletionRequestAssistantMessage::default()
            }
            .into()
        }
        ChatMessage::Tool {
            tool_call_id,
            content,
        } => ChatCompletionRequestToolMessage {
            content: content.into(),
            tool_call_id,
        }
        .into(),
    }
}

fn call(call: FunctionCall) -> ChatCompletionMessageToolCalls {
    ChatCompletionMessageToolCalls::Function(ChatCompletionMessageToolCall {
        id: call.id,
        function: WireCall {
            name: call.name,
            arguments: call.arguments,
        },
    })
}

/// The first choice of an answer.
pub(super) fn answer(response: CreateChatCompletionResponse) -> Result<ChatAnswer, LlmError> {
    let Some(choice) = response.choices.into_iter().next() else {
        return Err(failure::malformed(&"the answer has no choices"));
    };
    if choice.finish_reason == Some(FinishReason::ContentFilter) {
        return Err(failure::permanent(
            "llm_content_filtered",
            "the provider's content filter withheld the answer",
        ));
    }
    let calls = choice.message.tool_calls.unwrap_or_default();
    let calls = calls.into_iter().map(|call| match call {
        ChatCompletionMessageToolCalls::Function(call) => FunctionCall {
            id: call.id,
            name: call.function.name,
            arguments: call.function.arguments,
        },
        // Never offered; the caller refuses the name like any unknown one.
        ChatCompletionMessageToolCalls::Custom(call) => FunctionCall {
            id: call.id,
            name: call.custom_tool.name,
            arguments: call.custom_tool.input,
        },
    });
    Ok(ChatAnswer {
        model: response.model,
        content: choice.message.content.or(choice.message.refusal),
        tool_calls: calls.collect(),
        truncated: choice.finish_reason == Some(FinishReason::Length),
        usage: response.usage.map(usage),
    })
}

#[allow(clippy::needless_pass_by_value)] // used as a function of `map`
fn usage(usage: CompletionUsage) -> Usage {
    let cached = usage.prompt_tokens_details.and_then(|d| d.cached_tokens);
    let reasoning = usage
        .completion_tokens_details
        .and_then(|d| d.reasoning_tokens);
    Usage {
        input_tokens: usage.prompt_tokens.into(),
        cached_tokens: cached.unwrap_or_default().into(),
        output_tokens: usage.completion_tokens.into(),
        reasoning_tokens: reasoning.unwrap_or_default().into(),
    }
}

/// The body of an answer with only what [`answer`] reads, in the form that the library decodes.
///
/// The library insists on fields that compatible servers leave out or fill with values of their own
/// (`created`, `service_tier`, `finish_reason`, a call's `type`), none of which matters here.
pub(super) fn normalise(body: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let completion: Completion = serde_json::from_slice(body)?;
    serde_json::to_vec(&completion)
}

#[derive(Deserialize, Serialize)]
struct Completion {
    #[serde(skip_deserializing)]
    id: String,
    #[serde(skip_deserializing)]
    object: String,
    #[serde(skip_deserializing)]
    created: u32,
    #[serde(default)]
    model: String,
    choices: Vec<Choice>,
    usage: Option<Counts>,
}

#[derive(Deserialize, Serialize)]
struct Choice {
    #[serde(skip_deserializing)]
    index: u32,
    message: Message,
    finish_reason: Option<Finish>,
}

/// Why the answer ended, as far as it matters.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Finish {
    Length,
    ContentFilter,
    #[serde(other)]
    Stop,
}

#[derive(Deserialize, Serialize)]
struct Message {
    #[serde(skip_deserializing)]
    role: Assistant,
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<Call>>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "snake_case")]
enum Assistant {
    #[default]
    Assistant,
}

#[derive(Deserialize, Serialize)]
struct Call {
    #[serde(default)]
    id: String,
    #[serde(rename = "type", skip_deserializing)]
    kind: Kind,
    function: Called,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Function,
}

#[derive(Deserialize, Serialize)]
struct Called {
    name: String,
    #[serde(default, deserialize_with = "as_text")]
    arguments: String,
}

/// Arguments are text that holds JSON; some servers send the JSON itself.
fn as_text<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(input)? {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    })
}

#[derive(Deserialize, Serialize)]
struct Counts {
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    #[serde(default)]
    total_tokens: u32,
    prompt_tokens_details: Option<Cached>,
    completion_tokens_details: Option<Reasoning>,
}

#[derive(Deserialize, Serialize)]
struct Cached {
    cached_tokens: Option<u32>,
}

#[derive(Deserialize, Serialize)]
struct Reasoning {
    reasoning_tokens: Option<u32>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<ChatAnswer, LlmError> {
        super::read(body.to_string().as_bytes())
    }

    #[test]
    fn an_answer_of_openai_is_read() {
        let answer = read(&json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-x",
            "service_tier": "default", "system_fingerprint": "fp",
            "choices": [{"index": 0, "logprobs": null, "finish_reason": "tool_calls", "message": {
                "role": "assistant", "content": null, "refusal": null, "annotations": [],
                "tool_calls": [{"id": "c1", "type": "function",
                    "function": {"name": "f", "arguments": "{\"a\":1}"}}],
            }}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 5}},
        }));
        let expected = ChatAnswer {
            model: "gpt-x".into(),
            content: None,
            tool_calls: vec![FunctionCall {
                id: "c1".into(),
                name: "f".into(),
                arguments: "{\"a\":1}".into(),
            }],
            truncated: false,
            usage: Some(Usage {
                input_tokens: 10,
                cached_tokens: 4,
                output_tokens: 20,
                reasoning_tokens: 5,
            }),
        };
        assert_eq!(answer.unwrap(), expected);
    }

    #[test]
    fn what_compatible_servers_leave_out_or_add_does_not_matter() {
        let answer = read(&json!({
            "choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
                "finish_reason": "eos", "extra": true}],
            "service_tier": "on_demand", "created": 1.5,
        }))
        .unwrap();
        assert_eq!(answer.tool_calls[0].arguments, "{\"a\":1}");
        assert_eq!(answer.usage, None);
        assert!(!answer.truncated);
    }

    #[test]
    fn cut_withheld_and_empty_answers_are_told_apart() {
        let with = |finish: &str| {
            read(&json!({"choices": [{"message": {"content": "x"}, "finish_reason": finish}]}))
        };
        assert!(with("length").unwrap().truncated);
        assert_eq!(
            with("content_filter").unwrap_err().code,
            "llm_content_filtered"
        );
        let empty = read(&json!({"choices": []}));
        assert_eq!(empty.unwrap_err().code, "llm_malformed_answer");
        let refused = read(&json!({"choices": [{"message": {"refusal": "no"}}]}));
        assert_eq!(refused.unwrap().content.as_deref(), Some("no"));
    }

    #[test]
    fn a_text_is_asked_for_where_there_are_functions() {
        let asked = |functions: Vec<Function>, text_only| {
            let wire = request(ChatRequest {
                model: "m".into(),
                messages: vec![],
                functions,
                text_only,
                max_output_tokens: 9,
                traceparent: None,
            });
            serde_json::to_value(wire).unwrap()["tool_choice"].clone()
        };
        let function = Function {
            name: "f".into(),
            description: "d".into(),
            parameters: json!({}),
        };
        assert_eq!(asked(vec![function.clone()], true), json!("none"));
        assert_eq!(asked(vec![function], false), Value::Null);
        assert_eq!(asked(vec![], true), Value::Null);
    }

    #[test]
    fn a_conversation_has_openais_form() {
        let wire = request(ChatRequest {
            model: "m".into(),
            messages: vec![
                ChatMessage::System {
                    content: "s".into(),
                },
                ChatMessage::User {
                    content: "u".into(),
                },
                ChatMessage::Assistant {
                    content: None,
                    tool_calls: vec![FunctionCall {
                        id: "c".into(),
                        name: "f".into(),
                        arguments: "{}".into(),
                    }],
                },
                ChatMessage::Tool {
                    tool_call_id: "c".into(),
                    content: "r".into(),
                },
            ],
            functions: vec![Function {
                name: "f".into(),
                description: "d".into(),
                parameters: json!({"type": "object"}),
            }],
            text_only: false,
            max_output_tokens: 9,
            traceparent: None,
        });
        let expected = json!({
            "model": "m",
            "max_completion_tokens": 9,
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "u"},
                {"role": "assistant", "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "c", "content": "r"},
            ],
            "tools": [{"type": "function", "function":
                {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
        });
        assert_eq!(serde_json::to_value(wire).unwrap(), expected);
    }
}
