//! Readable text from the media types that the corpus takes. Pure.
//!
//! The text has one form whatever it came from: headings are lines that begin with `#`, paragraphs
//! are parted by empty lines.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

/// Bytes of a file, and of the text that is read from it.
pub const MAX_BYTES: usize = 5 << 20;
/// Characters of a title.
const MAX_TITLE_CHARS: usize = 200;
/// Columns at which HTML is wrapped: as good as never, for lines mean nothing in a search.
const HTML_WIDTH: usize = 10_000;
/// Elements of HTML that may lie within each other, as in browsers: the renderer's time grows with
/// their square.
const MAX_HTML_DEPTH: usize = 512;

/// What was read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// The document's own title, else the file's name without its ending.
    pub title: String,
    /// The text.
    pub text: String,
    /// Of the file.
    pub media_type: &'static str,
}

/// Why a file was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Its ending is none of those that are known.
    #[error("not Markdown (.md, .markdown), text (.txt) or HTML (.html, .htm)")]
    Type,
    /// It, or its text, is too large.
    #[error("larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// It is not UTF-8.
    #[error("not UTF-8 text")]
    Encoding,
    /// It holds no text.
    #[error("no text in it")]
    Empty,
    /// It is not HTML that can be rendered.
    #[error("its HTML cannot be read")]
    Html,
}

/// Which media type a path's ending stands for.
pub fn media_type(path: &str) -> Option<&'static str> {
    let (_, ending) = path.rsplit_once('.')?;
    match ending.to_ascii_lowercase().as_str() {
        "md" | "markdown" => Some("text/markdown"),
        "txt" => Some("text/plain"),
        "html" | "htm" => Some("text/html"),
        _ => None,
    }
}

/// Reads title and text from the bytes of the file at `path`.
pub fn extract(path: &str, bytes: &[u8]) -> Result<Extracted, Unreadable> {
    let media_type = media_type(path).ok_or(Unreadable::Type)?;
    if bytes.len() > MAX_BYTES {
        return Err(Unreadable::TooLarge);
    }
    let source = std::str::from_utf8(bytes).map_err(|_| Unreadable::Encoding)?;
    let source = source.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let (title, text) = match media_type {
        "text/markdown" => {
            let text = markdown_text(&source);
            (first_heading(&text), text)
        }
        "text/html" => {
            let text = html_text(&source)?;
            (html_title(&source).or_else(|| first_heading(&text)), text)
        }
        _ => (None, source),
    };
    if text.len() > MAX_BYTES {
        return Err(Unreadable::TooLarge);
    }
    if text.contains('\0') {
        return Err(Unreadable::Encoding);
    }
    if text.trim().is_empty() {
        return Err(Unreadable::Empty);
    }
    let title = title.unwrap_or_else(|| file_stem(path).to_owned());
    Ok(Extracted {
        title: title
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_TITLE_CHARS)
            .collect(),
        text,
        media_type,
    })
}

/// The text of a heading line, when it is one: one to six `#`, a space, a text (`CommonMark` 4.2).
pub fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    let text = text
        .strip_prefix(' ')?
        .trim()
        .trim_end_matches('#')
        .trim_end();
    ((1..=6).contains(&level) && !text.is_empty()).then_some(text)
}

fn first_heading(text: &str) -> Option<String> {
    text.lines().find_map(heading).map(str::to_owned)
}

fn file_stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// Markdown with the marks taken away that are not words: enough for search, not a renderer.
fn markdown_text(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut fence: Option<&str> = None;
    let mut lines = without_front_matter(source).lines().peekable();
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        let mark = ["```", "~~~"]
            .into_iter()
            .find(|mark| trimmed.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            // Indented, so that a comment in code is not taken for a heading.
            (Some(_), _) => push_line(&mut text, &format!("    {line}")),
            (None, None) => {
                let underline = lines.peek().map_or("", |next| next.trim());
                if is_underline(underline) && !trimmed.is_empty() && heading(line).is_none() {
                    push_line(&mut text, &format!("# {}", inline_text(trimmed)));
                    lines.next();
                } else if !is_rule(trimmed) {
                    push_line(&mut text, &inline_text(line));
                }
            }
        }
    }
    text
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line.trim_end());
    text.push('\n');
}

/// A block of YAML between `---` lines at the very beginning is about the file, not of it.
fn without_front_matter(source: &str) -> &str {
    let Some(rest) = source.strip_prefix("---\n") else {
        return source;
    };
    match rest.split_once("\n---\n") {
        Some((_, body)) => body,
        None => source,
    }
}

/// The line under a heading (`CommonMark` 4.3). A line of `-` is taken for a rule: it is one more
/// often, and an unknown heading costs less than a false one.
fn is_underline(line: &str) -> bool {
    line.len() >= 3 && line.bytes().all(|b| b == b'=')
}

/// Rules and the lines under a table's head.
fn is_rule(line: &str) -> bool {
    line.len() >= 3
        && line
            .bytes()
            .all(|b| matches!(b, b'-' | b'*' | b'_' | b'|' | b':' | b' '))
}

/// Links and images keep their text, code and emphasis their words; HTML tags go.
fn inline_text(line: &str) -> String {
    static LINK: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s[^()]*)?\)").ok());
    static MARKS: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"\*\*|__|`+|<!--.*?-->|</?[A-Za-z][^<>]*>|^\s*(?:>\s?)+").ok()
    });
    let replace = |regex: &LazyLock<Option<Regex>>, text: &str, by: &str| match &**regex {
        Some(regex) => regex.replace_all(text, by).into_owned(),
        None => text.to_owned(),
    };
    // Twice: an image within a link.
    let text = replace(&LINK, line, "$1");
    let text = replace(&LINK, &text, "$1");
    replace(&MARKS, &text, "")
}

