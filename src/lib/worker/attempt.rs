//! One attempt of a step.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::Value;
use tracing::Instrument;

use super::spending::Spent;
use crate::ids::{RunId, SessionId, TenantId};
use crate::llm::is_unbilled;
use crate::telemetry::labels;
use crate::tools::{Tool, ToolCall, ToolError, ToolErrorClass, ToolOutput, catalogue};

/// What an attempt needs.
pub(super) struct Attempt {
    pub(super) tool: Option<Arc<dyn Tool>>,
    pub(super) tool_name: String,
    pub(super) step_id: String,
    pub(super) number: u32,
    /// The arguments with their references resolved, or why they cannot be.
    pub(super) args: Result<Value, ToolError>,
    pub(super) limit: Duration,
    pub(super) max_output_bytes: usize,
    pub(super) tenant: TenantId,
    pub(super) session_id: SessionId,
    pub(super) run_id: RunId,
}

/// How it ended.
pub(super) struct Attempted {
    pub(super) step_id: String,
    pub(super) outcome: Result<ToolOutput, ToolError>,
    pub(super) duration: Duration,
    /// Whether the call was made at all.
    pub(super) called: bool,
}

impl Attempted {
    /// What the model call inside the tool used.
    pub(super) fn spent(&self) -> Spent {
        match &self.outcome {
            _ if !self.called => Spent::Nothing,
            Ok(output) => output.usage.map_or(Spent::Unknown, Spent::Known),
            Err(error) if is_unbilled(error.code) => Spent::Nothing,
            Err(_) => Spent::Unknown,
        }
    }
}

impl Attempt {
    /// Calls the tool. Never panics, and ends within the limit.
    pub(super) async fn carry_out(self) -> Attempted {
        let started = Instant::now();
        let (step_id, tool) = (self.step_id.clone(), self.tool_name.clone());
        let span = tracing::info_span!(
            "execute_tool",
            otel.name = %format!("execute_tool {tool}"),
            gen_ai.tool.name = %tool,
            step_id = %step_id,
            attempt = self.number,
        );
        let (called, outcome) = self.call().instrument(span).await;
        let duration = started.elapsed();
        let result = match &outcome {
            Ok(_) => "ok",
            Err(error) => match error.class {
                ToolErrorClass::Refused => "refused",
                ToolErrorClass::Transient { .. } => "transient",
                ToolErrorClass::Permanent => "permanent",
            },
        };
        // A plan of an older version may name any tool.
        let tool = if catalogue::find(&tool).is_some() {
            metrics::SharedString::from(tool)
        } else {
            metrics::SharedString::const_str(labels::OTHER)
        };
        metrics::counter!("agenthub_tool_executions_total", "tool" => tool.clone(), "outcome" => result)
            .increment(1);
        metrics::histogram!("agenthub_tool_duration_ms", "tool" => tool)
            .record(duration.as_secs_f64() * 1000.0);
        Attempted {
            step_id,
            outcome,
            duration,
            called,
        }
    }

    async fn call(self) -> (bool, Result<ToolOutput, ToolError>) {
        let args = match self.args {
            Ok(args) => args,
            Err(error) => return (false, Err(error)),
        };
        // A plan is checked when it is made; only now are the values of its references known.
        if let Err(problems) = catalogue::validate_args(&self.tool_name, &args) {
            let texts: Vec<_> = problems
                .iter()
                .map(|p| format!("{}: {}", p.path, p.message))
                .collect();
            return (
                false,
                Err(ToolError::permanent("invalid_arguments", texts.join("; "))),
            );
        }
        let Some(tool) = self.tool else {
            return (
                false,
                Err(ToolError::permanent(
                    "tool_not_available",
                    "this executor does not have the tool",
                )),
            );
        };
        let call = ToolCall {
            idempotency_key: format!("{}/{}", self.run_id, self.step_id),
            tenant: self.tenant,
            session_id: self.session_id,
            run_id: self.run_id,
            step_id: self.step_id,
            attempt: self.number,
            args,
        };
        let call = AssertUnwindSafe(tool.call(call)).catch_unwind();
        let outcome = match tokio::time::timeout(self.limit, call).await {
            Err(_) => Err(ToolError::transient(
                "tool_timeout",
                format!("no result within {} ms", self.limit.as_millis()),
            )),
            Ok(Err(_)) => Err(ToolError::permanent(
                "tool_panicked",
                "the tool failed in an unforeseen way",
            )),
            Ok(Ok(outcome)) => outcome,
        };
        let outcome = outcome.and_then(|output| {
            let bytes = output.value.to_string().len();
            if bytes <= self.max_output_bytes {
                return Ok(output);
            }
            let message = format!("{bytes} bytes; at most {} are kept", self.max_output_bytes);
            Err(ToolError::permanent("output_too_large", message))
        });
        (true, outcome)
    }
}
