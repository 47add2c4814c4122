//! What a run tells: masked, and short enough for a stream.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::owned::Owned;
use crate::llm::Usage;
use crate::runs::UsageDelta;
use crate::telemetry::labels;

/// Bytes of data that an event carries. What is longer is in the run itself.
const MAX_EVENT_DATA: usize = 16 * 1024;
/// Bytes of it that are shown instead.
const PREVIEW: usize = 2 * 1024;

impl Owned {
    /// JSON text of an event's data, masked.
    pub(super) fn told(&self, data: &Value) -> String {
        let text = self.context.masker.json(data).to_string();
        if text.len() <= MAX_EVENT_DATA {
            return text;
        }
        let preview = &text[..text.floor_char_boundary(PREVIEW)];
        json!({ "truncated": true, "bytes": text.len(), "preview": preview }).to_string()
    }

    /// What a model call cost. A call whose use the provider did not tell counts its tokens as
    /// unknown, and costs what it is known to cost: nothing is made up.
    pub(super) fn settle(&self, model: &str, usage: Option<Usage>) -> UsageDelta {
        let Some(usage) = usage else {
            return UsageDelta::default();
        };
        let cost = self
            .context
            .prices
            .cost_micro_usd(model, usage, Timestamp::now());
        if cost.is_none() {
            tracing::warn!(model, "the model has no price");
        }
        let delta = UsageDelta {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cost_micro_usd: cost.unwrap_or(0),
        };
        let tenant = labels::tenant(self.command.spec.tenant.as_str());
        let model = labels::model(model);
        let tokens = |direction| {
            metrics::counter!("agenthub_tokens_total",
                "tenant" => tenant.clone(), "model" => model.clone(), "direction" => direction)
        };
        tokens("input").increment(delta.input_tokens);
        tokens("output").increment(delta.output_tokens);
        // The recorder's counters hold whole numbers: `telemetry` exposes this gauge, which only rises,
        // as the counter that it is.
        metrics::gauge!("agenthub_cost_usd_total", "tenant" => tenant.clone(), "model" => model.clone())
            .increment(super::to_f64(delta.cost_micro_usd) / 1e6);
        delta
    }
}
