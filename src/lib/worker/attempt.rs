//! One attempt of a step.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::Value;
use tracing::Instrument;

use super::breakers::Permit;
use super::results::{Entry, Origin, Results};
use super::spending::Spent;
use crate::executor::breaker::Verdict;
use crate::ids::{KeyId, RunId, SessionId, TenantId};
use crate::llm::is_unbilled;
use crate::telemetry::{self, labels};
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
    pub(super) key_id: KeyId,
    pub(super) session_id: SessionId,
    pub(super) run_id: RunId,
    /// Leave of the tool's circuit breaker, or how long it is to be waited for.
    pub(super) permit: Result<Permit, Duration>,
    /// Where the result may be kept.
    pub(super) kept: Option<(Arc<Results>, Entry)>,
}

/// How it ended.
pub(super) struct Attempted {
    pub(super) step_id: String,
    pub(super) outcome: Result<ToolOutput, ToolError>,
    pub(super) duration: Duration,
    /// Whether the call was made at all.
    pub(super) called: bool,
    /// Where the outcome came from.
    pub(super) origin: Origin,
    /// Whether the worker was lost, and not the call: that uses up no attempt.
    pub(super) lost: bool,
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
        for (name, value) in [
            ("gen_ai.operation.name", "execute_tool".to_owned()),
            ("gen_ai.tool.type", "function".to_owned()),
            ("tenant", self.tenant.to_string()),
            ("key_id", self.key_id.to_string()),
            ("session_id", self.session_id.to_string()),
            ("run_id", self.run_id.to_string()),
        ] {
            telemetry::note(&span, name, value);
        }
        let (made, outcome) = self.get().instrument(span.clone()).await;
        telemetry::note(
            &span,
            "cache",
            made.map_or("not_called", |origin| origin.as_str()),
        );
        if let Err(error) = &outcome {
            telemetry::failed(&span, error.code);
        }
        drop(span);
        let duration = started.elapsed();
        let called = made == Some(Origin::Call);
        let result = match &outcome {
            Ok(_) if !called => "cached",
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
        if called {
            metrics::histogram!("agenthub_tool_duration_ms", "tool" => tool)
                .record(duration.as_secs_f64() * 1000.0);
        }
        Attempted {
            step_id,
            outcome,
            duration,
            called,
            origin: made.unwrap_or(Origin::Call),
            lost: false,
        }
    }

    /// The outcome, and where it came from; from nowhere when no call was to be made.
    async fn get(self) -> (Option<Origin>, Result<ToolOutput, ToolError>) {
        let args = match self.args {
            Ok(args) => args,
            Err(error) => return (None, Err(error)),
        };
        // A plan is checked when it is made; only now are the values of its references known.
        if let Err(problems) = catalogue::validate_args(&self.tool_name, &args) {
            let texts: Vec<_> = problems
                .iter()
                .map(|p| format!("{}: {}", p.path, p.message))
                .collect();
            let error = ToolError::permanent("invalid_arguments", texts.join("; "));
            return (None, Err(error));
        }
        let Some(tool) = self.tool else {
            let message = "this executor does not have the tool";
            return (
                None,
                Err(ToolError::permanent("tool_not_available", message)),
            );
        };
        let permit = match self.permit {
            Ok(permit) => permit,
            Err(wait) => return (None, Err(held_back(wait))),
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
        let call = made(tool, call, self.limit, self.max_output_bytes);
        let (origin, outcome) = match &self.kept {
            Some((results, entry)) => results.get(entry, self.limit / 2, call).await,
            None => (Origin::Call, call.await),
        };
        permit.report(match origin {
            Origin::Call => verdict(&outcome),
            Origin::Cache | Origin::Shared => Verdict::Nothing,
        });
        (Some(origin), outcome)
    }
}

/// Makes the call. It never panics, ends within the limit from now on, and gives no more than it may.
fn made(
    tool: Arc<dyn Tool>,
    call: ToolCall,
    limit: Duration,
    max_output_bytes: usize,
) -> impl Future<Output = Result<ToolOutput, ToolError>> {
    let deadline = tokio::time::Instant::now() + limit;
    async move {
        let call = AssertUnwindSafe(tool.call(call)).catch_unwind();
        let output = match tokio::time::timeout_at(deadline, call).await {
            Err(_) => {
                let message = format!("no result within {} ms", limit.as_millis());
                return Err(ToolError::transient("tool_timeout", message));
            }
            Ok(Err(_)) => {
                let message = "the tool failed in an unforeseen way";
                return Err(ToolError::permanent(PANICKED, message));
            }
            Ok(Ok(outcome)) => outcome?,
        };
        let bytes = output.value.to_string().len();
        if bytes <= max_output_bytes {
            return Ok(output);
        }
        let message = format!("{bytes} bytes; at most {max_output_bytes} are kept");
        Err(ToolError::permanent("output_too_large", message))
    }
}

const PANICKED: &str = "tool_panicked";

fn held_back(wait: Duration) -> ToolError {
    ToolError {
        class: ToolErrorClass::Transient {
            retry_after: Some(wait),
        },
        code: "breaker_open",
        message: "the tool fails too often to be called now".to_owned(),
    }
}

/// What the outcome of a call says of the other side. One that answers with a refusal of its own, such
/// as "not found", works; a rule of ours says nothing of it.
fn verdict(outcome: &Result<ToolOutput, ToolError>) -> Verdict {
    match outcome {
        Ok(_) => Verdict::Success,
        Err(error) => match error.class {
            ToolErrorClass::Refused => Verdict::Nothing,
            ToolErrorClass::Transient { .. } => Verdict::Failure,
            ToolErrorClass::Permanent if error.code == PANICKED => Verdict::Failure,
            ToolErrorClass::Permanent => Verdict::Success,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_other_side_does_is_held_against_it() {
        let error = |class, code| {
            Err(ToolError {
                class,
                code,
                message: String::new(),
            })
        };
        let transient = ToolErrorClass::Transient { retry_after: None };
        for (outcome, expected) in [
            (Ok(ToolOutput::default()), Verdict::Success),
            (error(transient, "connect_failed"), Verdict::Failure),
            (error(transient, "tool_timeout"), Verdict::Failure),
            (error(ToolErrorClass::Permanent, PANICKED), Verdict::Failure),
            (
                error(ToolErrorClass::Permanent, "http_status"),
                Verdict::Success,
            ),
            (
                error(ToolErrorClass::Refused, "address_not_global"),
                Verdict::Nothing,
            ),
        ] {
            assert_eq!(verdict(&outcome), expected, "{outcome:?}");
        }
    }
}
