//! A small HTML tokenizer: one pass, no tree, no memory but the input's.
//!
//! It follows the tokenization of the HTML standard closely enough for reading: comments, quoted
//! attributes, and elements whose content is not markup.

/// A piece of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'h> {
    /// Text, with its character references as they are.
    Text(&'h str),
    /// A start tag: its name as written and the source of its attributes.
    Open(&'h str, &'h str),
    /// An end tag: its name as written.
    Close(&'h str),
}

/// What is left of a document.
#[derive(Debug, Clone)]
pub(super) struct Tokens<'h> {
    rest: &'h str,
}

impl<'h> Tokens<'h> {
    pub(super) fn new(html: &'h str) -> Self {
        Self { rest: html }
    }

    /// Takes the content of an element that is not markup (`script`, `title`), up to its end tag,
    /// which stays, or to the end of the document.
    pub(super) fn raw_content(&mut self, name: &str) -> &'h str {
        let closes = |at: &usize| {
            let tail = self.rest.as_bytes().get(at + 2..at + 2 + name.len());
            self.rest[at + 1..].starts_with('/')
                && tail.is_some_and(|tail| tail.eq_ignore_ascii_case(name.as_bytes()))
        };
        let end = self.rest.match_indices('<').map(|(at, _)| at).find(closes);
        self.take(end.unwrap_or(self.rest.len()))
    }

    /// Passes over the content of an element and its end tag, elements of that name inside it
    /// included.
    pub(super) fn skip_element(&mut self, name: &str) {
        let mut open = 1_usize;
        while open > 0 {
            match self.next() {
                None => return,
                // A self-closing tag has no content where this is asked for (SVG, MathML).
                Some(Token::Open(inner, attributes)) if inner.eq_ignore_ascii_case(name) => {
                    open += usize::from(!attributes.ends_with('/'));
                }
                Some(Token::Close(inner)) if inner.eq_ignore_ascii_case(name) => open -= 1,
                Some(_) => {}
            }
        }
    }

    fn take(&mut self, bytes: usize) -> &'h str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        taken
    }

    /// Takes what stands before the first `end`, and drops `end`; everything when there is none.
    fn take_until(&mut self, end: &str) -> &'h str {
        if let Some((taken, rest)) = self.rest.split_once(end) {
            self.rest = rest;
            taken
        } else {
            self.take(self.rest.len())
        }
    }

    /// Takes a tag's name and attributes up to its `>`, which is dropped. A document that ends
    /// inside a tag ends before it.
    fn tag(&mut self) -> Option<(&'h str, &'h str)> {
        let is_end = |c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>');
        let name = self.take(self.rest.find(is_end)?);
        let mut quote = None;
        // A quote opens a value only after `=`; elsewhere it is part of a name.
        let mut after_equals = false;
        for (at, byte) in self.rest.bytes().enumerate() {
            match (quote, byte) {
                (Some(open), _) if byte == open => quote = None,
                (None, b'"' | b'\'') if after_equals => quote = Some(byte),
                (None, b'>') => {
                    let attributes = self.take(at);
                    self.take(1);
                    return Some((name, attributes));
                }
                (Some(_) | None, _) => {}
            }
            after_equals =
                quote.is_none() && (byte == b'=' || after_equals && byte.is_ascii_whitespace());
        }
        None
    }
}

impl<'h> Iterator for Tokens<'h> {
    type Item = Token<'h>;

    fn next(&mut self) -> Option<Token<'h>> {
        loop {
            let mut chars = self.rest.chars();
            match (chars.next()?, chars.next()) {
                ('<', Some('!')) if self.rest.starts_with("<!--") => {
                    // `<!-->` is a whole comment.
                    self.take(2);
                    self.take_until("-->");
                }
                ('<', Some('/')) if chars.next().is_some_and(|c| c.is_ascii_alphabetic()) => {
                    self.take(2);
                    let Some((name, _)) = self.tag() else { break };
                    return Some(Token::Close(name));
                }
                ('<', Some('!' | '?' | '/')) => {
                    self.take_until(">");
                }
                ('<', Some(c)) if c.is_ascii_alphabetic() => {
                    self.take(1);
                    let Some((name, attributes)) = self.tag() else {
                        break;
                    };
                    return Some(Token::Open(name, attributes));
                }
                (first, _) => {
                    // A `<` that begins no tag is text.
                    let from = first.len_utf8();
                    let end = self.rest[from..].find('<').map(|at| at + from);
                    let text = self.take(end.unwrap_or(self.rest.len()));
                    return Some(Token::Text(text));
                }
            }
        }
        self.rest = "";
        None
    }
}

