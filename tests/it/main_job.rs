//! The main job: HTTP → Kafka → planner → Kafka → executor → tools → Redis → SSE.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::sse::{Frame, kinds};
use crate::support::stack::{ALLOWED_PAGE, Stack, allowing, body, shared};
use crate::support::web::{Reply, Web};

const ADS: &str = "Get ROAS for advertiser 123 over 7 days";

/// A goal with a script for the simulator.
fn scripted(goal: &str, mut script: Value) -> String {
    script["key"] = json!(uuid::Uuid::new_v4());
    format!("{goal} [[sim: {script}]]")
}

fn fetch(id: &str, url: &str) -> Value {
    json!({ "id": id, "tool": "http_fetch", "args": { "url": url } })
}

fn find<'a>(events: &'a [Frame], kind: &str) -> &'a Value {
    let event = events.iter().find(|e| e.event.as_deref() == Some(kind));
    &event
        .unwrap_or_else(|| panic!("no {kind} in {events:?}"))
        .data
}

fn step<'a>(run: &'a Value, id: &str) -> &'a Value {
    let steps = run["steps"].as_array().unwrap();
    steps.iter().find(|step| step["id"] == id).unwrap()
}

#[tokio::test]
async fn a_goal_is_planned_executed_and_told() {
    let stack = shared().await;
    let session = stack.session().await;
    let run = stack.submit(&session, ADS).await;
    let events = stack.events(&run).await;
    assert_eq!(
        kinds(&events),
        [
            "run.queued",
            "plan.started",
            "plan.created",
            "run.started",
            "step.started",
            "step.completed",
            "run.succeeded"
        ]
    );
    for pair in events.windows(2) {
        assert_eq!(pair[1].data["prev"], pair[0].data["id"]);
        assert_eq!(pair[1].data["id"], pair[1].id.clone().unwrap());
    }
    let id = run;
    let run = stack.ended(&id).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["steps"].as_array().map(Vec::len), Some(1), "{run}");
    let output = &run["steps"][0]["output"];
    assert_eq!(output["metric"], "roas", "{run}");
    assert_eq!(output["value"], json!(5.5627), "{run}");

    // What it used is counted, for the run and for its session alike.
    let (_, session) = stack.get(&format!("/v1/sessions/{session}")).await;
    for usage in [&run["usage"], &session["usage"]] {
        for counted in ["input_tokens", "output_tokens", "cost_micro_usd"] {
            assert!(usage[counted].as_u64() > Some(0), "{counted}: {usage}");
        }
    }
    assert_eq!(run["usage"], session["usage"]);
    stack.assert_settled(&id).await;
}

