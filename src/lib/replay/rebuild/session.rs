//! A session, put together from its record, its events and its runs. Pure.

use std::collections::{BTreeMap, HashSet};

use super::run::{RunFold, Usage};
use crate::ids::RunId;
use crate::messages::{AuditRecord, Event, EventId, EventType, SessionRecord};
use crate::privacy::{DataKey, Sealed};
use crate::runs::{RestoredRun, RestoredSession};

/// What the topics say of a session.
#[derive(Debug)]
pub(super) struct SessionFold {
    pub(super) record: SessionRecord,
    /// When it was last used, as far as the topics tell; a read leaves no trace there.
    touched_ms: u64,
    /// Runs that were admitted and whose end was not seen yet.
    open: HashSet<RunId>,
    events: BTreeMap<EventId, Event>,
    runs: BTreeMap<RunId, RunFold>,
    usage: Usage,
    /// Usage records that were counted: one may be on the topic twice.
    counted: HashSet<String>,
}

/// A session with what is to be restored of it.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) session: RestoredSession,
    /// Event ids with the events' JSON text.
    pub(super) history: Vec<(String, String)>,
    /// Runs that have ended, with the milliseconds that they are kept.
    pub(super) ended: Vec<(RestoredRun, u64)>,
    /// Whether a live run had begun.
    pub(super) at_work: bool,
    /// Runs whose commands have left the topics.
    pub(super) without_command: u64,
}

/// What restoring needs to know of the installation and the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) now_ms: u64,
    pub(super) generation: u64,
    pub(super) history_events: usize,
    pub(super) run_retention_ms: u64,
}

impl SessionFold {
    pub(super) fn new(record: SessionRecord) -> Self {
        Self {
            touched_ms: record.created_ms,
            record,
            open: HashSet::new(),
            events: BTreeMap::new(),
            runs: BTreeMap::new(),
            usage: Usage::default(),
            counted: HashSet::new(),
        }
    }

    /// Looks at an event, to tell sessions that have expired before their events are kept.
    pub(super) fn glance(&mut self, run: &RunId, event_type: EventType, ts: u64) {
        self.touched_ms = self.touched_ms.max(ts);
        if event_type == EventType::RunQueued {
            self.open.insert(run.clone());
        } else if event_type.is_terminal() {
            self.open.remove(run);
        }
    }

    /// Whether it may still be there: within its time to live, or with a run that may be live.
    pub(super) fn may_live(&self, now_ms: u64) -> bool {
        !self.open.is_empty() || self.touched_ms.saturating_add(self.record.ttl_ms) >= now_ms
    }

    /// Takes an event. The same one may come again; where two have one id, the later is what the
    /// ledger went on from.
    pub(super) fn event(&mut self, event: Event) {
        self.events.insert(event.id, event);
    }

    pub(super) fn run(&mut self, run: &RunId) -> &mut RunFold {
        self.runs.entry(run.clone()).or_default()
    }

    pub(super) fn run_ids(&self) -> impl Iterator<Item = &RunId> {
        let told = self.events.values().map(|event| &event.run_id);
        self.runs.keys().chain(told)
    }

    pub(super) fn audit(&mut self, record: &AuditRecord) {
        // A call may be settled twice: at its bound, and later by what it used.
        let settlement = record.settlement.as_deref().unwrap_or_default();
        let name = match (&record.run_id, &record.call) {
            (Some(run), Some(call)) => format!("{run}/{call}/{settlement}"),
            _ => record.id.clone(),
        };
        if !self.counted.insert(name) {
            return;
        }
        if record.settlement.is_some() {
            self.usage.add(record);
        }
        if let Some(run) = &record.run_id {
            self.runs.entry(run.clone()).or_default().audit(record);
        }
    }

    /// What the events of admissions have sealed, each with its run.
    pub(super) fn queued_states(&self) -> impl Iterator<Item = (&RunId, u64, &Sealed)> {
        let queued = self.events.values();
        queued
            .filter(|event| event.event_type == EventType::RunQueued)
            .filter_map(|event| Some((&event.run_id, event.ts, event.state.as_ref()?)))
    }

