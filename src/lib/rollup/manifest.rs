//! What is signed: manifests, which list the files of a range of offsets, and heads, which name the last
//! manifest of a partition. Pure.

use serde::{Deserialize, Serialize};

use super::keys::{AuditSigner, PublicKeys};
use super::signed::{self, Signable, SignedError, VERSION, sha256};

/// Says what became of a range of a partition's offsets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `agenthub.audit.manifest`.
    pub kind: String,
    /// Version of this form.
    pub v: u16,
    /// The name of the key that signs it.
    pub key: String,
    /// The topic, as named on the broker.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// How many manifests of the partition are before it.
    pub sequence: u64,
    /// The first offset of the range: the end of the manifest before, 0 for the first.
    pub start: i64,
    /// The offset after the last one.
    pub end: i64,
    /// SHA-256 of the manifest before, as it is stored; `None` for the first.
    pub previous: Option<String>,
    /// When it was written, in milliseconds since the epoch.
    pub written_ms: u64,
    /// Records of the range that went to the dead letters.
    pub dead_letters: u64,
    /// The files with all the others, by hour and tenant.
    pub files: Vec<ListedFile>,
    /// What the files add up to; `None` when there are none.
    pub totals: Option<ListedTotals>,
}

/// A file that a manifest lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedFile {
    /// Its path in the store.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// How many bytes it has.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// The offset of its first row.
    pub first: i64,
    /// The offset of its last row.
    pub last: i64,
    /// SHA-256 over the rows' own hashes, one after the other.
    pub rows_sha256: String,
}

/// The totals of a manifest's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedTotals {
    /// Their path in the store.
    pub path: String,
    /// SHA-256 of their bytes.
    pub sha256: String,
    /// How many bytes they have.
    pub bytes: u64,
    /// Their lines: one for each hour and tenant.
    pub lines: u64,
}

impl Signable for Manifest {
    const KIND: &'static str = "agenthub.audit.manifest";
}

impl Manifest {
    pub(super) fn kind() -> String {
        Self::KIND.to_owned()
    }

    /// The rows of all files.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }
}

/// Names the last manifest of a partition's chain at a time. Whoever keeps one can show that the chain
/// was cut or written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// `agenthub.audit.head`.
    pub kind: String,
    /// Version of this form.
    pub v: u16,
    /// The name of the key that signs it.
    pub key: String,
    /// The topic, as named on the broker.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The number of the last manifest.
    pub sequence: u64,
    /// Where its range begins, which is its name.
    pub start: i64,
    /// Where its range ends: every offset before it is in the chain.
    pub end: i64,
    /// SHA-256 of the manifest as it is stored.
    pub manifest: String,
    /// When this was said, in milliseconds since the epoch.
    pub at_ms: u64,
}

impl Signable for Head {
    const KIND: &'static str = "agenthub.audit.head";
}

impl Head {
    /// Reads signed heads: one, several in an array, or as the API lists them. Their layout does not
    /// matter.
    pub fn read(text: &[u8], keys: &PublicKeys) -> Result<Vec<Self>, SignedError> {
        let form = |error: serde_json::Error| SignedError::Form(error.to_string());
        let mut value: serde_json::Value = serde_json::from_slice(text).map_err(form)?;
        if value.get("data").is_some() {
            value = value["data"].take();
        }
        let all = match value {
            serde_json::Value::Array(all) => all,
            one => vec![one],
        };
        let open = |one: serde_json::Value| signed::open(one.to_string().as_bytes(), keys, false);
        all.into_iter().map(open).collect()
    }
}

/// The last manifest of a chain: what the next one is joined to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) sequence: u64,
    pub(super) start: i64,
    pub(super) end: i64,
    /// SHA-256 of the manifest as it is stored.
    pub(super) sha256: String,
}

impl Link {
    /// The link that a stored manifest is.
    pub(super) fn of(manifest: &Manifest, stored: &[u8]) -> Self {
        Self {
            topic: manifest.topic.clone(),
            partition: manifest.partition,
            sequence: manifest.sequence,
            start: manifest.start,
            end: manifest.end,
            sha256: sha256(stored),
        }
    }

    /// The signed head that names it.
    pub(super) fn head(
        &self,
        signer: &AuditSigner,
        at_ms: u64,
    ) -> Result<String, serde_json::Error> {
        let head = Head {
            kind: Head::KIND.to_owned(),
            v: VERSION,
            key: signer.id().to_owned(),
            topic: self.topic.clone(),
            partition: self.partition,
            sequence: self.sequence,
            start: self.start,
            end: self.end,
            manifest: self.sha256.clone(),
            at_ms,
        };
        signed::sign(&head, signer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_in_every_form_in_which_they_are_given() {
        let signer = AuditSigner::generate(None).unwrap();
        let link = Link {
            topic: "t".to_owned(),
            partition: 2,
            sequence: 4,
            start: 10,
            end: 20,
            sha256: sha256(b"m"),
        };
        let text = link.head(&signer, 5).unwrap();
        let keys = signer.public();
        let one = Head::read(text.as_bytes(), &keys).unwrap();
        assert_eq!(
            (one[0].partition, one[0].end, one[0].manifest.as_str()),
            (2, 20, &*link.sha256)
        );
        for many in [
            format!("[{text},\n{text}]"),
            format!("{{\"data\":[{text},{text}]}}"),
        ] {
            assert_eq!(Head::read(many.as_bytes(), &keys).unwrap().len(), 2);
        }
        let changed = text.replace("\"end\":20", "\"end\":19");
        assert!(Head::read(changed.as_bytes(), &keys).is_err());
        let other = AuditSigner::generate(None).unwrap().public();
        assert!(matches!(
            Head::read(text.as_bytes(), &other),
            Err(SignedError::UnknownKey(_))
        ));
    }
}
