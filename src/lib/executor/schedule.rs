//! Which steps of a plan may start, and how it ends. Pure: states come from the run's journal.
//!
//! A step that fails ends the run: what it had not started is skipped, dependants and independent
//! steps alike; attempts that are in flight are let finish, but not repeated. Where the steps are an
//! agent's calls ([`Schedule::each_on_its_own`]), only an outcome that is not known does that.

use crate::plan::{CheckedPlan, Step};

/// The code of a step of which nobody knows whether its effect happened.
pub const OUTCOME_UNKNOWN: &str = "outcome_unknown";

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepState {
    /// It has not been started.
    Pending,
    /// An attempt is in flight.
    Running,
    /// An attempt failed and another is due later.
    Waiting,
    /// It has an output.
    Succeeded,
    /// It failed for good.
    Failed {
        /// Stable name of the reason, in snake case; `outcome_unknown` included.
        code: String,
        /// Place of the failure in the run's history: of several, the lowest came first.
        seq: u64,
    },
    /// It will not be started, because another step failed.
    Skipped,
}

/// How a plan ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every step has succeeded.
    Succeeded,
    /// A step failed; of several, the first.
    Failed {
        /// The step.
        step_id: String,
        /// The reason, which becomes the run's.
        code: String,
    },
}

/// The states of a plan's steps.
#[derive(Debug, Clone)]
pub struct Schedule<'a> {
    plan: &'a CheckedPlan,
    states: Vec<StepState>,
    /// Whether a failure ends no more than its own step.
    each_on_its_own: bool,
}

impl<'a> Schedule<'a> {
    /// The steps of `plan` in the states that `state_of` gives for their ids.
    pub fn new(plan: &'a CheckedPlan, state_of: impl Fn(&str) -> StepState) -> Self {
        let states = plan.steps().iter().map(|step| state_of(&step.id));
        Self {
            plan,
            states: states.collect(),
            each_on_its_own: false,
        }
    }

    /// No failure but an outcome that is not known stops other steps or the run.
    #[must_use]
    pub fn each_on_its_own(mut self, yes: bool) -> Self {
        self.each_on_its_own = yes;
        self
    }

    /// The state of a step, or `None` when the plan has no such step.
    pub fn state(&self, step_id: &str) -> Option<&StepState> {
        self.plan.index_of(step_id).map(|index| &self.states[index])
    }

    /// Notes the state of a step. Returns whether the plan has such a step.
    pub fn set(&mut self, step_id: &str, state: StepState) -> bool {
        let index = self.plan.index_of(step_id);
        if let Some(index) = index {
            self.states[index] = state;
        }
        index.is_some()
    }

