//! What the model's answer says. Lenient in form, since models differ; whether the plan is sound is
//! decided by the check that follows.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::llm::ChatAnswer;
use crate::plan::reference::referenced_steps;
use crate::plan::{MAX_PROBLEMS, Plan, PlanProblem, Step, excerpt};

/// Longest id of a step.
const MAX_ID: usize = 32;

/// The plan that `answer` gives: one step per function call, in their order; from text that is a
/// plan in JSON, fenced or bare, that plan; from any other text a plan without steps.
///
/// # Errors
/// Why the answer is not one. The n-th call, from 0, is at `/steps/<n>`. At most [`MAX_PROBLEMS`].
/// More than `max_steps` steps are not read, since an answer may be very long.
pub fn parse(answer: &ChatAnswer, max_steps: usize) -> Result<Plan, Vec<PlanProblem>> {
    let whole = |code, message: &str| Err(vec![PlanProblem::new(code, "", message)]);
    if answer.truncated {
        return whole(
            "answer_truncated",
            "the answer was cut at the limit of its length; make a shorter plan",
        );
    }
    let text = answer.content.as_deref().map(str::trim);
    let text = text.filter(|text| !text.is_empty());
    if answer.tool_calls.is_empty() {
        let Some(text) = text else {
            return whole(
                "empty_answer",
                "the answer has neither function calls nor text",
            );
        };
        return match written_plan(text) {
            Some((steps, answer)) => {
                check_count(steps.len(), max_steps)?;
                assemble(steps, answer)
            }
            None => Ok(Plan {
                steps: Vec::new(),
                answer: Some(text.to_owned()),
            }),
        };
    }
    check_count(answer.tool_calls.len(), max_steps)?;
    let calls = answer.tool_calls.iter().map(|call| {
        // Some models write the name with the namespace in which they were shown it.
        let name = call.name.strip_prefix("functions.").unwrap_or(&call.name);
        Draft::from_call(name, &call.arguments)
    });
    assemble(calls.collect(), text.map(ToOwned::to_owned))
}

fn check_count(steps: usize, max_steps: usize) -> Result<(), Vec<PlanProblem>> {
    if steps <= max_steps {
        return Ok(());
    }
    let message = format!("{steps} steps; at most {max_steps} are allowed");
    Err(vec![PlanProblem::new("too_many_steps", "/steps", message)])
}

/// A step as the model wrote it, or what is wrong with it: `(code, place in the step, message)`.
type Drafted = Result<Draft, (&'static str, &'static str, String)>;

struct Draft {
    id: Option<String>,
    tool: String,
    args: Value,
    depends_on: Vec<String>,
    timeout_s: Option<u32>,
}

impl Draft {
    /// Reads the arguments of a function call.
    fn from_call(tool: &str, arguments: &str) -> Drafted {
        let fields = if arguments.trim().is_empty() {
            Map::new()
        } else {
            match serde_json::from_str(arguments) {
                Ok(Value::Object(fields)) => fields,
                Ok(_) => {
                    let message = "the arguments of a call must be a JSON object".to_owned();
                    return Err(("arguments_not_object", "", message));
                }
                Err(error) => {
                    // The error tells what was expected and where; it repeats nothing.
                    let message = format!("the arguments are not JSON: {error}");
                    return Err(("arguments_not_json", "", message));
                }
            }
        };
        Self::from_fields(tool.to_owned(), fields, "step_id", "args")
    }

    /// Reads a step of a plan that was written as text.
    fn from_written(mut step: Map<String, Value>) -> Drafted {
        let tool = match step.remove("tool") {
            Some(Value::String(tool)) => tool,
            _ => String::new(),
        };
        let id = if step.contains_key("id") {
            "id"
        } else {
            "step_id"
        };
        let args = if step.contains_key("args") {
            "args"
        } else {
            "arguments"
        };
        Self::from_fields(tool, step, id, args)
    }

    fn from_fields(tool: String, mut fields: Map<String, Value>, id: &str, args: &str) -> Drafted {
        let id = match fields.remove(id) {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id).filter(|id| !id.is_empty()),
            Some(_) => return Err(invalid("/id", "a step id must be a string")),
        };
        let depends_on = depends_on(fields.remove("depends_on"))
            .ok_or_else(|| invalid("/depends_on", "depends_on must be an array of step ids"))?;
        let timeout_s = match fields.remove("timeout_s") {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                value
                    .as_u64()
                    .and_then(|seconds| u32::try_from(seconds).ok())
                    .ok_or_else(|| invalid("/timeout_s", "timeout_s must be a whole number"))?,
            ),
        };
        let args = match fields.remove(args) {
            Some(args) => {
                if let Some(name) = fields.keys().next() {
                    let message = format!("unknown field {}", excerpt(name));
                    return Err(("unknown_field", "", message));
                }
                unquoted(args)
            }
            // Some models write the tool's arguments beside the id instead of under `args`.
            None => Value::Object(fields),
        };
        Ok(Self {
            id,
            tool,
            args,
            depends_on,
            timeout_s,
        })
    }
}

fn invalid(place: &'static str, message: &str) -> (&'static str, &'static str, String) {
    ("invalid_field", place, message.to_owned())
}

