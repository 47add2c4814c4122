//! Questions about advertising metrics.

use super::Intent;
use super::words::Word;

const LONGEST_PERIOD: u32 = 365;
const DEFAULT_PERIOD: u32 = 7;
const LONGEST_ID: usize = 64;

/// One question for each advertiser, metric and period that the goal names; none without an
/// advertiser.
pub(super) fn intents(goal: &str, words: &[Word<'_>]) -> Vec<Intent> {
    let metrics = metrics(words);
    let advertisers = advertisers(goal, words, !metrics.is_empty());
    let periods = periods(words);
    let metrics: Vec<_> = if metrics.is_empty() {
        vec![None]
    } else {
        metrics.into_iter().map(Some).collect()
    };
    let mut all = Vec::new();
    for advertiser in &advertisers {
        for metric in &metrics {
            all.extend(periods.iter().map(|days| Intent::Metrics {
                advertiser: advertiser.clone(),
                metric: *metric,
                days: *days,
            }));
        }
    }
    all
}

fn metrics(words: &[Word<'_>]) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut rest = words;
    while let [word, after @ ..] = rest {
        rest = after;
        let metric = match word.text {
            "roas" => "roas",
            "return" if starts_with(after, &["on", "ad", "spend"]) => {
                rest = &after[3..];
                "roas"
            }
            "impressions" | "impression" => "impressions",
            "clicks" | "click" => "clicks",
            "spend" | "spent" | "spending" | "cost" | "costs" => "spend",
            "conversions" | "conversion" => "conversions",
            "revenue" | "revenues" => "revenue",
            "ctr" | "click-through" => "ctr",
            "cpc" => "cpc",
            _ => continue,
        };
        if !found.contains(&metric) {
            found.push(metric);
        }
    }
    found
}

fn starts_with(words: &[Word<'_>], texts: &[&str]) -> bool {
    words.len() >= texts.len()
        && words
            .iter()
            .zip(texts)
            .all(|(word, text)| word.text == *text)
}

/// The identifiers after the word "advertiser", else, beside a metric, numbers after "for" or "of".
fn advertisers(goal: &str, words: &[Word<'_>], metric_named: bool) -> Vec<String> {
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let rest = &words[at + 1..];
        match word.text {
            "advertiser" | "advertisers" | "advertiser_id" => listed(goal, rest, true, &mut found),
            "for" | "of" if metric_named => listed(goal, rest, false, &mut found),
            _ => {}
        }
    }
    found
}

/// Reads `12, 34 and 56` from the start of `words`.
fn listed(goal: &str, words: &[Word<'_>], after_advertiser: bool, found: &mut Vec<String>) {
    let mut first = true;
    for (at, word) in words.iter().enumerate() {
        match word.text {
            "id" | "ids" | "number" | "no" if first => continue,
            "and" | "or" | "vs" | "versus" | "with" | "to" if !first => continue,
            _ => {}
        }
        let has_digit = word.text.contains(|c: char| c.is_ascii_digit());
        let named = after_advertiser && first && !is_function_word(word.text);
        let count = has_digit && span_at(&words[at..]).is_some();
        if !(has_digit && (after_advertiser || !first || is_number(word.text)) || named)
            || count
            || !is_id(word.text)
        {
            break;
        }
        let id = goal[word.start..word.end].to_owned();
        if !found.contains(&id) {
            found.push(id);
        }
        first = false;
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

fn is_id(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    text.len() <= LONGEST_ID && text.bytes().all(allowed)
}

/// Words that follow "advertiser" without naming one.
fn is_function_word(text: &str) -> bool {
    const WORDS: &str = " a account accounts ads all an and any are as at by can campaign campaigns \
        clicks conversions could cpc ctr data did do does during each for from get had has have \
        how if impressions in is it its last metrics my no of on or our over past performance \
        performed period please report revenue roas should spend stats that the their this to \
        was were what when where which who will with without ";
    WORDS.contains(&format!(" {text} "))
}

/// The distinct periods in days, in the order of the goal; the default when there is none.
fn periods(words: &[Word<'_>]) -> Vec<u32> {
    let mut found = Vec::new();
    for at in 0..words.len() {
        if let Some(days) = span_at(&words[at..]) {
            let days = days.clamp(1, LONGEST_PERIOD);
            if !found.contains(&days) {
                found.push(days);
            }
        }
    }
    if found.is_empty() {
        found.push(DEFAULT_PERIOD);
    }
    found
}

/// The days that `7 days`, `two weeks`, `7d`, `7-day`, `last month`, `today` stand for.
fn span_at(words: &[Word<'_>]) -> Option<u32> {
    let first = words.first()?.text;
    let second = words.get(1).map_or("", |word| word.text);
    match first {
        "today" | "yesterday" => return Some(1),
        "fortnight" => return Some(14),
        "last" | "past" | "previous" | "this" => return unit_days(second),
        _ => {}
    }
    if let Some(count) = count(first) {
        if matches!(second, "hour" | "hours") {
            return Some(count.div_ceil(24));
        }
        return Some(count.saturating_mul(unit_days(second)?));
    }
    // The number and its unit in one word.
    let digits = first.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = first.split_at(digits);
    let unit = match unit.trim_start_matches('-') {
        "d" => "days",
        "w" => "weeks",
        "m" => "months",
        other => other,
    };
    Some(count(number)?.saturating_mul(unit_days(unit)?))
}

fn count(text: &str) -> Option<u32> {
    const NAMES: [&str; 12] = [
        "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
        "twelve",
    ];
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let name = NAMES.iter().position(|name| *name == text)?;
    u32::try_from(name + 1).ok()
}

fn unit_days(unit: &str) -> Option<u32> {
    Some(match unit {
        "day" | "days" => 1,
        "week" | "weeks" => 7,
        "month" | "months" => 30,
        "quarter" | "quarters" => 90,
        "year" | "years" => 365,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::words::words;
    use super::*;

    #[test]
    fn periods_are_read() {
        for (text, expected) in [
            ("over 7 days", vec![7]),
            ("last 2 weeks", vec![14]),
            ("the past month", vec![30]),
            ("in the last 3 months", vec![90]),
            ("two weeks", vec![14]),
            ("a 30-day window", vec![30]),
            ("14d", vec![14]),
            ("yesterday", vec![1]),
            ("36 hours", vec![2]),
            ("0 days", vec![1]),
            ("9999999999 days", vec![7]),
            ("4000000000 years", vec![365]),
            ("whenever", vec![7]),
        ] {
            assert_eq!(periods(&words(text)), expected, "{text}");
        }
    }

    #[test]
    fn advertisers_are_told_from_other_numbers() {
        for (text, expected) in [
            ("advertiser 123 over 7 days", vec!["123"]),
            ("advertiser id 123", vec!["123"]),
            ("advertisers 1, 2 and 3 for 30 days", vec!["1", "2", "3"]),
            ("advertiser 1 vs advertiser 2", vec!["1", "2"]),
            ("advertiser acme_co's clicks", vec!["acme_co"]),
            ("clicks for 55 over 7 days", vec!["55"]),
            ("clicks for 7 days", vec![]),
            ("clicks for the advertiser", vec![]),
            ("advertiser performance", vec![]),
            ("advertiser a/b", vec![]),
        ] {
            assert_eq!(advertisers(text, &words(text), true), expected, "{text}");
        }
    }
}
