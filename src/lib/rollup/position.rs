//! Where a partition, its group and its chain of manifests are, and whether that fits together.

use super::writer::RollupError;
use crate::kafka::KafkaSettings;
use crate::kafka::admin::{Admin, AdminError};
use crate::kafka::catalogue::Catalogue;
use crate::messages::Topic;

/// Where a partition and its group are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    /// The earliest offset that retention has left.
    start: i64,
    /// The offset that the next record gets.
    pub(super) end: i64,
    /// Where the group goes on, if it ever committed.
    pub(super) committed: Option<i64>,
}

/// Whether a roll-up may go on that has written everything before `next`.
pub(super) fn check(partition: i32, next: i64, position: Position) -> Result<(), RollupError> {
    if position.end < next {
        return Err(RollupError::Beyond {
            partition,
            end: position.end,
            written: next,
        });
    }
    // What retention has removed cannot be written any more, whatever the offset.
    let first = next.max(position.start);
    match position.committed {
        Some(committed) if committed > first => Err(RollupError::Ahead {
            partition,
            committed,
            written: next,
        }),
        _ => Ok(()),
    }
}

/// Asks the brokers where partitions and the group are.
pub(super) struct Positions {
    admin: Admin,
    catalogue: Catalogue,
}

impl std::fmt::Debug for Positions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Positions").finish_non_exhaustive()
    }
}

/// Why the brokers could not be asked; it passes by.
#[derive(Debug, thiserror::Error)]
pub(super) enum PositionError {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("the brokers do not know the partition")]
    Unknown,
}

impl Positions {
    /// `group` is without the namespace.
    pub(super) fn new(kafka: &KafkaSettings, group: &str) -> Result<Self, RollupError> {
        let mut catalogue = Catalogue::embedded(false)?;
        catalogue
            .topics
            .retain(|spec| spec.topic == Topic::AuditLogs);
        for spec in &mut catalogue.topics {
            spec.consumers = vec![group.to_owned()];
        }
        let admin = Admin::new(kafka)?;
        Ok(Self { admin, catalogue })
    }

    pub(super) async fn of(&self, partition: i32) -> Result<Position, PositionError> {
        let cluster = self.admin.describe(&self.catalogue).await?;
        let topic = cluster.topics.first().ok_or(PositionError::Unknown)?;
        let mut partitions = topic.partitions.iter();
        let at = partitions.position(|p| p.partition == partition);
        let at = at.ok_or(PositionError::Unknown)?;
        let committed = topic.groups.first().and_then(|g| *g.committed.get(at)?);
        let (start, end) = (topic.partitions[at].start, topic.partitions[at].end);
        Ok(Position {
            start,
            end,
            committed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_or_a_topic_made_anew_is_refused_and_retention_is_not() {
        let position = |start, end, committed| Position {
            start,
            end,
            committed,
        };
        let fine = |next, at| check(0, next, at).is_ok();
        assert!(fine(0, position(0, 0, None)));
        assert!(fine(10, position(0, 20, Some(10))));
        assert!(fine(10, position(0, 20, Some(5))));
        assert!(fine(10, position(0, 20, None)));
        // Retention removed what was not written: nothing can be done about it.
        assert!(fine(10, position(15, 20, Some(15))));
        let ahead = check(0, 10, position(0, 20, Some(11)));
        assert!(matches!(ahead, Err(RollupError::Ahead { .. })));
        let ahead = check(0, 10, position(15, 20, Some(16)));
        assert!(matches!(ahead, Err(RollupError::Ahead { .. })));
        let beyond = check(0, 10, position(0, 9, None));
        assert!(matches!(beyond, Err(RollupError::Beyond { .. })));
    }
}
