//! One request at a time on an idle system, in turns with the bare hops.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::Stack;
use crate::client::{EventStream, Session};
use crate::floor::kafka::KafkaFloor;
use crate::floor::pubsub;
use crate::report::{Report, Row};
use crate::samples::Samples;

const ROUNDS: usize = 5;
const RUNS_PER_ROUND: usize = 50;
const RECORDS_PER_ROUND: i32 = 100;
/// librdkafka, the JVM and caches are slow at first.
const WARM_UP_RUNS: usize = 30;
const WARM_UP_RECORDS: i32 = 300;

/// Measures the floors, `POST /v1/plan` and the way from a goal to its terminal event.
pub async fn measure(stack: &Stack, report: &mut Report) -> Result<()> {
    let kafka = KafkaFloor::start(&stack.brokers).await?;
    let mut session = stack.api.session().await?;
    let mut events = stack.api.events(&session.id).await?;
    kafka.produce(WARM_UP_RECORDS).await?;
    kafka.hop(WARM_UP_RECORDS).await?;
    plans(&mut session, &mut events, WARM_UP_RUNS).await?;
    runs(&mut session, &mut events, WARM_UP_RUNS).await?;

    let mut produce = Samples::default();
    let mut hop = Samples::default();
    let mut plan = Samples::default();
    let mut run = Samples::default();
    for _ in 0..ROUNDS {
        produce.append(kafka.produce(RECORDS_PER_ROUND).await?);
        plan.append(plans(&mut session, &mut events, RUNS_PER_ROUND).await?);
        hop.append(kafka.hop(RECORDS_PER_ROUND).await?);
        run.append(runs(&mut session, &mut events, RUNS_PER_ROUND).await?);
    }
    let published = pubsub::publish(&stack.redis_url, 500).await?;

    report.row(Row::context(
        "floor (b): produce, acks=all, until acknowledged",
        produce.p50_p95(),
    ));
    report.row(Row::context("floor (b): produce → consumer", hop.p50_p95()));
    report.row(Row::context(
        "floor (c): Redis PUBLISH → subscriber",
        published.p50_p95(),
    ));
    report.row(
        Row::context(
            "POST /v1/plan until 202, one at a time: p50 ÷ (produce p50 + 1 ms)",
            plan.p50_p95(),
        )
        .floor(format!("{:.2} ms", produce.p50() + 1.0))
        .at_most(plan.p50() / (produce.p50() + 1.0), 1.0),
    );
    report.row(
        Row::context(
            "goal → plan → one tool → terminal SSE event, one at a time: p50 ÷ two hops of (b)",
            run.p50_p95(),
        )
        .floor(format!("{:.2} ms", 2.0 * hop.p50()))
        .at_most(run.p50() / (2.0 * hop.p50()), 2.5),
    );
    Ok(())
}

/// Until the 202; the run ends before the next begins.
async fn plans(session: &mut Session, events: &mut EventStream, count: usize) -> Result<Samples> {
    let mut samples = Samples::default();
    for _ in 0..count {
        let since = Instant::now();
        let run = session.plan().await?;
        samples.push(since.elapsed());
        ensure!(events.end_of(&run).await?, "{run} did not succeed");
    }
    Ok(samples)
}

/// Until the terminal event.
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
