//! Listening on a session's channel, as the API's subscriber does.

use std::time::Duration;

use redis::{Msg, PushInfo, PushKind};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// What is published on a channel.
pub struct Listening {
    _connection: redis::aio::MultiplexedConnection,
    messages: UnboundedReceiver<PushInfo>,
}

/// Listens from here on.
pub async fn listen(channel: &str) -> Listening {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".to_owned());
    let separator = if url.contains('?') { '&' } else { '?' };
    let client = redis::Client::open(format!("{url}{separator}protocol=resp3")).unwrap();
    let (sender, messages) = unbounded_channel();
    let config = redis::AsyncConnectionConfig::new().set_push_sender(sender);
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap();
    let mut subscribe = redis::cmd("SSUBSCRIBE");
    subscribe
        .arg(channel)
        .exec_async(&mut connection)
        .await
        .unwrap();
    Listening {
        _connection: connection,
        messages,
    }
}

impl Listening {
    /// The next message.
    pub async fn next(&mut self) -> String {
        let next = async {
            loop {
                let push = self.messages.recv().await.unwrap();
                if push.kind == PushKind::SMessage {
                    return Msg::from_push_info(push)
                        .unwrap()
                        .get_payload::<String>()
                        .unwrap();
                }
            }
        };
        let next = tokio::time::timeout(Duration::from_secs(30), next).await;
        next.expect("nothing is told")
    }
}
