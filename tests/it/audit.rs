//! The audit trail: one record for each request, whatever became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agenthub::ids::{RunId, SessionId};
use agenthub::messages::{AuditDecision, AuditRecord, Topic};
use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Digest;
use tokio::io::AsyncWriteExt;

use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::stack::Stack;

/// A request that was sent: trace, status, role, route, rule.
type Row<'a> = (String, u16, Option<&'a str>, &'a str, Option<&'a str>);

/// A trace id that no other request has.
fn trace() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn traced(request: RequestBuilder, trace: &str) -> RequestBuilder {
    request.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
}

/// The records of requests on `audit.logs`, each once.
async fn trail(stack: &Stack) -> Vec<AuditRecord> {
    let mut seen = BTreeSet::new();
    let records = stack.records(Topic::AuditLogs).await;
    let records = records
        .iter()
        .map(|r| serde_json::from_slice(&r.value).unwrap());
    records
        .filter(|r: &AuditRecord| r.action == "request" && seen.insert(r.id.clone()))
        .collect()
}

/// The records of the requests with these traces, once all are there.
async fn recorded(stack: &Stack, traces: &BTreeSet<String>) -> BTreeMap<String, Vec<AuditRecord>> {
    eventually("every request is recorded", async || {
        let mut found: BTreeMap<String, Vec<AuditRecord>> = BTreeMap::new();
        for record in trail(stack).await {
            let trace = record.trace_id.clone().unwrap_or_default();
            if traces.contains(&trace) {
                found.entry(trace).or_default().push(record);
            }
        }
        (found.len() == traces.len()).then_some(found)
    })
    .await
}

