//! Telling what a model writes while it writes it.
//!
//! Invariant: what is told is a beginning of the answer, masked as the whole is. It may be missed, and
//! nothing depends on it: the answer itself is in the journal and in the run's last event.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::Notify;

use super::owned::Owned;
use crate::privacy::mask::{Masked, Pieces};

/// Between two pieces.
const EVERY: Duration = Duration::from_millis(50);

/// The text of one model call, told as it comes.
pub(super) struct Deltas<'r> {
    run: &'r Owned,
    call: u32,
    told: Mutex<Told>,
    arrived: Notify,
}

#[derive(Default)]
struct Told {
    pieces: Pieces,
    /// Pieces told so far.
    count: u32,
}

impl<'r> Deltas<'r> {
    /// Of the call with this number.
    pub(super) fn new(run: &'r Owned, call: u32) -> Self {
        Self {
            run,
            call,
            told: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    /// Takes what the model wrote.
    pub(super) fn heard(&self, text: &str) {
        self.lock().pieces.push(text);
        self.arrived.notify_one();
    }

    /// Tells what can be told, again and again.
    pub(super) async fn tell(&self) -> Infallible {
        loop {
            self.arrived.notified().await;
            let masker = &self.run.context.masker;
            let piece = self.numbered(|pieces| pieces.next(masker));
            self.publish(piece).await;
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Tells the rest of a whole answer.
    pub(super) async fn finish(&self) {
        let masker = &self.run.context.masker;
        let piece = self.numbered(|pieces| pieces.rest(masker));
        self.publish(piece).await;
    }

    fn numbered(
        &self,
        next: impl FnOnce(&mut Pieces) -> Option<Masked<String>>,
    ) -> Option<(u32, Masked<String>)> {
        let mut told = self.lock();
        let piece = next(&mut told.pieces)?;
        told.count += 1;
        Some((told.count, piece))
    }

    async fn publish(&self, piece: Option<(u32, Masked<String>)>) {
        let Some((number, text)) = piece else { return };
        let data = json!({ "call": self.call, "piece": number, "text": text });
        let outcome = match self.run.tell_delta(&data.to_string()).await {
            Ok(_) => "told",
            Err(error) => {
                tracing::debug!(%error, "a piece of the answer was not told");
                "failed"
            }
        };
        metrics::counter!("agenthub_llm_deltas_total", "outcome" => outcome).increment(1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
