//! What befalls the installation: kills at random and at named points of the write order, restarts, cut
//! connections. What happens when is drawn from a seed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use tokio::sync::broadcast;

use super::history::Told;
use super::tool_server::{self, Held, ToolServer};
use crate::support::broker::Broker;
use crate::support::forwarder::Forwarder;
use crate::support::redis::OwnRedis;
use crate::support::stack::Stack;

pub const WORKERS: [&str; 4] = ["planner", "planner-2", "executor", "executor-2"];
pub const APIS: [&str; 2] = ["api", "api-2"];

/// A named point that does not come in this time is given up: the kill then falls anywhere.
const MOMENT: Duration = Duration::from_secs(4);

/// Where a worker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    Anywhere,
    /// It has a record in hand, and the ledger has not heard of it.
    AfterPoll,
    /// The step is declared, and the call on its way.
    BeforeTheCall,
    /// The tool has the call.
    DuringTheCall,
    /// The worker has the tool's answer, and the ledger has not heard of it.
    AfterTheCall,
    /// The ledger has the result.
    AfterTheRecord,
    /// The run's end is on `agent.events`, and the offset of its command not yet committed.
    AfterTheProduce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    Worker(Point),
    Api,
    Redis,
    Broker,
    /// Connections to Redis.
    CutRedis,
    /// Connections of clients.
    CutClients,
}

/// What befell, and how often; of the named points, only where the moment came.
pub type Tally = BTreeMap<String, usize>;

/// The blows of a storm with so many kills of workers: each point as often as the others, planners
/// among those that fall anywhere.
pub fn blows(seed: u64, kills: usize) -> Vec<Blow> {
    let points = [
        Point::Anywhere,
        Point::AfterPoll,
        Point::BeforeTheCall,
        Point::DuringTheCall,
        Point::AfterTheCall,
        Point::AfterTheRecord,
        Point::AfterTheProduce,
    ];
    let mut blows: Vec<_> = points
        .into_iter()
        .cycle()
        .take(kills)
        .map(Blow::Worker)
        .collect();
    for (blow, each) in [
        (Blow::Api, 6),
        (Blow::CutRedis, 6),
        (Blow::CutClients, 6),
        (Blow::Redis, 12),
        (Blow::Broker, 20),
    ] {
        blows.extend(std::iter::repeat_n(blow, (kills / each).max(1)));
    }
    blows.shuffle(&mut StdRng::seed_from_u64(seed));
    blows
}

/// The installation, and what stands between its parts.
pub struct Scene {
    pub stack: Stack,
    pub redis: OwnRedis,
    pub broker: Broker,
    pub tools: ToolServer,
    /// Before Redis, for each process.
    ledgers: BTreeMap<&'static str, Forwarder>,
    /// Before the tool server, for each executor.
    calls: BTreeMap<&'static str, Forwarder>,
    /// Before each API.
    pub fronts: Vec<Forwarder>,
    addresses: BTreeMap<&'static str, String>,
    folder: tempfile::TempDir,
    random: StdRng,
    pub tally: Tally,
}

impl Scene {
    pub async fn set(mut stack: Stack, redis: OwnRedis, broker: Broker, seed: u64) -> Self {
        stack.spawn_simulator(&["--latency-ms", "100"]).await;
        let tools = ToolServer::start().await;
        let (mut ledgers, mut calls) = (BTreeMap::new(), BTreeMap::new());
        for process in WORKERS.into_iter().chain(APIS) {
            ledgers.insert(process, Forwarder::to(redis.addr.clone()).await);
            calls.insert(process, Forwarder::to(tools.addr.to_string()).await);
        }
        let (mut fronts, mut addresses) = (Vec::new(), BTreeMap::new());
        for api in APIS {
            // It comes back on the same address, one that no client's connection takes meanwhile.
            let free = std::net::TcpListener::bind("127.0.0.3:0").unwrap();
            let address = free.local_addr().unwrap().to_string();
            fronts.push(Forwarder::to(address.clone()).await);
            addresses.insert(api, address);
        }
        let mut scene = Self {
            stack,
            redis,
            broker,
            tools,
            ledgers,
            calls,
            fronts,
            addresses,
            folder: tempfile::tempdir().unwrap(),
            random: StdRng::seed_from_u64(seed),
            tally: Tally::new(),
        };
        for process in APIS.into_iter().chain(WORKERS) {
            scene.start(process).await;
        }
        scene
    }

    /// Starts a process behind its forwarders.
    async fn start(&mut self, process: &'static str) {
        let file: PathBuf = self.folder.path().join(format!("{process}.toml"));
        let declared = tool_server::declare(self.calls[process].addr, process);
        std::fs::write(&file, declared).unwrap();
        let redis = format!("redis://{}/", self.ledgers[process].addr);
        self.stack
            .set("AGENTHUB_TOOLS_FILE", file.to_str().unwrap());
        self.stack.set("REDIS_URL", &redis);
        if let Some(address) = self.addresses.get(process) {
            self.stack.set("AGENTHUB_API_ADDR", address);
        }
        self.stack.begin(process);
        // The tests' own way to Redis is not cut.
        self.stack.set("REDIS_URL", &self.redis.url);
        self.stack.until_ready(process).await;
    }

