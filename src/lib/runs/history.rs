//! A session's event history, as clients read it.

use redis::streams::StreamRangeReply;
use redis::{AsyncCommands, FromRedisValue};

use super::Runs;
use crate::ids::{RunId, SessionId, TenantId};
use crate::messages::{EventId, EventType};
use crate::store::StoreError;

/// An event as it is stored: masked JSON text, and what is needed to order and select it.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// Its name.
    pub id: EventId,
    /// The event before it; none for the first.
    pub prev: Option<EventId>,
    /// What happened.
    pub event_type: EventType,
    /// The run.
    pub run_id: RunId,
    /// The event, JSON text.
    pub json: String,
}

impl StoredEvent {
    /// Reads an event's JSON text.
    pub fn parse(json: &str) -> Result<Self, StoreError> {
        #[derive(serde::Deserialize)]
        struct Head {
            id: EventId,
            prev: Option<EventId>,
            #[serde(rename = "type")]
            event_type: EventType,
            run_id: RunId,
        }
        let head: Head =
            serde_json::from_str(json).map_err(|e| StoreError::Failed(format!("event: {e}")))?;
        Ok(Self {
            id: head.id,
            prev: head.prev,
            event_type: head.event_type,
            run_id: head.run_id,
            json: json.to_owned(),
        })
    }
}

impl Runs {
    /// The events of a session after `after`, the oldest first, at most `limit`.
    pub async fn history(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        after: EventId,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let key = format!("{}:ev:{session}", self.redis.base(tenant));
        let mut connection = self.redis.connection();
        let range = connection.xrange_count(key, format!("({after}"), "+", limit);
        let reply: StreamRangeReply = self.redis.within(range).await?;
        let mut events = Vec::with_capacity(reply.ids.len());
        for mut entry in reply.ids {
            let Some(value) = entry.map.remove("e") else {
                continue;
            };
            let json =
                String::from_redis_value(value).map_err(|e| StoreError::Failed(e.to_string()))?;
            events.push(StoredEvent::parse(&json)?);
        }
        Ok(events)
    }

    /// The name of the channel on which a session's events are published.
    pub fn channel(&self, tenant: &TenantId, session: &SessionId) -> String {
        format!("{}:ch:{session}", self.redis.base(tenant))
    }
}
