//! The fold of what the topics say, without topics and without Redis.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::money::MoneyFold;
use super::run::RunFold;
use super::session::{SessionFold, Terms};
use crate::ids::{KeyId, RunId, SessionId};
use crate::messages::{
    AuditRecord, CommandKind, Event, EventId, EventType, RunSpec, SessionRecord,
};
use crate::privacy::Sealed;

const NOW: u64 = 1_000_000_000;
const TERMS: Terms = Terms {
    now_ms: NOW,
    generation: 77,
    history_events: 5,
    run_retention_ms: 60_000,
};

fn spec(run: &RunId, kind: &str) -> RunSpec {
    serde_json::from_value(json!({
        "tenant": "acme", "run_id": run, "session_id": SessionId::generate(), "key_id": KeyId::generate(),
        "kind": kind, "created_ms": NOW - 5_000, "deadline_ms": NOW + 5_000, "max_steps": 3,
    }))
    .unwrap()
}

fn event(run: &RunId, seq: u64, event_type: EventType, data: &Value) -> Event {
    Event {
        id: EventId { generation: 1, seq },
        prev: None,
        event_type,
        session_id: SessionId::generate(),
        run_id: run.clone(),
        step_id: data.get("step").and_then(Value::as_str).map(str::to_owned),
        attempt: data.get("tool").map(|_| 1),
        ts: NOW - 4_000 + seq,
        data: RawValue::from_string(data.to_string()).unwrap(),
        state: data
            .get("state")
            .and_then(Value::as_str)
            .map(Sealed::from_stored),
    }
}

