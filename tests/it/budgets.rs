//! Budgets: the ledger's scripts on a real Redis, and what clients and admins see of them.

use std::collections::BTreeMap;

use agenthub::ids::RunId;
use agenthub::messages::{AuditRecord, CommandKind, Topic};
use agenthub::runs::{
    Admission, OutboxEntry, Recorded, Reservation, RunStatus, Settlement, Transition,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::AsyncCommands;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::ledger::{Ledger, end};
use crate::support::stack::{Stack, body, shared};

fn reservation(call: &str, bound: u64) -> Reservation {
    Reservation {
        call: call.to_owned(),
        bound,
        model: "m".to_owned(),
    }
}

fn settlement(call: &str, cost: Option<u64>) -> Settlement {
    Settlement {
        call: call.to_owned(),
        cost,
        input: cost.unwrap_or(0),
        cached: 0,
        output: 1,
        reasoning: 0,
        audit: None,
    }
}

/// What one scope has spent and reserved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Account {
    spent: u64,
    reserved: u64,
}

impl Ledger {
    async fn limit_tenant(&self, micro_usd: u64) {
        self.redis
            .connection()
            .hset::<_, _, _, ()>(self.key("tenant"), "budget", micro_usd)
            .await
            .unwrap();
    }

    async fn account(&self, scope: &str) -> Account {
        let month = jiff::Timestamp::now().strftime("%Y%m").to_string();
        let fields = &[format!("{scope}.spent"), format!("{scope}.reserved")];
        let (spent, reserved): (Option<u64>, Option<u64>) = self
            .redis
            .connection()
            .hmget(self.key(&format!("spend:{month}")), fields)
            .await
            .unwrap();
        Account {
            spent: spent.unwrap_or(0),
            reserved: reserved.unwrap_or(0),
        }
    }

    async fn step(
        &self,
        run: &RunId,
        owner: &str,
        number: u64,
        settle: Vec<Settlement>,
        reserve: Vec<Reservation>,
    ) -> Recorded {
        let mut transition = Transition::new(run, owner, number);
        transition.settle = settle;
        transition.reserve = reserve;
        self.runs.record(&self.tenant, &transition).await.unwrap()
    }
}

fn refused(recorded: &Recorded) -> Vec<(&str, &str)> {
    match recorded {
        Recorded::Done { refused, .. } => refused
            .iter()
            .map(|r| (r.call.as_str(), r.scope.as_str()))
            .collect(),
        Recorded::Discarded { .. } => panic!("discarded"),
    }
}

fn usage_records(outbox: &[OutboxEntry]) -> Vec<AuditRecord> {
    outbox
        .iter()
        .filter(|entry| entry.record.get().topic == Topic::AuditLogs)
        .filter_map(|entry| serde_json::from_slice(&entry.record.get().value).ok())
        .filter(|record: &AuditRecord| record.settlement.is_some())
        .collect()
}

async fn planning(ledger: &Ledger, owner: &str) -> RunId {
    let run = RunId::generate();
    match ledger.try_admit(&run, |admit| admit.parallel = true).await {
        Admission::Admitted(_) => {}
        other => panic!("{other:?}"),
    }
    ledger.acquire(&run, owner, CommandKind::Plan).await;
    run
}

#[tokio::test]
async fn a_call_is_reserved_then_settled_at_what_it_used() {
    let ledger = Ledger::new(&[]).await;
    ledger.limit_tenant(1_000).await;
    let run = planning(&ledger, "a").await;
    let recorded = ledger
        .step(&run, "a", 1, vec![], vec![reservation("1", 600)])
        .await;
    assert!(refused(&recorded).is_empty());
    let open = Account {
        spent: 0,
        reserved: 600,
    };
    assert_eq!(ledger.account("t").await, open);
    assert_eq!(ledger.account(ledger.key_id.as_str()).await, open);

    // A second one that has no room is refused by name, and reserves nothing.
    let recorded = ledger
        .step(&run, "a", 2, vec![], vec![reservation("2", 401)])
        .await;
    assert_eq!(refused(&recorded), [("2", "tenant")]);
    assert_eq!(ledger.account("t").await, open);

    let settle = vec![settlement("1", Some(150))];
    let recorded = ledger.step(&run, "a", 3, settle.clone(), vec![]).await;
    let Recorded::Done { outbox, .. } = &recorded else {
        panic!()
    };
    let [record] = usage_records(outbox).try_into().unwrap();
    assert_eq!(record.delta_micro_usd, Some(150));
    assert_eq!(record.settlement.as_deref(), Some("actual"));
    assert_eq!(record.call.as_deref(), Some("1"));
    let settled = Account {
        spent: 150,
        reserved: 0,
    };
    assert_eq!(ledger.account("t").await, settled);
    // Once per call.
    ledger.step(&run, "a", 4, settle, vec![]).await;
    assert_eq!(ledger.account("t").await, settled);
}

