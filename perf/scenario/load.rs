//! Many runs at once: at a fixed rate, and as many as the system takes.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::Stack;
use crate::client::{EventStream, Session};
use crate::floor::{kafka, ledger};
use crate::machine::{Processes, busy_seconds};
use crate::report::{Report, Row};
use crate::samples::Samples;

/// Sessions, each with a stream and one run at a time.
const SESSIONS: usize = 256;
const RATE: u32 = 100;
const RATE_SECONDS: u32 = 10;
const WARM_UP: Duration = Duration::from_secs(3);
const LEDGER_TIME: Duration = Duration::from_secs(5);

/// A session and its stream.
struct Client {
    session: Session,
    events: EventStream,
}

/// What clients saw.
#[derive(Default)]
struct Outcome {
    samples: Samples,
    failed: usize,
    refusal: Option<String>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.samples.append(other.samples);
        self.failed += other.failed;
        self.refusal = self.refusal.take().or(other.refusal);
    }

    /// A run that was due, or submitted, at `since` and has ended.
    fn count(&mut self, ended: End, since: Instant) {
        match ended {
            End::Succeeded => self.samples.push(since.elapsed()),
            End::Failed => self.failed += 1,
            End::Refused(answer) => {
                self.failed += 1;
                self.refusal.get_or_insert(answer);
            }
        }
    }

    /// What was refused, said once.
    fn explain(&self, report: &mut Report) {
        if let Some(refusal) = &self.refusal {
            report.note(format!("A refusal: `{refusal}`"));
        }
    }

    fn failures(&self) -> String {
        match self.failed {
            0 => String::new(),
            failed => format!(", **{failed} refused or failed**"),
        }
    }
}

/// Measures both; saturation lasts `time`.
pub async fn measure(stack: &Stack, time: Duration, report: &mut Report) -> Result<()> {
    let mut clients = Vec::with_capacity(SESSIONS);
    for _ in 0..SESSIONS {
        let session = stack.api.session().await?;
        let events = stack.api.events(&session.id).await?;
        clients.push(Client { session, events });
    }
    let (_, clients) = saturate(clients, WARM_UP).await?;
    let clients = at_rate(clients, report).await?;
    saturation(stack, clients, time, report).await
}

/// Open loop: a run begins when its time has come, whether or not those before it are done, and its time
/// is counted from then on.
async fn at_rate(clients: Vec<Client>, report: &mut Report) -> Result<Vec<Client>> {
    let start = Instant::now() + Duration::from_millis(100);
    let every = Duration::from_secs(1) / RATE;
    let all = RATE * RATE_SECONDS;
    let mut tasks = JoinSet::new();
    for (mut client, first) in clients.into_iter().zip(0_u32..) {
        tasks.spawn(async move {
            let mut outcome = Outcome::default();
            for number in (first..all).step_by(SESSIONS) {
                let due = start + every * number;
                sleep_until(due).await;
                let ended = client.run().await?;
                outcome.count(ended, due);
            }
            anyhow::Ok((outcome, client))
        });
    }
    let (outcome, clients) = gather(tasks).await?;
    report.row(
        Row::context(
            "goal → terminal SSE event at 100 runs/s, open loop: p95 in ms",
            outcome.samples.p50_p95() + &outcome.failures(),
        )
        .at_most(outcome.samples.p95(), 50.0),
    );
    outcome.explain(report);
    Ok(clients)
}

