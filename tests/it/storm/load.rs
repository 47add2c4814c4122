//! The clients: who submits runs until they are accepted, who follows streams through every broken
//! connection, and who asks what became of it all.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use super::history::{Submission, Told};
use crate::support::sse::{Follow, Frame};

/// Between two tries of a client.
const AGAIN: Duration = Duration::from_millis(100);
/// A client waits no longer for an answer: what it asked for may be done all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// What every client of the installation knows.
#[derive(Clone)]
pub struct Clients {
    pub http: Client,
    /// Where the API is reached: one is as good as the other.
    pub fronts: Vec<SocketAddr>,
    pub api_key: String,
    pub admin_key: String,
}

impl Clients {
    fn request(&self, method: Method, path: &str, turn: usize) -> RequestBuilder {
        let front = self.fronts[turn % self.fronts.len()];
        self.http
            .request(method, format!("http://{front}{path}"))
            .bearer_auth(&self.api_key)
    }

    /// What the API answers once it answers.
    async fn answered(&self, make: impl Fn(usize) -> RequestBuilder) -> (StatusCode, Value) {
        let mut turn = 0;
        loop {
            if let Ok(response) = make(turn).timeout(PATIENCE).send().await {
                let status = response.status();
                let final_one = !status.is_server_error()
                    && ![StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
                if let (true, Ok(body)) = (final_one, response.json().await) {
                    return (status, body);
                }
            }
            tokio::time::sleep(AGAIN).await;
            turn += 1;
        }
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self
            .answered(|turn| self.request(Method::GET, path, turn))
            .await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// As an admin.
    pub async fn govern(&self, method: Method, path: &str, body: &Value) -> Value {
        let make = |turn: usize| {
            let front = self.fronts[turn % self.fronts.len()];
            let request = self
                .http
                .request(method.clone(), format!("http://{front}{path}"));
            let request = request.bearer_auth(&self.admin_key);
            if body.is_null() {
                request
            } else {
                request.json(body)
            }
        };
        let (status, body) = self.answered(make).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    pub async fn session(&self) -> String {
        let key = uuid::Uuid::new_v4().to_string();
        let make = |turn| {
            let request = self.request(Method::POST, "/v1/sessions", turn);
            request.header("Idempotency-Key", &key).json(&json!({}))
        };
        let (status, body) = self.answered(make).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["session_id"].as_str().unwrap().to_owned()
    }

    /// Submits the `number`-th run, again and again until it is accepted, and once more after that now
    /// and then, as a client does that lost the answer.
    async fn submit(&self, session: &str, number: usize) -> Submission {
        let (path, body) = order(session, number);
        let idempotency_key = format!("storm-{number}");
        let mut answers = Vec::new();
        for nth in 0..if number.is_multiple_of(5) { 2 } else { 1 } {
            let make = |turn| {
                let request = self.request(Method::POST, path, turn + number + nth);
                request
                    .header("Idempotency-Key", &idempotency_key)
                    .json(&body)
            };
            let (status, answer) = self.answered(make).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
            answers.push(answer["run_id"].as_str().unwrap().to_owned());
        }
        Submission {
            idempotency_key,
            answers,
            session: session.to_owned(),
        }
    }

    /// Submits every `stride`-th run from `first`, each once `allowed` lets it.
    pub async fn submit_all(
        self,
        session: String,
        (first, stride, runs): (usize, usize, usize),
        mut allowed: watch::Receiver<usize>,
    ) -> Vec<Submission> {
        let mut submitted = Vec::new();
        for number in (first..runs).step_by(stride) {
            allowed.wait_for(|allowed| number < *allowed).await.unwrap();
            submitted.push(self.submit(&session, number).await);
        }
        submitted
    }

    /// Follows a session for ever, and remembers what it is told.
    pub async fn follow(
        self,
        session: String,
        told: Arc<Mutex<Vec<Told>>>,
        tap: broadcast::Sender<Told>,
    ) {
        for turn in 0.. {
            let path = format!("/v1/stream?session_id={session}");
            let mut request = self.request(Method::GET, &path, turn);
            if let Some(last) = told.lock().unwrap().last() {
                request = request.header("Last-Event-ID", last.id.to_string());
            }
            if let Ok(response) = request.send().await
                && response.status() == StatusCode::OK
            {
                let mut stream = Follow::new(response);
                while let Ok(Some(frame)) = stream.try_next().await {
                    if let Some(event) = read(&frame) {
                        told.lock().unwrap().push(event.clone());
                        let _ = tap.send(event); // nobody may listen
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// The event that a frame tells. Comments tell none.
fn read(frame: &Frame) -> Option<Told> {
    let kind = frame.event.clone()?;
    let text = |name: &str| frame.data[name].as_str().map(str::to_owned);
    Some(Told {
        session: text("session_id").unwrap_or_default(),
        // What has no id, such as a truncation, is not part of any history: it is found to be too much.
        id: frame.id.as_deref().unwrap_or("0-0").parse().unwrap(),
        prev: text("prev").map(|prev| prev.parse().unwrap()),
        kind,
        run: text("run_id").unwrap_or_default(),
        step: text("step_id"),
        attempt: frame.data["attempt"]
            .as_u64()
            .map(|n| n.try_into().unwrap()),
        ts: frame.data["ts"].as_u64().unwrap_or(0),
    })
}

/// The `number`-th run: steps of every kind, some planned by a model, some with a model call in a step.
fn order(session: &str, number: usize) -> (&'static str, Value) {
    let args = json!({ "n": number });
    let mut steps = vec![
        json!({ "id": "look", "tool": "look", "args": args }),
        json!({ "id": "book", "tool": "book", "args": args, "depends_on": ["look"] }),
    ];
    if number.is_multiple_of(2) {
        steps.push(json!({ "id": "pay", "tool": "pay", "args": args, "depends_on": ["book"] }));
    }
    if number.is_multiple_of(7) {
        let text = format!("Order {number} was looked at. It is booked. It waits to be paid.");
        steps.push(json!({ "id": "sum", "tool": "summarize", "args": { "text": text } }));
    }
    let plan = json!({ "steps": steps });
    if number.is_multiple_of(4) {
        let script = json!({ "content": plan.to_string() });
        let goal = format!("Carry out order {number} [[sim: {script}]]");
        let body = json!({ "session_id": session, "goal": goal, "mode": "plan_execute" });
        return ("/v1/runs", body);
    }
    (
        "/v1/execute",
        json!({ "session_id": session, "plan": plan }),
    )
}
