//! Where records come from: a topic, or a file that an earlier replay wrote.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::kafka::{Extent, KafkaSettings, StoredRecord, TopicReader};
use crate::messages::Topic;
use crate::replay::Saved;

/// The longest line of a file: the largest record of a topic in base64, and some.
const MAX_LINE: u64 = 16 * 1024 * 1024;

/// A record, and where it comes from.
#[derive(Debug)]
pub struct Found {
    /// The topic, when this installation has it.
    pub topic: Option<Topic>,
    /// Its name on the broker.
    pub full_topic: String,
    /// The record.
    pub record: StoredRecord,
}

/// Records, one after the other.
#[derive(Debug)]
pub enum Records {
    /// From a topic.
    Topic(Topic, Box<TopicReader>),
    /// From a file.
    File(Box<Lines>),
}

/// The lines of a file.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    settings: KafkaSettings,
    number: u64,
    read: u64,
    bytes: u64,
}

impl Records {
    /// Those in a part of a topic.
    pub async fn of_topic(
        settings: &KafkaSettings,
        topic: Topic,
        extent: Extent,
    ) -> anyhow::Result<Self> {
        let reader = TopicReader::open(settings, topic, extent).await?;
        Ok(Self::Topic(topic, Box::new(reader)))
    }

    /// Those in a file that a replay wrote.
    pub async fn of_file(settings: KafkaSettings, path: &Path) -> anyhow::Result<Self> {
        let name = || path.display().to_string();
        let file = File::open(path).await.with_context(name)?;
        let bytes = file.metadata().await.with_context(name)?.len();
        Ok(Self::File(Box::new(Lines {
            path: path.to_owned(),
            reader: BufReader::new(file),
            settings,
            number: 0,
            read: 0,
            bytes,
        })))
    }

    /// How much there is, in offsets or bytes.
    pub fn total(&self) -> u64 {
        match self {
            Self::Topic(_, reader) => reader.total(),
            Self::File(lines) => lines.bytes,
        }
    }

    /// How much of it was read.
    pub fn done(&self) -> u64 {
        match self {
            Self::Topic(_, reader) => reader.total().saturating_sub(reader.remaining()),
            Self::File(lines) => lines.read,
        }
    }

    /// The next record; `None` at the end.
    pub async fn next(&mut self) -> anyhow::Result<Option<Found>> {
        match self {
            Self::Topic(topic, reader) => {
                let record = reader.next().await?;
                Ok(record.map(|record| Found {
                    topic: Some(*topic),
                    full_topic: reader.full_topic().to_owned(),
                    record,
                }))
            }
            Self::File(lines) => lines.next().await,
        }
    }
}

impl Lines {
    async fn next(&mut self) -> anyhow::Result<Option<Found>> {
        loop {
            let mut line = Vec::new();
            let limited = &mut (&mut self.reader).take(MAX_LINE);
            let read = limited.read_until(b'\n', &mut line).await;
            let place = format!("{}:{}", self.path.display(), self.number + 1);
            let read = u64::try_from(read.with_context(|| place.clone())?)?;
            if read == 0 {
                return Ok(None);
            }
            if read == MAX_LINE {
                bail!("{place}: longer than any record");
            }
            self.number += 1;
            self.read += read;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let saved = Saved::parse(&line).with_context(|| place.clone())?;
            let ours = |topic: &Topic| self.settings.topic(*topic) == saved.topic;
            return Ok(Some(Found {
                topic: Topic::ALL.into_iter().find(ours),
                record: saved.record().with_context(|| place)?,
                full_topic: saved.topic,
            }));
        }
    }
}
