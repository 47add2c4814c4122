//! The bytes of one connection: slow clients are cut off, and what is no HTTP is answered as every other
//! error.
//!
//! Deadlines, by what the connection waits for:
//! - a request's head: from its first byte on, or from the beginning of the connection for the first one;
//!   bytes that trickle in do not move it;
//! - the next request: from the end of the answer before;
//! - the client to take what it is sent: from the last byte that it took.
//!
//! While a request is handled only the last one runs: a body's time is kept by whoever reads it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use futures_util::task::AtomicWaker;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::malformed;
use crate::config::Settings;

/// What the connection's client is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// Send the head of a request that has begun, or the first one.
    Head,
    /// Begin another request.
    Request,
    /// Nothing: a request is being handled.
    Answer,
}

/// Where a connection stands; shared by its bytes, which see requests arrive, and its service, which sees
/// them handled. Both run in one task.
#[derive(Debug, Clone)]
pub(super) struct Phase(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The number of the phase: what is awaited, and how often that has changed.
    number: AtomicU64,
    /// Whoever reads while a request is handled, and has a deadline to keep once it has been answered.
    reader: AtomicWaker,
}

impl Phase {
    /// The connection has just begun.
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            number: AtomicU64::new(0),
            reader: AtomicWaker::new(),
        }))
    }

    fn number(&self) -> u64 {
        self.0.number.load(Ordering::Relaxed)
    }

    fn awaited(&self) -> Awaited {
        match self.number() % 3 {
            0 => Awaited::Head,
            1 => Awaited::Answer,
            _ => Awaited::Request,
        }
    }

    /// Goes on to the next phase in which `awaited` is awaited.
    fn set(&self, awaited: Awaited) {
        let steps = match (self.awaited(), awaited) {
            (Awaited::Head, Awaited::Answer)
            | (Awaited::Answer, Awaited::Request)
            | (Awaited::Request, Awaited::Head) => 1,
            (now, next) if now == next => 0,
            _ => 2,
        };
        self.0
            .number
            .store(self.number() + steps, Ordering::Relaxed);
    }

    /// A request has arrived.
    pub(super) fn handling(&self) {
        self.set(Awaited::Answer);
    }

    /// Tells the end of the answer whose body this is.
    pub(super) fn watch(&self, body: Body) -> Watched {
        Watched {
            body,
            phase: self.clone(),
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Watched {
    body: Body,
    phase: Phase,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.phase.set(Awaited::Request);
        self.phase.0.reader.wake();
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How long a connection waits for its client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) head: Duration,
    pub(super) request: Duration,
    pub(super) taking: Duration,
}

impl From<&Settings> for Patience {
    fn from(settings: &Settings) -> Self {
        Self {
            head: settings.head_timeout_ms.duration(),
            request: settings.idle_timeout_ms.duration(),
            taking: settings.write_timeout_ms.duration(),
        }
    }
}

/// A deadline, whose timer is used again for the next one.
#[derive(Debug, Default)]
struct Deadline {
    timer: Option<Pin<Box<Sleep>>>,
    /// The number of what it runs for.
    runs_for: Option<u64>,
}

impl Deadline {
    fn stop(&mut self) {
        self.runs_for = None;
    }

    fn runs(&self) -> bool {
        self.runs_for.is_some()
    }

    /// Fails once the deadline is over, which begins to run when it is first asked for `number`.
    fn poll(&mut self, number: u64, time: Duration, cx: &mut Context<'_>) -> Poll<io::Error> {
        let fresh = self.runs_for != Some(number);
        self.runs_for = Some(number);
        let timer = match &mut self.timer {
            Some(timer) => {
                if fresh {
                    timer.as_mut().reset(Instant::now() + time);
                }
                timer
            }
            none => none.insert(Box::pin(sleep_until(Instant::now() + time))),
        };
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

/// A connection's bytes.
pub(super) struct Guarded<S, F> {
    stream: S,
    phase: Phase,
    patience: Patience,
    reading: Deadline,
    writing: Deadline,
    /// Makes the answer to what is no HTTP.
    malformed: F,
    /// What is still to be sent of such an answer, in place of hyper's.
    instead: Option<(Vec<u8>, usize)>,
}

impl<S, F: Fn(u16) -> Vec<u8>> Guarded<S, F> {
    pub(super) fn new(stream: S, phase: Phase, patience: Patience, malformed: F) -> Self {
        Self {
            stream,
            phase,
            patience,
            reading: Deadline::default(),
            writing: Deadline::default(),
            malformed,
            instead: None,
        }
    }
}

impl<S: AsyncRead + Unpin, F: Unpin> AsyncRead for Guarded<S, F> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buffer) {
            if buffer.filled().len() > before && this.phase.awaited() == Awaited::Request {
                this.phase.set(Awaited::Head);
            }
            return Poll::Ready(read);
        }
        let time = match this.phase.awaited() {
            Awaited::Head => this.patience.head,
            // The client cannot know yet that the answer has ended.
            Awaited::Request if this.writing.runs() => return Poll::Pending,
            Awaited::Request => this.patience.request,
            Awaited::Answer => {
                this.phase.0.reader.register(cx.waker());
                return Poll::Pending;
            }
        };
        let number = this.phase.number();
        this.reading.poll(number, time, cx).map(Err)
    }
}

impl<S: AsyncWrite + Unpin, F> Guarded<S, F> {
    /// What `operation` gives, or the end of the client's time to take what it is sent.
    fn write_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        operation: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(outcome) = operation(Pin::new(&mut self.stream), cx) {
            if self.writing.runs() {
                // Only now may the client be waited for to send something.
                self.writing.stop();
                self.reading.stop();
                cx.waker().wake_by_ref();
            }
            return Poll::Ready(outcome);
        }
        let taking = self.patience.taking;
        self.writing.poll(0, taking, cx).map(Err)
    }
}

impl<S: AsyncWrite + Unpin, F: Fn(u16) -> Vec<u8> + Unpin> AsyncWrite for Guarded<S, F> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bare = malformed::bare_answer(bytes);
        let Some((begins, status)) = bare else {
            return this.write_with(cx, |stream, cx| stream.poll_write(cx, bytes));
        };
        if begins > 0 {
            // What stands before it is the answer to an earlier request.
            return this.write_with(cx, |stream, cx| stream.poll_write(cx, &bytes[..begins]));
        }
        let (answer, mut sent) = match this.instead.take() {
            Some(under_way) => under_way,
            None => ((this.malformed)(status), 0),
        };
        while sent < answer.len() {
            match this.write_with(cx, |stream, cx| stream.poll_write(cx, &answer[sent..])) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => sent += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.instead = Some((answer, sent));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write_with(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().write_with(cx, AsyncWrite::poll_shutdown)
    }
}
