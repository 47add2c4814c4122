use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::plan::MAX_PROBLEMS;
use crate::plan::samples::step;

const LIMITS: PlanLimits = PlanLimits {
    max_steps: 8,
    max_plan_depth: 4,
    max_args_bytes: 400,
    allow_answer: true,
};

fn schema(tool: &str) -> Option<Value> {
    match tool {
        "t" => Some(json!({"type": "object"})),
        "fetch" => Some(json!({
            "type": "object",
            "properties": {
                "url": {"type": "string", "pattern": "^https?://"},
                "n": {"type": "integer", "minimum": 1},
                "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": true},
                "either": {"anyOf": [
                    {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
                    {"type": "null"}
                ]}
            },
            "required": ["url"],
            "additionalProperties": false,
            "if": {"properties": {"n": {"not": {"const": 7}}}, "required": ["n"]},
            "then": {"required": ["tags"]}
        })),
        _ => None,
    }
}

fn validate(tool: &str, args: &Value) -> Result<(), Vec<ArgsProblem>> {
    let validator = jsonschema::validator_for(&schema(tool).unwrap()).unwrap();
    let problems: Vec<_> = validator
        .iter_errors(args)
        .map(|e| ArgsProblem::from(&e))
        .collect();
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn rules(allowed: Option<&[String]>) -> ToolRules<'_> {
    ToolRules {
        allowed,
        known: &|tool| schema(tool).is_some(),
        validate: &validate,
    }
}

fn plan(steps: Vec<Step>) -> Plan {
    Plan {
        steps,
        answer: None,
    }
}

fn fetch(args: Value) -> Step {
    Step {
        tool: "fetch".into(),
        args,
        ..step("f", &[])
    }
}

fn checked(steps: Vec<Step>) -> Result<CheckedPlan, Vec<PlanProblem>> {
    check(&plan(steps), &LIMITS, &rules(None))
}

/// `code path` of every problem.
fn found(steps: Vec<Step>) -> Vec<String> {
    let problems = checked(steps).err().unwrap_or_default();
    problems
        .iter()
        .map(|p| format!("{} {}", p.code, p.path))
        .collect()
}

#[test]
fn a_sound_plan_knows_its_dependencies_and_order() {
    let mut last = step("last", &["b"]);
    last.args = json!({"x": ["${steps.a.output.n}", "see ${steps.b.output}"]});
    let checked = checked(vec![last, step("a", &[]), step("b", &["a", "a"])]).unwrap();
    assert_eq!(checked.dependencies(0), [1, 2]);
    assert_eq!(checked.dependencies(2), [1]);
    let order: Vec<&str> = checked.in_order().map(|s| s.id.as_str()).collect();
    assert_eq!(order, ["a", "b", "last"]);
}

#[test]
fn a_plan_has_steps_or_an_allowed_answer() {
    let codes = |answer: Option<&str>, allow_answer| {
        let plan = Plan {
            steps: vec![],
            answer: answer.map(Into::into),
        };
        let limits = PlanLimits {
            allow_answer,
            ..LIMITS
        };
        check(&plan, &limits, &rules(None)).map_err(|problems| problems[0].code)
    };
    assert!(codes(Some("42"), true).is_ok());
    assert_eq!(codes(Some("42"), false), Err("no_steps"));
    assert_eq!(codes(Some(" \n"), true), Err("no_steps"));
    assert_eq!(codes(None, true), Err("no_steps"));
}

#[test]
fn too_many_steps() {
    let steps = |count: usize| (0..count).map(|i| step(&format!("s{i}"), &[])).collect();
    assert_eq!(found(steps(8)), [""; 0]);
    assert_eq!(found(steps(9)), ["too_many_steps /steps"]);
}

#[test]
fn ids_are_well_formed_and_unique() {
    let long = "a".repeat(33);
    let steps = ["a", "", "1a", "a b", &long, "a", "ä", "Z_-9"];
    assert_eq!(
        found(steps.iter().map(|id| step(id, &[])).collect()),
        [
            "invalid_step_id /steps/1/id",
            "invalid_step_id /steps/2/id",
            "invalid_step_id /steps/3/id",
            "invalid_step_id /steps/4/id",
            "duplicate_step_id /steps/5/id",
            "invalid_step_id /steps/6/id",
        ]
    );
}

#[test]
fn the_id_check_is_the_pattern() {
    let pattern = regex::Regex::new(STEP_ID_PATTERN).unwrap();
    for id in [
        "a",
        "A1",
        "a-_b",
        "",
        "-a",
        "1",
        "a b",
        "ab\n",
        "é",
        &"x".repeat(32),
        &"x".repeat(33),
    ] {
        assert_eq!(is_step_id(id), pattern.is_match(id), "{id:?}");
    }
}

