//! Reads what the checker is given: the topics, the API's answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::messages::{AuditRecord, Event, EventBatch, Topic};
use futures_util::StreamExt;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use reqwest::Method;
use serde_json::Value;
use tokio::sync::broadcast;

use super::history::{Money, Run, Settlement, Told};
use super::load::Clients;
use crate::support::stack::Stack;

/// The events of a record of `agent.events`.
fn events(value: &[u8]) -> Vec<Told> {
    let batch: EventBatch = serde_json::from_slice(value).unwrap();
    batch.events.iter().map(told).collect()
}

fn told(event: &Event) -> Told {
    Told {
        session: event.session_id.to_string(),
        id: event.id,
        prev: event.prev,
        kind: event.event_type.to_string(),
        run: event.run_id.to_string(),
        step: event.step_id.clone(),
        attempt: event.attempt,
        ts: event.ts,
    }
}

/// Everything that is on `agent.events`.
pub async fn all_events(stack: &Stack) -> Vec<Told> {
    let records = stack.records(Topic::AgentEvents).await;
    records
        .iter()
        .flat_map(|record| events(&record.value))
        .collect()
}

/// The usage records on `audit.logs`.
pub async fn settlements(stack: &Stack) -> Vec<Settlement> {
    let records = stack.records(Topic::AuditLogs).await;
    let records = records
        .iter()
        .map(|r| serde_json::from_slice(&r.value).unwrap());
    records
        .filter_map(|record: AuditRecord| {
            Some(Settlement {
                delta_micro_usd: record.delta_micro_usd?,
                run: record.run_id?.to_string(),
                id: record.id,
            })
        })
        .collect()
}

/// Records that each group of workers has not committed.
pub async fn lag(stack: &Stack) -> BTreeMap<String, i64> {
    let mut catalogue = Catalogue::embedded(true).unwrap();
    let worked = [Topic::PlanCommands, Topic::ExecuteCommands];
    catalogue.topics.retain(|spec| worked.contains(&spec.topic));
    let admin = Admin::new(&stack.kafka()).unwrap();
    let described = admin.describe(&catalogue).await.unwrap();
    let groups = described.topics.into_iter().flat_map(|topic| topic.groups);
    groups.map(|group| (group.group, group.lag)).collect()
}

/// Partitions of `agent.events`.
pub async fn partitions(stack: &Stack) -> i32 {
    let mut catalogue = Catalogue::embedded(true).unwrap();
    catalogue
        .topics
        .retain(|spec| spec.topic == Topic::AgentEvents);
    let admin = Admin::new(&stack.kafka()).unwrap();
    let described = admin.describe(&catalogue).await.unwrap();
    described.topics[0].partitions.len().try_into().unwrap()
}

/// A run as the API shows it, when it has ended.
pub async fn ended(clients: &Clients, run: &str) -> Option<Run> {
    let shown = clients.get(&format!("/v1/runs/{run}")).await;
    let status = shown["status"].as_str().unwrap();
    if !["succeeded", "failed", "cancelled", "timed_out"].contains(&status) {
        return None;
    }
    Some(Run {
        status: status.to_owned(),
        code: shown["error"]["code"].as_str().map(str::to_owned),
        cost_micro_usd: shown["usage"]["cost_micro_usd"].as_u64().unwrap(),
    })
}

/// The runs, as the API shows them; those that have not ended are left out.
pub async fn runs(clients: &Clients, ids: Vec<String>) -> BTreeMap<String, Run> {
    let asked = futures_util::stream::iter(ids).map(async |id| {
        let run = ended(clients, &id).await?;
        Some((id, run))
    });
    let shown: Vec<_> = asked.buffer_unordered(16).collect().await;
    shown.into_iter().flatten().collect()
}

pub async fn money(clients: &Clients) -> Money {
    let budget = clients
        .govern(Method::GET, "/v1/admin/tenants/acme/budget", &Value::Null)
        .await;
    let usage = clients
        .govern(Method::GET, "/v1/admin/tenants/acme/usage", &Value::Null)
        .await;
    Money {
        limit: budget["limit_micro_usd"].as_u64().unwrap(),
        spent: budget["spent_micro_usd"].as_u64().unwrap(),
        reserved: budget["reserved_micro_usd"].as_u64().unwrap(),
        used: usage["total"]["cost_micro_usd"].as_u64().unwrap(),
    }
}

/// Tells `tap` of each event as it comes on `agent.events`, until this is dropped.
pub struct Tail(Arc<AtomicBool>);

impl Tail {
    pub fn of(stack: &Stack, tap: broadcast::Sender<Told>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (kafka, stopped) = (stack.kafka(), stop.clone());
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &kafka.brokers)
                .set("group.id", "storm-tail")
                .set("auto.offset.reset", "earliest")
                .set("enable.auto.commit", "false")
                .set("reconnect.backoff.max.ms", "500")
                .create()
                .unwrap();
            consumer
                .subscribe(&[&kafka.topic(Topic::AgentEvents)])
                .unwrap();
            while !stopped.load(Ordering::SeqCst) {
                // What goes wrong while the broker is away ends by itself.
                if let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) {
                    for event in events(record.payload().unwrap_or_default()) {
                        let _ = tap.send(event); // nobody may listen
                    }
                }
            }
        });
        Self(stop)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
