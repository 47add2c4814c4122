//! The span of one model call, by the semantic conventions for generative AI.

use opentelemetry::{StringValue, Value};
use tracing::Span;

use super::spending::Cost;
use crate::llm::{ChatAnswer, ChatRequest, LlmError};
use crate::telemetry;

/// The span of a call that begins.
pub(super) fn begin(request: &ChatRequest) -> Span {
    let span = tracing::info_span!(
        "chat",
        otel.name = %format!("chat {}", request.model),
        otel.kind = "client",
        gen_ai.operation.name = "chat",
        gen_ai.request.model = %request.model,
    );
    // The protocol that is spoken, whoever answers.
    telemetry::note(&span, "gen_ai.provider.name", "openai");
    telemetry::note(&span, "gen_ai.output.type", "text");
    let tokens = i64::from(request.max_output_tokens);
    telemetry::note(&span, "gen_ai.request.max_tokens", tokens);
    span
}

/// Ends the span of a call that was settled.
pub(super) fn settled(span: Span, outcome: &Result<ChatAnswer, LlmError>, cost: Cost) {
    end(&span, outcome);
    let micro_usd = i64::try_from(cost.micro_usd).unwrap_or(i64::MAX);
    telemetry::note(&span, "cost_micro_usd", micro_usd);
    drop(span);
}

/// Tells the span what came of the call.
pub(super) fn end(span: &Span, outcome: &Result<ChatAnswer, LlmError>) {
    let answer = match outcome {
        Ok(answer) => answer,
        Err(error) => return telemetry::failed(span, error.code),
    };
    telemetry::note(span, "gen_ai.response.model", answer.model.clone());
    let reason = if answer.truncated {
        "length"
    } else if answer.tool_calls.is_empty() {
        "stop"
    } else {
        "tool_calls"
    };
    let reasons = Value::Array(vec![StringValue::from(reason)].into());
    telemetry::note(span, "gen_ai.response.finish_reasons", reasons);
    let Some(usage) = answer.usage else { return };
    for (name, tokens) in [
        ("gen_ai.usage.input_tokens", usage.input_tokens),
        ("gen_ai.usage.output_tokens", usage.output_tokens),
    ] {
        telemetry::note(span, name, i64::try_from(tokens).unwrap_or(i64::MAX));
    }
}
