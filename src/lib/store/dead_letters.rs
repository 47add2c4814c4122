//! The index of dead letters in Redis.
//!
//! `<base>:dlq` is a tenant's index, a sorted set of letter ids by the time at which they were given
//! up; `<base>:dlq:<id>` is the hash of one letter. `dead_letter_index.lua` tells of the others.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use redis::AsyncCommands;
use serde::Serialize;

use super::{Redis, Script, StoreError};
use crate::ids::{RunId, TenantId};
use crate::messages::{DeadLetter, FailureClass, LetterId};

/// Letters that are kept for a tenant; the oldest go first.
pub const MAX_LETTERS: usize = 100_000;
/// Characters of base64 that are kept of a record's key, of its value, and of its headers together;
/// all bytes are in the letter on the topic. A multiple of four, so that what is kept decodes.
const MAX_BASE64: usize = 2732;
/// Ids read in one go.
const PAGE: usize = 200;
/// Earlier letters that a letter's history goes back.
const MAX_HISTORY: usize = 20;

static INDEX: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "dead_letter_index",
        &[include_str!("dead_letter_index.lua")],
    )
});

/// A letter as the index holds it.
#[derive(Debug, Clone)]
pub struct IndexedLetter {
    /// The letter, without what is too large for the index.
    pub letter: DeadLetter,
    /// What letters about equal failures have in common.
    pub group: String,
    /// Bytes that the record's value has.
    pub value_bytes: u64,
    /// The partition of the letter itself on `dead.letter`.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// What was done about it.
    pub redriven: Option<Redriven>,
}

/// The last redrive of a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redriven {
    /// The run that it started.
    pub run: RunId,
    /// Milliseconds since the epoch, by Redis' clock.
    pub at_ms: u64,
}

/// Which letters are wanted; all where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Only of this class.
    pub class: Option<FailureClass>,
    /// Only where this tool failed.
    pub tool: Option<String>,
    /// Only the letter of this run.
    pub run: Option<RunId>,
    /// Only of this group.
    pub group: Option<String>,
    /// Only those given up at or after this time, in milliseconds since the epoch.
    pub since_ms: Option<u64>,
    /// Only those given up before this time.
    pub until_ms: Option<u64>,
}

/// Where a page of letters ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterCursor {
    at_ms: u64,
    id: String,
}

impl std::fmt::Display for LetterCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}~{}", self.at_ms, self.id.replace('/', "~"))
    }
}

impl std::str::FromStr for LetterCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (at, id) = text.split_once('~').ok_or(())?;
        let id: LetterId = id.replace('~', "/").parse().map_err(|_| ())?;
        Ok(Self {
            at_ms: at.parse().map_err(|_| ())?,
            id: id.indexed(),
        })
    }
}

/// Letters about equal failures.
#[derive(Debug, Clone)]
pub struct LetterGroup {
    /// What they have in common.
    pub fingerprint: String,
    /// Letters in the index.
    pub count: u64,
    /// When the first of them was given up, in milliseconds since the epoch.
    pub first_ms: u64,
    /// And the last.
    pub last_ms: u64,
    /// The last of them.
    pub latest: IndexedLetter,
}

impl IndexedLetter {
    /// What the index keeps of the letter at this place.
    pub fn new(mut letter: DeadLetter, partition: i32, offset: i64) -> Self {
        let group = letter.fingerprint();
        let base64 = letter.value.as_deref().unwrap_or_default();
        let value_bytes = base64_bytes(base64);
        let cut = |text: &mut String| text.truncate(text.floor_char_boundary(MAX_BASE64));
        letter.value.as_mut().map(cut);
        letter.key.as_mut().map(cut);
        let mut left = MAX_BASE64;
        letter.headers.retain(|(name, value)| {
            let size = name.len() + value.len();
            let fits = size <= left;
            left -= if fits { size } else { 0 };
            fits
        });
        Self {
            letter,
            group,
            value_bytes,
            partition,
            offset,
            redriven: None,
        }
    }

    /// Where a page ends that this letter is the last of.
    pub fn cursor(&self) -> LetterCursor {
        LetterCursor {
            at_ms: self.letter.last_ms,
            id: self.letter.id(),
        }
    }

    /// Whether the index has less of the value than the letter on the topic.
    pub fn is_cut(&self) -> bool {
        let kept = self.letter.value.as_deref().unwrap_or_default();
        base64_bytes(kept) < self.value_bytes
    }

