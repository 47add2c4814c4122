//! `agenthub check-url`: what the guard of outgoing HTTP decides about a URL, and why.

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Host;

use crate::net::allow_list::normalise;
use crate::net::{AllowList, Block, BlockReason, Decision, Hops, Policy, Target, lookup};

/// Bytes that one line of standard input may have.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Longest time for one look-up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

const HELP: &str = "\
Examples:
  agenthub check-url https://example.com/ http://169.254.169.254/
  agenthub check-url --allow intra.example:9000 http://intra.example:9000/
  echo '{\"id\":1,\"url\":\"http://a.example/\",\"dns\":{\"a.example\":[\"10.0.0.1\"]}}' \\
    | agenthub check-url --jsonl

A line of --jsonl is {\"id\", \"url\", \"dns\", \"dns_sequence\", \"redirects\"}. `dns` gives the addresses
of names and `dns_sequence` the answers of successive look-ups, of which the last one repeats; a
name in neither does not resolve. `redirects` are the locations that the server would answer with,
in order. Each line is answered by {\"id\", \"decision\": \"allow\"|\"block\", \"reason\", \"detail\"?,
\"connect\"?}, where `connect` are the addresses that would be connected to, of every hop.

Exit code: 0 when all was answered, 1 when a URL is blocked (not with --jsonl), 2 for wrong usage.";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// URLs to check; their hosts are looked up, nothing is fetched.
    #[arg(required_unless_present = "jsonl", conflicts_with = "jsonl")]
    urls: Vec<String>,
    /// Read one question a line from standard input and touch no network.
    #[arg(long)]
    jsonl: bool,
    /// A host, or host:port, that may be fetched although its addresses are not global. Repeatable.
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "AGENTHUB_FETCH_ALLOW",
        value_delimiter = ','
    )]
    allow: Vec<String>,
    /// Print one JSON object a URL.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let policy = match AllowList::parse(&args.allow) {
        Ok(allow) => Policy::new(allow),
        Err(error) => {
            eprintln!("agenthub: --allow: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    if args.jsonl {
        return match answer_lines(&policy, io::stdin().lock(), io::stdout().lock()) {
            // Who reads the answers has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
            other => Ok(other.map(|()| ExitCode::SUCCESS)?),
        };
    }
    let mut all_allowed = true;
    for url in &args.urls {
        let verdict = check_now(&policy, url).await;
        all_allowed &= verdict.decision == "allow";
        let text = if args.json {
            serde_json::to_string(&UrlAnswer { url, verdict })?
        } else {
            verdict.for_people(url)
        };
        writeln!(io::stdout(), "{text}")?;
    }
    Ok(if all_allowed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What was decided.
#[derive(Debug, Serialize)]
struct Verdict {
    decision: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    connect: Vec<SocketAddr>,
}

#[derive(Debug, Serialize)]
struct UrlAnswer<'u> {
    url: &'u str,
    #[serde(flatten)]
    verdict: Verdict,
}

#[derive(Debug, Serialize)]
struct LineAnswer {
    id: Value,
    /// Number of the line from 1, when it was not understood.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(flatten)]
    verdict: Verdict,
}

impl Verdict {
    fn allow(listed: bool, connect: Vec<SocketAddr>) -> Self {
        Self {
            decision: "allow",
            reason: if listed { "listed" } else { "public" },
            detail: None,
            connect,
        }
    }

    fn block(reason: &'static str, detail: String) -> Self {
        Self {
            decision: "block",
            reason,
            detail: Some(detail),
            connect: Vec::new(),
        }
    }

    fn for_people(&self, url: &str) -> String {
        let (decision, reason) = (self.decision, self.reason);
        // A URL may hold what moves a terminal's cursor.
        let url = url.escape_debug();
        if let Some(detail) = &self.detail {
            return format!("{decision}  {url}\n       {reason}: {detail}");
        }
        let connect: Vec<_> = self.connect.iter().map(ToString::to_string).collect();
        format!(
            "{decision}  {url}\n       {reason}: connects to {}",
            connect.join(", ")
        )
    }
}

impl From<Block> for Verdict {
    fn from(block: Block) -> Self {
        Self::block(block.reason.code(), block.detail)
    }
}

/// Checks a URL with a look-up of its host.
async fn check_now(policy: &Policy, url: &str) -> Verdict {
    let target = match policy.screen(url) {
        Ok(target) => target,
        Err(block) => return block.into(),
    };
    let mut answers = Vec::new();
    if let Some(name) = target.name() {
        let Ok(found) = tokio::time::timeout(LOOKUP_TIMEOUT, lookup(name)).await else {
            let detail = format!("the look-up of {name} took too long");
            return Verdict::block(BlockReason::NameNotResolved.code(), detail);
        };
        // A failed look-up and a name without addresses are the same to the guard.
        answers = found.unwrap_or_default();
    }
    match target.decide(&answers) {
        Decision::Allow { connect } => Verdict::allow(target.is_listed(), connect),
        Decision::Block(block) => block.into(),
    }
}

/// Answers every line of the input with one line, whatever it holds; blank lines are skipped.
fn answer_lines(
    policy: &Policy,
    mut input: impl BufRead,
    mut output: impl Write,
) -> io::Result<()> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        if input.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.len() > MAX_LINE_BYTES && !line.ends_with(b"\n") {
            input.skip_until(b'\n')?;
        } else if line.trim_ascii().is_empty() {
            continue;
        }
        serde_json::to_writer(&mut output, &answer_line(policy, number, &line))?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}

