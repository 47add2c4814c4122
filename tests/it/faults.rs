//! kill -9 at each arrow of the write order: whatever dies, the run ends once and leaves nothing.

use std::collections::BTreeMap;

use agenthub::config::Settings;
use agenthub::governance::{Governance, Permission};
use agenthub::ids::{RunId, SessionId};
use agenthub::messages::{CommandKind, OnConflict, RunKind, RunSpec, SCHEMA_VERSION, Signer, Told};
use agenthub::plan::Plan;
use agenthub::privacy::{DataKey, KeyCache, KeyRing};
use agenthub::runs::{
    Acquire, Admission, Admit, Begin, Next, Outcome, Recorded, Renewal, RunStatus, Transition,
};
use serde_json::{Value, json};

use crate::support::forwarder::Forwarder;
use crate::support::ledger::now_ms;
use crate::support::sse::kinds;
use crate::support::stack::Stack;
use crate::support::web::{Reply, Web};
use crate::support::{MASTER, SIGNING, eventually, settings};

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

fn ads_plan() -> Value {
    json!({ "steps": [
        { "id": "ads", "tool": "ads_metrics_mock", "args": { "advertiser_id": "123", "metric": "roas" } }
    ] })
}

/// What a process of the stack knows, in the test's hands.
struct Insider<'a> {
    stack: &'a Stack,
    settings: Settings,
    session: SessionId,
    key: DataKey,
}

impl<'a> Insider<'a> {
    async fn new(stack: &'a Stack) -> Self {
        let session: SessionId = stack.session().await.parse().unwrap();
        let runs = stack.runs();
        let wrapped = runs.wrapped_key(&stack.tenant, &session).await;
        let keys = KeyCache::new(KeyRing::parse(MASTER).unwrap(), 10);
        let key = keys.unwrap(&wrapped.unwrap().unwrap(), &stack.tenant, &session);
        Self {
            stack,
            settings: settings(&stack.namespace, &QUICK),
            session,
            key: key.unwrap(),
        }
    }

    fn spec(&self, run: &RunId) -> RunSpec {
        let governance = Governance::new(Signer::parse(SIGNING).unwrap(), &self.settings);
        let key = governance.recognise(&self.stack.api_key).unwrap();
        RunSpec {
            tenant: self.stack.tenant.clone(),
            run_id: run.clone(),
            session_id: self.session.clone(),
            key_id: key.key_id,
            kind: RunKind::Execute,
            created_ms: now_ms(),
            deadline_ms: now_ms() + 60_000,
            goal: None,
            context: None,
            plan: None,
            tools_allowed: None,
            models_allowed: None,
            model: None,
            max_steps: 32,
            max_cost_micro_usd: None,
            on_conflict: OnConflict::Enqueue,
            metadata: BTreeMap::new(),
            retry_of: None,
            traceparent: None,
        }
    }

    /// Does what the API does, and dies before it produces the outbox.
    async fn admit(&self, plan: &Value) -> RunId {
        let run = RunId::generate();
        let spec = self.spec(&run);
        let text = serde_json::to_string(&spec).unwrap();
        let plan: Plan = serde_json::from_value(plan.clone()).unwrap();
        let plan = self.key.seal(&serde_json::to_vec(&plan).unwrap());
        let governance = Governance::new(Signer::parse(SIGNING).unwrap(), &self.settings);
        let key = governance.recognise(&self.stack.api_key).unwrap();
        let audit = json!({
            "v": SCHEMA_VERSION, "id": format!("{run}/audit"), "ts": now_ms(), "action": "request",
            "duration_ms": 0, "decision": "allowed",
        });
        let admit = Admit {
            gate: governance.gate(&key, None, Permission::Runs),
            idempotency: None,
            tenant: &spec.tenant,
            run: &run,
            session: &self.session,
            kind: spec.kind,
            stage: CommandKind::Execute,
            spec: &text,
            deadline: spec.deadline_ms,
            parallel: false,
            reject: false,
            budget: None,
            retry_of: None,
            traceparent: None,
            plan: Some(&plan),
            queued: Told::nothing(),
            queued_state: None,
            audit: &audit.to_string(),
        };
        let admission = self.stack.runs().admit(&admit).await.unwrap();
        let Admission::Admitted(admitted) = admission else {
            panic!("{admission:?}")
        };
        assert_eq!(admitted.outbox.len(), 3, "{admitted:?}");
        run
    }

