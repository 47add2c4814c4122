//! The rules of `ARCHITECTURE.md`, held against the source: who may use whom, who owns which library,
//! who starts tasks, who reads the environment.

mod source;

use std::path::Path;

use source::{Token, is, paths_from, tokens};

/// The rooms from the top to the bottom, each with the rooms that it may use. A room uses what stands
/// below it, so there are no cycles. `ARCHITECTURE.md` shows this table.
#[rustfmt::skip]
const ROOMS: &[(&str, &[&str])] = &[
    // The simulator is a program of its own, with no composition root.
    ("bin", &["app", "cli", "llm"]),
    ("app", APP),
    ("cli", APP),
    ("api", &[
        "dlq", "governance", "stream", "kafka", "runs", "store", "tools", "pricing", "telemetry", "runtime", "config", "plan",
        "error", "messages", "privacy", "ids",
    ]),
    ("worker", &[
        "dlq", "planner", "executor", "kafka", "runs", "store", "tools", "llm", "pricing", "telemetry", "runtime",
        "config", "plan", "messages", "privacy", "ids",
    ]),
    ("rollup", &[
        "dlq", "kafka", "store", "tools", "telemetry", "runtime", "config", "messages", "privacy", "ids",
    ]),
    ("replay", &["kafka", "runs", "store", "runtime", "config", "messages", "privacy", "ids"]),
    // Below those that give records up: its letters are written by them.
    ("dlq", &["kafka", "store", "net", "runtime", "config", "messages", "privacy", "ids"]),
    ("governance", &["kafka", "runs", "store", "runtime", "config", "messages", "privacy", "ids"]),
    ("stream", &["runs", "store", "runtime", "config", "messages", "ids"]),
    ("planner", &["tools", "llm", "plan", "ids"]),
    ("executor", &["tools", "plan", "ids"]),
    ("kafka", &["runs", "telemetry", "runtime", "config", "messages", "privacy", "ids"]),
    ("runs", &["store", "pricing", "runtime", "config", "messages", "privacy", "ids"]),
    ("store", &["telemetry", "config", "messages", "privacy", "ids"]),
    ("tools", &["net", "llm", "pricing", "runtime", "config", "plan", "ids"]),
    ("llm", &["pricing", "runtime", "config", "ids"]),
    ("net", &["config"]),
    ("telemetry", &["config", "privacy"]),
    ("runtime", &[]),
    ("config", &[]),
    ("plan", &[]),
    ("pricing", &[]),
    ("error", &[]),
    ("messages", &["privacy", "ids"]),
    ("privacy", &["ids"]),
    ("ids", &[]),
];
/// Composition roots use everything but each other.
#[rustfmt::skip]
const APP: &[&str] = &[
    "api", "worker", "rollup", "replay", "dlq", "governance", "stream", "planner", "executor", "kafka", "runs", "store",
    "tools", "llm", "net", "pricing", "telemetry", "runtime", "config", "plan", "error", "messages", "privacy", "ids",
];

/// Paths that a room must not use although it may use their room: of the tools, the API and the
/// planner see the catalogue alone, and the roll-up the object store.
const CLOSED: &[(&str, &str)] = &[
    ("api", "tools::ads"),
    ("api", "tools::declared"),
    ("api", "tools::http_fetch"),
    ("api", "tools::http_tool"),
    ("api", "tools::registry"),
    ("api", "tools::retrieval"),
    ("api", "tools::summarize"),
    ("rollup", "tools::ads"),
    ("rollup", "tools::http_fetch"),
    ("rollup", "tools::http_tool"),
    ("rollup", "tools::registry"),
    ("rollup", "tools::summarize"),
    ("planner", "tools::ads"),
    ("planner", "tools::http_fetch"),
    ("planner", "tools::http_tool"),
    ("planner", "tools::registry"),
    ("planner", "tools::retrieval"),
    ("planner", "tools::summarize"),
];

/// Libraries with the places, as beginnings of paths below `src/lib`, that may use them.
const OWNERS: &[(&str, &[&str])] = &[
    ("axum", &["api/", "runtime/probe.rs", "llm/sim/"]),
    ("rdkafka", &["kafka/"]),
    ("redis", &["store/", "runs/"]),
    ("fred", &["stream/"]),
    ("async_openai", &["llm/"]),
    ("reqwest", &["net/", "llm/", "cli/"]),
    ("object_store", &["rollup/", "tools/retrieval/"]),
    ("parquet", &["rollup/"]),
    ("arrow", &["rollup/"]),
    ("tantivy", &["tools/retrieval/"]),
    ("tokio_rustls", &["api/", "stream/"]),
];

