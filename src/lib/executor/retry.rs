//! What follows a failed attempt. Pure: the caller brings time and chance.

use std::time::Duration;

use crate::tools::{Effects, ToolErrorClass};

/// Upper bound of the wait after the first attempt.
pub const BASE: Duration = Duration::from_millis(200);
/// Upper bound of every wait that the other side did not ask for.
pub const CAP: Duration = Duration::from_secs(20);

/// An attempt that failed, or that a lost worker left without a result. The latter is
/// [`ToolErrorClass::Transient`] and may have reached the other side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailedAttempt {
    /// What kind of failure.
    pub class: ToolErrorClass,
    /// What a repeated call does.
    pub effects: Effects,
    /// Whether the other side may have received the call. `false` only when it surely has not, such
    /// as when no connection was made.
    pub may_have_arrived: bool,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// Attempts that the step has in all.
    pub max_attempts: u32,
    /// Further attempts that all the run's steps have left together.
    pub retries_left: u32,
    /// What is left until the run's deadline.
    pub remaining: Duration,
    /// A random number in `[0, 1)`.
    pub chance: f64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again, not before this time has passed.
    Retry {
        /// The wait.
        after: Duration,
    },
    /// The step has failed.
    GiveUp {
        /// Why.
        reason: GiveUpReason,
    },
    /// The call may or may not have had its effect, and repeating it could have it twice. The step
    /// ends as `outcome_unknown`, for the operator or the client to resolve.
    OutcomeUnknown,
}

/// Why there is no further attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUpReason {
    /// A rule forbids the call.
    Refused,
    /// Another attempt would fail as well.
    Permanent,
    /// The step has had all its attempts.
    AttemptsExhausted,
    /// The run has had all the further attempts that its steps have together.
    RunRetriesExhausted,
    /// The wait would last until the run's deadline or beyond it.
    Deadline,
}

impl GiveUpReason {
    /// Stable name, in snake case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Permanent => "permanent",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::RunRetriesExhausted => "run_retries_exhausted",
            Self::Deadline => "deadline",
        }
    }
}

/// Decides what follows `failed`.
pub fn decide(failed: &FailedAttempt) -> RetryDecision {
    let give_up = |reason| RetryDecision::GiveUp { reason };
    let retry_after = match failed.class {
        ToolErrorClass::Refused => return give_up(GiveUpReason::Refused),
        ToolErrorClass::Permanent => return give_up(GiveUpReason::Permanent),
        ToolErrorClass::Transient { retry_after } => retry_after.unwrap_or_default(),
    };
    if failed.effects == Effects::Unsafe && failed.may_have_arrived {
        return RetryDecision::OutcomeUnknown;
    }
    if failed.attempt >= failed.max_attempts {
        return give_up(GiveUpReason::AttemptsExhausted);
    }
    if failed.retries_left == 0 {
        return give_up(GiveUpReason::RunRetriesExhausted);
    }
    // What the other side asked for is a floor. The jitter comes on top of it, or all who were sent
    // away at once would come back at once.
    let after = retry_after.saturating_add(full_jitter(failed.attempt, failed.chance));
    if after >= failed.remaining {
        return give_up(GiveUpReason::Deadline);
    }
    RetryDecision::Retry { after }
}

