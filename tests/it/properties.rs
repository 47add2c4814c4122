//! Scripts held against plain models, by random sequences.

use std::collections::{BTreeMap, VecDeque};

use agenthub::messages::RateRule;
use agenthub::runs::{ClaimEnd, Claimed, Claiming, Fence, Read};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::ledger::Ledger;

/// Runs a property whose cases need a ledger each.
fn hold<S: Strategy>(cases: u32, strategy: S, property: impl AsyncFn(S::Value)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&strategy, |value| {
        runtime.block_on(property(value));
        Ok(())
    });
    outcome.unwrap();
}

/// The windows as the contract has them: at most `limit` accepted in any `window_ms`.
struct Window {
    rule: RateRule,
    accepted: VecDeque<u64>,
}

impl Window {
    fn leave(&mut self, now: u64) {
        while self
            .accepted
            .front()
            .is_some_and(|at| at + self.rule.window_ms <= now)
        {
            self.accepted.pop_front();
        }
    }

    fn free(&self) -> u32 {
        self.rule.limit - u32::try_from(self.accepted.len()).unwrap()
    }
}

/// The time of the cases: far longer than a case takes, since Redis forgets a window by its own clock.
const UNIT_MS: u64 = 10_000;

/// Every answer of the limiter is that of a list of times per rule: what it accepts, what it says is
/// left, when it says a place is free, and that a refusal takes nothing of the others.
#[test]
fn the_limiter_is_an_exact_sliding_log() {
    let rule = (1_u32..6, 1_u64..60).prop_map(|(limit, units)| RateRule {
        limit,
        window_ms: units * UNIT_MS,
    });
    let key_rules = prop::collection::vec(rule.clone(), 1..3)
        .prop_filter("one rule for a window", |r| {
            r.len() < 2 || r[0].window_ms != r[1].window_ms
        });
    let steps = prop::collection::vec(
        prop_oneof![3 => Just(0_u64), 5 => 0_u64..12, 1 => 0_u64..150],
        1..80,
    );
    hold(
        48,
        (key_rules, rule, steps),
        async |(key_rules, tenant_rule, steps)| {
            let ledger = Ledger::new(&[]).await;
            // Ahead of Redis' clock, which then says nothing.
            let mut now = crate::support::ledger::now_ms() + 3_600_000;
            let rules = key_rules.iter().copied().chain([tenant_rule]);
            let mut windows: Vec<Window> = rules
                .map(|rule| Window {
                    rule,
                    accepted: VecDeque::new(),
                })
                .collect();
            for step in steps {
                now += step * UNIT_MS;
                let mut gate = ledger.gate(&[]);
                gate.key_rules.clone_from(&key_rules);
                gate.tenant_rules = vec![tenant_rule];
                gate.not_before = Some(now);
                for window in &mut windows {
                    window.leave(now);
                }
                let fits = windows.iter().all(|window| window.free() > 0);
                let (accepted, limits) = match ledger.runs.look(&ledger.tenant, gate).await.unwrap()
                {
                    Read::Found { limits, .. } => (true, limits),
                    Read::Refused(refusal) => {
                        assert_eq!(refusal.code, "rate_limited");
                        (false, refusal.limits)
                    }
                };
                assert_eq!(accepted, fits, "at {now}");
                for (window, row) in windows.iter_mut().zip(&limits) {
                    assert_eq!(
                        (row.limit, row.window_ms),
                        (window.rule.limit, window.rule.window_ms)
                    );
                    // Places come back when the oldest leaves, and not a millisecond earlier.
                    let oldest = window.accepted.front().copied();
                    let reset =
                        oldest.map_or(window.rule.window_ms, |at| at + window.rule.window_ms - now);
                    assert_eq!(row.reset_ms, reset, "{row:?}");
                    if accepted {
                        window.accepted.push_back(now);
                    }
                    assert_eq!(row.remaining, window.free(), "{row:?}");
                }
            }
        },
    );
}

/// What an attempt does with a claim.
#[derive(Debug, Clone, Copy)]
enum Deed {
    /// An attempt begins: which key, with which content, whether its lease has run out at once.
    Claim {
        key: usize,
        content: usize,
        dies: bool,
    },
    /// The attempt that began so many claims ago ends.
    Settle { back: usize, outcome: usize },
}

/// A claim as the contract has it.
#[derive(Debug, Clone)]
struct Claim {
    content: usize,
    subject: String,
    owner: Option<String>,
    leased: bool,
    answer: Option<String>,
}