/// Where tasks may be started: the supervisor, the consumer's own set, which is drained, and the thread that
/// exports spans, which has to outlive every task.
const SPAWNERS: &[&str] = &[
    "src/lib/runtime/",
    "src/lib/kafka/consumer/",
    "src/lib/telemetry/export.rs",
];

/// What in `files` (path from the root of the repository, text) breaks a rule. Tests are not looked at.
fn violations(files: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        let Some(file) = File::read(path, text) else {
            continue;
        };
        let mut report = |line: usize, what: String| found.push(format!("{path}:{line}: {what}"));
        file.direction(&mut report);
        file.libraries(&mut report);
        file.tasks(&mut report);
        file.environment(&mut report);
    }
    found.dedup(); // several names of one `use`
    found
}

struct File<'a> {
    path: &'a str,
    room: &'a str,
    /// How deep its module lies below the root of the crate.
    depth: usize,
    tokens: Vec<Token>,
}

impl<'a> File<'a> {
    /// `None` for files of tests, and for the list of the rooms.
    fn read(path: &'a str, text: &str) -> Option<Self> {
        let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
        if is_test || path == "src/lib/lib.rs" {
            return None;
        }
        let (room, depth) = match path.strip_prefix("src/lib/") {
            None => ("bin", 0),
            Some(inner) => {
                let module = inner.trim_end_matches(".rs").trim_end_matches("/mod");
                let room = module.split('/').next().unwrap_or(module);
                (room, module.split('/').count())
            }
        };
        Some(Self {
            path,
            room,
            depth,
            tokens: tokens(text),
        })
    }

    /// Rules 1 and 3.
    fn direction(&self, report: &mut impl FnMut(usize, String)) {
        let room = self.room;
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            return report(1, format!("the room `{room}` is not in the table of rooms"));
        };
        let beginning = if room == "bin" { "agenthub" } else { "crate" };
        for (line, path) in paths_from(&self.tokens, beginning) {
            let other = path[0].as_str();
            if other != room && !allowed.contains(&other) {
                report(line, format!("`{room}` must not use `{other}`"));
            }
            let named = path.join("::");
            let within =
                |closed: &str| named == closed || named.starts_with(&format!("{closed}::"));
            if CLOSED
                .iter()
                .any(|(who, what)| *who == room && within(what))
            {
                report(line, format!("`{room}` must not use `{named}`"));
            }
            if other != room && self.is_reexport(line) {
                report(
                    line,
                    format!(
                        "`{room}` must not pass `{named}` on: its users would not be seen to use it"
                    ),
                );
            }
        }
        for (line, climbs) in climbs(&self.tokens) {
            if room != "bin" && climbs >= self.depth {
                report(
                    line,
                    "another room is named by `super`; name it by `crate`".to_owned(),
                );
            }
        }
    }

    /// Whether the line begins with `pub use`.
    fn is_reexport(&self, line: usize) -> bool {
        let first = self.tokens.iter().position(|token| token.line == line);
        first.is_some_and(|at| {
            let publicly = is(&self.tokens, at, "pub") && is(&self.tokens, at + 1, "use");
            publicly && is(&self.tokens, at + 2, "crate")
        })
    }

    /// Rule 2.
    fn libraries(&self, report: &mut impl FnMut(usize, String)) {
        for (at, token) in self.tokens.iter().enumerate() {
            let Some((library, owners)) = OWNERS.iter().find(|(name, _)| *name == token.text)
            else {
                continue;
            };
            let before = at.checked_sub(1).map_or("", |at| &self.tokens[at].text);
            let named = is(&self.tokens, at + 1, "::") && !matches!(before, "::" | ".");
            let inner = self.path.trim_start_matches("src/lib/");
            let owned = owners.iter().any(|owner| inner.starts_with(owner));
            if (named || matches!(before, "use" | "crate")) && !owned {
                report(
                    token.line,
                    format!("`{library}` belongs to {}", owners.join(", ")),
                );
            }
        }
    }

    /// Rule 7: no task but a supervised one. Processes, whose `spawn()` takes nothing, are no tasks;
    /// `spawn_blocking` is awaited where it is called.
    fn tasks(&self, report: &mut impl FnMut(usize, String)) {
        if SPAWNERS.iter().any(|place| self.path.starts_with(place)) {
            return;
        }
        for (at, token) in self.tokens.iter().enumerate() {
            let starts = matches!(token.text.as_str(), "spawn" | "spawn_local" | "spawn_on");
            let called = is(&self.tokens, at + 1, "(") && !is(&self.tokens, at + 2, ")");
            let before = |n: usize| at.checked_sub(n).map_or("", |at| &self.tokens[at].text);
            let of_tokio = before(1) == "::" && matches!(before(2), "tokio" | "task" | "thread");
            if starts && (called || of_tokio) && before(1) != "fn" {
                report(
                    token.line,
                    "tasks are started by `runtime::Supervisor` alone".to_owned(),
                );
            }
        }
    }

    /// Only `config` reads the environment.
    fn environment(&self, report: &mut impl FnMut(usize, String)) {
        if self.room == "config" {
            return;
        }
        for (at, token) in self.tokens.iter().enumerate() {
            let used = is(&self.tokens, at + 1, "::");
            let imported =
                at > 1 && self.tokens[at - 1].text == "::" && self.tokens[at - 2].text == "std";
            if token.text == "env" && (used || imported) {
                report(
                    token.line,
                    "the environment is read by `config` alone".to_owned(),
                );
            }
        }
    }
}

