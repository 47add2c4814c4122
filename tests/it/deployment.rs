//! What installs AgentHub elsewhere: compose, the image, the chart, the rules of Prometheus. The files are
//! checked by the tools that will read them, and held against the code; nothing is run in containers here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use agenthub::config::{REFERENCE, Setting};
use agenthub::telemetry::METRICS;
use regex::Regex;
use serde_json::Value;

use crate::dashboards::{dashboards, rule_files};
use crate::support::tools::{root, run, tool};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What only docker-compose.yml reads of `.env`: name, value, meaning.
const OF_COMPOSE: &[(&str, &str, &str)] = &[
    (
        "COMPOSE_PROFILES",
        "llm-sim,observability",
        "Optional services: `llm-sim`, the simulator of a model; `observability`, which is Prometheus, Grafana, the \
         OpenTelemetry collector and Jaeger.",
    ),
    (
        "API_PORT",
        "8080",
        "Ports on this machine's loopback interface.",
    ),
    ("GRAFANA_PORT", "3000", ""),
    ("PROMETHEUS_PORT", "9090", ""),
    ("JAEGER_PORT", "16686", ""),
    (
        "TRACES_SAMPLED_PERCENT",
        "100",
        "Traces that are kept, of those without an error that took less than five seconds.",
    ),
];

/// Settings to which a compose installation gives a value of its own, and `.env` may give another.
const PRESET: &[(&str, &str)] = &[
    ("OPENAI_BASE_URL", "http://llm-sim:8090/v1"),
    ("OPENAI_API_KEY", "llm-sim"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel-collector:4318"),
];

/// Settings that docker-compose.yml sets whatever `.env` says.
const FIXED: &[&str] = &[
    "KAFKA_BROKERS",
    "REDIS_URL",
    "AGENTHUB_CACHE_DIR",
    "AGENTHUB_API_ADDR",
    "AGENTHUB_PROBE_ADDR",
];

fn env_example() -> String {
    let mut text = String::from(
        "# Settings of `docker compose up`; every line may stay as it is.\n\
         #     cp .env.example .env && docker compose up --build\n\
         # Generated from src/lib/config/settings.rs: UPDATE_DOCS=1 cargo test --test it deployment\n",
    );
    for (name, value, doc) in OF_COMPOSE {
        if !doc.is_empty() {
            write!(text, "\n{}", comment(doc)).unwrap();
        }
        writeln!(text, "{name}={value}").unwrap();
    }
    text.push_str("\n# ---- Settings of AgentHub. A line without `#` differs from the default.\n");
    for setting in REFERENCE {
        if FIXED.contains(&setting.env) {
            continue;
        }
        let mut doc = setting.doc.to_owned();
        if setting.secret {
            doc.push_str(" Secret: better in a file that ");
            write!(doc, "{}_FILE names.", setting.env).unwrap();
        }
        if setting.default == "\0required" {
            doc.push_str(" Made on the first start.");
        }
        write!(text, "\n{}", comment(&doc)).unwrap();
        let preset = PRESET.iter().find(|(name, _)| *name == setting.env);
        let line = match preset {
            Some((name, value)) => format!("{name}={value}"),
            None => format!("#{}={}", setting.env, default(setting)),
        };
        writeln!(text, "{line}").unwrap();
    }
    text
}

fn default(setting: &Setting) -> &'static str {
    match setting.default {
        "\0required" => "",
        text => text,
    }
}