    /// The steps whose first attempt may start now, in the order of the plan. Empty once a step has
    /// failed.
    pub fn ready(&self) -> Vec<&'a Step> {
        if !self.may_start() {
            return Vec::new();
        }
        self.steps_that(|index, state| {
            *state == StepState::Pending
                && self
                    .plan
                    .dependencies(index)
                    .iter()
                    .all(|&needed| self.states[needed] == StepState::Succeeded)
        })
    }

    /// Whether attempts may still start, retries included: no step has failed.
    pub fn may_start(&self) -> bool {
        self.first_failure().is_none()
    }

    /// The steps that will never start, to be noted as skipped: once a step has failed, all that are
    /// pending or wait for another attempt.
    pub fn to_skip(&self) -> Vec<&'a Step> {
        if self.may_start() {
            return Vec::new();
        }
        self.steps_that(|_, state| matches!(state, StepState::Pending | StepState::Waiting))
    }

    /// Whether nothing is in flight and nothing will start any more.
    pub fn is_done(&self) -> bool {
        let running = self.states.contains(&StepState::Running);
        let waiting = self.states.contains(&StepState::Waiting) && self.may_start();
        !running && !waiting && self.ready().is_empty()
    }

    /// How the plan ended, or `None` while it has not.
    pub fn outcome(&self) -> Option<Outcome> {
        if !self.is_done() {
            return None;
        }
        if let Some((step, code)) = self.first_failure() {
            return Some(Outcome::Failed {
                step_id: step.id.clone(),
                code: code.to_owned(),
            });
        }
        // Only a journal that lost a failure can leave steps undone without one.
        let undone = self.steps_that(|_, state| match state {
            StepState::Failed { .. } => !self.each_on_its_own,
            state => *state != StepState::Succeeded,
        });
        Some(
            undone
                .first()
                .map_or(Outcome::Succeeded, |step| Outcome::Failed {
                    step_id: step.id.clone(),
                    code: "step_skipped".to_owned(),
                }),
        )
    }

    fn ends_the_run(&self, code: &str) -> bool {
        !self.each_on_its_own || code == OUTCOME_UNKNOWN
    }

    /// Of the failures that end the run.
    fn first_failure(&self) -> Option<(&'a Step, &str)> {
        let steps = self.plan.steps().iter().zip(&self.states);
        let failures = steps.filter_map(|(step, state)| match state {
            StepState::Failed { code, seq } if self.ends_the_run(code) => {
                Some((seq, step, code.as_str()))
            }
            _ => None,
        });
        let first = failures.min_by_key(|(seq, ..)| **seq);
        first.map(|(_, step, code)| (step, code))
    }

    fn steps_that(&self, accepts: impl Fn(usize, &StepState) -> bool) -> Vec<&'a Step> {
        let steps = self.plan.steps().iter().zip(&self.states).enumerate();
        steps
            .filter(|(index, (_, state))| accepts(*index, state))
            .map(|(_, (step, _))| step)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::samples::checked;

    fn failed(code: &str, seq: u64) -> StepState {
        StepState::Failed {
            code: code.into(),
            seq,
        }
    }

    fn ids(steps: &[&Step]) -> Vec<String> {
        steps.iter().map(|step| step.id.clone()).collect()
    }

    fn fresh(plan: &CheckedPlan) -> Schedule<'_> {
        Schedule::new(plan, |_| StepState::Pending)
    }

    #[test]
    fn steps_start_when_what_they_wait_for_is_done() {
        let plan = checked(&[("c", &["a", "b"]), ("b", &[]), ("a", &[]), ("d", &["a"])]);
        let mut schedule = fresh(&plan);
        assert_eq!(ids(&schedule.ready()), ["b", "a"]);
        schedule.set("a", StepState::Running);
        schedule.set("b", StepState::Running);
        assert!(schedule.ready().is_empty() && !schedule.is_done());
        schedule.set("a", StepState::Succeeded);
        assert_eq!(ids(&schedule.ready()), ["d"]);
        schedule.set("b", StepState::Waiting);
        schedule.set("d", StepState::Succeeded);
        assert!(schedule.ready().is_empty() && !schedule.is_done());
        schedule.set("b", StepState::Succeeded);
        assert_eq!(ids(&schedule.ready()), ["c"]);
        assert_eq!(schedule.outcome(), None);
        schedule.set("c", StepState::Succeeded);
        assert_eq!(schedule.outcome(), Some(Outcome::Succeeded));
    }

    #[test]
    fn where_each_step_is_on_its_own_only_an_unknown_outcome_stops_others() {
        let plan = checked(&[("a", &[]), ("b", &[]), ("c", &[])]);
        let mut schedule = fresh(&plan).each_on_its_own(true);
        schedule.set("a", failed("boom", 1));
        assert_eq!(ids(&schedule.ready()), ["b", "c"]);
        schedule.set("b", StepState::Waiting);
        schedule.set("c", StepState::Succeeded);
        assert!(!schedule.is_done(), "b is tried again");
        schedule.set("b", StepState::Succeeded);
        assert_eq!(schedule.outcome(), Some(Outcome::Succeeded));
        schedule.set("c", StepState::Pending);
        schedule.set("b", failed(OUTCOME_UNKNOWN, 2));
        assert!(schedule.ready().is_empty());
        let expected = Outcome::Failed {
            step_id: "b".into(),
            code: OUTCOME_UNKNOWN.into(),
        };
        assert_eq!(schedule.outcome(), Some(expected));
    }

    #[test]
    fn a_failure_starts_nothing_and_lets_finish_what_runs() {
        let plan = checked(&[
            ("a", &[]),
            ("b", &[]),
            ("c", &["a"]),
            ("d", &[]),
            ("e", &[]),
        ]);
        let mut schedule = fresh(&plan);
        schedule.set("b", StepState::Running);
        schedule.set("e", StepState::Waiting);
        assert!(schedule.may_start() && schedule.to_skip().is_empty());
        schedule.set("a", failed("boom", 4));
        assert!(schedule.ready().is_empty() && !schedule.may_start());
        assert_eq!(ids(&schedule.to_skip()), ["c", "d", "e"]);
        assert!(!schedule.is_done(), "b is in flight");
        schedule.set("b", failed("earlier", 3));
        assert_eq!(
            schedule.outcome(),
            Some(Outcome::Failed {
                step_id: "b".into(),
                code: "earlier".into()
            })
        );
        for id in ["c", "d", "e"] {
            schedule.set(id, StepState::Skipped);
        }
        assert!(schedule.is_done() && schedule.to_skip().is_empty());
    }

    #[test]
    fn a_plan_without_steps_has_succeeded() {
        let plan: CheckedPlan =
            serde_json::from_value(serde_json::json!({"steps": [], "answer": "42"})).unwrap();
        assert_eq!(fresh(&plan).outcome(), Some(Outcome::Succeeded));
    }

    #[test]
    fn a_journal_without_its_failure_does_not_hang_or_succeed() {
        let plan = checked(&[("a", &[]), ("b", &["a"])]);
        let mut schedule = fresh(&plan);
        schedule.set("a", StepState::Skipped);
        assert_eq!(
            schedule.outcome(),
            Some(Outcome::Failed {
                step_id: "a".into(),
                code: "step_skipped".into()
            })
        );
    }

    #[test]
    fn unknown_steps_are_not_noted() {
        let plan = checked(&[("a", &[])]);
        let mut schedule = fresh(&plan);
        assert!(!schedule.set("x", StepState::Running));
        assert_eq!(schedule.state("x"), None);
        assert_eq!(schedule.state("a"), Some(&StepState::Pending));
    }

    /// Plans of up to 12 steps, written in any order.
    fn plans() -> impl Strategy<Value = CheckedPlan> {
        (1_usize..12)
            .prop_flat_map(|count| {
                let rows = proptest::collection::vec(any::<u16>(), count);
                let order = Just((0..count).collect::<Vec<_>>()).prop_shuffle();
                (rows, order)
            })
            .prop_map(|(rows, order)| {
                let names: Vec<String> = (0..rows.len()).map(|i| format!("s{i}")).collect();
                // A step may wait for those before it in `rows`, so there is no cycle.
                let needs: Vec<Vec<&str>> = rows
                    .iter()
                    .enumerate()
                    .map(|(i, bits)| {
                        let chosen = (0..i).filter(|j| bits & (1 << j) != 0);
                        chosen.map(|j| names[j].as_str()).collect()
                    })
                    .collect();
                let steps: Vec<(&str, &[&str])> = order
                    .iter()
                    .map(|&i| (names[i].as_str(), needs[i].as_slice()))
                    .collect();
                checked(&steps)
            })
    }

    /// Drives a schedule with `choices` until nothing can happen; the last letter of a choice says
    /// what happens to a running step. Returns the started steps in order.
    fn drive(schedule: &mut Schedule<'_>, choices: &[u8], may_fail: bool) -> Vec<String> {
        let mut started = Vec::new();
        let mut running: Vec<String> = Vec::new();
        let mut choices = choices.iter().copied().cycle().zip(1_u64..);
        loop {
            for step in schedule.ready() {
                assert!(schedule.may_start());
                started.push(step.id.clone());
                running.push(step.id.clone());
            }
            for id in &running {
                schedule.set(id, StepState::Running);
            }
            let Some((choice, seq)) = choices.next().filter(|_| !running.is_empty()) else {
                return started;
            };
            assert!(!schedule.is_done());
            let id = running.swap_remove(usize::from(choice / 4) % running.len());
            let fails = may_fail && choice % 4 == 0;
            let state = if fails {
                failed(&id, seq)
            } else {
                StepState::Succeeded
            };
            schedule.set(&id, state);
        }
    }

    proptest! {
        #[test]
        fn every_plan_drains_and_each_step_starts_once_in_order(
            plan in plans(),
            choices in proptest::collection::vec(any::<u8>(), 1..20),
        ) {
            let mut schedule = fresh(&plan);
            let started = drive(&mut schedule, &choices, false);
            prop_assert_eq!(schedule.outcome(), Some(Outcome::Succeeded));
            prop_assert_eq!(started.len(), plan.steps().len());
            let place = |id: &str| started.iter().position(|s| s == id);
            for (index, step) in plan.steps().iter().enumerate() {
                prop_assert!(place(&step.id).is_some());
                for &needed in plan.dependencies(index) {
                    prop_assert!(place(&plan.steps()[needed].id) < place(&step.id));
                }
            }
        }

        #[test]
        fn with_failures_every_plan_ends_with_the_first_of_them(
            plan in plans(),
            choices in proptest::collection::vec(any::<u8>(), 1..20),
        ) {
            let mut schedule = fresh(&plan);
            let started = drive(&mut schedule, &choices, true);
            prop_assert!(schedule.is_done());
            let mut failures: Vec<(u64, String)> = Vec::new();
            for step in plan.steps() {
                match schedule.state(&step.id) {
                    Some(StepState::Failed { seq, .. }) => failures.push((*seq, step.id.clone())),
                    Some(StepState::Succeeded) => prop_assert!(started.contains(&step.id)),
                    other => {
                        prop_assert_eq!(other, Some(&StepState::Pending));
                        prop_assert!(!started.contains(&step.id));
                        prop_assert!(schedule.to_skip().iter().any(|s| s.id == step.id));
                    }
                }
            }
            let expected = match failures.into_iter().min() {
                None => Outcome::Succeeded,
                Some((_, id)) => Outcome::Failed { step_id: id.clone(), code: id },
            };
            prop_assert_eq!(schedule.outcome(), Some(expected));
        }

        #[test]
        fn a_takeover_goes_on_where_the_journal_is(
            plan in plans(),
            choices in proptest::collection::vec(any::<u8>(), 1..20),
            done in 0_usize..12,
        ) {
            // The first worker finished `done` steps in dependency order; the second sees them only.
            let finished: Vec<&str> = plan.in_order().take(done).map(|s| s.id.as_str()).collect();
            let mut schedule = Schedule::new(&plan, |id| {
                if finished.contains(&id) { StepState::Succeeded } else { StepState::Pending }
            });
            let started = drive(&mut schedule, &choices, false);
            prop_assert_eq!(schedule.outcome(), Some(Outcome::Succeeded));
            prop_assert_eq!(started.len(), plan.steps().len() - finished.len());
            prop_assert!(started.iter().all(|id| !finished.contains(&id.as_str())));
        }
    }
}
