//! `run` and `watch` against a scripted API.

use std::collections::VecDeque;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use clap::Parser;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::client::Client;
use super::follow::{self, View};
use super::run;

const RECORDED: &str = include_str!("follow/recorded.jsonl");

/// What one connection to the stream is answered with.
enum Connection {
    /// These bytes, and then its end.
    Ends(String),
    /// These bytes, and then nothing more.
    Hangs(String),
    /// A status without events.
    Status(StatusCode),
}

#[derive(Default)]
struct Script {
    connections: VecDeque<Connection>,
    run: Value,
    /// What arrived, in order.
    requests: Vec<String>,
    /// Told of each of them too.
    heard: Option<mpsc::UnboundedSender<String>>,
}

type Shared = Arc<Mutex<Script>>;

fn note(script: &Shared, what: impl Into<String>) {
    let (what, mut script) = (what.into(), script.lock().unwrap());
    if let Some(heard) = &script.heard {
        heard.send(what.clone()).unwrap();
    }
    script.requests.push(what);
}

async fn stream_events(State(script): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    let after = headers
        .get("last-event-id")
        .map_or("", |v| v.to_str().unwrap());
    note(&script, format!("stream {} {after}", uri.query().unwrap()));
    let connection = script.lock().unwrap().connections.pop_front();
    let events = [(header::CONTENT_TYPE, "text/event-stream")];
    let bytes = |text: String| stream::iter([Ok::<_, std::io::Error>(Bytes::from(text))]);
    match connection {
        Some(Connection::Ends(text)) => (events, Body::from_stream(bytes(text))).into_response(),
        Some(Connection::Hangs(text)) => {
            let open = bytes(text).chain(stream::pending());
            (events, Body::from_stream(open)).into_response()
        }
        Some(Connection::Status(status)) => status.into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn submit(
    State(script): State<Shared>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let key = headers
        .get("idempotency-key")
        .map_or("", |v| v.to_str().unwrap());
    note(&script, format!("run {body} {key}"));
    let authorization = headers.get("authorization").unwrap();
    if authorization != "Bearer ah_key" {
        let problem = json!({"title": "Not authenticated", "detail": "no valid API key",
            "code": "unauthenticated", "trace_id": "t1"});
        return (StatusCode::UNAUTHORIZED, Json(problem)).into_response();
    }
    (
        StatusCode::ACCEPTED,
        Json(json!({"run_id": "run_1", "status": "queued"})),
    )
        .into_response()
}

async fn cancel(
    State(script): State<Shared>,
    Path(run): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let mode = body["mode"].as_str().unwrap().to_owned();
    note(&script, format!("cancel {run} {mode}"));
    (
        StatusCode::ACCEPTED,
        Json(json!({"run_id": run, "status": "cancelling"})),
    )
        .into_response()
}

struct Api {
    script: Shared,
    url: String,
}

impl Api {
    async fn start(status: &str, connections: impl IntoIterator<Item = Connection>) -> Self {
        let script = Script {
            connections: connections.into_iter().collect(),
            run: json!({
                "run_id": "run_1", "session_id": "ses_1", "status": status,
                "created_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:02Z",
                "usage": {"input_tokens": 812, "output_tokens": 120, "cost_micro_usd": 194},
                "result": {"answer": "42", "outputs": {}},
            }),
            ..Script::default()
        };
        let script = Arc::new(Mutex::new(script));
        let read = |State(script): State<Shared>| async move {
            let run = script.lock().unwrap().run.clone();
            Json(run)
        };
        let router = axum::Router::new()
            .route(
                "/v1/sessions",
                post(|| async { (StatusCode::CREATED, Json(json!({"session_id": "ses_1"}))) }),
            )
            .route("/v1/runs", post(submit))
            .route("/v1/runs/run_1", get(read))
            .route("/v1/runs/{run}/cancel", post(cancel))
            .route("/v1/stream", get(stream_events))
            .with_state(script.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { script, url }
    }

    fn args(&self, more: &[&str]) -> run::Args {
        let given = ["run", "the goal", "--url", &self.url, "--api-key", "ah_key"];
        Line::parse_from(given.iter().chain(more)).run
    }

    /// Runs `agenthub run` with no interrupt; its outcome and what it wrote.
    async fn run(&self, more: &[&str]) -> (anyhow::Result<ExitCode>, String) {
        let args = self.args(more);
        let client = Client::new(&args.connection).unwrap();
        let out = Out::default();
        let mut view = View::to(Box::new(out.clone()), more.contains(&"--json"));
        let outcome =
            run::submit_and_follow(&client, &args, &mut view, Box::pin(stream::pending())).await;
        (outcome, out.text())
    }

    fn requests(&self) -> Vec<String> {
        self.script.lock().unwrap().requests.clone()
    }
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    run: run::Args,
}

#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Out {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An event as its frame. `retry: 0` keeps reconnections from waiting.
fn frame(json: &str) -> String {
    let event: Value = serde_json::from_str(json).unwrap();
    let text = |name: &str| event[name].as_str().unwrap().to_owned();
    format!(
        "retry: 0\nevent: {}\nid: {}\ndata: {json}\n\n: heartbeat\n\n",
        text("type"),
        text("id")
    )
}

fn end(kind: &str) -> String {
    let data = json!({"code": "step_failed", "message": "step s2 failed"});
    frame(&json!({"id": "1-99", "type": kind, "run_id": "run_1", "data": data}).to_string())
}

fn same(code: ExitCode, expected: u8) -> bool {
    format!("{code:?}") == format!("{:?}", ExitCode::from(expected))
}

#[tokio::test]
async fn the_exit_code_tells_how_the_run_ended() {
    for (status, expected) in [
        ("succeeded", 0),
        ("failed", 1),
        ("cancelled", 1),
        ("timed_out", 1),
    ] {
        for more in [&[][..], &["--json"]] {
            let api = Api::start(status, [Connection::Ends(end(&format!("run.{status}")))]).await;
            let (outcome, _) = api.run(more).await;
            assert!(same(outcome.unwrap(), expected), "{status} {more:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_after_its_last_whole_event() {
    let events: Vec<String> = RECORDED.lines().map(frame).collect();
    let (first, cut) = (
        events[..4].concat(),
        events[4].split_at(events[4].len() / 2).0,
    );
    let api = Api::start(
        "failed",
        [
            Connection::Ends(format!("{first}{cut}")),
            Connection::Status(StatusCode::SERVICE_UNAVAILABLE),
            Connection::Ends(events[4..].concat()),
        ],
    )
    .await;
    let (outcome, text) = api.run(&["--json"]).await;
    assert!(same(outcome.unwrap(), 1));
    let (told, last) = text.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(told, RECORDED.trim_end());
    assert_eq!(
        serde_json::from_str::<Value>(last).unwrap()["usage"]["cost_micro_usd"],
        194
    );
    let expected = [
        r#"run {"goal":"the goal","mode":"plan_execute","session_id":"ses_1"} "#,
        "stream run_id=run_1 ",
        "stream run_id=run_1 1-4",
        "stream run_id=run_1 1-4",
    ];
    assert_eq!(api.requests(), expected);
}

#[tokio::test]
async fn people_read_lines_and_the_result() {
    let events: String = RECORDED.lines().take(6).map(frame).collect();
    let api = Api::start(
        "succeeded",
        [Connection::Ends(events + &end("run.succeeded"))],
    )
    .await;
    let (outcome, text) = api.run(&[]).await;
    assert!(same(outcome.unwrap(), 0));
    let expected = "\
run run_1 in session ses_1
· queued
· planning with gpt-4o-mini
· planned 2 steps: 812 tokens in, 120 out, $0.000194
    s1 ads_metrics_mock
    s2 http_fetch  after s1
· executing
▸ s1 ads_metrics_mock  {\"advertiser_id\":\"123\",\"days\":7}
✓ s1 ads_metrics_mock  12 ms
✓ succeeded after 2.0 s, 812 tokens in, 120 out, $0.000194

42
";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_run_whose_events_are_gone_ends_with_its_snapshot() {
    let snapshot = json!({"run_id": "run_1", "status": "timed_out"});
    let gone = format!(
        "event: stream.truncated\ndata: {{}}\n\nevent: stream.snapshot\nid: 1-9\ndata: {snapshot}\n\n"
    );
    let api = Api::start("timed_out", [Connection::Hangs(gone)]).await;
    let (outcome, text) = api.run(&["--json"]).await;
    assert!(same(outcome.unwrap(), 1));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], r#"{"type":"stream.truncated"}"#);
    assert_eq!(
        lines[1],
        format!(r#"{{"type":"stream.snapshot","data":{snapshot}}}"#)
    );
    assert_eq!(lines.len(), 3);
}

#[tokio::test]
async fn a_stream_with_nothing_more_leaves_the_word_to_the_record() {
    let api = Api::start("succeeded", []).await;
    let (outcome, _) = api.run(&[]).await;
    assert!(same(outcome.unwrap(), 0));
}

#[tokio::test]
async fn what_was_asked_for_is_what_is_sent() {
    let api = Api::start("succeeded", []).await;
    let more = [
        "--session",
        "ses_7",
        "--model",
        "m",
        "--max-cost-usd",
        "0.05",
        "--timeout-s",
        "9",
        "--idempotency-key",
        "k-1",
    ];
    api.run(&more).await.0.unwrap();
    let expected = r#"run {"goal":"the goal","max_cost_usd":0.05,"mode":"plan_execute","model":"m","session_id":"ses_7","timeout_s":9} k-1"#;
    assert_eq!(api.requests()[0], expected);
}

#[tokio::test]
async fn a_refusal_is_one_line() {
    let api = Api::start("succeeded", []).await;
    let mut args = api.args(&[]);
    args.connection = Line::parse_from(["run", "g", "--url", &api.url, "--api-key", "other"])
        .run
        .connection;
    let client = Client::new(&args.connection).unwrap();
    let mut view = View::to(Box::new(Out::default()), false);
    let outcome =
        run::submit_and_follow(&client, &args, &mut view, Box::pin(stream::pending())).await;
    let expected = "Not authenticated: no valid API key (unauthenticated, trace t1)";
    assert_eq!(format!("{:#}", outcome.unwrap_err()), expected);
}

#[tokio::test]
async fn the_first_interrupt_cancels_and_the_second_forces_it() {
    let api = Api::start(
        "executing",
        [Connection::Hangs(frame(RECORDED.lines().next().unwrap()))],
    )
    .await;
    let (heard, mut requests) = mpsc::unbounded_channel();
    api.script.lock().unwrap().heard = Some(heard);
    let (press, mut pressed) = mpsc::unbounded_channel();
    let interrupts = Box::pin(stream::poll_fn(move |context| pressed.poll_recv(context)));
    let args = api.args(&["--session", "ses_1"]);
    let client = Client::new(&args.connection).unwrap();
    let out = Out::default();
    let mut view = View::to(Box::new(out.clone()), false);
    let running = run::submit_and_follow(&client, &args, &mut view, interrupts);
    let pressing = async {
        // Until the run is there, an interrupt ends the command at once.
        assert!(requests.recv().await.unwrap().starts_with("run "));
        assert!(requests.recv().await.unwrap().starts_with("stream "));
        for mode in ["graceful", "force"] {
            press.send(()).unwrap();
            assert_eq!(
                requests.recv().await.unwrap(),
                format!("cancel run_1 {mode}")
            );
        }
    };
    let (outcome, ()) = tokio::join!(running, pressing);
    assert!(same(outcome.unwrap(), 130));
    assert_eq!(api.requests().len(), 4);
    assert!(
        out.text().ends_with("run_1 is cancelling\n"),
        "{}",
        out.text()
    );
}

#[tokio::test]
async fn a_cancelled_run_is_followed_to_its_end() {
    // An interrupt that is there from the start comes before what the network brings.
    let first = frame(RECORDED.lines().next().unwrap());
    let api = Api::start(
        "cancelled",
        [Connection::Hangs(first + &end("run.cancelled"))],
    )
    .await;
    let client = Client::new(&api.args(&[]).connection).unwrap();
    let mut view = View::to(Box::new(Out::default()), false);
    let interrupts = stream::iter([()]).chain(stream::pending());
    let ended = follow::follow(&client, "run_1", None, &mut view, Box::pin(interrupts))
        .await
        .unwrap();
    assert_eq!(ended.unwrap().status.as_deref(), Some("cancelled"));
    assert!(api.requests().contains(&"cancel run_1 graceful".to_owned()));
}

#[test]
fn wrong_usage_is_refused_before_anything_is_sent() {
    let given = |more: &[&str]| {
        let line = ["run", "g", "--api-key", "k"];
        Line::try_parse_from(line.iter().chain(more)).is_ok()
    };
    assert!(given(&[]));
    for wrong in [
        &["--max-cost-usd", "NaN"][..],
        &["--max-cost-usd", "-1"],
        &["--timeout-s", "0"],
        &["--mode", "guess"],
        &["--idempotency-key", "k"],
        &["--session", "../x"],
        &["--url", "localhost:1"],
    ] {
        assert!(!given(wrong), "{wrong:?}");
    }
}
