//! An answer that comes in pieces: server-sent events with `chat.completion.chunk` objects.
//!
//! The library's own stream insists on fields that compatible servers leave out, and repeats connections
//! by itself, so the events are read here. What they add up to is read like an answer in one piece.

use std::collections::BTreeMap;

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::attempt::MAX_ANSWER_BYTES;
use super::{attempt, failure, wire};
use crate::llm::{ChatAnswer, LlmError, TextSink};

/// Reads the answer to a request for a stream.
pub(super) async fn read(
    mut response: Response,
    heard: &TextSink<'_>,
) -> Result<ChatAnswer, LlmError> {
    let kind = response.headers().get(CONTENT_TYPE);
    let in_pieces = kind
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"));
    if !in_pieces {
        // Some servers answer in one piece whatever they are asked for.
        let body = attempt::whole(&mut response).await?;
        let answer = wire::read(&body)?;
        answer.content.iter().for_each(|text| heard(text));
        return Ok(answer);
    }
    let mut pieces = Pieces::default();
    let mut lines = Lines::default();
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await.map_err(failure::of_transport)? {
        bytes += chunk.len();
        if bytes > MAX_ANSWER_BYTES {
            return Err(failure::too_large());
        }
        lines.push(&chunk);
        while let Some(line) = lines.next() {
            if let Some(data) = line.strip_prefix(b"data:") {
                pieces.take(data.trim_ascii(), heard)?;
            }
        }
    }
    pieces.put_together()
}

/// Bytes, cut at line ends.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins, and up to where no line end was found.
    next: usize,
    looked: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.next);
        self.looked -= self.next;
        self.next = 0;
        self.bytes.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let Some(end) = self.bytes[self.looked..].iter().position(|b| *b == b'\n') else {
            self.looked = self.bytes.len();
            return None;
        };
        let end = self.looked + end;
        let line = self.bytes[self.next..end].to_vec();
        (self.next, self.looked) = (end + 1, end + 1);
        Some(line)
    }
}

/// What has come so far.
#[derive(Default)]
struct Pieces {
    model: Option<String>,
    content: Option<String>,
    refusal: Option<String>,
    calls: BTreeMap<u64, Call>,
    finish: Option<String>,
    usage: Option<Value>,
    done: bool,
}

#[derive(Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
struct Chunk {
    model: Option<String>,
    choices: Option<Vec<Choice>>,
    usage: Option<Value>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u64>,
    id: Option<String>,
    function: Option<Called>,
}

#[derive(Deserialize)]
struct Called {
    name: Option<String>,
    arguments: Option<Value>,
}

