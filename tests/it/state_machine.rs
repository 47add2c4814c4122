//! The state machine of runs: a pure model, its states explored exhaustively, and the scripts held against
//! it with random sequences on a real Redis.

mod model;

use std::collections::{BTreeSet, VecDeque};

use agenthub::ids::RunId;
use agenthub::messages::{CommandKind, Told};
use agenthub::privacy::Sealed;
use agenthub::runs::{
    Admission, Cancel, CancelMode, Next, Recorded, Renewal, RunStatus, Transition,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::AsyncCommands;

use self::model::{Model, Place, Time, To};
use crate::support::ledger::Ledger;

const OWNERS: [&str; 3] = ["a", "b", "c"];

/// One thing that may happen. Runs are counted modulo those that there are.
#[derive(Debug, Clone, Copy)]
enum Op {
    Admit {
        parallel: bool,
        reject: bool,
    },
    Acquire {
        run: usize,
        owner: u8,
        stage: CommandKind,
    },
    /// `repeat`: the answer to the owner's last transition was lost, and it asks again.
    Record {
        run: usize,
        owner: u8,
        progress: bool,
        repeat: bool,
        to: To,
    },
    Renew {
        run: usize,
        owner: u8,
    },
    Cancel {
        run: usize,
        mode: CancelMode,
    },
    Abandon {
        run: usize,
    },
    /// A worker dies, and its lease runs out.
    LeaseEnds {
        run: usize,
    },
    /// The time of the next attempt comes.
    WaitEnds {
        run: usize,
    },
    DeadlineComes {
        run: usize,
    },
    Sweep,
}

const DESTINATIONS: [To; 6] = [
    To::Nowhere,
    To::Execute,
    To::Park,
    To::End(RunStatus::Succeeded),
    To::End(RunStatus::Failed),
    To::End(RunStatus::Cancelled),
];
const STAGES: [CommandKind; 2] = [CommandKind::Plan, CommandKind::Execute];
const MODES: [CancelMode; 2] = [CancelMode::Graceful, CancelMode::Force];

/// Everything that may happen to `runs` runs with `owners` workers.
fn everything(runs: usize, owners: u8) -> Vec<Op> {
    let mut ops = vec![Op::Sweep];
    for parallel in [false, true] {
        ops.push(Op::Admit {
            parallel,
            reject: false,
        });
    }
    for run in 0..runs {
        ops.extend([
            Op::Abandon { run },
            Op::LeaseEnds { run },
            Op::WaitEnds { run },
            Op::DeadlineComes { run },
        ]);
        ops.extend(MODES.map(|mode| Op::Cancel { run, mode }));
        for owner in 0..owners {
            ops.push(Op::Renew { run, owner });
            ops.extend(STAGES.map(|stage| Op::Acquire { run, owner, stage }));
            for to in DESTINATIONS {
                ops.push(Op::Record {
                    run,
                    owner,
                    progress: true,
                    repeat: false,
                    to,
                });
            }
        }
    }
    ops
}

/// Does to the model what needs no answer.
fn time_passes(model: &mut Model, op: Op, tick: u32) -> bool {
    let come = Time::Come(tick);
    match op {
        Op::LeaseEnds { run } => {
            let run = &mut model.runs[run];
            let passes = run.owner.is_some() && run.lease == Time::Ahead;
            if passes {
                run.lease = come;
            }
            passes
        }
        Op::WaitEnds { run } => {
            let run = &mut model.runs[run];
            let passes = run.wake_at == Some(Time::Ahead);
            if passes {
                run.wake_at = Some(come);
            }
            passes
        }
        Op::DeadlineComes { run } => {
            let run = &mut model.runs[run];
            let passes = !run.is_terminal() && run.deadline == Time::Ahead;
            if passes {
                run.deadline = come;
            }
            passes
        }
        _ => false,
    }
}

/// Every state that two runs and two workers can reach within so many things that happen keeps the
/// invariants.
#[test]
fn every_state_within_seven_steps_is_sound() {
    const RUNS: usize = 2;
    const STEPS: usize = 7;
    let mut seen = BTreeSet::new();
    let mut next = VecDeque::from([(Model::default(), 0)]);
    while let Some((state, steps)) = next.pop_front() {
        if steps == STEPS {
            continue;
        }
        for op in everything(state.runs.len(), 2) {
            let mut model = state.clone();
            match op {
                Op::Admit { .. } if state.runs.len() == RUNS => continue,
                Op::Admit { parallel, reject } => {
                    model.admit(parallel, reject);
                }
                Op::Acquire { run, owner, stage } => {
                    model.acquire(run, owner, stage);
                }
                Op::Record {
                    run,
                    owner,
                    progress,
                    to,
                    ..
                } => {
                    // Every transition is a new one; what repeats do is for the random sequences.
                    model.record(run, owner, u64::MAX, progress, to);
                    model.forget_transitions();
                }
                Op::Renew { run, owner } => {
                    model.renew(run, owner);
                }
                Op::Cancel { run, mode } => {
                    model.cancel(run, mode);
                }
                Op::Abandon { run } => {
                    model.abandon(run);
                }
                Op::Sweep => {
                    model.sweep();
                }
                Op::LeaseEnds { .. } | Op::WaitEnds { .. } | Op::DeadlineComes { .. } => {
                    time_passes(&mut model, op, 0);
                }
            }
            model.check();
            for (before, after) in state.runs.iter().zip(&model.runs) {
                let moved = before.is_terminal() && before.status != after.status;
                assert!(!moved, "a terminal run moved on {op:?}: {state:?}");
            }
            if seen.insert(model.clone()) {
                next.push_back((model, steps + 1));
            }
        }
    }
    assert!(seen.len() > 10_000, "{} states", seen.len());
}

fn op() -> impl Strategy<Value = Op> {
    let run = || 0..4_usize;
    let owner = || 0..3_u8;
    let stage = proptest::sample::select(&STAGES[..]);
    let mode = proptest::sample::select(&MODES[..]);
    let to = prop_oneof![
        3 => Just(To::Nowhere),
        3 => Just(To::Execute),
        2 => Just(To::Park),
        2 => proptest::sample::select(&DESTINATIONS[3..]),
    ];
    prop_oneof![
        4 => (any::<bool>(), proptest::bool::weighted(0.1))
            .prop_map(|(parallel, reject)| Op::Admit { parallel, reject }),
        8 => (run(), owner(), stage).prop_map(|(run, owner, stage)| Op::Acquire { run, owner, stage }),
        8 => (run(), owner(), any::<bool>(), proptest::bool::weighted(0.2), to).prop_map(
            |(run, owner, progress, repeat, to)| Op::Record { run, owner, progress, repeat, to }
        ),
        1 => (run(), owner()).prop_map(|(run, owner)| Op::Renew { run, owner }),
        1 => (run(), mode).prop_map(|(run, mode)| Op::Cancel { run, mode }),
        1 => run().prop_map(|run| Op::Abandon { run }),
        3 => run().prop_map(|run| Op::LeaseEnds { run }),
        3 => run().prop_map(|run| Op::WaitEnds { run }),
        1 => run().prop_map(|run| Op::DeadlineComes { run }),
        3 => Just(Op::Sweep),
    ]
}

/// Random sequences of everything that may happen, duplicates, stale owners and crashes included: after
/// each step the ledger answers and stands as the model says.
#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_do_what_the_model_says() {
    let handle = tokio::runtime::Handle::current();
    let cases = move || {
        let config = Config {
            cases: 60,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&proptest::collection::vec(op(), 1..60), |ops| {
                handle.block_on(async {
                    let mut pair = Pair::new().await;
                    for op in &ops {
                        pair.step(*op).await?;
                    }
                    Ok(())
                })
            })
            .unwrap();
    };
    tokio::task::spawn_blocking(cases).await.unwrap();
}

