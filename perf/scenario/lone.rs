//! One request at a time on an idle system, in turns with the bare hops.

use std::time::{Duration, Instant};

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
/// What the threads of a lone run sleep between two records. Those of a floor without it would never fall
/// asleep, and waking up costs as much as the rest.
const QUIET: Duration = Duration::from_millis(10);
/// librdkafka, the JVM and caches are slow at first.
const WARM_UP_RUNS: usize = 30;
const WARM_UP_RECORDS: i32 = 300;

/// The bare acts.
#[derive(Default)]
struct Floors {
    produce: Samples,
    three: Samples,
    hop: Samples,
}

impl Floors {
    async fn measure(&mut self, kafka: &KafkaFloor, pause: Duration) -> Result<()> {
        let count = RECORDS_PER_ROUND;
        self.produce.append(kafka.produce(count, pause).await?);
        self.three.append(kafka.produce_three(count, pause).await?);
        self.hop.append(kafka.hop(count, pause).await?);
        Ok(())
    }
}

/// Measures the floors, `POST /v1/plan` and the way from a goal to its terminal event.
pub async fn measure(stack: &Stack, report: &mut Report) -> Result<()> {
    let kafka = KafkaFloor::start(&stack.brokers).await?;
    let mut session = stack.api.session().await?;
    let mut events = stack.api.events(&session.id).await?;
    kafka.produce(WARM_UP_RECORDS, Duration::ZERO).await?;
    kafka.produce_three(WARM_UP_RECORDS, Duration::ZERO).await?;
    kafka.hop(WARM_UP_RECORDS, Duration::ZERO).await?;
    plans(&mut session, &mut events, WARM_UP_RUNS).await?;
    runs(&mut session, &mut events, WARM_UP_RUNS).await?;

    let mut idle = Floors::default();
    let mut busy = Floors::default();
    let mut plan = Samples::default();
    let mut run = Samples::default();
    for _ in 0..ROUNDS {
        idle.measure(&kafka, QUIET).await?;
        plan.append(plans(&mut session, &mut events, RUNS_PER_ROUND).await?);
        busy.measure(&kafka, Duration::ZERO).await?;
        run.append(runs(&mut session, &mut events, RUNS_PER_ROUND).await?);
    }
    let published = pubsub::publish(&stack.redis_url, 500).await?;

    report.row(Row::context(
        "floor (b): produce, acks=all, until acknowledged",
        idle.produce.p50_p95(),
    ));
    report.row(Row::context(
        "floor (b): three records on three topics at once, until acknowledged",
        idle.three.p50_p95(),
    ));
    report.row(Row::context(
        "floor (b): produce → consumer",
        idle.hop.p50_p95(),
    ));
    report.row(Row::context(
        "the same three without the 10 ms of quiet: p50",
        format!(
            "{:.2}, {:.2} and {:.2} ms",
            busy.produce.p50(),
            busy.three.p50(),
            busy.hop.p50()
        ),
    ));
    report.row(Row::context(
        "floor (c): Redis PUBLISH → subscriber",
        published.p50_p95(),
    ));
    report.row(
        Row::context(
            "POST /v1/plan until 202, one at a time: p50 ÷ (produce p50 + 1 ms)",
            plan.p50_p95(),
        )
        .floor(format!("{:.2} ms", idle.produce.p50() + 1.0))
        .at_most(plan.p50() / (idle.produce.p50() + 1.0), 1.0),
    );
    report.row(
        Row::context(
            "goal → plan → one tool → terminal SSE event, one at a time: p50 ÷ two hops of (b)",
            run.p50_p95(),
        )
        .floor(format!("{:.2} ms", 2.0 * idle.hop.p50()))
        .at_most(run.p50() / (2.0 * idle.hop.p50()), 2.5),
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
