//! Runs a second against planners, where a run is a second of waiting for the model and a planner has few at
//! once: four planners must do four times what one does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agenthub::kafka::KafkaSettings;
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::messages::Topic;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Stack;
use crate::client::{EventStream, GOAL, Session};
use crate::machine::Process;
use crate::report::{Report, Row};

/// Started so by `perf/run`, each with so many runs at once.
const PLANNERS: usize = 4;
const IN_FLIGHT: usize = 8;
/// As many for each of four planners as for one; the three of a small installation cannot be shared out so.
const PARTITIONS: i32 = 12;
/// One run at a time in each. Many more than are in flight, so that no partition runs empty by chance.
const SESSIONS: usize = 256;
/// Seconds of the model are what this counts: runs per planner's place.
const WARM_UP: usize = 3;
const MEASURED: usize = 20;
const REBALANCE: Duration = Duration::from_secs(90);

/// Measures it.
pub async fn measure(stack: &Stack, report: &mut Report) -> Result<()> {
    let planners = Process::workers(&stack.state, "planner")?;
    ensure!(planners.len() == PLANNERS, "{} planners", planners.len());
    grow(&stack.brokers).await.context("more partitions")?;
    await_members(stack, PLANNERS).await?;

    let goal = format!("{GOAL} [[sim: {{\"latency_ms\": 1000}}]]");
    let (done, mut ends) = mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for _ in 0..SESSIONS {
        let mut session = stack.api.session_for(&goal).await?;
        let mut events = stack.api.events(&session.id).await?;
        let done = done.clone();
        clients.spawn(async move {
            // Ends with the receiver, or with a failure that the receiver is told.
            while done.send(run(&mut session, &mut events).await).is_ok() {}
        });
    }
    let four = rate(&mut ends, PLANNERS).await.context("four planners")?;
    for planner in &planners[1..] {
        planner.terminate()?;
    }
    await_members(stack, 1).await?;
    // They leave their group before their last work is done.
    let deadline = Instant::now() + REBALANCE;
    while planners[1..].iter().any(Process::runs) {
        ensure!(Instant::now() < deadline, "a planner did not end");
        sleep(Duration::from_millis(100)).await;
    }
    while let Ok(before) = ends.try_recv() {
        before?;
    }
    let one = rate(&mut ends, 1).await.context("one planner")?;
    drop(clients);

    #[allow(clippy::cast_precision_loss)] // small
    let planners = PLANNERS as f64;
    report.row(
        Row::context(
            "runs/s of 4 planners ÷ of 1 ÷ 4, a model that takes 1 s, 8 runs at once in each, 12 partitions",
            format!("{four:.2}/s and {one:.2}/s"),
        )
        .floor(format!("the model alone: {}/s and {IN_FLIGHT}/s", PLANNERS * IN_FLIGHT))
        .at_least(four / one / planners, 0.95),
    );
    Ok(())
}

/// From the goal to its terminal event.
async fn run(session: &mut Session, events: &mut EventStream) -> Result<Instant> {
    let run = session.run().await?;
    ensure!(events.end_of(&run).await?, "{run} did not succeed");
    Ok(Instant::now())
}

/// Runs a second. They end in waves, a second apart: what is measured is the time that a number of whole
/// waves takes.
async fn rate(ends: &mut UnboundedReceiver<Result<Instant>>, planners: usize) -> Result<f64> {
    let wave = planners * IN_FLIGHT;
    let since = nth(ends, WARM_UP * wave).await?;
    let until = nth(ends, MEASURED * wave).await?;
    #[allow(clippy::cast_precision_loss)] // small
    let runs = (MEASURED * wave) as f64;
    Ok(runs / until.duration_since(since).as_secs_f64())
}

/// When the `count`th run from now ended.
async fn nth(ends: &mut UnboundedReceiver<Result<Instant>>, count: usize) -> Result<Instant> {
    let mut last = Instant::now();
    for _ in 0..count {
        last = ends.recv().await.context("no client is left")??;
    }
    Ok(last)
}

/// Gives the planners' topic its partitions.
async fn grow(brokers: &str) -> Result<()> {
    let settings = KafkaSettings {
        brokers: brokers.to_owned(),
        namespace: String::new(),
        properties: Vec::new(),
        consumer_protocol: false,
        produce_timeout: Duration::from_secs(30),
    };
    let mut catalogue = Catalogue::embedded(true)?;
    catalogue
        .topics
        .retain(|spec| spec.topic == Topic::PlanCommands);
    for spec in &mut catalogue.topics {
        spec.partitions = PARTITIONS;
    }
    Admin::new(&settings)?.apply(&catalogue, true).await?;
    Ok(())
}

/// Waits until so many planners share all partitions evenly.
async fn await_members(stack: &Stack, members: usize) -> Result<()> {
    let even = vec![PARTITIONS / i32::try_from(members)?; members];
    let deadline = Instant::now() + REBALANCE;
    loop {
        let brokers = stack.brokers.clone();
        let shares = tokio::task::spawn_blocking(move || shares(&brokers)).await??;
        if shares == even {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the planners share the partitions so: {shares:?}, not so: {even:?}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// How many partitions each member of the planners' group has.
fn shares(brokers: &str) -> Result<Vec<i32>> {
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let groups = client.fetch_group_list(Some("planner"), Duration::from_secs(5))?;
    let group = groups.groups().first().context("no group of planners")?;
    let members = group.members().iter();
    members
        .map(|member| {
            let assigned = member.assignment().map(assigned).transpose()?;
            let assigned = assigned.unwrap_or_default();
            Ok(assigned.get("plan.commands").copied().unwrap_or_default())
        })
        .collect()
}

/// Partitions by topic, from the consumer protocol's assignment: a version (2 bytes), then topics, each a
/// name and its partitions.
fn assigned(bytes: &[u8]) -> Result<BTreeMap<String, i32>> {
    let mut rest = bytes;
    let mut take = |count: usize| {
        let taken = rest.split_off(..count);
        taken.ok_or_else(|| anyhow!("an assignment that ends too early"))
    };
    let mut topics = BTreeMap::new();
    if bytes.is_empty() {
        return Ok(topics);
    }
    take(2)?;
    let count = i32::from_be_bytes(take(4)?.try_into()?);
    for _ in 0..count {
        let length = i16::from_be_bytes(take(2)?.try_into()?);
        let name = String::from_utf8(take(usize::try_from(length)?)?.to_vec())?;
        let partitions = i32::from_be_bytes(take(4)?.try_into()?);
        take(4 * usize::try_from(partitions)?)?;
        topics.insert(name, partitions);
    }
    Ok(topics)
}