#[test]
fn tools_are_known_and_allowed() {
    let with = |tool: &str| Step {
        tool: tool.into(),
        ..step(tool, &[])
    };
    let allowed = ["fetch".to_owned(), "nope".to_owned()];
    let plan = plan(vec![with("t"), with("nope")]);
    let problems = check(&plan, &LIMITS, &rules(Some(&allowed))).unwrap_err();
    let codes: Vec<&str> = problems.iter().map(|p| p.code).collect();
    assert_eq!(codes, ["tool_not_allowed", "unknown_tool"]);
    assert_eq!(problems[0].path, "/steps/0/tool");
}

#[test]
fn arguments_are_bounded_objects() {
    let with = |id: &str, args| Step {
        args,
        ..step(id, &[])
    };
    let nested = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({"a": inner}));
    // `{"a":"…"}` has 8 bytes beside the text.
    let sized = |bytes: usize| json!({"a": "x".repeat(bytes - 8)});
    assert_eq!(
        found(vec![
            with("a", Value::Null),
            with("b", json!([1])),
            with("c", nested(16)),
            with("d", nested(17)),
            with("e", sized(400)),
            with("f", sized(401)),
        ]),
        [
            "args_not_object /steps/0/args",
            "args_not_object /steps/1/args",
            "args_too_deep /steps/3/args",
            "args_too_large /steps/5/args",
        ]
    );
}

#[test]
fn arguments_fit_the_schema() {
    let codes = found(vec![fetch(json!({"n": 0, "tags": ["a", "z"], "more": 1}))]);
    for expected in [
        "invalid_args /steps/0/args",
        "invalid_args /steps/0/args/n",
        "invalid_args /steps/0/args/tags/1",
    ] {
        assert!(
            codes.iter().any(|code| code == expected),
            "{expected}: {codes:?}"
        );
    }
    // `required` and `additionalProperties` are two problems of the whole.
    assert_eq!(codes.len(), 4);
}

#[test]
fn what_a_reference_may_become_is_not_held_against_it() {
    let fits = |args| {
        let codes = found(vec![fetch(args), step("s", &[])]);
        assert_eq!(codes, [""; 0]);
    };
    fits(json!({"url": "${steps.s.output.url}", "n": "${steps.s.output.n}"}));
    fits(json!({"url": "http://a", "tags": "${steps.s.output}"}));
    fits(json!({"url": "http://a", "tags": ["${steps.s.output}", "a", "${steps.s.output}"]}));
    fits(json!({"url": "http://a", "either": {"x": "${steps.s.output}"}}));
    // The pattern may hold once the text is known.
    fits(json!({"url": "${steps.s.output.scheme}://x"}));
    // `then` may apply or not, by the value of `n`.
    fits(json!({"url": "http://a", "n": "${steps.s.output.n}"}));
}

#[test]
fn what_no_reference_can_mend_is_reported() {
    let refused = |args, expected: &str| {
        let codes = found(vec![fetch(args), step("s", &[])]);
        assert_eq!(codes, [expected]);
    };
    let whole = "invalid_args /steps/0/args";
    refused(json!({"n": "${steps.s.output}"}), whole);
    refused(json!({"url": "${steps.s.output}", "b": 1}), whole);
    // Text around a reference makes it a string for good.
    refused(
        json!({"url": "http://a", "n": "1${steps.s.output}"}),
        "invalid_args /steps/0/args/n",
    );
    // An escape is no reference: the text that will be there is validated.
    refused(
        json!({"url": "$${steps.s.output}"}),
        "invalid_args /steps/0/args/url",
    );
    // A neighbour whose name merely begins alike.
    refused(
        json!({"url": "http://a", "n": 0, "tags": "${steps.s.output}"}),
        "invalid_args /steps/0/args/n",
    );
}

#[test]
fn escapes_are_undone_before_validation() {
    let schema = json!({"properties": {"a": {"const": "${x}"}}});
    let validator = jsonschema::validator_for(&schema).unwrap();
    let validate = |_: &str, args: &Value| {
        let problems: Vec<_> = validator
            .iter_errors(args)
            .map(|e| ArgsProblem::from(&e))
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    };
    let rules = ToolRules {
        allowed: None,
        known: &|_| true,
        validate: &validate,
    };
    let plan = plan(vec![fetch(json!({"a": "$${x}"}))]);
    assert!(check(&plan, &LIMITS, &rules).is_ok());
}

