//! What a goal asks for, by simple rules. Pure.

mod ads;
mod search;
mod words;

use words::{Word, words};

/// Questions that one goal may hold; those beyond are left out, as a plan has limits.
const MAX_INTENTS: usize = 16;

/// One thing that a goal asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Intent {
    /// A metric of an advertiser; all metrics when none is named.
    Metrics {
        /// As the goal writes it.
        advertiser: String,
        /// The tool's name for it.
        metric: Option<&'static str>,
        /// 1 to 365.
        days: u32,
    },
    /// A search in the documents.
    Search {
        /// What for.
        query: String,
        /// How many results.
        top_k: Option<u32>,
    },
    /// A page.
    Fetch {
        /// Where.
        url: String,
    },
    /// A summary of a text that the goal itself holds.
    Condense {
        /// The text.
        text: String,
    },
}

/// What a goal asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Understanding {
    /// In the order: metrics, searches, pages.
    pub(super) intents: Vec<Intent>,
    /// Whether what is found is to be summarised.
    pub(super) summarise: bool,
}

/// Reads a goal.
pub(super) fn understand(goal: &str) -> Understanding {
    // Offsets into `lower` are offsets into `goal`: ASCII folding changes no length.
    let mut lower = goal.to_ascii_lowercase();
    let urls = urls(goal);
    for (start, end) in &urls {
        // The words of an address are not words of the goal.
        lower.replace_range(start..end, &" ".repeat(end - start));
    }
    let words = words(&lower);
    let summarise = wants_summary(&words);

    let mut intents = ads::intents(goal, &words);
    if let Some(searches) = search::intents(goal, &words, intents.is_empty() && urls.is_empty()) {
        intents.extend(searches);
    }
    intents.extend(urls.iter().map(|(start, end)| Intent::Fetch {
        url: goal[*start..*end].to_owned(),
    }));
    if intents.is_empty() && summarise {
        intents.extend(own_text(goal).map(|text| Intent::Condense { text }));
    }
    let mut distinct = Vec::new();
    for intent in intents {
        if distinct.len() < MAX_INTENTS && !distinct.contains(&intent) {
            distinct.push(intent);
        }
    }
    Understanding {
        intents: distinct,
        summarise,
    }
}

/// Where the http and https addresses of the goal stand, in bytes.
fn urls(goal: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(offset) = goal[at..].find("http") {
        let start = at + offset;
        let rest = &goal[start..];
        let end = rest
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '<' | '>' | '`'))
            .unwrap_or(rest.len());
        // Punctuation at the end belongs to the sentence.
        let url = rest[..end].trim_end_matches(['.', ',', ';', ':', '!', '?', ')', ']', '\'', '’']);
        let after_scheme = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"));
        if after_scheme
            .is_some_and(|host| host.starts_with(|c: char| c.is_alphanumeric() || c == '['))
        {
            found.push((start, start + url.len()));
        }
        at = start + url.len().max("http".len());
    }
    found
}

