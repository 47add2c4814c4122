//! What a reader sees of an HTML page.
//!
//! Building and laying out the tree of a foreign document can take time and memory without bound:
//! deep nesting, formatting elements that are cloned into every paragraph, tables of a million
//! columns. So the page is first reduced, in one linear pass, to a small and shallow document of
//! well-nested headings, lists, quotes, links and line breaks, and that is what is rendered.

use super::tokens::{Token, Tokens, attribute};

/// Columns of a line. A model reads long lines as well as short ones, and they cost less.
const WIDTH: usize = 10_000;
/// Deepest nesting of lists, quotes and the like; what is deeper is plain lines.
const MAX_DEPTH: usize = 24;
/// Longest title in characters.
const MAX_TITLE_CHARS: usize = 300;
/// Longest target of a link in bytes that is worth showing.
const MAX_HREF_BYTES: usize = 500;
/// Bytes of the reduced document at most; the text that it gives is about as long.
const MAX_REDUCED_BYTES: usize = 8 << 20;

/// What a reader sees of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Readable {
    /// The title, when there is one.
    pub(super) title: Option<String>,
    /// The text, with its links as footnotes.
    pub(super) text: String,
    /// Whether the text was cut off.
    pub(super) truncated: bool,
}

/// Reads a page; `None` when the renderer refuses it.
pub(super) fn read(html: &str) -> Option<Readable> {
    let page = reduce(html, MAX_REDUCED_BYTES);
    let title = page.title.and_then(|title| render(&escape(title)));
    let title = title
        .map(|title| title.split_whitespace().collect::<Vec<_>>().join(" "))
        .map(|title| title.chars().take(MAX_TITLE_CHARS).collect::<String>())
        .filter(|title| !title.is_empty());
    Some(Readable {
        title,
        text: render(&page.html)?,
        truncated: page.truncated,
    })
}

fn reduce(html: &str, max_bytes: usize) -> Reduced<'_> {
    let mut page = Reduced::default();
    let mut tokens = Tokens::new(html);
    while let Some(token) = tokens.next() {
        match token {
            Token::Text(text) => page.text(text),
            Token::Open(name, attributes) => {
                page.open(&name.to_ascii_lowercase(), attributes, &mut tokens);
            }
            Token::Close(name) => page.close(&name.to_ascii_lowercase()),
        }
        if page.html.len() > max_bytes {
            page.truncated = true;
            break;
        }
    }
    page.pop_to(0);
    page
}

fn render(html: &str) -> Option<String> {
    let text = html2text::config::plain()
        .allow_width_overflow()
        .string_from_read(html.as_bytes(), WIDTH)
        .ok()?;
    Some(text.trim_end().to_owned())
}

/// The reduced document in the making.
#[derive(Debug, Default)]
struct Reduced<'h> {
    html: String,
    title: Option<&'h str>,
    /// The elements that are open, outermost first.
    stack: Vec<&'static str>,
    /// Line breaks that are due before the next text: 1 ends a line, 2 a paragraph.
    breaks: usize,
    /// Whether the current block has text already.
    has_text: bool,
    /// Whether the current table row has a cell already.
    in_row: bool,
    truncated: bool,
}

/// The elements that the reduced document keeps.
const KEPT: [&str; 12] = [
    "ul",
    "ol",
    "li",
    "blockquote",
    "pre",
    "a",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
];

impl<'h> Reduced<'h> {
    fn open(&mut self, name: &str, attributes: &'h str, tokens: &mut Tokens<'h>) {
        match name {
            "title" => {
                let title = tokens.raw_content(name);
                self.title.get_or_insert(title);
            }
            "script" | "style" | "iframe" | "noembed" | "noframes" | "textarea" => {
                tokens.raw_content(name);
            }
            // These may be empty, as `<svg/>`.
            "svg" | "math" if attributes.ends_with('/') => {}
            "svg" | "math" | "template" => tokens.skip_element(name),
            "img" => self.text(attribute(attributes, "alt").unwrap_or_default()),
            "br" => self.breaks = (self.breaks + 1).min(2),
            "td" | "th" => {
                if std::mem::replace(&mut self.in_row, true) {
                    self.text(" | ");
                }
            }
            "a" => self.open_link(attribute(attributes, "href").unwrap_or_default()),
            "li" => {
                self.close_item();
                if !self.stack.iter().any(|open| is_list(open)) {
                    self.push("ul");
                }
                self.push("li");
            }
            _ => {
                if let Some(kept) = KEPT.into_iter().find(|kept| *kept == name) {
                    self.push(kept);
                } else {
                    self.end_line(name);
                }
            }
        }
    }

    fn close(&mut self, name: &str) {
        if name == "li" {
            self.close_item();
        } else if let Some(at) = self.stack.iter().rposition(|open| *open == name) {
            self.pop_to(at);
        } else {
            self.end_line(name);
        }
    }