#[tokio::test]
async fn an_unknown_use_keeps_its_bound_until_the_use_is_told_late() {
    let ledger = Ledger::new(&[]).await;
    let run = planning(&ledger, "a").await;
    ledger
        .step(&run, "a", 1, vec![], vec![reservation("1", 600)])
        .await;
    // The run ends while the call is open: nobody knows what it used.
    let recorded = ledger.record(&run, "a", 2, end(RunStatus::Cancelled)).await;
    let Recorded::Done { outbox, .. } = &recorded else {
        panic!()
    };
    let [record] = usage_records(outbox).try_into().unwrap();
    assert_eq!(record.settlement.as_deref(), Some("bounded"));
    assert_eq!(record.delta_micro_usd, Some(600));
    let bounded = Account {
        spent: 600,
        reserved: 0,
    };
    assert_eq!(ledger.account("t").await, bounded);
    // Late usage after a terminal state corrects it, and does not touch the run's end.
    let late = ledger
        .step(&run, "a", 3, vec![settlement("1", Some(40))], vec![])
        .await;
    let Recorded::Discarded { outbox } = &late else {
        panic!("{late:?}")
    };
    let [record] = usage_records(outbox).try_into().unwrap();
    assert_eq!(record.delta_micro_usd, Some(40 - 600));
    let actual = Account {
        spent: 40,
        reserved: 0,
    };
    assert_eq!(ledger.account("t").await, actual);
    assert_eq!(ledger.terminal_events(&run).await, 1);
}

#[tokio::test]
async fn a_takeover_bounds_the_call_of_the_owner_before() {
    let ledger = Ledger::new(&[]).await;
    let run = RunId::generate();
    ledger.admitted(&run).await;
    ledger.acquire_for(&run, "a", CommandKind::Plan, 1).await;
    ledger
        .step(&run, "a", 1, vec![], vec![reservation("1", 500)])
        .await;
    crate::support::eventually("the lease expires", async || {
        let swept = ledger.runs.sweep(&ledger.tenant, 10).await.unwrap();
        (!swept.actions.is_empty()).then_some(())
    })
    .await;
    ledger.acquire(&run, "b", CommandKind::Plan).await;
    let bounded = Account {
        spent: 500,
        reserved: 0,
    };
    assert_eq!(ledger.account("t").await, bounded);
    // The first owner lives after all, and tells what it used.
    ledger
        .step(&run, "a", 2, vec![settlement("1", Some(70))], vec![])
        .await;
    assert_eq!(ledger.account("t").await.spent, 70);
}

#[tokio::test]
async fn the_warning_comes_once_at_four_fifths() {
    let ledger = Ledger::new(&[]).await;
    ledger.limit_tenant(1_000).await;
    let run = planning(&ledger, "a").await;
    let warnings = async || {
        let beginning = "0-0".parse().unwrap();
        let history = ledger
            .runs
            .history(&ledger.tenant, &ledger.session, beginning, 100)
            .await
            .unwrap();
        history
            .iter()
            .filter(|e| e.event_type.as_str() == "budget.warning")
            .count()
    };
    for (number, cost) in [(1, 799), (3, 1), (5, 1)] {
        let call = number.to_string();
        ledger
            .step(&run, "a", number, vec![], vec![reservation(&call, cost)])
            .await;
        ledger
            .step(
                &run,
                "a",
                number + 1,
                vec![settlement(&call, Some(cost))],
                vec![],
            )
            .await;
        assert_eq!(warnings().await, usize::from(number > 1), "after {call}");
    }
}