/// Absent, one id or an array of them.
fn depends_on(value: Option<Value>) -> Option<Vec<String>> {
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(id)) => Some(vec![id]),
        Some(Value::Array(ids)) => ids
            .into_iter()
            .map(|id| match id {
                Value::String(id) => Some(id),
                _ => None,
            })
            .collect(),
        Some(_) => None,
    }
}

/// Some models write `args` as a string that holds the JSON of the object.
fn unquoted(args: Value) -> Value {
    match args.as_str().map(serde_json::from_str) {
        Some(Ok(inner @ Value::Object(_))) => inner,
        _ => args,
    }
}

/// The steps and the answer of a plan that is written as text: `{"steps": [{"tool": …}, …]}`, fenced
/// or the whole text. `None` when the text is anything else.
fn written_plan(text: &str) -> Option<(Vec<Drafted>, Option<String>)> {
    fenced(text)
        .chain([text])
        .find_map(|block| steps_of(serde_json::from_str(block.trim()).ok()?))
}

fn steps_of(mut plan: Map<String, Value>) -> Option<(Vec<Drafted>, Option<String>)> {
    let Some(Value::Array(steps)) = plan.remove("steps") else {
        return None;
    };
    let steps: Vec<Map<String, Value>> = steps
        .into_iter()
        .map(|step| match step {
            Value::Object(step) if step.get("tool").is_some_and(Value::is_string) => Some(step),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let answer = match plan.remove("answer") {
        Some(Value::String(answer)) => Some(answer),
        _ => None,
    };
    let steps: Vec<Drafted> = steps.into_iter().map(Draft::from_written).collect();
    (!steps.is_empty()).then_some((steps, answer))
}

/// The contents of Markdown's fenced code blocks.
fn fenced(text: &str) -> impl Iterator<Item = &str> {
    let blocks = text.split("```").skip(1).step_by(2);
    // The rest of the fence's own line is the language.
    blocks.filter_map(|block| block.split_once('\n').map(|(_, content)| content))
}

fn assemble(drafts: Vec<Drafted>, answer: Option<String>) -> Result<Plan, Vec<PlanProblem>> {
    let mut problems = Vec::new();
    let mut steps = Vec::with_capacity(drafts.len());
    for (index, draft) in drafts.into_iter().enumerate() {
        match draft {
            Ok(draft) => steps.push(draft),
            Err((code, place, message)) if problems.len() < MAX_PROBLEMS => {
                problems.push(PlanProblem::new(
                    code,
                    format!("/steps/{index}{place}"),
                    message,
                ));
            }
            Err(_) => {}
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let ids = assign_ids(&steps)?;
    let steps = steps.into_iter().zip(ids).map(|(draft, id)| Step {
        id,
        tool: draft.tool,
        args: draft.args,
        depends_on: draft.depends_on,
        timeout_s: draft.timeout_s,
    });
    Ok(Plan {
        steps: steps.collect(),
        answer,
    })
}

/// An id for every step. Without one, the n-th step is `s<n>`, from 1. An id that is used twice is
/// changed where it comes again, unless something refers to it: then nobody can tell which is meant.
fn assign_ids(drafts: &[Draft]) -> Result<Vec<String>, Vec<PlanProblem>> {
    let referred: HashSet<String> = drafts
        .iter()
        .flat_map(|draft| {
            let named = draft.depends_on.iter().cloned();
            named.chain(referenced_steps(&draft.args))
        })
        .collect();
    let given = drafts.iter().filter_map(|draft| draft.id.clone());
    let mut taken: HashSet<String> = given.collect();
    let mut seen: HashSet<&str> = HashSet::new();
    let mut problems = Vec::new();
    let mut ids = Vec::with_capacity(drafts.len());
    for (index, draft) in drafts.iter().enumerate() {
        ids.push(match draft.id.as_deref() {
            None => free_id(&mut taken, index + 1, |n| format!("s{n}")),
            Some(id) if seen.insert(id) => id.to_owned(),
            Some(id) if referred.contains(id) => {
                let message = format!("step id {} is used twice and referred to", excerpt(id));
                let path = format!("/steps/{index}/id");
                problems.push(PlanProblem::new("duplicate_step_id", path, message));
                continue;
            }
            Some(id) => free_id(&mut taken, 2, |n| numbered(id, n)),
        });
    }
    problems.truncate(MAX_PROBLEMS);
    if problems.is_empty() {
        Ok(ids)
    } else {
        Err(problems)
    }
}

/// The first of `name(from)`, `name(from + 1)`, … that is not taken; it is taken afterwards.
fn free_id(taken: &mut HashSet<String>, from: usize, name: impl Fn(usize) -> String) -> String {
    let mut number = from;
    loop {
        let id = name(number);
        if taken.insert(id.clone()) {
            return id;
        }
        number += 1;
    }
}

/// `<id>-<number>`, the id cut so that the whole stays a valid one.
fn numbered(id: &str, number: usize) -> String {
    let suffix = format!("-{number}");
    let kept: String = id.chars().take(MAX_ID - suffix.len().min(MAX_ID)).collect();
    kept + &suffix
}

#[cfg(test)]
mod tests;
