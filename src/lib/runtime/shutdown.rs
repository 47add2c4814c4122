//! When a process is told to stop.

use tokio_util::sync::CancellationToken;

/// The two stages of an end: stop taking in, then stop altogether.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    stop_intake: CancellationToken,
    stop: CancellationToken,
}

impl Shutdown {
    /// Nothing is to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when no new work is to be taken in.
    pub fn intake(&self) -> CancellationToken {
        self.stop_intake.clone()
    }

    /// Cancelled when the work is done, and what served it may end too.
    pub fn end(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Begins the end: no new work.
    pub fn begin(&self) {
        self.stop_intake.cancel();
    }

    /// Ends what is left.
    pub fn finish(&self) {
        self.stop_intake.cancel();
        self.stop.cancel();
    }

    /// Waits for SIGTERM or SIGINT.
    pub async fn signalled() -> std::io::Result<&'static str> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        Ok(tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        })
    }
}

/// Calls `act` on each SIGHUP, until `stop`.
///
/// # Errors
/// When the signal cannot be heard.
pub async fn on_hangup(stop: &CancellationToken, mut act: impl FnMut()) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            received = hangup.recv() => match received {
                Some(()) => act(),
                None => return Ok(()),
            },
        }
    }
}
