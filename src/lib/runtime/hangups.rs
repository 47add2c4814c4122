//! SIGHUP: what an operator sends so that files are read again.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The SIGHUPs that this process is sent.
#[derive(Debug)]
pub struct Hangups(Option<Signal>);

impl Hangups {
    /// From here on SIGHUP no longer ends the process.
    pub fn new() -> Self {
        let signal = signal(SignalKind::hangup());
        if let Err(error) = &signal {
            tracing::warn!(%error, "SIGHUP is not heard");
        }
        Self(signal.ok())
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        let heard = match &mut self.0 {
            Some(signal) => signal.recv().await.is_some(),
            None => false,
        };
        if !heard {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for Hangups {
    fn default() -> Self {
        Self::new()
    }
}
