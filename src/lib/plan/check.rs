//! Whether a plan may run: before anything of it does.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::checked::CheckedPlan;
use super::problem::{ArgsProblem, Problems, excerpt};
use super::reference::{Preview, Site, Template, preview};
use super::size::{depth, json_bytes};
use super::{Plan, PlanProblem, STEP_ID_PATTERN, Step, graph, is_step_id};

/// The deepest nesting of a step's arguments; the arguments themselves are at depth 1.
const MAX_ARGS_DEPTH: usize = 16;
/// The longest that one attempt of a step may be given, in seconds.
pub const MAX_TIMEOUT_S: u32 = 3600;

/// The installation's limits of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanLimits {
    /// The most steps.
    pub max_steps: usize,
    /// The most steps of a chain in which each waits for the one before.
    pub max_plan_depth: usize,
    /// The most bytes of a step's arguments as compact JSON.
    pub max_args_bytes: usize,
    /// Whether a plan may have an answer instead of steps: from a model, not from a client.
    pub allow_answer: bool,
}

/// What a plan is checked against. The tools are handed in, so that plans know none of them.
pub struct ToolRules<'a> {
    /// The tools that this plan may use; any known one when absent.
    pub allowed: Option<&'a [String]>,
    /// Whether there is a tool of this name.
    pub known: &'a dyn Fn(&str) -> bool,
    /// What a known tool's JSON Schema refuses in these arguments.
    pub validate: &'a ValidateArgs<'a>,
}

/// Tells what the JSON Schema of the tool of that name refuses in arguments.
pub type ValidateArgs<'a> = dyn Fn(&str, &Value) -> Result<(), Vec<ArgsProblem>> + 'a;

impl std::fmt::Debug for ToolRules<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("ToolRules");
        debug
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

/// Checks `plan` and finds the order of its steps.
///
/// Arguments are validated as far as they are known: a string that is exactly one reference may
/// become a value of any type, so problems that hang on it are left to the executor, which validates
/// again when it has the value.
///
/// # Errors
/// Everything that is wrong, in the order of the steps and then what concerns several of them; at
/// most [`super::MAX_PROBLEMS`]. A plan with too many steps is looked at no further.
pub fn check(
    plan: &Plan,
    limits: &PlanLimits,
    tools: &ToolRules<'_>,
) -> Result<CheckedPlan, Vec<PlanProblem>> {
    let mut problems = Problems::default();
    check_step_count(plan, limits, &mut problems);
    problems.or(())?;
    inspect(plan, Some((limits, tools)))
}

/// Checks what [`CheckedPlan`] promises and nothing else.
pub(super) fn check_structure(plan: &Plan) -> Result<CheckedPlan, Vec<PlanProblem>> {
    inspect(plan, None)
}

fn check_step_count(plan: &Plan, limits: &PlanLimits, problems: &mut Problems) {
    let has_answer = plan.answer.as_ref().is_some_and(|a| !a.trim().is_empty());
    let count = plan.steps.len();
    if count == 0 && !(limits.allow_answer && has_answer) {
        let message = "a plan needs at least one step".to_owned();
        problems.add("no_steps", "/steps".to_owned(), message);
    } else if count > limits.max_steps {
        let message = format!("{count} steps; at most {} are allowed", limits.max_steps);
        problems.add("too_many_steps", "/steps".to_owned(), message);
    }
}

fn inspect(
    plan: &Plan,
    rules: Option<(&PlanLimits, &ToolRules<'_>)>,
) -> Result<CheckedPlan, Vec<PlanProblem>> {
    let mut problems = Problems::default();
    let mut ids = HashMap::with_capacity(plan.steps.len());
    for (index, step) in plan.steps.iter().enumerate() {
        ids.entry(step.id.as_str()).or_insert(index);
    }
    let mut dependencies = Vec::with_capacity(plan.steps.len());
    for (index, step) in plan.steps.iter().enumerate() {
        let mut at_step = AtStep {
            index,
            step,
            ids: &ids,
            needed: BTreeSet::new(),
            problems: &mut problems,
        };
        at_step.check_id();
        at_step.check_depends_on();
        match rules {
            Some((limits, tools)) => at_step.check_against(limits, tools),
            None => at_step.check_references(&preview(&step.args)),
        }
        dependencies.push(at_step.needed.into_iter().collect::<Vec<_>>());
    }
    let sorted = graph::sort(&dependencies);
    for cycle in &sorted.cycles {
        let round = cycle.iter().chain(cycle.first());
        let names: Vec<&str> = round.map(|&i| plan.steps[i].id.as_str()).collect();
        let path = format!("/steps/{}", cycle.first().copied().unwrap_or_default());
        let message = format!(
            "steps wait for each other in a cycle: {}",
            excerpt(&names.join(" → "))
        );
        problems.add("cycle", path, message);
    }
    if let (Some((limits, _)), true) = (rules, sorted.cycles.is_empty()) {
        check_chains(limits, &dependencies, &sorted.order, &mut problems);
    }
    problems.or(CheckedPlan::new(plan.clone(), dependencies, sorted.order))
}

/// Reports the end of the longest chain when it is too long.
fn check_chains(
    limits: &PlanLimits,
    dependencies: &[Vec<usize>],
    order: &[usize],
    problems: &mut Problems,
) {
    let lengths = graph::chain_lengths(dependencies, order);
    let longest = lengths
        .iter()
        .enumerate()
        .max_by_key(|(_, length)| **length);
    if let Some((index, &length)) = longest
        && length > limits.max_plan_depth
    {
        let message = format!(
            "a chain of {length} steps; at most {} may wait for each other",
            limits.max_plan_depth
        );
        problems.add("plan_too_deep", format!("/steps/{index}"), message);
    }
}

/// The checks of one step.
struct AtStep<'a> {
    index: usize,
    step: &'a Step,
    ids: &'a HashMap<&'a str, usize>,
    /// Indices of the steps that this one waits for.
    needed: BTreeSet<usize>,
    problems: &'a mut Problems,
}