    fn text(&mut self, text: &str) {
        let preformatted = self.stack.contains(&"pre");
        if !preformatted && text.trim_ascii().is_empty() {
            if !text.is_empty() {
                self.html.push(' ');
            }
            return;
        }
        self.break_lines();
        self.has_text = true;
        self.html.push_str(&escape(text));
    }

    fn open_link(&mut self, href: &str) {
        if let Some(at) = self.stack.iter().position(|open| *open == "a") {
            self.pop_to(at);
        }
        let scheme = href
            .trim_ascii_start()
            .split_once(':')
            .map(|(scheme, _)| scheme);
        let hidden = scheme.is_some_and(|scheme| {
            ["javascript", "data"]
                .iter()
                .any(|bad| scheme.eq_ignore_ascii_case(bad))
        });
        let shown = !href.is_empty() && !href.starts_with('#') && !hidden;
        if shown && href.len() <= MAX_HREF_BYTES && self.stack.len() < MAX_DEPTH {
            self.break_lines();
            let href = escape(href).replace('"', "&quot;");
            self.write(&["<a href=\"", &href, "\">"]);
            self.stack.push("a");
        }
    }

    /// Opens a block. A heading ends where another block begins.
    fn push(&mut self, name: &'static str) {
        if let Some(at) = self.stack.iter().rposition(|open| open.starts_with('h')) {
            self.pop_to(at);
        }
        if self.stack.len() >= MAX_DEPTH {
            self.breaks = self.breaks.max(1);
            return;
        }
        self.write(&["<", name, ">"]);
        self.stack.push(name);
        (self.breaks, self.has_text) = (0, false);
    }

    /// Closes the elements above a depth.
    fn pop_to(&mut self, depth: usize) {
        while self.stack.len() > depth {
            let Some(name) = self.stack.pop() else { return };
            self.write(&["</", name, ">"]);
            if name != "a" {
                (self.breaks, self.has_text) = (0, false);
            }
        }
    }

    /// Closes the item of the innermost list.
    fn close_item(&mut self) {
        let innermost = self
            .stack
            .iter()
            .rposition(|open| *open == "li" || is_list(open));
        if let Some(at) = innermost.filter(|at| self.stack[*at] == "li") {
            self.pop_to(at);
        }
    }

    /// Ends the line or the paragraph at the border of an element that is not kept, unless that is
    /// one inside a line.
    fn end_line(&mut self, name: &str) {
        let lines = match name {
            "p" | "table" | "hr" | "dl" | "figure" | "section" | "article" => 2,
            "div" | "tr" | "dt" | "dd" | "header" | "footer" | "nav" | "main" | "aside"
            | "form" | "figcaption" | "fieldset" | "legend" | "address" | "details" | "summary"
            | "caption" | "option" | "body" | "center" => 1,
            _ => return,
        };
        if name == "tr" {
            self.in_row = false;
        }
        self.breaks = self.breaks.max(lines);
    }

    fn write(&mut self, parts: &[&str]) {
        self.html.extend(parts.iter().copied());
    }

    fn break_lines(&mut self) {
        let breaks = std::mem::take(&mut self.breaks);
        if self.has_text {
            self.html.push_str(&"<br>".repeat(breaks));
        }
    }
}

fn is_list(name: &str) -> bool {
    matches!(name, "ul" | "ol")
}

