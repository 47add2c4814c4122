//! Sessions as clients see them.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::exit::Exit;
use super::run_body::Usage;
use super::state::ApiState;
use super::time::rfc3339;
use crate::ids::TenantId;
use crate::privacy::DataKey;
use crate::runs::SessionView;

/// A session.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionBody {
    /// The session.
    session_id: String,
    /// When it was created.
    created_at: String,
    /// When it expires if nothing touches it; absent in lists, and while a
    /// run is live, since its time pauses then.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// Seconds that it lives after its last use.
    ttl_s: u64,
    /// What every run of it is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Value>,
    /// Whom it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    /// The client's own labels.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    metadata: Value,
    /// What its runs used so far.
    usage: Usage,
    /// Runs that have not ended.
    live_runs: u64,
    /// The newest event; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_event_id: Option<String>,
    /// Where to go on.
    links: SessionLinks,
}

/// Where to go on from a session.
#[derive(Debug, Serialize, ToSchema)]
struct SessionLinks {
    /// The session.
    #[serde(rename = "self")]
    this: String,
    /// Its runs.
    runs: String,
    /// Its events.
    stream: String,
}

/// A session. `touched_ms`: when its time to live began anew, where this read made it so.
pub(super) fn body(
    state: &ApiState,
    tenant: &TenantId,
    view: &SessionView,
    touched_ms: Option<u64>,
) -> SessionBody {
    let wrapped = view.fields.text("key").unwrap_or_default();
    let key = match state.parts.data_keys.unwrap(wrapped, tenant, &view.id) {
        Ok(key) => Some(key),
        Err(error) => {
            tracing::error!(%error, session_id = %view.id, "a data key does not unwrap");
            None
        }
    };
    build(&state.exit, view, key.as_ref(), touched_ms)
}

fn build(
    exit: &Exit,
    view: &SessionView,
    key: Option<&DataKey>,
    touched_ms: Option<u64>,
) -> SessionBody {
    let SessionView { id, fields } = view;
    let ttl_ms = fields.number("ttl_ms");
    let live_runs = fields.number("live");
    let open = |name: &str| exit.open(key?, &fields.sealed(name)?);
    SessionBody {
        session_id: id.to_string(),
        created_at: rfc3339(fields.number("created")),
        expires_at: touched_ms
            .filter(|_| live_runs == 0)
            .map(|ms| rfc3339(ms.saturating_add(ttl_ms))),
        ttl_s: ttl_ms / 1000,
        context: open("context"),
        subject: key.and_then(|key| exit.open_text(key, &fields.sealed("subject")?)),
        metadata: open("metadata").unwrap_or_else(|| serde_json::json!({})),
        usage: Usage::of(fields),
        live_runs,
        last_event_id: view.last_event().map(|id| id.to_string()),
        links: SessionLinks {
            this: format!("/v1/sessions/{id}"),
            runs: format!("/v1/runs?session_id={id}"),
            stream: format!("/v1/stream?session_id={id}"),
        },
    }
}