/// Chains of `super`, each with its line and length.
fn climbs(tokens: &[Token]) -> Vec<(usize, usize)> {
    let mut climbs = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut length = 0;
        while is(tokens, at, "super") {
            length += 1;
            at += if is(tokens, at + 1, "::") { 2 } else { 1 };
        }
        if length > 0 {
            climbs.push((tokens[at - 1].line, length));
        } else {
            at += 1;
        }
    }
    climbs
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn source_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_source_keeps_the_rules() {
    let files = source_files();
    assert!(files.len() > 100, "only {} files were found", files.len());
    let broken = violations(&files);
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn every_room_of_the_table_exists_and_every_room_is_in_it() {
    let library = std::fs::read_to_string(root().join("src/lib/lib.rs")).unwrap();
    let declared = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut declared: Vec<_> = declared.chain(["bin"]).collect();
    declared.sort_unstable();
    let mut table: Vec<_> = ROOMS.iter().map(|(room, _)| *room).collect();
    table.sort_unstable();
    assert_eq!(declared, table);
}

/// The table has no cycle, since each room uses only rooms below its own row.
#[test]
fn rooms_use_what_stands_below_them() {
    for (row, (room, uses)) in ROOMS.iter().enumerate() {
        for used in *uses {
            let at = ROOMS.iter().position(|(name, _)| name == used);
            assert!(
                at.is_some_and(|at| at > row),
                "`{room}` uses `{used}`, which does not stand below it"
            );
        }
    }
}

#[test]
fn the_page_shows_the_tables_and_an_invariant_for_each_room() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (room, uses) in ROOMS {
        let uses: Vec<_> = uses.iter().map(|used| format!("`{used}`")).collect();
        let uses = if uses.is_empty() {
            "nothing".to_owned()
        } else {
            uses.join(", ")
        };
        let row = format!("| `{room}` | {uses} |");
        assert!(page.contains(&row), "ARCHITECTURE.md lacks the row\n{row}");
        let title = format!("### `{room}`\n");
        let told = page
            .split(&title)
            .nth(1)
            .and_then(|rest| rest.split("\n### ").next());
        let told = told.unwrap_or_else(|| panic!("ARCHITECTURE.md lacks a section {title}"));
        assert!(
            told.contains("**Invariant.**"),
            "the section of `{room}` states no invariant"
        );
    }
    for (library, owners) in OWNERS {
        let owners: Vec<_> = owners.iter().map(|owner| format!("`{owner}`")).collect();
        let row = format!("| `{library}` | {} |", owners.join(", "));
        assert!(page.contains(&row), "ARCHITECTURE.md lacks the row\n{row}");
    }
}

mod broken_rules_are_found {
    use super::violations;

    #[track_caller]
    fn check(path: &str, text: &str) -> Vec<String> {
        violations(&[(path.to_owned(), text.to_owned())])
    }

    #[track_caller]
    fn is_broken(path: &str, text: &str, what: &str) {
        let found = check(path, text);
        assert!(
            found.len() == 1 && found[0].contains(what),
            "{text}: {found:?}"
        );
    }

    #[track_caller]
    fn is_kept(path: &str, text: &str) {
        assert_eq!(check(path, text), [""; 0], "{text}");
    }

    #[test]
    fn direction() {
        is_broken(
            "src/lib/runs/x.rs",
            "use crate::api::Y;",
            "src/lib/runs/x.rs:1: `runs` must not use `api`",
        );
        is_broken(
            "src/lib/plan/mod.rs",
            "\nfn f() { crate::runtime::clock::now_ms(); }",
            ":2: `plan` must not",
        );
        is_broken(
            "src/lib/net/a.rs",
            "use crate::{config::X, store::{Y, Z as W}};",
            "a.rs:1: `net` must not use `store`",
        );
        is_broken(
            "src/lib/ids.rs",
            "impl crate::error::E for X {}",
            "`ids` must not use `error`",
        );
        is_broken(
            "src/bin/api.rs",
            "agenthub::kafka::x()",
            "`bin` must not use `kafka`",
        );
        is_broken(
            "src/lib/app/x.rs",
            "use crate::cli::X;",
            "`app` must not use `cli`",
        );
        is_kept(
            "src/lib/runs/x.rs",
            "use crate::{store::X, ids::*}; use crate::runs::Y;",
        );
        is_kept(
            "src/lib/runs/x.rs",
            "// crate::api\nconst X: &str = \"crate::api\";",
        );
    }

