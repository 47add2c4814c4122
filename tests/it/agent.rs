//! Agents: turns of questions and calls, through real processes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::forwarder::Forwarder;
use crate::support::sse::{Frame, ids, kinds};
use crate::support::stack::{Stack, allowing, shared};
use crate::support::web::{Reply, Web};

const ADS: &str = "Get ROAS for advertiser 123 over 7 days";

/// What a takeover waits for, made short.
const QUICK: [(&str, &str); 4] = [
    ("AGENTHUB_LEASE_MS", "2000"),
    ("AGENTHUB_OUTBOX_RETRY_MS", "500"),
    ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
    (
        "AGENTHUB_KAFKA_PROPERTIES",
        "session.timeout.ms=2000,heartbeat.interval.ms=300",
    ),
];

/// A goal to which the model answers what `answers` say, one after the other, and `asked too often` from
/// then on: so the last answer tells how often it was asked.
fn scripted(answers: &Value) -> String {
    let script = json!({
        "key": uuid::Uuid::new_v4(), "sequence": answers, "content": "asked too often"
    });
    format!("Do it [[sim: {script}]]")
}

fn ads() -> Value {
    json!({ "name": "ads_metrics_mock", "arguments": { "advertiser_id": "123", "metric": "roas" } })
}

fn fetch(web: &Web, path: &str) -> Value {
    json!({ "name": "http_fetch", "arguments": { "url": web.url(path) } })
}

fn calls(calls: &[Value]) -> Value {
    json!({ "tool_calls": calls })
}