const KEYS: [&str; 2] = ["k0", "k1"];
const CONTENTS: [&str; 2] = ["c0", "c1"];

/// One claim at a time per key, one answer for ever, and no settlement by an attempt that was overtaken.
#[test]
fn claims_follow_their_state_machine() {
    let deed = prop_oneof![
        (0..2_usize, 0..2_usize, prop::bool::weighted(0.4))
            .prop_map(|(key, content, dies)| Deed::Claim { key, content, dies }),
        (0..4_usize, 0..3_usize).prop_map(|(back, outcome)| Deed::Settle { back, outcome }),
    ];
    hold(64, prop::collection::vec(deed, 1..40), async |deeds| {
        let ledger = Ledger::new(&[]).await;
        let mut model: BTreeMap<usize, Claim> = BTreeMap::new();
        let mut attempts: Vec<(usize, String)> = Vec::new();
        for (number, deed) in deeds.into_iter().enumerate() {
            match deed {
                Deed::Claim { key, content, dies } => {
                    let (owner, subject) = (format!("o{number}"), format!("s{number}"));
                    let claiming = Claiming {
                        gate: ledger.gate(&[]),
                        key: KEYS[key],
                        fingerprint: CONTENTS[content],
                        owner: &owner,
                        subject: &subject,
                        lease_ms: if dies { 0 } else { 600_000 },
                        ttl_ms: 600_000,
                    };
                    let claimed = ledger.runs.claim(&ledger.tenant, &claiming).await.unwrap();
                    let before = model.get(&key).cloned();
                    match (before, claimed) {
                        (Some(claim), Claimed::Refused(refusal)) if claim.content != content => {
                            assert_eq!(refusal.code, "idempotency_mismatch");
                        }
                        (
                            Some(Claim {
                                answer: Some(kept), ..
                            }),
                            Claimed::Replay { answer, .. },
                        ) => {
                            assert_eq!(answer, kept);
                        }
                        (Some(claim), Claimed::Refused(refusal)) => {
                            assert_eq!(refusal.code, "request_in_flight");
                            assert!(claim.owner.is_some() && claim.leased, "{claim:?}");
                        }
                        (
                            before,
                            Claimed::Mine {
                                subject: given,
                                repeated,
                                ..
                            },
                        ) => {
                            assert_eq!(repeated, before.is_some());
                            if let Some(claim) = &before {
                                assert_eq!(claim.content, content);
                                assert!(claim.answer.is_none(), "{claim:?}");
                                assert!(claim.owner.is_none() || !claim.leased, "{claim:?}");
                                // Every attempt at one request makes the same thing.
                                assert_eq!(given, claim.subject);
                            } else {
                                assert_eq!(given, subject);
                            }
                            let claim = Claim {
                                content,
                                subject: given,
                                owner: Some(owner.clone()),
                                leased: !dies,
                                answer: None,
                            };
                            model.insert(key, claim);
                            attempts.push((key, owner));
                        }
                        (before, claimed) => panic!("{before:?}: {claimed:?}"),
                    }
                }
                Deed::Settle { back, outcome } => {
                    let Some((key, owner)) = attempts.iter().rev().nth(back).cloned() else {
                        continue;
                    };
                    let answer = format!("a{number}");
                    let settlement = [
                        ClaimEnd::Done(&answer),
                        ClaimEnd::Refused,
                        ClaimEnd::Unknown,
                    ][outcome];
                    let fence = Fence {
                        key: KEYS[key].to_owned(),
                        owner: owner.clone(),
                    };
                    let settle = ledger
                        .runs
                        .settle(&ledger.tenant, &fence, settlement, 600_000);
                    let settled = settle.await.unwrap();
                    let holds = model
                        .get(&key)
                        .is_some_and(|c| c.owner.as_ref() == Some(&owner));
                    assert_eq!(settled, holds, "{key} {owner}: {model:?}");
                    if !holds {
                        continue;
                    }
                    match settlement {
                        ClaimEnd::Refused => _ = model.remove(&key),
                        ClaimEnd::Done(_) | ClaimEnd::Unknown => {
                            let claim = model.get_mut(&key).unwrap();
                            claim.owner = None;
                            if outcome == 0 {
                                claim.answer = Some(answer);
                            }
                        }
                    }
                }
            }
        }
    });
}