/// Closed loop: every session has one run under way until the time is over.
#[allow(clippy::cast_precision_loss)] // the counts are far below 2^52
async fn saturation(
    stack: &Stack,
    clients: Vec<Client>,
    time: Duration,
    report: &mut Report,
) -> Result<()> {
    let bare = || ledger::runs_per_second(&stack.redis_url, &stack.brokers, SESSIONS, LEDGER_TIME);
    let mut floor = bare().await?;

    let client = redis::Client::open(stack.redis_url.as_str())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let processes = Processes::find(&stack.state)?;
    let records = kafka::records_of_the_product(&stack.brokers)?;
    let scripts = Scripts::read(&mut redis).await?;
    let (cpu, busy) = (processes.cpu(), busy_seconds());
    let start = Instant::now();
    let (outcome, clients) = saturate(clients, time).await?;
    let seconds = start.elapsed().as_secs_f64();
    let (cpu_after, busy) = (processes.cpu(), busy_seconds() - busy);
    let scripts = Scripts::read(&mut redis).await?.since(&scripts);
    let records = kafka::records_since(&stack.brokers, &records)?;
    drop(clients);

    floor = f64::midpoint(floor, bare().await?);
    let (runs, all_records) = (
        outcome.samples.len() as f64,
        records.values().sum::<i64>() as f64,
    );
    let rate = runs / seconds;
    report.row(
        Row::context(
            "plan + execute runs/s at saturation, 256 at once",
            format!(
                "{rate:.0}/s, {}{}",
                outcome.samples.p50_p95(),
                outcome.failures()
            ),
        )
        .at_least(rate, 1200.0),
    );
    report.row(
        Row::context("the same ÷ floor (d)", format!("{rate:.0}/s"))
            .floor(format!("{floor:.0}/s"))
            .figure(rate / floor),
    );
    report.row(
        Row::context(
            "Redis scripts of a run, at saturation",
            format!("{:.0} µs of Redis each", scripts.micros / scripts.calls),
        )
        .at_most(scripts.calls / runs, 5.0),
    );
    report.row(
        Row::context(
            "Kafka records of a run, at saturation",
            records
                .iter()
                .map(|(topic, count)| format!("{topic} {:.1}", *count as f64 / runs))
                .collect::<Vec<_>>()
                .join(", "),
        )
        .at_most(all_records / runs, 8.0),
    );
    outcome.explain(report);
    let mut used: Vec<(String, f64)> = cpu_after
        .into_iter()
        .map(|(name, after)| {
            let before = cpu.get(&name).copied().unwrap_or_default();
            (name, after - before)
        })
        .collect();
    let ours: f64 = used.iter().map(|(_, seconds)| seconds).sum();
    let cores = std::thread::available_parallelism()?.get() as f64;
    report.row(Row::context(
        "cores ÷ CPU time of a run, all processes: runs/s if nothing else ran here",
        format!(
            "{:.0}/s, {:.2} ms of CPU a run",
            cores * runs / ours,
            ours * 1000.0 / runs
        ),
    ));
    used.sort_by(|a, b| b.1.total_cmp(&a.1));
    let used: Vec<String> = used
        .iter()
        .map(|(name, seconds)| format!("{name} {:.3}", seconds * 1000.0 / runs))
        .collect();
    report.note(format!(
        "CPU milliseconds per run at saturation: {}.",
        used.join(", ")
    ));
    report.note(format!(
        "Of the CPU time that this machine spent meanwhile, {:.0} % was that of other programs.",
        (1.0 - ours / busy).max(0.0) * 100.0
    ));
    Ok(())
}

async fn saturate(clients: Vec<Client>, time: Duration) -> Result<(Outcome, Vec<Client>)> {
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let mut outcome = Outcome::default();
            while Instant::now() < end {
                let since = Instant::now();
                let ended = client.run().await?;
                outcome.count(ended, since);
            }
            anyhow::Ok((outcome, client))
        });
    }
    gather(tasks).await
}

async fn gather(mut tasks: JoinSet<Result<(Outcome, Client)>>) -> Result<(Outcome, Vec<Client>)> {
    let mut all = Outcome::default();
    let mut clients = Vec::with_capacity(tasks.len());
    while let Some(ended) = tasks.join_next().await {
        let (outcome, client) = ended??;
        all.add(outcome);
        clients.push(client);
    }
    Ok((all, clients))
}

/// How a run ended.
enum End {
    Succeeded,
    Failed,
    Refused(String),
}

impl Client {
    /// From the goal to its terminal event.
    async fn run(&mut self) -> Result<End> {
        match self.session.try_run().await? {
            Ok(run) if self.events.end_of(&run).await? => Ok(End::Succeeded),
            Ok(_) => Ok(End::Failed),
            Err(answer) => {
                // A refusal comes at once: a client that asked again at once would keep others away.
                sleep(Duration::from_millis(100)).await;
                Ok(End::Refused(answer.describe()))
            }
        }
    }
}

/// What Redis says of the scripts that it ran.
struct Scripts {
    calls: f64,
    micros: f64,
}

impl Scripts {
    async fn read(redis: &mut MultiplexedConnection) -> Result<Self> {
        let info: String = redis::cmd("INFO")
            .arg("commandstats")
            .query_async(redis)
            .await?;
        let mut all = Self {
            calls: 0.0,
            micros: 0.0,
        };
        for line in info.lines() {
            let Some((name, fields)) = line.split_once(':') else {
                continue;
            };
            if !matches!(name, "cmdstat_evalsha" | "cmdstat_eval" | "cmdstat_fcall") {
                continue;
            }
            let field = |name: &str| {
                let value = fields.split(',').find_map(|f| f.strip_prefix(name));
                value
                    .and_then(|v| v.parse::<f64>().ok())
                    .context("commandstats")
            };
            all.calls += field("calls=")?;
            all.micros += field("usec=")?;
        }
        Ok(all)
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            micros: self.micros - before.micros,
        }
    }
}
