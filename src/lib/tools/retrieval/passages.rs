//! Long documents in passages, so that a hit is about the matter and not about a whole book. Pure.

use super::media;

/// Bytes that a passage has about.
const TARGET_BYTES: usize = 1_500;

/// A piece of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The heading above it.
    pub heading: Option<String>,
    /// Its text, never empty and without the heading.
    pub text: String,
}

/// Splits a text at its headings (unless it has none by its media type), then at paragraphs, then,
/// where a paragraph is too long, at words. Nothing of the text is lost but white space.
pub fn split(text: &str, media_type: &str) -> Vec<Passage> {
    let mut splitter = Splitter::default();
    for line in text.lines() {
        let heading = match media_type {
            "text/plain" => None,
            _ => media::heading(line),
        };
        match heading {
            Some(heading) => splitter.section(heading),
            None => splitter.line(line),
        }
    }
    splitter.end_section();
    splitter.passages
}

#[derive(Default)]
struct Splitter {
    passages: Vec<Passage>,
    heading: Option<String>,
    /// Whether the heading has a passage yet.
    shown: bool,
    paragraph: String,
    passage: String,
}

impl Splitter {
    fn section(&mut self, heading: &str) {
        self.end_section();
        self.heading = Some(heading.to_owned());
        self.shown = false;
    }

    fn line(&mut self, line: &str) {
        if line.trim().is_empty() {
            self.end_paragraph();
            return;
        }
        for piece in pieces(line.trim_end()) {
            if self.paragraph.len() + piece.len() > TARGET_BYTES {
                self.end_paragraph();
            }
            if !self.paragraph.is_empty() {
                self.paragraph.push('\n');
            }
            self.paragraph.push_str(piece);
        }
    }

    fn end_paragraph(&mut self) {
        if self.paragraph.is_empty() {
            return;
        }
        if self.passage.len() + self.paragraph.len() > TARGET_BYTES {
            self.end_passage();
        }
        if !self.passage.is_empty() {
            self.passage.push_str("\n\n");
        }
        self.passage.push_str(&std::mem::take(&mut self.paragraph));
    }

    fn end_passage(&mut self) {
        if !self.passage.is_empty() {
            self.shown = true;
            self.passages.push(Passage {
                heading: self.heading.clone(),
                text: std::mem::take(&mut self.passage),
            });
        }
    }

    fn end_section(&mut self) {
        self.end_paragraph();
        self.end_passage();
        // A heading with nothing below it is found as well.
        if let Some(heading) = self.heading.take().filter(|_| !self.shown) {
            self.passages.push(Passage {
                text: heading.clone(),
                heading: Some(heading),
            });
        }
    }
}

/// A line in pieces of at most [`TARGET_BYTES`], cut at white space where there is any.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let limit = rest.floor_char_boundary(TARGET_BYTES);
        let end = if limit == rest.len() {
            limit
        } else {
            let space = rest[..limit].rfind(char::is_whitespace);
            space.filter(|at| *at > 0).unwrap_or(limit)
        };
        let (piece, tail) = rest.split_at(end);
        rest = tail.trim_start();
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headings_part_and_name_passages() {
        let text = "before\n\n# One\nfirst\n\nsecond\n## Empty\n## Two\nthird";
        let passage = |heading: Option<&str>, text: &str| Passage {
            heading: heading.map(str::to_owned),
            text: text.to_owned(),
        };
        assert_eq!(
            split(text, "text/markdown"),
            [
                passage(None, "before"),
                passage(Some("One"), "first\n\nsecond"),
                passage(Some("Empty"), "Empty"),
                passage(Some("Two"), "third"),
            ]
        );
        assert_eq!(split("# a\nb", "text/plain"), [passage(None, "# a\nb")]);
    }

    proptest! {
        #[test]
        fn every_word_stays_and_no_passage_is_long(
            lines in prop::collection::vec(prop_oneof![
                "[a-z é]{0,40}",
                "#{1,3} [a-z]{1,8}",
                "[a-z]{1,5}".prop_map(|word| word.repeat(700)),
                "([a-z]{1,9} ){1,3}".prop_map(|words| words.repeat(200)),
            ], 0..20)
        ) {
            let text = lines.join("\n");
            let passages = split(&text, "text/plain");
            let letters = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            let all: String = passages.iter().map(|p| letters(&p.text)).collect();
            prop_assert_eq!(all, letters(&text));
            for passage in passages {
                prop_assert!(!passage.text.is_empty() && passage.text.len() <= TARGET_BYTES + 2);
            }
        }
    }
}
