//! The form of the files: Apache Parquet, compressed with zstd. Pure.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::ids::{KeyId, RunId, SessionId, TenantId};
use crate::messages::{AuditDecision, AuditRecord};

/// The time zone of `ts`.
const UTC: &str = "UTC";

/// One row: a record, its partition and its offset.
pub(super) type Row<'a> = (&'a AuditRecord, i32, i64);

/// The columns. To be added to, never changed: readers join files of all ages.
static SCHEMA: LazyLock<Arc<Schema>> = LazyLock::new(|| {
    let utc = DataType::Timestamp(TimeUnit::Millisecond, Some(UTC.into()));
    let must = |name: &str, kind: DataType| Field::new(name, kind, false);
    let may = |name: &str, kind: DataType| Field::new(name, kind, true);
    let text = || DataType::Utf8;
    let count = || DataType::Int64;
    Arc::new(Schema::new(vec![
        must("ts", utc),
        must("id", text()),
        must("action", text()),
        may("tenant", text()),
        may("key_id", text()),
        may("role", text()),
        may("method", text()),
        may("route", text()),
        may("status", DataType::Int32),
        may("session_id", text()),
        may("run_id", text()),
        may("target", text()),
        may("input_hash", text()),
        must("input_tokens", count()),
        must("output_tokens", count()),
        must("cost_micro_usd", count()),
        must("duration_ms", count()),
        must("decision", text()),
        may("rule", text()),
        may("ip", text()),
        may("trace_id", text()),
        must("partition", DataType::Int32),
        must("offset", count()),
        must("count", count()),
    ]))
});

/// A file with these rows. The same rows give the same bytes.
pub(super) fn encode(rows: &[Row<'_>]) -> Result<Vec<u8>, ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), SCHEMA.clone(), Some(properties))?;
    writer.write(&batch(rows)?)?;
    writer.into_inner()
}

fn batch(rows: &[Row<'_>]) -> Result<RecordBatch, ParquetError> {
    let text = |get: fn(&AuditRecord) -> Option<&str>| -> ArrayRef {
        Arc::new(rows.iter().map(|(r, ..)| get(r)).collect::<StringArray>())
    };
    let count = |get: fn(&AuditRecord) -> u64| -> ArrayRef {
        let counts = rows.iter().map(|(r, ..)| signed(get(r)));
        Arc::new(Int64Array::from_iter_values(counts))
    };
    let times = rows.iter().map(|(r, ..)| signed(r.ts));
    let times = TimestampMillisecondArray::from_iter_values(times).with_timezone(UTC);
    let status = rows.iter().map(|(r, ..)| r.status.map(i32::from));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times),
        text(|r| Some(&r.id)),
        text(|r| Some(&r.action)),
        text(|r| r.tenant.as_ref().map(TenantId::as_str)),
        text(|r| r.key_id.as_ref().map(KeyId::as_str)),
        text(|r| r.role.as_deref()),
        text(|r| r.method.as_deref()),
        text(|r| r.route.as_deref()),
        Arc::new(status.collect::<Int32Array>()),
        text(|r| r.session_id.as_ref().map(SessionId::as_str)),
        text(|r| r.run_id.as_ref().map(RunId::as_str)),
        text(|r| r.target.as_deref()),
        text(|r| r.input_hash.as_deref()),
        count(|r| r.input_tokens),
        count(|r| r.output_tokens),
        count(|r| r.cost_micro_usd),
        count(|r| r.duration_ms),
        text(|r| Some(decision(r.decision))),
        text(|r| r.rule.as_deref()),
        text(|r| r.ip.as_deref()),
        text(|r| r.trace_id.as_deref()),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
        count(|r| r.count),
    ];
    Ok(RecordBatch::try_new(SCHEMA.clone(), columns)?)
}

/// Parquet's readers know signed numbers best; no count comes near their end.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn decision(decision: AuditDecision) -> &'static str {
    match decision {
        AuditDecision::Allowed => "allowed",
        AuditDecision::Refused => "refused",
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType};
    use bytes::Bytes;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    fn record(id: &str, tenant: Option<&str>) -> AuditRecord {
        AuditRecord {
            v: 1,
            id: id.to_owned(),
            ts: 1_770_094_799_999,
            action: "request".to_owned(),
            count: 1,
            tenant: tenant.map(|t| t.parse().unwrap()),
            key_id: None,
            role: Some("client".to_owned()),
            method: None,
            route: None,
            status: Some(429),
            session_id: None,
            run_id: None,
            target: None,
            input_hash: None,
            input_tokens: 3,
            output_tokens: u64::MAX,
            cost_micro_usd: 5,
            call: None,
            settlement: None,
            delta_micro_usd: None,
            month: None,
            ip: None,
            trace_id: None,
            duration_ms: 7,
            decision: AuditDecision::Refused,
            rule: Some("key".to_owned()),
        }
    }

    #[test]
    fn rows_come_back_from_a_file() {
        let (a, b) = (record("a", Some("acme")), record("b", None));
        let rows = [(&a, 2, 10), (&b, 2, 12)];
        let file = encode(&rows).unwrap();
        assert_eq!(file, encode(&rows).unwrap());

        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap();
        let column = reader.metadata().row_group(0).column(1).compression();
        assert!(matches!(column, Compression::ZSTD(_)));
        assert_eq!(reader.schema().fields(), SCHEMA.fields());
        let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
        assert_eq!(batches.len(), 1);
        let column = |name: &str| batches[0].column_by_name(name).unwrap();
        let text = |name: &str, row: usize| {
            let column = column(name).as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        assert_eq!(text("id", 1).as_deref(), Some("b"));
        assert_eq!(
            (text("tenant", 0).as_deref(), text("tenant", 1)),
            (Some("acme"), None)
        );
        assert_eq!(text("decision", 0).as_deref(), Some("refused"));
        assert_eq!(text("rule", 0).as_deref(), Some("key"));
        let ts = column("ts").as_primitive::<TimestampMillisecondType>();
        assert_eq!(ts.value(0), 1_770_094_799_999);
        assert_eq!(column("status").as_primitive::<Int32Type>().value(0), 429);
        let count = |name: &str, row| column(name).as_primitive::<Int64Type>().value(row);
        assert_eq!(
            (count("input_tokens", 0), count("output_tokens", 0)),
            (3, i64::MAX)
        );
        assert_eq!(
            (count("cost_micro_usd", 1), count("duration_ms", 1)),
            (5, 7)
        );
        assert_eq!((count("offset", 0), count("offset", 1)), (10, 12));
    }
}
