//! Questions to the documents.

use super::Intent;
use super::words::{Close, Word};

const LONGEST_QUERY: usize = 200;

/// The searches that the goal asks for; `None` when it asks for none. `only` says that the goal asks
/// for nothing else: then a verb of searching is enough.
pub(super) fn intents(goal: &str, words: &[Word<'_>], only: bool) -> Option<Vec<Intent>> {
    let docs = words.iter().position(|w| is_docs(w.text));
    let verb = words.iter().position(|w| is_search(w.text));
    if docs.is_none() && !(only && verb.is_some()) {
        return None;
    }
    let top_k = top_k(words);
    let anchor = match (docs, verb) {
        (Some(docs), Some(verb)) => docs.min(verb),
        (one, other) => one.or(other)?,
    };
    let mut topics = topics(goal, words, anchor);
    if topics.is_empty() {
        topics.extend(content_words(words));
    }
    let search = |query| Intent::Search { query, top_k };
    Some(topics.into_iter().map(search).collect())
}

fn is_docs(text: &str) -> bool {
    matches!(
        text,
        "doc" | "docs" | "documentation" | "documents" | "manual" | "handbook" | "corpus" | "wiki"
    )
}

fn is_search(text: &str) -> bool {
    matches!(text, "search" | "find" | "lookup" | "look" | "retrieve")
}

fn is_action(text: &str) -> bool {
    text.starts_with("summar")
        || is_search(text)
        || matches!(
            text,
            "about"
                | "compare"
                | "explain"
                | "fetch"
                | "get"
                | "give"
                | "list"
                | "print"
                | "report"
                | "return"
                | "show"
                | "sum"
                | "tell"
                | "then"
                | "write"
        )
}

/// What stands after "about" (else "on", "for") behind the word that makes it a search.
fn topics(goal: &str, words: &[Word<'_>], anchor: usize) -> Vec<String> {
    let behind = anchor + 1..words.len();
    let starts = |names: &[&str]| -> Vec<usize> {
        let named = |at: &usize| names.contains(&words[*at].text);
        behind.clone().filter(named).map(|at| at + 1).collect()
    };
    let mut found = starts(&["about", "regarding", "concerning"]);
    if found.is_empty() {
        found = starts(&["on", "for"]);
        found.truncate(1);
    }
    let topics = found.into_iter().filter_map(|at| topic(goal, &words[at..]));
    topics.collect()
}

/// The words up to the end of the clause.
fn topic(goal: &str, words: &[Word<'_>]) -> Option<String> {
    let mut end = 0;
    for (at, word) in words.iter().enumerate() {
        let next = words.get(at + 1).map_or("", |w| w.text);
        let another = matches!(word.text, "and" | "then") && is_action(next);
        if another || is_action(word.text) || is_place(&words[at..]) {
            break;
        }
        end = at + 1;
        let comma = word.closes == Close::Comma
            && (is_action(next)
                || next == "and" && words.get(at + 2).is_some_and(|w| is_action(w.text)));
        if word.closes == Close::Sentence || comma {
            break;
        }
    }
    let words = &words[..end];
    let skip = words.iter().take_while(|w| is_article(w.text)).count();
    let (first, last) = (words.get(skip)?, words.last()?);
    cut(&goal[first.start..last.end])
}

fn is_article(text: &str) -> bool {
    matches!(text, "the" | "a" | "an" | "our")
}

/// `in the docs`, `from our documentation`.
fn is_place(words: &[Word<'_>]) -> bool {
    let [preposition, rest @ ..] = words else {
        return false;
    };
    let docs = rest.iter().find(|w| !is_article(w.text));
    matches!(preposition.text, "in" | "from" | "within" | "across")
        && docs.is_some_and(|w| is_docs(w.text))
}

/// What remains of a goal without its grammar.
fn content_words(words: &[Word<'_>]) -> Option<String> {
    const GRAMMAR: &str = " a according all an and any are as at be by can could did do does for \
        from give has have how i if in into is it its know let me my of on or our page please \
        say says so tell that the their them there these they this to up us want was we were \
        what when where which who why will with would you your ";
    let content: Vec<_> = words
        .iter()
        .map(|w| w.text)
        .filter(|text| !GRAMMAR.contains(&format!(" {text} ")))
        .filter(|text| !is_docs(text) && !is_action(text))
        .collect();
    cut(&content.join(" "))
}

fn cut(query: &str) -> Option<String> {
    let query: String = query.chars().take(LONGEST_QUERY).collect();
    let query = query.trim();
    (!query.is_empty()).then(|| query.to_owned())
}

/// `top 3`, `5 results`.
fn top_k(words: &[Word<'_>]) -> Option<u32> {
    words.windows(2).find_map(|pair| {
        let (("top" | "first" | "best", number)
        | (number, "results" | "hits" | "passages" | "docs" | "documents")) =
            (pair[0].text, pair[1].text)
        else {
            return None;
        };
        Some(number.parse::<u32>().ok()?.clamp(1, 20))
    })
}
