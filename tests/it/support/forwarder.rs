//! A TCP forwarder that can be cut, between a process and what it depends on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections to one address. Ends when this is dropped.
pub struct Forwarder {
    pub addr: SocketAddr,
    open: watch::Sender<bool>,
    received: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Forwarder {
    pub async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (open, is_open) = watch::channel(true);
        let received = Arc::new(AtomicUsize::new(0));
        let counter = received.clone();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if !*is_open.borrow() {
                    continue; // closed at once
                }
                let (target, mut is_open) = (target.clone(), is_open.clone());
                let counter = counter.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = forward(client, &target, &counter) => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self {
            addr,
            open,
            received,
            task,
        }
    }

    /// Breaks every connection and lets none come about until [`Forwarder::restore`].
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn restore(&self) {
        self.open.send_replace(true);
    }

    /// Bytes that the target was sent.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
        self.open.send_replace(false);
    }
}

async fn forward(client: TcpStream, target: &str, received: &AtomicUsize) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match from_client.read(&mut buffer).await {
                Ok(n) if n > 0 && to_server.write_all(&buffer[..n]).await.is_ok() => {
                    received.fetch_add(n, Ordering::SeqCst);
                }
                _ => return,
            }
        }
    };
    let back = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    // A side that closes closes the other.
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}