    /// Puts the events into their runs, and gives the runs, so that what their events lack can be
    /// looked up. `key` opens what they tell.
    pub(super) fn fold_events(
        &mut self,
        key: Option<&DataKey>,
    ) -> impl Iterator<Item = &mut RunFold> {
        for event in self.events.values() {
            let run = self.runs.entry(event.run_id.clone()).or_default();
            run.event(event, key);
        }
        self.runs.values_mut().for_each(RunFold::resolve);
        // Ids sort by the time of creation: what a run takes over is there before it is asked for.
        let ids: Vec<RunId> = self.runs.keys().cloned().collect();
        for id in ids {
            let Some(before) = self.runs.get(&id).and_then(RunFold::retry_of) else {
                continue;
            };
            let done = self.runs.get(&before).map(RunFold::done);
            if let Some(run) = self.runs.get_mut(&id) {
                run.take_over(done);
            }
        }
        self.runs.values_mut()
    }

    /// What is to be restored, after the events were folded; `None` when it has expired.
    pub(super) fn restore(self, terms: Terms) -> Option<Restored> {
        let mut live = Vec::new();
        let mut ended = Vec::new();
        let mut without_command = 0;
        let mut at_work = false;
        for (id, run) in &self.runs {
            let end = run.ended_ms();
            let keep_ms = end.map(|(ended, deadline)| {
                // As `end_run` in the scripts: not before its commands are too old to recreate it.
                let until = ended.saturating_add(terms.run_retention_ms);
                until
                    .max(deadline.saturating_add(1000))
                    .saturating_sub(terms.now_ms)
            });
            if keep_ms == Some(0) {
                continue;
            }
            let Some(restored) = run.restore(id, terms.now_ms) else {
                without_command += 1;
                continue;
            };
            if let Some(keep_ms) = keep_ms {
                ended.push((restored, keep_ms));
            } else {
                at_work |= restored.fields.contains_key("begun");
                live.push((run.created_ms(), restored));
            }
        }
        if live.is_empty() && self.touched_ms.saturating_add(self.record.ttl_ms) < terms.now_ms {
            return None;
        }
        // As they were admitted: by the time, and by the id where that is the same.
        live.sort_by(|(a, x), (b, y)| (a, &x.id).cmp(&(b, &y.id)));
        let history = self.events.values().filter_map(text);
        let mut history: Vec<(String, String)> = history.collect();
        history.drain(..history.len().saturating_sub(terms.history_events));
        Some(Restored {
            session: RestoredSession {
                session: self.record.session_id.clone(),
                fields: self.fields(terms.generation),
                ttl_ms: self.record.ttl_ms,
                runs: live.into_iter().map(|(_, run)| run).collect(),
            },
            history,
            ended,
            at_work,
            without_command,
        })
    }

    fn fields(&self, generation: u64) -> BTreeMap<String, String> {
        let record = &self.record;
        let newest = self.events.keys().next_back();
        let generation = generation.max(newest.map_or(0, |id| id.generation + 1));
        let mut fields = BTreeMap::from([
            ("gen".to_owned(), generation.to_string()),
            ("seq".to_owned(), "0".to_owned()),
            ("key".to_owned(), record.wrapped_key.clone()),
            ("created".to_owned(), record.created_ms.to_string()),
            ("ttl_ms".to_owned(), record.ttl_ms.to_string()),
            ("key_id".to_owned(), record.key_id.to_string()),
        ]);
        for (name, sealed) in [
            ("context", &record.context),
            ("subject", &record.subject),
            ("metadata", &record.metadata),
        ] {
            if let Some(sealed) = sealed {
                fields.insert(name.to_owned(), sealed.as_str().to_owned());
            }
        }
        if let Some(budget) = record.max_cost_micro_usd {
            fields.insert("budget".to_owned(), budget.to_string());
        }
        self.usage.put(&mut fields);
        fields
    }
}

/// An event's id and its JSON text, as clients had it.
fn text(event: &Event) -> Option<(String, String)> {
    let told = Event {
        state: None,
        ..event.clone()
    };
    Some((event.id.to_string(), serde_json::to_string(&told).ok()?))
}