#[tokio::test]
async fn a_used_up_budget_admits_no_run() {
    let ledger = Ledger::new(&[]).await;
    ledger.limit_tenant(100).await;
    let run = planning(&ledger, "a").await;
    ledger
        .step(&run, "a", 1, vec![], vec![reservation("1", 100)])
        .await;
    let next = RunId::generate();
    match ledger.try_admit(&next, |_| {}).await {
        Admission::Refused(refusal) => {
            assert_eq!(refusal.code, "budget_exhausted");
            assert_eq!(refusal.rule, "tenant_budget");
        }
        other => panic!("{other:?}"),
    }
    // What was reserved and not used comes back.
    ledger
        .step(&run, "a", 2, vec![settlement("1", Some(99))], vec![])
        .await;
    assert!(matches!(
        ledger.try_admit(&next, |_| {}).await,
        Admission::Admitted(_)
    ));
}

/// One thing that may happen; indices are taken modulo what there is.
#[derive(Debug, Clone)]
enum Op {
    Reserve {
        run: usize,
        bound: u64,
    },
    Settle {
        run: usize,
        call: usize,
        cost: Option<u64>,
    },
    /// A worker dies and another takes the run over.
    TakeOver {
        run: usize,
    },
    End {
        run: usize,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..3_usize, 1..400_u64).prop_map(|(run, bound)| Op::Reserve { run, bound }),
        4 => (0..3_usize, 0..8_usize, proptest::option::weighted(0.8, 0..400_u64))
            .prop_map(|(run, call, cost)| Op::Settle { run, call, cost }),
        1 => (0..3_usize).prop_map(|run| Op::TakeOver { run }),
        1 => (0..3_usize).prop_map(|run| Op::End { run }),
    ];
    proptest::collection::vec(op, 1..40)
}

/// Random interleavings of reservations, settlements, crashes and ends of three runs with a budget of
/// their tenant: at every step `spent + reserved <= limit`, and what is spent is the sum of the usage
/// records.
#[tokio::test(flavor = "multi_thread")]
async fn no_interleaving_spends_more_than_the_limit() {
    const LIMIT: u64 = 1_000;
    let handle = tokio::runtime::Handle::current();
    let cases = move || {
        let config = Config {
            cases: 24,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&ops(), |ops| {
                handle.block_on(async {
                    let ledger = Ledger::new(&[]).await;
                    ledger.limit_tenant(LIMIT).await;
                    carry_out(&ledger, &ops, LIMIT).await
                })
            })
            .unwrap();
    };
    tokio::task::spawn_blocking(cases).await.unwrap();
}

struct Worked {
    run: RunId,
    owner: String,
    number: u64,
    /// Calls with their bounds; by name, so that a late owner can settle them too.
    calls: Vec<(String, u64)>,
    owners: u32,
}

