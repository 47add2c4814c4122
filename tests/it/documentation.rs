//! The documentation says what the code says. `UPDATE_DOCS=1 cargo test --test it documentation` writes
//! the generated pages and tables anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agenthub::api::access;
use agenthub::config::{REFERENCE, Source, StorageSettings};
use agenthub::governance::Role;
use agenthub::ids::{RunId, SessionId, TenantId};
use agenthub::telemetry::{Kind, METRICS};
use agenthub::tools::retrieval::corpus::Corpus;
use agenthub::tools::retrieval::storage::Storage;
use agenthub::tools::retrieval::{Retrieval, intake};
use agenthub::tools::{Effects, Tool, ToolCall, catalogue};
use serde_json::json;

use crate::support::stack::Stack;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Holds `path` against `expected`, or writes it.
#[track_caller]
fn is_current(path: &str, expected: &str) {
    let path = root().join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is stale: UPDATE_DOCS=1 cargo test --test it documentation",
        path.display()
    );
}

/// A page with the part between its marks replaced.
#[track_caller]
fn with_part(path: &str, mark: &str, part: &str) -> String {
    let page = std::fs::read_to_string(root().join(path)).unwrap();
    let (begin, end) = (format!("<!-- {mark} -->\n"), "<!-- end -->");
    let (before, rest) = page
        .split_once(&begin)
        .expect("the mark that begins the part");
    let (_, after) = rest.split_once(end).expect("the mark that ends the part");
    format!("{before}{begin}{part}{end}{after}")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

#[test]
fn configuration() {
    let mut page = String::from(
        "# Configuration\n\n\
        Generated from `src/lib/config/settings.rs`; do not edit.\n\n\
        A setting comes from the environment, else from the TOML file that `AGENTHUB_CONFIG` names, else from \
        its default. `<NAME>_FILE` names a file that holds the value, for secrets that are mounted. In the TOML \
        file the key is the name in lower case without `AGENTHUB_`; a list may be an array. A name that no setting \
        has is refused, with the nearest one that exists. Every process takes `--check-config`.\n\n\
        `AGENTHUB_URL`, `AGENTHUB_API_KEY`, `AGENTHUB_CLIENT_KEY`, `AGENTHUB_ADMIN_KEY` and `AGENTHUB_BIN` are for \
        clients and scripts; processes ignore them.\n\n\
        | variable | default | what |\n|---|---|---|\n",
    );
    for setting in REFERENCE {
        let default = match setting.default {
            "" => "–".to_owned(),
            "\0required" => "**required**".to_owned(),
            text => format!("`{}`", cell(text)),
        };
        let secret = if setting.secret { " Secret." } else { "" };
        writeln!(
            page,
            "| `{}` | {default} | {}{secret} |",
            setting.env,
            cell(setting.doc)
        )
        .unwrap();
    }
    is_current("docs/configuration.md", &page);
}

#[test]
fn tools() {
    let mut page = String::from(
        "# Tools\n\n\
        Generated from `src/lib/tools/catalogue.rs`; do not edit. `GET /v1/tools` answers the same of a running \
        installation.\n\n\
        A plan's step names a tool and its arguments. The arguments are checked against the tool's JSON Schema when \
        the plan is made, and again before the call, when references to earlier steps (`${steps.s1.output.value}`) \
        have their values. *Effects* says what a repeated call does: `none` (nothing outside changes), `idempotent` \
        (the other side knows a repeat by its key), `unsafe` (a second call has a second effect: it is attempted \
        once, and a lost result ends as `outcome_unknown`). One attempt may take the time given here when the step \
        has no `timeout_s`; an output of more than `AGENTHUB_MAX_OUTPUT_BYTES` fails the step.\n\n\
        **When a call fails.** A failure that another attempt may not repeat (a timeout, a connection, 429, 5xx) is \
        followed by another attempt: `AGENTHUB_MAX_ATTEMPTS` in all for a step, `AGENTHUB_MAX_RUN_RETRIES` further \
        ones for all steps of a run, with full jitter, and not before a `Retry-After`. `step.failed` says as `gave_up` \
        why there is no other. A target that keeps failing is held back by a circuit breaker on every worker \
        (`AGENTHUB_BREAKER_*`): a step does not start before it lets calls pass again, and a run that waits long is \
        parked. `GET /v1/tools` and `agenthub tools` show its state; see [decision 0019](decisions/0019-breakers.md).\n\n\
        **Kept results.** A tool that says so below has its results kept for other calls of the tenant with the same \
        arguments, and identical calls at the same time go out once. `step.completed` then says `cached: true`. \
        `AGENTHUB_CACHE_TTLS` sets other times; `DELETE /v1/admin/cache/{tool}` drops what is kept; see [decision \
        0015](decisions/0015-result-cache.md).\n\n\
        **What a tool returns is data.** It is cut to its bounds, is never read as a plan or as a reference, and what \
        a server does wrong (endless bodies, lies about lengths, bytes that are no text) harms the step alone.\n\n\
        ## Tools of your own\n\n\
        `AGENTHUB_TOOLS_FILE` names a TOML file that declares tools which are called by HTTP. Every process reads it \
        when it starts (give all of them the same), and refuses to start with one that makes no sense; `agenthub config \
        check` says what is wrong with it.\n\n\
        ```toml\n",
    );
    page += include_str!("tools_example.toml");
    page.push_str(
        "```\n\n\
        A call is one `POST` of the arguments as JSON. It carries `Idempotency-Key: <run>/<step>`, the same for every \
        attempt, and `AgentHub-Tenant`, `-Session`, `-Run`, `-Step` and `-Attempt`. The answer is JSON, or 204; it is the \
        step's output. `429`, `408`, `425` and `5xx` are transient (`Retry-After` is kept to), any other status but a \
        success is final, and redirects are not followed. The address is under the same guard as `http_fetch`: a service \
        in a private network needs its host in `AGENTHUB_FETCH_ALLOW` (which lets `http_fetch` reach it as well). \
        Values of `headers` are never shown; a file that holds secrets belongs where secrets are mounted.\n\n\
        `effects` is the promise that retries are made by. Declare `none` what only reads, `idempotent` what does its work \
        once for one `Idempotency-Key`, and `unsafe` everything else: an `unsafe` call whose outcome is lost (a timeout, a \
        broken connection, a 5xx, a worker that died) is not made again; the run ends with `outcome_unknown`, and \
        `agenthub runs resolve` takes what a person found out. Only when there was no connection at all, another attempt \
        follows. Raise `version` when the meaning of arguments or results changes.\n\n\
        # Tools that ship\n",
    );
    for tool in catalogue::all() {
        let effects = match tool.effects {
            Effects::None => "none",
            Effects::Idempotent => "idempotent",
            Effects::Unsafe => "unsafe",
        };
        let schema = serde_json::to_string_pretty(&tool.parameters).unwrap();
        let kept = tool.cache.map_or_else(String::new, |cache| {
            format!(", results kept for {} seconds", cache.ttl.as_secs())
        });
        writeln!(
            page,
            "\n## `{}`\n\nVersion {}, effects `{effects}`, {} seconds{kept}.\n\n{}\n\n```json\n{schema}\n```",
            tool.name,
            tool.version,
            tool.timeout.as_secs(),
            cell(tool.description),
        )
        .unwrap();
    }
    is_current("docs/tools.md", &page);
}

#[test]
fn metrics() {
    let mut table = String::from("| metric | kind | what |\n|---|---|---|\n");
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        writeln!(
            table,
            "| `{}` | {kind} | {} |",
            metric.name,
            cell(metric.help)
        )
        .unwrap();
    }
    let path = "docs/operations.md";
    is_current(path, &with_part(path, "metrics", &table));
}

