//! Server-sent events (WHATWG HTML, section 9.2): the bytes on the wire.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;

use crate::messages::EventId;
use crate::privacy::DataKey;
use crate::runs::{PassingEvent, StoredEvent};

/// The first bytes of a stream: how long a client waits before it reconnects.
pub(super) fn opening() -> Bytes {
    Bytes::from_static(b"retry: 2000\n\n")
}

/// A comment that keeps the connection alive.
pub(super) fn heartbeat() -> Bytes {
    Bytes::from_static(b": heartbeat\n\n")
}

/// A comment that says why the stream ends although more may follow: a client reconnects by itself.
pub(super) fn farewell(why: &str) -> Bytes {
    Bytes::from(format!(": {why}\n\n"))
}

/// An event of the history, its data opened with its session's key.
pub(super) fn event(event: &StoredEvent, key: Option<&DataKey>) -> Bytes {
    let opened = event.opened(key).unwrap_or_else(|error| {
        tracing::warn!(%error, run_id = %event.run_id, "an event's data does not open");
        Cow::Owned(event.closed())
    });
    frame(event.event_type.as_str(), Some(event.id), &opened)
}

/// An event without an id: a client that reconnects goes on from the one before it.
pub(super) fn passing(event: &PassingEvent) -> Bytes {
    frame(event.event_type.as_str(), None, &event.json)
}

/// The history does not reach back to the client's cursor.
pub(super) fn truncated() -> Bytes {
    frame("stream.truncated", None, "{}")
}

/// How the run or session stands, for a client that has missed events. Its id is that of the newest
/// event that it takes account of.
pub(super) fn snapshot(body: &Value, newest: Option<EventId>) -> Bytes {
    frame("stream.snapshot", newest, &body.to_string())
}

fn frame(name: &str, id: Option<EventId>, data: &str) -> Bytes {
    let mut text = format!("event: {name}\n");
    if let Some(id) = id {
        text.push_str("id: ");
        text.push_str(&id.to_string());
        text.push('\n');
    }
    // A line break in the data would end the field.
    for line in data.split(['\n', '\r']) {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_name_id_and_data() {
        let run = crate::ids::RunId::generate();
        let text = format!(r#"{{"id":"1-7","type":"step.started","run_id":"{run}","data":{{}}}}"#);
        let stored = StoredEvent::parse(&text).unwrap();
        let expected = format!("event: step.started\nid: 1-7\ndata: {text}\n\n");
        assert_eq!(event(&stored, None), expected);
    }

    #[test]
    fn a_line_break_does_not_end_the_data() {
        let bytes = frame("x", None, "{\n\"a\":1}");
        assert_eq!(bytes, "event: x\ndata: {\ndata: \"a\":1}\n\n");
        assert_eq!(truncated(), "event: stream.truncated\ndata: {}\n\n");
    }
}
