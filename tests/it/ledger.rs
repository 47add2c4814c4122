//! The transition scripts on a real Redis.

use agenthub::config::Rule;
use agenthub::ids::RunId;
use agenthub::messages::{CommandKind, Topic};
use agenthub::privacy::Sealed;
use agenthub::runs::{
    Admission, Cancel, CancelMode, Claim, Next, Outcome, Recorded, Renewal, RunStatus,
};
use redis::AsyncCommands;

use crate::support::eventually;
use crate::support::ledger::{Ledger, end};

#[tokio::test]
async fn a_run_goes_from_admission_to_its_end() {
    let ledger = Ledger::new(&[]).await;
    let run = RunId::generate();
    let admitting = ledger.admitted(&run).await;
    let topics: Vec<Topic> = admitting
        .outbox
        .iter()
        .map(|e| e.record.get().topic)
        .collect();
    assert_eq!(
        topics,
        [Topic::PlanCommands, Topic::AgentEvents, Topic::AuditLogs]
    );
    assert!(ledger.timer(&run).await.is_some());

    let acquired = ledger.acquire(&run, "a", CommandKind::Plan).await;
    assert_eq!(acquired.outcome, Outcome::Acquired);
    assert_eq!(acquired.session_key.as_deref(), Some("wrapped"));
    let next = Some(Next::Execute {
        plan: Sealed::from_stored("sealed-plan"),
    });
    let Recorded::Done { outbox, .. } = ledger.record(&run, "a", 1, next).await else {
        panic!()
    };
    assert_eq!(
        outbox.last().map(|e| e.record.get().topic),
        Some(Topic::ExecuteCommands)
    );
    assert!(String::from_utf8_lossy(&outbox[0].record.get().value).contains("sealed-plan"));

    assert_eq!(
        ledger.acquire(&run, "b", CommandKind::Plan).await.outcome,
        Outcome::Stale
    );
    assert_eq!(
        ledger
            .acquire(&run, "b", CommandKind::Execute)
            .await
            .outcome,
        Outcome::Acquired
    );
    ledger.record(&run, "b", 1, end(RunStatus::Succeeded)).await;
    assert_eq!(ledger.status(&run).await, Some(RunStatus::Succeeded));
    assert_eq!(ledger.terminal_events(&run).await, 1);
    assert_eq!(
        ledger
            .acquire(&run, "c", CommandKind::Execute)
            .await
            .outcome,
        Outcome::Ended
    );
}

#[tokio::test]
async fn the_outbox_empties_and_takes_the_timer_with_it() {
    let ledger = Ledger::new(&[]).await;
    let run = RunId::generate();
    let mut entries = ledger.admitted(&run).await.outbox;
    ledger.acquire(&run, "a", CommandKind::Plan).await;
    let Recorded::Done { outbox, .. } = ledger.record(&run, "a", 1, end(RunStatus::Failed)).await
    else {
        panic!()
    };
    entries.extend(outbox);
    let numbers: Vec<u64> = entries.iter().map(|e| e.number).collect();
    assert_eq!(ledger.outbox_len(&run).await, numbers.len());
    assert!(ledger.timer(&run).await.is_some());
    ledger
        .runs
        .flushed(&ledger.tenant, &[(run.clone(), numbers)])
        .await
        .unwrap();
    assert_eq!(ledger.outbox_len(&run).await, 0);
    assert_eq!(ledger.timer(&run).await, None);
}

#[tokio::test]
async fn only_the_owner_changes_a_run() {
    let ledger = Ledger::new(&[]).await;
    let run = ledger.admit().await;
    ledger.acquire(&run, "a", CommandKind::Plan).await;
    assert_eq!(
        ledger.acquire(&run, "b", CommandKind::Plan).await.outcome,
        Outcome::Busy
    );
    let foreign = ledger.record(&run, "b", 1, end(RunStatus::Failed)).await;
    assert!(matches!(foreign, Recorded::Discarded { .. }));
    assert_eq!(ledger.status(&run).await, Some(RunStatus::Planning));
    ledger.record(&run, "a", 1, end(RunStatus::Succeeded)).await;
    let late = ledger.record(&run, "a", 2, end(RunStatus::Failed)).await;
    assert!(matches!(late, Recorded::Discarded { .. }));
    assert_eq!(ledger.terminal_events(&run).await, 1);
}

