//! The shipped tools, described.

use super::ToolSpec;

/// Every shipped tool, in the order in which models see them.
pub fn all() -> &'static [ToolSpec] {
    &[]
}

/// The tool with this name.
pub fn find(name: &str) -> Option<&'static ToolSpec> {
    all().iter().find(|tool| tool.name == name)
}