fn answer_line(policy: &Policy, number: usize, line: &[u8]) -> LineAnswer {
    let invalid = |id: Value, detail: &str| LineAnswer {
        id,
        line: Some(number),
        verdict: Verdict::block("invalid_input", detail.to_owned()),
    };
    if line.len() > MAX_LINE_BYTES {
        return invalid(Value::Null, "the line is too long");
    }
    let Ok(value) = serde_json::from_slice::<Value>(line) else {
        return invalid(Value::Null, "the line is not JSON");
    };
    let id = value.get("id").cloned().unwrap_or_default();
    let Ok(question) = Question::deserialize(value) else {
        return invalid(id, "the line does not have the fields of a question");
    };
    let Ok(names) = Names::read(&question) else {
        return invalid(id, "an answer of the resolver is not an address");
    };
    LineAnswer {
        id,
        line: None,
        verdict: follow(policy, &question, names).unwrap_or_else(Verdict::from),
    }
}

/// One line of standard input.
#[derive(Debug, Deserialize)]
struct Question {
    url: String,
    #[serde(default)]
    dns: HashMap<String, Vec<String>>,
    #[serde(default)]
    dns_sequence: HashMap<String, Vec<Vec<String>>>,
    #[serde(default)]
    redirects: Vec<String>,
}

/// Walks the chain of hops as the client does, with one look-up a hop.
fn follow(policy: &Policy, question: &Question, mut names: Names) -> Result<Verdict, Block> {
    let mut hops = Hops::start(policy, &question.url)?;
    let mut listed = false;
    let mut connect = Vec::new();
    let mut visit = |target: &Target| {
        let answers = target.name().map(|name| names.lookup(name));
        match target.decide(&answers.unwrap_or_default()) {
            Decision::Allow { connect: addresses } => {
                listed |= target.is_listed();
                for address in addresses {
                    if !connect.contains(&address) {
                        connect.push(address);
                    }
                }
                Ok(())
            }
            Decision::Block(block) => Err(block),
        }
    };
    visit(hops.current())?;
    for location in &question.redirects {
        hops.redirect(location)?;
        visit(hops.current())?;
    }
    Ok(Verdict::allow(listed, connect))
}

/// The answers of a resolver that knows nothing but what the line says, by normalised name.
#[derive(Debug, Default)]
struct Names {
    sequences: HashMap<String, Vec<Vec<IpAddr>>>,
}

/// An answer of the resolver that is not an address.
struct NotAnAddress;

impl Names {
    /// A name in `dns_sequence` is answered from there, whatever `dns` says.
    fn read(question: &Question) -> Result<Self, NotAnAddress> {
        let mut names = Self::default();
        for (name, answers) in &question.dns {
            names.add(name, std::slice::from_ref(answers))?;
        }
        for (name, answers) in &question.dns_sequence {
            names.add(name, answers)?;
        }
        Ok(names)
    }

    fn add(&mut self, name: &str, answers: &[Vec<String>]) -> Result<(), NotAnAddress> {
        let address = |text: &String| {
            // A resolver gives link-local addresses with their zone (RFC 4007).
            let bare = text.split_once('%').map_or(text.as_str(), |(bare, _)| bare);
            bare.parse::<IpAddr>().map_err(|_| NotAnAddress)
        };
        let sequence = answers
            .iter()
            .map(|answer| answer.iter().map(address).collect())
            .collect::<Result<Vec<_>, _>>()?;
        // No URL that passes the policy has a host that cannot be normalised.
        if let Some(Host::Domain(name)) = Host::parse(name).ok().and_then(normalise) {
            self.sequences.insert(name, sequence);
        }
        Ok(())
    }