fn folded(
    kind: &str,
    commands: &[(CommandKind, u32)],
    events: &[(EventType, Value)],
) -> BTreeMap<String, String> {
    let run = RunId::generate();
    let mut fold = RunFold::default();
    for (kind_of, wake) in commands {
        let spec = spec(&run, kind);
        let plan = (*kind_of == CommandKind::Execute).then(|| Sealed::from_stored("plan"));
        fold.command(*kind_of, *wake, 0, (spec, "{}"), plan);
    }
    for (seq, (event_type, data)) in (1..).zip(events) {
        fold.event(&event(&run, seq, *event_type, data), None);
    }
    fold.restore(&run, 9).unwrap().fields
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn a_run_is_where_its_last_event_left_it() {
    use CommandKind::{Execute, Plan};
    use EventType as E;
    let queued = (E::RunQueued, json!({}));
    let planning = (E::PlanStarted, json!({}));
    let planned = (E::PlanCreated, json!({ "state": "made" }));
    let started = (E::RunStarted, json!({}));
    let ended = (E::RunSucceeded, json!({ "result": 1 }));
    for (kind, commands, events, stage, status, begun, plan) in [
        (
            "plan_execute",
            vec![(Plan, 0)],
            vec![&queued],
            "plan",
            "queued",
            None,
            None,
        ),
        (
            "plan_execute",
            vec![(Plan, 0)],
            vec![],
            "plan",
            "queued",
            None,
            None,
        ),
        (
            "plan_execute",
            vec![(Plan, 2)],
            vec![&queued, &planning],
            "plan",
            "planning",
            Some("plan"),
            None,
        ),
        // The execute command may not have reached Kafka.
        (
            "plan_execute",
            vec![(Plan, 0)],
            vec![&queued, &planning, &planned],
            "execute",
            "planning",
            Some("plan"),
            Some("made"),
        ),
        // The events may not have.
        (
            "plan_execute",
            vec![(Plan, 0), (Execute, 0)],
            vec![&queued],
            "execute",
            "queued",
            None,
            Some("plan"),
        ),
        (
            "plan_execute",
            vec![(Plan, 0), (Execute, 4)],
            vec![&queued, &planning, &planned, &started],
            "execute",
            "executing",
            Some("execute"),
            Some("made"),
        ),
        (
            "execute",
            vec![(Execute, 0)],
            vec![&queued],
            "execute",
            "queued",
            None,
            Some("plan"),
        ),
        (
            "plan",
            vec![(Plan, 0)],
            vec![&queued, &planning, &planned, &ended],
            "plan",
            "succeeded",
            None,
            Some("made"),
        ),
        // Answered without a step: it never came to the executor.
        (
            "plan_execute",
            vec![(Plan, 0)],
            vec![&queued, &planning, &planned, &ended],
            "plan",
            "succeeded",
            None,
            Some("made"),
        ),
        (
            "plan_execute",
            vec![(Plan, 0), (Execute, 0)],
            vec![&queued, &planning, &planned, &started, &ended],
            "execute",
            "succeeded",
            None,
            Some("made"),
        ),
    ] {
        let events: Vec<_> = events.into_iter().cloned().collect();
        let fields = folded(kind, &commands, &events);
        let told = format!("{kind} {commands:?} {events:?}: {fields:?}");
        let field = |name: &str| fields.get(name).map(String::as_str);
        assert_eq!(field("stage"), Some(stage), "{told}");
        assert_eq!(field("status"), Some(status), "{told}");
        assert_eq!(field("begun"), begun, "{told}");
        assert_eq!(field("plan"), plan, "{told}");
        let wake = commands.iter().filter(|(kind, _)| kind.as_str() == stage);
        let wake = wake.map(|(_, wake)| *wake).max().unwrap_or(0).to_string();
        let live = status != "succeeded";
        assert_eq!(field("wake"), live.then_some(wake.as_str()), "{told}");
        assert_eq!(field("outbox_next"), live.then_some("9"), "{told}");
    }
}

#[test]
fn steps_are_as_their_events_tell_and_nothing_follows_an_end() {
    use EventType as E;
    let step = |kind, step: &str, more: Value| {
        let mut data = json!({ "step": step, "tool": "http_fetch" });
        data.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        (kind, data)
    };
    let events = [
        step(E::StepStarted, "a", json!({})),
        step(E::StepCompleted, "a", json!({ "state": "output" })),
        step(E::StepStarted, "b", json!({})),
        step(
            E::StepRetrying,
            "b",
            json!({ "code": "http_503", "message": "busy", "state": "why" }),
        ),
        step(E::StepStarted, "c", json!({})),
        step(
            E::StepFailed,
            "c",
            json!({ "code": "outcome_unknown", "message": "lost" }),
        ),
        step(E::StepStarted, "d", json!({})),
        (E::RunFailed, json!({ "code": "c", "message": "m" })),
        (E::RunSucceeded, json!({})),
    ];
    let fields = folded("execute", &[(CommandKind::Execute, 0)], &events);
    let entry = |id: &str| -> Value { serde_json::from_str(&fields[&format!("s:{id}")]).unwrap() };
    assert_eq!(
        entry("a"),
        json!({ "status": "succeeded", "tool": "http_fetch", "attempts": 1, "started_ms": NOW - 3_999,
            "ended_ms": NOW - 3_998, "output": "output" })
    );
    assert_eq!(
        [
            &entry("b")["status"],
            &entry("b")["code"],
            &entry("b")["error"]
        ],
        ["retrying", "http_503", "why"]
    );
    assert_eq!(entry("c")["status"], "outcome_unknown");
    assert_eq!(entry("d")["status"], "running");
    assert_eq!(
        (fields["status"].as_str(), fields["code"].as_str()),
        ("failed", "c")
    );
    assert_eq!(fields["end"], r#"{"code":"c","message":"m"}"#);
}

#[test]
fn a_step_whose_event_was_too_long_gets_its_tool_from_the_plan() {
    let run = RunId::generate();
    let mut fold = RunFold::default();
    let mut long = event(
        &run,
        1,
        EventType::StepStarted,
        &json!({ "truncated": true, "step": "a" }),
    );
    long.step_id = Some("a".to_owned());
    fold.event(&long, None);
    assert!(fold.lacks_a_tool());
    fold.name_tools(&json!({ "steps": [{ "id": "a", "tool": "retrieval" }, { "id": "b" }] }));
    assert!(!fold.lacks_a_tool());
}

#[test]
fn what_was_spent_counts_once_and_where_it_was_reserved() {
    let (run, ids) = (RunId::generate(), SessionId::generate());
    let mut session = session(&ids);
    session.run(&run).command(
        CommandKind::Plan,
        0,
        0,
        (spec(&run, "plan_execute"), "{}"),
        None,
    );
    session.event(event(&run, 1, EventType::PlanStarted, &json!({})));
    let mut money = MoneyFold::default();
    // The second call's use was not known at first.
    let first = settled(&run, &ids, "1", "actual", 7, 7);
    let bounded = settled(&run, &ids, "2", "bounded", 100, 100);
    let late = settled(&run, &ids, "2", "actual", 30, -70);
    let request = request_to_cancel(&run);
    for record in [&first, &bounded, &first, &late, &bounded, &request] {
        session.audit(record);
        money.take(record);
    }
    drop(session.fold_events(None));
    let restored = session.restore(TERMS).unwrap().session;
    assert_eq!(restored.fields["cost_micro_usd"], "37");
    let fields = &restored.runs[0].fields;
    assert_eq!(fields["cost_micro_usd"], "37");
    assert_eq!(
        (
            fields["input_tokens"].as_str(),
            fields["output_tokens"].as_str()
        ),
        ("15", "6")
    );
    assert_eq!(fields["b:1"], "actual 7 202001 12 m");
    assert_eq!(fields["b:2"], "actual 30 202001 12 m");
    // The one that may have been under way, and no answers, since there is no plan yet.
    assert_eq!(fields["b:3"], "bounded 0 197001 12 -");
    assert!(
        !fields.keys().any(|name| name.starts_with("m:")),
        "{fields:?}"
    );
    assert_eq!(fields["cancel"], "graceful");

    let key = first.key_id.as_ref().unwrap();
    let month = &money.spent[&("acme".parse().unwrap(), "202001".to_owned())];
    assert_eq!(
        (month["t"], month[bounded.key_id.as_ref().unwrap().as_str()]),
        (37, 100)
    );
    assert_eq!(month[key.as_str()], 7);
    let day = &money.used[&("acme".parse().unwrap(), "19700112".to_owned())];
    assert_eq!(day[&format!("s:{ids}")], [2, 15, 0, 6, 0, 37]);
    assert_eq!(day[&format!("k:{key}:m")], [1, 5, 0, 2, 0, 7]);
}

#[test]
fn a_retry_takes_over_what_was_done_and_repeats_nothing_unsure() {
    use EventType as E;
    let step = |run: &RunId, seq, kind, id: &str, code: &str| {
        let data = json!({ "step": id, "tool": "http_fetch", "code": code, "state": "output" });
        event(run, seq, kind, &data)
    };
    for (unsure, cancelled) in [(false, None), (true, Some("graceful"))] {
        let (first, second) = (RunId::generate(), RunId::generate());
        let mut session = session(&SessionId::generate());
        let mut again = spec(&second, "execute");
        again.retry_of = Some(first.clone());
        let execute = CommandKind::Execute;
        session
            .run(&first)
            .command(execute, 0, 0, (spec(&first, "execute"), "{}"), None);
        session
            .run(&second)
            .command(execute, 0, 0, (again, "{}"), None);
        session.event(step(&first, 1, E::StepCompleted, "a", ""));
        let code = if unsure {
            "outcome_unknown"
        } else {
            "http_404"
        };
        session.event(step(&first, 2, E::StepFailed, "b", code));
        session.event(event(&first, 3, E::RunFailed, &json!({ "code": code })));
        session.event(event(&second, 4, E::RunQueued, &json!({})));
        drop(session.fold_events(None));
        let restored = session.restore(TERMS).unwrap().session;
        let fields = &restored.runs[0].fields;
        assert!(
            fields["s:a"].contains("succeeded") && !fields.contains_key("s:b"),
            "{fields:?}"
        );
        assert_eq!(fields.get("cancel").map(String::as_str), cancelled);
    }
}

#[test]
fn order_repeats_and_expiry() {
    let ids = SessionId::generate();
    let runs: Vec<RunId> = (0..3).map(|_| RunId::generate()).collect();
    let mut session = session(&ids);
    let mut events = Vec::new();
    for (n, run) in (1..).zip(&runs) {
        session
            .run(run)
            .command(CommandKind::Plan, 0, 0, (spec(run, "plan"), "{}"), None);
        events.push(event(run, n, EventType::RunQueued, &json!({})));
    }
    // The first ends; the records come in any order, and some twice.
    for (seq, kind) in [
        (4, EventType::PlanStarted),
        (5, EventType::PlanCreated),
        (6, EventType::RunSucceeded),
    ] {
        events.push(event(&runs[0], seq, kind, &json!({})));
    }
    for event in events.iter().rev().chain(&events) {
        session.glance(&event.run_id, event.event_type, event.ts);
        session.event(event.clone());
    }
    assert!(session.may_live(u64::MAX), "two runs are open");
    drop(session.fold_events(None));
    let restored = session.restore(TERMS).unwrap();
    let live: Vec<&RunId> = restored.session.runs.iter().map(|run| &run.id).collect();
    assert_eq!(live, [&runs[1], &runs[2]]);
    assert_eq!(restored.ended.len(), 1);
    // Its commands could recreate it for five more seconds; its retention is longer.
    assert_eq!(restored.ended[0].1, 60_000 - 4_000 + 6);
    let kept: Vec<&str> = restored.history.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(kept, ["1-2", "1-3", "1-4", "1-5", "1-6"], "the newest");
    assert!(
        restored
            .history
            .iter()
            .all(|(_, text)| !text.contains("state"))
    );
    assert_eq!(restored.session.fields["gen"], "77");

    let mut silent = session_of(&ids, NOW - 10_000, 9_999);
    assert!(!silent.may_live(NOW));
    drop(silent.fold_events(None));
    assert!(silent.restore(TERMS).is_none());
}

#[test]
fn a_generation_is_above_every_one_before() {
    let (ids, run) = (SessionId::generate(), RunId::generate());
    let mut session = session(&ids);
    let mut late = event(&run, 1, EventType::RunQueued, &json!({}));
    late.id.generation = 80;
    session.event(late);
    drop(session.fold_events(None));
    let restored = session.restore(TERMS).unwrap();
    assert_eq!(restored.session.fields["gen"], "81");
    assert_eq!(
        (restored.without_command, restored.session.runs.len()),
        (1, 0)
    );
}

fn session(id: &SessionId) -> SessionFold {
    session_of(id, NOW - 10_000, 60_000)
}

fn session_of(id: &SessionId, created_ms: u64, ttl_ms: u64) -> SessionFold {
    SessionFold::new(SessionRecord {
        tenant: "acme".parse().unwrap(),
        session_id: id.clone(),
        wrapped_key: "w".to_owned(),
        context: None,
        subject: None,
        metadata: None,
        ttl_ms,
        key_id: KeyId::generate(),
        max_cost_micro_usd: None,
        created_ms,
    })
}

fn settled(
    run: &RunId,
    session: &SessionId,
    call: &str,
    settlement: &str,
    cost: u64,
    delta: i64,
) -> AuditRecord {
    let record = json!({
        "v": 1, "id": format!("{call}/{settlement}"), "ts": NOW, "action": "model_call", "tenant": "acme",
        "key_id": KeyId::generate(), "session_id": session, "run_id": run, "target": "m",
        "input_tokens": 5, "output_tokens": 2, "cost_micro_usd": cost, "decision": "allowed",
        "call": call, "settlement": settlement, "delta_micro_usd": delta, "month": "202001",
    });
    serde_json::from_value(record).unwrap()
}

fn request_to_cancel(run: &RunId) -> AuditRecord {
    let record = json!({
        "v": 1, "id": "x", "ts": NOW, "action": "request", "tenant": "acme", "run_id": run,
        "route": "/v1/runs/{run_id}/cancel", "decision": "allowed",
    });
    serde_json::from_value(record).unwrap()
}

#[test]
fn what_was_said_of_a_step_is_taken_over() {
    use EventType as E;
    let step = |run: &RunId, seq, id: &str| {
        let data = json!({ "step": id, "tool": "pay", "code": "outcome_unknown" });
        event(run, seq, E::StepFailed, &data)
    };
    let (first, second) = (RunId::generate(), RunId::generate());
    let mut session = session(&SessionId::generate());
    let execute = CommandKind::Execute;
    let mut again = spec(&second, "execute");
    again.retry_of = Some(first.clone());
    for (run, spec) in [(&first, spec(&first, "execute")), (&second, again)] {
        session.run(run).command(execute, 0, 0, (spec, "{}"), None);
    }
    session.event(step(&first, 1, "a"));
    session.event(step(&first, 2, "b"));
    let end = json!({ "code": "outcome_unknown" });
    session.event(event(&first, 3, E::RunFailed, &end));
    session.event(event(&second, 4, E::RunQueued, &json!({})));
    for (id, succeeded) in [("a", true), ("b", false), ("no such step", true)] {
        let record = json!({
            "v": 1, "id": id, "ts": NOW, "action": "request", "tenant": "acme", "run_id": first,
            "decision": "allowed", "resolved": { "step_id": id, "succeeded": succeeded, "output": "said" },
        });
        session.audit(&serde_json::from_value(record).unwrap());
    }
    drop(session.fold_events(None));
    let restored = session.restore(TERMS).unwrap();
    let old = &restored.ended[0].0.fields;
    let new = &restored.session.runs[0].fields;
    assert!(old["s:a"].contains("\"output\":\"said\""), "{old:?}");
    assert!(old["s:b"].contains("resolved_failed"), "{old:?}");
    assert_eq!(new["s:a"], old["s:a"]);
    assert!(!new.contains_key("s:b") && !new.contains_key("cancel"));
}

#[test]
fn an_agent_goes_on_from_its_answers() {
    use CommandKind::{Execute, Plan};
    use EventType as E;
    let run = RunId::generate();
    let fold = |commands: &[(CommandKind, u32, u32)], ended: bool| {
        let mut fold = RunFold::default();
        for (kind, wake, turn) in commands {
            let plan = (*kind == Execute).then(|| Sealed::from_stored(format!("calls {turn}")));
            fold.command(*kind, *wake, *turn, (spec(&run, "agent"), "{}"), plan);
        }
        let created = |call| json!({ "call": call, "turn": 1, "model": "m", "state": format!("answer {call}") });
        let mut events = vec![
            (E::PlanStarted, json!({})),
            (E::PlanCreated, created(2)),
            (E::RunStarted, json!({})),
            (
                E::StepCompleted,
                json!({ "step": "t1s1", "tool": "pay", "state": "output" }),
            ),
            (E::PlanCreated, created(3)),
        ];
        events.extend(ended.then(|| (E::RunCancelled, json!({}))));
        for (seq, (kind, data)) in (1..).zip(&events) {
            fold.event(&event(&run, seq, *kind, data), None);
        }
        fold.restore(&run, 9).unwrap().fields
    };
    let all = [(Plan, 0, 0), (Execute, 1, 0), (Plan, 2, 1), (Execute, 3, 1)];
    let calling = fold(&all, false);
    for (name, value) in [
        ("stage", "execute"),
        ("turn", "1"),
        ("wake", "3"),
        ("plan", "calls 1"),
    ] {
        assert_eq!(calling[name], value, "{name}");
    }
    assert!(calling["m:2"].contains("answer 2") && calling["m:3"].contains("answer 3"));
    // Whatever the order in which the topics are read.
    let asking = fold(&[all[0], all[2], all[1]], false);
    for (name, value) in [
        ("stage", "plan"),
        ("turn", "1"),
        ("wake", "2"),
        ("begun", "plan"),
    ] {
        assert_eq!(asking[name], value, "{name}");
    }
    let ended = fold(&all, true);
    assert_eq!(ended["status"], "cancelled");
    assert!(ended["m:3"].contains("answer 3"));
}