fn html_text(source: &str) -> Result<String, Unreadable> {
    if open_elements(source) > MAX_HTML_DEPTH {
        return Err(Unreadable::Html);
    }
    html2text::config::rich()
        .raw_mode(true)
        .allow_width_overflow()
        .string_from_read(source.as_bytes(), HTML_WIDTH)
        .map_err(|_| Unreadable::Html)
}

/// An upper guess of how deep elements lie: for each name the tags opened less those closed. An end
/// tag without its beginning closes nothing, as in the parser.
fn open_elements(source: &str) -> usize {
    static TAG: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"<(/?)([A-Za-z][A-Za-z0-9]*)[^<>]*?(/?)>").ok());
    /// Elements that end by themselves, or with the next of their kind.
    const NO_END: [&str; 25] = [
        "area", "base", "br", "col", "colgroup", "dd", "dt", "embed", "hr", "img", "input", "li",
        "link", "meta", "option", "p", "source", "tbody", "td", "tfoot", "th", "thead", "tr",
        "track", "wbr",
    ];
    let Some(tag) = &*TAG else { return usize::MAX };
    let mut open: HashMap<String, usize> = HashMap::new();
    let (mut depth, mut deepest) = (0usize, 0);
    for found in tag.captures_iter(source) {
        let name = found[2].to_ascii_lowercase();
        // `/>` means something in drawings only.
        let in_drawing = open.get("svg").is_some_and(|count| *count > 0);
        if NO_END.contains(&name.as_str()) || (in_drawing && !found[3].is_empty()) {
            continue;
        }
        let count = open.entry(name).or_default();
        if found[1].is_empty() {
            *count += 1;
            depth += 1;
            deepest = deepest.max(depth);
        } else if *count > 0 {
            *count -= 1;
            depth -= 1;
        }
    }
    deepest
}

fn html_title(source: &str) -> Option<String> {
    static TITLE: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(?is)<title[^>]*>(.*?)</title\s*>").ok());
    let inner = TITLE.as_ref()?.captures(source)?.get(1)?.as_str();
    // Through the parser, for the sake of `&amp;` and its kind.
    let title = html_text(&inner.replace('<', "&lt;")).ok()?;
    let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
    (!title.is_empty()).then_some(title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str, source: &str) -> Extracted {
        extract(path, source.as_bytes()).unwrap()
    }

    #[test]
    fn markdown_keeps_words_and_headings() {
        let source = "---\ntitle: x\n---\n# The **write** order #\n\nSee [the `contract`](c.md \"t\") and ![alt](a.png).\n> quoted\n\n```sh\n# no heading\n```\n\nOlder\n=====\n| a | b |\n|---|---|\n";
        let got = read("docs/a.md", source);
        assert_eq!(got.title, "The write order");
        assert_eq!(
            got.text,
            "# The write order #\n\nSee the contract and alt.\nquoted\n\n    # no heading\n\n# Older\n| a | b |\n"
        );
    }

    #[test]
    fn html_gives_title_headings_and_no_script() {
        let source = "<html><head><title>Tea &amp;\n cake</title><script>let x = 'hidden'</script></head>\
            <body><h2>Brewing</h2><p>Use <b>boiling</b> <a href='/w'>water</a>.</p></body></html>";
        let got = read("tea.HTML", source);
        assert_eq!(got.title, "Tea & cake");
        assert!(got.text.contains("## Brewing\n"), "{}", got.text);
        assert!(got.text.contains("Use boiling water."), "{}", got.text);
        assert!(!got.text.contains("hidden"));
    }

    #[test]
    fn html_that_nests_without_end_is_refused() {
        let deep = "<div>".repeat(100_000);
        assert_eq!(extract("a.html", deep.as_bytes()), Err(Unreadable::Html));
        let unclosed = "<div></x>".repeat(1_000);
        assert_eq!(
            extract("a.html", unclosed.as_bytes()),
            Err(Unreadable::Html)
        );

        let nested = format!("{}word{}", "<div>".repeat(400), "</div>".repeat(400));
        let drawing = format!("<svg>{}</svg>word", "<path d='M0'/>".repeat(1_000));
        let list = format!("<ul>{}</ul>", "<li>word<br>".repeat(1_000));
        for page in [nested, drawing, list] {
            assert!(read("a.html", &page).text.contains("word"));
        }
    }

    #[test]
    fn plain_text_is_kept_and_named_after_its_file() {
        let got = read("notes/meeting notes.txt", "\u{feff}# not a heading\r\nline");
        assert_eq!(
            (got.title.as_str(), got.text.as_str()),
            ("meeting notes", "# not a heading\nline")
        );
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_reason() {
        assert_eq!(extract("a.pdf", b"%PDF"), Err(Unreadable::Type));
        assert_eq!(extract("README", b"text"), Err(Unreadable::Type));
        assert_eq!(extract("a.txt", &[0xff, 0xfe]), Err(Unreadable::Encoding));
        assert_eq!(extract("a.txt", b"a\0b"), Err(Unreadable::Encoding));
        assert_eq!(extract("a.md", b" \n"), Err(Unreadable::Empty));
        assert_eq!(
            extract("a.txt", &vec![b'a'; MAX_BYTES + 1]),
            Err(Unreadable::TooLarge)
        );
    }
}
