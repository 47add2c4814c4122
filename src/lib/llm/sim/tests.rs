//! The simulator over the wire.

use std::time::Instant;

use clap::Parser;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

/// A simulator with these arguments on a free port; its base URL. It ends with the test's runtime.
pub(in crate::llm) async fn start(args: &[&str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let args = ["agenthub-llm-sim"].iter().chain(args);
    let simulator = Simulator::new(&Options::try_parse_from(args).unwrap()).unwrap();
    tokio::spawn(serve(listener, simulator, std::future::pending()));
    format!("http://{addr}/v1")
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn ask(base: &str, body: &Value) -> reqwest::Response {
    let url = format!("{base}/chat/completions");
    http().post(url).json(body).send().await.unwrap()
}

fn request(goal: &str) -> Value {
    json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": goal}]})
}

#[tokio::test]
async fn it_says_that_it_is_a_simulator() {
    let base = start(&[]).await;
    let models: Value = http()
        .get(format!("{base}/models"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let ids = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap());
    assert!(ids.into_iter().all(|id| id.starts_with("agenthub-sim")));

    let response = ask(&base, &request("Write me a poem")).await;
    assert_eq!(response.headers()["server"], "agenthub-llm-sim");
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "gpt-4o-mini");
    assert_eq!(answer["system_fingerprint"], "fp_agenthub_llm_sim");
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(
        content.contains("simulator") && content.contains("ROAS"),
        "{content}"
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["prompt_tokens"], 4);

    for path in ["healthz", "readyz"] {
        let url = base.replace("v1", path);
        assert_eq!(http().get(url).send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn the_same_request_has_the_same_answer() {
    let base = start(&["--jitter-ms", "5"]).await;
    let body = json!({
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "ROAS of advertiser 5"}]}],
        "tools": [{"type": "function", "function": {"name": "ads_metrics_mock", "parameters": {"properties": {"step_id": {}}}}}],
    });
    let first = ask(&base, &body).await.text().await.unwrap();
    assert!(
        first.contains("call_") && first.contains("metrics_1"),
        "{first}"
    );
    assert_eq!(first, ask(&base, &body).await.text().await.unwrap());
}

#[tokio::test]
async fn bad_requests_get_errors_in_openais_form() {
    let base = start(&[]).await;
    let url = format!("{base}/chat/completions");
    let post = |body: &'static str| http().post(&url).body(body).send();
    for (response, status) in [
        (post("{").await.unwrap(), 400),
        (post(r#"{"messages": []}"#).await.unwrap(), 400),
        (
            post(r#"{"model": "m", "messages": []}"#).await.unwrap(),
            400,
        ),
        (
            ask(&base, &request("x [[sim: {\"statsu\": 1}]]")).await,
            400,
        ),
        (http().get(&url).send().await.unwrap(), 405),
        (
            http().get(format!("{base}/nope")).send().await.unwrap(),
            404,
        ),
    ] {
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let body: Value = response.json().await.unwrap();
        assert!(body["error"]["message"].is_string(), "{body}");
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn a_streamed_answer_says_the_same_as_the_whole_one() {
    let base = start(&[]).await;
    let mut body = request("Write me a poem");
    let whole: Value = ask(&base, &body).await.json().await.unwrap();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let response = ask(&base, &body).await;
    assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
    let text = response.text().await.unwrap();
    let events: Vec<_> = text.split_terminator("\n\n").collect();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(*done, "data: [DONE]");
    let chunk =
        |e: &&str| serde_json::from_str::<Value>(e.strip_prefix("data: ").unwrap()).unwrap();
    let chunks: Vec<Value> = events.iter().map(chunk).collect();
    let content: String = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], content);
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
}

#[tokio::test]
async fn the_header_scripts_an_answer() {
    let base = start(&[]).await;
    let script =
        r#"{"status": 503, "retry_after": "soon", "error": {"message": "no", "code": "x"}}"#;
    let response = http()
        .post(format!("{base}/chat/completions"))
        .header("x-sim-script", script)
        .json(&request("hi"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "soon");
    let body: Value = response.json().await.unwrap();
    let expected = json!({"message": "no", "type": "server_error", "param": null, "code": "x"});
    assert_eq!(body["error"], expected);
}

#[tokio::test]
async fn a_script_file_applies_and_latency_is_waited_for() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rules = r#"[{"match": "slow", "answer": {"latency_ms": 50, "content": "late"}}]"#;
    std::fs::write(file.path(), rules).unwrap();
    let base = start(&["--script", file.path().to_str().unwrap()]).await;
    let begun = Instant::now();
    let answer: Value = ask(&base, &request("slow")).await.json().await.unwrap();
    assert!(begun.elapsed().as_millis() >= 50);
    assert_eq!(answer["choices"][0]["message"]["content"], "late");
}

#[tokio::test]
async fn it_ends_when_told_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options::try_parse_from(["agenthub-llm-sim"]).unwrap();
    let simulator = Simulator::new(&options).unwrap();
    let ended = serve(listener, simulator, std::future::ready(())).await;
    assert!(ended.is_ok());
}
