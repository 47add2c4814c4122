use proptest::prelude::*;
use serde_json::json;

use super::*;

const MANY: usize = 1 << 20;

fn resolve_with(args: &Value, output: &Value) -> Result<Value, ReferenceError> {
    resolve(args, &|step| (step == "s1").then_some(output), MANY)
}

#[test]
fn a_sole_reference_keeps_the_type() {
    let output = json!({"n": 7, "list": [{"odd name": [true]}], "t": "x"});
    for (text, expected) in [
        ("${steps.s1.output}", output.clone()),
        ("${steps.s1.output.n}", json!(7)),
        ("${steps.s1.output.list[0]}", json!({"odd name": [true]})),
        ("${steps.s1.output.list.0[\"odd name\"][0]}", json!(true)),
        ("${steps.s1.output[\"t\"]}", json!("x")),
    ] {
        let args = json!({"a": [text]});
        assert_eq!(
            resolve_with(&args, &output),
            Ok(json!({"a": [expected]})),
            "{text}"
        );
    }
}

#[test]
fn within_text_values_become_text() {
    let output = json!({"s": "a\"b", "n": 1.5, "o": {"k": null}});
    let args = json!("<${steps.s1.output.s}|${steps.s1.output.n}|${steps.s1.output.o}> $5 {x}");
    assert_eq!(
        resolve_with(&args, &output),
        Ok(json!("<a\"b|1.5|{\"k\":null}> $5 {x}"))
    );
}

#[test]
fn dollars_and_escapes() {
    let output = json!("v");
    for (text, expected) in [
        ("$${steps.s1.output}", "${steps.s1.output}"),
        ("$$${", "$${"),
        ("$${${steps.s1.output}}", "${v}"),
        ("${steps.s1.output}$${", "v${"),
        ("$ $$ { $x }", "$ $$ { $x }"),
    ] {
        assert_eq!(
            resolve_with(&json!(text), &output),
            Ok(json!(expected)),
            "{text}"
        );
    }
}

#[test]
fn outputs_are_never_expanded() {
    let output = json!({"a": "${steps.s1.output.secret}", "b": "$${", "secret": "s"});
    let args = json!({
        "sole": "${steps.s1.output.a}",
        "within": "x ${steps.s1.output.a}${steps.s1.output.b}",
        "whole": "${steps.s1.output}",
        // Two insertions that together look like a reference.
        "joined": "$${steps.s1.output.secret} ${steps.s1.output.b}"
    });
    assert_eq!(
        resolve_with(&args, &output),
        Ok(json!({
            "sole": "${steps.s1.output.secret}",
            "within": "x ${steps.s1.output.secret}$${",
            "whole": output,
            "joined": "${steps.s1.output.secret} $${"
        }))
    );
}

#[test]
fn names_of_fields_are_not_looked_at() {
    let args = json!({"${steps.s1.output}": "${"});
    assert!(matches!(
        resolve_with(&args, &json!(1)),
        Err(ReferenceError::Syntax(_))
    ));
    let args = json!({"${steps.s1.output}": 1});
    assert_eq!(resolve_with(&args, &json!(1)), Ok(args.clone()));
}

#[test]
fn what_is_missing_is_named() {
    let output = json!({"a": [{"b": 1}]});
    let error = resolve_with(&json!("${steps.s1.output.a[0].c.d}"), &output).unwrap_err();
    assert_eq!(
        error,
        ReferenceError::MissingPath {
            step: "s1".into(),
            path: ".a[0].c".into()
        }
    );
    assert_eq!(
        error.to_string(),
        "the output of step \"s1\" has no \".a[0].c\""
    );
    let error = resolve_with(&json!("${steps.s2.output}"), &output).unwrap_err();
    assert_eq!(error, ReferenceError::NoOutput { step: "s2".into() });
    for path in [".a[1]", ".a.x", ".a[0][0]", "[0]", ".a[\"0x\"]"] {
        let args = json!(format!("${{steps.s1.output{path}}}"));
        let error = resolve_with(&args, &output).unwrap_err();
        assert_eq!(error.code(), "reference_not_found", "{path}");
    }
}

#[test]
fn foreign_forms_are_refused_with_their_place() {
    for (text, at) in [
        ("${", 2),
        ("${HOME}", 2),
        ("ä${steps.}", 10),
        ("${steps.1a.output}", 10),
        ("${steps.s1}", 10),
        ("${steps.s1.outputs}", 17),
        ("${steps.s1.output", 17),
        ("${steps.s1.output.}", 18),
        ("${steps.s1.output[-1]}", 18),
        ("${steps.s1.output[\"a}", 18),
        ("${steps.s1.output[1}", 19),
        ("${ steps.s1.output }", 2),
        ("${steps.s1.output[99999999999999999999999]}", 41),
    ] {
        assert_eq!(Template::parse(text).unwrap_err().at, at, "{text}");
    }
}

