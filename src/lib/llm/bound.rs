//! How many tokens a request can be at most. Pure.

use std::io::{self, Write};

use super::{ChatMessage, ChatRequest};

/// Tokens that `request` cannot exceed, whatever tokenizer reads it.
///
/// Byte-level tokenizers spend at most one token on a byte, and a fixed few on the frame of a message
/// (OpenAI documents 3 to 4). Function schemas are rendered in a form of the provider's own, which is
/// as a rule shorter than their JSON; twice the JSON leaves room for its indentation.
pub fn input_bound_tokens(request: &ChatRequest) -> u64 {
    const FRAME: u64 = 256;
    const MESSAGE: u64 = 16;
    const FUNCTION: u64 = 64;
    let messages = request.messages.iter().map(|message| {
        MESSAGE
            + match message {
                ChatMessage::System { content } | ChatMessage::User { content } => len(content),
                ChatMessage::Assistant {
                    content,
                    tool_calls,
                } => {
                    content.as_deref().map_or(0, len)
                        + tool_calls
                            .iter()
                            .map(|c| MESSAGE + len(&c.id) + len(&c.name) + len(&c.arguments))
                            .sum::<u64>()
                }
                ChatMessage::Tool {
                    tool_call_id,
                    content,
                } => len(tool_call_id) + len(content),
            }
    });
    let functions = request.functions.iter().map(|f| {
        let mut parameters = ByteCounter(0);
        // Counting does not fail, and a `Value` is always JSON.
        let _ = serde_json::to_writer(&mut parameters, &f.parameters);
        FUNCTION + 2 * (len(&f.name) + len(&f.description) + parameters.0)
    });
    FRAME + messages.sum::<u64>() + functions.sum::<u64>()
}

fn len(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

struct ByteCounter(u64);

impl Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::llm::Function;

    #[test]
    fn the_input_bound_counts_every_text_of_the_request() {
        let text = || "x".repeat(100);
        let mut request = ChatRequest {
            model: "m".into(),
            messages: vec![],
            functions: vec![],
            text_only: false,
            max_output_tokens: 1,
            traceparent: None,
        };
        let empty = input_bound_tokens(&request);
        request.messages.push(ChatMessage::User { content: text() });
        let one = input_bound_tokens(&request);
        assert!(one >= empty + 100);
        request.functions.push(Function {
            name: "f".into(),
            description: text(),
            parameters: json!({"const": text()}),
        });
        assert!(input_bound_tokens(&request) >= one + 400);
    }
}
