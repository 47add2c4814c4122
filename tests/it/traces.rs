//! One trace from a request over Kafka through plan, model, steps, Redis and stream, as an OTLP endpoint
//! receives it; and what it costs when that endpoint does not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::eventually;
use crate::support::otlp::{CLIENT, CONSUMER, INTERNAL, Otlp, PRODUCER, Received, SERVER};
use crate::support::sse::Follow;
use crate::support::stack::Stack;
use crate::support::web::{Reply, Web};

/// The spans of a name; at least one.
fn named<'s>(spans: &'s [Received], name: &str) -> Vec<&'s Received> {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    let names: BTreeSet<_> = spans.iter().map(|span| &span.name).collect();
    assert!(!found.is_empty(), "no {name} in {names:?}");
    found
}

fn one<'s>(spans: &'s [Received], name: &str) -> &'s Received {
    let found = named(spans, name);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0]
}

#[tokio::test]
async fn a_run_with_a_retry_a_kept_result_and_a_worker_change_is_one_trace() {
    let otlp = Otlp::start().await;
    let web = Web::start(|path, nth| match (path, nth) {
        ("/flaky", 1) => Reply::Status(503),
        ("/held", _) => Reply::Held("<title>Held</title>"),
        _ => Reply::Page("<title>Page</title>"),
    })
    .await;
    let mut stack = Stack::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_CACHE_TTLS", "http_fetch=600"),
        ("AGENTHUB_LEASE_MS", "2000"),
        ("AGENTHUB_OUTBOX_RETRY_MS", "500"),
        (
            "AGENTHUB_KAFKA_PROPERTIES",
            "session.timeout.ms=2000,heartbeat.interval.ms=300",
        ),
    ])
    .await;
    let fetch = |id: &str, path: &str, after: &[&str]| {
        json!({ "id": id, "tool": "http_fetch", "args": { "url": web.url(path) },
            "depends_on": after, "timeout_s": 60 })
    };
    let session = stack.session().await;
    let plan = json!({ "steps": [fetch("s", "/kept", &[])] });
    let kept = stack.execute(&session, &plan).await;
    assert_eq!(stack.ended(&kept).await["status"], "succeeded");

    let canary = "canary.person@example.org";
    let plan = json!({ "steps": [
        fetch("s1", "/flaky", &[]),
        fetch("s2", "/kept", &[]),
        fetch("s3", "/held", &["s1", "s2"]),
    ] });
    let script = json!({ "content": plan.to_string() });
    let goal = format!("Look for {canary} [[sim: {script}]]");
    let request = json!({ "session_id": session, "goal": goal, "mode": "plan_execute",
        "metadata": { "who": canary } });
    let admitted = stack.request(Method::POST, "/v1/runs").json(&request);
    let admitted = admitted.send().await.unwrap();
    assert_eq!(admitted.status(), StatusCode::ACCEPTED);
    let trace = admitted.headers()["x-trace-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let run: serde_json::Value = admitted.json().await.unwrap();
    let run = run["run_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/stream?run_id={run}");
    let followed = stack.request(Method::GET, &path).send().await.unwrap();
    let follow_trace = followed.headers()["x-trace-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let mut follow = Follow::new(followed);

    // The executor dies in its third step; what it told before is with the endpoint.
    web.until_hit("/held", 1).await;
    eventually("the first steps are told", async || {
        let spans = otlp.trace(&trace);
        let tools = spans
            .iter()
            .filter(|span| span.name == "execute_tool http_fetch");
        (tools.count() == 3).then_some(())
    })
    .await;
    stack.processes.get_mut("executor").unwrap().kill();
    stack.spawn_all(&["executor-2"]).await;
    web.until_hit("/held", 2).await;
    web.release();
    assert_eq!(stack.ended(&run).await["status"], "succeeded");
    follow.rest().await;
    drop(follow);

    let resumed = |span: &&Received| span.get("agenthub.acquire") == "resumed";
    let spans = eventually("the whole trace is there", async || {
        let spans = otlp.trace(&trace);
        let there = spans.iter().any(|span| span.name == "stream run")
            && spans.iter().any(|span| resumed(&span));
        there.then_some(spans)
    })
    .await;

    // One root, and everything below it but for what the dead worker could not tell.
    let root = one(&spans, "POST /v1/runs");
    let roots: Vec<_> = spans.iter().filter(|s| s.parent.is_empty()).collect();
    assert_eq!(roots.len(), 1, "{roots:#?}");
    assert_eq!((&root.parent[..], root.kind), ("", SERVER));
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/runs"),
        ("http.response.status_code", "202"),
        ("agenthub.tenant", "acme"),
        ("agenthub.session_id", session.as_str()),
        ("agenthub.run_id", run.as_str()),
    ] {
        assert_eq!(root.get(name), value, "{name}: {root:#?}");
    }
    let key_id = root.get("agenthub.key_id");
    assert!(!key_id.is_empty(), "{root:#?}");
    let ids: BTreeMap<&str, &Received> = spans.iter().map(|s| (s.id.as_str(), s)).collect();
    let parent = |span: &Received| ids.get(span.parent.as_str()).copied();
    let resumed = spans.iter().find(resumed).unwrap();
    let orphans: Vec<_> = spans
        .iter()
        .filter(|span| !span.parent.is_empty() && parent(span).is_none())
        .collect();
    // Its work on the run, and the call that it was making.
    let lost: BTreeSet<_> = orphans.iter().map(|span| &span.parent).collect();
    assert!((1..=2).contains(&lost.len()), "{orphans:#?}");
    let dead = &orphans[0].instance;
    for span in &orphans {
        assert_eq!(
            (&span.service[..], &span.instance),
            ("agenthub-executor", dead)
        );
        assert_ne!(span.instance, resumed.instance);
    }

    // Over Kafka: what takes a message is linked to what sent it.
    let chat = one(&spans, "chat gpt-4o-mini");
    let planned = parent(chat).unwrap();
    assert_eq!(
        (&planned.name[..], planned.kind),
        ("process plan.commands", CONSUMER)
    );
    let sent = parent(planned).unwrap();
    assert_eq!(
        (&sent.name[..], sent.kind),
        ("send plan.commands", PRODUCER)
    );
    assert_eq!(sent.parent, root.id);
    assert_eq!(
        (&resumed.name[..], resumed.kind),
        ("process execute.commands", CONSUMER)
    );
    let handed = parent(resumed).unwrap();
    assert_eq!(handed.name, "send execute.commands");
    for (processed, sent) in [(planned, sent), (resumed, handed)] {
        assert_eq!(
            processed.links,
            [(trace.clone(), sent.id.clone())],
            "{processed:#?}"
        );
        for name in [
            "messaging.destination.name",
            "messaging.destination.partition.id",
            "messaging.kafka.offset",
            "messaging.message.id",
        ] {
            assert!(!sent.get(name).is_empty(), "{name}: {sent:#?}");
            assert_eq!(processed.get(name), sent.get(name), "{name}");
        }
        for (span, operation) in [(processed, "process"), (sent, "send")] {
            assert_eq!(span.get("messaging.system"), "kafka");
            assert_eq!(span.get("messaging.operation.type"), operation);
            assert_eq!(span.get("messaging.operation.name"), operation);
        }
        for (name, value) in [
            ("agenthub.tenant", "acme"),
            ("agenthub.key_id", key_id),
            ("agenthub.session_id", session.as_str()),
            ("agenthub.run_id", run.as_str()),
        ] {
            assert_eq!(processed.get(name), value, "{name}: {processed:#?}");
        }
    }
    for topic in ["agent.events", "audit.logs"] {
        for sent in named(&spans, &format!("send {topic}")) {
            assert_eq!(sent.kind, PRODUCER, "{sent:#?}");
        }
    }

    // The model.
    assert_eq!(chat.kind, CLIENT);
    for (name, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "gpt-4o-mini"),
        ("gen_ai.response.finish_reasons", "stop"),
        ("agenthub.run_id", run.as_str()),
        ("agenthub.attempt", "1"),
    ] {
        assert_eq!(chat.get(name), value, "{name}: {chat:#?}");
    }
    let told = stack.ended(&run).await;
    let number = |name: &str| chat.get(name).parse::<u64>().unwrap();
    assert_eq!(
        number("gen_ai.usage.input_tokens"),
        told["usage"]["input_tokens"].as_u64().unwrap(),
        "{told}"
    );
    assert!(number("gen_ai.usage.output_tokens") > 0);
    assert!(number("agenthub.cost_micro_usd") > 0);

    // The steps: attempts, where results came from, and who made them.
    let mut attempts: Vec<_> = named(&spans, "execute_tool http_fetch")
        .into_iter()
        .map(|span| {
            assert_eq!(span.kind, INTERNAL);
            assert_eq!(span.get("gen_ai.operation.name"), "execute_tool");
            assert_eq!(span.get("gen_ai.tool.name"), "http_fetch");
            assert_eq!(span.get("agenthub.key_id"), key_id);
            (
                span.get("agenthub.step_id"),
                span.get("agenthub.attempt"),
                span.get("agenthub.cache"),
                span.get("error.type"),
                span.instance == *dead,
            )
        })
        .collect();
    attempts.sort_unstable();
    let [first, second, cached, last] = attempts[..] else {
        panic!("{attempts:?}")
    };
    assert_eq!(first, ("s1", "1", "miss", "http_status", true));
    assert_eq!(second, ("s1", "2", "miss", "", true));
    assert_eq!(cached, ("s2", "1", "hit", "", true));
    assert_eq!((last.0, last.2, last.3, last.4), ("s3", "miss", "", false));
    let failed: Vec<_> = spans.iter().filter(|span| span.failed).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");

    // Redis decides within the work.
    let admit = one(&spans, "EVALSHA admit");
    assert_eq!((&admit.parent, admit.kind), (&root.id, CLIENT));
    assert_eq!(admit.get("db.system.name"), "redis");
    assert_eq!(admit.get("db.stored_procedure.name"), "admit");
    let acquires = named(&spans, "EVALSHA acquire");
    assert!(acquires.iter().any(|span| span.parent == resumed.id));
    assert!(named(&spans, "EVALSHA record").len() >= 2);

    // The stream belongs to the run's trace, and is linked to the request that asked for it.
    let stream = one(&spans, "stream run");
    assert_eq!(stream.parent, root.id);
    assert_eq!(stream.links.len(), 1);
    assert_eq!(stream.links[0].0, follow_trace);
    assert!(stream.get("agenthub.frames").parse::<u64>().unwrap() > 5);

    for span in otlp.spans() {
        let text = format!("{span:?}");
        assert!(!text.contains("canary"), "{text}");
        assert_eq!(span.schema, "https://opentelemetry.io/schemas/1.37.0");
    }
}