impl AtStep<'_> {
    fn problem(&mut self, code: &'static str, place: &str, message: String) {
        let path = format!("/steps/{}{place}", self.index);
        self.problems.add(code, path, message);
    }

    fn check_id(&mut self) {
        let id = &self.step.id;
        if !is_step_id(id) {
            let message = format!("step id {} does not match {STEP_ID_PATTERN}", excerpt(id));
            self.problem("invalid_step_id", "/id", message);
        }
        if self.ids.get(id.as_str()) != Some(&self.index) {
            let message = format!("step id {} is already taken", excerpt(id));
            self.problem("duplicate_step_id", "/id", message);
        }
    }

    fn check_depends_on(&mut self) {
        for (position, id) in self.step.depends_on.iter().enumerate() {
            let place = format!("/depends_on/{position}");
            self.need(id, "unknown_dependency", &place);
        }
    }

    /// Notes that this step waits for `id`.
    fn need(&mut self, id: &str, unknown: &'static str, place: &str) {
        match self.ids.get(id) {
            None => self.problem(unknown, place, format!("there is no step {}", excerpt(id))),
            Some(_) if id == self.step.id => {
                let message = "a step cannot wait for itself".to_owned();
                self.problem("self_dependency", place, message);
            }
            Some(&index) => {
                self.needed.insert(index);
            }
        }
    }

    fn check_against(&mut self, limits: &PlanLimits, tools: &ToolRules<'_>) {
        let known = self.check_tool(tools);
        let fits = self.check_args_size(limits);
        let preview = preview(&self.step.args);
        self.check_references(&preview);
        if known && fits {
            self.check_args(&preview, tools);
        }
        if let Some(timeout) = self.step.timeout_s
            && !(1..=MAX_TIMEOUT_S).contains(&timeout)
        {
            let message = format!("a timeout is 1 to {MAX_TIMEOUT_S} seconds");
            self.problem("invalid_timeout", "/timeout_s", message);
        }
    }

    /// Whether the tool is known, so that its schema can be asked.
    fn check_tool(&mut self, tools: &ToolRules<'_>) -> bool {
        let tool = &self.step.tool;
        let known = (tools.known)(tool);
        if !known {
            let message = format!("there is no tool {}", excerpt(tool));
            self.problem("unknown_tool", "/tool", message);
        } else if tools.allowed.is_some_and(|allowed| !allowed.contains(tool)) {
            let message = format!("the tool {} is not allowed here", excerpt(tool));
            self.problem("tool_not_allowed", "/tool", message);
        }
        known
    }

    /// Whether the arguments are an object of a size that is worth validating.
    fn check_args_size(&mut self, limits: &PlanLimits) -> bool {
        let args = &self.step.args;
        let (code, message) = if !args.is_object() {
            let message = "the arguments of a step must be an object".to_owned();
            ("args_not_object", message)
        } else if json_bytes(args, limits.max_args_bytes).is_none() {
            let message = format!("arguments larger than {} bytes", limits.max_args_bytes);
            ("args_too_large", message)
        } else if depth(args) > MAX_ARGS_DEPTH {
            let message = format!("arguments nested more than {MAX_ARGS_DEPTH} deep");
            ("args_too_deep", message)
        } else {
            return true;
        };
        self.problem(code, "/args", message);
        false
    }

    fn check_references(&mut self, preview: &Preview) {
        for site in &preview.sites {
            let place = format!("/args{}", site.pointer);
            match &site.template {
                Err(error) => self.problem("invalid_reference", &place, error.to_string()),
                Ok(template) => {
                    for reference in template.references() {
                        self.need(&reference.step, "unknown_reference", &place);
                    }
                }
            }
        }
    }

    fn check_args(&mut self, preview: &Preview, tools: &ToolRules<'_>) {
        let refused = (tools.validate)(&self.step.tool, &preview.args).err();
        for problem in refused.unwrap_or_default() {
            if !hangs_on_reference(&problem, &preview.sites) {
                let place = format!("/args{}", problem.path);
                self.problem("invalid_args", &place, problem.message);
            }
        }
    }
}

/// Whether a problem may vanish once references are resolved.
fn hangs_on_reference(problem: &ArgsProblem, sites: &[Site]) -> bool {
    sites.iter().any(|site| {
        let Some(below) = site.pointer.strip_prefix(problem.path.as_str()) else {
            return false;
        };
        if below.is_empty() {
            // A string with references inside text stays a string, whatever they give.
            let text = site
                .template
                .as_ref()
                .is_ok_and(|t| Template::sole_reference(t).is_none());
            !(text && problem.keyword == "type")
        } else {
            below.starts_with('/') && !is_about_shape(&problem.keyword)
        }
    })
}

/// Whether a keyword looks at the names and the number of an object's fields or of an array's items,
/// not at their values.
fn is_about_shape(keyword: &str) -> bool {
    matches!(
        keyword,
        "type"
            | "required"
            | "additionalProperties"
            | "propertyNames"
            | "minProperties"
            | "maxProperties"
            | "minItems"
            | "maxItems"
            | "dependentRequired"
    )
}

#[cfg(test)]
mod tests;