#[test]
fn dependencies_and_references_exist() {
    let mut a = step("a", &["a", "b", "x"]);
    a.args = json!({"p/q": "${steps.y.output}${steps.a.output}", "r": "${env.HOME}", "ok": "${steps.b.output}"});
    assert_eq!(
        found(vec![a, step("b", &[])]),
        [
            "self_dependency /steps/0/depends_on/0",
            "unknown_dependency /steps/0/depends_on/2",
            "unknown_reference /steps/0/args/p~1q",
            "self_dependency /steps/0/args/p~1q",
            "invalid_reference /steps/0/args/r",
        ]
    );
}

#[test]
fn cycles_are_shown_through_references_too() {
    let mut a = step("a", &[]);
    a.args = json!({"x": "${steps.c.output}"});
    let problems = checked(vec![
        step("z", &["a"]),
        a,
        step("b", &["a"]),
        step("c", &["b"]),
    ])
    .unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].code, "cycle");
    assert_eq!(problems[0].path, "/steps/1");
    assert!(
        problems[0].message.contains("a → c → b → a"),
        "{}",
        problems[0]
    );
}

#[test]
fn chains_are_bounded() {
    let chain = |count: usize| {
        let name = |i: usize| format!("s{i}");
        (0..count)
            .map(|i| match i {
                0 => step(&name(0), &[]),
                _ => step(&name(i), &[&name(i - 1)]),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(found(chain(4)), [""; 0]);
    assert_eq!(found(chain(5)), ["plan_too_deep /steps/4"]);
}

#[test]
fn timeouts_are_bounded() {
    let with = |id: &str, timeout| Step {
        timeout_s: Some(timeout),
        ..step(id, &[])
    };
    assert_eq!(
        found(vec![
            with("a", 0),
            with("b", 1),
            with("c", 3600),
            with("d", 3601)
        ]),
        [
            "invalid_timeout /steps/0/timeout_s",
            "invalid_timeout /steps/3/timeout_s"
        ]
    );
}

#[test]
fn everything_is_reported_up_to_the_cap_and_little_is_repeated() {
    let long = "Q".repeat(200);
    let steps: Vec<Step> = (0..8)
        .map(|_| Step {
            id: long.clone(),
            tool: long.clone(),
            args: json!({"a": format!("${{steps.{}.output}}", "Q".repeat(32))}),
            depends_on: vec![format!("{long}x")],
            timeout_s: Some(0),
        })
        .collect();
    let problems = checked(steps).unwrap_err();
    assert_eq!(problems.len(), MAX_PROBLEMS);
    for problem in &problems {
        assert!(problem.message.matches('Q').count() <= 64, "{problem}");
    }
}

/// Steps of few names, so that they collide and meet.
fn any_plan() -> impl Strategy<Value = Plan> {
    let id = prop_oneof!["[a-d]", any::<String>()];
    let text = prop_oneof![
        "\\$\\{steps\\.[a-d]\\.output\\}",
        "[$\\{\\}a-d.]{0,12}",
        any::<String>()
    ];
    let args = prop_oneof![
        Just(json!({})),
        text.prop_map(|t| json!({"url": t, "n": [t]})),
        Just(json!(3))
    ];
    let tool = prop_oneof![
        Just("t".to_owned()),
        Just("fetch".to_owned()),
        any::<String>()
    ];
    let step = (id.clone(), tool, args, proptest::collection::vec(id, 0..3)).prop_map(
        |(id, tool, args, depends_on)| Step {
            id,
            tool,
            args,
            depends_on,
            timeout_s: None,
        },
    );
    proptest::collection::vec(step, 0..6).prop_map(plan)
}

proptest! {
    #[test]
    fn any_plan_is_decided_and_what_passes_is_sound(plan in any_plan()) {
        match check(&plan, &LIMITS, &rules(None)) {
            Err(problems) => {
                prop_assert!((1..=MAX_PROBLEMS).contains(&problems.len()));
            }
            Ok(checked) => {
                prop_assert_eq!(checked.plan(), &plan);
                let order: Vec<usize> = checked
                    .in_order()
                    .map(|step| checked.index_of(&step.id).unwrap())
                    .collect();
                prop_assert_eq!(order.len(), plan.steps.len());
                for (place, &index) in order.iter().enumerate() {
                    for dependency in checked.dependencies(index) {
                        prop_assert!(order[..place].contains(dependency));
                    }
                }
                let stored = serde_json::to_string(&checked).unwrap();
                prop_assert_eq!(serde_json::from_str::<CheckedPlan>(&stored).unwrap(), checked);
            }
        }
    }
}
