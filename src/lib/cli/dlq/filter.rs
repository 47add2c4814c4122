//! Which letters are meant.

use std::str::FromStr;

use jiff::Timestamp;

use crate::ids::{RunId, TenantId};
use crate::messages::{FailureClass, LetterId};
use crate::store::LetterFilter;

/// What narrows letters down.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Filter {
    /// Only this tenant's; those of records that nobody vouches for are the tenant system's.
    #[arg(long)]
    pub tenant: Option<TenantId>,
    /// Only this class: undecodable, unsigned, too_many_deliveries, panicked, attempts_exhausted,
    /// permanent or outcome_unknown.
    #[arg(long)]
    class: Option<FailureClass>,
    /// Only where this tool failed; `model` for the model.
    #[arg(long)]
    tool: Option<String>,
    /// Only the letter of this run.
    #[arg(long, value_name = "RUN_ID")]
    run: Option<RunId>,
    /// Only those given up at or after this time: RFC 3339, or so long ago (30m, 2h, 7d).
    #[arg(long, value_name = "TIME")]
    since: Option<Time>,
    /// Only those given up before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<Time>,
}

impl Filter {
    /// For the index.
    pub fn letters(&self, group: Option<String>) -> LetterFilter {
        LetterFilter {
            class: self.class,
            tool: self.tool.clone(),
            run: self.run.clone(),
            group,
            since_ms: self.since.map(Time::ms),
            until_ms: self.until.map(Time::ms),
        }
    }

    /// For the API.
    pub fn query(&self, group: Option<&str>) -> Vec<(&'static str, String)> {
        let text = |name, value: Option<String>| value.map(|value| (name, value));
        [
            text("tenant", self.tenant.as_ref().map(ToString::to_string)),
            text("class", self.class.map(|c| c.to_string())),
            text("tool", self.tool.clone()),
            text("run_id", self.run.as_ref().map(ToString::to_string)),
            text("since", self.since.map(|time| time.0.to_string())),
            text("until", self.until.map(|time| time.0.to_string())),
            text("group", group.map(str::to_owned)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A letter's id, in the form of the API.
pub fn letter_id(text: &str) -> Result<String, String> {
    Ok(text.parse::<LetterId>()?.to_string())
}

/// A point in time: RFC 3339, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(Timestamp);

impl Time {
    fn ms(self) -> u64 {
        u64::try_from(self.0.as_millisecond()).unwrap_or(0)
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = text.parse() {
            return Ok(Self(time));
        }
        let seconds = |text: &str| {
            let unit = text.chars().next_back()?;
            let each: u64 = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 86_400,
                _ => return None,
            };
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(each)
        };
        let ago = seconds(text).and_then(|seconds| {
            let ago = std::time::Duration::from_secs(seconds);
            Timestamp::now().checked_sub(ago).ok()
        });
        ago.map(Self).ok_or_else(|| {
            "expected a time such as 2026-01-31T12:00:00Z, or 30m, 2h, 7d".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_or_so_long_ago() {
        let time: Time = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(time.ms(), 1_769_860_800_000);
        let ago: Time = "2h".parse().unwrap();
        let expected = Timestamp::now().as_second() - 7200;
        assert!((ago.0.as_second() - expected).abs() < 60);
        for wrong in ["", "h", "2w", "-1h", "2026-01-31", "99999999999999d"] {
            assert!(wrong.parse::<Time>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_are_given_in_either_form() {
        assert_eq!(letter_id("t/0/1").unwrap(), "t.0.1");
        assert_eq!(letter_id("a.t.0.1").unwrap(), "a.t.0.1");
        assert!(letter_id("t").is_err());
    }
}
