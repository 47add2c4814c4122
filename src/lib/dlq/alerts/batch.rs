//! Which letters make an alert, and when. Pure: the caller brings the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::ids::TenantId;
use crate::store::IndexedLetter;

/// Groups that are remembered at once.
const MAX_GROUPS: usize = 1000;
/// Groups that one alert tells of.
const MAX_TOLD: usize = 50;
/// Letters of a group that an alert names.
const MAX_NAMED: usize = 5;
/// From the first letter of a quiet group to its alert: what comes at once is told at once.
const GATHER: Duration = Duration::from_secs(1);

/// Whose letters, and what they have in common.
type Key = (TenantId, String);

/// A group that an alert tells of.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) tenant: TenantId,
    pub(super) fingerprint: String,
    /// Letters since the alert before.
    pub(super) count: u64,
    /// The last of them, without its bytes.
    pub(super) latest: IndexedLetter,
    /// Ids of some of them.
    pub(super) letters: Vec<String>,
    /// When the first of them was given up, in milliseconds since the epoch.
    pub(super) first_ms: u64,
}

#[derive(Debug)]
struct Group {
    /// When it may be told of, or forgotten where nothing is new.
    due: Instant,
    new: Option<Told>,
}

/// Gathers letters: at most one alert for a group in each window.
#[derive(Debug)]
pub(super) struct Batch {
    window: Duration,
    groups: BTreeMap<Key, Group>,
}

impl Batch {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            groups: BTreeMap::new(),
        }
    }

    /// Takes a letter in; whether there was room for it.
    pub(super) fn add(
        &mut self,
        tenant: TenantId,
        id: String,
        letter: IndexedLetter,
        now: Instant,
    ) -> bool {
        let key = (tenant, letter.group.clone());
        if !self.groups.contains_key(&key) && self.groups.len() >= MAX_GROUPS {
            return false;
        }
        let told = Told {
            tenant: key.0.clone(),
            fingerprint: key.1.clone(),
            count: 0,
            first_ms: letter.letter.last_ms,
            latest: letter.clone(),
            letters: Vec::new(),
        };
        let group = self.groups.entry(key).or_insert(Group {
            due: now + GATHER,
            new: None,
        });
        let new = group.new.get_or_insert(told);
        new.count += 1;
        new.first_ms = new.first_ms.min(letter.letter.last_ms);
        new.latest = letter;
        if new.letters.len() < MAX_NAMED {
            new.letters.push(id);
        }
        true
    }

    /// When there is something to tell, or to forget.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.groups.values().map(|group| group.due).min()
    }

    /// The groups that are due, as many as one alert tells of. Those that were quiet for a window are
    /// forgotten.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Told> {
        self.groups
            .retain(|_, group| group.new.is_some() || group.due > now);
        let window = self.window;
        let due = self.groups.values_mut().filter(|group| group.due <= now);
        due.take(MAX_TOLD)
            .filter_map(|group| {
                group.due = now + window;
                group.new.take()
            })
            .collect()
    }

    /// Everything that was not told of, whenever it is due.
    pub(super) fn take_all(&mut self) -> Vec<Told> {
        let groups = std::mem::take(&mut self.groups).into_values();
        groups
            .filter_map(|group| group.new)
            .take(MAX_TOLD)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{DeadLetter, FailureClass, RunEnd};

    const WINDOW: Duration = Duration::from_mins(5);

    fn letter(error: &str, at: u64) -> IndexedLetter {
        let letter = DeadLetter {
            v: 1,
            topic: "t".to_owned(),
            partition: 0,
            offset: 1,
            key: None,
            value: None,
            headers: Vec::new(),
            class: FailureClass::Permanent,
            error: error.to_owned(),
            attempts: 1,
            first_ms: 1,
            last_ms: at,
            worker: "w".to_owned(),
            tenant: None,
            run_id: None,
            traceparent: None,
            end: RunEnd::default(),
        };
        IndexedLetter::new(letter, 0, 0)
    }

    fn add(batch: &mut Batch, error: &str, at: u64, now: Instant) -> bool {
        let tenant = "acme".parse().unwrap();
        batch.add(tenant, format!("t.0.{at}"), letter(error, at), now)
    }

    #[test]
    fn a_group_is_told_of_at_once_and_then_once_in_a_window() {
        let (mut batch, start) = (Batch::new(WINDOW), Instant::now());
        assert_eq!(batch.next_due(), None);
        for at in 1..=7 {
            assert!(add(&mut batch, "no answer after 5 ms", at, start));
        }
        assert!(add(&mut batch, "something else", 8, start));
        assert!(batch.take_due(start).is_empty(), "it gathers for a moment");
        let due = batch.next_due().unwrap();
        let mut told = batch.take_due(due);
        told.sort_by_key(|told| told.count);
        assert_eq!((told.len(), told[0].count, told[1].count), (2, 1, 7));
        assert_eq!((told[1].first_ms, told[1].latest.letter.last_ms), (1, 7));
        assert_eq!(told[1].letters.len(), MAX_NAMED);

        // What comes within the window waits for its end.
        add(&mut batch, "no answer after 9 ms", 9, due);
        assert!(batch.take_due(due + WINDOW / 2).is_empty());
        let told = batch.take_due(due + WINDOW);
        assert_eq!((told.len(), told[0].count), (1, 1));
    }

    #[test]
    fn quiet_groups_are_forgotten_and_their_number_is_bounded() {
        let (mut batch, start) = (Batch::new(WINDOW), Instant::now());
        let name = |n: usize| {
            let letters = n.to_string();
            let letters = letters.bytes().map(|b| char::from(b - b'0' + b'a'));
            letters.collect::<String>()
        };
        for n in 0..MAX_GROUPS {
            assert!(add(&mut batch, &name(n), 1, start));
        }
        assert!(!add(&mut batch, "one more", 1, start));
        assert!(add(&mut batch, &name(0), 2, start));
        let now = start + GATHER;
        let mut told = 0;
        loop {
            let due = batch.take_due(now);
            if due.is_empty() {
                break;
            }
            assert!(due.len() <= MAX_TOLD);
            told += due.len();
        }
        assert_eq!(told, MAX_GROUPS);
        assert!(batch.take_due(now + WINDOW).is_empty());
        assert_eq!(batch.next_due(), None);
    }

    #[test]
    fn at_the_end_nothing_waits_for_its_window() {
        let (mut batch, start) = (Batch::new(WINDOW), Instant::now());
        add(&mut batch, "a", 1, start);
        assert_eq!(batch.take_all().len(), 1);
        assert!(batch.take_all().is_empty());
    }
}
