//! The story of one run, from what the topics hold of it. Pure.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use crate::ids::RunId;
use crate::kafka::StoredRecord;
use crate::messages::{Topic, header};

/// One thing that happened to the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Happening {
    /// Milliseconds since the epoch.
    pub ts: u64,
    /// What: `plan command`, `step.retrying`, `model call`, …
    pub what: String,
    /// More of it, for people; masked where the record is.
    pub detail: String,
    /// The process that told of it.
    pub worker: String,
    /// The topic that holds it.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What happened to a run, and what it came to.
#[derive(Debug, Default, Serialize)]
pub struct Story {
    /// In the order of time.
    pub happenings: Vec<Happening>,
    /// How it ended; absent while it lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Why it ended so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// Milliseconds from its admission to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Milliseconds until a worker first had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_ms: Option<u64>,
    /// Millionths of a US dollar, by the settlements.
    pub cost_micro_usd: i64,
    /// Records that came more than once; each is told once.
    pub repeats: u64,
    #[serde(skip)]
    seen: BTreeSet<String>,
}

impl Story {
    /// Adds a record that was verified. Those of other runs are passed over.
    pub fn add(&mut self, topic: Topic, full_topic: &str, run: &RunId, record: &StoredRecord) {
        if record.header(header::CE_SUBJECT) != Some(run.as_str()) {
            return;
        }
        let value = record.value.as_deref();
        let Some(value) = value.and_then(|v| serde_json::from_slice::<Value>(v).ok()) else {
            return;
        };
        let place = Place {
            record,
            topic: full_topic,
        };
        if topic == Topic::AgentEvents {
            for event in value["events"].as_array().into_iter().flatten() {
                if event["run_id"] == run.as_str() && self.is_new(text(event, "id"), topic) {
                    self.event(event, &place);
                }
            }
            return;
        }
        if !self.is_new(record.header(header::CE_ID).unwrap_or_default(), topic) {
            return;
        }
        match topic {
            Topic::PlanCommands | Topic::ExecuteCommands => {
                let what = format!("{} command", text(&value, "kind"));
                let emitted = match value["wake"].as_u64() {
                    None | Some(0) => "put onto its topic".to_owned(),
                    Some(wake) => format!("put onto its topic again, wake {wake}"),
                };
                self.tell(record_ms(record), what, emitted, &place);
            }
            Topic::AuditLogs => self.audit(&value, &place),
            Topic::DeadLetter => {
                let detail = format!("{}: {}", text(&value, "class"), text(&value, "error"));
                let ts = value["last_ms"].as_u64();
                let ts = ts.unwrap_or_else(|| record_ms(record));
                self.tell(ts, "dead letter".to_owned(), detail, &place);
            }
            Topic::AgentEvents | Topic::AgentState => {}
        }
    }

    /// Puts what was added into order, and sums it up.
    pub fn finish(&mut self) {
        self.happenings.sort_by_key(|h| h.ts);
        let first = |what: &[&str]| {
            let found = self.happenings.iter();
            let mut found = found.filter(|h| what.contains(&h.what.as_str()));
            found.next().map(|h| h.ts)
        };
        let queued = first(&["run.queued"]);
        let taken = first(&["plan.started", "run.started"]);
        let ended = first(&[
            "run.succeeded",
            "run.failed",
            "run.cancelled",
            "run.timed_out",
        ]);
        let between = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        self.queued_ms = between(queued, taken);
        self.took_ms = between(queued, ended);
    }

    fn is_new(&mut self, id: &str, topic: Topic) -> bool {
        let new = self.seen.insert(format!("{topic:?}/{id}"));
        self.repeats += u64::from(!new);
        new
    }

    fn tell(&mut self, ts: u64, what: String, detail: String, place: &Place<'_>) {
        let worker = place.record.header(header::CE_SOURCE).unwrap_or("-");
        self.happenings.push(Happening {
            ts,
            what,
            detail,
            worker: worker.to_owned(),
            topic: place.topic.to_owned(),
            partition: place.record.partition,
            offset: place.record.offset,
        });
    }

    fn event(&mut self, event: &Value, place: &Place<'_>) {
        let kind = text(event, "type");
        let data = &event["data"];
        let mut parts = Vec::new();
        if let Some(step) = event["step_id"].as_str() {
            let attempt = event["attempt"].as_u64().unwrap_or(1);
            parts.push(format!("{step}, attempt {attempt}"));
        }
        for name in [
            "tool", "model", "code", "message", "gave_up", "scope", "retry_of",
        ] {
            if let Some(said) = data[name].as_str() {
                parts.push(if name == "message" || name == "tool" {
                    said.to_owned()
                } else {
                    format!("{name} {said}")
                });
            }
        }
        for (name, unit) in [("duration_ms", "took"), ("retry_in_ms", "waits")] {
            if let Some(ms) = data[name].as_u64() {
                parts.push(format!("{unit} {ms} ms"));
            }
        }
        // What does not open says so in its own place.
        parts.extend(data.as_str().map(str::to_owned));
        if data["cached"] == true {
            parts.push("from the cache".to_owned());
        }
        let ended = kind.strip_prefix("run.");
        if let Some(status @ ("succeeded" | "failed" | "cancelled" | "timed_out")) = ended {
            self.ended = Some(status.to_owned());
            self.because = Some(parts.join("; ")).filter(|why| !why.is_empty());
        }
        let ts = event["ts"].as_u64().unwrap_or_default();
        self.tell(ts, kind.to_owned(), parts.join("; "), place);
    }