    fn fields(&self) -> Result<Vec<(&'static str, String)>, StoreError> {
        let letter = serde_json::to_string(&self.letter);
        let letter = letter.map_err(|e| StoreError::Failed(e.to_string()))?;
        let mut fields = vec![
            ("letter", letter),
            ("class", self.letter.class.as_str().to_owned()),
            ("group", self.group.clone()),
            ("value_bytes", self.value_bytes.to_string()),
            ("partition", self.partition.to_string()),
            ("offset", self.offset.to_string()),
        ];
        let run = self.letter.run_id.as_ref();
        fields.extend(run.map(|run| ("run", run.to_string())));
        Ok(fields)
    }

    /// `None` for an entry that went meanwhile, or was written by a later version.
    fn from_fields(fields: &HashMap<String, String>) -> Option<Self> {
        let letter: DeadLetter = serde_json::from_str(fields.get("letter")?).ok()?;
        let redriven = fields.get("redriven").and_then(|run| {
            Some(Redriven {
                run: run.parse().ok()?,
                at_ms: fields.get("redriven_at")?.parse().ok()?,
            })
        });
        let group = fields.get("group").cloned();
        Some(Self {
            group: group.unwrap_or_else(|| letter.fingerprint()),
            letter,
            value_bytes: fields.get("value_bytes")?.parse().ok()?,
            partition: fields.get("partition")?.parse().ok()?,
            offset: fields.get("offset")?.parse().ok()?,
            redriven,
        })
    }

    fn fits(&self, filter: &LetterFilter) -> bool {
        let letter = &self.letter;
        filter.class.is_none_or(|class| class == letter.class)
            && (filter.tool.is_none() || filter.tool == letter.end.tool)
            && (filter.run.is_none() || filter.run == letter.run_id)
            && filter.group.as_ref().is_none_or(|g| *g == self.group)
            && filter.since_ms.is_none_or(|since| letter.last_ms >= since)
            && filter.until_ms.is_none_or(|until| letter.last_ms < until)
    }
}

fn base64_bytes(text: &str) -> u64 {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding) as u64
}

#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    at: String,
    keep: usize,
    group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a RunId>,
    fields: Vec<&'a str>,
}

impl Redis {
    /// Puts a letter into a tenant's index. Returns whether it was not there yet; one that is stays as
    /// it is. Beyond [`MAX_LETTERS`] the oldest leave.
    pub async fn index_letter(
        &self,
        tenant: &TenantId,
        letter: &IndexedLetter,
    ) -> Result<bool, StoreError> {
        self.index_letter_within(tenant, letter, MAX_LETTERS).await
    }

    /// As [`Redis::index_letter`], with another number of letters to keep.
    pub async fn index_letter_within(
        &self,
        tenant: &TenantId,
        letter: &IndexedLetter,
        keep: usize,
    ) -> Result<bool, StoreError> {
        let fields = letter.fields()?;
        let id = letter.letter.id();
        let entry = Entry {
            id: &id,
            at: letter.letter.last_ms.to_string(),
            keep,
            group: &letter.group,
            run: letter.letter.run_id.as_ref(),
            fields: fields.iter().flat_map(|(k, v)| [*k, v.as_str()]).collect(),
        };
        let new: i64 = self.invoke(&INDEX, tenant, &entry, "{}").await?;
        Ok(new == 1)
    }

    /// The letter with this id, in the form of [`LetterId::indexed`].
    pub async fn letter(
        &self,
        tenant: &TenantId,
        id: &str,
    ) -> Result<Option<IndexedLetter>, StoreError> {
        let name = format!("{}:dlq:{id}", self.base(tenant));
        let fields: HashMap<String, String> = self.connection().hgetall(name).await?;
        Ok(IndexedLetter::from_fields(&fields))
    }

    /// The letters of the runs before the letter's own in a chain of retries, the latest first, as far
    /// as each has one.
    pub async fn letter_history(
        &self,
        tenant: &TenantId,
        letter: &DeadLetter,
    ) -> Result<Vec<IndexedLetter>, StoreError> {
        let runs = format!("{}:dlqr", self.base(tenant));
        let mut history: Vec<IndexedLetter> = Vec::new();
        let mut before = letter.end.retry_of.clone();
        while let Some(run) = before.take().filter(|_| history.len() < MAX_HISTORY) {
            let id: Option<String> = self.connection().hget(&runs, run.as_str()).await?;
            let Some(id) = id else { break };
            let Some(earlier) = self.letter(tenant, &id).await? else {
                break;
            };
            before.clone_from(&earlier.letter.end.retry_of);
            history.push(earlier);
        }
        Ok(history)
    }

