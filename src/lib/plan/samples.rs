//! Plans for tests.

use serde_json::json;

use super::{CheckedPlan, Plan, PlanLimits, Step, ToolRules, check};

/// A step of the tool `t` without arguments.
pub(crate) fn step(id: &str, depends_on: &[&str]) -> Step {
    Step {
        id: id.to_owned(),
        tool: "t".to_owned(),
        args: json!({}),
        depends_on: depends_on.iter().map(ToString::to_string).collect(),
        timeout_s: None,
    }
}

/// A plan of these steps and dependencies; it must be sound.
pub(crate) fn checked(steps: &[(&str, &[&str])]) -> CheckedPlan {
    let plan = Plan {
        steps: steps.iter().map(|(id, needs)| step(id, needs)).collect(),
        answer: None,
    };
    let limits = PlanLimits {
        max_steps: usize::MAX,
        max_plan_depth: usize::MAX,
        max_args_bytes: usize::MAX,
        allow_answer: true,
    };
    let rules = ToolRules {
        allowed: None,
        known: &|_| true,
        validate: &|_, _| Ok(()),
    };
    check(&plan, &limits, &rules).unwrap()
}
