//! What is logged, by level and module, changeable while the process runs.

use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::{EnvFilter, Registry, reload};

/// The filter of the process' log.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    directives: Arc<Mutex<String>>,
}

impl std::fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogFilter").finish_non_exhaustive()
    }
}

impl LogFilter {
    pub(super) fn new(
        directives: &str,
    ) -> Result<(reload::Layer<EnvFilter, Registry>, Self), String> {
        let (layer, handle) = reload::Layer::new(parse(directives)?);
        let filter = Self {
            handle,
            directives: Arc::new(Mutex::new(directives.to_owned())),
        };
        Ok((layer, filter))
    }

    /// Logs by `directives` (a level, or `tracing` directives such as `info,agenthub::kafka=debug`) from
    /// here on. Returns whether that changes anything.
    ///
    /// # Errors
    /// What is wrong with them; then everything stays as it was.
    pub fn set(&self, directives: &str) -> Result<bool, String> {
        let filter = parse(directives)?;
        let mut current = self
            .directives
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *current == directives {
            return Ok(false);
        }
        self.handle.reload(filter).map_err(|e| e.to_string())?;
        directives.clone_into(&mut current);
        Ok(true)
    }
}

fn parse(directives: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(directives).map_err(|e| format!("AGENTHUB_LOG: {e}"))
}