    /// A tenant's letters that fit, the latest first, at most `limit`, after the page that ended at
    /// `after`.
    pub async fn letters(
        &self,
        tenant: &TenantId,
        filter: &LetterFilter,
        after: Option<&LetterCursor>,
        limit: usize,
    ) -> Result<Vec<IndexedLetter>, StoreError> {
        let base = self.base(tenant);
        let mut connection = self.connection();
        if let Some(run) = &filter.run {
            let id: Option<String> = connection
                .hget(format!("{base}:dlqr"), run.as_str())
                .await?;
            let Some(id) = id.filter(|_| after.is_none()) else {
                return Ok(Vec::new());
            };
            let letter = self.letter(tenant, &id).await?;
            return Ok(letter.filter(|l| l.fits(filter)).into_iter().collect());
        }
        let index = match &filter.group {
            Some(group) => format!("{base}:dlqg:{group}"),
            None => format!("{base}:dlq"),
        };
        let until = filter.until_ms.map(|until| format!("({until}"));
        let max = match after {
            Some(cursor) => cursor.at_ms.to_string(),
            None => until.unwrap_or_else(|| "+inf".to_owned()),
        };
        let min = filter.since_ms.unwrap_or(0);
        let mut letters = Vec::new();
        // Letters that arrive meanwhile push the others down: some may be looked at twice.
        let mut seen = HashSet::new();
        for start in (0..MAX_LETTERS).step_by(PAGE) {
            let from = isize::try_from(start).unwrap_or(isize::MAX);
            let page: Vec<(String, u64)> = redis::cmd("ZREVRANGEBYSCORE")
                .arg(&index)
                .arg(&max)
                .arg(min)
                .arg("WITHSCORES")
                .arg("LIMIT")
                .arg(from)
                .arg(PAGE)
                .query_async(&mut connection)
                .await?;
            if page.is_empty() {
                break;
            }
            // Equal times are ordered by id, backwards.
            let follows = |(id, at): &(String, u64)| {
                after.is_none_or(|cursor| (*at, id) < (cursor.at_ms, &cursor.id))
            };
            let ids: Vec<String> = page.into_iter().filter(follows).map(|(id, _)| id).collect();
            for letter in self.letters_by_id(tenant, &ids).await? {
                if letter.fits(filter) && seen.insert(letter.letter.id()) {
                    letters.push(letter);
                }
                if letters.len() == limit {
                    return Ok(letters);
                }
            }
        }
        Ok(letters)
    }

    /// A tenant's groups of letters, the latest first, at most `limit`.
    pub async fn letter_groups(
        &self,
        tenant: &TenantId,
        limit: usize,
    ) -> Result<Vec<LetterGroup>, StoreError> {
        let name = format!("{}:dlqg", self.base(tenant));
        let mut connection = self.connection();
        let last = isize::try_from(limit).unwrap_or(isize::MAX) - 1;
        if last < 0 {
            return Ok(Vec::new());
        }
        let fingerprints: Vec<String> = connection.zrevrange(&name, 0, last).await?;
        let mut groups = Vec::new();
        for fingerprints in fingerprints.chunks(PAGE) {
            let mut pipe = redis::pipe();
            for fingerprint in fingerprints {
                let letters = format!("{name}:{fingerprint}");
                pipe.zcard(&letters)
                    .zrange_withscores(&letters, 0, 0)
                    .zrange_withscores(&letters, -1, -1);
            }
            let answers: Vec<redis::Value> = pipe.query_async(&mut connection).await?;
            let mut found = Vec::new();
            for (fingerprint, answer) in fingerprints.iter().zip(answers.chunks_exact(3)) {
                let count: u64 = redis::from_redis_value_ref(&answer[0])
                    .map_err(|e| StoreError::Failed(e.to_string()))?;
                let ends = |answer: &redis::Value| {
                    redis::from_redis_value_ref::<Vec<(String, u64)>>(answer)
                        .map_err(|e| StoreError::Failed(e.to_string()))
                };
                let (first, last) = (ends(&answer[1])?, ends(&answer[2])?);
                if let (Some(first), Some(last)) = (first.first(), last.first()) {
                    found.push((fingerprint, count, first.1, last.clone()));
                }
            }
            let ids: Vec<String> = found.iter().map(|(.., last)| last.0.clone()).collect();
            let latest = self.letters_by_id(tenant, &ids).await?;
            let mut latest: HashMap<String, IndexedLetter> =
                latest.into_iter().map(|l| (l.letter.id(), l)).collect();
            for (fingerprint, count, first_ms, (id, last_ms)) in found {
                groups.extend(latest.remove(&id).map(|latest| LetterGroup {
                    fingerprint: fingerprint.clone(),
                    count,
                    first_ms,
                    last_ms,
                    latest,
                }));
            }
        }
        Ok(groups)
    }

