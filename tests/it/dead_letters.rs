//! Runs that fail for good: from their dead letter over index, group and alert to the run that goes on
//! after them, with real processes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use agenthub::governance::Role;
use agenthub::ids::TenantId;
use agenthub::kafka::Producer;
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::messages::{CommandKind, Outgoing, Signer, Told, Topic};
use agenthub::runs::{NewRecord, Next, Recorded, RunStatus, Transition};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::ledger::Ledger;
use crate::support::stack::{Stack, body, mint};
use crate::support::web::{Reply, Web};
use crate::support::{SIGNING, eventually};

/// A secret as the operator would set it.
const WEBHOOK_SECRET: &str = "whsec_d2ViaG9vay1zZWNyZXQtb2YtdGhlLXRlc3Rz";

/// A message as the webhook got it: `webhook-id`, `webhook-timestamp`, `webhook-signature`, body.
type Message = (String, String, String, String);

/// A webhook that refuses the first message once, and keeps what comes.
struct Webhook {
    url: String,
    messages: Arc<Mutex<Vec<Message>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Webhook {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        let messages: Arc<Mutex<Vec<Message>>> = Arc::default();
        let router = Router::new()
            .fallback(
                async |State(messages): State<Arc<Mutex<Vec<Message>>>>,
                       headers: HeaderMap,
                       body: Bytes| {
                    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
                    let mut messages = messages.lock().unwrap();
                    messages.push((
                        header("webhook-id"),
                        header("webhook-timestamp"),
                        header("webhook-signature"),
                        String::from_utf8(body.to_vec()).unwrap(),
                    ));
                    if messages.len() == 1 {
                        StatusCode::INTERNAL_SERVER_ERROR
                    } else {
                        StatusCode::NO_CONTENT
                    }
                },
            )
            .with_state(messages.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            messages,
            task,
        }
    }

    fn messages(&self) -> Vec<Message> {
        self.messages.lock().unwrap().clone()
    }

