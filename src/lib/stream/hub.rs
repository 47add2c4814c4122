//! The process' one subscriber: channels are subscribed while somebody listens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Builder;
use fred::types::config::ReconnectPolicy;
use serde_json::value::RawValue;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{StreamError, address};
use crate::config::{RedisSettings, Settings};
use crate::runs::{PassingEvent, StoredEvent};
use crate::runtime::Supervisor;

/// Batches that a listener may be behind before it reads the history instead.
const LISTENER_BUFFER: usize = 32;
/// Messages that the dispatcher may be behind before every listener reads the history instead.
const DISPATCH_BUFFER: usize = 4096;
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);

/// What listeners of a channel receive.
#[derive(Debug, Clone)]
pub(super) enum Heard {
    /// Events of one transition.
    Events(Arc<Vec<StoredEvent>>),
    /// Something that is in no history.
    Passing(Arc<PassingEvent>),
    /// Something may have been missed: read the history.
    Resync,
}

#[derive(Debug)]
struct Channel {
    listeners: usize,
    sender: broadcast::Sender<Heard>,
}

enum Operation {
    Subscribe(String, oneshot::Sender<Subscription>),
    Release(String),
}

/// Listens on one channel; the channel is released when this is dropped.
#[derive(Debug)]
pub(super) struct Subscription {
    channel: String,
    receiver: broadcast::Receiver<Heard>,
    operations: mpsc::UnboundedSender<Operation>,
}

impl Subscription {
    /// The next news. Falling behind reads as [`Heard::Resync`]; `None` when the process stops.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        match self.receiver.recv().await {
            Ok(heard) => Some(heard),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Heard::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // Refused only when the process stops, and the connection with it.
        let _ = self
            .operations
            .send(Operation::Release(std::mem::take(&mut self.channel)));
    }
}

/// The channels that somebody listens to. Only [`Hub::operate`] adds and removes, one operation after
/// the other, so that a channel is never unsubscribed behind a new listener's back.
#[derive(Debug)]
pub(super) struct Hub {
    channels: Mutex<HashMap<String, Channel>>,
    operations: mpsc::UnboundedSender<Operation>,
}