fn wants_summary(words: &[Word<'_>]) -> bool {
    let sum_up = |pair: &[Word<'_>]| pair[0].text == "sum" && pair[1].text == "up";
    words
        .iter()
        .any(|w| w.text.starts_with("summar") || matches!(w.text, "tl;dr" | "tldr" | "gist"))
        || words.windows(2).any(sum_up)
}

/// `Summarise: …` or `Summarise this text: …`.
fn own_text(goal: &str) -> Option<String> {
    let text = goal.split_once(':')?.1.trim();
    (text.len() >= 20).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(advertiser: &str, metric: Option<&'static str>, days: u32) -> Intent {
        Intent::Metrics {
            advertiser: advertiser.into(),
            metric,
            days,
        }
    }

    fn search(query: &str) -> Intent {
        Intent::Search {
            query: query.into(),
            top_k: None,
        }
    }

    fn fetch(url: &str) -> Intent {
        Intent::Fetch { url: url.into() }
    }

    #[test]
    #[allow(clippy::too_many_lines)] // a table
    fn goals_are_understood() {
        let table: &[(&str, Vec<Intent>, bool)] = &[
            (
                "Get ROAS for advertiser 123 over 7 days",
                vec![metrics("123", Some("roas"), 7)],
                false,
            ),
            (
                "Find what the docs say about idempotency and summarise it",
                vec![search("idempotency")],
                true,
            ),
            (
                "Fetch http://127.0.0.1:8080/page and tell me its title",
                vec![fetch("http://127.0.0.1:8080/page")],
                false,
            ),
            (
                "Fetch https://example.org/a?b=c#d, then summarize the page.",
                vec![fetch("https://example.org/a?b=c#d")],
                true,
            ),
            (
                "Compare clicks and spend of advertisers 12, 34 and AB-5 in the last 2 weeks",
                vec![
                    metrics("12", Some("clicks"), 14),
                    metrics("12", Some("spend"), 14),
                    metrics("34", Some("clicks"), 14),
                    metrics("34", Some("spend"), 14),
                    metrics("AB-5", Some("clicks"), 14),
                    metrics("AB-5", Some("spend"), 14),
                ],
                false,
            ),
            (
                "ROAS of advertiser 9 over 7 days and over 30 days",
                vec![
                    metrics("9", Some("roas"), 7),
                    metrics("9", Some("roas"), 30),
                ],
                false,
            ),
            (
                "How is advertiser acme doing?",
                vec![metrics("acme", None, 7)],
                false,
            ),
            (
                "What was the return on ad spend of advertiser #77 last month?",
                vec![metrics("77", Some("roas"), 30)],
                false,
            ),
            (
                "Get ROAS for advertiser 123 over 7 days, look up the docs on retry policies and fetch https://a.example/",
                vec![
                    metrics("123", Some("roas"), 7),
                    search("retry policies"),
                    fetch("https://a.example/"),
                ],
                false,
            ),
            (
                "Search for rate limits in the documentation",
                vec![search("rate limits")],
                false,
            ),
            (
                "search the docs for dead letters",
                vec![search("dead letters")],
                false,
            ),
            (
                "How does the outbox work according to the docs?",
                vec![search("outbox work")],
                false,
            ),
            (
                "Find docs about retries and about budgets",
                vec![search("retries"), search("budgets")],
                false,
            ),
            (
                "What do the docs say about retries, leases and timers? Give me the gist.",
                vec![search("retries, leases and timers")],
                true,
            ),
            (
                "Fetch the docs at https://docs.example/x",
                vec![fetch("https://docs.example/x")],
                false,
            ),
            (
                "Find the top 3 docs about consumer groups",
                vec![Intent::Search {
                    query: "consumer groups".into(),
                    top_k: Some(3),
                }],
                false,
            ),
            (
                "Summarise: the quick brown fox jumps over the lazy dog.",
                vec![Intent::Condense {
                    text: "the quick brown fox jumps over the lazy dog.".into(),
                }],
                true,
            ),
            ("Write me a poem", vec![], false),
            ("What is the ROAS?", vec![], false),
            ("", vec![], false),
            ("http://", vec![], false),
            ("Erzähle mir etwas über Bücher", vec![], false),
        ];
        for (goal, intents, summarise) in table {
            let expected = Understanding {
                intents: intents.clone(),
                summarise: *summarise,
            };
            assert_eq!(understand(goal), expected, "{goal}");
        }
    }

    #[test]
    fn many_questions_are_cut() {
        let ids: Vec<_> = (100..200).map(|n| n.to_string()).collect();
        let goal = format!("clicks of advertisers {}", ids.join(", "));
        assert_eq!(understand(&goal).intents.len(), MAX_INTENTS);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_harm(goal in "(\\PC|http://|docs about |advertiser |[0-9]+ weeks ){0,40}") {
            for intent in understand(&goal).intents {
                match intent {
                    Intent::Metrics { advertiser, days, .. } => {
                        proptest::prop_assert!((1..=64).contains(&advertiser.len()) && (1..=365).contains(&days));
                    }
                    Intent::Search { query, top_k } => {
                        proptest::prop_assert!(!query.is_empty() && query.chars().count() <= 200);
                        proptest::prop_assert!(top_k.is_none_or(|k| (1..=20).contains(&k)));
                    }
                    Intent::Fetch { url } => proptest::prop_assert!(goal.contains(&url)),
                    Intent::Condense { text } => proptest::prop_assert!(goal.contains(&text)),
                }
            }
        }
    }
}
