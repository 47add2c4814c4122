//! Tools that are no part of AgentHub: fetched by `infra/local/tools`, and not to be had everywhere.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The tool `name`, or `None` where it cannot be had: the test then says so and ends. That nobody fetched the
/// tools is a mistake where everything must be checked.
pub fn tool(name: &str) -> Option<PathBuf> {
    let tools = root().join(".agenthub/tools");
    let path = tools.join("bin").join(name);
    if path.exists() {
        return Some(path);
    }
    let reason = std::fs::read_to_string(tools.join(format!("{name}.unavailable")));
    let reason = reason.unwrap_or_else(|_| {
        assert!(
            std::env::var_os("CI").is_none(),
            "{name} was not fetched: infra/local/tools fetch"
        );
        "it was not fetched: infra/local/tools fetch".to_owned()
    });
    eprintln!("SKIPPED, no {name}: {}", reason.trim());
    None
}

/// Runs a tool in the repository's root; what it printed. Panics with it when the tool fails.
#[track_caller]
pub fn run(tool: &Path, args: &[&str]) -> String {
    let output = Command::new(tool)
        .args(args)
        .current_dir(root())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}\n{out}{told}");
    out
}
