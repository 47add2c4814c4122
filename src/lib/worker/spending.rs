//! What a model call may cost, and what it did: the worker's half of the budgets. The ledger's scripts
//! hold every call against the budgets, once per call.

use jiff::Timestamp;

use super::audit::Call;
use super::owned::Owned;
use super::to_f64;
use crate::ids::TenantId;
use crate::pricing::{Prices, Usage};
use crate::runs::{Reservation, Settlement};
use crate::telemetry::labels;

/// A model call that is to be made: what it is at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounded {
    /// Names the call within its run.
    pub(super) call: String,
    /// The model that is asked for, whose prices count.
    pub(super) model: String,
    /// When it was bounded: the prices in force then count, at the settlement too.
    at: Timestamp,
    /// Millionths of a US dollar.
    bound: u64,
}

/// The model has no price, so that no bound can be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model {0} has no price, so what it costs cannot be bounded")]
pub(super) struct Unpriced(pub(super) String);

/// What a call used, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spent {
    /// The provider told.
    Known(Usage),
    /// The call was not made, or was refused by the provider.
    Nothing,
    /// It may have used anything up to its bound.
    Unknown,
}

/// What became of a call: for the run's journal and its events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Tokens read.
    pub(super) input_tokens: u64,
    /// Tokens written.
    pub(super) output_tokens: u64,
    /// Millionths of a US dollar: the bound when the use is not known.
    pub(super) micro_usd: u64,
}

impl Bounded {
    /// A call of `model` that reads and writes at most so many tokens.
    pub(super) fn new(
        prices: &Prices,
        call: String,
        model: &str,
        input_tokens: u64,
        max_output_tokens: u32,
    ) -> Result<Self, Unpriced> {
        let at = Timestamp::now();
        let bound = prices.upper_bound_micro_usd(model, input_tokens, max_output_tokens, at);
        Ok(Self {
            call,
            model: model.to_owned(),
            at,
            bound: bound.ok_or_else(|| Unpriced(model.to_owned()))?,
        })
    }

    /// What is to be reserved for it.
    pub(super) fn reservation(&self) -> Reservation {
        Reservation {
            call: self.call.clone(),
            bound: self.bound,
            model: self.model.clone(),
        }
    }

    fn cost(&self, prices: &Prices, spent: Spent) -> Cost {
        match spent {
            Spent::Known(usage) => Cost {
                input_tokens: usage.input_tokens,
                output_tokens: usage.output_tokens,
                // It had a price at the same instant when it was bounded.
                micro_usd: prices
                    .cost_micro_usd(&self.model, usage, self.at)
                    .unwrap_or(self.bound),
            },
            Spent::Nothing => Cost::default(),
            Spent::Unknown => Cost {
                micro_usd: self.bound,
                ..Cost::default()
            },
        }
    }
}

impl Owned {
    /// Settles a call, with its audit record.
    pub(super) fn settle(
        &self,
        bounded: &Bounded,
        spent: Spent,
        mut call: Call<'_>,
    ) -> (Settlement, Cost) {
        let cost = bounded.cost(&self.context.prices, spent);
        call.cost = cost;
        let usage = match spent {
            Spent::Known(usage) => usage,
            Spent::Nothing | Spent::Unknown => Usage::default(),
        };
        count(&self.command.spec.tenant, &bounded.model, cost);
        let settlement = Settlement {
            call: bounded.call.clone(),
            cost: (spent != Spent::Unknown).then_some(cost.micro_usd),
            input: usage.input_tokens,
            cached: usage.cached_tokens,
            output: usage.output_tokens,
            reasoning: usage.reasoning_tokens,
            audit: self.audit_text(&call),
        };
        (settlement, cost)
    }
}

fn count(tenant: &TenantId, model: &str, cost: Cost) {
    let (tenant, model) = (labels::tenant(tenant.as_str()), labels::model(model));
    let tokens = |direction| {
        metrics::counter!("agenthub_tokens_total",
            "tenant" => tenant.clone(), "model" => model.clone(), "direction" => direction)
    };
    tokens("input").increment(cost.input_tokens);
    tokens("output").increment(cost.output_tokens);
    // The recorder's counters hold whole numbers: `telemetry` exposes this gauge, which only rises, as
    // the counter that it is.
    metrics::gauge!("agenthub_cost_usd_total", "tenant" => tenant.clone(), "model" => model.clone())
        .increment(to_f64(cost.micro_usd) / 1e6);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_costs_what_it_used_and_its_bound_when_that_is_not_known() {
        let prices = Prices::parse(
            "[[price]]\nmodel = \"m\"\nfrom = \"2024-01-01\"\ninput = 1000000\noutput = 2000000\n",
        )
        .unwrap();
        let bounded = Bounded::new(&prices, "1".into(), "m", 100, 10).unwrap();
        assert_eq!(bounded.reservation().bound, 120);
        let usage = Usage {
            input_tokens: 40,
            output_tokens: 5,
            ..Usage::default()
        };
        let cost = |spent| bounded.cost(&prices, spent).micro_usd;
        assert_eq!(cost(Spent::Known(usage)), 50);
        assert_eq!(cost(Spent::Nothing), 0);
        assert_eq!(cost(Spent::Unknown), 120);
        let unpriced = Bounded::new(&prices, "1".into(), "n", 1, 1).unwrap_err();
        assert_eq!(unpriced, Unpriced("n".into()));
    }
}
