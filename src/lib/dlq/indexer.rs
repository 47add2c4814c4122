//! Reads `dead.letter` and indexes each letter for those who look after them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio_util::sync::CancellationToken;

use super::alerts::Alerts;
use super::letter::{self, Author, Failure};
use crate::ids::TenantId;
use crate::kafka::{Ack, Handler, Incoming};
use crate::messages::{self, DeadLetter, FailureClass, Signer};
use crate::privacy::mask::Masker;
use crate::store::{IndexedLetter, Redis};

/// Longest pause between two attempts to reach Redis.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Indexes dead letters.
///
/// A letter that verifies belongs to the tenant that it names, any other to the operator's. What does
/// not verify or decode as a letter is indexed as a letter of its own, about itself: a letter about a
/// letter would go round for ever.
#[derive(Debug)]
pub struct Indexer {
    redis: Redis,
    signer: Signer,
    masker: Arc<Masker>,
    worker: String,
    stopping: CancellationToken,
    alerts: Option<Alerts>,
}

impl Indexer {
    /// An indexer that calls itself `worker` and gives up waiting for Redis once `stopping` is
    /// cancelled.
    pub fn new(
        redis: Redis,
        signer: Signer,
        masker: Arc<Masker>,
        worker: String,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            redis,
            signer,
            masker,
            worker,
            stopping,
            alerts: None,
        }
    }

    /// With alerts about letters that are new.
    pub fn alerting(self, alerts: Option<Alerts>) -> Self {
        Self { alerts, ..self }
    }

    fn read(&self, record: &Incoming) -> DeadLetter {
        let (class, error) = match trusted(record, &self.signer) {
            Ok(letter) => return letter,
            Err(unfit) => unfit,
        };
        self.about(record, class, &error)
    }

    fn about(&self, record: &Incoming, class: FailureClass, error: &str) -> DeadLetter {
        let failure = Failure {
            class,
            error,
            attempts: 1,
        };
        let author = Author {
            worker: &self.worker,
            masker: &self.masker,
        };
        letter::describe(record, failure, author)
    }

    /// Returns whether the letter is in the index; false only when told to stop.
    async fn index(&self, record: &Incoming, letter: DeadLetter) -> bool {
        let tenant = letter.tenant.clone().unwrap_or_else(TenantId::system);
        let indexed = IndexedLetter::new(letter, record.partition, record.offset);
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(LONGEST_DELAY)
            .with_jitter()
            .without_max_times()
            .build();
        let new = loop {
            match self.redis.index_letter(&tenant, &indexed).await {
                Ok(new) => break new,
                Err(error) => tracing::warn!(%error, "the letter was not indexed; trying again"),
            }
            tokio::select! {
                () = self.stopping.cancelled() => return false,
                () = tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)) => {}
            }
        };
        if new {
            if let Some(alerts) = &self.alerts {
                alerts.tell(&tenant, &indexed);
            }
            let letter = &indexed.letter;
            metrics::counter!("agenthub_dlq_indexed_total", "class" => letter.class.as_str())
                .increment(1);
            tracing::warn!(
                id = letter.id(),
                %tenant,
                run_id = letter.run_id.as_ref().map(tracing::field::display),
                class = %letter.class,
                error = letter.error,
                "dead letter indexed"
            );
        }
        true
    }
}

/// The letter that a record holds, when it was signed by one of us.
fn trusted(record: &Incoming, signer: &Signer) -> Result<DeadLetter, (FailureClass, String)> {
    let undecodable = |error: String| (FailureClass::Undecodable, error);
    let Some(value) = &record.value else {
        return Err(undecodable("the record has no value".to_owned()));
    };
    let key = record.key.as_deref().unwrap_or_default();
    signer
        .verify(&record.full_topic, key, &record.headers, value)
        .map_err(|error| (FailureClass::Unsigned, error.to_string()))?;
    messages::read(value).map_err(|error| (error.class(), error.to_string()))
}

#[async_trait]
impl Handler for Indexer {
    async fn handle(&self, record: Arc<Incoming>, ack: Ack) {
        if self.index(&record, self.read(&record)).await {
            ack.done();
        } else {
            // Returning would count as a failed attempt. The consumer ends the task at its deadline.
            std::future::pending::<()>().await;
        }
    }

    async fn poisoned(&self, record: Arc<Incoming>, error: String) {
        let letter = self.about(&record, FailureClass::Panicked, &error);
        if !self.index(&record, letter).await {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;

    use super::*;
    use crate::messages::{Headers, Outgoing, Topic};

    fn signer() -> Signer {
        Signer::parse(&format!("a:{}", STANDARD.encode([7; 32]))).unwrap()
    }

    fn record(value: &str) -> Incoming {
        let outgoing = Outgoing {
            topic: Topic::DeadLetter,
            key: "k".to_owned(),
            ce_id: "t/0/1".to_owned(),
            ce_type: letter::TYPE.to_owned(),
            tenant: TenantId::system(),
            run_id: None,
            not_after_ms: None,
            traceparent: None,
            value: Bytes::from(value.to_owned()),
        };
        let headers = signer().headers("dead.letter", &outgoing, "test", "2026-01-01T00:00:00Z");
        Incoming {
            topic: Topic::DeadLetter,
            full_topic: "dead.letter".into(),
            partition: 0,
            offset: 1,
            timestamp_ms: 0,
            key: Some(Bytes::from_static(b"k")),
            value: Some(outgoing.value),
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Bytes::from(value)))
                .collect(),
            generation: 1,
        }
    }

    const LETTER: &str = r#"{"v":1,"topic":"t","partition":0,"offset":1,"headers":[],
        "class":"unsigned","error":"e","attempts":1,"first_ms":1,"last_ms":2,"worker":"w",
        "tenant":"acme"}"#;

    #[test]
    fn only_a_signed_letter_may_name_its_tenant() {
        let good = trusted(&record(LETTER), &signer()).unwrap();
        assert_eq!(good.tenant, Some("acme".parse().unwrap()));
        let unsigned = Incoming {
            headers: Headers::new(),
            ..record(LETTER)
        };
        let (class, _) = trusted(&unsigned, &signer()).unwrap_err();
        assert_eq!(class, FailureClass::Unsigned);
    }

    #[test]
    fn what_is_no_letter_is_said_to_be_none() {
        for value in ["{}", "", &LETTER.replace("\"v\":1", "\"v\":99")] {
            let (class, _) = trusted(&record(value), &signer()).unwrap_err();
            assert_eq!(class, FailureClass::Undecodable, "{value}");
        }
    }
}
