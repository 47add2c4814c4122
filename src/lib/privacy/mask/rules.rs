//! The rules, in the order of their precedence where two match at the same place.
//!
//! What precedes the telling part of a match is bounded: an automaton that finds a later match must
//! first give up every earlier start, so an unbounded beginning would be read again and again.
//!
//! Boundaries are ASCII (`(?-u:\b)`): a Unicode boundary would take the automaton off its fast path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::{checks, fields};

/// What a rule makes of a match.
pub(super) enum Verdict {
    /// These bytes are replaced.
    Mask(Range<usize>),
    /// Nothing is; the search goes on at `resume`.
    Pass {
        /// Where.
        resume: usize,
    },
}

/// One class of data.
pub(super) struct Rule {
    pub(super) class: &'static str,
    pub(super) pattern: &'static str,
    pub(super) check: fn(&str, Range<usize>) -> Verdict,
}

pub(super) static RULES: &[Rule] = &[
    Rule {
        class: "private_key",
        pattern: r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----",
        check: private_key,
    },
    Rule {
        class: "jwt",
        pattern: r"(?-u:\b)eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",
        check: jwt,
    },
    Rule {
        class: "api_key",
        pattern: r"(?-u:\b)ah_[a-z0-9-]+_[a-z0-9-]+_[0-9]+s[0-9a-f]+_[0-9a-f]+",
        check: whole,
    },
    Rule {
        class: "vendor_key",
        pattern: concat!(
            r"(?-u:\b)(?:(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|ANVA)[A-Z0-9]{16}(?-u:\b)",
            r"|AIza[A-Za-z0-9_-]{35}",
            r"|gh[oprsu]_[A-Za-z0-9]{30,}",
            r"|github_pat_[A-Za-z0-9_]{22,}",
            r"|glpat-[A-Za-z0-9_-]{20,}",
            r"|xox[abeoprs]-[A-Za-z0-9-]{10,}",
            r"|xapp-[A-Za-z0-9-]{10,}",
            r"|[prs]k_(?:live|test)_[A-Za-z0-9]{10,}",
            r"|whsec_[A-Za-z0-9]{20,}",
            r"|sk-[A-Za-z0-9_-]{20,}",
            r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
            r"|npm_[A-Za-z0-9]{30,}",
            r"|pypi-[A-Za-z0-9_-]{30,}",
            r"|hf_[A-Za-z0-9]{30,}",
            r"|do[opr]_v1_[a-f0-9]{40,}",
            r"|ya29\.[A-Za-z0-9_-]{20,}",
            r"|dapi[a-f0-9]{32})",
        ),
        check: whole,
    },
    Rule {
        class: "url_password",
        pattern: r"(?-u:\b)[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s/@:?#\[\]]*:[^\s/@\[\]]+@",
        check: url_password,
    },
    Rule {
        class: "authorization",
        pattern: r"(?-u:\b)(?i:bearer|basic)[ \t]{1,8}[A-Za-z0-9._~+/=-]+",
        check: authorization,
    },
    Rule {
        class: "field",
        pattern: concat!(
            r"(?-u:\b)[A-Za-z0-9_.-]{0,48}(?i:password|passwd|pwd|passphrase|secret|token|key|authorization|cookie",
            r"|credentials?|ssn|cvv|cvc|credit[_-]?card|card[_-]?number)",
            r#"["']?[ \t]{0,4}[:=][ \t]{0,4}["']?[^\s"'&,;\[\]{}]"#,
        ),
        check: field,
    },
    Rule {
        class: "email",
        pattern: r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?-u:\b)",
        check: whole,
    },
    Rule {
        class: "iban",
        pattern: r"(?-u:\b)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?-u:\b)",
        check: iban,
    },
    Rule {
        class: "card",
        pattern: r"(?-u:\b)[0-9](?:[ -]?[0-9]){12,18}(?-u:\b)",
        check: card,
    },
    Rule {
        class: "ssn",
        pattern: r"(?-u:\b)[0-9]{3}-[0-9]{2}-[0-9]{4}(?-u:\b)",
        check: ssn,
    },
    Rule {
        class: "phone",
        pattern: concat!(
            r"\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9](?:[ .-]?[0-9]){6,11}(?-u:\b)",
            r"|\([0-9]{3}\) ?[0-9]{3}[-. ][0-9]{4}(?-u:\b)",
            r"|(?-u:\b)[0-9]{3}[-.][0-9]{3}[-.][0-9]{4}(?-u:\b)",
        ),
        check: phone,
    },
    Rule {
        class: "ip",
        pattern: r"(?-u:\b)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?-u:\b)",
        check: ipv4,
    },
    Rule {
        class: "ip",
        pattern: r"(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9A-Fa-f]{0,4})",
        check: ipv6,
    },
];

fn whole(_: &str, found: Range<usize>) -> Verdict {
    Verdict::Mask(found)
}

fn pass(found: &Range<usize>) -> Verdict {
    Verdict::Pass { resume: found.end }
}

fn mask_if(condition: bool, found: Range<usize>) -> Verdict {
    if condition {
        Verdict::Mask(found)
    } else {
        pass(&found)
    }
}

fn before(text: &str, found: &Range<usize>) -> Option<char> {
    text[..found.start].chars().next_back()
}

fn after(text: &str, found: &Range<usize>) -> Option<char> {
    text[found.end..].chars().next()
}

/// Whether the match stands alone, and is not part of a longer number, name or hyphenated id.
fn stands_alone(text: &str, found: &Range<usize>) -> bool {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '_'));
    let decimal = before(text, found) == Some('.')
        || (after(text, found) == Some('.')
            && text[found.end + 1..].starts_with(|c: char| c.is_ascii_digit()));
    !joins(before(text, found)) && !joins(after(text, found)) && !decimal
}

