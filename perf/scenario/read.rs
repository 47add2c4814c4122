//! `GET /v1/sessions/{id}` against the floor that does one Redis round trip.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use super::Stack;
use crate::client::{Connection, request};
use crate::floor::http::HttpFloor;
use crate::machine::{CpuSeconds, Processes};
use crate::report::{Report, Row};
use crate::samples::Samples;

const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);
/// Floor and product take turns, so that a busy moment of the machine falls on both.
const TURNS: usize = 4;
const TURN: Duration = Duration::from_millis(2500);

/// What one side did in all its turns.
#[derive(Default)]
struct Side {
    samples: Samples,
    seconds: f64,
    /// Seconds of CPU of the server and of Redis.
    cpu: [f64; 2],
}

impl Side {
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    fn per_second(&self) -> f64 {
        self.samples.len() as f64 / self.seconds
    }

    /// Microseconds of CPU that server and Redis spend on a request.
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    fn cpu_micros(&self) -> [f64; 2] {
        self.cpu
            .map(|seconds| seconds * 1e6 / self.samples.len() as f64)
    }

    fn describe_cpu(&self) -> String {
        let [server, redis] = self.cpu_micros();
        format!("server {server:.0} µs + Redis {redis:.0} µs")
    }

    fn describe(&self) -> String {
        format!(
            "{:.0}/s, p50 {:.2} / p99 {:.2} ms",
            self.per_second(),
            self.samples.p50(),
            self.samples.p99()
        )
    }
}

/// Measures it.
pub async fn measure(stack: &Stack, report: &mut Report) -> Result<()> {
    let floor = HttpFloor::start(&stack.redis_url).await?;
    let session = stack.api.session().await?;
    let path = format!("/v1/sessions/{}", session.id);
    let reads = Arc::new(stack.api.request("GET", &path, None));
    let floor_reads = Arc::new(request(floor.address, "GET", "/", None, None));

    let mut processes = Processes::find(&stack.state)?;
    processes.add("floor", floor.pid);
    let (mut product, mut bare) = (Side::default(), Side::default());
    turn(floor.address, &floor_reads, WARM_UP).await?;
    turn(stack.api.address, &reads, WARM_UP).await?;
    for _ in 0..TURNS {
        for (side, server, address, reads) in [
            (&mut bare, "floor", floor.address, &floor_reads),
            (&mut product, "api", stack.api.address, &reads),
        ] {
            let used = |cpu: CpuSeconds| {
                [server, "redis"].map(|name| cpu.get(name).copied().unwrap_or_default())
            };
            let cpu = used(processes.cpu());
            let (samples, seconds) = turn(address, reads, TURN).await?;
            let after = used(processes.cpu());
            for part in 0..side.cpu.len() {
                side.cpu[part] += after[part] - cpu[part];
            }
            side.samples.append(samples);
            side.seconds += seconds;
        }
    }
    report.row(
        Row::context(
            "GET /v1/sessions/{id}, 64 connections: throughput ÷ floor (a)",
            product.describe(),
        )
        .floor(bare.describe())
        .at_least(product.per_second() / bare.per_second(), 0.5),
    );
    report.row(
        Row::context(
            "the same: p99 ÷ p99 of floor (a)",
            format!("{:.2} ms", product.samples.p99()),
        )
        .floor(format!("{:.2} ms", bare.samples.p99()))
        .at_most(product.samples.p99() / bare.samples.p99(), 3.0),
    );
    report.row(
        Row::context(
            "the same: CPU of server and Redis for a request ÷ floor (a)",
            product.describe_cpu(),
        )
        .floor(bare.describe_cpu())
        .figure(total(product.cpu_micros()) / total(bare.cpu_micros())),
    );
    Ok(())
}

fn total(parts: [f64; 2]) -> f64 {
    parts.iter().sum()
}

/// Every connection repeats the request until the time is over.
async fn turn(
    address: SocketAddr,
    request: &Arc<Vec<u8>>,
    time: Duration,
) -> Result<(Samples, f64)> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(address).await?);
    }
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for mut connection in connections {
        let request = Arc::clone(request);
        tasks.spawn(async move {
            let mut samples = Samples::default();
            while start.elapsed() < time {
                let since = Instant::now();
                let answer = connection.exchange(&request).await?;
                ensure!(answer.status == 200, "answered {}", answer.status);
                samples.push(since.elapsed());
            }
            anyhow::Ok(samples)
        });
    }
    let mut all = Samples::default();
    while let Some(samples) = tasks.join_next().await {
        all.append(samples??);
    }
    Ok((all, start.elapsed().as_secs_f64()))
}
