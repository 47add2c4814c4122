//! A session's event history, as clients read it.

use std::borrow::Cow;

use redis::streams::StreamRangeReply;
use redis::{AsyncCommands, FromRedisValue};
use serde_json::value::RawValue;

use super::Runs;
use crate::ids::{RunId, SessionId, TenantId};
use crate::messages::{Data, EventId, EventType};
use crate::privacy::{DataKey, SealError, Sealed};
use crate::store::StoreError;

/// An event as it is stored: masked JSON text whose data may be sealed, and what is needed to order and
/// select it.
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
    json: String,
    /// Its data, where that is sealed.
    sealed: Option<Sealed>,
}

impl StoredEvent {
    /// Reads an event's JSON text.
    pub fn parse(json: &str) -> Result<Self, StoreError> {
        #[derive(serde::Deserialize)]
        struct Head<'a> {
            id: EventId,
            prev: Option<EventId>,
            #[serde(rename = "type")]
            event_type: EventType,
            run_id: RunId,
            #[serde(borrow)]
            data: &'a RawValue,
        }
        let head: Head<'_> =
            serde_json::from_str(json).map_err(|e| StoreError::Failed(format!("event: {e}")))?;
        Ok(Self {
            id: head.id,
            prev: head.prev,
            event_type: head.event_type,
            run_id: head.run_id,
            json: json.to_owned(),
            sealed: match Data::of(head.data) {
                Data::Sealed(sealed) => Some(sealed),
                Data::Clear(_) => None,
            },
        })
    }

    /// The event's JSON text as clients get it, its data opened.
    ///
    /// # Errors
    /// The data is sealed, and does not open with `key`, or there is none.
    pub fn opened(&self, key: Option<&DataKey>) -> Result<Cow<'_, str>, SealError> {
        let Some(sealed) = &self.sealed else {
            return Ok(Cow::Borrowed(&self.json));
        };
        let data = Data::Sealed(sealed.clone());
        Ok(Cow::Owned(self.with_data(&data.open(key)?)))
    }

    /// The event's JSON text without its data, which nobody can open any more.
    pub fn closed(&self) -> String {
        self.with_data(r#"{"unreadable":true}"#)
    }

    fn with_data(&self, data: &str) -> String {
        let Some(sealed) = &self.sealed else {
            return self.json.clone();
        };
        // Its nonce is random: the text stands at one place.
        let kept = format!("\"{}\"", sealed.as_str());
        self.json.replacen(&kept, data, 1)
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

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use super::*;
    use crate::messages::Told;
    use crate::privacy::KeyRing;
    use crate::privacy::mask::Masker;

    #[test]
    fn an_event_is_as_it_was_told_once_its_data_is_open() {
        let ring = KeyRing::parse(&format!("m:{}", STANDARD.encode([7; 32]))).unwrap();
        let keys = || ring.generate(&"acme".parse().unwrap(), &SessionId::generate());
        let ((key, _), (other, _)) = (keys(), keys());
        let data = json!({ "tool": "t", "args": { "name": "Ottoline" } });
        let masked = Masker::new(&[]).unwrap().json(&data).to_text();
        let event = |data: &str| {
            let run = RunId::generate();
            let text = format!(
                r#"{{"id":"1-2","prev":"1-1","type":"step.started","run_id":"{run}","ts":5,"data":{data}}}"#
            );
            StoredEvent::parse(&text).unwrap()
        };
        let sealed = event(Told::sealed(&key, &masked).as_str());
        let opened: Value = serde_json::from_str(&sealed.opened(Some(&key)).unwrap()).unwrap();
        assert_eq!((&opened["data"], &opened["ts"]), (&data, &json!(5)));
        assert!(sealed.opened(Some(&other)).is_err() && sealed.opened(None).is_err());
        let closed: Value = serde_json::from_str(&sealed.closed()).unwrap();
        assert_eq!(closed["data"], json!({ "unreadable": true }));
        let clear = event(Told::plain(&data).as_str());
        assert!(clear.opened(None).unwrap().contains("Ottoline"));
    }
}
