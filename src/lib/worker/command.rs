//! What a received record asks for, if it may ask for anything.

use crate::kafka::Incoming;
use crate::messages::{self, Command, CommandKind, FailureClass, Signer, header};
use crate::runtime::clock;

/// What came of a record.
pub(super) enum Received {
    /// A verified command for this worker.
    Command(Box<Command>),
    /// A verified command whose time is over.
    Expired,
    /// Nothing that a worker may act on.
    Unfit(FailureClass, String),
}

/// Verifies, then decodes: nothing of an unverified record is looked at but its signature.
pub(super) fn receive(record: &Incoming, signer: &Signer, stage: CommandKind) -> Received {
    let unfit = |class, error: String| Received::Unfit(class, error);
    let Some(value) = &record.value else {
        return unfit(
            FailureClass::Undecodable,
            "the record has no value".to_owned(),
        );
    };
    let key = record.key.as_deref().unwrap_or_default();
    if let Err(error) = signer.verify(&record.full_topic, key, &record.headers, value) {
        return unfit(FailureClass::Unsigned, error.to_string());
    }
    let command: Command = match messages::read(value) {
        Ok(command) => command,
        Err(error) => return unfit(error.class(), error.to_string()),
    };
    if command.kind != stage {
        return unfit(
            FailureClass::Undecodable,
            format!("a {} command", command.kind.as_str()),
        );
    }
    let spec = &command.spec;
    let fits = key == spec.run_id.as_str().as_bytes()
        && record.header(header::TENANT) == Some(spec.tenant.as_str())
        && record.header(header::CE_SUBJECT) == Some(spec.run_id.as_str());
    if !fits {
        return unfit(
            FailureClass::Undecodable,
            "key, headers and value name different runs".to_owned(),
        );
    }
    let now = clock::now_ms();
    // Long past its time: even the ledger may have forgotten the run. Within a day of it the ledger
    // decides, by its own clock.
    if spec.deadline_ms.saturating_add(86_400_000) < now {
        return Received::Expired;
    }
    Received::Command(Box::new(command))
}
