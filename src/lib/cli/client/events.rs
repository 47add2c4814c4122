//! The events of one run over as many connections as it takes.

use std::time::Duration;

use reqwest::Response;
use tokio::time::{Instant, sleep_until, timeout};

use super::sse::{Frame, Parser};
use super::{Client, ClientError};

/// Wait before a new connection when the server names none.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A connection on which nothing arrives for so long is dead: the server sends a heartbeat every
/// 15 s by default.
const SILENCE: Duration = Duration::from_secs(90);
/// How long the API may be away before following it is given up.
const PATIENCE: Duration = Duration::from_mins(2);

/// The frames of a run's stream, each once and in order. A connection that breaks is made again from
/// the last event that arrived whole.
#[derive(Debug)]
pub struct Events {
    client: Client,
    run: String,
    parser: Parser,
    connection: Option<Response>,
    /// The event after which the next connection is to go on.
    cursor: Option<String>,
    retry: Duration,
    /// Connections in a row that brought nothing.
    failures: u32,
    not_before: Instant,
    last_heard: Instant,
}

impl Events {
    pub(super) fn new(client: Client, run: String, cursor: Option<String>) -> Self {
        let now = Instant::now();
        Self {
            client,
            run,
            parser: Parser::default(),
            connection: None,
            cursor,
            retry: RETRY,
            failures: 0,
            not_before: now,
            last_heard: now,
        }
    }

    /// The next frame; `None` when the run has ended and nothing more follows. A future that is
    /// dropped loses nothing.
    pub async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        loop {
            if let Some(frame) = self.parser.frame() {
                return Ok(Some(frame));
            }
            let Some(connection) = &mut self.connection else {
                sleep_until(self.not_before).await;
                match self.client.stream(&self.run, self.cursor.as_deref()).await {
                    Ok(None) => return Ok(None),
                    Ok(Some(response)) => {
                        self.connection = Some(response);
                        self.parser = Parser::default();
                    }
                    Err(error) if self.may_try_again(&error) => {
                        self.disconnected(error.retry_after());
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            match timeout(SILENCE, connection.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    self.parser.push(&bytes)?;
                    self.heard();
                }
                _ => self.disconnected(None),
            }
        }
    }

    fn heard(&mut self) {
        if let Some(id) = self.parser.last_event_id() {
            self.cursor = Some(id.to_owned());
        }
        self.retry = self.parser.retry().unwrap_or(self.retry).min(LONGEST_WAIT);
        self.failures = 0;
        self.last_heard = Instant::now();
    }

    fn may_try_again(&self, error: &ClientError) -> bool {
        error.is_transient() && self.last_heard.elapsed() < PATIENCE
    }

    fn disconnected(&mut self, retry_after: Option<Duration>) {
        self.connection = None;
        let wait = self.retry.saturating_mul(1 << self.failures.min(4));
        let wait = wait.max(retry_after.unwrap_or_default()).min(LONGEST_WAIT);
        self.failures += 1;
        self.not_before = Instant::now() + wait;
    }
}
