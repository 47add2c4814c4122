//! A tenant that submits one run at a time beside another with a long backlog: the backlog waits in Redis, and
//! the one must not notice it.

use std::process::Command;
use std::time::{Duration, Instant};

use agenthub::ids::TenantId;
use agenthub::kafka::KafkaSettings;
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::messages::Topic;
use anyhow::{Context, Result, ensure};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Stack;
use crate::client::{Api, EventStream, GOAL, Session};
use crate::report::{Report, Row};
use crate::samples::Samples;

const NOISY_TENANT: &str = "demo";
const QUIET_TENANT: &str = "quiet";
/// Sessions and connections of the tenant with the backlog.
const SESSIONS: usize = 64;
/// Milliseconds that the model takes for each of its runs. `perf/run` lets a tenant have few live ones.
const LATENCY_MS: u32 = 2000;
const WARM_UP: usize = 100;
const RUNS: usize = 200;
/// Commands that may be on their way while the live runs come and go.
const MOVING: i64 = 64;
const TAKEN_UP_WITHIN: Duration = Duration::from_mins(3);

/// Measures it beside a backlog of `backlog` runs.
pub async fn measure(stack: &Stack, backlog: usize, report: &mut Report) -> Result<()> {
    let client = redis::Client::open(stack.redis_url.as_str())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let quiet = Api {
        key: create_key(QUIET_TENANT)?,
        ..stack.api.clone()
    };
    let mut session = quiet.session().await?;
    let mut events = quiet.events(&session.id).await?;
    runs(&mut session, &mut events, WARM_UP).await?;
    let idle = runs(&mut session, &mut events, RUNS).await?;

    let began = Instant::now();
    submit(stack, backlog).await?;
    println!(
        "{backlog} runs submitted in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    await_workers(&stack.brokers).await?;
    let before = waiting(&mut redis).await?;
    runs(&mut session, &mut events, WARM_UP).await?;
    let beside = runs(&mut session, &mut events, RUNS).await?;
    let after = waiting(&mut redis).await?;
    ensure!(
        2 * after >= backlog,
        "of {backlog} runs only {before} to {after} waited meanwhile"
    );
    report.row(
        Row::context(
            &format!(
                "one run at a time beside another tenant's {backlog} queued ones: p50 ÷ p50 without them"
            ),
            format!("{}, {before} to {after} queued", beside.p50_p95()),
        )
        .floor(idle.p50_p95())
        .at_most(beside.p50() / idle.p50(), 1.5),
    );
    Ok(())
}

/// A key of a tenant of its own, made as an operator makes one.
fn create_key(tenant: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Created {
        api_key: String,
    }
    let folder = std::env::var("AGENTHUB_BIN").context("AGENTHUB_BIN, which perf/run sets")?;
    let made = Command::new(format!("{folder}/agenthub"))
        .args(["keys", "create", "--tenant", tenant])
        .args(["--role", "client", "--name", "perf", "--json"])
        .output()?;
    ensure!(
        made.status.success(),
        "agenthub keys create: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let created: Created = serde_json::from_slice(&made.stdout)?;
    Ok(created.api_key)
}

/// From the goal to its terminal event, one after the other.
async fn runs(session: &mut Session, events: &mut EventStream, count: usize) -> Result<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let since = Instant::now();
        let run = session.run().await?;
        ensure!(events.end_of(&run).await?, "{run} did not succeed");
        samples.push(since.elapsed());
    }
    Ok(samples)
}

/// Submits the backlog. Its runs wait for their tenant, not for their session.
async fn submit(stack: &Stack, backlog: usize) -> Result<()> {
    let goal = format!("{GOAL} [[sim: {{\"latency_ms\": {LATENCY_MS}}}]]");
    let mut submitting = JoinSet::new();
    for first in 0..SESSIONS {
        let mut session = stack.api.session().await?;
        let body = json!({
            "session_id": session.id, "goal": goal, "on_conflict": "parallel", "timeout_s": 3600
        });
        let request = stack.api.request("POST", "/v1/runs", Some(&body));
        submitting.spawn(async move {
            for _ in (first..backlog).step_by(SESSIONS) {
                session.start(&request).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(submitted) = submitting.join_next().await {
        submitted?.context("a run was not accepted")?;
    }
    Ok(())
}

/// Waits until the planners have looked at every command, so that the backlog is in Redis.
async fn await_workers(brokers: &str) -> Result<()> {
    let settings = KafkaSettings {
        brokers: brokers.to_owned(),
        namespace: String::new(),
        properties: Vec::new(),
        consumer_protocol: false,
        produce_timeout: Duration::from_secs(30),
    };
    let admin = Admin::new(&settings)?;
    let mut catalogue = Catalogue::embedded(true)?;
    catalogue
        .topics
        .retain(|spec| spec.topic == Topic::PlanCommands);
    let deadline = Instant::now() + TAKEN_UP_WITHIN;
    loop {
        let cluster = admin.describe(&catalogue).await?;
        let groups = cluster.topics.iter().flat_map(|topic| &topic.groups);
        let lag: i64 = groups.map(|group| group.lag).sum();
        if lag <= MOVING {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the planners have still to look at {lag} commands"
        );
        sleep(Duration::from_millis(200)).await;
    }
}

/// Runs that wait for a place of their tenant.
async fn waiting(redis: &mut MultiplexedConnection) -> Result<usize> {
    let tenant: TenantId = NOISY_TENANT.parse()?;
    let base = agenthub::store::base_key("ah", &tenant);
    Ok(redis.zcard(format!("{base}:wait")).await?)
}