/// A wait between nothing and `min(CAP, BASE · 2^(attempt-1))`: "Full Jitter" of the AWS Architecture
/// Blog, "Exponential Backoff And Jitter". `attempt` counts from 1; `chance` is in `[0, 1)`.
///
/// Not backon's `ExponentialBuilder`: its jitter is added to the delay instead of chosen below it, and
/// it draws its own random numbers, while a step's retries are also decided in another process, after
/// a takeover, from the attempt's number alone.
pub fn full_jitter(attempt: u32, chance: f64) -> Duration {
    // 2^7 · BASE is over CAP already.
    let doublings = attempt.saturating_sub(1).min(7);
    let ceiling = CAP.min(BASE * (1 << doublings));
    let share = if chance.is_nan() {
        0.0
    } else {
        chance.clamp(0.0, 1.0)
    };
    ceiling.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRANSIENT: ToolErrorClass = ToolErrorClass::Transient { retry_after: None };

    fn failed() -> FailedAttempt {
        FailedAttempt {
            class: TRANSIENT,
            effects: Effects::None,
            may_have_arrived: true,
            attempt: 1,
            max_attempts: 4,
            retries_left: 9,
            remaining: Duration::from_hours(1),
            chance: 0.5,
        }
    }

    fn gave_up(failed: &FailedAttempt) -> Option<GiveUpReason> {
        match decide(failed) {
            RetryDecision::GiveUp { reason } => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let ceilings: Vec<u128> = (1..=10).map(|n| full_jitter(n, 1.0).as_millis()).collect();
        assert_eq!(
            ceilings,
            [200, 400, 800, 1600, 3200, 6400, 12800, 20000, 20000, 20000]
        );
        assert_eq!(full_jitter(u32::MAX, 1.0), CAP);
        assert_eq!(full_jitter(3, 0.0), Duration::ZERO);
        assert_eq!(full_jitter(1, 0.25), Duration::from_millis(50));
        assert_eq!(full_jitter(1, f64::NAN), Duration::ZERO);
        assert_eq!(full_jitter(1, 9.0), BASE);
    }

    #[test]
    fn final_failures_are_final() {
        for effects in [Effects::None, Effects::Idempotent, Effects::Unsafe] {
            for (class, reason) in [
                (ToolErrorClass::Refused, GiveUpReason::Refused),
                (ToolErrorClass::Permanent, GiveUpReason::Permanent),
            ] {
                let failed = FailedAttempt {
                    class,
                    effects,
                    ..failed()
                };
                assert_eq!(gave_up(&failed), Some(reason));
            }
        }
    }

    #[test]
    fn attempts_run_out() {
        let nth = |attempt| FailedAttempt {
            attempt,
            ..failed()
        };
        assert_eq!(
            decide(&nth(3)),
            RetryDecision::Retry {
                after: Duration::from_millis(400)
            }
        );
        assert_eq!(gave_up(&nth(4)), Some(GiveUpReason::AttemptsExhausted));
        assert_eq!(gave_up(&nth(5)), Some(GiveUpReason::AttemptsExhausted));
    }

    #[test]
    fn the_run_runs_out_of_further_attempts() {
        let none_left = FailedAttempt {
            retries_left: 0,
            ..failed()
        };
        assert_eq!(gave_up(&none_left), Some(GiveUpReason::RunRetriesExhausted));
        let last = FailedAttempt {
            attempt: 4,
            ..none_left
        };
        assert_eq!(gave_up(&last), Some(GiveUpReason::AttemptsExhausted));
        let unknown = FailedAttempt {
            effects: Effects::Unsafe,
            ..none_left
        };
        assert_eq!(decide(&unknown), RetryDecision::OutcomeUnknown);
    }

    #[test]
    fn unsafe_calls_that_may_have_arrived_are_not_repeated() {
        let call = FailedAttempt {
            effects: Effects::Unsafe,
            ..failed()
        };
        assert_eq!(decide(&call), RetryDecision::OutcomeUnknown);
        // Nor are they called failed when it was the last attempt.
        let last = FailedAttempt { attempt: 4, ..call };
        assert_eq!(decide(&last), RetryDecision::OutcomeUnknown);
        let unsent = FailedAttempt {
            may_have_arrived: false,
            ..call
        };
        assert!(matches!(decide(&unsent), RetryDecision::Retry { .. }));
        let idempotent = FailedAttempt {
            effects: Effects::Idempotent,
            ..call
        };
        assert!(matches!(decide(&idempotent), RetryDecision::Retry { .. }));
    }

    #[test]
    fn the_other_side_sets_the_floor() {
        let asked = |seconds, remaining| FailedAttempt {
            class: ToolErrorClass::Transient {
                retry_after: Some(Duration::from_secs(seconds)),
            },
            remaining: Duration::from_secs(remaining),
            ..failed()
        };
        let after = Duration::from_millis(60_100);
        assert_eq!(decide(&asked(60, 61)), RetryDecision::Retry { after });
        assert_eq!(gave_up(&asked(60, 60)), Some(GiveUpReason::Deadline));
        assert_eq!(gave_up(&asked(u64::MAX, 60)), Some(GiveUpReason::Deadline));
    }

    proptest! {
        #[test]
        fn waits_stay_in_their_bounds(
            attempt in 1_u32..,
            chance in 0.0..1.0_f64,
            floor in proptest::option::of(0_u64..100_000),
            remaining in 0_u64..100_000,
            retries_left in 0_u32..3,
            effects in prop_oneof![Just(Effects::None), Just(Effects::Idempotent), Just(Effects::Unsafe)],
            may_have_arrived: bool,
        ) {
            let retry_after = floor.map(Duration::from_millis);
            let remaining = Duration::from_millis(remaining);
            let failed = FailedAttempt {
                class: ToolErrorClass::Transient { retry_after },
                effects,
                may_have_arrived,
                attempt,
                max_attempts: 8,
                retries_left,
                remaining,
                chance,
            };
            let repeatable = effects != Effects::Unsafe || !may_have_arrived;
            prop_assert_eq!(decide(&failed) == RetryDecision::OutcomeUnknown, !repeatable);
            if let RetryDecision::Retry { after } = decide(&failed) {
                let floor = retry_after.unwrap_or_default();
                prop_assert!(attempt < 8 && retries_left > 0 && after < remaining);
                prop_assert!((floor..=floor + CAP).contains(&after));
            }
        }
    }
}
