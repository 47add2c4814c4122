//! The service levels, at a load that is fixed beforehand: requests without a model, plans of one tool, a burst
//! beyond a rate limit. Everything is open loop: a request is due when its time has come, and its time is
//! counted from then on, so that a server that stands still is not asked less.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Stack;
use crate::client::{Connection, EventStream, Session};
use crate::report::{Report, Row};
use crate::samples::Samples;

/// Requests a second without a model, by so many clients.
const REQUESTS: u32 = 200;
const CLIENTS: u32 = 32;
/// Runs a second, in so many sessions, each with a stream.
const RUNS: u32 = 20;
const SESSIONS: u32 = 64;
/// Requests of the burst, all at once, and what `perf/slo` lets a tenant have in a second.
const BURST: usize = 3000;
const TENANT_LIMIT: usize = 500;

const NO_MODEL_P95_MS: f64 = 300.0;
const RUN_P95_MS: f64 = 2500.0;
const SUCCESS: f64 = 99.9;

/// What clients saw.
#[derive(Default)]
struct Seen {
    samples: Samples,
    all: usize,
    good: usize,
}

impl Seen {
    fn count(&mut self, good: bool, since: Instant) {
        self.all += 1;
        self.good += usize::from(good);
        self.samples.push(since.elapsed());
    }

    fn add(&mut self, other: Self) {
        self.samples.append(other.samples);
        self.all += other.all;
        self.good += other.good;
    }

    #[allow(clippy::cast_precision_loss)] // far below 2^52
    fn percent_good(&self) -> f64 {
        100.0 * self.good as f64 / self.all.max(1) as f64
    }

    fn tell(&self, what: &str, p95_ms: f64, report: &mut Report) {
        let (all, good) = (self.all, self.good);
        report.row(
            Row::context(&format!("{what}: p95 in ms"), self.samples.p50_p95())
                .at_most(self.samples.p95(), p95_ms),
        );
        report.row(
            Row::context(
                &format!("{what}: succeeded, in percent"),
                format!("{good} of {all}"),
            )
            .at_least(self.percent_good(), SUCCESS),
        );
    }
}

/// Measures each for `time`.
pub async fn measure(stack: &Stack, time: Duration, report: &mut Report) -> Result<()> {
    let seen = without_model(stack, time).await?;
    let what = format!("{REQUESTS} requests/s without a model");
    seen.tell(&what, NO_MODEL_P95_MS, report);
    let seen = runs(stack, time).await?;
    let what = format!("{RUNS} runs/s, plan and one tool, goal → terminal SSE event");
    seen.tell(&what, RUN_P95_MS, report);
    burst(stack, report).await
}

/// When each of the calls of one of `clients` is due, at `rate` a second over all of them.
fn due(
    start: Instant,
    time: Duration,
    rate: u32,
    client: u32,
    clients: u32,
) -> impl Iterator<Item = Instant> {
    let all = u32::try_from(time.as_secs())
        .unwrap_or(u32::MAX)
        .saturating_mul(rate);
    let every = Duration::from_secs(1) / rate;
    (client..all)
        .step_by(clients as usize)
        .map(move |number| start + every * number)
}

/// Sessions made, read and listed, runs read and listed, tools.
async fn without_model(stack: &Stack, time: Duration) -> Result<Seen> {
    let (session, run) = finished_run(stack).await?;
    let mix = [
        ("GET", format!("/v1/sessions/{session}"), None, 200),
        ("GET", format!("/v1/runs/{run}"), None, 200),
        ("GET", "/v1/runs?limit=20".to_owned(), None, 200),
        ("GET", "/v1/tools".to_owned(), None, 200),
        ("POST", "/v1/sessions".to_owned(), Some(json!({})), 201),
    ];
    let requests: Arc<Vec<(Vec<u8>, u16)>> = Arc::new(
        mix.iter()
            .map(|(method, path, body, status)| {
                (stack.api.request(method, path, body.as_ref()), *status)
            })
            .collect(),
    );
    let start = Instant::now() + Duration::from_millis(200);
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let mut connection = Connection::open(stack.api.address).await?;
        let requests = Arc::clone(&requests);
        tasks.spawn(async move {
            let mut seen = Seen::default();
            let turns = (client as usize..).map(|n| n % requests.len());
            for (due, turn) in due(start, time, REQUESTS, client, CLIENTS).zip(turns) {
                sleep_until(due).await;
                let (request, status) = &requests[turn];
                let answer = connection.exchange(request).await?;
                seen.count(answer.status == *status, due);
            }
            anyhow::Ok(seen)
        });
    }
    gather(tasks).await
}

