//! Floor (c): a message published on Redis until a subscriber has it.

use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use redis::AsyncCommands;

use crate::samples::Samples;

const CHANNEL: &str = "perf:floor";

/// Lone messages of 512 bytes from publisher to subscriber.
pub async fn publish(redis_url: &str, count: usize) -> Result<Samples> {
    let client = redis::Client::open(redis_url)?;
    let mut publisher = client.get_multiplexed_async_connection().await?;
    let mut subscriber = client.get_async_pubsub().await?;
    subscriber.subscribe(CHANNEL).await?;
    let mut messages = subscriber.into_on_message();
    let text = "x".repeat(512);
    let mut samples = Samples::default();
    for _ in 0..count {
        let since = Instant::now();
        let (sent, received) = tokio::join!(
            publisher.publish::<_, _, ()>(CHANNEL, &text),
            messages.next()
        );
        sent?;
        received.context("the subscription ended")?;
        samples.push(since.elapsed());
    }
    Ok(samples)
}