    pub async fn strike(
        &mut self,
        blow: Blow,
        streams: &broadcast::Sender<Told>,
        topic: &broadcast::Sender<Told>,
    ) {
        match blow {
            Blow::Worker(point) => self.kill_worker(point, streams, topic).await,
            Blow::Api => {
                let api = *APIS.choose(&mut self.random).unwrap();
                self.kill(api).await;
                self.count("API killed".to_owned());
            }
            Blow::Redis => {
                self.redis.restart().await;
                self.count("Redis killed and restarted".to_owned());
            }
            Blow::Broker => {
                self.broker.kill();
                self.broker.restart().await;
                self.count("broker killed and restarted".to_owned());
            }
            Blow::CutRedis => {
                let process = *WORKERS
                    .iter()
                    .chain(&APIS)
                    .collect::<Vec<_>>()
                    .choose(&mut self.random)
                    .unwrap();
                let time = self.random.random_range(100..3000);
                self.ledgers[process].cut();
                tokio::time::sleep(Duration::from_millis(time)).await;
                self.ledgers[process].restore();
                self.count("connections to Redis cut".to_owned());
            }
            Blow::CutClients => {
                let front = self.random.random_range(0..self.fronts.len());
                self.fronts[front].cut();
                self.fronts[front].restore();
                self.count("connections of clients cut".to_owned());
            }
        }
    }

    fn count(&mut self, what: String) {
        *self.tally.entry(what).or_default() += 1;
    }

    async fn kill(&mut self, process: &'static str) {
        self.stack.processes.get_mut(process).unwrap().kill();
        self.ledgers[process].restore();
        self.calls[process].restore();
        self.start(process).await;
    }

    async fn kill_worker(
        &mut self,
        point: Point,
        streams: &broadcast::Sender<Told>,
        topic: &broadcast::Sender<Told>,
    ) {
        let worker = *match point {
            Point::Anywhere | Point::AfterPoll => &WORKERS[..],
            _ => &WORKERS[2..],
        }
        .choose(&mut self.random)
        .unwrap();
        let moment = tokio::time::timeout(MOMENT, self.until(point, worker, streams, topic)).await;
        self.tools.untrap(worker);
        let came = moment.is_ok();
        // Where it is told of late, it is whoever did it. What is held is so until the kill.
        let (worker, held) = moment.unwrap_or((worker, None));
        let role = worker.split('-').next().unwrap_or_default();
        let named = if came { point } else { Point::Anywhere };
        self.count(format!("{role} killed {named:?}"));
        self.kill(worker).await;
        drop(held);
    }

    /// Waits for the moment; whom to kill in it, and the call that is not to be answered before that.
    async fn until(
        &self,
        point: Point,
        worker: &'static str,
        streams: &broadcast::Sender<Told>,
        topic: &broadcast::Sender<Told>,
    ) -> (&'static str, Option<Held>) {
        let whom = match point {
            Point::Anywhere => {
                self.metric_above(worker, "agenthub_leases", 0.0).await;
                worker
            }
            Point::AfterPoll => {
                let received = "agenthub_consumer_records_total";
                let before = self.stack.metric(worker, received).await;
                self.ledgers[worker].stall();
                self.metric_above(worker, received, before).await;
                worker
            }
            Point::BeforeTheCall => {
                let line = &self.calls[worker];
                let before = line.held();
                line.stall();
                while line.held() == before {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                worker
            }
            Point::DuringTheCall => {
                let held = self.tools.trap(worker).await.unwrap();
                return (worker, Some(held));
            }
            Point::AfterTheCall => {
                let held = self.tools.trap(worker).await.unwrap();
                let ended = "agenthub_tool_executions_total";
                self.ledgers[worker].stall();
                let before = self.stack.metric(worker, ended).await;
                held.answer();
                self.metric_above(worker, ended, before).await;
                worker
            }
            Point::AfterTheRecord => {
                self.who_told(streams, |told| told.kind == "step.completed")
                    .await
            }
            Point::AfterTheProduce => self.who_told(topic, Told::is_terminal).await,
        };
        (whom, None)
    }

    async fn metric_above(&self, worker: &str, name: &str, before: f64) {
        while self.stack.metric(worker, name).await <= before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The executor whose run the next such event is of.
    async fn who_told(
        &self,
        tap: &broadcast::Sender<Told>,
        wanted: fn(&Told) -> bool,
    ) -> &'static str {
        let mut events = tap.subscribe();
        loop {
            match events.recv().await {
                Ok(told) if wanted(&told) => {
                    let worker = self.tools.worker_of(&told.run);
                    let known = WORKERS.iter().find(|w| Some(**w) == worker.as_deref());
                    if let Some(worker) = known {
                        return worker;
                    }
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
