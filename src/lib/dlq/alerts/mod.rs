//! Alerts about dead letters: grouped, signed, posted to the operator's webhook. Indexing never waits
//! for them.

mod batch;
mod signature;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use self::batch::{Batch, Told};
use crate::ids::TenantId;
use crate::messages::LetterId;
use crate::net::{WebhookClient, WebhookError};
use crate::privacy::mask::Masker;
use crate::runtime::clock;
use crate::store::IndexedLetter;

/// Letters that may wait to be looked at.
const WAITING: usize = 1024;
/// Attempts at one message: with the waits between them about ten minutes.
const ATTEMPTS: usize = 8;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// How long the last message may take when the process ends.
const LAST: Duration = Duration::from_secs(2);

/// What a message is.
const TYPE: &str = "dead_letters.indexed";

/// Where alerts go.
#[derive(Debug, Clone)]
pub struct Alerts {
    to: mpsc::Sender<(TenantId, IndexedLetter)>,
}

/// Posts alerts.
#[derive(Debug, Clone)]
pub struct Alerter {
    client: WebhookClient,
    secret: Arc<[u8]>,
    window: Duration,
    masker: Arc<Masker>,
    from: Arc<Mutex<mpsc::Receiver<(TenantId, IndexedLetter)>>>,
}

impl Alerts {
    /// Tells of a letter that is new in the index. Never waits: one too many is dropped and counted.
    pub fn tell(&self, tenant: &TenantId, letter: &IndexedLetter) {
        if self.to.try_send((tenant.clone(), letter.clone())).is_err() {
            dropped(1);
        }
    }
}

/// Alerts that [`Alerter::run`] posts by `client`, signed with `secret`: at most one for equal failures
/// in each `window`.
pub fn alerts(
    client: WebhookClient,
    secret: Vec<u8>,
    window: Duration,
    masker: Arc<Masker>,
) -> (Alerts, Alerter) {
    let (to, from) = mpsc::channel(WAITING);
    let alerter = Alerter {
        client,
        secret: secret.into(),
        window,
        masker,
        from: Arc::new(Mutex::new(from)),
    };
    (Alerts { to }, alerter)
}

impl Alerter {
    /// Gathers and posts until `stop`; what was not told of by then is told in one last attempt.
    pub async fn run(self, stop: CancellationToken) {
        let mut letters = self.from.lock().await;
        let mut batch = Batch::new(self.window);
        loop {
            // While a message is on its way, letters are still gathered.
            let due = batch.next_due();
            let due = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Some((tenant, letter)) = letters.recv() => add(&mut batch, tenant, letter),
                () = due => {
                    let told = batch.take_due(Instant::now());
                    if told.is_empty() {
                        continue;
                    }
                    let message = Message::new(&told, &self.masker);
                    let posting = self.deliver(&message);
                    tokio::pin!(posting);
                    loop {
                        tokio::select! {
                            () = &mut posting => break,
                            () = stop.cancelled() => {
                                dropped(message.letters);
                                break;
                            }
                            Some((tenant, letter)) = letters.recv() => {
                                add(&mut batch, tenant, letter);
                            }
                        }
                    }
                }
            }
        }
        while let Ok((tenant, letter)) = letters.try_recv() {
            add(&mut batch, tenant, letter);
        }
        let told = batch.take_all();
        if told.is_empty() {
            return;
        }
        let message = Message::new(&told, &self.masker);
        let posted = tokio::time::timeout(LAST, self.post(&message)).await;
        if matches!(posted, Ok(Ok(()))) {
            count("sent");
        } else {
            dropped(message.letters);
        }
    }

    /// Posts a message, again and again after failures.
    async fn deliver(&self, message: &Message) {
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(FIRST_WAIT)
            .with_max_delay(LONGEST_WAIT)
            .with_max_times(ATTEMPTS - 1)
            .with_factor(3.0)
            .with_jitter()
            .build();
        loop {
            let error = match self.post(message).await {
                Ok(()) => return count("sent"),
                Err(error) => error,
            };
            let Some(wait) = waits.next() else {
                tracing::error!(id = message.id, %error, "the webhook is given up");
                count("given_up");
                return dropped(message.letters);
            };
            let asked = match error {
                WebhookError::Status { retry_after, .. } => retry_after.unwrap_or_default(),
                WebhookError::Timeout | WebhookError::Connection => Duration::ZERO,
            };
            tracing::warn!(id = message.id, %error, "the webhook was not taken; trying again");
            count("retried");
            tokio::time::sleep(wait.max(asked).min(LONGEST_WAIT)).await;
        }
    }

    async fn post(&self, message: &Message) -> Result<(), WebhookError> {
        let now_s = clock::now_ms() / 1000;
        let headers = signature::headers(&self.secret, &message.id, now_s, &message.body);
        // A secret of any length makes an HMAC.
        let headers = headers.ok_or(WebhookError::Connection)?;
        self.client.post(&headers, &message.body).await
    }
}

/// What is posted: the same over its attempts.
struct Message {
    id: String,
    body: String,
    /// Letters that it tells of.
    letters: u64,
}

impl Message {
    fn new(told: &[Told], masker: &Masker) -> Self {
        let groups: Vec<Value> = told.iter().map(group).collect();
        let body = json!({
            "type": TYPE,
            "timestamp": super::view::time(clock::now_ms()),
            "data": { "groups": groups },
        });
        Self {
            id: format!("msg_{}", uuid::Uuid::now_v7().simple()),
            body: masker.json(&body).to_string(),
            letters: told.iter().map(|told| told.count).sum(),
        }
    }
}

fn group(told: &Told) -> Value {
    let letter = &told.latest.letter;
    json!({
        "tenant": told.tenant,
        "fingerprint": told.fingerprint,
        "class": letter.class,
        "code": letter.end.code,
        "tool": letter.end.tool,
        "error": letter.error,
        "count": told.count,
        "first": super::view::time(told.first_ms),
        "last": super::view::time(letter.last_ms),
        "run_id": letter.run_id,
        "letters": told.letters,
    })
}

fn add(batch: &mut Batch, tenant: TenantId, letter: IndexedLetter) {
    let id = LetterId::from(&letter.letter).to_string();
    if !batch.add(tenant, id, letter, Instant::now()) {
        dropped(1);
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("agenthub_dlq_alerts_total", "outcome" => outcome).increment(1);
}

fn dropped(letters: u64) {
    metrics::counter!("agenthub_dlq_alerts_dropped_total").increment(letters);
}
