//! The tools that a process can call, by name.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Tool, catalogue};

/// Why a tool was not taken up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The catalogue, by which plans are checked, has no such tool, or another version of it.
    #[error("the tool {name} version {version} is not in the catalogue")]
    NotInCatalogue {
        /// The tool's name.
        name: String,
        /// The tool's version.
        version: u32,
    },
    /// A tool of that name is there already.
    #[error("the tool {0} is registered twice")]
    Duplicate(String),
}

/// Implementations by name.
///
/// Invariant: each has its entry in the catalogue, so that no tool runs whose arguments the planner
/// and the API could not check.
#[derive(Default, Clone)]
pub struct ToolRegistry {
    tools: HashMap<String, Arc<dyn Tool>>,
}

impl ToolRegistry {
    /// No tools.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tool.
    pub fn register(&mut self, tool: Arc<dyn Tool>) -> Result<(), RegistryError> {
        let spec = tool.spec();
        let name = spec.name.to_owned();
        let known = catalogue::find(&name).is_some_and(|known| known.version == spec.version);
        if !known {
            return Err(RegistryError::NotInCatalogue {
                name,
                version: spec.version,
            });
        }
        if self.tools.contains_key(&name) {
            return Err(RegistryError::Duplicate(name));
        }
        self.tools.insert(name, tool);
        Ok(())
    }

    /// The tool with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.tools.get(name)
    }
}

impl std::fmt::Debug for ToolRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.tools.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::tools::ads::AdsMetricsMock;
    use crate::tools::{ToolCall, ToolError, ToolOutput, ToolSpec};

    struct Other(ToolSpec);

    #[async_trait]
    impl Tool for Other {
        fn spec(&self) -> &ToolSpec {
            &self.0
        }

        async fn call(&self, _: ToolCall) -> Result<ToolOutput, ToolError> {
            Err(ToolError::permanent("never", "called"))
        }
    }

    #[test]
    fn only_what_the_catalogue_knows_is_taken_up_and_only_once() {
        let mut registry = ToolRegistry::new();
        let ads = || Arc::new(AdsMetricsMock);
        registry.register(ads()).unwrap();
        assert!(registry.get("ads_metrics_mock").is_some());
        assert!(registry.get("retrieval").is_none());
        assert!(matches!(
            registry.register(ads()),
            Err(RegistryError::Duplicate(_))
        ));

        let retrieval = catalogue::find("retrieval").unwrap();
        for spec in [
            ToolSpec {
                name: "rm_rf",
                ..retrieval.clone()
            },
            ToolSpec {
                version: 99,
                ..retrieval.clone()
            },
        ] {
            let refused = registry.register(Arc::new(Other(spec)));
            assert!(matches!(refused, Err(RegistryError::NotInCatalogue { .. })));
        }
    }
}