/// The value of an attribute in the source of a tag's attributes; `None` when it is not there.
pub(super) fn attribute<'h>(attributes: &'h str, name: &str) -> Option<&'h str> {
    let mut rest = attributes;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/');
        if rest.is_empty() {
            return None;
        }
        let is_end = |c: char| c.is_ascii_whitespace() || matches!(c, '=' | '/');
        // A name may begin with `=`.
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let end = rest[first..]
            .find(is_end)
            .map_or(rest.len(), |at| at + first);
        let (found, tail) = rest.split_at(end);
        let tail = tail.trim_ascii_start();
        let value;
        (value, rest) = match tail.strip_prefix('=').map(str::trim_ascii_start) {
            None => ("", tail),
            Some(tail) => split_value(tail),
        };
        if found.eq_ignore_ascii_case(name) {
            return Some(value);
        }
    }
}

fn split_value(text: &str) -> (&str, &str) {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote) {
            return inner.split_once(quote).unwrap_or((inner, ""));
        }
    }
    let end = text.find(|c: char| c.is_ascii_whitespace());
    text.split_at(end.unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::Token::{Close, Open, Text};
    use super::*;

    fn tokens(html: &str) -> Vec<Token<'_>> {
        Tokens::new(html).collect()
    }

    #[test]
    fn tags_text_and_comments_are_told_apart() {
        assert_eq!(
            tokens("a<B x='>' y=\">\">b</B >c<br/>"),
            [
                Text("a"),
                Open("B", " x='>' y=\">\""),
                Text("b"),
                Close("B"),
                Text("c"),
                Open("br", "/")
            ]
        );
        assert_eq!(tokens("<!doctype html><!-- <b> --x><b>-->d"), [Text("d")]);
        assert_eq!(
            tokens("<!-- <b> -->f<!-->g<?php ?>h</ >i"),
            [Text("f"), Text("g"), Text("h"), Text("i")]
        );
        assert_eq!(
            tokens("1 < 2 <3 <"),
            [Text("1 "), Text("< 2 "), Text("<3 "), Text("<")]
        );
        assert_eq!(
            tokens("it's <a b'c>'"),
            [Text("it's "), Open("a", " b'c"), Text("'")]
        );
    }

    #[test]
    fn a_document_that_ends_inside_a_tag_ends_before_it() {
        for html in ["x<a", "x<a href='", "x<a href=\">", "x</a", "x<!--", "x<!"] {
            assert_eq!(tokens(html), [Text("x")], "{html}");
        }
    }

    #[test]
    fn raw_content_and_elements_are_passed_over() {
        let mut rest = Tokens::new("if (a<b) '</b>'</SCRIPT >x");
        assert_eq!(rest.raw_content("script"), "if (a<b) '</b>'");
        assert_eq!(rest.collect::<Vec<_>>(), [Close("SCRIPT"), Text("x")]);
        assert_eq!(
            Tokens::new("never <é ended</").raw_content("script"),
            "never <é ended</"
        );
        let mut rest = Tokens::new("<svg/><g><svg></svg></g></svg>x");
        rest.skip_element("svg");
        assert_eq!(rest.collect::<Vec<_>>(), [Text("x")]);
    }

    #[test]
    fn attributes_are_read_in_every_notation() {
        let attributes = " a HREF = \"x y\" b='z\"' c=/d?e=f g= h/i=1";
        for (name, value) in [
            ("a", ""),
            ("href", "x y"),
            ("b", "z\""),
            ("c", "/d?e=f"),
            ("g", "h/i=1"),
        ] {
            assert_eq!(attribute(attributes, name), Some(value), "{name}");
        }
        assert_eq!(attribute(attributes, "x"), None);
        assert_eq!(attribute("= == =a='", "a"), None);
    }
}
