//! Extractive summaries: the sentences whose words the text uses most. Pure.

use std::collections::{HashMap, HashSet};

const MAX_SENTENCES: usize = 3;
/// A longer sentence is a table or a listing, and is cut.
const MAX_SENTENCE_CHARS: usize = 300;
/// What lies beyond does not change which sentences are typical, only how long that takes.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// One to three sentences of `text`, in their order; those that share words with `focus` count more.
/// A text in JSON, whole or cut short, is read for the prose in it.
pub(super) fn summarise(text: &str, focus: &str) -> String {
    let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    let prose = if text.trim_start().starts_with(['{', '[']) {
        prose_of_json(text)
    } else {
        text.to_owned()
    };
    let sentences = sentences(&prose);
    let mut counts: HashMap<String, f64> = HashMap::new();
    for word in sentences.iter().flat_map(|s| content_words(s)) {
        *counts.entry(word).or_default() += 1.0;
    }
    let focus: Vec<_> = content_words(focus).collect();
    let score = |sentence: &str| {
        let words: Vec<_> = content_words(sentence).collect();
        let sum: f64 = words
            .iter()
            .map(|w| {
                counts.get(w).copied().unwrap_or_default()
                    * if focus.contains(w) { 3.0 } else { 1.0 }
            })
            .sum();
        // Neither the longest nor a two-word sentence should win by its length.
        sum / f64::from(u32::try_from(words.len()).unwrap_or(u32::MAX).max(6))
    };
    let mut ranked: Vec<_> = sentences.iter().map(|s| score(s)).enumerate().collect();
    ranked.sort_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
    ranked.truncate(MAX_SENTENCES);
    let mut chosen: Vec<_> = ranked.into_iter().map(|(at, _)| at).collect();
    chosen.sort_unstable();
    let chosen: Vec<String> = chosen
        .into_iter()
        .map(|at| sentences[at].chars().take(MAX_SENTENCE_CHARS).collect())
        .collect();
    if chosen.is_empty() {
        "There is nothing to summarise.".to_owned()
    } else {
        chosen.join(" ")
    }
}

/// The distinct sentences of a text, white space folded.
fn sentences(text: &str) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |part: &str| {
        let sentence = part.split_whitespace().collect::<Vec<_>>().join(" ");
        let sentence = sentence.trim_start_matches(['#', '-', '*', ' ']).to_owned();
        if sentence.contains(char::is_alphanumeric) && seen.insert(sentence.clone()) {
            sentences.push(sentence);
        }
    };
    for paragraph in text.split("\n\n") {
        let mut start = 0;
        for (at, c) in paragraph.char_indices() {
            let end = at + c.len_utf8();
            let ends = matches!(c, '.' | '!' | '?' | '。')
                && paragraph[end..]
                    .chars()
                    .next()
                    .is_none_or(char::is_whitespace);
            if ends {
                add(&paragraph[start..end]);
                start = end;
            }
        }
        add(&paragraph[start..]);
    }
    sentences
}

fn content_words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|w| w.chars().count() > 3)
        .map(str::to_lowercase)
}

/// The string values of JSON that look like prose, a paragraph each. Works on JSON that ends in the
/// middle, which a parser would refuse.
fn prose_of_json(text: &str) -> String {
    let mut prose = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('"') {
        let literal = &rest[start..];
        let end = literal_end(literal);
        let (literal, after) = literal.split_at(end);
        rest = after;
        let is_key = after.trim_start().starts_with(':');
        // A literal that the cut left open is closed; an escape cut in two is dropped with it.
        let value = serde_json::from_str::<String>(literal)
            .or_else(|_| serde_json::from_str(&format!("{literal}\"")))
            .unwrap_or_default();
        if !is_key && value.split_whitespace().count() >= 4 {
            prose.push_str(&value);
            prose.push_str("\n\n");
        }
    }
    if prose.is_empty() {
        text.to_owned()
    } else {
        prose
    }
}

/// The length of the JSON string literal that `text` begins with.
fn literal_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Idempotency keys make a repeated request safe. The sky was grey. A request \
        with a known key gets the stored answer. Keys of requests are kept for a day. Lunch is at noon.";

    #[test]
    fn typical_sentences_are_kept_in_order() {
        assert_eq!(
            summarise(TEXT, ""),
            "Idempotency keys make a repeated request safe. A request with a known key gets the \
             stored answer. Keys of requests are kept for a day."
        );
        assert!(summarise(TEXT, "lunch noon lunch").contains("Lunch is at noon."));
    }

    #[test]
    fn json_is_read_for_its_prose_even_when_cut() {
        let json = serde_json::json!({"results": [
            {"title": "Keys", "snippet": "A key \"k\" names a request.\nIt is kept for a day.", "score": 1.5},
        ]})
        .to_string();
        let whole = summarise(&json, "");
        assert_eq!(whole, "A key \"k\" names a request. It is kept for a day.");
        for end in 0..json.len() {
            let cut = summarise(&json[..end], "");
            assert!(!cut.is_empty());
        }
    }

    #[test]
    fn short_and_empty_texts_have_a_summary() {
        assert_eq!(summarise("One sentence", ""), "One sentence");
        assert_eq!(summarise(" \n ", ""), "There is nothing to summarise.");
        assert_eq!(summarise("{}", ""), "There is nothing to summarise.");
    }
}
