//! Many runs that wait: each fetches a page that comes after two seconds. They cost the executor memory
//! and next to nothing else, so that all are done soon after the last of them was asked for.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::Stack;
use crate::client::{EventStream, Session};
use crate::machine::{Processes, open_files};
use crate::report::{Report, Row};

/// Sessions, each with a connection that submits and one that listens.
const SESSIONS: usize = 64;
const WAIT: Duration = Duration::from_secs(2);
const DONE_WITHIN_S: f64 = 4.0;
const RESIDENT_MB: f64 = 300.0;
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// Files that generator and executor have open besides the connections of the runs.
const OTHER_FILES: usize = 1000;

/// Measures `runs` of them.
pub async fn measure(stack: &Stack, runs: usize, report: &mut Report) -> Result<()> {
    ensure!(
        open_files() >= runs + OTHER_FILES,
        "{runs} runs need that many connections, and this shell allows {} open files (ulimit -n)",
        open_files()
    );
    let processes = Processes::find(&stack.state)?;
    let server = SlowServer::start()?;
    let mut clients = Vec::with_capacity(SESSIONS);
    for _ in 0..SESSIONS {
        let session = stack.api.session().await?;
        let events = stack.api.events(&session.id).await?;
        clients.push((session, events));
    }
    // Connections are made and code is warm before the clock starts.
    let (_, clients) = crowd(stack, &server, clients, SESSIONS).await?;
    let idle = processes.resident_mib("executor");
    let asked = server.counts.answered.load(Ordering::Relaxed);

    let crowding = crowd(stack, &server, clients, runs);
    let (crowded, peak) = peak_resident(&processes, "executor", crowding).await;
    let (crowd, _) = crowded?;
    let fetched = server.counts.answered.load(Ordering::Relaxed) - asked;
    ensure!(
        fetched >= runs - crowd.failed,
        "only {fetched} pages were fetched"
    );

    let after = crowd.ended.saturating_duration_since(crowd.accepted);
    let enqueued = crowd.accepted.duration_since(crowd.began).as_secs_f64();
    let most = server.counts.most.load(Ordering::Relaxed);
    let what = format!("{runs} runs that each wait 2 s in a tool, one executor, 3 partitions");
    report.row(
        Row::context(
            &format!("{what}: seconds from the last 202 to the last terminal SSE event"),
            format!("enqueued in {enqueued:.1} s, {most} waiting at once"),
        )
        .at_most(after.as_secs_f64(), DONE_WITHIN_S),
    );
    let peak = peak * 1.048_576; // MiB to MB
    report.row(
        Row::context(
            "the same: highest resident memory of the executor in MB",
            format!("{peak:.0} MB, {:.0} MB before", idle * 1.048_576),
        )
        .at_most(peak, RESIDENT_MB),
    );
    #[allow(clippy::cast_precision_loss)] // small
    let failed = crowd.failed as f64;
    report.row(
        Row::context(
            "the same: runs that did not succeed",
            format!("{} of {runs}", crowd.failed),
        )
        .at_most(failed, 0.0),
    );
    Ok(())
}

/// What became of the runs.
struct Crowd {
    began: Instant,
    /// The last of them.
    accepted: Instant,
    ended: Instant,
    failed: usize,
}

type Clients = Vec<(Session, EventStream)>;

/// Submits `runs` over all sessions and waits for their ends.
async fn crowd(
    stack: &Stack,
    server: &SlowServer,
    clients: Clients,
    runs: usize,
) -> Result<(Crowd, Clients)> {
    let began = Instant::now();
    let (mut submitting, mut ending) = (JoinSet::new(), JoinSet::new());
    for (first, (mut session, mut events)) in clients.into_iter().enumerate() {
        let share: Vec<Vec<u8>> = (first..runs)
            .step_by(SESSIONS)
            .map(|number| {
                // Another page each time: equal ones are fetched once.
                let url = format!("http://{}/{number}/{}", server.address, session.id);
                let plan =
                    json!({"steps": [{"id": "s1", "tool": "http_fetch", "args": {"url": url}}]});
                let body = json!({
                    "session_id": session.id, "plan": plan, "on_conflict": "parallel"
                });
                stack.api.request("POST", "/v1/execute", Some(&body))
            })
            .collect();
        let mine = share.len();
        submitting.spawn(async move {
            for request in share {
                session.start(&request).await?;
            }
            anyhow::Ok((first, Instant::now(), session))
        });
        ending.spawn(async move {
            let mut failed = 0;
            for _ in 0..mine {
                failed += usize::from(!events.terminal().await?.succeeded);
            }
            anyhow::Ok((first, Instant::now(), failed, events))
        });
    }
    let mut crowd = Crowd {
        began,
        accepted: began,
        ended: began,
        failed: 0,
    };
    let (mut sessions, mut streams) = (Vec::new(), Vec::new());
    while let Some(submitted) = submitting.join_next().await {
        let (first, accepted, session) = submitted?.context("a run was not accepted")?;
        crowd.accepted = crowd.accepted.max(accepted);
        sessions.push((first, session));
    }
    while let Some(ended) = ending.join_next().await {
        let (first, ended, failed, events) = ended?.context("a stream of events")?;
        crowd.ended = crowd.ended.max(ended);
        crowd.failed += failed;
        streams.push((first, events));
    }
    sessions.sort_unstable_by_key(|(first, _)| *first);
    streams.sort_unstable_by_key(|(first, _)| *first);
    let sessions = sessions.into_iter().map(|(_, session)| session);
    let streams = streams.into_iter().map(|(_, events)| events);
    Ok((crowd, sessions.zip(streams).collect()))
}

/// Does the work and says how much memory the processes of that name had at most meanwhile, in MiB.
async fn peak_resident<T>(
    processes: &Processes,
    name: &str,
    work: impl Future<Output = T>,
) -> (T, f64) {
    let mut work = pin!(work);
    let mut peak = 0.0_f64;
    loop {
        peak = peak.max(processes.resident_mib(name));
        tokio::select! {
            done = &mut work => return (done, peak),
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
    }
}

/// A server that answers every request after [`WAIT`]; it ends with this value.
struct SlowServer {
    address: SocketAddr,
    counts: Arc<Counts>,
    _accepting: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    waiting: AtomicUsize,
    most: AtomicUsize,
    answered: AtomicUsize,
}

impl SlowServer {
    fn start() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(4096)?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&counts)));
        Ok(Self {
            address,
            counts,
            _accepting: accepting,
        })
    }
}

async fn accept(listener: TcpListener, counts: Arc<Counts>) {
    let mut answering = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files: some are free again when others are answered.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        while answering.try_join_next().is_some() {}
        let counts = Arc::clone(&counts);
        answering.spawn(async move {
            let waiting = counts.waiting.fetch_add(1, Ordering::Relaxed) + 1;
            counts.most.fetch_max(waiting, Ordering::Relaxed);
            // A client that went away asks again.
            let answered = answer(stream).await.is_ok();
            counts.waiting.fetch_sub(1, Ordering::Relaxed);
            counts
                .answered
                .fetch_add(usize::from(answered), Ordering::Relaxed);
        });
    }
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut head).await? > 0, "no request");
    }
    tokio::time::sleep(WAIT).await;
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\ndone\n",
        )
        .await?;
    Ok(())
}