/// As comment lines of at most 118 characters.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        let last = lines.last_mut().unwrap();
        if last.len() + word.len() >= 118 {
            lines.push(format!("# {word}"));
        } else {
            write!(last, " {word}").unwrap();
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn env_example_is_current() {
    let path = root().join(".env.example");
    let expected = env_example();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    assert!(
        read(".env.example") == expected,
        ".env.example is stale: UPDATE_DOCS=1 cargo test --test it deployment"
    );
}

/// The compose file as the client understands it, with `.env.example` as `.env`.
fn compose(binary: &Path) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str, to: &str| {
        std::fs::copy(root().join(name), folder.path().join(to)).unwrap();
    };
    copy("docker-compose.yml", "docker-compose.yml");
    copy(".env.example", ".env");
    let output = Command::new(binary)
        .args(["config", "--format", "json"])
        .current_dir(folder.path())
        .env_clear()
        .env("HOME", folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{told}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn known(variable: &str) -> bool {
    let name = variable.strip_suffix("_FILE").unwrap_or(variable);
    REFERENCE.iter().any(|s| s.env == name)
}

#[test]
fn compose_is_as_the_code_expects() {
    let Some(binary) = tool("docker-compose") else {
        return;
    };
    let config = compose(&binary);
    let services = config["services"].as_object().unwrap();
    let names: BTreeSet<&str> = services.keys().map(String::as_str).collect();
    let expected = [
        "secrets",
        "kafka",
        "redis",
        "s3",
        "topics",
        "api",
        "planner",
        "executor",
        "audit-rollup",
        "dlq",
        "llm-sim",
        "prometheus",
        "grafana",
        "otel-collector",
        "jaeger",
    ];
    assert_eq!(names, BTreeSet::from(expected));

    let pinned = Regex::new(r":v?\d+\.\d+\.\d+[\w.-]*$").unwrap();
    for (name, service) in services {
        let image = service["image"].as_str().unwrap();
        assert!(pinned.is_match(image), "{name}: {image} is not pinned");
        let limits = &service["deploy"]["resources"]["limits"];
        for limit in ["cpus", "memory", "pids"] {
            assert!(!limits[limit].is_null(), "{name} has no limit of {limit}");
        }
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
        }
        if !image.starts_with("agenthub:") {
            continue;
        }
        assert_eq!(service["user"], "10001:10001", "{name}");
        assert_eq!(service["read_only"], true, "{name}");
        let environment = service["environment"].as_object();
        for variable in environment.into_iter().flatten().map(|(name, _)| name) {
            let of_compose = OF_COMPOSE.iter().any(|(name, _, _)| name == variable);
            assert!(
                known(variable) || of_compose,
                "{name}: no setting {variable}"
            );
        }
    }

    // What `.env` does not have because this file sets it, it does set, and nothing else.
    let planner = services["planner"]["environment"].as_object().unwrap();
    let api = services["api"]["environment"].as_object().unwrap();
    for name in FIXED {
        let file = format!("{name}_FILE");
        let set = |map: &serde_json::Map<String, Value>| {
            map.contains_key(*name) || map.contains_key(&file)
        };
        assert!(set(planner) || set(api), "{name}");
    }
    for (name, value) in PRESET {
        assert_eq!(planner[*name], *value);
    }

    // Each process is asked on the port on which it listens, by the program that the image has.
    let addr = |service: &str, variable: &str| {
        let text = services[service]["environment"][variable].as_str().unwrap();
        text.rsplit(':').next().unwrap().to_owned()
    };
    let asked = |service: &str| {
        let test = services[service]["healthcheck"]["test"].as_array().unwrap();
        assert_eq!((&test[0], &test[1]), (&"CMD".into(), &"ready".into()));
        test[2].as_str().unwrap().to_owned()
    };
    assert_eq!(asked("api"), addr("api", "AGENTHUB_API_ADDR"));
    for worker in ["planner", "executor", "audit-rollup", "dlq"] {
        assert_eq!(
            asked(worker),
            addr(worker, "AGENTHUB_PROBE_ADDR"),
            "{worker}"
        );
        let target = format!("names: [{worker}], type: A, port: {}", asked(worker));
        assert!(
            read("infra/prometheus/prometheus.yml").contains(&target),
            "{target}"
        );
    }
    // There is one broker, and the declaration asks for three replicas.
    let topics = serde_json::json!(["agenthub", "topics", "apply", "--dev"]);
    assert_eq!(services["topics"]["command"], topics);
    assert!(read("infra/docker/ready").contains("GET /readyz "));

    // Binaries that are started exist.
    let manifest = read("Cargo.toml");
    for service in [
        "api",
        "planner",
        "executor",
        "audit-rollup",
        "dlq",
        "llm-sim",
        "topics",
    ] {
        let command = services[service]["command"][0].as_str().unwrap();
        assert!(
            manifest.contains(&format!("name = \"{command}\"")),
            "{command}"
        );
    }
    // Files that are mounted exist.
    for (name, service) in services {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            if volume["type"] == "bind" {
                let source = volume["source"].as_str().unwrap();
                let relative = ["infra/", "docs/"]
                    .iter()
                    .find_map(|p| source.find(p).map(|at| &source[at..]));
                assert!(root().join(relative.unwrap()).exists(), "{name}: {source}");
            }
        }
    }
}

