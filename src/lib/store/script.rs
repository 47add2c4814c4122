//! Lua scripts, made of shared parts.

/// A script that is loaded into Redis once and called by its hash.
pub struct Script {
    name: &'static str,
    script: redis::Script,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Script").field(&self.name).finish()
    }
}

impl Script {
    /// Joins `parts` into one script. It starts with `#!lua`, so that a cluster refuses access to
    /// keys of another slot.
    pub fn new(name: &'static str, parts: &[&str]) -> Self {
        let code = format!("#!lua\n{}", parts.join("\n"));
        Self {
            name,
            script: redis::Script::new(&code),
        }
    }

    /// The name for logs and metrics.
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn prepared(&self) -> redis::ScriptInvocation<'_> {
        self.script.prepare_invoke()
    }
}
