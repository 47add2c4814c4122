//! The indexer of dead letters.

use std::sync::Arc;
use std::time::Duration;

use super::base::Base;
use super::consumer::{self, Reading};
use crate::config::Settings;
use crate::dlq::{self, Alerts, Indexer};
use crate::kafka::{Consumer, Handler};
use crate::messages::Topic;
use crate::net::WebhookClient;

pub(super) const SERVICE: &str = "agenthub-dlq";

const GROUP: &str = "dlq";
/// A letter waits for Redis.
const REDIS_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn serve(settings: Arc<Settings>, reading: Reading) -> anyhow::Result<()> {
    let base = Base::start(SERVICE, &settings, REDIS_TIMEOUT)?;
    consumer::serve_probes(&base, settings.probe_addr).await?;
    let indexer = Indexer::new(
        base.redis.clone(),
        base.signer.clone(),
        base.masker.clone(),
        format!("{SERVICE}@{}", uuid::Uuid::now_v7()),
        base.shutdown.intake(),
    );
    let indexer: Arc<dyn Handler> = Arc::new(indexer.alerting(alerting(&base, &settings)?));
    let group = reading.group(GROUP);
    let options = reading
        .options(&base, &settings, SERVICE, &group, Topic::DeadLetter)
        .await?;
    let kafka = base.kafka.clone();
    let consumer = consumer::start(&base, move || {
        let topics = [Topic::DeadLetter];
        Consumer::new(&kafka, &group, &topics, indexer.clone(), options.clone())
    });
    consumer.run(base, std::future::pending()).await
}

/// Alerts to the operator's webhook, where there is one.
fn alerting(base: &Base, settings: &Settings) -> anyhow::Result<Option<Alerts>> {
    let Some((url, secret)) = settings.dlq_webhook()? else {
        return Ok(None);
    };
    let window = settings.dlq_webhook_window_ms.duration();
    let client = WebhookClient::new(url)?;
    let (alerts, alerter) = dlq::alerts(client, secret, window, base.masker.clone());
    // Until the end: what is indexed while the process drains is told of too.
    let end = base.shutdown.end();
    base.supervisor
        .run("dlq-alerts", move || alerter.clone().run(end.clone()));
    Ok(Some(alerts))
}