impl Hub {
    pub(super) fn start(
        settings: &Settings,
        supervisor: &Supervisor,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StreamError> {
        let redis = RedisSettings::of(settings).map_err(|e| StreamError::Address(e.to_string()))?;
        let mut builder = Builder::from_config(address::config(&redis)?);
        builder.with_performance_config(|c| c.broadcast_channel_capacity = DISPATCH_BUFFER);
        builder.with_connection_config(|c| {
            c.connection_timeout = CONFIRM_WITHIN;
            c.max_command_attempts = 1;
        });
        builder.set_policy(ReconnectPolicy::new_exponential(0, 100, 2000, 2));
        let client = builder.build_subscriber_client()?;
        client.connect();

        let (operations, receiver) = mpsc::unbounded_channel();
        let hub = Arc::new(Self {
            channels: Mutex::default(),
            operations,
        });
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        {
            let (hub, client, stop) = (hub.clone(), client.clone(), stop.clone());
            supervisor.run("stream-subscriptions", move || {
                let (hub, client, stop, receiver) =
                    (hub.clone(), client.clone(), stop.clone(), receiver.clone());
                async move {
                    tokio::select! {
                        () = hub.operate(&client, &receiver) => {}
                        () = stop.cancelled() => {}
                    }
                }
            });
        }
        {
            let hub = hub.clone();
            supervisor.run("stream-dispatch", move || {
                let (hub, client, stop) = (hub.clone(), client.clone(), stop.clone());
                async move {
                    tokio::select! {
                        () = hub.dispatch(&client) => {}
                        () = stop.cancelled() => {
                            hub.lock().clear();
                            let _ = client.quit().await;
                        }
                    }
                }
            });
        }
        Ok(hub)
    }

    /// Listens on a channel; the subscription is in force when this returns.
    pub(super) async fn subscribe(&self, channel: String) -> Result<Subscription, StreamError> {
        let (sender, receiver) = oneshot::channel();
        let operation = Operation::Subscribe(channel, sender);
        self.operations
            .send(operation)
            .map_err(|_| StreamError::NotConfirmed)?;
        let confirmed = tokio::time::timeout(CONFIRM_WITHIN, receiver).await;
        confirmed
            .map_err(|_| StreamError::NotConfirmed)?
            .map_err(|_| StreamError::NotConfirmed)
    }

    async fn operate(
        &self,
        client: &SubscriberClient,
        receiver: &tokio::sync::Mutex<mpsc::UnboundedReceiver<Operation>>,
    ) {
        let mut receiver = receiver.lock().await;
        while let Some(operation) = receiver.recv().await {
            match operation {
                Operation::Subscribe(name, answer) => {
                    if !self.lock().contains_key(&name) {
                        let subscribed =
                            tokio::time::timeout(CONFIRM_WITHIN, client.ssubscribe(name.as_str()));
                        if !matches!(subscribed.await, Ok(Ok(()))) {
                            continue; // dropping `answer` tells the listener
                        }
                    }
                    let subscription = self.listen(name);
                    if let Err(unheard) = answer.send(subscription) {
                        drop(unheard); // it gave up waiting; the drop releases the channel
                    }
                }
                Operation::Release(name) => {
                    if self.release(&name) {
                        // A failure leaves a subscription that nobody listens to, until the connection ends.
                        let _ =
                            tokio::time::timeout(CONFIRM_WITHIN, client.sunsubscribe(name)).await;
                    }
                }
            }
        }
    }

    fn listen(&self, name: String) -> Subscription {
        let mut channels = self.lock();
        let channel = channels.entry(name.clone()).or_insert_with(|| Channel {
            listeners: 0,
            sender: broadcast::Sender::new(LISTENER_BUFFER),
        });
        channel.listeners += 1;
        Subscription {
            channel: name,
            receiver: channel.sender.subscribe(),
            operations: self.operations.clone(),
        }
    }

    /// Whether nobody listens any more.
    fn release(&self, name: &str) -> bool {
        let mut channels = self.lock();
        let Some(channel) = channels.get_mut(name) else {
            return false;
        };
        channel.listeners -= 1;
        let unused = channel.listeners == 0;
        if unused {
            channels.remove(name);
        }
        unused
    }

    async fn dispatch(&self, client: &SubscriberClient) {
        let mut messages = client.message_rx();
        let mut reconnects = client.reconnect_rx();
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Ok(message) => {
                        if let Some(text) = message.value.as_str() {
                            self.tell(&message.channel, &text);
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => self.resync(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                reconnected = reconnects.recv() => {
                    if reconnected.is_ok() {
                        if let Err(error) = client.resubscribe_all().await {
                            tracing::warn!(%error, "could not subscribe again");
                        }
                        self.resync();
                    }
                }
            }
        }
    }

    fn tell(&self, channel: &str, text: &str) {
        let sender = match self.lock().get(channel) {
            Some(channel) => channel.sender.clone(),
            None => return,
        };
        let heard = match parse(text) {
            Ok(heard) => heard,
            Err(error) => {
                tracing::error!(%error, channel, "a published batch does not parse");
                Heard::Resync
            }
        };
        let _ = sender.send(heard); // an error says that nobody listens
    }

    fn resync(&self) {
        metrics::counter!("agenthub_stream_resyncs_total").increment(1);
        for channel in self.lock().values() {
            let _ = channel.sender.send(Heard::Resync);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transition's events are an array; what is told in passing is one object.
fn parse(text: &str) -> Result<Heard, String> {
    if text.starts_with('{') {
        let passing = PassingEvent::parse(text).map_err(|e| e.to_string())?;
        return Ok(Heard::Passing(Arc::new(passing)));
    }
    parse_batch(text).map(|events| Heard::Events(Arc::new(events)))
}

fn parse_batch(text: &str) -> Result<Vec<StoredEvent>, String> {
    let parts: Vec<&RawValue> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    parts
        .into_iter()
        .map(|part| StoredEvent::parse(part.get()).map_err(|e| e.to_string()))
        .collect()
}