    /// Takes the run up as an executor does.
    async fn acquire(&self, run: &RunId, owner: &str) {
        let spec = self.spec(run);
        let acquire = Acquire {
            run,
            session: &self.session,
            owner,
            lease_ms: 10_000,
            stage: CommandKind::Execute,
            max_deliveries: 5,
            not_after: spec.deadline_ms,
            spec: &serde_json::to_string(&spec).unwrap(),
            plan: None,
            kind: spec.kind,
            turn: 0,
            created: spec.created_ms,
            deadline: spec.deadline_ms,
            parallel: false,
            traceparent: None,
            key_id: &spec.key_id,
            budget: None,
            retry_of: None,
            begin: Begin::default(),
        };
        let runs = self.stack.runs();
        let acquired = runs.acquire(&self.stack.tenant, &acquire).await;
        assert_eq!(acquired.unwrap().outcome, Outcome::Acquired);
    }
}

#[tokio::test]
async fn an_api_that_dies_after_the_admission() {
    let mut stack = Stack::bare(&QUICK).await;
    stack.spawn_all(&["api", "executor"]).await;
    let run = Insider::new(&stack).await.admit(&ads_plan()).await;
    let ended = stack.ended(run.as_str()).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let reproduced = "agenthub_sweeper_actions_total{action=\"reproduced\"";
    assert!(stack.metric("executor", reproduced).await >= 1.0);
    stack.assert_settled(run.as_str()).await;
}

#[tokio::test]
async fn a_worker_that_dies_after_the_acquire() {
    let mut stack = Stack::bare(&QUICK).await;
    stack.spawn_all(&["api"]).await;
    let run: RunId = {
        let insider = Insider::new(&stack).await;
        let session = insider.session.to_string();
        let run: RunId = stack.execute(&session, &ads_plan()).await.parse().unwrap();
        insider.acquire(&run, "dead").await;
        run
    };
    stack.spawn_all(&["executor"]).await;
    // It lives until the command has come by an executor in vain; then it dies.
    eventually("the executor finds the run taken", async || {
        let lease = [(run.clone(), "dead".to_owned())];
        let renewed = stack.runs().renew(&stack.tenant, &lease, 1000).await;
        assert_eq!(renewed.unwrap(), [Renewal::Owned]);
        let busy = "agenthub_acquires_total{stage=\"execute\",outcome=\"busy\"";
        (stack.metric("executor", busy).await > 0.0).then_some(())
    })
    .await;
    let ended = stack.ended(run.as_str()).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let expired = "agenthub_sweeper_actions_total{action=\"lease_expired\"";
    assert!(stack.metric("executor", expired).await >= 1.0);
    stack.assert_settled(run.as_str()).await;
}

#[tokio::test]
async fn an_executor_that_is_killed_in_the_middle_of_a_step() {
    let mut stack = Stack::bare(&QUICK).await;
    stack.spawn_all(&["api", "executor"]).await;
    let web = Web::start(|path, nth| match (path, nth) {
        ("/hangs", 1) => Reply::Never,
        _ => Reply::Page("<title>Page</title>"),
    })
    .await;
    let fetch = |id: &str, after: &[&str]| {
        let url = web.url(&format!("/{id}"));
        json!({ "id": id, "tool": "http_fetch", "args": { "url": url }, "depends_on": after })
    };
    let plan = json!({ "steps": [
        fetch("first", &[]), fetch("second", &["first"]), fetch("hangs", &["second"]), fetch("last", &["hangs"])
    ] });
    let run = stack.execute(&stack.session().await, &plan).await;
    web.until_hit("/hangs", 1).await;
    stack.processes.get_mut("executor").unwrap().kill();
    stack.spawn_all(&["executor-2"]).await;

    let events = stack.events(&run).await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    for (path, hits) in [("/first", 1), ("/second", 1), ("/hangs", 2), ("/last", 1)] {
        assert_eq!(web.hits(path), hits, "{path}");
    }
    let attempts: Vec<_> = ended["steps"].as_array().unwrap().iter().collect();
    let attempts: Vec<_> = attempts.iter().map(|s| s["attempts"].clone()).collect();
    assert_eq!(attempts, [1, 1, 2, 1], "{ended}");
    let started = events
        .iter()
        .filter(|e| e.event.as_deref() == Some("step.started") && e.data["step_id"] == "hangs");
    let told: Vec<_> = started.map(|e| e.data["attempt"].clone()).collect();
    assert_eq!(told, [1, 2]);
    let terminal = kinds(&events)
        .into_iter()
        .filter(|kind| kind.starts_with("run.") && !["run.queued", "run.started"].contains(kind));
    assert_eq!(terminal.collect::<Vec<_>>(), ["run.succeeded"]);
    stack.assert_settled(&run).await;
    assert_eq!(stack.terminal_events_on_kafka(&run).await.len(), 1);
}