/// Who may use which route.
#[test]
fn permissions() {
    let mut table = String::from("| route | permission |");
    for role in Role::ALL {
        write!(table, " {} |", role.as_str()).unwrap();
    }
    table.push_str("\n|---|---|---|---|---|\n");
    for route in access() {
        let Some(permission) = route.permission else {
            continue;
        };
        let row = format!(
            "| `{} {}` | {} |",
            route.method,
            route.path,
            permission.describe()
        );
        table.push_str(&row);
        for role in Role::ALL {
            let may = permission.roles().contains(&role);
            table.push_str(if may { " yes |" } else { " – |" });
        }
        table.push('\n');
    }
    let path = "docs/security.md";
    is_current(path, &with_part(path, "permissions", &table));
}

/// The README's table of the API has every operation of the API document but the reference page's own
/// files, and no other.
#[test]
fn routes() {
    let document: serde_json::Value = serde_json::from_str(agenthub::api::openapi()).unwrap();
    let mut expected = BTreeSet::new();
    let paths = document["paths"].as_object().unwrap();
    for (path, operations) in paths
        .iter()
        .filter(|(path, _)| !path.starts_with("/docs/assets/"))
    {
        for method in operations.as_object().unwrap().keys() {
            if matches!(method.as_str(), "get" | "post" | "put" | "delete" | "patch") {
                expected.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    let page = std::fs::read_to_string(root().join("README.md")).unwrap();
    let listed = page.lines().filter_map(|line| {
        let operation = line.strip_prefix("| `")?.split('`').next()?;
        let (method, path) = operation.split_once(' ')?;
        let is_method = method.bytes().all(|b| b.is_ascii_uppercase());
        (is_method && path.starts_with('/')).then(|| operation.to_owned())
    });
    let listed: BTreeSet<String> = listed.collect();
    assert_eq!(listed, expected);
}

/// The project's own documents, as the tenant's corpus in the object store at `url`.
async fn sample_corpus(url: &str, tenant: &TenantId) -> Corpus {
    let env = [("AGENTHUB_STORAGE_URL".to_owned(), url.to_owned())];
    let source = Source::from_env(env.into()).unwrap();
    let storage = Storage::open(&StorageSettings::load(&source).unwrap()).unwrap();
    let corpus = Corpus::new(storage);
    let found = intake::find(&[root().join("docs")]).unwrap();
    let documents = found.files.iter().map(|file| intake::read(file).unwrap());
    corpus.add(tenant, documents.collect()).await.unwrap();
    corpus
}

/// What the documents say about idempotency is found there.
#[tokio::test]
async fn the_sample_corpus_tells_of_idempotency() {
    let folder = tempfile::tempdir().unwrap();
    let tenant: TenantId = "demo".parse().unwrap();
    let corpus = sample_corpus(folder.path().to_str().unwrap(), &tenant).await;
    let cache = folder.path().join("cache");
    let search = Retrieval::open(corpus, &cache, Duration::ZERO).unwrap();
    let call = ToolCall {
        tenant,
        session_id: SessionId::generate(),
        run_id: RunId::generate(),
        step_id: "s1".to_owned(),
        attempt: 1,
        idempotency_key: "k".to_owned(),
        args: json!({ "query": "idempotency", "top_k": 3 }),
    };
    let answer = search.call(call).await.unwrap().value;
    let best = &answer["results"][0];
    let source = best["source"].as_str().unwrap();
    assert!(source.starts_with("docs/idempotency.md"), "{answer:#}");
    assert!(
        best["snippet"]
            .as_str()
            .unwrap()
            .to_lowercase()
            .contains("idempotency"),
        "{answer:#}"
    );
}

/// The README's first steps do what it says, typed as they stand there.
#[tokio::test]
async fn quick_start() {
    let folder = tempfile::tempdir().unwrap();
    let storage = folder.path().to_str().unwrap();
    let stack = Stack::start(&[("AGENTHUB_STORAGE_URL", storage)]).await;
    sample_corpus(storage, &stack.tenant).await;

    let page = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, after) = page.split_once("with curl:\n\n```sh\n").unwrap();
    let (commands, _) = after.split_once("```").unwrap();
    let (source, commands) = commands.split_once('\n').unwrap();
    assert_eq!(source, "source .agenthub/env");
    let url = format!("http://{}", stack.processes["api"].addr);
    let output = tokio::process::Command::new("bash")
        .args(["-euo", "pipefail", "-c", commands])
        .env("AGENTHUB_URL", url)
        .env("AGENTHUB_CLIENT_KEY", &stack.api_key)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_mins(1), output).await;
    let output = output.unwrap().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    let mut rest = told.as_str();
    for expected in [
        "event: run.queued",
        "event: plan.created",
        "event: step.completed",
        "event: run.succeeded",
        "\"status\":\"succeeded\"",
        "\"code\":\"run_ended\"",
        "\"status\":\"succeeded\"",
        "dempotency",
    ] {
        let at = rest.find(expected);
        let at = at.unwrap_or_else(|| panic!("{expected} does not follow in:\n{told}"));
        rest = &rest[at + expected.len()..];
    }
}

/// Every relative link leads to a file of the repository.
#[test]
fn links() {
    let mut pages = vec![
        root().join("README.md"),
        root().join("ARCHITECTURE.md"),
        root().join("CHANGELOG.md"),
    ];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path);
            }
        }
    }
    let mut dead = Vec::new();
    let mut followed = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links_of(&text) {
            let (file, _) = link.split_once('#').unwrap_or((&link, ""));
            if file.is_empty() || file.contains("://") {
                continue;
            }
            followed += 1;
            let target: PathBuf = page.parent().unwrap().join(file);
            if !target.exists() {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(followed > 20, "only {followed} links were found");
    assert!(dead.is_empty(), "\n{}\n", dead.join("\n"));
}

/// Targets of `[text](target)`.
fn links_of(text: &str) -> Vec<String> {
    let after = text.split("](").skip(1);
    after
        .filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()))
        .collect()
}