#[tokio::test]
async fn who_began_a_trace_decides_whether_it_is_kept() {
    let otlp = Otlp::start().await;
    let mut extra = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let all = Stack::start(&extra).await;
    extra.push(("OTEL_TRACES_SAMPLER_ARG", "0"));
    let none = Stack::start(&extra).await;
    for (number, stack) in (1_u128..).zip([&none, &all]) {
        let session = stack.session().await;
        let request = json!({ "session_id": session, "goal": "Get ROAS for advertiser 123",
            "mode": "plan_execute" });
        let traces = [0, 1].map(|sampled| format!("{:032x}", number * 16 + sampled));
        // The one that is not to be kept first: what of it would be sent is sent by the second's end.
        for (trace, flags) in traces.iter().zip(["00", "01"]) {
            let given = format!("00-{trace}-00f067aa0ba902b7-{flags}");
            let post = stack.request(Method::POST, "/v1/runs").json(&request);
            let admitted = post.header("traceparent", given).send().await.unwrap();
            assert_eq!(admitted.headers()["x-trace-id"].to_str().unwrap(), trace);
            let run: serde_json::Value = admitted.json().await.unwrap();
            let run = run["run_id"].as_str().unwrap();
            assert_eq!(stack.ended(run).await["status"], "succeeded");
        }
        eventually("the second is there", async || {
            let spans = otlp.trace(&traces[1]);
            let has = |name: &str| spans.iter().any(|span| span.name == name);
            let whole = has("POST /v1/runs")
                && has("process plan.commands")
                && has("process execute.commands");
            whole.then_some(())
        })
        .await;
        assert_eq!(otlp.trace(&traces[0]).len(), 0);
        let root = otlp.trace(&traces[1]);
        assert_eq!(one(&root, "POST /v1/runs").parent, "00f067aa0ba902b7");
    }
    // What nobody decided about is the installation's to keep.
    let ratios = [&none, &all].map(|stack| async {
        let (status, _) = stack.get("/v1/tools").await;
        assert_eq!(status, StatusCode::OK);
    });
    futures_util::future::join_all(ratios).await;
    eventually("the request is told", async || {
        let spans = otlp.spans();
        let tools = spans.iter().filter(|span| span.name == "GET /v1/tools");
        (tools.count() == 1).then_some(())
    })
    .await;
}