    fn lookup(&mut self, name: &str) -> Vec<IpAddr> {
        match self.sequences.get_mut(name) {
            None => Vec::new(),
            Some(left) if left.len() > 1 => left.remove(0),
            Some(left) => left.first().cloned().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answers(allow: &[&str], input: impl AsRef<[u8]>) -> Vec<Value> {
        let policy = Policy::new(AllowList::parse(allow).unwrap());
        let mut output = Vec::new();
        answer_lines(&policy, input.as_ref(), &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn answer(allow: &[&str], question: &Value) -> Value {
        let mut answers = answers(allow, question.to_string());
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    #[test]
    fn an_allowed_url_says_where_it_connects_to() {
        let question = json!({
            "id": "a", "url": "https://A.example./x",
            "dns": {"a.EXAMPLE": ["8.8.8.8", "2606:4700::1"]},
        });
        assert_eq!(
            answer(&[], &question),
            json!({
                "id": "a", "decision": "allow", "reason": "public",
                "connect": ["8.8.8.8:443", "[2606:4700::1]:443"],
            })
        );
    }

    #[test]
    fn a_blocked_url_says_why() {
        let question = json!({"id": 7, "url": "http://a.example/", "dns": {"a.example": ["8.8.8.8", "10.0.0.1"]}});
        assert_eq!(
            answer(&[], &question),
            json!({
                "id": 7, "decision": "block", "reason": "address_not_global",
                "detail": "a.example has the address 10.0.0.1: Private-Use (RFC 1918)",
            })
        );
        let listed = answer(&["a.example:80"], &question);
        assert_eq!(listed["reason"], "listed");
        assert_eq!(listed["connect"], json!(["8.8.8.8:80", "10.0.0.1:80"]));
    }

    #[test]
    fn a_name_that_is_not_given_does_not_resolve() {
        for dns in [
            json!({}),
            json!({"b.example": ["8.8.8.8"]}),
            json!({"a.example": []}),
        ] {
            let answer = answer(
                &[],
                &json!({"id": 1, "url": "http://a.example/", "dns": dns}),
            );
            assert_eq!(answer["reason"], "name_not_resolved");
        }
        let literal = answer(&[], &json!({"id": 1, "url": "http://8.8.8.8/"}));
        assert_eq!(literal["connect"], json!(["8.8.8.8:80"]));
    }

    #[test]
    fn each_hop_is_looked_up_once() {
        let rebind = json!({"a.example": [["8.8.8.8"], ["127.0.0.1"]]});
        let ask = |redirects: &Value| {
            let question = json!({"id": 1, "url": "http://a.example/", "dns": {"a.example": ["10.0.0.1"]},
                "dns_sequence": rebind, "redirects": redirects});
            answer(&[], &question)
        };
        assert_eq!(ask(&json!([]))["connect"], json!(["8.8.8.8:80"]));
        assert_eq!(ask(&json!(["/again"]))["reason"], "address_not_global");
        let away = ask(&json!(["https://1.1.1.1/"]));
        assert_eq!(away["connect"], json!(["8.8.8.8:80", "1.1.1.1:443"]));
        assert_eq!(
            ask(&json!(["http://169.254.169.254/"]))["reason"],
            "metadata_endpoint"
        );
        // The last answer repeats.
        let stays = json!({"id": 1, "url": "http://a.example/", "redirects": ["/b", "/c"],
            "dns_sequence": {"a.example": [["8.8.8.8"], ["8.8.4.4"]]}});
        assert_eq!(
            answer(&[], &stays)["connect"],
            json!(["8.8.8.8:80", "8.8.4.4:80"])
        );
        let many = ask(&json!(vec!["http://1.1.1.1/"; 6]));
        assert_eq!(many["reason"], "too_many_redirects");
    }

    #[test]
    fn zones_of_answers_are_dropped_and_the_address_is_refused() {
        let question =
            json!({"id": 1, "url": "http://a.example/", "dns": {"a.example": ["fe80::1%eth0"]}});
        assert_eq!(answer(&[], &question)["reason"], "address_not_global");
    }

    #[test]
    fn a_line_that_is_not_understood_is_answered_and_the_next_goes_on() {
        let good = r#"{"id":"good","url":"http://8.8.8.8/"}"#;
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(MAX_LINE_BYTES));
        let lines = [
            "{",
            "",
            good,
            "[1]",
            r#"{"id":"no url"}"#,
            r#"{"id":"bad","url":"http://a.example/","dns":{"a.example":["x"]}}"#,
            r#"{"id":"type","url":5}"#,
            &long,
            good,
        ];
        let mut input = lines.join("\n").into_bytes();
        input.extend_from_slice(b"\n\xff\xfe\n");
        let answers = answers(&[], input);
        let summary: Vec<_> = answers
            .iter()
            .map(|a| {
                (
                    a["id"].as_str(),
                    a["reason"].as_str().unwrap(),
                    a["line"].as_u64(),
                )
            })
            .collect();
        let invalid = "invalid_input";
        assert_eq!(
            summary,
            [
                (None, invalid, Some(1)),
                (Some("good"), "public", None),
                (None, invalid, Some(4)),
                (Some("no url"), invalid, Some(5)),
                (Some("bad"), invalid, Some(6)),
                (Some("type"), invalid, Some(7)),
                (None, invalid, Some(8)),
                (Some("good"), "public", None),
                (None, invalid, Some(10)),
            ]
        );
        assert!(
            answers
                .iter()
                .all(|a| a["decision"] == "block" || a["id"] == "good")
        );
    }

    #[tokio::test]
    async fn a_host_that_is_an_address_is_decided_without_a_look_up() {
        let verdict = check_now(&Policy::default(), "http://127.1/").await;
        assert_eq!(
            verdict.for_people("http://127.1/"),
            "block  http://127.1/\n       address_not_global: 127.0.0.1: Loopback (RFC 1122)"
        );
        let verdict = check_now(&Policy::default(), "http://8.8.8.8").await;
        assert_eq!(
            verdict.for_people("http://8.8.8.8"),
            "allow  http://8.8.8.8\n       public: connects to 8.8.8.8:80"
        );
    }
}