#[tokio::test]
async fn documents_are_searched_and_summarised() {
    let stack = shared().await;
    let folder = tempfile::tempdir().unwrap();
    let text = "# Idempotency at Acme\n\nA repeated request with the same idempotency key starts \
        nothing twice. The badger keeps every key for a day.\n";
    std::fs::write(folder.path().join("idempotency.md"), text).unwrap();
    std::fs::write(folder.path().join("lunch.md"), "# Lunch\n\nSoup.\n").unwrap();
    let folder = folder.path().to_str().unwrap();
    let added = stack
        .command(&["docs", "add", "--tenant", "acme", "--json", folder])
        .await;
    assert!(added.contains("idempotency.md"), "{added}");

    let goal = "Find what the docs say about idempotency and summarise it";
    let run = stack.submit(&stack.session().await, goal).await;
    let run = stack.ended(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    let results = &run["steps"][0]["output"]["results"];
    assert_eq!(results[0]["title"], "Idempotency at Acme", "{run}");
    let summary = run["steps"][1]["output"]["summary"].as_str().unwrap();
    assert!(summary.contains("idempotency key"), "{run}");
    // The summary's model call is counted besides the plan's.
    let planned = run["model_calls"][0]["input_tokens"].as_u64();
    assert!(run["usage"]["input_tokens"].as_u64() > planned, "{run}");
}

#[tokio::test]
async fn a_local_page_is_refused_by_default() {
    let stack = shared().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = Web::on(listener, |_, _| Reply::Page("<title>Secret</title>"));
    let goal = format!("Fetch {} and tell me its title", web.url("/page"));
    let run = stack.submit(&stack.session().await, &goal).await;
    let events = stack.events(&run).await;
    let failed = find(&events, "step.failed");
    let reason = failed["data"]["code"].as_str().unwrap();
    assert!(
        ["address_not_global", "port_not_allowed"].contains(&reason),
        "{failed}"
    );
    assert!(!kinds(&events).contains(&"step.retrying"));
    let ended = find(&events, "run.failed");
    assert_eq!(ended["data"]["code"], reason, "{ended}");
    let message = ended["data"]["message"].as_str().unwrap();
    assert!(message.contains("may not be fetched"), "{ended}");
    assert_eq!(web.hits("/page"), 0);
}

#[tokio::test]
async fn a_local_page_that_the_operator_allows_is_fetched() {
    let stack = allowing().await;
    let listener = ALLOWED_PAGE.try_clone().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let web = Web::on(listener, |_, _| {
        Reply::Page("<title>Open day</title><p>Come in.")
    });
    let goal = format!("Fetch {} and tell me its title", web.url("/page"));
    let run = stack.submit(&stack.session().await, &goal).await;
    let run = stack.ended(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["steps"][0]["output"]["title"], "Open day", "{run}");
    assert_eq!(web.hits("/page"), 1);
}

#[tokio::test]
async fn a_plan_is_made_and_then_executed() {
    let stack = shared().await;
    let session = stack.session().await;
    let request = json!({ "session_id": session, "goal": ADS });
    let (status, planning) = stack.post("/v1/plan", &request).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{planning}");
    let planning = planning["run_id"].as_str().unwrap().to_owned();
    let planned = stack.ended(&planning).await;
    assert_eq!(planned["status"], "succeeded", "{planned}");
    assert_eq!(planned["kind"], "plan");
    assert_eq!(planned["steps"][0]["status"], "skipped", "{planned}");
    assert_eq!(planned["result"], Value::Null);

    let mut plan = planned["plan"].clone();
    plan.as_object_mut().unwrap().remove("answer");
    let given = stack.execute(&session, &plan).await;
    let request = json!({ "session_id": session, "plan_id": planning });
    let (status, named) = stack.post("/v1/execute", &request).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{named}");
    for run in [given.as_str(), named["run_id"].as_str().unwrap()] {
        let run = stack.ended(run).await;
        assert_eq!(run["status"], "succeeded", "{run}");
        assert_eq!(run["steps"][0]["output"]["value"], json!(5.5627), "{run}");
        assert_eq!(run["model_calls"], json!([]));
    }
    let other = stack.session().await;
    let request = json!({ "session_id": other, "plan_id": planning });
    let (status, _) = stack.post("/v1/execute", &request).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn steps_run_at_the_same_time_and_build_on_each_other() {
    let stack = allowing().await;
    let web = Web::start(|path, _| match path {
        "/a" => Reply::Meeting("<title>advertiser-7</title>"),
        "/b" => Reply::Meeting("<title>30</title>"),
        _ => Reply::Json(r#"{"last": true}"#),
    })
    .await;
    let plan = json!({ "steps": [
        { "id": "last", "tool": "http_fetch", "args": { "url": web.url("/last") }, "depends_on": ["ads"] },
        { "id": "ads", "tool": "ads_metrics_mock", "depends_on": ["b"],
          "args": { "advertiser_id": "${steps.a.output.title}", "metric": "roas" } },
        fetch("a", &web.url("/a")),
        fetch("b", &web.url("/b")),
    ] });
    let run = stack.execute(&stack.session().await, &plan).await;
    let events = stack.events(&run).await;
    let at = |kind: &str, step: &str| {
        let found = events
            .iter()
            .position(|e| e.event.as_deref() == Some(kind) && e.data["step_id"] == step);
        found.unwrap_or_else(|| panic!("{kind} of {step} in {events:?}"))
    };
    for (before, after) in [("a", "ads"), ("b", "ads"), ("ads", "last")] {
        assert!(at("step.completed", before) < at("step.started", after));
    }
    let started = &events[at("step.started", "ads")].data["data"];
    assert_eq!(started["args"]["advertiser_id"], "advertiser-7");
    let run = stack.ended(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(step(&run, "ads")["output"]["advertiser_id"], "advertiser-7");
    let outputs = run["result"]["outputs"].as_object().unwrap();
    assert_eq!(outputs.keys().collect::<Vec<_>>(), ["last"], "{run}");
}

#[tokio::test]
async fn a_client_may_wait_for_the_outcome() {
    let stack = allowing().await;
    let web = Web::start(|_, _| Reply::Never).await;
    let waiting = async |path: &str, seconds: u32, request: Value| {
        let request = stack.request(Method::POST, path).json(&request);
        let request = request.header("Prefer", format!("wait={seconds}"));
        let response = request.send().await.unwrap();
        let applied = response.headers()["preference-applied"].clone();
        assert_eq!(applied, format!("wait={seconds}"));
        body(response).await
    };
    let session = stack.session().await;
    let request = json!({ "session_id": session, "goal": ADS });
    let (status, run) = waiting("/v1/runs", 30, request).await;
    assert_eq!(status, StatusCode::OK, "{run}");
    assert_eq!(run["status"], "succeeded", "{run}");
    let outputs = run["result"]["outputs"].as_object().unwrap();
    let output = outputs.values().next().unwrap();
    assert_eq!(output["value"], json!(5.5627), "{run}");

    let plan = json!({ "steps": [fetch("s", &web.url("/slow"))] });
    let request = json!({ "session_id": session, "plan": plan });
    let began = Instant::now();
    let (status, run) = waiting("/v1/execute", 1, request).await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(status, StatusCode::ACCEPTED, "{run}");
    let run = run["run_id"].as_str().unwrap();
    stack.cancel(run, "force").await;
    assert_eq!(stack.ended(run).await["status"], "cancelled");
}

#[tokio::test]
async fn a_repeated_request_is_answered_as_before() {
    let stack = shared().await;
    let session = stack.session().await;
    let request = json!({ "session_id": session, "goal": ADS });
    let key = uuid::Uuid::new_v4().to_string();
    let send = async |key: &str| {
        let sent = stack.request(Method::POST, "/v1/runs").json(&request);
        let response = sent.header("Idempotency-Key", key).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let header = |name: &str| response.headers().get(name).cloned();
        let headers = (header("location"), header("idempotency-replayed"));
        (headers, response.bytes().await.unwrap())
    };
    let ((location, replayed), first) = send(&key).await;
    assert!(location.is_some() && replayed.is_none());
    // Quoted, as the IETF's draft has it, it is the same key.
    let ((again, replayed), second) = send(&format!("\"{key}\"")).await;
    assert_eq!(replayed.unwrap(), "true");
    assert_eq!((again, second), (location, first.clone()));
    let run: Value = serde_json::from_slice(&first).unwrap();
    stack.ended(run["run_id"].as_str().unwrap()).await;
    // Also when the run has ended meanwhile.
    assert_eq!(send(&key).await.1, first);
    let (_, runs) = stack.get(&format!("/v1/runs?session_id={session}")).await;
    assert_eq!(runs["data"].as_array().unwrap().len(), 1, "{runs}");
}

#[tokio::test]
async fn runs_are_listed_by_session_and_status_page_by_page() {
    let stack = allowing().await;
    let session = stack.session().await;
    let web = Web::start(|_, _| Reply::Status(404)).await;
    let mut all = Vec::new();
    for n in 0..5 {
        let plan = match n {
            2 => json!({ "steps": [fetch("s", &web.url("/no"))] }),
            _ => {
                json!({ "steps": [{ "id": "s", "tool": "ads_metrics_mock", "args": { "advertiser_id": "1" } }] })
            }
        };
        all.push(stack.execute(&session, &plan).await);
    }
    for run in &all {
        stack.ended(run).await;
    }
    all.reverse(); // the newest first
    let list = async |query: &str| {
        let (status, page) = stack.get(&format!("/v1/runs?{query}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let runs = page["data"].as_array().unwrap();
        let ids = runs
            .iter()
            .map(|run| run["run_id"].as_str().unwrap().to_owned());
        let next = page["next_cursor"].as_str().map(str::to_owned);
        (ids.collect::<Vec<_>>(), next)
    };
    let of_session = format!("session_id={session}");
    assert_eq!(list(&of_session).await, (all.clone(), None));
    let failed = list(&format!("{of_session}&status=failed")).await.0;
    assert_eq!(failed, [all[2].clone()]);
    let (mut paged, mut query) = (Vec::new(), format!("{of_session}&limit=2"));
    loop {
        let (ids, next) = list(&query).await;
        assert!(ids.len() <= 2);
        paged.extend(ids);
        match next {
            Some(cursor) => query = format!("{of_session}&limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(paged, all);
    let labelled = json!({
        "session_id": session, "goal": ADS, "mode": "plan_execute", "metadata": { "team": "search" },
    });
    let (_, run) = stack.post("/v1/runs", &labelled).await;
    let of_team = list("metadata=team:search").await.0;
    assert_eq!(of_team, [run["run_id"].as_str().unwrap()]);
    assert!(list("metadata=team:sales").await.0.is_empty());
    // A session of one's own has none of them.
    let none = list(&format!("session_id={}", stack.session().await)).await;
    assert_eq!(none, (Vec::new(), None));
}

#[tokio::test]
async fn a_queued_run_is_cancelled_at_once() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let run = stack.submit(&stack.session().await, ADS).await;
    let (status, cancelled) = stack.cancel(&run, "graceful").await;
    assert_eq!(status, StatusCode::OK, "{cancelled}");
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(
        kinds(&stack.events(&run).await),
        ["run.queued", "run.cancelled"]
    );
    // Asked for again, it has what it wants; what ended in another way cannot be cancelled.
    assert_eq!(stack.cancel(&run, "force").await.0, StatusCode::OK);
    // A worker that comes later finds nothing to do.
    stack.set("OPENAI_BASE_URL", "http://127.0.0.1:9/v1");
    stack.spawn_all(&["planner"]).await;
    let ended = "agenthub_acquires_total{stage=\"plan\",outcome=\"ended\"}";
    crate::support::eventually("the planner sees the command", async || {
        (stack.metric("planner", ended).await > 0.0).then_some(())
    })
    .await;
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn a_graceful_cancellation_lets_the_call_end() {
    let stack = allowing().await;
    let web = Web::start(|path, _| match path {
        "/slow" => Reply::Later(Duration::from_millis(500), "<title>Slow</title>"),
        _ => Reply::Page("<title>Next</title>"),
    })
    .await;
    let mut next = fetch("next", &web.url("/next"));
    next["depends_on"] = json!(["slow"]);
    let plan = json!({ "steps": [fetch("slow", &web.url("/slow")), next] });
    let run = stack.execute(&stack.session().await, &plan).await;
    web.until_hit("/slow", 1).await;
    let (status, cancelled) = stack.cancel(&run, "graceful").await;
    assert_eq!(status, StatusCode::ACCEPTED, "{cancelled}");
    assert_eq!(cancelled["status"], "cancelling");
    let ended = stack.ended(&run).await;
    assert_eq!(ended["status"], "cancelled", "{ended}");
    assert_eq!(step(&ended, "slow")["status"], "succeeded", "{ended}");
    assert_eq!(step(&ended, "slow")["output"]["title"], "Slow", "{ended}");
    assert_eq!(step(&ended, "next")["status"], "skipped", "{ended}");
    assert_eq!(web.hits("/next"), 0);
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn a_forced_cancellation_drops_the_call() {
    let stack = allowing().await;
    let web = Web::start(|_, _| Reply::Never).await;
    let plan = json!({ "steps": [fetch("s", &web.url("/never"))] });
    let run = stack.execute(&stack.session().await, &plan).await;
    web.until_hit("/never", 1).await;
    let began = Instant::now();
    let (status, cancelled) = stack.cancel(&run, "force").await;
    assert_eq!(status, StatusCode::ACCEPTED, "{cancelled}");
    let ended = stack.ended(&run).await;
    // Well before the call's own timeout.
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(ended["status"], "cancelled", "{ended}");
    assert_eq!(ended["steps"][0]["status"], "failed", "{ended}");
    assert_eq!(ended["steps"][0]["error"]["code"], "cancelled", "{ended}");
    assert_eq!(web.hits("/never"), 1);
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn a_run_ends_by_its_timeout() {
    let stack = allowing().await;
    let web = Web::start(|_, _| Reply::Never).await;
    let session = stack.session().await;
    let plan = json!({ "steps": [fetch("s", &web.url("/never"))] });
    let request = json!({ "session_id": session, "plan": plan, "timeout_s": 1 });
    let (_, executing) = stack.post("/v1/execute", &request).await;
    let goal = scripted(ADS, json!({ "latency_ms": 30_000 }));
    let request =
        json!({ "session_id": session, "goal": goal, "timeout_s": 1, "on_conflict": "parallel" });
    let (_, planning) = stack.post("/v1/runs", &request).await;
    for run in [executing, planning] {
        let run = run["run_id"].as_str().unwrap();
        let ended = stack.ended(run).await;
        assert_eq!(ended["status"], "timed_out", "{ended}");
        assert_eq!(ended["error"]["code"], "timed_out", "{ended}");
        for step in ended["steps"].as_array().unwrap() {
            assert_eq!(step["status"], "failed", "{ended}");
            assert_eq!(step["error"]["code"], "timed_out", "{ended}");
        }
        stack.assert_settled(run).await;
    }
}

#[tokio::test]
async fn a_wrong_plan_goes_back_to_the_model() {
    let stack = shared().await;
    let wrong = json!({ "tool_calls": [{ "name": "no_such_tool", "arguments": {} }] });
    let right = json!({ "tool_calls": [
        { "name": "ads_metrics_mock", "arguments": { "advertiser_id": "123", "metric": "roas" } }
    ] });
    let goal = scripted(ADS, json!({ "sequence": [wrong, right] }));
    let run = stack.submit(&stack.session().await, &goal).await;
    let run = stack.ended(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    let calls = run["model_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 2, "{run}");
    let counted: u64 = calls
        .iter()
        .filter_map(|c| c["input_tokens"].as_u64())
        .sum();
    assert_eq!(run["usage"]["input_tokens"], counted, "{run}");

    let goal = scripted(ADS, json!({ "tool_calls": wrong["tool_calls"] }));
    let run = stack.submit(&stack.session().await, &goal).await;
    let events = stack.events(&run).await;
    let failed = find(&events, "run.failed");
    assert_eq!(failed["data"]["code"], "plan_rejected", "{failed}");
    let message = failed["data"]["message"].as_str().unwrap();
    assert!(message.contains("no_such_tool"), "{failed}");
    let run = stack.ended(&run).await;
    assert_eq!(run["error"]["code"], "plan_rejected", "{run}");
    assert_eq!(run["model_calls"].as_array().unwrap().len(), 3, "{run}");
}

#[tokio::test]
async fn a_model_that_asks_for_patience_gets_it() {
    let stack = shared().await;
    let script = json!({ "sequence": [{ "status": 429, "retry_after": 1 }] });
    let began = Instant::now();
    let run = stack
        .submit(&stack.session().await, &scripted(ADS, script))
        .await;
    let run = stack.ended(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(run["model_calls"].as_array().unwrap().len(), 1, "{run}");
}

#[tokio::test]
async fn a_model_that_is_away_fails_the_run_with_a_code() {
    let stack = shared().await;
    let goal = scripted(ADS, json!({ "status": 500 }));
    let run = stack.submit(&stack.session().await, &goal).await;
    let events = stack.events(&run).await;
    let failed = find(&events, "run.failed");
    assert_eq!(failed["data"]["code"], "llm_unavailable", "{failed}");
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn a_step_that_fails_for_a_while_is_tried_again() {
    let stack = allowing().await;
    let web = Web::start(|_, nth| match nth {
        1 | 2 => Reply::Status(503),
        _ => Reply::Page("<title>Up</title>"),
    })
    .await;
    let plan = json!({ "steps": [fetch("s", &web.url("/page"))] });
    let run = stack.execute(&stack.session().await, &plan).await;
    let events = stack.events(&run).await;
    assert_eq!(
        kinds(&events),
        [
            "run.queued",
            "run.started",
            "step.started",
            "step.retrying",
            "step.started",
            "step.retrying",
            "step.started",
            "step.completed",
            "run.succeeded"
        ]
    );
    let attempts: Vec<_> = events
        .iter()
        .filter_map(|e| e.data["attempt"].as_u64())
        .collect();
    assert_eq!(attempts, [1, 1, 2, 2, 3, 3]);
    assert_eq!(
        find(&events, "step.retrying")["data"]["code"],
        "http_status"
    );
    assert_eq!(web.hits("/page"), 3);
    let run = stack.ended(&run).await;
    assert_eq!(run["steps"][0]["attempts"], 3, "{run}");
}