#[tokio::test]
async fn every_request_has_its_record() {
    let mut stack = Stack::bare(&[("AGENTHUB_KEY_LIMITS", "30/60000")]).await;
    stack.spawn_all(&["api"]).await;
    let (client, admin) = (stack.api_key.clone(), stack.admin_key.clone());
    let send = async |key: &str, method: &str, path: &str, json: Option<Value>| {
        let trace = trace();
        let method: Method = method.parse().unwrap();
        let mut request = stack.http.request(method, stack.url(path));
        if !key.is_empty() {
            request = request.bearer_auth(key);
        }
        if let Some(json) = &json {
            request = request.json(json);
        }
        let response = traced(request, &trace).send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.json::<Value>().await.unwrap_or_default();
        (trace, status, body)
    };
    let (made, _, session) = send(&client, "POST", "/v1/sessions", Some(json!({}))).await;
    let session = session["session_id"].as_str().unwrap().to_owned();
    let goal = json!({ "session_id": session, "goal": "call the person in the secret plan" });
    let (started, status, run) = send(&client, "POST", "/v1/runs", Some(goal.clone())).await;
    assert_eq!(status, 202);
    let run = run["run_id"].as_str().unwrap().to_owned();
    let cancel = format!("/v1/runs/{run}/cancel");
    let key = json!({ "name": "n", "role": "client" });
    let (created, _, key) = send(&admin, "POST", "/v1/admin/api-keys", Some(key)).await;
    let key = key["key_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/runs/{run}");
    let nobodys = format!("/v1/runs/{}", RunId::generate());

    let mut expected: Vec<Row<'_>> = vec![
        (made, 201, Some("client"), "/v1/sessions", None),
        (started.clone(), 202, Some("client"), "/v1/runs", None),
        (created, 201, Some("admin"), "/v1/admin/api-keys", None),
    ];
    for (key, method, path, json, status, role, route, rule) in [
        (
            &client,
            "GET",
            path.as_str(),
            None,
            200,
            Some("client"),
            "/v1/runs/{run_id}",
            None,
        ),
        (
            &client,
            "GET",
            "/v1/runs?limit=2",
            None,
            200,
            Some("client"),
            "/v1/runs",
            None,
        ),
        (
            &client,
            "GET",
            "/v1/tools",
            None,
            200,
            Some("client"),
            "/v1/tools",
            None,
        ),
        (
            &client,
            "GET",
            nobodys.as_str(),
            None,
            404,
            Some("client"),
            "/v1/runs/{run_id}",
            Some("run"),
        ),
        (
            &client,
            "GET",
            "/v1/runs?limt=2",
            None,
            422,
            None,
            "/v1/runs",
            Some("invalid_request"),
        ),
        (
            &client,
            "POST",
            "/v1/runs",
            Some(json!({ "goal": 1 })),
            422,
            None,
            "/v1/runs",
            Some("invalid_request"),
        ),
        (
            &client,
            "POST",
            cancel.as_str(),
            None,
            200,
            Some("client"),
            "/v1/runs/{run_id}/cancel",
            None,
        ),
        (
            &client,
            "GET",
            "/v1/admin/api-keys",
            None,
            403,
            Some("client"),
            "/v1/admin/api-keys",
            Some("role"),
        ),
        (
            &String::new(),
            "GET",
            "/v1/runs",
            None,
            401,
            None,
            "/v1/runs",
            Some("unauthenticated"),
        ),
        (
            &"nonsense".to_owned(),
            "GET",
            "/v1/runs",
            None,
            401,
            None,
            "/v1/runs",
            Some("unauthenticated"),
        ),
        (
            &client,
            "GET",
            "/v1/nowhere",
            None,
            404,
            None,
            "unmatched",
            Some("route_not_found"),
        ),
        (
            &client,
            "PUT",
            "/v1/runs",
            None,
            405,
            None,
            "/v1/runs",
            Some("method_not_allowed"),
        ),
    ] {
        let (trace, got, body) = send(key, method, path, json).await;
        assert_eq!(got, status, "{method} {path}: {body}");
        expected.push((trace, status, role, route, rule));
    }
    // Until the key's limit is used up.
    loop {
        let (trace, status, _) = send(&client, "GET", "/v1/tools", None).await;
        if status == 429 {
            expected.push((
                trace,
                429,
                Some("client"),
                "/v1/tools",
                Some("key_rate_limit"),
            ));
            break;
        }
    }
    // A client that goes away before it is answered.
    let gone = trace();
    let mut socket = tokio::net::TcpStream::connect(&stack.processes["api"].addr)
        .await
        .unwrap();
    let head = format!(
        "POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client}\r\nContent-Type: application/json\r\n\
         traceparent: 00-{gone}-00f067aa0ba902b7-01\r\nContent-Length: 100\r\n\r\n{{"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    drop(socket);

    let mut traces: BTreeSet<String> = expected.iter().map(|row| row.0.clone()).collect();
    traces.insert(gone.clone());
    let found = recorded(&stack, &traces).await;
    let ip = Some("127.0.0.0/24");
    for (trace, status, role, route, rule) in &expected {
        let [record] = found[trace].as_slice() else {
            panic!("not one record: {:?}", found[trace])
        };
        assert_eq!(record.status, Some(*status), "{record:?}");
        assert_eq!(record.role.as_deref(), *role, "{record:?}");
        assert_eq!(record.route.as_deref(), Some(*route), "{record:?}");
        assert_eq!(record.rule.as_deref(), *rule, "{record:?}");
        let refused = record.decision == AuditDecision::Refused;
        assert_eq!(refused, *status >= 400, "{record:?}");
        assert_eq!(record.ip.as_deref(), ip, "{record:?}");
        assert_eq!(record.count, 1);
        let anonymous = *status == 401 || *route == "unmatched" || *status == 405;
        assert_eq!(record.tenant.is_none(), anonymous, "{record:?}");
        assert_eq!(record.key_id.is_none(), anonymous, "{record:?}");
    }
    let [left] = found[&gone].as_slice() else {
        panic!("{:?}", found[&gone])
    };
    assert_ne!(left.decision, AuditDecision::Allowed, "{left:?}");

    let one = |trace: &str| &found[trace][0];
    assert_eq!(
        one(&started).session_id.as_ref().map(SessionId::as_str),
        Some(session.as_str())
    );
    assert_eq!(
        one(&started).run_id.as_ref().map(RunId::as_str),
        Some(run.as_str())
    );
    assert_eq!(
        one(&expected[2].0).target.as_deref(),
        Some(format!("key/{key}").as_str())
    );
    // The input is there as a keyed hash: equal for equal inputs, and nobody's guess without the key.
    let hash = one(&started).input_hash.clone().unwrap();
    let plain = hex::encode(sha2::Sha256::digest(goal.to_string().as_bytes()));
    assert_eq!(hash.len(), 64);
    assert_ne!(hash, plain);
    let signer = agenthub::messages::Signer::parse(crate::support::SIGNING).unwrap();
    assert_eq!(hash, signer.hash_input("acme", goal.to_string().as_bytes()));
    // No record holds what was sent, or a key.
    for record in trail(&stack).await {
        let text = serde_json::to_string(&record).unwrap();
        assert!(
            !text.contains("secret plan") && !text.contains("ah_acme"),
            "{text}"
        );
    }
}