#[test]
fn the_result_is_bounded() {
    let output = json!("x".repeat(100));
    let outputs = |_: &str| Some(&output);
    let sole = json!("${steps.s1.output}");
    assert!(resolve(&sole, &outputs, 102).is_ok());
    let too_large = Err(ReferenceError::TooLarge { limit: 101 });
    assert_eq!(resolve(&sole, &outputs, 101), too_large);
    // Repetition multiplies; the second insertion already exceeds what is left.
    let many = json!(vec!["${steps.s1.output}"; 1000]);
    let too_large = Err(ReferenceError::TooLarge { limit: 150 });
    assert_eq!(resolve(&many, &outputs, 150), too_large);
    let text = json!("${steps.s1.output}".repeat(1000));
    assert_eq!(resolve(&text, &outputs, 150), too_large);
    // Escapes count.
    let output = json!("\u{1}".repeat(100));
    let outputs = |_: &str| Some(&output);
    assert!(resolve(&json!("a${steps.s1.output}"), &outputs, 602).is_err());
    assert!(resolve(&json!("a${steps.s1.output}"), &outputs, 603).is_ok());
}

#[test]
fn too_much_is_noticed_before_it_is_inserted() {
    let output = json!("x".repeat(100));
    for args in [
        json!(vec!["${steps.s1.output}"; 1000]),
        json!("${steps.s1.output}".repeat(1000)),
    ] {
        let looked_up = std::cell::Cell::new(0);
        let outputs = |_: &str| {
            looked_up.set(looked_up.get() + 1);
            Some(&output)
        };
        assert!(resolve(&args, &outputs, 150).is_err());
        assert_eq!(looked_up.get(), 2);
    }
}

#[test]
fn previews_tell_sites_and_undo_escapes() {
    let args = json!({"a/b": ["$${", "x${steps.s1.output}"], "c": "${steps.s2.output}", "d": "${"});
    let preview = preview(&args);
    let pointers: Vec<&str> = preview.sites.iter().map(|s| s.pointer.as_str()).collect();
    assert_eq!(pointers, ["/a~1b/1", "/c", "/d"]);
    assert!(preview.sites[2].template.is_err());
    assert_eq!(preview.args["a/b"][0], "${");
    assert_eq!(preview.args["c"], "${steps.s2.output}");
    assert_eq!(referenced_steps(&args), ["s1", "s2"]);
}

fn references() -> impl Strategy<Value = Reference> {
    let segment = prop_oneof![
        any::<usize>().prop_map(Segment::Index),
        any::<String>().prop_map(Segment::Key),
        "[a-z_0-9-]{1,5}".prop_map(Segment::Key),
    ];
    let path = proptest::collection::vec(segment, 0..5);
    ("[A-Za-z][A-Za-z0-9_-]{0,31}", path).prop_map(|(step, path)| Reference { step, path })
}

/// Texts in which dollars and braces are likely.
fn dollar_texts() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[$\\{\\}a.\\[\\]\" ]{0,40}"]
}

proptest! {
    #[test]
    fn text_without_the_sign_is_unchanged(text in any::<String>()) {
        prop_assume!(!text.contains("${"));
        let args = json!({"a": [text]});
        prop_assert_eq!(resolve(&args, &|_| None, usize::MAX), Ok(args.clone()));
    }

    #[test]
    fn escaping_round_trips(text in dollar_texts()) {
        let escaped = json!(escape(&text));
        prop_assert_eq!(resolve(&escaped, &|_| None, usize::MAX), Ok(json!(text)));
    }

    #[test]
    fn written_references_are_read_back(reference in references()) {
        let template = Template::parse(&reference.to_string()).unwrap();
        prop_assert_eq!(template.sole_reference(), Some(&reference));
    }

    #[test]
    fn nothing_panics(text in dollar_texts(), tail in "[a.\\[\\]0-9\"\\\\\\}\\{\\$]{0,12}") {
        let _ = Template::parse(&text);
        let _ = Template::parse(&format!("${{steps.a.output{tail}"));
        let _ = Template::parse(&format!("${{steps.{text}"));
    }

    #[test]
    fn inserted_text_arrives_unchanged(output in any::<String>(), before in any::<String>()) {
        let value = json!(output);
        let args = json!(format!("{}-${{steps.a.output}}", escape(&before)));
        let resolved = resolve(&args, &|_| Some(&value), usize::MAX);
        prop_assert_eq!(resolved, Ok(json!(format!("{before}-{output}"))));
    }

    #[test]
    fn results_never_exceed_the_limit(output in any::<String>(), times in 0_usize..5, limit in 0_usize..200) {
        let value = json!([output]);
        let args = json!(["${steps.a.output} ".repeat(times), "${steps.a.output}"]);
        if let Ok(resolved) = resolve(&args, &|_| Some(&value), limit) {
            prop_assert!(resolved.to_string().len() <= limit);
        }
    }
}