    #[test]
    fn an_unknown_room() {
        is_broken("src/lib/utils/mod.rs", "", "`utils` is not in the table");
    }

    #[test]
    fn a_detour_by_super_or_by_a_reexport() {
        is_broken("src/lib/runs/mod.rs", "use super::api::X;", "by `super`");
        is_broken(
            "src/lib/llm/sim/x.rs",
            "use super::super::super::kafka;",
            "by `super`",
        );
        is_kept("src/lib/llm/sim/x.rs", "use super::super::openai;");
        is_broken(
            "src/lib/tools/mod.rs",
            "pub use crate::llm::Usage;",
            "must not pass `llm::Usage` on",
        );
        is_kept(
            "src/lib/tools/mod.rs",
            "use crate::llm::Usage; pub use self::x::Y;",
        );
    }

    #[test]
    fn libraries() {
        is_broken(
            "src/lib/worker/x.rs",
            "use redis::AsyncCommands;",
            "`redis` belongs to store/, runs/",
        );
        is_broken(
            "src/lib/api/x.rs",
            "fn f(_: &rdkafka::Message) {}",
            "`rdkafka` belongs",
        );
        is_broken(
            "src/lib/runtime/clock.rs",
            "use axum::Router;",
            "`axum` belongs",
        );
        is_broken(
            "src/lib/tools/ads.rs",
            "use object_store as s;",
            "`object_store` belongs",
        );
        is_kept(
            "src/lib/api/x.rs",
            "use axum::Router; fn f(h: &X) { h.redis::<Y>(); crate::store::redis::z() }",
        );
    }

    #[test]
    fn what_the_api_and_the_workers_must_not_know() {
        for room in ["planner", "executor", "llm", "worker"] {
            is_broken(
                "src/lib/api/x.rs",
                &format!("use crate::{room}::X;"),
                &format!("must not use `{room}`"),
            );
        }
        is_broken(
            "src/lib/api/x.rs",
            "use crate::tools::{catalogue, retrieval::Retrieval};",
            "`tools::retrieval",
        );
        is_kept(
            "src/lib/api/x.rs",
            "use crate::tools::{Effects, catalogue};",
        );
        is_broken(
            "src/lib/worker/x.rs",
            "use crate::api::X;",
            "`worker` must not use `api`",
        );
    }

    #[test]
    fn tasks() {
        let what = "`runtime::Supervisor` alone";
        is_broken(
            "src/lib/api/x.rs",
            "fn f() { tokio::spawn(async {}); }",
            what,
        );
        is_broken("src/lib/api/x.rs", "fn f() { tasks.spawn(work()); }", what);
        is_broken("src/lib/kafka/x.rs", "use tokio::task::spawn;", what);
        is_broken(
            "src/bin/api.rs",
            "fn f() { std::thread::spawn(|| {}); }",
            what,
        );
        is_kept(
            "src/lib/runtime/x.rs",
            "fn f() { self.tracker.spawn(work()); }",
        );
        is_kept(
            "src/lib/kafka/consumer/x.rs",
            "fn f() { self.tasks.spawn(work()); }",
        );
        is_kept(
            "src/lib/cli/x.rs",
            "fn f() { Command::new(x).spawn(); tokio::task::spawn_blocking(y); }",
        );
        is_kept(
            "src/lib/api/x.rs",
            "#[cfg(test)] mod tests { fn f() { tokio::spawn(x); } }",
        );
        is_kept("src/lib/api/x/tests.rs", "fn f() { tokio::spawn(x); }");
    }

    #[test]
    fn environment() {
        let what = "by `config` alone";
        is_broken("src/lib/cli/x.rs", "fn f() { std::env::var(X); }", what);
        is_broken("src/lib/cli/x.rs", "use std::env;", what);
        is_broken("src/bin/api.rs", "fn f() { env::args(); }", what);
        is_kept("src/lib/config/x.rs", "fn f() { std::env::vars(); }");
        is_kept(
            "src/lib/cli/x.rs",
            "#[arg(env = X)] struct S; const V: &str = env!(Y);",
        );
    }
}
