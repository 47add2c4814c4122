//! The index of dead letters in Redis.
//!
//! `<base>:dlq` is a tenant's index, a sorted set of letter ids by the time at which they were given
//! up; `<base>:dlq:<id>` is the hash of one letter.

use std::collections::HashMap;
use std::sync::LazyLock;

use redis::AsyncCommands;
use serde::Serialize;

use super::{Redis, Script, StoreError};
use crate::ids::TenantId;
use crate::messages::{DeadLetter, FailureClass};

/// Letters that are kept for a tenant; the oldest go first.
pub const MAX_LETTERS: usize = 100_000;
/// Characters of base64 that are kept of a record's key, of its value, and of its headers together;
/// all bytes are in the letter on the topic. A multiple of four, so that what is kept decodes.
const MAX_BASE64: usize = 2732;
/// Ids read in one go.
const PAGE: usize = 200;

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
    /// Bytes that the record's value has.
    pub value_bytes: u64,
    /// The partition of the letter itself on `dead.letter`.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

impl IndexedLetter {
    /// What the index keeps of the letter at this place.
    pub fn new(mut letter: DeadLetter, partition: i32, offset: i64) -> Self {
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
            value_bytes,
            partition,
            offset,
        }
    }

    /// Whether the index has less of the value than the letter on the topic.
    pub fn is_cut(&self) -> bool {
        let kept = self.letter.value.as_deref().unwrap_or_default();
        base64_bytes(kept) < self.value_bytes
    }

    fn fields(&self) -> Result<[(&'static str, String); 5], StoreError> {
        let letter = serde_json::to_string(&self.letter);
        let letter = letter.map_err(|e| StoreError::Failed(e.to_string()))?;
        Ok([
            ("letter", letter),
            ("class", self.letter.class.as_str().to_owned()),
            ("value_bytes", self.value_bytes.to_string()),
            ("partition", self.partition.to_string()),
            ("offset", self.offset.to_string()),
        ])
    }

    /// `None` for an entry that went meanwhile, or was written by a later version.
    fn from_fields(fields: &HashMap<String, String>) -> Option<Self> {
        Some(Self {
            letter: serde_json::from_str(fields.get("letter")?).ok()?,
            value_bytes: fields.get("value_bytes")?.parse().ok()?,
            partition: fields.get("partition")?.parse().ok()?,
            offset: fields.get("offset")?.parse().ok()?,
        })
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
            fields: fields.iter().flat_map(|(k, v)| [*k, v.as_str()]).collect(),
        };
        let new: i64 = self.invoke(&INDEX, tenant, &entry, "{}").await?;
        Ok(new == 1)
    }

    /// The letter with this id.
    pub async fn letter(
        &self,
        tenant: &TenantId,
        id: &str,
    ) -> Result<Option<IndexedLetter>, StoreError> {
        let name = format!("{}:dlq:{id}", self.base(tenant));
        let fields: HashMap<String, String> = self.connection().hgetall(name).await?;
        Ok(IndexedLetter::from_fields(&fields))
    }

    /// A tenant's letters, the latest first, at most `limit`; of one class, where one is given.
    pub async fn letters(
        &self,
        tenant: &TenantId,
        class: Option<FailureClass>,
        limit: usize,
    ) -> Result<Vec<IndexedLetter>, StoreError> {
        let index = format!("{}:dlq", self.base(tenant));
        let mut connection = self.connection();
        let mut letters = Vec::new();
        // Letters that arrive meanwhile push the others down: some may be looked at twice.
        let mut seen = std::collections::HashSet::new();
        for start in (0..MAX_LETTERS).step_by(PAGE) {
            let from = isize::try_from(start).unwrap_or(isize::MAX);
            let to = from.saturating_add_unsigned(PAGE - 1);
            let ids: Vec<String> = connection.zrevrange(&index, from, to).await?;
            if ids.is_empty() {
                break;
            }
            let mut pipe = redis::pipe();
            for id in &ids {
                pipe.hgetall(format!("{index}:{id}"));
            }
            let page: Vec<HashMap<String, String>> = pipe.query_async(&mut connection).await?;
            for (id, fields) in ids.into_iter().zip(page) {
                let wanted = class.is_none_or(|class| {
                    fields.get("class").map(String::as_str) == Some(class.as_str())
                });
                let letter = wanted
                    .then(|| IndexedLetter::from_fields(&fields))
                    .flatten();
                if let Some(letter) = letter.filter(|_| seen.insert(id)) {
                    letters.push(letter);
                }
                if letters.len() == limit {
                    return Ok(letters);
                }
            }
        }
        Ok(letters)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

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
        let fields = stored.map(|(k, v)| (k.to_owned(), v)).into();
        let back = IndexedLetter::from_fields(&fields).unwrap();
        assert_eq!((back.partition, back.offset, back.value_bytes), (3, 4, 1));
        assert_eq!(back.letter.id(), "t/0/1");
        assert!(IndexedLetter::from_fields(&HashMap::new()).is_none());
    }
}