#[tokio::test]
async fn a_repeated_transition_changes_nothing() {
    let ledger = Ledger::new(&[]).await;
    let run = ledger.admit().await;
    ledger.acquire(&run, "a", CommandKind::Plan).await;
    for _ in 0..2 {
        let recorded = ledger.record(&run, "a", 1, end(RunStatus::Succeeded)).await;
        assert!(matches!(recorded, Recorded::Done { .. }));
    }
    assert_eq!(ledger.terminal_events(&run).await, 1);
}

#[tokio::test]
async fn an_expired_lease_is_taken_over_through_the_sweeper() {
    let ledger = Ledger::new(&[]).await;
    let run = ledger.admit().await;
    ledger.acquire_for(&run, "a", CommandKind::Plan, 1).await;
    let swept = eventually("the lease expires", async || {
        let swept = ledger.runs.sweep(&ledger.tenant, 10).await.unwrap();
        swept
            .actions
            .iter()
            .any(|done| done.action == "lease_expired")
            .then_some(swept)
    })
    .await;
    let command = swept
        .outbox
        .iter()
        .find(|e| e.record.get().topic == Topic::PlanCommands)
        .unwrap();
    assert!(
        command.record.get().ce_id.ends_with("/plan/1"),
        "{}",
        command.record.get().ce_id
    );
    assert_eq!(
        ledger.acquire(&run, "b", CommandKind::Plan).await.outcome,
        Outcome::Resumed
    );
    let late = ledger.record(&run, "a", 1, end(RunStatus::Failed)).await;
    assert!(matches!(late, Recorded::Discarded { .. }));
}

#[tokio::test]
async fn a_command_that_never_gets_on_is_given_up() {
    let ledger = Ledger::new(&[]).await;
    let run = ledger.admit().await;
    for owner in ["a", "b", "c"] {
        let outcome = eventually("the lease before expires", async || {
            let acquired = ledger.acquire_for(&run, owner, CommandKind::Plan, 1).await;
            (acquired.outcome != Outcome::Busy).then_some(acquired.outcome)
        });
        assert!(matches!(
            outcome.await,
            Outcome::Acquired | Outcome::Resumed
        ));
        // What only repeats the past is no progress.
        ledger.record(&run, owner, 1, None).await;
    }
    let outcome = eventually("the lease before expires", async || {
        let acquired = ledger.acquire(&run, "d", CommandKind::Plan).await;
        (acquired.outcome != Outcome::Busy).then_some(acquired.outcome)
    });
    assert_eq!(outcome.await, Outcome::Poisoned);
}

#[tokio::test]
async fn asking_again_for_a_lost_answer_uses_nothing_up() {
    let ledger = Ledger::new(&[]).await;
    let run = ledger.admit().await;
    for _ in 0..5 {
        let acquired = ledger.acquire(&run, "same", CommandKind::Plan).await;
        assert_eq!(acquired.outcome, Outcome::Acquired);
        assert_eq!(acquired.fields.number("deliveries"), 1);
    }
}