/// Requests, each of several spans.
const REQUESTS: usize = 800;

/// How many spans a process has dropped for a reason, after [`REQUESTS`] requests that were all quick.
async fn dropped(stack: &Stack, reason: &str) -> f64 {
    for _ in 0..REQUESTS {
        let began = Instant::now();
        let (status, _) = stack.get("/v1/sessions").await;
        assert_eq!(status, StatusCode::OK);
        // The endpoint would take a minute.
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let metric = format!("agenthub_spans_dropped_total{{reason=\"{reason}\"}}");
    eventually("spans are dropped", async || {
        let dropped = stack.metric("api", &metric).await;
        (dropped > 0.5).then_some(dropped)
    })
    .await
}

#[tokio::test]
async fn an_endpoint_that_never_answers_costs_spans_and_nothing_else() {
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", endpoint.local_addr().unwrap());
    let held = tokio::spawn(async move {
        let mut connections = Vec::new();
        loop {
            connections.push(endpoint.accept().await.unwrap());
        }
    });
    let mut stack = Stack::bare(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "64"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ])
    .await;
    stack.spawn_all(&["api"]).await;
    let lost = dropped(&stack, "queue_full").await;
    // What is kept is what is under way and what waits; a request has at least two spans.
    let (least, kept) = (REQUESTS * 2, 512 + 64);
    #[allow(clippy::cast_precision_loss)]
    let expected = (least - kept) as f64;
    assert!(lost >= expected, "{lost} of at least {expected}");
    // Nor does the process wait for it at its end.
    let api = stack.processes.get_mut("api").unwrap();
    api.tell_to_stop();
    assert!(api.stopped().await);
    held.abort();
}

#[tokio::test]
async fn an_endpoint_that_is_away_costs_spans_and_nothing_else() {
    let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", endpoint.local_addr().unwrap());
    drop(endpoint);
    let mut stack = Stack::bare(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ])
    .await;
    stack.spawn_all(&["api"]).await;
    dropped(&stack, "export_failed").await;
    let told = stack.processes["api"].log();
    let lines = told
        .lines()
        .filter(|line| line.contains("spans cannot be exported"));
    assert_eq!(lines.count(), 1, "it is told once");
}