    /// Those of these letters that are still there, in their order.
    async fn letters_by_id(
        &self,
        tenant: &TenantId,
        ids: &[String],
    ) -> Result<Vec<IndexedLetter>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let index = format!("{}:dlq", self.base(tenant));
        let mut pipe = redis::pipe();
        for id in ids {
            pipe.hgetall(format!("{index}:{id}"));
        }
        let found: Vec<HashMap<String, String>> = pipe.query_async(&mut self.connection()).await?;
        Ok(found
            .iter()
            .filter_map(IndexedLetter::from_fields)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::messages::RunEnd;

    fn letter(value: &[u8]) -> DeadLetter {
        DeadLetter {
            v: 1,
            topic: "t".to_owned(),
            partition: 0,
            offset: 1,
            key: Some("a2V5".to_owned()),
            value: Some(STANDARD.encode(value)),
            headers: vec![
                ("big".to_owned(), "A".repeat(MAX_BASE64)),
                ("small".to_owned(), "AA==".to_owned()),
            ],
            class: FailureClass::Unsigned,
            error: "no".to_owned(),
            attempts: 1,
            first_ms: 1,
            last_ms: 2,
            worker: "w".to_owned(),
            tenant: None,
            run_id: None,
            traceparent: None,
            end: RunEnd::default(),
        }
    }

    #[test]
    fn what_is_kept_of_a_value_is_bounded_and_still_decodes() {
        for size in [0, 1, 2, 3, 2048, 2049, 2050, 100_000] {
            let value = vec![7; size];
            let indexed = IndexedLetter::new(letter(&value), 0, 0);
            assert_eq!(indexed.value_bytes, size as u64);
            let kept = STANDARD
                .decode(indexed.letter.value.as_deref().unwrap())
                .unwrap();
            assert_eq!(kept, value[..size.min(2049)]);
            assert_eq!(indexed.is_cut(), size > 2049);
            assert_eq!(
                indexed.letter.headers,
                [("small".to_owned(), "AA==".to_owned())]
            );
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was_stored() {
        let stored = IndexedLetter::new(letter(b"x"), 3, 4).fields().unwrap();
        let mut fields: HashMap<_, _> =
            stored.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let back = IndexedLetter::from_fields(&fields).unwrap();
        assert_eq!((back.partition, back.offset, back.value_bytes), (3, 4, 1));
        assert_eq!(
            (back.letter.id().as_str(), &back.redriven),
            ("t/0/1", &None)
        );
        let run = RunId::generate();
        fields.insert("redriven".to_owned(), run.to_string());
        fields.insert("redriven_at".to_owned(), "5".to_owned());
        let back = IndexedLetter::from_fields(&fields).unwrap();
        assert_eq!(back.redriven, Some(Redriven { run, at_ms: 5 }));
        assert!(IndexedLetter::from_fields(&HashMap::new()).is_none());
    }

    #[test]
    fn a_cursor_comes_back_as_it_was_given() {
        let cursor = IndexedLetter::new(letter(b"x"), 3, 4).cursor();
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for wrong in ["", "1", "x~t~0~1", "1~t"] {
            assert!(wrong.parse::<LetterCursor>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_letter_fits_what_is_asked_for() {
        let indexed = IndexedLetter::new(letter(b"x"), 3, 4);
        let fits = |change: &dyn Fn(&mut LetterFilter)| {
            let mut filter = LetterFilter::default();
            change(&mut filter);
            indexed.fits(&filter)
        };
        assert!(fits(&|_| {}));
        assert!(fits(&|f| f.class = Some(FailureClass::Unsigned)));
        assert!(!fits(&|f| f.class = Some(FailureClass::Permanent)));
        assert!(!fits(&|f| f.tool = Some("http_fetch".to_owned())));
        assert!(fits(&|f| f.group = Some(indexed.letter.fingerprint())));
        assert!(fits(&|f| (f.since_ms, f.until_ms) = (Some(2), Some(3))));
        assert!(!fits(&|f| f.until_ms = Some(2)));
        assert!(!fits(&|f| f.since_ms = Some(3)));
    }
}
