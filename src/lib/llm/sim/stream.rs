//! A streamed answer: server-sent events with `chat.completion.chunk` objects. Pure.

use bytes::Bytes;
use serde_json::{Value, json};

use super::wire::{Answer, CREATED, FINGERPRINT, FinishReason, Usage, call_id};

/// Bytes that a piece of text has at least, the last one aside.
const PIECE_BYTES: usize = 24;

/// The events of `answer`. When the request asked for usage, the events name it: null but in the last.
pub(super) fn events(
    id: &str,
    model: &str,
    answer: &Answer,
    finish_reason: FinishReason,
    usage: Option<Usage>,
    asked_for_usage: bool,
) -> Vec<Bytes> {
    let chunk = |choices: Value, of_whole: Option<Usage>| {
        let mut chunk = json!({
            "id": id,
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        });
        if asked_for_usage {
            chunk["usage"] = json!(of_whole);
        }
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let delta = |delta: Value, finish: Option<FinishReason>| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        chunk(json!([choice]), None)
    };

    let opening = answer.content.as_ref().map(|_| "");
    let mut events = vec![delta(
        json!({"role": "assistant", "content": opening}),
        None,
    )];
    let text = answer.content.as_deref().unwrap_or_default();
    events.extend(pieces(text).map(|piece| delta(json!({"content": piece}), None)));
    for (index, call) in answer.calls.iter().enumerate() {
        let opening = json!({"tool_calls": [{
            "index": index, "id": call_id(id, index), "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }]});
        events.push(delta(opening, None));
        events.extend(pieces(&call.arguments).map(|piece| {
            let part = json!({"index": index, "function": {"arguments": piece}});
            delta(json!({"tool_calls": [part]}), None)
        }));
    }
    events.push(delta(json!({}), Some(finish_reason)));
    if let Some(usage) = usage.filter(|_| asked_for_usage) {
        events.push(chunk(json!([]), Some(usage)));
    }
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    events
}

/// `text` in pieces that end after white space where there is some.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let least = rest.ceil_char_boundary(PIECE_BYTES.min(rest.len()));
        let most = rest.ceil_char_boundary((2 * PIECE_BYTES).min(rest.len()));
        let end = rest[least..most]
            .find(char::is_whitespace)
            .map_or(most, |at| rest.ceil_char_boundary(least + at + 1));
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::Call;
    use super::*;

    fn chunks(answer: &Answer, asked: bool) -> Vec<Value> {
        let usage = Some(Usage::new(1, 0, 2, 0));
        let events = events(
            "chatcmpl-sim-1",
            "m",
            answer,
            FinishReason::Stop,
            usage,
            asked,
        );
        let (done, chunks) = events.split_last().unwrap();
        assert_eq!(done, "data: [DONE]\n\n");
        let parse = |event: &Bytes| {
            let text = std::str::from_utf8(event).unwrap();
            let json = text
                .strip_prefix("data: ")
                .and_then(|t| t.strip_suffix("\n\n"));
            assert!(!json.unwrap().contains('\n'));
            serde_json::from_str(json.unwrap()).unwrap()
        };
        chunks.iter().map(parse).collect()
    }

    #[test]
    fn text_and_calls_come_in_deltas_and_usage_last() {
        let answer = Answer {
            content: Some("A text of more than one piece, so that it is cut.".into()),
            calls: vec![Call {
                name: "f".into(),
                arguments: "{\"query\":\"a text of more than one piece\"}".into(),
            }],
        };
        let chunks = chunks(&answer, true);
        assert!(
            chunks
                .iter()
                .all(|c| c["object"] == "chat.completion.chunk")
        );
        let deltas: Vec<_> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
        assert_eq!(*deltas[0], json!({"role": "assistant", "content": ""}));
        let text: String = deltas
            .iter()
            .filter_map(|d| d["content"].as_str())
            .collect();
        assert_eq!(Some(text), answer.content);
        let calls: Vec<_> = deltas.iter().filter_map(|d| d.get("tool_calls")).collect();
        assert_eq!(calls[0][0]["id"], "call_1_0");
        let arguments: String = calls
            .iter()
            .filter_map(|c| c[0]["function"]["arguments"].as_str())
            .collect();
        assert_eq!(arguments, answer.calls[0].arguments);
        let [.., end, usage] = chunks.as_slice() else {
            panic!("{chunks:?}");
        };
        assert_eq!(end["choices"][0]["finish_reason"], "stop");
        assert_eq!(end["usage"], Value::Null);
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["total_tokens"], 3);
    }

    #[test]
    fn usage_is_not_sent_unasked() {
        let chunks = chunks(&Answer::text("x"), false);
        assert!(chunks.iter().all(|c| c.get("usage").is_none()));
    }

    proptest! {
        #[test]
        fn pieces_make_the_text(text in "\\PC{0,200}") {
            prop_assert_eq!(pieces(&text).collect::<String>(), text.clone());
            prop_assert!(pieces(&text).all(|p| !p.is_empty()));
        }
    }
}