impl Pieces {
    fn take(&mut self, data: &[u8], heard: &TextSink<'_>) -> Result<(), LlmError> {
        if data.is_empty() || data == b"[DONE]" {
            self.done |= !data.is_empty();
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|e| failure::malformed(&e))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(failure::of_stream(&error));
        }
        self.model = self.model.take().or(chunk.model);
        if let Some(usage) = chunk.usage.filter(|usage| !usage.is_null()) {
            self.usage = Some(usage);
        }
        for choice in chunk.choices.into_iter().flatten() {
            if choice.index != 0 {
                continue;
            }
            self.finish = choice.finish_reason.or(self.finish.take());
            if let Some(delta) = choice.delta {
                self.add(delta, heard);
            }
        }
        Ok(())
    }

    fn add(&mut self, delta: Delta, heard: &TextSink<'_>) {
        if let Some(text) = delta.content {
            heard(&text);
            self.content.get_or_insert_default().push_str(&text);
        }
        if let Some(text) = delta.refusal {
            if self.content.is_none() {
                heard(&text);
            }
            self.refusal.get_or_insert_default().push_str(&text);
        }
        for part in delta.tool_calls.into_iter().flatten() {
            let last = self.calls.last_key_value().map(|(index, _)| *index);
            // Where a server numbers no calls, an id begins one.
            let index = match (part.index, &part.id, last) {
                (Some(index), ..) => index,
                (None, Some(id), Some(last)) if !id.is_empty() => last + 1,
                (None, _, last) => last.unwrap_or(0),
            };
            let call = self.calls.entry(index).or_default();
            if let Some(id) = part.id {
                call.id = id;
            }
            let Some(function) = part.function else {
                continue;
            };
            call.name.push_str(&function.name.unwrap_or_default());
            match function.arguments {
                Some(Value::String(text)) => call.arguments.push_str(&text),
                None | Some(Value::Null) => {}
                Some(other) => call.arguments.push_str(&other.to_string()),
            }
        }
    }

    /// The answer, read like one that came in one piece.
    fn put_together(self) -> Result<ChatAnswer, LlmError> {
        if !self.done && self.finish.is_none() {
            return Err(failure::cut_short());
        }
        let calls = self.calls.into_values().map(|call| {
            json!({"id": call.id, "function": {"name": call.name, "arguments": call.arguments}})
        });
        let message = json!({
            "content": self.content,
            "refusal": self.refusal,
            "tool_calls": calls.collect::<Vec<_>>(),
        });
        let whole = json!({
            "model": self.model.unwrap_or_default(),
            "choices": [{"message": message, "finish_reason": self.finish}],
            "usage": self.usage,
        });
        wire::read(whole.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::sync::Mutex;

    use super::*;

    /// The answer that events make, in pieces of `size` bytes, and the text that was heard.
    fn answer(events: &[Value], size: usize) -> (Result<ChatAnswer, LlmError>, Vec<String>) {
        let heard = Mutex::new(Vec::new());
        let sink = |text: &str| heard.lock().unwrap().push(text.to_owned());
        let mut body = String::new();
        for event in events {
            _ = write!(body, "data: {event}\r\n\r\n");
        }
        let (mut pieces, mut lines) = (Pieces::default(), Lines::default());
        let mut read = || {
            for chunk in body.as_bytes().chunks(size) {
                lines.push(chunk);
                while let Some(line) = lines.next() {
                    if let Some(data) = line.strip_prefix(b"data:") {
                        pieces.take(data.trim_ascii(), &sink)?;
                    }
                }
            }
            std::mem::take(&mut pieces).put_together()
        };
        let answer = read();
        (answer, heard.into_inner().unwrap())
    }

    fn delta(delta: &Value) -> Value {
        json!({"model": "m", "choices": [{"index": 0, "delta": delta}]})
    }

    #[test]
    fn pieces_make_an_answer_however_they_are_cut() {
        let events = [
            delta(&json!({"role": "assistant", "content": ""})),
            delta(&json!({"content": "Grüße, "})),
            delta(&json!({"content": "you"})),
            delta(
                &json!({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}),
            ),
            delta(&json!({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g"}}]})),
            delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\":"}}]})),
            delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})),
            json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": null}),
            json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}),
        ];
        for size in [1, 3, 17, 10_000] {
            let (answer, heard) = answer(&events, size);
            let answer = answer.unwrap();
            assert_eq!(answer.content.as_deref(), Some("Grüße, you"));
            assert_eq!(heard.concat(), "Grüße, you");
            assert_eq!(answer.model, "m");
            let calls = answer.tool_calls.iter();
            let calls: Vec<_> = calls
                .map(|c| (c.id.as_str(), c.name.as_str(), c.arguments.as_str()))
                .collect();
            assert_eq!(calls, [("a", "f", "{\"x\":1}"), ("b", "g", "")]);
            assert_eq!(answer.usage.unwrap().input_tokens, 7);
        }
    }

    #[test]
    fn calls_without_numbers_are_told_apart_by_their_ids() {
        let call = |id: Value, arguments: Value| {
            delta(
                &json!({"tool_calls": [{"id": id, "function": {"name": "f", "arguments": arguments}}]}),
            )
        };
        let end = json!({"choices": [{"finish_reason": "stop"}]});
        let events = [
            call(json!("a"), json!({"x": 1})),
            call(json!("b"), json!("{}")),
            end,
        ];
        let calls = answer(&events, 50).0.unwrap().tool_calls;
        let calls: Vec<_> = calls
            .iter()
            .map(|c| (c.name.as_str(), c.arguments.as_str()))
            .collect();
        assert_eq!(calls, [("f", "{\"x\":1}"), ("f", "{}")]);
    }

    #[test]
    fn a_stream_that_ends_early_or_in_an_error_is_no_answer() {
        let begun = delta(&json!({"content": "half"}));
        let code = |events: &[Value]| answer(events, 9).0.unwrap_err().code;
        assert_eq!(code(std::slice::from_ref(&begun)), "llm_connection_lost");
        let error = json!({"error": {"message": "overloaded", "code": 529}});
        assert_eq!(code(&[begun.clone(), error]), "llm_stream_failed");
        assert_eq!(code(&[begun, json!("nonsense")]), "llm_malformed_answer");
    }
}
