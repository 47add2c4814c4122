//! The words of a goal.

/// A word, in lower case and without punctuation around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word<'a> {
    /// The word for comparisons.
    pub(super) text: &'a str,
    /// Where it stands in the goal, in bytes.
    pub(super) start: usize,
    /// Where it ends.
    pub(super) end: usize,
    /// Whether a sentence or list part ends after it.
    pub(super) closes: Close,
}

/// What punctuation follows a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// None that matters.
    No,
    /// A comma.
    Comma,
    /// The end of a sentence or clause.
    Sentence,
}

/// The words of `lower`, which must be in lower case.
pub(super) fn words(lower: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let separator = |c: char| c.is_whitespace() || c == ',' || c == '&';
    let mut at = 0;
    while let Some(offset) = lower[at..].find(|c| !separator(c)) {
        let start = at + offset;
        let end = lower[start..]
            .find(separator)
            .map_or(lower.len(), |n| start + n);
        at = end;
        let raw = &lower[start..end];
        let left = raw.trim_start_matches(|c: char| !c.is_alphanumeric());
        let text = left.trim_end_matches(|c: char| !c.is_alphanumeric());
        if text.is_empty() {
            continue;
        }
        let start = start + raw.len() - left.len();
        let tail = &left[text.len()..];
        let closes = if tail.contains(['.', '?', '!', ';', ':']) {
            Close::Sentence
        } else if lower[end..].trim_start().starts_with(',') {
            Close::Comma
        } else {
            Close::No
        };
        // A possessive is the word itself.
        let text = text
            .strip_suffix("'s")
            .or_else(|| text.strip_suffix("’s"))
            .unwrap_or(text);
        words.push(Word {
            text,
            start,
            end: start + text.len(),
            closes,
        });
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_is_apart_from_the_words() {
        let found = words("get \"roas\" of #123's, 4&5. (now)");
        let texts: Vec<_> = found.iter().map(|w| w.text).collect();
        assert_eq!(texts, ["get", "roas", "of", "123", "4", "5", "now"]);
        assert_eq!(found[3].closes, Close::Comma);
        assert_eq!(found[5].closes, Close::Sentence);
        assert_eq!((found[1].start, found[1].end), (5, 9));
    }
}
