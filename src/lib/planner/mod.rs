//! Turning a goal into a plan, as far as it is pure: what the model is asked ([`prompt`]), what its
//! answer says ([`parse`]), and how it is asked again when the plan is refused ([`repair`]). And the
//! conversation of an agent ([`agent`]), which plans no further than its next calls.
//!
//! Invariant: what leaves here as a plan has passed [`crate::plan::check`], whatever the model wrote.

pub mod agent;
pub mod parse;
pub mod prompt;
pub mod repair;

use crate::llm::ChatAnswer;
use crate::plan::{CheckedPlan, PlanLimits, PlanProblem, ToolRules, check};

/// The plan that `answer` gives, when it may run.
///
/// # Errors
/// What is wrong with the answer, or with the plan in it; a path `/steps/<n>` means the n-th function
/// call of the answer, from 0.
pub fn plan_of(
    answer: &ChatAnswer,
    limits: &PlanLimits,
    tools: &ToolRules<'_>,
) -> Result<CheckedPlan, Vec<PlanProblem>> {
    check(&parse::parse(answer, limits.max_steps)?, limits, tools)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::FunctionCall;

    #[test]
    fn only_checked_plans_leave() {
        let limits = PlanLimits {
            max_steps: 3,
            max_plan_depth: 3,
            max_args_bytes: 100,
            allow_answer: true,
        };
        let tools = ToolRules {
            allowed: None,
            known: &|tool| tool == "t",
            validate: &|_, _| Ok(()),
        };
        let answer = |arguments: &str| ChatAnswer {
            model: "m".into(),
            content: None,
            tool_calls: vec![FunctionCall {
                id: "c".into(),
                name: "t".into(),
                arguments: arguments.into(),
            }],
            truncated: false,
            usage: None,
        };
        let code = |arguments| plan_of(&answer(arguments), &limits, &tools).map_err(|p| p[0].code);
        let plan = code(r#"{"step_id": "a", "args": {}}"#).unwrap();
        assert_eq!(plan.steps()[0].id, "a");
        assert_eq!(code("{"), Err("arguments_not_json"));
        let unknown = r#"{"args": {}, "depends_on": ["b"]}"#;
        assert_eq!(code(unknown), Err("unknown_dependency"));
    }
}