    /// Letters of a group that were told of, over all messages that were taken.
    fn told(&self, fingerprint: &str) -> u64 {
        let messages = self.messages();
        let groups = messages.iter().skip(1).flat_map(|message| {
            let body: Value = serde_json::from_str(&message.3).unwrap();
            body["data"]["groups"].as_array().unwrap().clone()
        });
        groups
            .filter(|group| group["fingerprint"] == fingerprint)
            .map(|group| group["count"].as_u64().unwrap())
            .sum()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn is_signed((id, timestamp, signature, body): &Message) -> bool {
    let secret = STANDARD.decode(WEBHOOK_SECRET.strip_prefix("whsec_").unwrap());
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.unwrap()).unwrap();
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    *signature == format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

fn fetch(id: &str, url: &str, after: &[&str]) -> Value {
    json!({ "id": id, "tool": "http_fetch", "args": { "url": url }, "depends_on": after })
}

/// A request with a key; status and body.
async fn ask(
    stack: &Stack,
    key: &str,
    method: Method,
    path: &str,
    json: Option<&Value>,
) -> (reqwest::StatusCode, Value) {
    let request = stack.http.request(method, stack.url(path)).bearer_auth(key);
    let request = match json {
        Some(json) => request.json(json),
        None => request,
    };
    body(request.send().await.unwrap()).await
}

/// The letters that the admin sees, the latest first.
async fn letters(stack: &Stack, query: &str) -> Vec<Value> {
    let path = format!("/v1/admin/dlq?{query}");
    let (status, page) = ask(stack, &stack.admin_key, Method::GET, &path, None).await;
    assert_eq!(status, 200, "{page}");
    page["data"].as_array().unwrap().clone()
}

async fn letter_of(stack: &Stack, run: &str) -> Value {
    eventually(&format!("the letter of {run}"), async || {
        letters(stack, &format!("run_id={run}")).await.pop()
    })
    .await
}

async fn redrive(stack: &Stack, key: &str, letter: &Value, query: &str) -> (u16, Value) {
    let id = letter["id"].as_str().unwrap();
    let path = format!("/v1/admin/dlq/{id}/redrive{query}");
    let (status, answer) = ask(stack, key, Method::POST, &path, None).await;
    (status.as_u16(), answer)
}

#[tokio::test]
async fn a_run_that_fails_for_good_is_told_of_grouped_and_redriven() {
    let webhook = Webhook::start().await;
    let mut stack = Stack::start(&[
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_DLQ_WEBHOOK_URL", &webhook.url),
        ("AGENTHUB_DLQ_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ("AGENTHUB_DLQ_WEBHOOK_WINDOW_MS", "500"),
    ])
    .await;
    stack.spawn_all(&["dlq"]).await;
    let fixed = Arc::new(AtomicBool::new(false));
    let is_fixed = fixed.clone();
    let web = Web::start(move |path, _| {
        if path.ends_with("/second") && !is_fixed.load(Ordering::SeqCst) {
            Reply::Status(404)
        } else {
            Reply::Page("<title>Fine</title>")
        }
    })
    .await;
    let plan = |name: &str| {
        json!({ "steps": [
            fetch("s1", &web.url(&format!("/{name}/first")), &[]),
            fetch("s2", &web.url(&format!("/{name}/second")), &["s1"]),
        ] })
    };
    let mut failed = Vec::new();
    for name in ["a", "b"] {
        let session = stack.session().await;
        let run = stack.execute(&session, &plan(name)).await;
        assert_eq!(stack.ended(&run).await["status"], "failed");
        failed.push(run);
    }

    // Each has its letter, and they are of one group.
    let a = letter_of(&stack, &failed[0]).await;
    let b = letter_of(&stack, &failed[1]).await;
    assert_eq!(
        (&a["class"], &a["tool"]),
        (&json!("permanent"), &json!("http_fetch")),
        "{a}"
    );
    assert_eq!(
        (&a["code"], &a["step_id"]),
        (&json!("http_status"), &json!("s2")),
        "{a}"
    );
    assert_eq!(
        (&a["attempts"], &a["tenant"]),
        (&json!(1), &json!("acme")),
        "{a}"
    );
    assert!(
        a["worker"]
            .as_str()
            .unwrap()
            .starts_with("agenthub-executor@"),
        "{a}"
    );
    assert_eq!(a["breaker"], "closed", "{a}");
    assert_eq!(a["group"], b["group"]);
    let group = a["group"].as_str().unwrap().to_owned();
    assert_eq!(
        letters(
            &stack,
            &format!("group={group}&tool=http_fetch&class=permanent")
        )
        .await
        .len(),
        2
    );
    assert!(letters(&stack, "tool=retrieval").await.is_empty());
    assert!(
        letters(&stack, "until=2026-01-01T00:00:00Z")
            .await
            .is_empty()
    );
    let (_, groups) = ask(
        &stack,
        &stack.admin_key,
        Method::GET,
        "/v1/admin/dlq/groups",
        None,
    )
    .await;
    assert_eq!(groups["data"][0]["count"], 2, "{groups}");
    assert_eq!(groups["data"][0]["fingerprint"], group.as_str());

    // Both are told of, in messages that nobody else can have signed.
    eventually("the webhook is told of both", async || {
        (webhook.told(&group) == 2).then_some(())
    })
    .await;
    let messages = webhook.messages();
    assert!(messages.iter().all(is_signed), "{messages:?}");
    assert_eq!(messages[0].0, messages[1].0, "the repeat has the same id");
    assert_eq!(messages[0].3, messages[1].3);
    assert!(
        stack
            .metric("dlq", "agenthub_dlq_alerts_total{outcome=\"retried\"}")
            .await
            >= 1.0
    );

    // Clients, and admins of other tenants, have no part in it.
    let other = mint(&stack.keys(), &"other".parse().unwrap(), Role::Admin).await;
    for (key, query, expected) in [
        (&stack.api_key, "", 403),
        (&other, "", 404),
        (&other, "?tenant=acme", 403),
    ] {
        let (status, answer) = redrive(&stack, key, &a, query).await;
        assert_eq!(status, expected, "{answer}");
        let id = a["id"].as_str().unwrap();
        let path = format!("/v1/admin/dlq/{id}{query}");
        let (status, answer) = ask(&stack, key, Method::GET, &path, None).await;
        assert_eq!(status.as_u16(), expected, "{answer}");
    }

    // While the fault is there, a redrive comes back with its history.
    let (status, accepted) = redrive(&stack, &stack.admin_key, &a, "").await;
    assert_eq!(
        (status, &accepted["already"]),
        (202, &json!(false)),
        "{accepted}"
    );
    let second = accepted["run_id"].as_str().unwrap();
    let run = stack.ended(second).await;
    assert_eq!(
        (&run["status"], &run["retry_of"]),
        (&json!("failed"), &json!(failed[0])),
        "{run}"
    );
    let again = letter_of(&stack, second).await;
    assert_eq!(
        (&again["retry_of"], &again["group"]),
        (&json!(failed[0]), &a["group"]),
        "{again}"
    );
    let path = format!("/v1/admin/dlq/{}", again["id"].as_str().unwrap());
    let (_, shown) = ask(&stack, &stack.admin_key, Method::GET, &path, None).await;
    assert_eq!(shown["redrives"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(shown["redrives"][0]["id"], a["id"], "{shown}");
    // The same letter answers with the same run, and says so.
    let (status, repeated) = redrive(&stack, &stack.admin_key, &a, "").await;
    assert_eq!(
        (status, &repeated["already"]),
        (202, &json!(true)),
        "{repeated}"
    );
    assert_eq!(repeated["run_id"], second);
    assert_eq!(
        letter_of(&stack, &failed[0]).await["redriven"]["run_id"],
        second
    );

    // Once it is gone, the run goes on where it was: what was finished is not called again.
    fixed.store(true, Ordering::SeqCst);
    let (status, accepted) = redrive(&stack, &stack.admin_key, &again, "").await;
    assert_eq!(status, 202, "{accepted}");
    let run = stack.ended(accepted["run_id"].as_str().unwrap()).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!((web.hits("/a/first"), web.hits("/a/second")), (1, 3));

    // The rest of the group from the command line: first what would happen, then what happens.
    let args = ["dlq", "redrive", "--group", &group, "--json"];
    let dry = [&args[..], &["--dry-run"]].concat();
    let told = stack.command_with(&stack.admin_key, &dry).await;
    let told: Vec<Value> = told
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(told, [json!({ "letter_id": b["id"], "dry_run": true })]);
    assert!(letter_of(&stack, &failed[1]).await["redriven"].is_null());
    let really = [&args[..], &["--yes", "--rate", "50"]].concat();
    let told = stack.command_with(&stack.admin_key, &really).await;
    let told: Value = serde_json::from_str(told.trim()).unwrap();
    assert_eq!(
        (&told["letter_id"], &told["already"]),
        (&b["id"], &json!(false)),
        "{told}"
    );
    let run = stack.ended(told["run_id"].as_str().unwrap()).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!((web.hits("/b/first"), web.hits("/b/second")), (1, 2));
    let listed = stack.command(&["dlq", "list", "--group", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["data"][0]["count"], 3, "{listed}");
    let shown = stack
        .command(&["dlq", "show", a["id"].as_str().unwrap()])
        .await;
    assert!(shown.contains(&format!("as {second}")), "{shown}");

    // The operator may do it for any tenant, and again where that is said; the run stays the tenant's.
    let operator = mint(&stack.keys(), &TenantId::system(), Role::Admin).await;
    let id = b["id"].as_str().unwrap();
    let path = format!("/v1/admin/dlq/{id}/redrive?tenant=acme");
    let force = json!({ "force": true });
    let (status, forced) = ask(&stack, &operator, Method::POST, &path, Some(&force)).await;
    assert_eq!(status.as_u16(), 202, "{forced}");
    assert_ne!(forced["run_id"], told["run_id"]);
    let run = stack.ended(forced["run_id"].as_str().unwrap()).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(web.hits("/b/first"), 1);
}

#[tokio::test]
async fn what_fails_by_a_rule_or_by_its_client_is_no_dead_letter() {
    let mut stack = Stack::start(&[
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_MAX_ATTEMPTS", "2"),
    ])
    .await;
    stack.spawn_all(&["dlq"]).await;
    let web = Web::start(|path, _| match path {
        "/sick" => Reply::Status(503),
        "/slow" => Reply::Never,
        _ => Reply::Json(r#"{"url": 7}"#),
    })
    .await;
    let session = stack.session().await;

    // A policy, a reference that does not fit, a timeout, a cancellation.
    let refused = json!({ "steps": [fetch("s1", "http://127.0.0.9/", &[])] });
    let refused = stack.execute(&session, &refused).await;
    let unfit = json!({ "steps": [
        fetch("s1", &web.url("/fine"), &[]),
        fetch("s2", "${steps.s1.output.nothing}", &["s1"]),
    ] });
    let unfit = stack.execute(&session, &unfit).await;
    let slow = json!({ "session_id": session, "timeout_s": 1,
        "plan": { "steps": [fetch("s1", &web.url("/slow"), &[])] } });
    let (_, slow) = stack.post("/v1/execute", &slow).await;
    let slow = slow["run_id"].as_str().unwrap().to_owned();
    assert_eq!(stack.ended(&slow).await["status"], "timed_out");
    let cancelled = json!({ "steps": [fetch("s1", &web.url("/slow"), &[])] });
    let cancelled = stack.execute(&session, &cancelled).await;
    web.until_hit("/slow", 2).await;
    stack.cancel(&cancelled, "force").await;
    for (run, status) in [
        (&refused, "failed"),
        (&unfit, "failed"),
        (&cancelled, "cancelled"),
    ] {
        assert_eq!(stack.ended(run).await["status"], status);
    }

    // Attempts that are used up, and a model that refuses, are.
    let sick = json!({ "steps": [fetch("s1", &web.url("/sick"), &[])] });
    let sick = stack.execute(&session, &sick).await;
    assert_eq!(stack.ended(&sick).await["status"], "failed");
    let letter = letter_of(&stack, &sick).await;
    assert_eq!(letter["class"], "attempts_exhausted", "{letter}");
    assert_eq!(letter["attempts"], 2, "{letter}");
    let script = json!({ "key": uuid::Uuid::new_v4(), "sequence": [{ "status": 400 }] });
    let goal = format!("Get ROAS for advertiser 123 over 7 days [[sim: {script}]]");
    let planned = stack.submit(&session, &goal).await;
    assert_eq!(stack.ended(&planned).await["status"], "failed");
    let letter = letter_of(&stack, &planned).await;
    assert_eq!(
        (&letter["class"], &letter["tool"]),
        (&json!("permanent"), &json!("model")),
        "{letter}"
    );
    // The goal is in the command's bytes, and sealed.
    let text = letter.to_string();
    assert!(
        letter["value"].as_str().unwrap().contains(&planned) && !text.contains("ROAS"),
        "{text}"
    );

    let mut catalogue = Catalogue::embedded(true).unwrap();
    catalogue
        .topics
        .retain(|spec| spec.topic == Topic::DeadLetter);
    let admin = Admin::new(&stack.kafka()).unwrap();
    eventually("every letter is indexed", async || {
        let cluster = admin.describe(&catalogue).await.unwrap();
        (cluster.topics[0].groups[0].lag == 0).then_some(())
    })
    .await;
    assert_eq!(letters(&stack, "").await.len(), 2);

    // A letter that is about no run can be looked at, and not redriven.
    let producer = Producer::new(&stack.kafka(), Signer::parse(SIGNING).unwrap(), "it").unwrap();
    let nothing = Outgoing {
        topic: Topic::DeadLetter,
        key: "k".to_owned(),
        ce_id: "id".to_owned(),
        ce_type: "agenthub.dead_letter".to_owned(),
        tenant: stack.tenant.clone(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: "{".into(),
    };
    producer.publish(&nothing).await.unwrap();
    let operator = mint(&stack.keys(), &TenantId::system(), Role::Admin).await;
    let letter = eventually("the letter about nothing", async || {
        let (_, page) = ask(&stack, &operator, Method::GET, "/v1/admin/dlq", None).await;
        page["data"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(letter["class"], "undecodable", "{letter}");
    let (status, refusal) = redrive(&stack, &operator, &letter, "").await;
    assert_eq!(
        (status, &refusal["code"]),
        (409, &json!("not_redrivable")),
        "{refusal}"
    );
    assert_eq!(refusal["details"]["rule"], "no_run");
    for wrong in ["class=odd", "since=soon", "cursor=1", "run_id=x", "odd=1"] {
        let path = format!("/v1/admin/dlq?{wrong}");
        let (status, refusal) = ask(&stack, &operator, Method::GET, &path, None).await;
        assert_eq!(status.as_u16(), 422, "{wrong}: {refusal}");
    }
}

/// The letter rides with the end of its run, or not at all.
#[tokio::test]
async fn a_worker_that_lost_its_run_leaves_no_letter() {
    let ledger = Ledger::new(&[]).await;
    let run = ledger.admit().await;
    ledger.acquire(&run, "first", CommandKind::Plan).await;
    let record = async |owner: &str, next: Option<Next>| {
        let mut transition = Transition::new(&run, owner, 1);
        transition.letter = Some(NewRecord {
            topic: Topic::DeadLetter,
            key: run.to_string(),
            id: "t/0/1".to_owned(),
            kind: "agenthub.dead_letter".to_owned(),
            value: "{}".to_owned(),
        });
        transition.next = next;
        let recorded = ledger.runs.record(&ledger.tenant, &transition).await;
        let (Recorded::Done { outbox, .. } | Recorded::Discarded { outbox }) = recorded.unwrap();
        let topics = outbox.iter().map(|entry| entry.record.get().topic);
        topics.filter(|topic| *topic == Topic::DeadLetter).count()
    };
    let end = || {
        Some(Next::End {
            status: RunStatus::Failed,
            data: Told::nothing(),
            state: None,
        })
    };
    assert_eq!(record("second", end()).await, 0);
    assert_eq!(record("first", end()).await, 1);
    assert_eq!(ledger.status(&run).await, Some(RunStatus::Failed));
}
