//! A TCP forwarder between a process and what it depends on, which can be cut or made to stall.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    Stalled,
    Cut,
}

/// Forwards connections to one address. Ends when this is dropped.
pub struct Forwarder {
    pub addr: SocketAddr,
    line: watch::Sender<Line>,
    received: Arc<AtomicUsize>,
    held: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Forwarder {
    pub async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (line, state) = watch::channel(Line::Open);
        let received = Arc::new(AtomicUsize::new(0));
        let held = Arc::new(AtomicUsize::new(0));
        let (counter, waiting) = (received.clone(), held.clone());
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *state.borrow() == Line::Cut {
                    continue; // closed at once
                }
                let (target, counter) = (target.clone(), counter.clone());
                let waiting = waiting.clone();
                let (line, mut cut) = (state.clone(), state.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = forward(client, &target, line, &counter, &waiting) => {}
                        _ = cut.wait_for(|line| *line == Line::Cut) => {}
                    }
                });
            }
        });
        Self {
            addr,
            line,
            received,
            held,
            task,
        }
    }

    /// Breaks every connection and lets none come about until [`Forwarder::restore`].
    pub fn cut(&self) {
        self.line.send_replace(Line::Cut);
    }

    /// Keeps connections, and lets new ones come about, but no byte passes until
    /// [`Forwarder::restore`].
    pub fn stall(&self) {
        self.line.send_replace(Line::Stalled);
    }

    /// Times that something for the target had to wait, for [`Forwarder::restore`] or for good.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    pub fn restore(&self) {
        self.line.send_replace(Line::Open);
    }

    /// Bytes that the target was sent.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn forward(
    client: TcpStream,
    target: &str,
    line: watch::Receiver<Line>,
    received: &AtomicUsize,
    held: &AtomicUsize,
) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // A side that closes closes the other.
    tokio::select! {
        () = copy(from_client, to_server, line.clone(), Some((received, held))) => {}
        () = copy(from_server, to_client, line, None) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut line: watch::Receiver<Line>,
    counters: Option<(&AtomicUsize, &AtomicUsize)>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if let Some((_, held)) = counters
            && *line.borrow() == Line::Stalled
        {
            held.fetch_add(1, Ordering::SeqCst);
        }
        if line.wait_for(|line| *line == Line::Open).await.is_err()
            || to.write_all(&buffer[..n]).await.is_err()
        {
            return;
        }
        if let Some((received, _)) = counters {
            received.fetch_add(n, Ordering::SeqCst);
        }
    }
}