/// Text for the reduced document. Character references stay, for the renderer to resolve.
fn escape(text: &str) -> String {
    text.replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(html: &str) -> String {
        read(html).unwrap().text
    }

    #[test]
    fn a_page_reads_like_a_page() {
        let page = read(
            "<!DOCTYPE html><html><head><meta charset=utf-8><title>\n Fish &amp; <b>chips</b>\n</title>
            <style>p { color: red }</style><script>if (a<b) document.write('<p>no</p>')</script></head>
            <body><nav><a href=/home>Home</a></nav><h1>Menu &mdash; today</h1><p>Best <em>fish</em> in
            <a href='https://a.example/?a=1&amp;b=2'>town</a>.<p>Second<br>line
            <ul><li>cod<li>plaice<ul><li>small</ul></ul>
            <table><tr><th>What<th>Price</tr><tr><td>Cod<td>5</table>
            <pre>  a &lt; b\n    c</pre><blockquote>Nice!</blockquote><svg><title>no</title><text>no</text></svg>
            <img alt='A fish' src=x><!-- no --></body></html>",
        )
        .unwrap();
        assert_eq!(page.title.as_deref(), Some("Fish & <b>chips</b>"));
        assert!(!page.truncated);
        assert_eq!(
            page.text,
            "[Home][1]\n\n# Menu — today\n\nBest fish in [town][2].\n\nSecond\nline\n\
             * cod\n* plaice\n  * small\nWhat | Price\nCod | 5\n\n  a < b\n    c\n\n> Nice!\n\nA fish\n\n\
             [1]: /home\n[2]: https://a.example/?a=1&b=2"
        );
    }

    #[test]
    fn what_is_no_text_is_left_out() {
        for html in [
            "<script>x</script>",
            "<SCRIPT type='a>b'>'</b>'</sCript >",
            "<style>x</style><template><p>x</template><iframe>x</iframe><svg><a>x</a></svg>",
            "<!-- x --><textarea>x</textarea>",
            "<script>x",
        ] {
            assert_eq!(text(&format!("a{html}")), "a", "{html}");
        }
        assert_eq!(text("<svg/>a<math/>b"), "ab");
        assert_eq!(
            text("<a href='javascript:x'>a</a> <a href='#x'>b</a>"),
            "a b"
        );
    }

    #[test]
    fn text_is_never_taken_for_markup() {
        assert_eq!(
            text("&lt;script&gt;x&lt;/script&gt; 1 < 2 &amp;lt;"),
            "<script>x</script> 1 < 2 &lt;"
        );
        assert_eq!(text("<img alt='<h1>x</h1>'>"), "<h1>x</h1>");
        assert_eq!(read("<title><h1>x").unwrap().title.unwrap(), "<h1>x");
        let link = text("<a href='\"><h1>x</h1>'>y</a>");
        assert_eq!(link, "[y][1]\n\n[1]: \"><h1>x</h1>");
    }

    #[test]
    fn the_first_title_counts_and_is_short() {
        let title = |html| read(html).unwrap().title;
        assert_eq!(title("<title>a</title><title>b</title>"), Some("a".into()));
        assert_eq!(title("<svg><title>a</title></svg>x"), None);
        assert_eq!(title("<title> \n</title>"), None);
        let long = format!("<title>{}</title>", "é".repeat(9999));
        assert_eq!(title(&long).unwrap().chars().count(), MAX_TITLE_CHARS);
    }

    #[test]
    fn a_page_that_swells_is_cut() {
        let page = reduce("<ul><li>abcdefgh<li>i<li>j", 20);
        assert!(page.truncated);
        assert_eq!(page.html, "<ul><li>abcdefgh</li><li></li></ul>");
        assert!(!reduce("<ul><li>abc", 20).truncated);
    }

    /// Depth and size of the reduced document; fails when it is not well nested.
    fn shape(html: &str) -> (usize, usize) {
        let page = reduce(html, MAX_REDUCED_BYTES);
        let (mut open, mut deepest) = (Vec::new(), 0);
        for token in Tokens::new(&page.html) {
            match token {
                Token::Open("br", _) | Token::Text(_) => {}
                Token::Open(name, _) => open.push(name),
                Token::Close(name) => assert_eq!(open.pop(), Some(name), "{}", page.html),
            }
            deepest = deepest.max(open.len());
        }
        assert_eq!(open, Vec::<&str>::new());
        (deepest, page.html.len())
    }

    const PIECES: [&str; 28] = [
        "<div>",
        "</div>",
        "<b>",
        "</b>",
        "<a href=x>",
        "</a>",
        "<table>",
        "</table>",
        "<tr>",
        "<td>",
        "<p>",
        "</p>",
        "<ul>",
        "</ul>",
        "<li>",
        "</li>",
        "<h1>",
        "</h1>",
        "<h2>",
        "<pre>",
        "</pre>",
        "<blockquote>",
        "</blockquote>",
        "<br>",
        "<svg>",
        "x",
        " ",
        "<font a=1>",
    ];

    #[test]
    fn nothing_nests_deeply_or_swells() {
        for piece in PIECES {
            let html = piece.repeat(10_000);
            let (depth, size) = shape(&html);
            assert!(depth <= MAX_DEPTH, "{piece}: {depth}");
            assert!(size <= 4 * html.len() + 1000, "{piece}: {size}");
            assert!(read(&html).is_some());
        }
    }

    proptest! {
        #[test]
        fn any_soup_becomes_a_shallow_and_well_nested_document(
            picks in proptest::collection::vec(0..PIECES.len(), 0..400),
        ) {
            let html: String = picks.into_iter().map(|pick| PIECES[pick]).collect();
            let (depth, size) = shape(&html);
            prop_assert!(depth <= MAX_DEPTH);
            prop_assert!(size <= 4 * html.len() + 1000);
        }

        #[test]
        fn any_text_is_read(html in "(<|>|/|!|-|=|'|\"|&|;| |a|b|pre|li|\\PC){0,80}") {
            shape(&html);
            prop_assert!(read(&html).is_some());
        }
    }
}
