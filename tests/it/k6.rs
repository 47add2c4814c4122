//! The k6 scripts: typed as k6 types them, and run against a real API with stand-ins for k6, which is not to be
//! had everywhere (and is under the AGPL).

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::stack::Stack;
use crate::support::tools::{root, run, tool};

#[test]
fn the_scripts_are_typed() {
    let Some(tsc) = tool("k6-types") else {
        return;
    };
    run(&tsc, &["-p", "perf/jsconfig.json"]);
    // That the types are k6's is seen by what they refuse.
    let types = ".agenthub/tools/k6-types/node_modules/@types/k6";
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.js");
    std::fs::write(
        &wrong,
        "import http from 'k6/http';\nhttp.get(1).no_such_field;\n",
    )
    .unwrap();
    let config = serde_json::json!({
        "extends": root().join("perf/jsconfig.json"),
        "compilerOptions": { "paths": { "k6/*": [root().join(types).join("*")] } },
        "files": [wrong],
    });
    let path = folder.path().join("jsconfig.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let output = Command::new(&tsc).arg("-p").arg(&path).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        !output.status.success() && told.contains("no_such_field"),
        "{told}"
    );
}

#[tokio::test]
async fn the_scripts_understand_the_api() {
    let runs = |name: &str| {
        Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_ok()
    };
    if !runs("node") || !runs("curl") {
        eprintln!("SKIPPED: the k6 scripts are run by Node and curl, which are not installed");
        return;
    }
    let stack = Stack::start(&[("AGENTHUB_KEY_LIMITS", "20/60000")]).await;
    // The first uses up what the second finds exceeded, so each has a key of its own.
    for (script, functions) in [
        ("load_test.js", &["noModel", "singleTool"][..]),
        ("sse_test.js", &["default"][..]),
        ("rate_limit_test.js", &["default"; 8][..]),
    ] {
        let keys = stack.keys();
        let key =
            crate::support::stack::mint(&keys, &stack.tenant, agenthub::governance::Role::Client)
                .await;
        let mut node = Command::new("node");
        node.arg("--no-warnings")
            .arg(root().join("tests/k6/run.mjs"))
            .arg(root().join("perf").join(script))
            .args(functions)
            .env("AGENTHUB_URL", stack.url(""))
            .env("AGENTHUB_CLIENT_KEY", key);
        let output = tokio::task::spawn_blocking(move || node.output())
            .await
            .unwrap()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {told}{errors}");
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["failed"], serde_json::json!([]), "{script}");
    }
}
