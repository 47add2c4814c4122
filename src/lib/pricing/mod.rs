//! What a model call costs: prices with effective dates, in integer micro-USD. Pure.
//!
//! A call is reserved at an upper bound and settled at its actual cost. Both must be asked for the
//! same `model` (the one requested, not the snapshot that answered) and the same instant (that of the
//! reservation): then the settlement is never above the bound.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

const BUILTIN: &str = include_str!("prices.toml");
const PER_MILLION: u128 = 1_000_000;

/// Tokens of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read, those from the provider's cache included.
    pub input_tokens: u64,
    /// Of those, read from the provider's cache.
    pub cached_tokens: u64,
    /// Written, reasoning included.
    pub output_tokens: u64,
    /// Of those, spent on reasoning.
    pub reasoning_tokens: u64,
}

/// Why a price list was refused.
#[derive(Debug, thiserror::Error)]
pub enum PricingError {
    /// The file cannot be read.
    #[error("price list: {0}")]
    Read(#[from] io::Error),
    /// The file is not a price list.
    #[error("price list: {0}")]
    Parse(#[from] toml::de::Error),
    /// An entry makes no sense.
    #[error("price list, model {model:?}: {reason}")]
    Entry {
        /// The entry's model.
        model: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    price: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    model: String,
    from: Date,
    input: u64,
    cached_input: Option<u64>,
    output: u64,
}

/// The price of a model, in micro-USD per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Of input tokens.
    pub input: u64,
    /// Of input tokens that the provider read from its cache.
    pub cached_input: u64,
    /// Of output tokens, those spent on reasoning included.
    pub output: u64,
}

#[derive(Debug)]
struct Priced {
    /// The name, or the prefix without its `*`.
    name: String,
    prefix: bool,
    from: Timestamp,
    price: Price,
}

/// A price list.
#[derive(Debug)]
pub struct Prices(Vec<Priced>);

impl Prices {
    /// The list in `path`, or the built-in one.
    pub fn load(path: Option<&Path>) -> Result<Self, PricingError> {
        match path {
            Some(path) => Self::parse(&std::fs::read_to_string(path)?),
            None => Self::builtin(),
        }
    }

    /// The list that ships with the program.
    pub fn builtin() -> Result<Self, PricingError> {
        Self::parse(BUILTIN)
    }

    /// Reads a list: TOML, as the built-in `prices.toml`.
    pub fn parse(text: &str) -> Result<Self, PricingError> {
        let file: File = toml::from_str(text)?;
        let mut all: Vec<Priced> = Vec::with_capacity(file.price.len());
        for entry in file.price {
            let refuse = |reason| {
                Err(PricingError::Entry {
                    model: entry.model.clone(),
                    reason,
                })
            };
            let (name, prefix) = match entry.model.strip_suffix('*') {
                Some(prefix) => (prefix, true),
                None => (entry.model.as_str(), false),
            };
            if name.is_empty() || name.contains('*') {
                return refuse("expected a name, or a prefix followed by `*`");
            }
            let Ok(from) = entry.from.to_zoned_datetime(TimeZone::UTC) else {
                return refuse("the date is out of range");
            };
            let from = from.timestamp();
            let same = |p: &Priced| p.name == name && p.prefix == prefix && p.from == from;
            if all.iter().any(same) {
                return refuse("two prices from the same date");
            }
            all.push(Priced {
                name: name.to_owned(),
                prefix,
                from,
                price: Price {
                    input: entry.input,
                    cached_input: entry.cached_input.unwrap_or(entry.input),
                    output: entry.output,
                },
            });
        }
        Ok(Self(all))
    }

    /// The price of `model` in force at `at`: by its exact name, else by the longest prefix. `None`
    /// when it has none (yet).
    pub fn price(&self, model: &str, at: Timestamp) -> Option<Price> {
        self.0
            .iter()
            .filter(|p| p.from <= at)
            .filter(|p| {
                if p.prefix {
                    model.starts_with(&p.name)
                } else {
                    model == p.name
                }
            })
            .max_by_key(|p| (!p.prefix, p.name.len(), p.from))
            .map(|p| p.price)
    }

    /// What `usage` of `model` costs, in micro-USD, rounded up; `None` when the model is unpriced.
    pub fn cost_micro_usd(&self, model: &str, usage: Usage, at: Timestamp) -> Option<u64> {
        let price = self.price(model, at)?;
        // A provider that reports more cached than read tokens must not make the rest negative.
        let cached = usage.cached_tokens.min(usage.input_tokens);
        Some(micro_usd(&[
            (usage.input_tokens - cached, price.input),
            (cached, price.cached_input),
            (usage.output_tokens, price.output),
        ]))
    }

    /// The most that a call of `model` can cost, in micro-USD, which reads at most
    /// `input_bound_tokens` and writes at most `max_output_tokens`; `None` when it is unpriced.
    pub fn upper_bound_micro_usd(
        &self,
        model: &str,
        input_bound_tokens: u64,
        max_output_tokens: u32,
        at: Timestamp,
    ) -> Option<u64> {
        let price = self.price(model, at)?;
        Some(micro_usd(&[
            (input_bound_tokens, price.input.max(price.cached_input)),
            (u64::from(max_output_tokens), price.output),
        ]))
    }
}

/// The sum of tokens × price per million, rounded up once; `u64::MAX` when it does not fit.
fn micro_usd(parts: &[(u64, u64)]) -> u64 {
    let sum = parts.iter().fold(0_u128, |sum, (tokens, price)| {
        sum.saturating_add(u128::from(*tokens) * u128::from(*price))
    });
    u64::try_from(sum.div_ceil(PER_MILLION)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(date: &str) -> Timestamp {
        format!("{date}T00:00:00Z").parse().unwrap()
    }

    fn usage(input: u64, cached: u64, output: u64) -> Usage {
        Usage {
            input_tokens: input,
            cached_tokens: cached,
            output_tokens: output,
            reasoning_tokens: 0,
        }
    }

    #[test]
    fn the_built_in_list_prices_the_default_model_and_the_simulator() {
        let prices = Prices::builtin().unwrap();
        let now = at("2026-01-01");
        let million = usage(1_000_000, 0, 1_000_000);
        assert_eq!(
            prices.cost_micro_usd("gpt-4o-mini", million, now),
            Some(750_000)
        );
        assert!(prices.price("gpt-4o-mini-2024-07-18", now).is_some());
        assert!(prices.price("agenthub-sim-large", now).is_some());
        assert_eq!(prices.price("gpt-4o-audio-preview", now), None);
        assert_eq!(prices.price("unheard-of", now), None);
    }

    #[test]
    fn the_price_in_force_is_the_latest_that_has_begun() {
        let prices = Prices::builtin().unwrap();
        let input = |date| prices.price("gpt-4o", at(date)).map(|p| p.input);
        assert_eq!(input("2024-05-12"), None);
        assert_eq!(input("2024-05-13"), Some(5_000_000));
        assert_eq!(input("2024-10-01"), Some(5_000_000));
        assert_eq!(input("2024-10-02"), Some(2_500_000));
    }

    #[test]
    fn exact_beats_prefix_and_long_beats_short() {
        let entry = |model: &str, input: u64| {
            format!(
                "[[price]]\nmodel = \"{model}\"\nfrom = \"2024-01-01\"\ninput = {input}\noutput = 1\n"
            )
        };
        let list = [entry("m*", 1), entry("m-large*", 2), entry("m-large", 3)].concat();
        let prices = Prices::parse(&list).unwrap();
        let input = |model| prices.price(model, at("2025-01-01")).map(|p| p.input);
        assert_eq!(input("m-small"), Some(1));
        assert_eq!(input("m-large-2"), Some(2));
        assert_eq!(input("m-large"), Some(3));
        assert_eq!(input("n"), None);
    }

    #[test]
    fn costs_round_up_and_cached_input_is_priced_apart() {
        let prices = Prices::builtin().unwrap();
        let now = at("2026-01-01");
        let cost = |u| prices.cost_micro_usd("gpt-4o-mini", u, now);
        assert_eq!(cost(usage(0, 0, 0)), Some(0));
        assert_eq!(cost(usage(1, 0, 0)), Some(1));
        assert_eq!(cost(usage(1000, 1000, 0)), Some(75));
        assert_eq!(cost(usage(1000, 5000, 0)), Some(75));
        assert_eq!(cost(usage(1000, 400, 100)), Some(90 + 30 + 60));
        assert_eq!(
            cost(usage(u64::MAX, 0, u64::MAX)),
            Some(13_835_058_055_282_163_712)
        );
    }

    #[test]
    fn nonsense_is_refused_with_the_model() {
        for (entry, expected) in [
            (
                "model = \"a*b\"\nfrom = \"2024-01-01\"\ninput = 1\noutput = 1",
                "a*b",
            ),
            (
                "model = \"a\"\nfrom = \"soon\"\ninput = 1\noutput = 1",
                "from",
            ),
            (
                "model = \"a\"\nfrom = \"2024-01-01\"\ninput = -1\noutput = 1",
                "input",
            ),
            (
                "model = \"a\"\nfrom = \"2024-01-01\"\ninput = 1\noutput = 1\nprompt = 3",
                "prompt",
            ),
        ] {
            let error = Prices::parse(&format!("[[price]]\n{entry}")).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let twice = "[[price]]\nmodel = \"a\"\nfrom = \"2024-01-01\"\ninput = 1\noutput = 1\n";
        let error = Prices::parse(&twice.repeat(2)).unwrap_err();
        assert!(error.to_string().contains("two prices"), "{error}");
    }

    proptest! {
        #[test]
        fn a_settlement_is_never_above_its_bound(
            input in 0..u64::MAX / 2, cached_input in 0..u64::MAX / 2, output in 0..u64::MAX / 2,
            bound in any::<u64>(), max_output in any::<u32>(),
            read in any::<u64>(), cached in any::<u64>(), written in any::<u32>(),
        ) {
            // Prices are TOML integers: at most i64::MAX.
            let list = format!(
                "[[price]]\nmodel = \"m\"\nfrom = \"2024-01-01\"\ninput = {input}\ncached_input = {cached_input}\noutput = {output}\n"
            );
            let prices = Prices::parse(&list).unwrap();
            let now = at("2025-01-01");
            let usage = usage(read.min(bound), cached, u64::from(written.min(max_output)));
            let settled = prices.cost_micro_usd("m", usage, now).unwrap();
            let reserved = prices.upper_bound_micro_usd("m", bound, max_output, now).unwrap();
            prop_assert!(settled <= reserved, "{settled} > {reserved}");
        }
    }
}