async fn carry_out(ledger: &Ledger, ops: &[Op], limit: u64) -> Result<(), TestCaseError> {
    let mut runs = Vec::new();
    for _ in 0..3 {
        let run = planning(ledger, "o0").await;
        runs.push(Worked {
            run,
            owner: "o0".to_owned(),
            number: 0,
            calls: Vec::new(),
            owners: 0,
        });
    }
    let mut records: BTreeMap<String, i64> = BTreeMap::new();
    for op in ops {
        let outbox = match op {
            Op::Reserve { run, bound } => {
                let w = &mut runs[*run];
                w.number += 1;
                let call = format!("c{}", w.calls.len());
                w.calls.push((call.clone(), *bound));
                let reserve = vec![reservation(&call, *bound)];
                ledger
                    .step(&w.run, &w.owner, w.number, vec![], reserve)
                    .await
            }
            Op::Settle { run, call, cost } => {
                let w = &mut runs[*run];
                if w.calls.is_empty() {
                    continue;
                }
                w.number += 1;
                let (call, bound) = w.calls[call % w.calls.len()].clone();
                let cost = cost.map(|cost| cost.min(bound));
                let settle = vec![settlement(&call, cost)];
                ledger
                    .step(&w.run, &w.owner, w.number, settle, vec![])
                    .await
            }
            Op::TakeOver { run } => {
                let w = &mut runs[*run];
                w.owners += 1;
                let owner = format!("o{}", w.owners);
                // As the sweeper leaves a run whose lease expired.
                let name = ledger.key(&format!("run:{}", w.run));
                let mut connection = ledger.redis.connection();
                let live: Option<String> = connection.hget(&name, "owner").await.unwrap();
                if live.is_none() {
                    continue;
                }
                connection
                    .hset::<_, _, _, ()>(&name, "lease", 0)
                    .await
                    .unwrap();
                let acquired = ledger.acquire(&w.run, &owner, CommandKind::Plan).await;
                w.owner = owner;
                w.number = 0;
                Recorded::Discarded {
                    outbox: acquired.outbox,
                }
            }
            Op::End { run } => {
                let w = &mut runs[*run];
                w.number += 1;
                ledger
                    .record(&w.run, &w.owner, w.number, end(RunStatus::Failed))
                    .await
            }
        };
        let (Recorded::Done { outbox, .. } | Recorded::Discarded { outbox }) = outbox;
        for record in usage_records(&outbox) {
            // An outbox entry may be handed out again; its name says so.
            let name = format!(
                "{:?}/{}/{}",
                record.run_id,
                record.call.unwrap_or_default(),
                record.settlement.unwrap_or_default()
            );
            records.insert(name, record.delta_micro_usd.unwrap_or(0));
        }
        let account = ledger.account("t").await;
        prop_assert!(
            account.spent + account.reserved <= limit,
            "{account:?} after {op:?}"
        );
        let told: i64 = records.values().sum();
        prop_assert_eq!(
            i64::try_from(account.spent).unwrap(),
            told,
            "after {:?}",
            op
        );
        prop_assert_eq!(ledger.account(ledger.key_id.as_str()).await, account);
    }
    Ok(())
}

const ADS: &str = "Get ROAS for advertiser 123 over 7 days";

async fn admin(stack: &Stack, method: Method, path: &str, json: &Value) -> (StatusCode, Value) {
    let request = stack.http.request(method, stack.url(path));
    let request = request.bearer_auth(&stack.admin_key);
    let request = if json.is_null() {
        request
    } else {
        request.json(json)
    };
    body(request.send().await.unwrap()).await
}