/// The model and a ledger to which the same things happen.
struct Pair {
    model: Model,
    ledger: Ledger,
    ids: Vec<RunId>,
    /// The number of each owner's last transition of each run.
    numbers: Vec<[u64; OWNERS.len()]>,
    tick: u32,
}

impl Pair {
    async fn new() -> Self {
        let live = model::MAX_LIVE.to_string();
        // The model knows no time that passes by itself: on a slow machine a sequence takes seconds.
        let retry = 3_600_000.to_string();
        let extra = [
            ("AGENTHUB_MAX_LIVE_RUNS", live.as_str()),
            ("AGENTHUB_OUTBOX_RETRY_MS", retry.as_str()),
        ];
        Self {
            model: Model::default(),
            ledger: Ledger::new(&extra).await,
            ids: Vec::new(),
            numbers: Vec::new(),
            tick: 0,
        }
    }

    async fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        if self.ids.is_empty() && !matches!(op, Op::Admit { .. } | Op::Sweep) {
            return Ok(());
        }
        let (model, ledger, ids) = (&mut self.model, &self.ledger, &mut self.ids);
        let count = ids.len().max(1);
        let tenant = &ledger.tenant;
        match op {
            Op::Admit { parallel, reject } => {
                let id = RunId::generate();
                let admission = ledger
                    .try_admit(&id, |admit| {
                        admit.parallel = parallel;
                        admit.reject = reject;
                    })
                    .await;
                let admitted = matches!(admission, Admission::Admitted(_));
                prop_assert_eq!(admitted, model.admit(parallel, reject), "{:?}", op);
                if admitted {
                    ids.push(id);
                    self.numbers.push([0; OWNERS.len()]);
                }
            }
            Op::Acquire { run, owner, stage } => {
                let run = run % count;
                let name = OWNERS[usize::from(owner)];
                let acquired = ledger
                    .acquire_of(&ids[run], name, stage, 60_000, model::MAX_DELIVERIES)
                    .await;
                prop_assert_eq!(
                    acquired.outcome,
                    model.acquire(run, owner, stage),
                    "{:?}",
                    op
                );
            }
            Op::Record {
                run,
                owner,
                progress,
                repeat,
                to,
            } => {
                let run = run % count;
                let number = &mut self.numbers[run][usize::from(owner)];
                if !repeat || *number == 0 {
                    *number += 1;
                }
                let name = OWNERS[usize::from(owner)];
                let mut transition = Transition::new(&ids[run], name, *number);
                transition.progress = progress;
                transition.next = next(to);
                let recorded = ledger.runs.record(tenant, &transition).await.unwrap();
                let found = match recorded {
                    Recorded::Done { cancel, .. } => (true, cancel.map(mode_name)),
                    Recorded::Discarded { .. } => (false, None),
                };
                let expected = model.record(run, owner, *number, progress, to);
                prop_assert_eq!(found, expected, "{:?}", op);
            }
            Op::Renew { run, owner } => {
                let run = run % count;
                let pair = (ids[run].clone(), OWNERS[usize::from(owner)].to_owned());
                let renewed = ledger.runs.renew(tenant, &[pair], 60_000).await.unwrap();
                let found = match renewed[0] {
                    Renewal::Owned => Some(None),
                    Renewal::Cancel(mode) => Some(Some(mode_name(mode))),
                    Renewal::Lost => None,
                };
                prop_assert_eq!(found, model.renew(run, owner), "{:?}", op);
            }
            Op::Cancel { run, mode } => {
                let run = run % count;
                let gate = ledger.gate(&[]);
                let cancelled = ledger
                    .runs
                    .cancel(tenant, gate, &ids[run], mode, ("x", "{}"));
                let status = match cancelled.await.unwrap() {
                    Cancel::Ended { status, .. } | Cancel::Accepted { status, .. } => status,
                    Cancel::Refused(refusal) => panic!("{refusal:?}"),
                };
                let found = status.map(RunStatus::as_str);
                prop_assert_eq!(found, Some(model.cancel(run, mode)), "{:?}", op);
            }
            Op::Abandon { run } => {
                let run = run % count;
                let abandoned = ledger
                    .runs
                    .abandon(tenant, &ids[run], &Told::nothing())
                    .await
                    .unwrap();
                prop_assert_eq!(abandoned.is_some(), model.abandon(run), "{:?}", op);
            }
            Op::Sweep => {
                let swept = ledger.runs.sweep(tenant, 100).await.unwrap();
                let found: Vec<(String, usize)> = swept
                    .actions
                    .into_iter()
                    .map(|done| {
                        let run = ids.iter().position(|known| known.as_str() == done.run);
                        let ends = ["timed_out", "cancelled"].contains(&done.action.as_str());
                        assert_eq!(done.ended.is_some(), ends, "{}", done.action);
                        (done.action, run.unwrap())
                    })
                    .collect();
                let expected: Vec<(String, usize)> = model
                    .sweep()
                    .into_iter()
                    .map(|(action, run)| (action.to_owned(), run))
                    .collect();
                prop_assert_eq!(found, expected, "{:?}", op);
            }
            Op::LeaseEnds { run } => {
                self.comes(Op::LeaseEnds { run: run % count }, "lease")
                    .await;
            }
            Op::WaitEnds { run } => {
                self.comes(Op::WaitEnds { run: run % count }, "wake_at")
                    .await;
            }
            Op::DeadlineComes { run } => {
                self.comes(Op::DeadlineComes { run: run % count }, "deadline")
                    .await;
            }
        }
        self.model.check();
        self.compare(op).await
    }

    /// Lets a time of a run come, in the model and in the ledger.
    async fn comes(&mut self, op: Op, field: &str) {
        self.tick += 1;
        let (Op::LeaseEnds { run } | Op::WaitEnds { run } | Op::DeadlineComes { run }) = op else {
            return;
        };
        if !time_passes(&mut self.model, op, self.tick) {
            return;
        }
        let mut connection = self.ledger.redis.connection();
        let id = &self.ids[run];
        let hash = self.ledger.key(&format!("run:{id}"));
        let timers = self.ledger.key("timers");
        connection
            .hset::<_, _, _, ()>(hash, field, self.tick)
            .await
            .unwrap();
        let mut lower = redis::cmd("ZADD");
        lower.arg(timers).arg("LT").arg(self.tick).arg(id.as_str());
        lower.exec_async(&mut connection).await.unwrap();
    }

    /// Whether the ledger stands as the model says.
    async fn compare(&self, op: Op) -> Result<(), TestCaseError> {
        let ledger = &self.ledger;
        let mut connection = ledger.redis.connection();
        let position = |id: &String| self.ids.iter().position(|known| known.as_str() == id);
        let order: Vec<String> = connection
            .lrange(ledger.key(&format!("ord:{}", ledger.session)), 0, -1)
            .await
            .unwrap();
        let order: Vec<usize> = order.iter().filter_map(position).collect();
        prop_assert_eq!(&order, &self.model.order, "order after {:?}", op);
        let live: Vec<String> = connection.smembers(ledger.key("live")).await.unwrap();
        let live: BTreeSet<usize> = live.iter().filter_map(position).collect();
        prop_assert_eq!(&live, &self.model.live, "slots after {:?}", op);
        for (id, run) in self.ids.iter().zip(&self.model.runs) {
            let hash = ledger.key(&format!("run:{id}"));
            let names = ["status", "stage", "owner", "cancel", "deliveries", "parked"];
            let fields: Vec<Option<String>> = connection.hmget(hash, &names[..]).await.unwrap();
            let parked = run.parked.map(|place| match place {
                Place::Session => "session",
                Place::Tenant => "tenant",
            });
            let expected = [
                Some(run.status),
                Some(run.stage),
                run.owner.map(|owner| OWNERS[usize::from(owner)]),
                run.cancel,
                None,
                parked,
            ];
            for (index, name) in names
                .iter()
                .enumerate()
                .filter(|(_, n)| **n != "deliveries")
            {
                prop_assert_eq!(
                    fields[index].as_deref(),
                    expected[index],
                    "{} after {:?}",
                    name,
                    op
                );
            }
            let deliveries = fields[4].as_deref().unwrap_or("0").parse().ok();
            prop_assert_eq!(
                deliveries,
                Some(run.deliveries),
                "deliveries after {:?}",
                op
            );
            let events = ledger.terminal_events(id).await;
            prop_assert_eq!(events, run.terminal_events as usize, "after {:?}", op);
            // One timer for each run that lives; here every outbox has entries, which need one too.
            prop_assert!(ledger.timer(id).await.is_some(), "no timer after {:?}", op);
        }
        Ok(())
    }
}

fn mode_name(mode: CancelMode) -> &'static str {
    match mode {
        CancelMode::Graceful => "graceful",
        CancelMode::Force => "force",
    }
}

fn next(to: To) -> Option<Next> {
    Some(match to {
        To::Nowhere => return None,
        To::Execute => Next::Execute {
            plan: Sealed::from_stored("plan"),
        },
        To::Park => Next::Park {
            wake_at: agenthub::runtime::clock::now_ms() + 60_000,
        },
        To::End(status) => Next::End {
            status,
            data: Told::nothing(),
            state: None,
        },
    })
}
