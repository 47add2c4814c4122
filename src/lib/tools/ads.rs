//! `ads_metrics_mock`: made-up metrics of advertisers that stay the same on every machine and day.
//!
//! A day is counted backwards from the end of the period, so that a longer period contains the
//! shorter one. Counts and money are whole numbers derived from SHA-256; only the ratios of the
//! answer are floating point, and those come from one correctly rounded division (IEEE 754).

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Tool, ToolCall, ToolError, ToolOutput, ToolSpec, catalogue};

/// Longest period whose days are listed.
const MAX_DAILY: u32 = 31;

/// The tool.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdsMetricsMock;

#[async_trait]
impl Tool for AdsMetricsMock {
    fn spec(&self) -> &ToolSpec {
        &catalogue::ADS_METRICS_MOCK
    }

    async fn call(&self, call: ToolCall) -> Result<ToolOutput, ToolError> {
        let args: Args = serde_json::from_value(call.args)
            .map_err(|error| ToolError::permanent("invalid_args", error.to_string()))?;
        Ok(answer(&args).into())
    }
}

#[derive(Debug, Deserialize)]
struct Args {
    advertiser_id: String,
    #[serde(default = "all_metrics")]
    metric: String,
    #[serde(default = "one_week")]
    period_days: u32,
}

fn all_metrics() -> String {
    "all".to_owned()
}

fn one_week() -> u32 {
    7
}

/// What is counted; ratios follow from it. Money in US cents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    impressions: u64,
    clicks: u64,
    spend: u64,
    conversions: u64,
    revenue: u64,
}

/// Counts with what follows from them, as answered. Money in US dollars.
#[derive(Debug, Serialize)]
struct Metrics {
    impressions: u64,
    clicks: u64,
    spend: f64,
    conversions: u64,
    revenue: f64,
    roas: f64,
    ctr: f64,
    cpc: f64,
}

fn answer(args: &Args) -> Value {
    let profile = Profile::of(&args.advertiser_id);
    let days: Vec<Counts> = (1..=args.period_days)
        .map(|days_ago| profile.day(&args.advertiser_id, days_ago))
        .collect();
    let totals = Metrics::from(days.iter().copied().fold(Counts::default(), Counts::plus));
    let (value, unit) = totals.named(&args.metric);
    let mut answer = json!({
        "advertiser_id": args.advertiser_id,
        "period_days": args.period_days,
        "metric": args.metric,
        "value": value,
        "unit": unit,
        "totals": totals,
    });
    if args.period_days <= MAX_DAILY {
        let daily = (1u32..).zip(days).map(|(days_ago, counts)| {
            let mut day = json!(Metrics::from(counts));
            day["days_ago"] = days_ago.into();
            day
        });
        answer["daily"] = daily.collect();
    }
    answer
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            impressions: self.impressions + other.impressions,
            clicks: self.clicks + other.clicks,
            spend: self.spend + other.spend,
            conversions: self.conversions + other.conversions,
            revenue: self.revenue + other.revenue,
        }
    }
}

impl From<Counts> for Metrics {
    fn from(counts: Counts) -> Self {
        Self {
            impressions: counts.impressions,
            clicks: counts.clicks,
            spend: ratio(counts.spend, 100, 2),
            conversions: counts.conversions,
            revenue: ratio(counts.revenue, 100, 2),
            roas: ratio(counts.revenue, counts.spend, 4),
            ctr: ratio(counts.clicks, counts.impressions, 6),
            cpc: ratio(counts.spend, counts.clicks * 100, 4),
        }
    }
}

impl Metrics {
    /// A metric by its name, with its unit; both null for `all`.
    fn named(&self, metric: &str) -> (Value, Value) {
        match metric {
            "impressions" => (json!(self.impressions), json!("count")),
            "clicks" => (json!(self.clicks), json!("count")),
            "spend" => (json!(self.spend), json!("USD")),
            "conversions" => (json!(self.conversions), json!("count")),
            "revenue" => (json!(self.revenue), json!("USD")),
            "roas" => (json!(self.roas), json!("ratio")),
            "ctr" => (json!(self.ctr), json!("ratio")),
            "cpc" => (json!(self.cpc), json!("USD")),
            _ => (Value::Null, Value::Null),
        }
    }
}

/// `a / b` rounded half up to `digits` decimal places; 0 when `b` is 0.
fn ratio(a: u64, b: u64, digits: u32) -> f64 {
    let scale = 10u64.pow(digits);
    let rounded = (u128::from(a) * u128::from(scale) * 2 + u128::from(b))
        .checked_div(u128::from(b) * 2)
        .unwrap_or(0);
    // Far below 2^53: at most a year of some 10^8 cents times 10^4.
    #[allow(clippy::cast_precision_loss)]
    {
        rounded as f64 / scale as f64
    }
}

/// What an advertiser is like on an average day.
#[derive(Debug)]
struct Profile {
    /// Impressions a day.
    impressions: u64,
    /// Clicks per million impressions.
    click_rate: u64,
    /// Cents a click.
    click_price: u64,
    /// Conversions per thousand clicks.
    conversion_rate: u64,
    /// Cents of revenue a conversion.
    order_value: u64,
}

