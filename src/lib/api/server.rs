//! HTTP/1.1 connections, plain or TLS: bounded in number, in time and in the size of a request's head.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::client_ip::ClientIp;
use super::connection::{Guarded, Patience, Phase};
use super::scope::Peer;
use super::state::ApiState;
use super::tls::Tls;
use super::{malformed, router};
use crate::error::{ApiError, ErrorCode};

/// Header lines that hyper keeps on the stack; more cost an allocation for each request.
const HEADERS_ON_STACK: usize = 100;
/// Pause after a failed accept, which means that something has run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the API on `listener` until `shutdown`, then lets the requests under way end. Returns when
/// every connection is closed; the caller sets the deadline.
pub async fn serve(
    listener: TcpListener,
    state: ApiState,
    tls: Option<Tls>,
    shutdown: CancellationToken,
) {
    let most = state.settings().max_connections;
    let slots = Arc::new(Semaphore::new(most as usize));
    let server = Server {
        router: router::router(state.clone()),
        state,
        tls,
        shutdown,
    };
    let open = metrics::gauge!("agenthub_connections");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            server.refuse(&stream, peer);
            continue;
        };
        let (server, open) = (server.clone(), open.clone());
        let supervisor = server.state.parts.supervisor.clone();
        supervisor.run_once("connection", async move {
            open.increment(1);
            if let Err(error) = server.connection(stream, peer).await {
                tracing::debug!(%error, "a connection ended early");
            }
            open.decrement(1);
            drop(slot);
        });
    }
    drop(listener);
    // Every slot is free once every connection is closed.
    let _ = slots.acquire_many(most).await;
}

/// Why a connection ended before its client closed it.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("HTTP: {0}")]
    Http(hyper::Error),
}

/// What every connection needs.
#[derive(Clone)]
struct Server {
    router: Router,
    state: ApiState,
    tls: Option<Tls>,
    shutdown: CancellationToken,
}

impl Server {
    /// Tells a client that there is no place for it, and closes its connection. Takes no time of anybody
    /// else's: what the connection does not take at once is not sent.
    fn refuse(&self, stream: &TcpStream, peer: IpAddr) {
        metrics::counter!("agenthub_connections_refused_total").increment(1);
        if self.tls.is_none() {
            let error = ApiError {
                retry_after_ms: Some(1000),
                ..ApiError::new(ErrorCode::Overloaded)
            };
            let _ = stream.try_write(&malformed::answer(&self.state, Some(ClientIp(peer)), error));
        }
    }

    async fn connection(&self, stream: TcpStream, peer: IpAddr) -> Result<(), Ended> {
        // Events are small and must not wait for more.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return self.http(stream, peer).await;
        };
        let head = self.state.settings().head_timeout_ms.duration();
        let stream = tokio::select! {
            greeted = tokio::time::timeout(head, tls.acceptor().accept(stream)) => greeted,
            () = self.shutdown.cancelled() => return Ok(()),
        };
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        self.http(stream.map_err(Ended::Tls)?, peer).await
    }

    async fn http<S>(&self, stream: S, peer: IpAddr) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let phase = Phase::new();
        let unreadable = |status| {
            let error = ApiError::new(malformed::meaning(status));
            malformed::answer(&self.state, Some(ClientIp(peer)), error)
        };
        let settings = self.state.settings();
        let patience = Patience::from(settings);
        let stream = Guarded::new(stream, phase.clone(), patience, unreadable);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            phase.handling();
            request.extensions_mut().insert(Peer(peer));
            let answer = self.router.clone().oneshot(request.map(Body::new));
            let phase = phase.clone();
            async move {
                let answer = answer.await.unwrap_or_else(|never| match never {});
                Ok::<_, Infallible>(answer.map(|body| phase.watch(body)))
            }
        });
        let mut http = http1::Builder::new();
        http.header_read_timeout(None) // `Guarded` keeps the time
            // What it writes has to arrive at `Guarded` in one piece.
            .writev(false)
            .max_buf_size(settings.max_head_bytes.0)
            .max_header_size(settings.max_head_bytes.0);
        if settings.max_headers > HEADERS_ON_STACK {
            http.max_headers(settings.max_headers);
        }
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        outcome.map_err(Ended::Http)
    }
}
