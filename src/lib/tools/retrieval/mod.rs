//! `retrieval`: full-text search in a tenant's documents.
//!
//! [`intake`] finds files and [`media`] reads them; [`corpus`] keeps them in the object store, where
//! every executor finds them; `tenants` keeps an index per tenant over [`passages`] of them.
//!
//! Invariant: a search sees the documents of its own tenant and no others; each tenant has an index
//! of its own, so that no filter can be forgotten.

pub mod corpus;
pub mod index;
pub mod intake;
pub mod media;
pub mod passages;
pub mod storage;
mod tenants;
mod workspace;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use tenants::{IndexError, Tenants};

use super::{Tool, ToolCall, ToolError, ToolOutput, ToolSpec, catalogue};
use corpus::Corpus;

/// The tool.
pub struct Retrieval {
    tenants: Tenants,
}

impl Retrieval {
    /// A search over `corpus` whose indexes lie below `cache_dir` and are compared with the corpus
    /// at most every `refresh`. Fails when the folder cannot be used.
    pub fn open(corpus: Corpus, cache_dir: &Path, refresh: Duration) -> std::io::Result<Self> {
        Ok(Self {
            tenants: Tenants::open(corpus, cache_dir, refresh)?,
        })
    }
}

#[derive(Debug, Deserialize)]
struct Args {
    query: String,
    #[serde(default = "five")]
    top_k: usize,
}

fn five() -> usize {
    5
}

#[async_trait]
impl Tool for Retrieval {
    fn spec(&self) -> &ToolSpec {
        &catalogue::RETRIEVAL
    }

    async fn call(&self, call: ToolCall) -> Result<ToolOutput, ToolError> {
        let Args { query, top_k } = serde_json::from_value(call.args)
            .map_err(|error| ToolError::permanent("invalid_args", error.to_string()))?;
        let Some(snapshot) = self
            .tenants
            .snapshot(&call.tenant)
            .await
            .map_err(|error| tool_error(&error))?
        else {
            return Ok(json!({"query": query, "results": [], "total": 0}).into());
        };
        let search = move || (snapshot.search(&query, top_k), query);
        let (found, query) = tokio::task::spawn_blocking(search)
            .await
            .map_err(|_| tool_error(&IndexError::Aborted))?;
        let (results, total) = found.map_err(|error| tool_error(&error.into()))?;
        Ok(json!({"query": query, "results": results, "total": total}).into())
    }
}

/// What failed is the store or this machine's disk: another attempt may find it mended. The detail
/// names paths and addresses and stays in the log.
fn tool_error(error: &IndexError) -> ToolError {
    tracing::warn!(%error, "a search in the documents failed");
    let code = match error {
        IndexError::Corpus(_) => "documents_unavailable",
        IndexError::Index(_) | IndexError::Folder(_) | IndexError::Aborted => "search_index_failed",
    };
    ToolError::transient(code, "the documents cannot be searched at the moment")
}