#[test]
fn the_image_is_linted_and_its_context_complete() {
    let image = read("infra/docker/Dockerfile");
    if let Some(hadolint) = tool("hadolint") {
        run(&hadolint, &["infra/docker/Dockerfile"]);
    }
    let toolchain = read("rust-toolchain.toml");
    let version = Regex::new(r#"channel = "([\d.]+)""#).unwrap();
    let version = &version.captures(&toolchain).unwrap()[1];
    assert!(
        image.contains(&format!("FROM rust:{version}-slim-bookworm")),
        "{version}"
    );
    assert!(image.contains("\nUSER 10001:10001\n"));
    assert!(image.contains("agenthub.sbom="));

    // The context has what the build reads, and nothing that was left out is needed to read the manifest.
    let ignore = read(".dockerignore");
    let folder = tempfile::tempdir().unwrap();
    for line in ignore.lines().filter_map(|line| line.strip_prefix('!')) {
        let target = folder.path().join(line);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(root().join(line), target).unwrap();
        assert!(root().join(line).exists(), "{line}");
    }
    for line in image
        .lines()
        .filter(|line| line.starts_with("COPY ") && !line.contains("--from"))
    {
        let words = line
            .split_whitespace()
            .skip(1)
            .filter(|word| !word.starts_with("--"));
        let words: Vec<_> = words.collect();
        for source in &words[..words.len() - 1] {
            assert!(folder.path().join(source).exists(), "{line}");
        }
    }
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    for target in metadata["packages"][0]["targets"].as_array().unwrap() {
        let path = target["src_path"].as_str().unwrap();
        assert!(
            Path::new(path).exists(),
            "{path} is not in the image's context"
        );
    }
}

#[test]
fn the_rules_are_valid_and_each_alert_is_tested() {
    let Some(promtool) = tool("promtool") else {
        return;
    };
    run(
        &promtool,
        &[
            "check",
            "config",
            "--syntax-only",
            "infra/prometheus/prometheus.yml",
        ],
    );
    for file in rule_files() {
        run(&promtool, &["check", "rules", file.to_str().unwrap()]);
    }
    let files = ["alerts", "days"].map(|name| format!("infra/prometheus/tests/{name}.yml"));
    run(&promtool, &["test", "rules", &files[0], &files[1]]);
    let tests = files.map(|file| read(&file)).concat();
    for alert in alerts().keys() {
        for case in ["fires", "stays quiet"] {
            assert!(
                tests.contains(&format!("- name: {alert} {case}\n")),
                "{alert} {case}"
            );
        }
    }
}

/// The alerts with their texts.
fn alerts() -> BTreeMap<String, String> {
    let text = read("infra/prometheus/rules/alerts.yml");
    let parts = text.split("- alert: ").skip(1);
    let alerts = parts.map(|part| {
        let (name, rest) = part.split_once('\n').unwrap();
        (name.to_owned(), rest.to_owned())
    });
    alerts.collect()
}

#[test]
fn each_alert_has_a_page_and_each_page_an_alert() {
    let alerts = alerts();
    assert!(alerts.len() > 20);
    let folder = std::fs::read_dir(root().join("docs/runbooks")).unwrap();
    let pages: BTreeSet<String> = folder
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "README")
        .collect();
    let names: BTreeSet<String> = alerts.keys().cloned().collect();
    assert_eq!(pages, names);
    let index = read("docs/runbooks/README.md");
    for (name, alert) in &alerts {
        let page = read(&format!("docs/runbooks/{name}.md"));
        let severity = if alert.contains("severity: page") {
            "page"
        } else {
            "ticket"
        };
        assert!(alert.contains(&format!("severity: {severity}")), "{name}");
        assert!(
            page.contains(&format!("\nSeverity: {severity}.\n")),
            "{name}"
        );
        assert!(
            index.contains(&format!("| [{name}]({name}.md) | {severity} |")),
            "{name}"
        );
        assert!(alert.contains(&format!("/user/{name}.md")), "{name}");
        for part in [
            "What it says",
            "What it means for clients",
            "Where to look",
            "What to do",
        ] {
            assert!(page.contains(&format!("\n## {part}\n")), "{name}: {part}");
        }
    }
}

/// Metrics that others bring: named here already, so that what watches them is there when they come.
const TO_COME: &[&str] = &["agenthub_budget_used_ratio"];

/// No dashboard, rule or page names a metric that does not exist.
#[test]
fn metrics_that_are_watched_exist() {
    let name = Regex::new(r"\bagenthub_[a-z0-9_]+\b").unwrap();
    let mut texts: Vec<(String, String)> = dashboards()
        .into_iter()
        .map(|(path, json)| (path.display().to_string(), json.to_string()))
        .collect();
    for path in rule_files() {
        texts.push((
            path.display().to_string(),
            std::fs::read_to_string(&path).unwrap(),
        ));
    }
    for alert in alerts().keys() {
        let path = format!("docs/runbooks/{alert}.md");
        texts.push((path.clone(), read(&path)));
    }
    let mut found = BTreeSet::new();
    for (path, text) in &texts {
        for metric in name.find_iter(text).map(|m| m.as_str()) {
            let base = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|end| metric.strip_suffix(end));
            let is = |name: &str| METRICS.iter().any(|m| m.name == name) || TO_COME.contains(&name);
            assert!(is(metric) || base.is_some_and(is), "{path}: {metric}");
            found.insert(base.filter(|base| is(base)).unwrap_or(metric).to_owned());
        }
    }
    for metric in METRICS {
        assert!(
            found.contains(metric.name),
            "{} is on no dashboard",
            metric.name
        );
    }
}