/// The whole block; all of the text when the block has no end.
fn private_key(text: &str, found: Range<usize>) -> Verdict {
    let rest = &text[found.end..];
    let end = rest.find("-----END ").and_then(|at| {
        let tail = at + "-----END ".len();
        rest[tail..]
            .find("-----")
            .map(|close| found.end + tail + close + "-----".len())
    });
    Verdict::Mask(found.start..end.unwrap_or(text.len()))
}

/// Its first part is a JSON object that names an algorithm (RFC 7519).
fn jwt(text: &str, found: Range<usize>) -> Verdict {
    let header = text[found.clone()].split('.').next().unwrap_or_default();
    let decoded = URL_SAFE_NO_PAD.decode(header).unwrap_or_default();
    mask_if(
        decoded.starts_with(b"{") && decoded.windows(5).any(|w| w == b"\"alg\""),
        found,
    )
}

fn url_password(text: &str, found: Range<usize>) -> Verdict {
    let matched = &text[found.clone()];
    let user = matched.find("://").map_or(0, |at| at + 3);
    let Some(colon) = matched[user..].find(':') else {
        return pass(&found);
    };
    Verdict::Mask(found.start + user + colon + 1..found.end - 1)
}

fn authorization(text: &str, found: Range<usize>) -> Verdict {
    let matched = &text[found.clone()];
    let token = matched
        .trim_start_matches(|c: char| c.is_ascii_alphabetic())
        .trim_start();
    let range = found.end - token.len()..found.end;
    let is_token = if matched.as_bytes()[1].eq_ignore_ascii_case(&b'a') {
        // Basic (RFC 7617): base64 of `user:password`.
        let plain = token.trim_end_matches('=');
        STANDARD_NO_PAD
            .decode(plain)
            .or_else(|_| STANDARD.decode(token))
            .is_ok_and(|d| d.contains(&b':'))
    } else {
        // After "bearer" words of prose are short and without digits.
        token.len() >= 20 || (token.len() >= 8 && token.bytes().any(|b| b.is_ascii_digit()))
    };
    if is_token {
        Verdict::Mask(range)
    } else {
        Verdict::Pass {
            resume: range.start,
        }
    }
}

fn field(text: &str, found: Range<usize>) -> Verdict {
    let matched = &text[found.clone()];
    let Some(separator) = matched.find([':', '=']) else {
        return pass(&found);
    };
    let name = matched[..separator].trim_end_matches(['"', '\'', ' ', '\t']);
    let first = matched[separator + 1..].trim_start_matches([' ', '\t', '"', '\'']);
    let start = found.end - first.len();
    let opening = matched[..matched.len() - first.len()].chars().next_back();
    let url = text[start..].starts_with("//"); // `token://` and the like
    if !fields::is_sensitive(name) || first.is_empty() || url {
        return Verdict::Pass { resume: start };
    }
    let plain: String = name.chars().filter(char::is_ascii_alphabetic).collect();
    let rest = &text[start..];
    let end = match opening {
        // A quoted value goes to its closing quote.
        Some(quote @ ('"' | '\'')) => rest.find(quote).map_or(text.len(), |at| start + at),
        // A header's value goes to the end of its line.
        _ if ["authorization", "cookie"]
            .iter()
            .any(|e| plain.to_ascii_lowercase().ends_with(e)) =>
        {
            let end = rest
                .find(['\r', '\n', '"', '\'', '['])
                .map_or(text.len(), |at| start + at);
            start + text[start..end].trim_end().len()
        }
        _ => rest
            .find(|c: char| {
                c.is_whitespace()
                    || matches!(c, '"' | '\'' | '&' | ',' | ';' | '[' | ']' | '{' | '}')
            })
            .map_or(text.len(), |at| start + at),
    };
    if end <= start {
        Verdict::Pass { resume: found.end }
    } else {
        Verdict::Mask(start..end)
    }
}

fn iban(text: &str, found: Range<usize>) -> Verdict {
    mask_if(checks::is_iban(&text[found.clone()]), found)
}

fn card(text: &str, found: Range<usize>) -> Verdict {
    let valid = stands_alone(text, &found) && checks::is_card_number(&text[found.clone()]);
    mask_if(valid, found)
}

fn ssn(text: &str, found: Range<usize>) -> Verdict {
    mask_if(
        stands_alone(text, &found) && checks::is_ssn(&text[found.clone()]),
        found,
    )
}

fn phone(text: &str, found: Range<usize>) -> Verdict {
    mask_if(stands_alone(text, &found), found)
}

/// Four numbers after `v` or the word "version" are a version.
fn ipv4(text: &str, found: Range<usize>) -> Verdict {
    let parses = text[found.clone()].parse::<Ipv4Addr>().is_ok();
    let head = text[..found.start].trim_end();
    let word = head
        .rsplit(|c: char| !c.is_ascii_alphabetic())
        .next()
        .unwrap_or_default();
    let version = word.eq_ignore_ascii_case("version") || word.eq_ignore_ascii_case("v");
    mask_if(parses && !version && stands_alone(text, &found), found)
}

fn ipv6(text: &str, found: Range<usize>) -> Verdict {
    let matched = &text[found.clone()];
    // Without a digit it is more likely a path in a program.
    let groups = matched.split(':').filter(|part| !part.is_empty()).count();
    let digit = matched.bytes().any(|b| b.is_ascii_digit());
    let alone =
        |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || matches!(c, ':' | '_' | '.'));
    let parses = matched.parse::<Ipv6Addr>().map(IpAddr::from).is_ok();
    mask_if(
        parses
            && digit
            && (groups >= 2 || matched == "::1")
            && alone(before(text, &found))
            && alone(after(text, &found)),
        found,
    )
}