/// `id status` of each step.
fn steps(run: &Value) -> Vec<String> {
    let steps = run["steps"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    steps
        .map(|step| format!("{} {}", text(&step["id"]), text(&step["status"])))
        .collect()
}

fn model_calls(run: &Value) -> usize {
    run["model_calls"].as_array().unwrap().len()
}

/// What the deltas of a call told, piece after piece.
fn written(frames: &[Frame], call: u64) -> Vec<String> {
    let deltas = frames
        .iter()
        .filter(|f| f.event.as_deref() == Some("llm.delta") && f.data["data"]["call"] == call);
    let pieces: Vec<&Value> = deltas.map(|f| &f.data["data"]).collect();
    for (number, piece) in (1..).zip(&pieces) {
        assert_eq!(piece["piece"], number, "{pieces:?}");
    }
    let text = |piece: &&Value| piece["text"].as_str().unwrap().to_owned();
    pieces.iter().map(text).collect()
}

/// The frames that have a place in the history, checked: each id once, in order, and the end last.
fn history(frames: &[Frame]) -> Vec<&str> {
    let seq = |id: &&str| id.rsplit('-').next().unwrap().parse::<u64>().unwrap();
    let seqs: Vec<u64> = ids(frames).iter().map(seq).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    let told: Vec<&str> = kinds(frames);
    let told: Vec<&str> = told
        .into_iter()
        .filter(|kind| *kind != "llm.delta")
        .collect();
    assert_eq!(told.len(), seqs.len());
    let ends =
        |kind: &&&str| kind.starts_with("run.") && !["run.queued", "run.started"].contains(*kind);
    assert_eq!(told.iter().filter(ends).count(), 1, "{told:?}");
    assert!(told.last().iter().any(ends), "{told:?}");
    told
}

#[tokio::test]
async fn a_goal_is_reached_in_two_turns() {
    let stack = shared().await;
    let run = stack
        .submit_agent(&stack.session().await, ADS, &json!({}))
        .await;
    let mut follow = stack.follow(&format!("run_id={run}"), None).await;
    let frames = follow.rest().await;
    assert_eq!(
        history(&frames),
        [
            "run.queued",
            "plan.started",
            "plan.created",
            "run.started",
            "step.started",
            "step.completed",
            "plan.started",
            "run.succeeded",
        ]
    );
    let ended = stack.ended(&run).await;
    assert_eq!(ended["kind"], "agent");
    assert_eq!(steps(&ended), ["t1s1 succeeded"], "{ended}");
    assert_eq!(ended["steps"][0]["args"]["advertiser_id"], "123");
    assert_eq!(model_calls(&ended), 2);
    let answer = ended["result"]["answer"].as_str().unwrap();
    assert!(
        answer.contains("ads_metrics_mock") && answer.contains("roas"),
        "{answer}"
    );
    let end = frames.last().unwrap();
    assert_eq!(end.data["data"]["result"]["answer"], answer);
    assert!(ended["usage"]["cost_micro_usd"].as_u64().unwrap() > 0);
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn an_answer_without_calls_ends_the_run_at_once() {
    let stack = shared().await;
    let goal = scripted(&json!([{ "content": "Forty-two." }]));
    let run = stack
        .submit_agent(&stack.session().await, &goal, &json!({}))
        .await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(ended["result"], json!({ "answer": "Forty-two." }));
    assert_eq!(ended["steps"], json!([]));
}

#[tokio::test]
async fn what_the_model_writes_is_told_while_it_writes() {
    let stack = shared().await;
    let sentence = "The campaign did better than in the week before, and cost less. ";
    let secret = "password: \"a phrase that nobody may see\" and mail to someone@example.org. ";
    let text = format!("{}{secret}{}", sentence.repeat(8), sentence.repeat(8));
    let goal = scripted(&json!([calls(&[ads()]), { "content": text, "chunk_ms": 25 }]));
    let run = stack
        .submit_agent(&stack.session().await, &goal, &json!({}))
        .await;
    let mut follow = stack.follow(&format!("run_id={run}"), None).await;
    let frames = follow.rest().await;
    history(&frames);
    let ended = stack.ended(&run).await;
    let pieces = written(&frames, 2);
    assert!(pieces.len() >= 3, "{pieces:?}");
    // What is left of the text when it is masked as a whole, and nothing else.
    assert_eq!(ended["result"]["answer"], pieces.concat().trim());
    assert!(pieces.concat().contains("[masked:field]"));
    for frame in &frames {
        for hidden in ["nobody may see", "someone@example.org"] {
            assert!(!frame.text.contains(hidden), "{}", frame.text);
        }
    }
    let deltas = frames
        .iter()
        .filter(|f| f.event.as_deref() == Some("llm.delta"));
    for delta in deltas {
        assert_eq!((&delta.id, &delta.data["run_id"]), (&None, &json!(run)));
    }
    // A client that comes later has the whole story but what was told in passing.
    let again = stack.events(&run).await;
    assert_eq!(ids(&again), ids(&frames));
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn calls_of_one_turn_run_at_the_same_time() {
    let stack = allowing().await;
    let web = Web::start(|_, _| Reply::Meeting("<title>Met</title>")).await;
    let turn = calls(&[fetch(&web, "/a"), fetch(&web, "/b")]);
    let goal = scripted(&json!([turn, { "content": "both" }]));
    let run = stack
        .submit_agent(&stack.session().await, &goal, &json!({}))
        .await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["result"]["answer"], "both", "{ended}");
    assert_eq!(steps(&ended), ["t1s1 succeeded", "t1s2 succeeded"]);
    assert_eq!((web.hits("/a"), web.hits("/b")), (1, 1));
}

#[tokio::test]
async fn a_failed_call_is_told_to_the_model_and_stops_no_other() {
    let stack = allowing().await;
    let web = Web::start(|path, _| match path {
        "/gone" => Reply::Status(404),
        _ => Reply::Page("<title>A page</title><p>Here it is.</p>"),
    })
    .await;
    let turn = calls(&[
        fetch(&web, "/gone"),
        json!({ "name": "no_such_tool", "arguments": {} }),
        json!({ "name": "http_fetch", "arguments": "{broken" }),
        json!({ "name": "ads_metrics_mock", "arguments": { "advertiser": 1 } }),
        json!({ "name": "summarize", "arguments": { "text": "x" } }),
        fetch(&web, "/page"),
    ]);
    // Then the simulator's rules answer: they repeat what they are shown.
    let goal = format!(
        "Do it [[sim: {}]]",
        json!({ "key": uuid::Uuid::new_v4(), "sequence": [turn] })
    );
    let more = json!({ "tools_allowed": ["http_fetch", "ads_metrics_mock"] });
    let run = stack
        .submit_agent(&stack.session().await, &goal, &more)
        .await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let code = |index: usize| ended["steps"][index]["error"]["code"].as_str();
    let codes: Vec<_> = (0..6).map(code).collect();
    assert_eq!(
        &codes[1..],
        [
            Some("unknown_tool"),
            Some("arguments_not_json"),
            Some("invalid_args"),
            Some("tool_not_allowed"),
            None
        ]
    );
    assert_eq!(steps(&ended)[0], "t1s1 failed");
    assert_eq!(steps(&ended)[5], "t1s6 succeeded");
    assert_eq!(ended["steps"][1]["attempts"], 0);
    let answer = ended["result"]["answer"].as_str().unwrap();
    for told in [
        codes[0].unwrap(),
        "unknown_tool",
        "arguments_not_json",
        "invalid_args",
        "Here it is",
    ] {
        assert!(answer.contains(told), "{told} in {answer}");
    }
    assert_eq!(model_calls(&ended), 2);
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn wrong_calls_alone_go_back_to_the_model_at_once() {
    let stack = shared().await;
    let nonsense = calls(&[json!({ "name": "no_such_tool" })]);
    let goal = scripted(&json!([
        nonsense, { "content": "" }, nonsense, calls(&[ads()]), { "content": "after all" }
    ]));
    let run = stack
        .submit_agent(&stack.session().await, &goal, &json!({}))
        .await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["result"]["answer"], "after all", "{ended}");
    assert_eq!(
        steps(&ended),
        ["t1s1 failed", "t3s1 failed", "t4s1 succeeded"]
    );
    assert_eq!(model_calls(&ended), 5);
    let events = stack.events(&run).await;
    let turns = events
        .iter()
        .filter_map(|e| e.data["data"]["turn"].as_u64());
    // Begun, three times called, begun again after the fourth.
    assert_eq!(turns.collect::<Vec<_>>(), [1, 1, 3, 4, 5]);
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn turns_and_calls_have_an_end() {
    let stack = Stack::start(&[
        ("AGENTHUB_MAX_TURNS", "3"),
        ("AGENTHUB_LLM_STREAM", "false"),
    ])
    .await;
    let session = stack.session().await;
    // It calls whatever it is told.
    let goal = format!("Do it [[sim: {}]]", calls(&[ads()]));
    let run = stack.submit_agent(&session, &goal, &json!({})).await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["error"]["code"], "max_turns_exceeded", "{ended}");
    assert_eq!(model_calls(&ended), 3);
    assert_eq!(
        steps(&ended),
        ["t1s1 succeeded", "t2s1 succeeded", "t3s1 skipped"]
    );
    stack.assert_settled(&run).await;

    let turn = calls(&[ads(), ads(), ads()]);
    let goal = scripted(&json!([turn, turn, { "content": "enough" }]));
    let run = stack
        .submit_agent(&session, &goal, &json!({ "max_steps": 2 }))
        .await;
    let mut follow = stack.follow(&format!("run_id={run}"), None).await;
    let frames = follow.rest().await;
    assert_eq!(
        history(&frames).len(),
        frames.len(),
        "nothing is told in passing"
    );
    let ended = stack.ended(&run).await;
    assert_eq!(ended["result"]["answer"], "enough", "{ended}");
    let succeeded = steps(&ended)
        .iter()
        .filter(|s| s.ends_with("succeeded"))
        .count();
    assert_eq!((succeeded, steps(&ended).len()), (2, 6));
    assert_eq!(ended["steps"][2]["error"]["code"], "too_many_steps");
}

#[tokio::test]
async fn the_budget_ends_a_run_between_two_turns() {
    let stack = shared().await;
    let mut turn = calls(&[ads()]);
    turn["usage"] = json!({ "prompt_tokens": 20_000, "completion_tokens": 100 });
    let goal = scripted(&json!([turn]));
    let more = json!({ "max_cost_usd": 0.005 });
    let run = stack
        .submit_agent(&stack.session().await, &goal, &more)
        .await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["error"]["code"], "budget_exceeded", "{ended}");
    assert_eq!(steps(&ended), ["t1s1 succeeded"]);
    assert_eq!(model_calls(&ended), 1);
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn a_cancel_during_a_question() {
    let stack = shared().await;
    let session = stack.session().await;
    for (mode, pace, answers) in [("graceful", 100, 2), ("force", 500, 1)] {
        let text = "An answer that takes its time. ".repeat(32);
        let second = json!({ "content": text, "chunk_ms": pace });
        let goal = scripted(&json!([calls(&[ads()]), second]));
        let run = stack.submit_agent(&session, &goal, &json!({})).await;
        let mut follow = stack.follow(&format!("run_id={run}"), None).await;
        // `plan.started` is told before the question is asked; this, while it is answered.
        follow.until("llm.delta").await;
        assert!(stack.cancel(&run, mode).await.0.is_success());
        assert_eq!(kinds(&follow.rest().await).last(), Some(&"run.cancelled"));
        let ended = stack.ended(&run).await;
        assert_eq!(ended["status"], "cancelled", "{ended}");
        assert_eq!(model_calls(&ended), answers, "{mode}: {ended}");
        stack.assert_settled(&run).await;
    }
}

#[tokio::test]
async fn a_cancel_during_a_call() {
    let stack = allowing().await;
    let web = Web::start(|path, _| match path {
        "/held" => Reply::Held("<title>Held</title>"),
        _ => Reply::Never,
    })
    .await;
    let session = stack.session().await;
    for (mode, path, status) in [
        ("graceful", "/held", "succeeded"),
        ("force", "/never", "failed"),
    ] {
        let goal = scripted(&json!([calls(&[fetch(&web, path)])]));
        let run = stack.submit_agent(&session, &goal, &json!({})).await;
        web.until_hit(path, 1).await;
        assert!(stack.cancel(&run, mode).await.0.is_success());
        web.release();
        let ended = stack.ended(&run).await;
        assert_eq!(ended["status"], "cancelled", "{ended}");
        assert_eq!(steps(&ended), [format!("t1s1 {status}")]);
        assert_eq!(model_calls(&ended), 1, "nothing is asked after it");
        stack.assert_settled(&run).await;
    }
}

#[tokio::test]
async fn workers_that_are_killed_ask_and_call_nothing_again() {
    let mut stack = Stack::bare(&QUICK).await;
    stack.spawn_simulator(&[]).await;
    let simulator = stack.processes["llm-sim"].addr.clone();
    let model = Forwarder::to(simulator).await;
    stack.set("OPENAI_BASE_URL", &format!("http://{}/v1", model.addr));
    let web = Web::start(|path, nth| match (path, nth) {
        ("/hangs", 1) => Reply::Never,
        _ => Reply::Page("<title>A page</title>"),
    })
    .await;
    stack.spawn_all(&["api", "planner"]).await;
    let goal = scripted(&json!([
        calls(&[fetch(&web, "/first")]),
        calls(&[fetch(&web, "/hangs"), fetch(&web, "/beside")]),
        { "latency_ms": 60_000 },
        { "content": "the fourth" },
    ]));
    let run = stack
        .submit_agent(&stack.session().await, &goal, &json!({}))
        .await;

    // The planner is killed when its answer is recorded, and nobody has taken it up.
    eventually("the answer is recorded", async || {
        let (_, run) = stack.get(&format!("/v1/runs/{run}")).await;
        (model_calls(&run) == 1).then_some(())
    })
    .await;
    stack.processes.get_mut("planner").unwrap().kill();
    stack.spawn_all(&["executor", "planner-2"]).await;

    // The executor is killed in the middle of a call, beside one that is done.
    web.until_hit("/hangs", 1).await;
    eventually("the call beside it is recorded", async || {
        let (_, run) = stack.get(&format!("/v1/runs/{run}")).await;
        steps(&run)
            .contains(&"t2s2 succeeded".to_owned())
            .then_some(())
    })
    .await;
    let before = model.received();
    stack.processes.get_mut("executor").unwrap().kill();
    stack.spawn_all(&["executor-2"]).await;

    // The planner is killed while it asks for the third time: that question was not answered.
    eventually("the third question is asked", async || {
        (web.hits("/hangs") == 2 && model.received() > before).then_some(())
    })
    .await;
    stack.processes.get_mut("planner-2").unwrap().kill();
    stack.spawn_all(&["planner-3"]).await;

    let frames = stack.events(&run).await;
    history(&frames);
    let ended = stack.ended(&run).await;
    assert_eq!(ended["result"]["answer"], "the fourth", "{ended}");
    assert_eq!(model_calls(&ended), 3);
    for (path, hits) in [("/first", 1), ("/hangs", 2), ("/beside", 1)] {
        assert_eq!(web.hits(path), hits, "{path}");
    }
    let attempts = ended["steps"].as_array().unwrap().iter();
    let attempts: Vec<_> = attempts.map(|s| s["attempts"].clone()).collect();
    assert_eq!(attempts, [1, 2, 1], "{ended}");
    stack.assert_settled(&run).await;
    assert_eq!(stack.terminal_events_on_kafka(&run).await.len(), 1);
}

#[tokio::test]
async fn the_command_line_runs_agents() {
    let mut stack = Stack::start(&[]).await;
    let url = stack.url("");
    let key = stack.api_key.clone();
    stack.set("AGENTHUB_URL", &url);
    stack.set("AGENTHUB_API_KEY", &key);
    let told = tokio::time::timeout(
        Duration::from_mins(1),
        stack.command(&["run", "--mode", "agent", ADS]),
    );
    let told = told.await.unwrap();
    for line in [
        "· turn 1 with",
        "· 1 call:",
        "t1s1 ads_metrics_mock",
        "· turn 2 with",
        "Results, put together",
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
}

/// Retries a run that did not succeed; the new one when it has ended.
async fn retried(stack: &Stack, run: &str) -> Value {
    let (status, accepted) = stack
        .post(&format!("/v1/runs/{run}/retry"), &json!({}))
        .await;
    assert_eq!(status, reqwest::StatusCode::ACCEPTED, "{accepted}");
    let new = accepted["run_id"].as_str().unwrap();
    let ended = stack.ended(new).await;
    history(&stack.events(new).await);
    assert_eq!(ended["retry_of"], run, "{ended}");
    stack.assert_settled(new).await;
    ended
}

#[tokio::test]
async fn a_retry_in_the_middle_of_calls_makes_those_that_are_missing() {
    let stack = allowing().await;
    let web = Web::start(|path, nth| match (path, nth) {
        ("/hangs", 1) => Reply::Never,
        ("/fails", _) => Reply::Status(404),
        _ => Reply::Page("<title>A page</title>"),
    })
    .await;
    let session = stack.session().await;
    let goal = scripted(&json!([
        calls(&[fetch(&web, "/first")]),
        calls(&[fetch(&web, "/hangs"), fetch(&web, "/fails")]),
        { "content": "the third" },
    ]));
    let run = stack.submit_agent(&session, &goal, &json!({})).await;
    web.until_hit("/hangs", 1).await;
    eventually("the call beside it has failed", async || {
        let (_, run) = stack.get(&format!("/v1/runs/{run}")).await;
        steps(&run)
            .contains(&"t2s2 failed".to_owned())
            .then_some(())
    })
    .await;
    assert!(stack.cancel(&run, "force").await.0.is_success());
    assert_eq!(stack.ended(&run).await["status"], "cancelled");

    let ended = retried(stack, &run).await;
    // Two answers were taken over, and the model was asked for the third alone.
    assert_eq!(ended["result"]["answer"], "the third", "{ended}");
    assert_eq!(model_calls(&ended), 3, "{ended}");
    assert_eq!(
        steps(&ended),
        ["t1s1 succeeded", "t2s1 succeeded", "t2s2 failed"],
        "{ended}"
    );
    for (path, hits) in [("/first", 1), ("/hangs", 2), ("/fails", 1)] {
        assert_eq!(web.hits(path), hits, "{path}");
    }
}

#[tokio::test]
async fn a_retry_after_a_question_goes_on_from_its_answer_or_asks_it_alone() {
    let stack = allowing().await;
    let web = Web::start(|_, _| Reply::Page("<title>A page</title>")).await;
    let session = stack.session().await;
    // A graceful cancel records the answer that is under way; a forced one drops it.
    for (mode, pace, answer) in [("graceful", 100, None), ("force", 500, Some("the third"))] {
        let text = "An answer that takes its time. ".repeat(32);
        let path = format!("/{mode}");
        let goal = scripted(&json!([
            calls(&[fetch(&web, &path)]),
            { "content": text, "chunk_ms": pace },
            { "content": "the third" },
        ]));
        let run = stack.submit_agent(&session, &goal, &json!({})).await;
        let mut follow = stack.follow(&format!("run_id={run}"), None).await;
        follow.until("llm.delta").await;
        assert!(stack.cancel(&run, mode).await.0.is_success());
        assert_eq!(stack.ended(&run).await["status"], "cancelled");
        let ended = retried(stack, &run).await;
        let expected = answer.unwrap_or(text.trim());
        assert_eq!(ended["result"]["answer"], expected, "{mode}: {ended}");
        assert_eq!(model_calls(&ended), 2, "{mode}: {ended}");
        assert_eq!(steps(&ended), ["t1s1 succeeded"], "{ended}");
        assert_eq!(web.hits(&path), 1, "{mode}");
    }
}