/// What a killed executor leaves of a call that has arrived is decided by what its tool promises.
#[tokio::test]
async fn an_executor_that_is_killed_in_a_call_with_effects() {
    let mut stack = Stack::bare(&QUICK).await;
    let web = Web::start(|path, nth| match (path, nth) {
        ("/book" | "/pay", 1) => Reply::Never,
        _ => Reply::Json("{\"receipt\": 7}"),
    })
    .await;
    let tool = |name: &str, effects: &str| {
        format!(
            "[[tool]]\nname = \"{name}\"\ndescription = \"Made up.\"\neffects = \"{effects}\"\n\
             url = \"{}\"\nparameters = {{ type = \"object\" }}\n",
            web.url(&format!("/{name}"))
        )
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        tool("book", "idempotent") + &tool("pay", "unsafe"),
    )
    .unwrap();
    stack.set("AGENTHUB_TOOLS_FILE", file.path().to_str().unwrap());
    stack.spawn_all(&["api", "executor"]).await;
    let (_, tools) = stack.get("/v1/tools").await;
    let shown = tools["data"].as_array().unwrap().iter();
    let pay = shown
        .into_iter()
        .find(|tool| tool["name"] == "pay")
        .unwrap();
    assert_eq!(pay["effects"], "unsafe");

    let run = async |tool: &str| {
        let plan = json!({ "steps": [{ "id": "s", "tool": tool, "args": {} }] });
        stack.execute(&stack.session().await, &plan).await
    };
    let (book, pay) = (run("book").await, run("pay").await);
    web.until_hit("/book", 1).await;
    web.until_hit("/pay", 1).await;
    stack.processes.get_mut("executor").unwrap().kill();
    stack.spawn_all(&["executor-2"]).await;

    let booked = stack.ended(&book).await;
    assert_eq!(booked["status"], "succeeded", "{booked}");
    assert_eq!(booked["steps"][0]["output"]["receipt"], 7, "{booked}");
    let paid = stack.ended(&pay).await;
    assert_eq!(paid["error"]["code"], "outcome_unknown", "{paid}");
    assert_eq!(paid["steps"][0]["status"], "outcome_unknown", "{paid}");
    assert_eq!((web.hits("/book"), web.hits("/pay")), (2, 1));
    for run in [book, pay] {
        stack.assert_settled(&run).await;
    }
}

#[tokio::test]
async fn a_planner_that_is_killed_while_the_model_thinks() {
    let mut stack = Stack::bare(&QUICK).await;
    stack.spawn_simulator(&[]).await;
    let simulator = stack.processes["llm-sim"].addr.clone();
    let model = Forwarder::to(simulator).await;
    stack.set("OPENAI_BASE_URL", &format!("http://{}/v1", model.addr));
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let goal = "Get ROAS for advertiser 123 over 7 days \
        [[sim: {\"key\": \"once\", \"sequence\": [{\"latency_ms\": 60000}]}]]";
    let run = stack.submit(&stack.session().await, goal).await;
    eventually("the model is asked", async || {
        (model.received() > 0).then_some(())
    })
    .await;
    stack.processes.get_mut("planner").unwrap().kill();
    stack.spawn_all(&["planner-2"]).await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(ended["model_calls"].as_array().unwrap().len(), 1, "{ended}");
    stack.assert_settled(&run).await;
}

#[tokio::test]
async fn a_worker_that_dies_after_the_terminal_transition() {
    let mut stack = Stack::bare(&QUICK).await;
    stack.spawn_all(&["api"]).await;
    let run: RunId = {
        let insider = Insider::new(&stack).await;
        let session = insider.session.to_string();
        let run: RunId = stack.execute(&session, &ads_plan()).await.parse().unwrap();
        insider.acquire(&run, "dead").await;
        let mut end = Transition::new(&run, "dead", 1);
        end.next = Some(Next::End {
            status: RunStatus::Succeeded,
            data: Told::nothing(),
            state: None,
        });
        let recorded = stack.runs().record(&stack.tenant, &end).await.unwrap();
        assert!(matches!(recorded, Recorded::Done { outbox, .. } if !outbox.is_empty()));
        run
    };
    assert!(
        stack
            .terminal_events_on_kafka(run.as_str())
            .await
            .is_empty()
    );
    stack.spawn_all(&["executor"]).await;
    stack.assert_settled(run.as_str()).await;
    assert_eq!(stack.terminal_events_on_kafka(run.as_str()).await.len(), 1);
}

#[tokio::test]
async fn an_api_that_dies_between_the_submission_and_the_stream() {
    let mut stack = Stack::start(&QUICK).await;
    let session = stack.session().await;
    let run = stack
        .submit(&session, "Get ROAS for advertiser 123 over 7 days")
        .await;
    stack.processes.get_mut("api").unwrap().kill();
    stack.spawn_all(&["api"]).await;
    let events = stack.events(&run).await;
    let told = kinds(&events);
    assert_eq!(told.first(), Some(&"run.queued"), "{told:?}");
    assert_eq!(told.last(), Some(&"run.succeeded"), "{told:?}");
    for pair in events.windows(2) {
        assert_eq!(pair[1].data["prev"], pair[0].data["id"]);
    }
    stack.assert_settled(&run).await;
}
