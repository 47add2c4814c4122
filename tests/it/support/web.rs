//! A server that tools fetch from: it counts, and answers as a test tells it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::{Barrier, watch};
use tokio::task::JoinHandle;

/// What a request is answered.
pub enum Reply {
    /// A page.
    Page(&'static str),
    /// JSON text.
    Json(&'static str),
    /// A page with a `Cache-Control`.
    Keepable(&'static str, &'static str),
    /// An error's status.
    Status(u16),
    /// A page, after a time.
    Later(Duration, &'static str),
    /// A page, once another such request is there too.
    Meeting(&'static str),
    /// A page, once the test calls [`Web::release`].
    Held(&'static str),
    /// Nothing, ever: the connection stays open.
    Never,
}

type Script = Box<dyn Fn(&str, usize) -> Reply + Send + Sync>;

struct Shared {
    hits: Mutex<HashMap<String, usize>>,
    script: Script,
    meeting: Barrier,
    released: watch::Sender<bool>,
}

/// The server. It ends when this is dropped.
pub struct Web {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Web {
    /// A server on an address that the executors of [`allowing`](super::stack::allowing) may fetch
    /// from. `script` is told the path and how many requests for it there were, this one included.
    pub async fn start(script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        Self::on(listener, script)
    }

    pub fn on(
        listener: TcpListener,
        script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            hits: Mutex::default(),
            script: Box::new(script),
            meeting: Barrier::new(2),
            released: watch::Sender::new(false),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { addr, shared, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Lets every held answer go, now and from now on.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// Requests for a path so far.
    pub fn hits(&self, path: &str) -> usize {
        let hits = self.shared.hits.lock().unwrap();
        hits.get(path).copied().unwrap_or(0)
    }

    /// Waits until a path was requested `times`.
    pub async fn until_hit(&self, path: &str, times: usize) {
        super::eventually(&format!("{path} is requested"), async || {
            (self.hits(path) >= times).then_some(())
        })
        .await;
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let path = uri.path();
    let nth = {
        let mut hits = shared.hits.lock().unwrap();
        let hits = hits.entry(path.to_owned()).or_default();
        *hits += 1;
        *hits
    };
    let html = |page: &'static str| ([(header::CONTENT_TYPE, "text/html")], page).into_response();
    match (shared.script)(path, nth) {
        Reply::Page(page) => html(page),
        Reply::Json(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Reply::Keepable(control, page) => {
            ([(header::CACHE_CONTROL, control)], html(page)).into_response()
        }
        Reply::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Reply::Later(time, page) => {
            tokio::time::sleep(time).await;
            html(page)
        }
        Reply::Meeting(page) => {
            shared.meeting.wait().await;
            html(page)
        }
        Reply::Held(page) => {
            let mut released = shared.released.subscribe();
            released.wait_for(|released| *released).await.unwrap();
            html(page)
        }
        Reply::Never => std::future::pending().await,
    }
}