impl Profile {
    fn of(advertiser: &str) -> Self {
        let mut draw = Draw::new(&["profile", advertiser]);
        let click_price = draw.between(20, 250);
        let conversion_rate = draw.between(15, 80);
        // Chosen first, so that every advertiser's ROAS is one that occurs: 0.8 to 6.0.
        let roas_percent = draw.between(80, 600);
        Self {
            impressions: draw.between(20_000, 200_000),
            click_rate: draw.between(6_000, 40_000),
            click_price,
            conversion_rate,
            order_value: roas_percent * click_price * 10 / conversion_rate,
        }
    }

    /// The day that ended `days_ago` days before the end of the period, from 1.
    fn day(&self, advertiser: &str, days_ago: u32) -> Counts {
        let mut draw = Draw::new(&["day", advertiser, &days_ago.to_string()]);
        let mut near = |average: u64| average * draw.between(80, 120) / 100;
        let impressions = near(self.impressions);
        let clicks = impressions * near(self.click_rate) / 1_000_000;
        let conversions = clicks * near(self.conversion_rate) / 1_000;
        Counts {
            impressions,
            clicks,
            spend: clicks * near(self.click_price),
            conversions,
            revenue: conversions * near(self.order_value),
        }
    }
}

/// Numbers from a hash: the same on every platform and in every release of this version.
struct Draw {
    digest: [u8; 32],
    next: usize,
}

impl Draw {
    fn new(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"agenthub/ads/1");
        for part in parts {
            // Identifiers hold no NUL, so that no two lists of parts hash alike.
            hash.update([0]);
            hash.update(part.as_bytes());
        }
        Self {
            digest: hash.finalize().into(),
            next: 0,
        }
    }

    /// The next number, from `low` to `high`, both included. There are eight of them.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        let at = self.next % self.digest.len();
        self.next += 4;
        let bytes = &self.digest[at..at + 4];
        let number = bytes
            .iter()
            .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        low + number % (high - low + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(advertiser: &str, metric: &str, days: u32) -> Value {
        answer(&Args {
            advertiser_id: advertiser.to_owned(),
            metric: metric.to_owned(),
            period_days: days,
        })
    }

    #[test]
    fn the_well_known_question_has_its_well_known_answer() {
        let answer = ask("123", "roas", 7);
        assert_eq!(answer["value"], json!(5.5627));
        let totals = json!({
            "impressions": 411_539, "clicks": 3_948, "spend": 5480.25, "conversions": 142,
            "revenue": 30484.76, "roas": 5.5627, "ctr": 0.009_593, "cpc": 1.3881,
        });
        assert_eq!(answer["totals"], totals);
    }

    #[test]
    fn arguments_have_their_defaults() {
        let args: Args = serde_json::from_value(json!({"advertiser_id": "x"})).unwrap();
        let answer = answer(&args);
        assert_eq!(answer["period_days"], 7);
        assert_eq!(answer["metric"], "all");
        assert!(answer["value"].is_null());
    }

    proptest! {
        #[test]
        fn totals_are_the_sums_of_the_days(id in "[A-Za-z0-9_-]{1,64}", days in 1u32..=31) {
            let answer = ask(&id, "all", days);
            let daily = answer["daily"].as_array().unwrap();
            prop_assert_eq!(daily.len(), days as usize);
            for count in ["impressions", "clicks", "conversions"] {
                let sum: u64 = daily.iter().map(|day| day[count].as_u64().unwrap()).sum();
                prop_assert_eq!(sum, answer["totals"][count].as_u64().unwrap());
            }
            for money in ["spend", "revenue"] {
                let sum: f64 = daily.iter().map(|day| day[money].as_f64().unwrap()).sum();
                let total = answer["totals"][money].as_f64().unwrap();
                prop_assert!((sum - total).abs() < 0.005, "{} {}", sum, total);
            }
        }

        #[test]
        fn ratios_follow_from_the_totals(id in "[A-Za-z0-9_-]{1,64}", days in 1u32..=365) {
            let answer = ask(&id, "all", days);
            let total = |name: &str| answer["totals"][name].as_f64().unwrap();
            for (ratio, above, below) in [("roas", "revenue", "spend"), ("ctr", "clicks", "impressions"), ("cpc", "spend", "clicks")] {
                prop_assert!((total(ratio) - total(above) / total(below)).abs() < 1e-4, "{}", ratio);
                prop_assert_eq!(&ask(&id, ratio, days)["value"], &answer["totals"][ratio]);
            }
            prop_assert!(total("clicks") <= total("impressions") && total("conversions") <= total("clicks"));
            prop_assert!((0.2..=12.0).contains(&total("roas")), "{}", total("roas"));
        }

        #[test]
        fn a_longer_period_contains_the_shorter(id in "[a-z0-9]{1,8}", days in 1u32..=30) {
            let (short, long) = (ask(&id, "all", days), ask(&id, "all", days + 1));
            let prefix = &long["daily"].as_array().unwrap()[..days as usize];
            prop_assert_eq!(short["daily"].as_array().unwrap().as_slice(), prefix);
        }
    }
}