    fn audit(&mut self, value: &Value, place: &Place<'_>) {
        let action = text(value, "action");
        let delta = value["delta_micro_usd"].as_i64().unwrap_or(0);
        self.cost_micro_usd += delta;
        let detail = if action == "request" {
            format!(
                "{} {} by key {} ({}): {}",
                text(value, "method"),
                text(value, "route"),
                text(value, "key_id"),
                text(value, "role"),
                text(value, "decision"),
            )
        } else {
            let mut parts = vec![text(value, "target").to_owned()];
            if let Some(settled) = value["settlement"].as_str() {
                let tokens = |name| value[name].as_u64().unwrap_or(0);
                parts.push(format!(
                    "{} + {} tokens, {settled}, {delta} micro-USD",
                    tokens("input_tokens"),
                    tokens("output_tokens"),
                ));
            }
            if let Some(rule) = value["rule"].as_str() {
                parts.push(format!("refused by {rule}"));
            }
            parts.join("; ")
        };
        let ts = value["ts"].as_u64().unwrap_or_default();
        self.tell(ts, action.replace('_', " "), detail, place);
    }
}

/// Where a record is.
struct Place<'a> {
    record: &'a StoredRecord,
    topic: &'a str,
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or("-")
}

fn record_ms(record: &StoredRecord) -> u64 {
    let ms = record.timestamp_ms.unwrap_or_default();
    u64::try_from(ms).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    fn record(run: &RunId, id: &str, offset: i64, value: &Value) -> StoredRecord {
        let header = |name: &str, value: &str| {
            (
                name.to_owned(),
                Some(Bytes::copy_from_slice(value.as_bytes())),
            )
        };
        StoredRecord {
            partition: 2,
            offset,
            timestamp_ms: Some(1_000),
            key: None,
            value: Some(value.to_string().into()),
            headers: vec![
                header(header::CE_SUBJECT, run.as_str()),
                header(header::CE_ID, id),
                header(header::CE_SOURCE, "agenthub-executor@1"),
            ],
        }
    }

    #[test]
    fn a_story_is_in_order_and_tells_each_thing_once() {
        let (run, other) = (RunId::generate(), RunId::generate());
        let event = |id: &str, kind: &str, ts: u64, data: Value| json!({ "id": id, "type": kind, "run_id": run, "ts": ts, "data": data, "step_id": "s1", "attempt": 2 });
        let failed = json!({ "code": "http_status", "message": "the server answered 503" });
        let events = json!({ "events": [
            event("1-2", "run.started", 1_200, json!({})),
            event("1-9", "run.failed", 2_000, failed),
        ] });
        let queued = json!({ "events": [event("1-1", "run.queued", 1_050, json!({}))] });
        let audit = json!({ "action": "model_call", "ts": 1_300, "target": "m", "settlement": "actual",
            "input_tokens": 3, "output_tokens": 1, "delta_micro_usd": 7 });
        let mut story = Story::default();
        for _ in 0..2 {
            story.add(
                Topic::AgentEvents,
                "agent.events",
                &run,
                &record(&run, "b", 8, &events),
            );
            story.add(
                Topic::AgentEvents,
                "agent.events",
                &run,
                &record(&run, "a", 7, &queued),
            );
            story.add(
                Topic::AuditLogs,
                "audit.logs",
                &run,
                &record(&run, "c", 5, &audit),
            );
            story.add(
                Topic::AuditLogs,
                "audit.logs",
                &run,
                &record(&other, "d", 6, &audit),
            );
            let command = json!({ "kind": "execute", "wake": 1 });
            let command = record(&run, "e", 1, &command);
            story.add(Topic::ExecuteCommands, "execute.commands", &run, &command);
        }
        story.finish();
        let told: Vec<&str> = story.happenings.iter().map(|h| h.what.as_str()).collect();
        assert_eq!(
            told,
            [
                "execute command",
                "run.queued",
                "run.started",
                "model call",
                "run.failed"
            ]
        );
        assert_eq!(
            story.happenings[0].detail,
            "put onto its topic again, wake 1"
        );
        assert_eq!(story.ended.as_deref(), Some("failed"));
        assert_eq!(
            story.because.as_deref(),
            Some("s1, attempt 2; code http_status; the server answered 503")
        );
        assert_eq!((story.queued_ms, story.took_ms), (Some(150), Some(950)));
        assert_eq!((story.cost_micro_usd, story.repeats), (7, 5));
        let last = story.happenings.last().unwrap();
        assert_eq!((last.partition, last.offset), (2, 8));
        assert_eq!(last.worker, "agenthub-executor@1");
    }
}