async fn finished_run(stack: &Stack) -> Result<(String, String)> {
    let mut session = stack.api.session().await?;
    let mut events = stack.api.events(&session.id).await?;
    let run = session.run().await?;
    ensure!(events.end_of(&run).await?, "the first run failed");
    Ok((session.id, run))
}

/// Each run from its goal to its terminal event, on a stream that stays open.
async fn runs(stack: &Stack, time: Duration) -> Result<Seen> {
    let mut clients: Vec<(Session, EventStream)> = Vec::new();
    for _ in 0..SESSIONS {
        let session = stack.api.session().await?;
        let events = stack.api.events(&session.id).await?;
        clients.push((session, events));
    }
    let start = Instant::now() + Duration::from_millis(200);
    let mut tasks = JoinSet::new();
    for (client, (mut session, mut events)) in (0..SESSIONS).zip(clients) {
        tasks.spawn(async move {
            let mut seen = Seen::default();
            for due in due(start, time, RUNS, client, SESSIONS) {
                sleep_until(due).await;
                let good = match session.try_run().await? {
                    Ok(run) => events.end_of(&run).await?,
                    Err(_) => false,
                };
                seen.count(good, due);
            }
            anyhow::Ok(seen)
        });
    }
    gather(tasks).await
}

async fn gather(mut tasks: JoinSet<Result<Seen>>) -> Result<Seen> {
    let mut all = Seen::default();
    while let Some(seen) = tasks.join_next().await {
        all.add(seen??);
    }
    Ok(all)
}

/// More at once than the tenant's limit: it gets its limit, the rest is told when to come again, nothing fails.
async fn burst(stack: &Stack, report: &mut Report) -> Result<()> {
    // What came before is out of the window.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let read = Arc::new(stack.api.request("GET", "/v1/tools", None));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for _ in 0..CLIENTS {
        let mut connection = Connection::open(stack.api.address).await?;
        let read = Arc::clone(&read);
        tasks.spawn(async move {
            let mut statuses = Vec::new();
            for _ in 0..BURST / CLIENTS as usize {
                statuses.push(connection.exchange(&read).await?.status);
            }
            anyhow::Ok(statuses)
        });
    }
    let mut statuses = Vec::new();
    while let Some(some) = tasks.join_next().await {
        statuses.extend(some??);
    }
    let took = began.elapsed();
    let count = |status| statuses.iter().filter(|s| **s == status).count();
    let (accepted, refused) = (count(200), count(429));
    #[allow(clippy::cast_precision_loss)] // small
    let others = (statuses.len() - accepted - refused) as f64;
    let told = format!(
        "{accepted} accepted and {refused} refused with 429 in {:.2} s",
        took.as_secs_f64()
    );
    report.row(
        Row::context("burst beyond the limit: neither accepted nor refused", told)
            .at_most(others, 0.0),
    );
    #[allow(clippy::cast_precision_loss)] // small
    let windows = took.as_secs_f64().ceil().max(1.0) * TENANT_LIMIT as f64;
    #[allow(clippy::cast_precision_loss)] // small
    let accepted = accepted as f64;
    report.row(
        Row::context(
            "burst beyond the limit: accepted, against the limit over the time that it took",
            format!("{TENANT_LIMIT} in any second"),
        )
        .at_most(accepted, windows),
    );
    ensure!(refused > 0, "the burst was not beyond the limit");
    Ok(())
}