#[tokio::test]
async fn raising_a_limit_keeps_the_window_moving() {
    let ledger = Ledger::new(&[]).await;
    let look = async |limit| {
        let rules = [Rule {
            limit,
            window_ms: 30,
        }];
        ledger
            .runs
            .look(&ledger.tenant, ledger.gate(&rules))
            .await
            .unwrap()
    };
    for limit in [10, 20, 7, 20, 10] {
        for _ in 0..25 {
            look(limit).await;
        }
        eventually("a place is free", async || {
            matches!(look(limit).await, agenthub::runs::Read::Found { .. }).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_cancellation_outlives_parking() {
    let ledger = Ledger::new(&[]).await;
    let run = ledger.admit().await;
    ledger.acquire(&run, "a", CommandKind::Plan).await;
    let gate = ledger.gate(&[]);
    let cancelled = ledger
        .runs
        .cancel(
            &ledger.tenant,
            gate,
            &run,
            CancelMode::Graceful,
            ("id", "{}"),
        )
        .await;
    assert!(matches!(cancelled.unwrap(), Cancel::Accepted { .. }));
    let park = Some(Next::Park {
        wake_at: crate::support::ledger::now_ms() + 600_000,
    });
    ledger.record(&run, "a", 1, park).await;
    assert_eq!(ledger.status(&run).await, Some(RunStatus::Cancelled));
    assert_eq!(ledger.terminal_events(&run).await, 1);
}

#[tokio::test]
async fn runs_of_a_session_keep_their_order() {
    let ledger = Ledger::new(&[]).await;
    let (first, second) = (ledger.admit().await, ledger.admit().await);
    assert_eq!(
        ledger
            .acquire(&second, "b", CommandKind::Plan)
            .await
            .outcome,
        Outcome::Waiting
    );
    assert_eq!(
        ledger.acquire(&first, "a", CommandKind::Plan).await.outcome,
        Outcome::Acquired
    );
    let Recorded::Done { outbox, .. } = ledger
        .record(&first, "a", 1, end(RunStatus::Succeeded))
        .await
    else {
        panic!()
    };
    let woken = outbox
        .iter()
        .filter(|e| e.run_id == second && e.record.get().topic == Topic::PlanCommands);
    assert_eq!(woken.count(), 1);
    assert_eq!(
        ledger
            .acquire(&second, "b", CommandKind::Plan)
            .await
            .outcome,
        Outcome::Acquired
    );
}

#[tokio::test]
async fn a_tenant_without_a_free_slot_waits() {
    let ledger = Ledger::new(&[("AGENTHUB_MAX_LIVE_RUNS", "1")]).await;
    let (first, second) = (RunId::generate(), RunId::generate());
    for run in [&first, &second] {
        assert!(matches!(
            ledger.try_admit(run, |a| a.parallel = true).await,
            Admission::Admitted(_)
        ));
    }
    assert_eq!(
        ledger.acquire(&first, "a", CommandKind::Plan).await.outcome,
        Outcome::Acquired
    );
    assert_eq!(
        ledger
            .acquire(&second, "b", CommandKind::Plan)
            .await
            .outcome,
        Outcome::Waiting
    );
    let Recorded::Done { outbox, .. } = ledger.record(&first, "a", 1, end(RunStatus::Failed)).await
    else {
        panic!()
    };
    assert!(
        outbox
            .iter()
            .any(|e| e.run_id == second && e.record.get().topic == Topic::PlanCommands)
    );
    assert_eq!(
        ledger
            .acquire(&second, "b", CommandKind::Plan)
            .await
            .outcome,
        Outcome::Acquired
    );
    let live: Vec<String> = ledger
        .redis
        .connection()
        .smembers(ledger.key("live"))
        .await
        .unwrap();
    assert_eq!(live, [second.as_str()]);
}

#[tokio::test]
async fn a_key_without_a_free_slot_waits_and_no_other_key_with_it() {
    let mut ledger = Ledger::new(&[]).await;
    let mut redis = ledger.redis.connection();
    let tenant = ledger.key("tenant");
    redis
        .hset::<_, _, _, ()>(&tenant, "max_live_runs_per_key", "1")
        .await
        .unwrap();
    let runs = [(); 3].map(|()| RunId::generate());
    for run in &runs {
        let admission = ledger.try_admit(run, |a| a.parallel = true).await;
        assert!(matches!(admission, Admission::Admitted(_)));
    }
    let [first, second, third] = &runs;
    let acquire = async |ledger: &Ledger, run: &RunId| {
        ledger
            .acquire(run, run.as_str(), CommandKind::Plan)
            .await
            .outcome
    };
    assert_eq!(acquire(&ledger, first).await, Outcome::Acquired);
    assert_eq!(acquire(&ledger, second).await, Outcome::Waiting);
    assert_eq!(acquire(&ledger, third).await, Outcome::Waiting);
    let key = std::mem::replace(&mut ledger.key_id, agenthub::ids::KeyId::generate());
    ledger.put_key("client", "active").await;
    let others = RunId::generate();
    let admission = ledger.try_admit(&others, |a| a.parallel = true).await;
    assert!(matches!(admission, Admission::Admitted(_)));
    assert_eq!(acquire(&ledger, &others).await, Outcome::Acquired);

    // The slot goes to the one that waited longest, and only when it is free.
    let end_of = async |run: &RunId| {
        let recorded = ledger
            .record(run, run.as_str(), 1, end(RunStatus::Succeeded))
            .await;
        let Recorded::Done { outbox, .. } = recorded else {
            panic!()
        };
        let commands = outbox
            .iter()
            .filter(|e| e.record.get().topic == Topic::PlanCommands);
        commands.map(|e| e.run_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(end_of(&others).await, []);
    assert_eq!(end_of(first).await, std::slice::from_ref(second));
    assert_eq!(acquire(&ledger, third).await, Outcome::Waiting);
    assert_eq!(acquire(&ledger, second).await, Outcome::Acquired);
    // One that waits can end too; its place goes with it.
    let cancelled = ledger
        .runs
        .cancel(
            &ledger.tenant,
            ledger.gate(&[]),
            third,
            CancelMode::Graceful,
            ("id", "{}"),
        )
        .await;
    assert!(matches!(cancelled.unwrap(), Cancel::Accepted { .. }));
    assert_eq!(end_of(second).await, []);
    for name in [format!("live:{key}"), format!("wait:{key}")] {
        let left: bool = redis.exists(ledger.key(&name)).await.unwrap();
        assert!(!left, "{name}");
    }
}

#[tokio::test]
async fn a_busy_session_can_refuse() {
    let ledger = Ledger::new(&[]).await;
    ledger.admit().await;
    let refused = ledger
        .try_admit(&RunId::generate(), |a| a.reject = true)
        .await;
    let Admission::Refused(refusal) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(
        (refusal.code.as_str(), refusal.rule.as_str()),
        ("session_busy", "on_conflict")
    );
}

#[tokio::test]
async fn cancelling_ends_a_run_at_once_or_through_its_owner() {
    let ledger = Ledger::new(&[]).await;
    let cancel = async |run: &RunId| {
        let gate = ledger.gate(&[]);
        ledger
            .runs
            .cancel(
                &ledger.tenant,
                gate,
                run,
                CancelMode::Graceful,
                ("id", "{}"),
            )
            .await
            .unwrap()
    };
    let queued = ledger.admit().await;
    assert!(matches!(
        cancel(&queued).await,
        Cancel::Accepted {
            status: Some(RunStatus::Cancelled),
            ..
        }
    ));
    assert!(matches!(cancel(&queued).await, Cancel::Ended { .. }));

    let owned = ledger.admit().await;
    ledger.acquire(&owned, "a", CommandKind::Plan).await;
    assert!(matches!(
        cancel(&owned).await,
        Cancel::Accepted {
            status: Some(RunStatus::Cancelling),
            ..
        }
    ));
    let renewals = ledger
        .runs
        .renew(&ledger.tenant, &[(owned.clone(), "a".into())], 1000)
        .await
        .unwrap();
    assert_eq!(renewals, [Renewal::Cancel(CancelMode::Graceful)]);
    ledger
        .record(&owned, "a", 1, end(RunStatus::Cancelled))
        .await;
    assert_eq!(ledger.terminal_events(&owned).await, 1);
    assert!(matches!(
        cancel(&RunId::generate()).await,
        Cancel::Refused(_)
    ));
}

#[tokio::test]
async fn the_same_idempotency_key_starts_one_run() {
    let ledger = Ledger::new(&[]).await;
    let attempt = async |fingerprint: &'static str| {
        let run = RunId::generate();
        let claim = Claim {
            key: "k",
            fingerprint,
            ttl_ms: 60_000,
        };
        (
            run.clone(),
            ledger
                .try_admit(&run, |a| a.idempotency = Some(claim))
                .await,
        )
    };
    let (run, admitted) = attempt("one").await;
    assert!(matches!(admitted, Admission::Admitted(_)));
    let (_, replayed) = attempt("one").await;
    assert!(matches!(replayed, Admission::Replayed { run: r, .. } if r == run));
    let (_, refused) = attempt("two").await;
    assert!(matches!(refused, Admission::Refused(r) if r.code == "idempotency_mismatch"));
    let runs: Vec<String> = ledger
        .redis
        .connection()
        .zrange(ledger.key("runs"), 0, -1)
        .await
        .unwrap();
    assert_eq!(runs, [run.as_str()]);
}

#[tokio::test]
async fn the_gate_refuses_without_a_trace() {
    let ledger = Ledger::new(&[]).await;
    let refused = async |change: &dyn Fn(&mut agenthub::runs::Gate)| {
        let admission = ledger
            .try_admit(&RunId::generate(), |a| change(&mut a.gate))
            .await;
        let Admission::Refused(refusal) = admission else {
            panic!("{admission:?}")
        };
        refusal.code
    };
    assert_eq!(
        refused(&|g| g.secret_hash = "other".into()).await,
        "unauthenticated"
    );
    assert_eq!(
        refused(&|g| g.key_id = agenthub::ids::KeyId::generate()).await,
        "unauthenticated"
    );
    assert_eq!(refused(&|g| g.roles = vec!["admin"]).await, "forbidden");
    ledger.put_key("client", "revoked").await;
    assert_eq!(refused(&|_| {}).await, "unauthenticated");
    let runs: usize = ledger
        .redis
        .connection()
        .zcard(ledger.key("runs"))
        .await
        .unwrap();
    assert_eq!(runs, 0);
}

#[tokio::test]
async fn no_window_holds_more_than_its_limit() {
    let ledger = Ledger::new(&[]).await;
    let rules = [
        Rule {
            limit: 3,
            window_ms: 60_000,
        },
        Rule {
            limit: 100,
            window_ms: 1000,
        },
    ];
    let mut codes = Vec::new();
    for _ in 0..5 {
        match ledger
            .runs
            .look(&ledger.tenant, ledger.gate(&rules))
            .await
            .unwrap()
        {
            agenthub::runs::Read::Found { limits, .. } => {
                codes.push(format!("{}", limits[0].remaining));
            }
            agenthub::runs::Read::Refused(refusal) => {
                assert_eq!(refusal.rule, "key_rate_limit");
                assert!(
                    refusal.limits[0].reset_ms > 50_000 && refusal.limits[0].reset_ms <= 60_000
                );
                // A refusal consumes nothing of the other window.
                assert_eq!(refusal.limits[1].remaining, 97);
                codes.push(refusal.code);
            }
        }
    }
    assert_eq!(codes, ["2", "1", "0", "rate_limited", "rate_limited"]);
}

#[tokio::test]
async fn a_lost_run_is_recreated_from_its_command() {
    let ledger = Ledger::new(&[]).await;
    let run = ledger.admit().await;
    let keys = [
        ledger.key(&format!("run:{run}")),
        ledger.key("timers"),
        ledger.key(&format!("ord:{}", ledger.session)),
    ];
    ledger.redis.connection().del::<_, ()>(&keys).await.unwrap();
    assert_eq!(
        ledger.acquire(&run, "a", CommandKind::Plan).await.outcome,
        Outcome::Acquired
    );
    assert!(ledger.timer(&run).await.is_some());
    ledger.record(&run, "a", 1, end(RunStatus::Succeeded)).await;
    assert_eq!(ledger.terminal_events(&run).await, 1);
}

#[tokio::test]
async fn an_erased_session_takes_its_runs_with_it() {
    let ledger = Ledger::new(&[]).await;
    let run = RunId::generate();
    let mut entries = ledger.admitted(&run).await.outbox;
    let (erased, outbox) = ledger
        .runs
        .delete_session(&ledger.tenant, &ledger.session)
        .await
        .unwrap();
    assert_eq!(erased, 1);
    assert!(!outbox.is_empty());
    assert_eq!(
        ledger.acquire(&run, "a", CommandKind::Plan).await.outcome,
        Outcome::Ended
    );
    let read = ledger
        .runs
        .run(&ledger.tenant, ledger.gate(&[]), &run)
        .await
        .unwrap();
    assert!(matches!(read, agenthub::runs::Read::Refused(refusal) if refusal.code == "not_found"));
    // What Kafka has not acknowledged is still there for the sweeper, and nothing else.
    entries.extend(outbox);
    let numbers: Vec<u64> = entries.iter().map(|e| e.number).collect();
    assert_eq!(ledger.outbox_len(&run).await, numbers.len());
    assert!(ledger.timer(&run).await.is_some());
    ledger
        .runs
        .flushed(&ledger.tenant, &[(run.clone(), numbers)])
        .await
        .unwrap();
    let mut keys: Vec<String> = ledger
        .redis
        .connection()
        .keys(ledger.key("*"))
        .await
        .unwrap();
    keys.retain(|k| k.contains(run.as_str()) || k.contains(ledger.session.as_str()));
    assert!(keys.is_empty(), "{keys:?}");
    assert_eq!(ledger.timer(&run).await, None);
}
