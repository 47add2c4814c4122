//! From what a goal asks for to function calls, in the planner's form or in the tools' own. Pure.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::goal::{Intent, Understanding};
use super::wire::{Call, PastCall, Tool};

const METRICS: &str = "ads_metrics_mock";
const SEARCH: &str = "retrieval";
const FETCH: &str = "http_fetch";
const SUMMARIZE: &str = "summarize";

/// What a request allows to call.
pub(super) struct Offered<'a> {
    names: Vec<&'a str>,
    /// Whether functions take `{step_id, args, …}`: each call is a step of a plan. Else they take the
    /// tool's arguments as they are, and no call can refer to another.
    steps: bool,
}

impl<'a> Offered<'a> {
    pub(super) fn new(tools: &'a [Tool<'a>]) -> Self {
        let schemas = || tools.iter().filter_map(|t| t.function.parameters);
        Self {
            names: tools.iter().map(|t| t.function.name.as_ref()).collect(),
            steps: schemas().any(|schema| schema.get().contains("\"step_id\"")),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }
}

/// The calls that carry out what a goal asks for, as far as the functions for it are offered.
pub(super) fn calls(goal: &Understanding, offered: &Offered<'_>) -> Vec<Call> {
    let mut steps: Vec<(String, &'static str, Value)> = Vec::new();
    let mut sources = Vec::new();
    for intent in &goal.intents {
        let (tool, id, args) = match intent {
            Intent::Metrics {
                advertiser,
                metric,
                days,
            } => {
                let mut args = json!({"advertiser_id": advertiser, "period_days": days});
                if let Some(metric) = metric {
                    args["metric"] = json!(metric);
                }
                (METRICS, "metrics", args)
            }
            Intent::Search { query, top_k } => {
                let mut args = json!({"query": literal(query, offered)});
                if let Some(top_k) = top_k {
                    args["top_k"] = json!(top_k);
                }
                (SEARCH, "search", args)
            }
            Intent::Fetch { url } => (FETCH, "fetch", json!({"url": literal(url, offered)})),
            Intent::Condense { text } => (
                SUMMARIZE,
                "summary",
                json!({"text": literal(text, offered)}),
            ),
        };
        if !offered.has(tool) {
            continue;
        }
        let number = steps.iter().filter(|(_, name, _)| *name == tool).count() + 1;
        let id = format!("{id}_{number}");
        if matches!(tool, SEARCH | FETCH) {
            sources.push(format!("${{steps.{id}.output}}"));
        }
        steps.push((id, tool, args));
    }
    if goal.summarise && offered.steps && offered.has(SUMMARIZE) && !sources.is_empty() {
        let args = json!({"text": sources.join("\n\n")});
        steps.push(("summary_1".to_owned(), SUMMARIZE, args));
    }
    steps
        .into_iter()
        .map(|(id, tool, args)| Call {
            name: tool.to_owned(),
            arguments: if offered.steps {
                json!({"step_id": id, "args": args}).to_string()
            } else {
                args.to_string()
            },
        })
        .collect()
}

/// A text that holds no reference, whatever the goal wrote.
fn literal(text: &str, offered: &Offered<'_>) -> String {
    if offered.steps {
        text.replace("${", "$${")
    } else {
        text.to_owned()
    }
}

/// The calls of a rejected plan without what was wrong with them, as far as `problem` or the request
/// tells: calls of functions that are not offered, dependencies on steps that do not exist; when there
/// are neither, the steps that `problem` points at as `/steps/<index>`; with them what refers to them.
/// `None` when nothing can be mended or nothing remains.
pub(super) fn corrected(
    rejected: &[PastCall],
    problem: &str,
    offered: &Offered<'_>,
) -> Option<Vec<Call>> {
    let parsed: Vec<_> = rejected.iter().map(Step::read).collect();
    let known: HashSet<String> = parsed.iter().flatten().map(|s| s.id.clone()).collect();
    let mut changed = false;
    let mut steps: Vec<Option<Step>> = parsed
        .into_iter()
        .map(|step| {
            let mut step = step.filter(|s| offered.has(&s.tool))?;
            changed |= step.drop_dependencies(|id| known.contains(id));
            Some(step)
        })
        .collect();
    changed |= steps.iter().any(Option::is_none);
    if !changed {
        for index in indexes(problem) {
            if let Some(step) = steps.get_mut(index) {
                *step = None;
                changed = true;
            }
        }
    }
    let mut steps: Vec<Step> = steps.into_iter().flatten().collect();
    loop {
        let ids: HashSet<String> = steps.iter().map(|s| s.id.clone()).collect();
        let gone = |s: &Step| known.iter().any(|id| !ids.contains(id) && s.refers_to(id));
        let before = steps.len();
        steps.retain(|step| !gone(step));
        if steps.len() == before {
            break;
        }
    }
    (changed && !steps.is_empty()).then(|| steps.into_iter().map(Step::into_call).collect())
}

/// A call of a plan, read again.
struct Step {
    id: String,
    tool: String,
    arguments: Map<String, Value>,
}

impl Step {
    fn read(call: &PastCall) -> Option<Self> {
        let arguments: Map<_, _> = serde_json::from_str(&call.function.arguments).ok()?;
        let id = arguments.get("step_id").and_then(Value::as_str);
        Some(Self {
            id: id.unwrap_or(&call.id).to_owned(),
            tool: call.function.name.clone(),
            arguments,
        })
    }

    fn drop_dependencies(&mut self, known: impl Fn(&str) -> bool) -> bool {
        let Some(Value::Array(ids)) = self.arguments.get_mut("depends_on") else {
            return false;
        };
        let before = ids.len();
        ids.retain(|id| id.as_str().is_some_and(&known));
        ids.len() < before
    }

    fn refers_to(&self, id: &str) -> bool {
        let listed = self.arguments.get("depends_on").and_then(Value::as_array);
        listed.is_some_and(|ids| ids.iter().any(|v| v.as_str() == Some(id)))
            || mentions(
                self.arguments.get("args").unwrap_or(&Value::Null),
                &format!("${{steps.{id}.output"),
            )
    }

    fn into_call(self) -> Call {
        Call {
            name: self.tool,
            arguments: Value::Object(self.arguments).to_string(),
        }
    }
}

fn mentions(value: &Value, text: &str) -> bool {
    match value {
        Value::String(s) => s.contains(text),
        Value::Array(items) => items.iter().any(|v| mentions(v, text)),
        Value::Object(fields) => fields.values().any(|v| mentions(v, text)),
        _ => false,
    }
}

/// The indexes in `/steps/3/args/url`.
fn indexes(problem: &str) -> Vec<usize> {
    let after = problem.split("/steps/").skip(1);
    after
        .filter_map(|rest| {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..digits].parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::goal::understand;
    use super::super::wire::PastFunction;
    use super::*;

    const ALL: [&str; 4] = [METRICS, SEARCH, FETCH, SUMMARIZE];

    fn offered(names: &[&'static str], steps: bool) -> Offered<'static> {
        Offered {
            names: names.to_vec(),
            steps,
        }
    }

    fn plan(goal: &str, names: &[&'static str], steps: bool) -> Vec<(String, Value)> {
        let calls = calls(&understand(goal), &offered(names, steps));
        let parse = |c: Call| (c.name, serde_json::from_str(&c.arguments).unwrap());
        calls.into_iter().map(parse).collect()
    }

    #[test]
    fn a_search_is_summarised_by_reference() {
        let goal = "Find what the docs say about idempotency and summarise it";
        let expected = vec![
            (
                SEARCH.to_owned(),
                json!({"step_id": "search_1", "args": {"query": "idempotency"}}),
            ),
            (
                SUMMARIZE.to_owned(),
                json!({"step_id": "summary_1", "args": {"text": "${steps.search_1.output}"}}),
            ),
        ];
        assert_eq!(plan(goal, &ALL, true), expected);
    }

    #[test]
    fn independent_questions_become_independent_steps() {
        let goal =
            "ROAS for advertisers 1 and 2, search the docs for leases, fetch https://a.example/";
        let steps = plan(goal, &ALL, true);
        let ids: Vec<_> = steps.iter().map(|(_, a)| a["step_id"].clone()).collect();
        assert_eq!(ids, ["metrics_1", "metrics_2", "search_1", "fetch_1"]);
        assert!(steps.iter().all(|(_, a)| a.get("depends_on").is_none()));
        assert_eq!(
            steps[1].1["args"],
            json!({"advertiser_id": "2", "metric": "roas", "period_days": 7})
        );
    }

    #[test]
    fn only_what_is_offered_is_called() {
        let goal = "Fetch https://a.example/ and summarise it";
        assert_eq!(plan(goal, &[FETCH], true).len(), 1);
        assert_eq!(plan(goal, &[SEARCH, SUMMARIZE], true), []);
    }

    #[test]
    fn functions_of_the_tools_own_form_are_called_in_that_form() {
        let goal = "Find docs about costs of ${x} now and summarise them";
        let expected = vec![(SEARCH.to_owned(), json!({"query": "costs of ${x} now"}))];
        assert_eq!(plan(goal, &ALL, false), expected);
        assert_eq!(
            plan("Find docs about costs of ${x} now", &ALL, true)[0].1["args"]["query"],
            "costs of $${x} now"
        );
    }

    fn past(name: &str, arguments: &Value) -> PastCall {
        PastCall {
            id: "c".into(),
            function: PastFunction {
                name: name.into(),
                arguments: arguments.to_string(),
            },
        }
    }

    fn mended(rejected: &[PastCall], problem: &str) -> Option<Vec<String>> {
        let calls = corrected(rejected, problem, &offered(&ALL, true))?;
        let id = |c: Call| {
            let arguments: Value = serde_json::from_str(&c.arguments).unwrap();
            arguments["step_id"].as_str().unwrap().to_owned()
        };
        Some(calls.into_iter().map(id).collect())
    }

    #[test]
    fn rejected_plans_lose_what_was_wrong() {
        let a = past(FETCH, &json!({"step_id": "a", "args": {"url": "nowhere"}}));
        let b = past(SEARCH, &json!({"step_id": "b", "args": {"query": "x"}}));
        let on_a = past(
            SUMMARIZE,
            &json!({"step_id": "on_a", "args": {"text": ["${steps.a.output.text}"]}}),
        );
        let on_none = past(
            SEARCH,
            &json!({"step_id": "on_none", "args": {}, "depends_on": ["nobody"]}),
        );
        let unknown = past("teleport", &json!({"step_id": "t", "args": {}}));
        let ids = |ids: &[&str]| Some(ids.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());

        assert_eq!(mended(&[unknown], ""), None);
        let plan = [a, b, on_a, on_none];
        assert_eq!(mended(&plan, ""), ids(&["a", "b", "on_a", "on_none"]));
        let [a, b, on_a, _] = plan;
        let plan = [a, b, on_a];
        assert_eq!(mended(&plan, "too expensive"), None);
        assert_eq!(mended(&plan, "/steps/0/args/url: not a URL"), ids(&["b"]));
        assert_eq!(mended(&plan, "/steps/9: ?"), None);
        let broken = PastCall {
            id: "c".into(),
            function: PastFunction {
                name: SEARCH.into(),
                arguments: "{".into(),
            },
        };
        let [a, ..] = plan;
        assert_eq!(mended(&[broken, a], ""), ids(&["a"]));
    }
}
