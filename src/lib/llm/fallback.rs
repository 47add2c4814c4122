//! Which endpoint is asked next. Pure: what is known of each comes as data.

use std::time::Duration;

use super::LlmErrorClass;

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// How long its circuit breaker holds calls back; nothing when one may be made.
    pub held_for: Duration,
    /// The most that the call can cost there, in millionths of a US dollar; `None` without a price.
    pub bound_micro_usd: Option<u64>,
    /// Whether it has failed for this call already.
    pub failed: bool,
    /// Whether whoever asks may use its model.
    pub allowed: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Ask this endpoint, by its place in the list.
    Ask(usize),
    /// No endpoint may be asked before this time has passed.
    Wait(Duration),
    /// Each has failed: another round is for whoever decides on retries.
    Exhausted,
    /// What is left of the budget pays for none of them.
    Unaffordable,
    /// The failure would be the same elsewhere.
    Final,
    /// Whoever asks may use the model of none of them.
    Forbidden,
}

/// Chooses among `candidates`, which are in the order of preference. `budget_micro_usd` is what may
/// still be spent; without one, prices do not matter. `failure` is how the last endpoint failed for
/// this call; `None` before the first.
pub fn choose(
    candidates: &[Candidate],
    budget_micro_usd: Option<u64>,
    failure: Option<LlmErrorClass>,
) -> Choice {
    if failure == Some(LlmErrorClass::Permanent) {
        return Choice::Final;
    }
    let affordable = |candidate: &Candidate| match budget_micro_usd {
        None => true,
        // What has no price has no bound: a budget could not be kept.
        Some(budget) => candidate
            .bound_micro_usd
            .is_some_and(|bound| bound <= budget),
    };
    if !candidates.iter().any(|candidate| candidate.allowed) {
        return Choice::Forbidden;
    }
    let tried = |candidate: &Candidate| candidate.failed || !candidate.allowed;
    if candidates.iter().all(tried) {
        return Choice::Exhausted;
    }
    let left = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| !tried(candidate) && affordable(candidate));
    let mut shortest: Option<Duration> = None;
    for (place, candidate) in left {
        if candidate.held_for.is_zero() {
            return Choice::Ask(place);
        }
        shortest = Some(shortest.map_or(candidate.held_for, |s| s.min(candidate.held_for)));
    }
    match shortest {
        // Once something was asked, whoever decides on retries waits, and not longer than it would.
        _ if failure.is_some() => Choice::Exhausted,
        Some(wait) => Choice::Wait(wait),
        None => Choice::Unaffordable,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRANSIENT: LlmErrorClass = LlmErrorClass::Transient { retry_after: None };

    fn candidate(held_s: u64, bound: u64, failed: bool) -> Candidate {
        Candidate {
            held_for: Duration::from_secs(held_s),
            bound_micro_usd: Some(bound),
            failed,
            allowed: true,
        }
    }

    #[test]
    fn the_first_that_can_be_asked_is() {
        let fine = candidate(0, 10, false);
        let held = candidate(9, 10, false);
        let failed = candidate(0, 10, true);
        let dear = candidate(0, 1000, false);
        let forbidden = Candidate {
            allowed: false,
            ..fine
        };
        let budget = Some(100);
        for (candidates, failure, choice) in [
            (&[fine, fine][..], None, Choice::Ask(0)),
            (&[held, fine], None, Choice::Ask(1)),
            (&[dear, fine], None, Choice::Ask(1)),
            (&[failed, fine], Some(TRANSIENT), Choice::Ask(1)),
            (&[failed, held, fine], Some(TRANSIENT), Choice::Ask(2)),
            (
                &[failed, fine],
                Some(LlmErrorClass::Permanent),
                Choice::Final,
            ),
            (&[failed, failed], Some(TRANSIENT), Choice::Exhausted),
            (&[failed, held], Some(TRANSIENT), Choice::Exhausted),
            (&[failed, dear], Some(TRANSIENT), Choice::Exhausted),
            (&[dear, dear], None, Choice::Unaffordable),
            (&[forbidden, fine], None, Choice::Ask(1)),
            (&[failed, forbidden], Some(TRANSIENT), Choice::Exhausted),
            (
                &[held, forbidden],
                None,
                Choice::Wait(Duration::from_secs(9)),
            ),
            (&[dear, forbidden], None, Choice::Unaffordable),
            (&[forbidden], None, Choice::Forbidden),
            (
                &[held, candidate(4, 10, false), dear],
                None,
                Choice::Wait(Duration::from_secs(4)),
            ),
        ] {
            assert_eq!(
                choose(candidates, budget, failure),
                choice,
                "{candidates:?}"
            );
        }
        assert_eq!(choose(&[dear], None, None), Choice::Ask(0));
    }

    #[test]
    fn what_has_no_price_is_not_asked_within_a_budget() {
        let unpriced = Candidate {
            bound_micro_usd: None,
            ..candidate(0, 0, false)
        };
        assert_eq!(
            choose(&[unpriced], Some(u64::MAX), None),
            Choice::Unaffordable
        );
        assert_eq!(choose(&[unpriced], None, None), Choice::Ask(0));
    }

    proptest! {
        #[test]
        fn what_is_chosen_may_be_asked(
            candidates in proptest::collection::vec(
                (0_u64..3, proptest::option::of(0_u64..100), any::<bool>(), any::<bool>()), 0..6),
            budget in proptest::option::of(0_u64..100),
            failed: bool,
        ) {
            let candidates: Vec<Candidate> = candidates
                .into_iter()
                .map(|(held, bound_micro_usd, failed, allowed)| Candidate {
                    held_for: Duration::from_secs(held),
                    bound_micro_usd,
                    failed,
                    allowed,
                })
                .collect();
            let failure = failed.then_some(TRANSIENT);
            let may = |c: &Candidate| {
                let paid = budget.is_none_or(|b| c.bound_micro_usd.is_some_and(|bound| bound <= b));
                c.held_for.is_zero() && c.allowed && !c.failed && paid
            };
            match choose(&candidates, budget, failure) {
                Choice::Ask(place) => {
                    prop_assert!(may(&candidates[place]));
                    prop_assert!(!candidates[..place].iter().any(may), "an earlier one could be");
                }
                Choice::Wait(wait) => prop_assert!(!wait.is_zero() && !candidates.iter().any(may)),
                _ => prop_assert!(!candidates.iter().any(may)),
            }
        }
    }
}
