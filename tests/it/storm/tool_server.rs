//! The server behind the storm's tools. It writes down each call, and does not do again what it did for an
//! `Idempotency-Key`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;
use axum::{Router, body::Bytes};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::history::{Call, Promise};
use crate::support::ledger::now_ms;

/// The tools: name, what it promises, and how that is declared.
pub const TOOLS: [(&str, Promise, &str); 3] = [
    ("look", Promise::None, "none"),
    ("book", Promise::Idempotent, "idempotent"),
    ("pay", Promise::Unsafe, "unsafe"),
];

/// A file that declares them at `addr`, for the executor `worker`.
pub fn declare(addr: SocketAddr, worker: &str) -> String {
    let tools = TOOLS.iter().map(|(name, _, effects)| {
        format!(
            "[[tool]]\nname = \"{name}\"\ndescription = \"Made up.\"\neffects = \"{effects}\"\n\
             url = \"http://{addr}/{worker}/{name}\"\ntimeout_s = 5\n\
             parameters = {{ type = \"object\" }}\n\n"
        )
    });
    tools.collect()
}

/// A call that is there and not answered yet.
pub struct Held {
    answer: oneshot::Sender<()>,
}

impl Held {
    pub fn answer(self) {
        let _ = self.answer.send(()); // its caller may be gone
    }
}

#[derive(Default)]
struct Shared {
    calls: Mutex<Vec<Call>>,
    /// Who wants the next call of a worker held.
    traps: Mutex<BTreeMap<String, oneshot::Sender<Held>>>,
    done: Mutex<HashMap<String, usize>>,
}

/// The server. It ends when this is dropped.
pub struct ToolServer {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl ToolServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let router = Router::new()
            .route("/{worker}/{tool}", post(called))
            .with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { addr, shared, task }
    }

    /// The next call that `worker` makes, held.
    pub fn trap(&self, worker: &str) -> oneshot::Receiver<Held> {
        let (told, held) = oneshot::channel();
        self.shared
            .traps
            .lock()
            .unwrap()
            .insert(worker.to_owned(), told);
        held
    }

    pub fn untrap(&self, worker: &str) {
        self.shared.traps.lock().unwrap().remove(worker);
    }

    /// Who made the last call of a run.
    pub fn worker_of(&self, run: &str) -> Option<String> {
        let calls = self.shared.calls.lock().unwrap();
        let last = calls.iter().rev().find(|call| call.key.starts_with(run));
        last.map(|call| call.worker.clone())
    }

    /// The log.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }
}

impl Drop for ToolServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn called(
    State(shared): State<Arc<Shared>>,
    Path((worker, tool)): Path<(String, String)>,
    headers: HeaderMap,
    _: Bytes,
) -> Response {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    let (key, attempt) = (text("idempotency-key"), text("agenthub-attempt"));
    let (_, promise, _) = *TOOLS.iter().find(|(name, ..)| *name == tool).unwrap();
    let attempt: u32 = attempt.parse().unwrap();
    let number = {
        let mut calls = shared.calls.lock().unwrap();
        calls.push(Call {
            promise,
            key: key.clone(),
            attempt,
            worker: worker.clone(),
            arrived_ms: now_ms(),
            status: None,
        });
        calls.len() - 1
    };
    let trap = shared.traps.lock().unwrap().remove(&worker);
    if let Some(trap) = trap {
        let (answer, go) = oneshot::channel();
        if trap.send(Held { answer }).is_ok() {
            let _ = go.await;
        }
    }
    // The same for the same attempt: short or longer, and now and then a failure at first.
    let chance = key.bytes().fold(attempt, |sum, b| {
        sum.wrapping_mul(31).wrapping_add(b.into())
    });
    tokio::time::sleep(Duration::from_millis(u64::from(chance % 80))).await;
    let fails = promise != Promise::Unsafe && attempt == 1 && chance.is_multiple_of(11);
    let status = if fails {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    shared.calls.lock().unwrap()[number].status = Some(status.as_u16());
    if fails {
        return status.into_response();
    }
    let mut done = shared.done.lock().unwrap();
    let fresh = done.len() + 1;
    let receipt = *done.entry(key).or_insert(fresh);
    Json(json!({ "receipt": receipt })).into_response()
}