#[tokio::test]
async fn an_admin_sets_the_budget_and_it_stops_runs() {
    let stack = Stack::start(&[]).await;
    let path = "/v1/admin/tenants/acme/budget";
    let (status, budget) = admin(&stack, Method::GET, path, &Value::Null).await;
    assert_eq!(
        (status, &budget["limit_micro_usd"]),
        (StatusCode::OK, &Value::Null)
    );

    // A run is counted: what the budget says, what usage says and what the run says are one number.
    let session = stack.session().await;
    let run = stack.submit(&session, ADS).await;
    let run = stack.ended(&run).await;
    let cost = run["usage"]["cost_micro_usd"].as_u64().unwrap();
    let (_, budget) = admin(&stack, Method::GET, path, &Value::Null).await;
    assert_eq!(budget["spent_micro_usd"], cost, "{budget}");
    assert_eq!(budget["reserved_micro_usd"], 0, "{budget}");
    let key_id = stack.api_key.split('_').nth(2).unwrap();
    for (by, name) in [
        ("tenant", "acme"),
        ("key", key_id),
        ("session", session.as_str()),
        ("model", run["model_calls"][0]["model"].as_str().unwrap()),
    ] {
        let path = format!("/v1/admin/tenants/acme/usage?by={by}");
        let (status, usage) = admin(&stack, Method::GET, &path, &Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{usage}");
        assert_eq!(usage["total"]["cost_micro_usd"], cost, "{by}: {usage}");
        assert_eq!(usage["data"][0]["name"], name, "{by}: {usage}");
        assert_eq!(usage["data"][0]["calls"], 1, "{by}: {usage}");
    }

    // Room for what was spent and not for one more call's bound: the run fails before the call.
    let limit = json!({ "limit_micro_usd": cost + 1, "window": "month" });
    let (status, budget) = admin(&stack, Method::PUT, path, &limit).await;
    assert_eq!(status, StatusCode::OK, "{budget}");
    let run = stack.submit(&session, ADS).await;
    let run = stack.ended(&run).await;
    assert_eq!(run["error"]["code"], "budget_exceeded", "{run}");
    assert_eq!(run["usage"]["cost_micro_usd"], 0, "{run}");

    // No room at all: nothing is started.
    let limit = json!({ "limit_micro_usd": cost });
    admin(&stack, Method::PUT, path, &limit).await;
    let request = json!({ "session_id": session, "goal": ADS });
    let (status, refusal) = stack.post("/v1/runs", &request).await;
    // 429 in the month's last hour.
    assert!(
        [StatusCode::PAYMENT_REQUIRED, StatusCode::TOO_MANY_REQUESTS].contains(&status),
        "{refusal}"
    );
    assert_eq!(refusal["details"]["rule"], "tenant_budget", "{refusal}");

    // Taken away, it stops nothing.
    admin(
        &stack,
        Method::PUT,
        path,
        &json!({ "limit_micro_usd": null }),
    )
    .await;
    let run = stack.submit(&session, ADS).await;
    assert_eq!(stack.ended(&run).await["status"], "succeeded");
}

#[tokio::test]
async fn budgets_of_runs_and_sessions_stop_their_runs() {
    let stack = shared().await;
    let (_, session) = stack
        .post("/v1/sessions", &json!({ "max_cost_usd": 0.0 }))
        .await;
    let session = session["session_id"].as_str().unwrap();
    let request = json!({ "session_id": session, "goal": ADS });
    let (status, refusal) = stack.post("/v1/runs", &request).await;
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED, "{refusal}");
    assert_eq!(refusal["details"]["rule"], "session_budget", "{refusal}");

    let session = stack.session().await;
    let request = json!({ "session_id": session, "goal": ADS, "max_cost_usd": 0.000_001 });
    let (status, run) = stack.post("/v1/runs", &request).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{run}");
    let run = stack.ended(run["run_id"].as_str().unwrap()).await;
    assert_eq!(run["error"]["code"], "budget_exceeded", "{run}");
}

#[tokio::test]
async fn a_model_without_a_price_and_wrong_budgets_are_refused() {
    let stack = shared().await;
    let session = stack.session().await;
    let request = json!({ "session_id": session, "goal": ADS, "model": "unheard-of" });
    let (status, refusal) = stack.post("/v1/runs", &request).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{refusal}");
    assert_eq!(refusal["details"]["field"], "/model", "{refusal}");

    let path = "/v1/admin/tenants/acme/budget";
    for (wrong, field) in [
        (json!({ "limit_micro_usd": -1 }), "/limit_micro_usd"),
        (json!({ "limit_usd": 1 }), "/limit_usd"),
        (json!({}), "/limit_micro_usd"),
        (json!({ "limit_micro_usd": u64::MAX }), "/limit_micro_usd"),
        (json!({ "limit_micro_usd": 1, "window": "day" }), "/window"),
    ] {
        let (status, refusal) = admin(stack, Method::PUT, path, &wrong).await;
        assert_eq!(
            status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{wrong}: {refusal}"
        );
        assert_eq!(refusal["details"]["field"], field, "{wrong}: {refusal}");
    }
    // Another tenant's budget is answered like that of a tenant that does not exist; a client's key may
    // not ask at all.
    let mut bodies = Vec::new();
    for tenant in ["other", "not-a-tenant-anywhere"] {
        let path = format!("/v1/admin/tenants/{tenant}/budget");
        let (status, mut body) = admin(stack, Method::GET, &path, &Value::Null).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
        body["trace_id"] = Value::Null;
        bodies.push(body);
    }
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(stack.get(path).await.0, StatusCode::FORBIDDEN);
    let usage = "/v1/admin/tenants/acme/usage?from=2026-02-02&to=2026-02-01";
    let (status, _) = admin(stack, Method::GET, usage, &Value::Null).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}