/// Whoever has no key cannot make the trail as long as he likes, and still nothing goes uncounted.
#[tokio::test]
async fn requests_without_a_key_are_summed_up_beyond_a_rate() {
    const REQUESTS: usize = 600;
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let began = std::time::Instant::now();
    let statuses = join_all((0..REQUESTS).map(|_| async {
        let response = stack.http.get(stack.url("/v1/runs")).send().await.unwrap();
        response.status().as_u16()
    }));
    let statuses = statuses.await;
    let took = began.elapsed();
    assert!(statuses.iter().all(|status| [401, 429].contains(status)));
    let records = eventually("every request is counted", async || {
        let records = trail(&stack).await;
        let total: u64 = records.iter().map(|record| record.count).sum();
        (total == REQUESTS as u64).then_some(records)
    })
    .await;
    // 100 a second, and a few sums with each second.
    let seconds = usize::try_from(took.as_secs()).unwrap() + 2;
    assert!(
        records.len() <= seconds * 110,
        "{} in {took:?}",
        records.len()
    );
    assert!(records.len() < REQUESTS, "{}", records.len());
    assert!(records.iter().all(|record| record.tenant.is_none()));
}

/// The broker dies under load, stays away until the buffer is full, and comes back: whatever was answered
/// is on the trail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_kafka_leaves_no_gap() {
    let mut broker = Broker::start().await;
    let brokers = broker.brokers.clone();
    let mut stack = Stack::bare(&[
        ("KAFKA_BROKERS", brokers.as_str()),
        ("AGENTHUB_AUDIT_BUFFER", "300"),
    ])
    .await;
    stack.spawn_all(&["api"]).await;
    let ending = Arc::new(AtomicBool::new(false));
    let full = Arc::new(AtomicUsize::new(0));
    let answered = Arc::new(AtomicUsize::new(0));
    let load = (0..4).map(|number| {
        let (ending, full, answered) = (ending.clone(), full.clone(), answered.clone());
        let (http, key) = (stack.http.clone(), stack.api_key.clone());
        let (runs, sessions) = (stack.url("/v1/runs"), stack.url("/v1/sessions"));
        tokio::spawn(async move {
            let mut sent = Vec::new();
            while !ending.load(Ordering::SeqCst) {
                let trace = trace();
                // One in eight would change something, which is refused while Kafka is away.
                let request = if number == 0 && sent.len() % 2 == 0 {
                    http.post(&sessions).json(&json!({}))
                } else {
                    http.get(&runs)
                };
                let response = traced(request.bearer_auth(&key), &trace)
                    .send()
                    .await
                    .unwrap();
                let status = response.status().as_u16();
                let body: Value = response.json().await.unwrap();
                let unrecorded = body["details"]["rule"] == "audit_buffer";
                if unrecorded {
                    assert_eq!(status, 503);
                    full.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                } else {
                    answered.fetch_add(1, Ordering::SeqCst);
                    let kafka = body["details"]["dependency"] == "kafka";
                    assert!([200, 201].contains(&status) || kafka, "{status} {body}");
                    sent.push((trace, status));
                }
            }
            sent
        })
    });
    let load: Vec<_> = load.collect();
    let until = async |what: &str, counter: &AtomicUsize, more: usize| {
        let goal = counter.load(Ordering::SeqCst) + more;
        eventually(what, async || {
            (counter.load(Ordering::SeqCst) >= goal).then_some(())
        })
        .await;
    };
    until("requests are answered", &answered, 100).await;
    broker.kill();
    until("the buffer is full", &full, 50).await;
    broker.restart().await;
    until("requests are answered again", &answered, 100).await;
    ending.store(true, Ordering::SeqCst);
    let sent = join_all(load).await.into_iter().flat_map(Result::unwrap);
    let sent: BTreeMap<String, u16> = sent.collect();

    let traces = sent.keys().cloned().collect();
    let found = recorded(&stack, &traces).await;
    for (trace, status) in &sent {
        let [record] = found[trace].as_slice() else {
            panic!("{:?}", found[trace])
        };
        assert_eq!(record.status, Some(*status), "{record:?}");
    }
    // What was refused for want of a place is on the trail as a number.
    let refused = full.load(Ordering::SeqCst) as u64;
    eventually("every refusal is counted", async || {
        let records = trail(&stack).await;
        let of_rule = records
            .iter()
            .filter(|r| r.rule.as_deref() == Some("audit_buffer"));
        (of_rule.map(|r| r.count).sum::<u64>() == refused).then_some(())
    })
    .await;
}
