//! Rust source, as far as the rules need to read it.

/// A name, `::`, or any other character that is no space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    /// From 1.
    pub line: usize,
}

/// The tokens of a file, without comments, the contents of literals, and items for tests.
pub fn tokens(text: &str) -> Vec<Token> {
    let code = without_tests(&without_literals(text));
    let bytes = code.as_bytes();
    let (mut tokens, mut line, mut at) = (Vec::new(), 1, 0);
    while at < bytes.len() {
        let start = at;
        at += match bytes[at] {
            b if is_name(b) => bytes[at..].iter().take_while(|b| is_name(**b)).count(),
            b':' if bytes[at..].starts_with(b"::") => 2,
            _ => 1,
        };
        match bytes[start] {
            b'\n' => line += 1,
            b if b.is_ascii_whitespace() => {}
            _ => tokens.push(Token {
                text: String::from_utf8_lossy(&bytes[start..at]).into_owned(),
                line,
            }),
        }
    }
    tokens
}

/// The paths that begin with `root::`, groups of `use` spelt out, each with its line.
pub fn paths_from(tokens: &[Token], root: &str) -> Vec<(usize, Vec<String>)> {
    let mut paths = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let begins = at == 0 || tokens[at - 1].text != "::";
        if token.text == root && begins && is(tokens, at + 1, "::") {
            spell_out(tokens, at + 2, &[], &mut paths);
        }
    }
    paths
}

fn spell_out(
    tokens: &[Token],
    at: usize,
    prefix: &[String],
    paths: &mut Vec<(usize, Vec<String>)>,
) {
    let Some(token) = tokens.get(at) else { return };
    if token.text == "{" {
        let (mut depth, mut item) = (1, true);
        for next in at + 1..tokens.len() {
            if item {
                spell_out(tokens, next, prefix, paths);
            }
            item = false;
            match tokens[next].text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                "," => item = depth == 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
        return;
    }
    let names_something = token.text == "*" || token.text.bytes().all(is_name);
    let mut path = prefix.to_vec();
    if names_something {
        path.push(token.text.clone());
    }
    if names_something && is(tokens, at + 1, "::") {
        spell_out(tokens, at + 2, &path, paths);
    } else if !path.is_empty() {
        paths.push((token.line, path));
    }
}

/// Whether the token at `at` is `text`.
pub fn is(tokens: &[Token], at: usize, text: &str) -> bool {
    tokens.get(at).is_some_and(|token| token.text == text)
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The text with spaces in place of comments and literals; line breaks stay.
fn without_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    while code.len() < bytes.len() {
        let at = code.len();
        match literal(bytes, at) {
            0 => code.push(bytes[at]),
            length => {
                let end = (at + length).min(bytes.len());
                let blank = |b: &u8| if *b == b'\n' { b'\n' } else { b' ' };
                code.extend(bytes[at..end].iter().map(blank));
            }
        }
    }
    String::from_utf8_lossy(&code).into_owned()
}

/// Bytes of the comment or literal that begins at `at`; 0 when none does.
fn literal(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return rest.iter().take_while(|b| **b != b'\n').count();
    }
    if rest.starts_with(b"/*") {
        return block_comment(rest);
    }
    let within_name = at > 0 && is_name(bytes[at - 1]);
    let prefix = if within_name {
        0
    } else {
        rest.iter().take_while(|b| b"brc".contains(b)).count()
    };
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let raw = rest[..prefix].contains(&b'r');
    match rest.get(prefix + if raw { hashes } else { 0 }) {
        Some(b'"') if raw => {
            let open = prefix + hashes + 1;
            let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
            let found = rest[open..].windows(close.len()).position(|w| w == close);
            found.map_or(rest.len(), |found| open + found + close.len())
        }
        Some(b'"') => prefix + quoted(&rest[prefix..], b'"'),
        Some(b'\'') if prefix == 0 => character(rest),
        _ => 0,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
        } else {
            at += 1;
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Up to the closing quote, which no backslash precedes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// A character literal; 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return quoted(rest, b'\'');
    }
    // One character, in at most four bytes of UTF-8.
    let end = (2..=5).find(|end| rest.get(*end) == Some(&b'\''));
    match end {
        Some(2) => 3,
        Some(end) if !rest[1].is_ascii() => end + 1,
        _ => 0,
    }
}

/// The code without items under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    const MARKS: [&str; 2] = ["#[cfg(test)]", "#[cfg(all(test"];
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = MARKS.iter().filter_map(|mark| rest.find(mark)).min() {
        kept.push_str(&rest[..start]);
        let attribute = rest[start..]
            .find(")]")
            .map_or(rest.len(), |n| start + n + 2);
        let end = attribute + item_length(&rest[attribute..]);
        kept.extend(rest[start..end].chars().filter(|c| *c == '\n'));
        rest = &rest[end..];
    }
    kept + rest
}

/// Bytes up to the item's last brace, or its semicolon when it has no body.
fn item_length(code: &str) -> usize {
    let (mut braces, mut brackets) = (0, 0);
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets -= 1,
            b'{' => braces += 1,
            b'}' => braces -= 1,
            _ => {}
        }
        if braces == 0 && (byte == b'}' || (byte == b';' && brackets == 0)) {
            return at + 1;
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        let tokens = tokens(text);
        let words: Vec<_> = tokens.iter().map(|token| token.text.as_str()).collect();
        words.join(" ")
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        assert_eq!(words("a // crate::x\n/* b /* c */ d */ e"), "a e");
        assert_eq!(
            words(r#"f("crate::\"x", b"y", 'z', '\'', 'ä')"#),
            "f ( , , , , )"
        );
        assert_eq!(words(r##"f(r#"a"b"#, br"c", r"\")g"##), "f ( , , ) g");
        assert_eq!(
            words("fn f<'a>(x: &'a str) {}"),
            "fn f < ' a > ( x : & ' a str ) { }"
        );
        assert_eq!(words("for r in attr#x"), "for r in attr # x");
    }

    #[test]
    fn items_for_tests_are_not_code() {
        assert_eq!(words("a #[cfg(test)] mod t { fn f() { b } } c"), "a c");
        assert_eq!(words("a #[cfg(test)] mod t; c"), "a c");
        assert_eq!(words("a #[cfg(test)] fn f() -> [u8; 3] { b } c"), "a c");
        assert_eq!(words("a #[cfg(all(test, unix))] use x; c"), "a c");
        assert_eq!(
            words("a #[cfg(not(test))] b"),
            "a # [ cfg ( not ( test ) ) ] b"
        );
    }

    #[test]
    fn lines_are_counted() {
        let tokens = tokens("a\n/*\n*/ \"\n\" b #[cfg(test)]\nmod t {\n}\nc");
        let lines: Vec<_> = tokens.iter().map(|t| (t.text.as_str(), t.line)).collect();
        assert_eq!(lines, [("a", 1), ("b", 4), ("c", 7)]);
    }

    #[test]
    fn groups_are_spelt_out() {
        let tokens = tokens("use crate::{a, b::{c, d::E}, f::*}; crate::g::h(1); x::crate::y;");
        let paths: Vec<_> = paths_from(&tokens, "crate")
            .into_iter()
            .map(|(_, path)| path.join("::"))
            .collect();
        assert_eq!(paths, ["a", "b::c", "b::d::E", "f::*", "g::h"]);
    }
}
