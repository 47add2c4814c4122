//! Masking of a text that is told while it is still being written.
//!
//! What is told must be a beginning of the whole text, masked: nothing that masking the whole would
//! hide may be shown before the rest is known. So the end of the text is held back: as far as a match may
//! still come about, grow, or be judged otherwise once more is there.
//!
//! Why [`REACH`] is enough: a built-in rule that can match across white space has at most so many bytes
//! before the part that runs on without white space (`rules.rs`: the longest is a field's name with its
//! separator), or is settled by its check, whose range then reaches the end of the text. All others end
//! at white space. So what begins before a white space that is at least so far from the end, and does not
//! reach the end, is judged for good.

use std::mem;

use regex_syntax::hir::{Hir, HirKind};

use super::rules::{RULES, Verdict};
use super::{Input, Masked, Masker};

/// Bytes that a built-in rule can need around white space before its match is sure.
const REACH: usize = 96;
/// Bytes of a text beyond which nothing more is told: each look goes over the whole of it.
const MAX_TEXT: usize = 64 * 1024;

/// How far from the end a match of `patterns` or of the built-in rules may yet come about around white
/// space; `None` when that has no bound.
pub(super) fn reach(patterns: &[String]) -> Option<usize> {
    let mut reach = REACH;
    for pattern in patterns {
        // The automaton was built of it: it parses.
        let hir = regex_syntax::parse(pattern).ok()?;
        if matches_space(&hir) {
            reach = reach.max(hir.properties().maximum_len()?);
        }
    }
    Some(reach)
}

/// Whether a match may hold an ASCII white space.
fn matches_space(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(literal) => literal.0.iter().any(u8::is_ascii_whitespace),
        HirKind::Class(class) => {
            let holds = |c: char| match class {
                regex_syntax::hir::Class::Unicode(class) => {
                    class.iter().any(|r| r.start() <= c && c <= r.end())
                }
                regex_syntax::hir::Class::Bytes(class) => {
                    let byte = u8::try_from(c).unwrap_or_default();
                    class.iter().any(|r| r.start() <= byte && byte <= r.end())
                }
            };
            ['\t', '\n', '\x0C', '\r', ' '].into_iter().any(holds)
        }
        HirKind::Repetition(repetition) => matches_space(&repetition.sub),
        HirKind::Capture(capture) => matches_space(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(matches_space),
    }
}

impl Masker {
    /// Up to where masking `text` will not change, whatever is appended to it; at least `from`, up to where
    /// that was known before.
    fn settled(&self, text: &str, from: usize) -> usize {
        let Some(reach) = self.reach else {
            return from;
        };
        if text.trim_start().starts_with(['{', '[']) {
            return from; // it may be JSON, which is masked by its names too, when it is whole
        }
        let far = text.floor_char_boundary(text.len().saturating_sub(reach));
        let space = text[..far].rfind(|c: char| c.is_ascii_whitespace());
        let Some(settled) = space.map(|at| at + 1).filter(|at| *at > from) else {
            return from;
        };
        // Checks look one character beyond what they found; some leave out white space at the end.
        let end = text.trim_end().len().saturating_sub(1);
        let mut at = from;
        while at < settled {
            let input = Input::new(text).span(at..text.len());
            let Some(found) = self.automaton.find(input) else {
                break;
            };
            if found.start() >= settled {
                break;
            }
            let verdict = match RULES.get(found.pattern().as_usize()) {
                Some(rule) => (rule.check)(text, found.range()),
                None => Verdict::Mask(found.range()),
            };
            let (stop, resume) = match verdict {
                Verdict::Mask(range) => (found.end().max(range.end), range.end),
                Verdict::Pass { resume } => (found.end(), resume),
            };
            if stop > settled || stop >= end {
                return found.start().max(from);
            }
            at = text.ceil_char_boundary(resume.max(at + 1));
        }
        settled
    }
}

/// A text that grows and is told in masked pieces.
#[derive(Debug, Default)]
pub struct Pieces {
    text: String,
    settled: usize,
    /// What was told so far.
    told: String,
    too_long: bool,
}

impl Pieces {
    /// Takes more of the text.
    pub fn push(&mut self, more: &str) {
        self.too_long |= self.text.len() + more.len() > MAX_TEXT;
        if self.too_long {
            self.text = String::new();
        } else {
            self.text.push_str(more);
        }
    }

    /// What can be told now; `None` when that is nothing.
    pub fn next(&mut self, masker: &Masker) -> Option<Masked<String>> {
        if self.too_long {
            return None;
        }
        let settled = masker.settled(&self.text, self.settled);
        if settled == self.settled {
            return None;
        }
        let shown = masker.text(&self.text[..settled]).0;
        // A hit can make another beside it, so it is looked whether the whole begins like that. If not,
        // what comes decides.
        let agrees = shown.starts_with(&self.told) && masker.text(&self.text).starts_with(&*shown);
        if !agrees {
            return None;
        }
        let shown = shown.into_owned();
        self.settled = settled;
        self.tell(shown)
    }

    /// The rest, now that the text is whole; `None` when that is nothing. A text that grew too long has
    /// none.
    pub fn rest(&mut self, masker: &Masker) -> Option<Masked<String>> {
        if self.too_long {
            return None;
        }
        let whole = masker.string(&self.text);
        self.settled = self.text.len();
        whole.starts_with(&self.told).then(|| self.tell(whole))?
    }

    fn tell(&mut self, masked: String) -> Option<Masked<String>> {
        let before = mem::replace(&mut self.told, masked);
        let piece = self.told[before.len()..].to_owned();
        (!piece.is_empty()).then_some(Masked(piece))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn masker() -> Masker {
        static MASKER: LazyLock<Masker> = LazyLock::new(|| Masker::new(&[]).unwrap());
        MASKER.clone()
    }

    /// What is told of a text that comes in `cuts`.
    fn told(masker: &Masker, text: &str, cuts: &[usize]) -> Vec<String> {
        let mut pieces = Pieces::default();
        let mut told = Vec::new();
        let mut rest = text;
        for &cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at(
                rest.ceil_char_boundary(cut.clamp(1, rest.len().max(1)))
                    .min(rest.len()),
            );
            pieces.push(piece);
            told.extend(pieces.next(masker).map(Masked::into_inner));
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        told.extend(pieces.rest(masker).map(Masked::into_inner));
        told
    }

    #[test]
    fn prose_is_told_while_it_is_written() {
        let prose = "The campaign spent less in the second week than in the first one. ".repeat(8);
        let pieces = told(&masker(), &prose, &[7]);
        assert!(pieces.len() > 10, "{}", pieces.len());
        assert_eq!(pieces.concat(), prose);
    }

    #[test]
    fn a_secret_is_not_shown_before_it_is_known_to_be_one() {
        let masker = masker();
        let filler = "and so on and on ".repeat(12);
        for secret in [
            "password: \"several words in quotes that go on for more than one line\nand another\"",
            "Authorization: Digest one two three four five six seven eight nine ten eleven twelve",
            "-----BEGIN PRIVATE KEY-----\nAAAA BBBB\nCCCC\n-----END PRIVATE KEY-----",
            "DE89 3704 0044 0532 0130 00",
            "4111 1111 1111 1111",
            "bearer abcdefgh12345678abcdefgh12345678abcdefgh12345678abcdefgh12345678abcdefgh12345678abcdefgh12345678abcdefgh",
        ] {
            let text = format!("{filler}{secret}\n{filler}");
            let pieces = told(&masker, &text, &[3]);
            assert_eq!(
                pieces.concat(),
                *masker.text(&text).into_inner(),
                "{secret}"
            );
            assert!(pieces.len() > 3);
        }
    }

    #[test]
    fn json_is_told_when_it_is_whole() {
        let text = format!(
            "{{\"password\": [\"a\"], \"note\": \"{}\"}}",
            "word ".repeat(100)
        );
        let pieces = told(&masker(), &text, &[9]);
        assert_eq!(pieces.len(), 1);
        assert!(pieces[0].contains("[\"[masked:field]\"]"), "{}", pieces[0]);
    }

    #[test]
    fn what_is_too_long_is_told_no_further() {
        let mut pieces = Pieces::default();
        pieces.push(&"word ".repeat(100));
        assert!(pieces.next(&masker()).is_some());
        pieces.push(&"word ".repeat(MAX_TEXT / 5));
        assert!(pieces.next(&masker()).is_none());
        assert!(pieces.rest(&masker()).is_none());
    }

    #[test]
    fn the_reach_of_the_operators_patterns_counts() {
        let of = |pattern: &str| reach(&[pattern.to_owned()]);
        assert_eq!(of(r"ACME-[0-9]+"), Some(REACH));
        assert_eq!(of(r"ACME [0-9]{200}"), Some(205));
        assert_eq!(of(r"ACME [0-9]+"), None);
        assert_eq!(of(r"ACME[^;]*;"), None);
        let held = Masker::new(&[r"ACME [a-z ]+;".to_owned()]).unwrap();
        let text = format!("ACME {};", "word ".repeat(100));
        assert_eq!(told(&held, &text, &[5]), ["[masked:custom]"]);
    }

    fn fragment() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[a-zA-Z]{1,9}",
            3 => "[ \n\t]{1,3}",
            1 => "[0-9 -]{1,24}",
            1 => "[a-z:=\"'\\[\\]{}.@/+-]{1,6}",
            1 => proptest::sample::select(vec![
                "password: ", "token=", "secret: \"", "\"", "Authorization: ", "bearer ", "basic dXNlcjpwYXNz",
                "4111 1111 1111 1111", "+49 170 1234567", "DE89 3704 0044 0532 0130 00", "a@example.org",
                "https://u:pw@example.org/", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----",
                "10.1.2.3", "version ", "fe80::1", "123-45-6789", "cookie: a=b c", "ghp_0123456789abcdefghij0123456789abcd",
            ]).prop_map(str::to_owned),
        ]
    }

    proptest! {
        #[test]
        fn what_is_told_is_the_whole_masked(
            fragments in proptest::collection::vec(fragment(), 0..120),
            cuts in proptest::collection::vec(1..40_usize, 1..6),
        ) {
            let masker = masker();
            let text = fragments.concat();
            let whole = masker.string(&text);
            prop_assert_eq!(told(&masker, &text, &cuts).concat(), whole);
        }
    }
}
