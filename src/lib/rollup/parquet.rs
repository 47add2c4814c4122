//! The form of the files: Apache Parquet, compressed with zstd. Pure.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::row::Row;
use super::table::{ROW_HASH, RowsHash, Table};
use crate::ids::{KeyId, RunId, SessionId, TenantId};
use crate::messages::{AuditDecision, AuditRecord};

/// The time zone of `ts`.
const UTC: &str = "UTC";

/// One row: a record, its partition and its offset.
pub(super) type Placed<'a> = (&'a Row, i32, i64);

/// The columns. To be added to, never changed: readers join files of all ages, and the rows' hashes
/// are over them in this order. What a record may lack is null; what a later version adds to records
/// is in `extra` until it has a column.
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
        may("input_tokens", count()),
        may("output_tokens", count()),
        may("cost_micro_usd", count()),
        may("call", text()),
        may("settlement", text()),
        may("delta_micro_usd", count()),
        may("month", text()),
        may("duration_ms", count()),
        must("decision", text()),
        may("rule", text()),
        may("ip", text()),
        may("trace_id", text()),
        may("extra", text()),
        must("partition", DataType::Int32),
        must("offset", count()),
        must("count", count()),
        must(ROW_HASH, text()),
    ]))
});

/// Whether a record's field has a column of its own.
pub(super) fn has_column(field: &str) -> bool {
    SCHEMA.field_with_name(field).is_ok()
}

/// The names of the columns, in their order.
pub(super) fn columns() -> Vec<&'static str> {
    SCHEMA
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect()
}

/// A file's bytes, and the hash of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) content: Vec<u8>,
    pub(super) rows_sha256: String,
}

/// A file with these rows. The same rows give the same bytes, by the same version of the library.
pub(super) fn encode(rows: &[Placed<'_>]) -> Result<Encoded, ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), SCHEMA.clone(), Some(properties))?;
    let (batch, rows_sha256) = with_hashes(columns_of(rows), rows.len())?;
    writer.write(&batch)?;
    Ok(Encoded {
        content: writer.into_inner()?,
        rows_sha256,
    })
}

/// The rows of a file.
pub(super) fn decode(content: Bytes) -> Result<Vec<RecordBatch>, ParquetError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(content)?.build()?;
    Ok(reader.collect::<Result<_, _>>()?)
}

/// Joins the columns and the hashes of their rows.
fn with_hashes(
    mut columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<(RecordBatch, String), ParquetError> {
    let fields = SCHEMA
        .fields()
        .iter()
        .filter(|field| field.name() != ROW_HASH);
    let bare = Arc::new(Schema::new(fields.cloned().collect::<Vec<_>>()));
    let bare = RecordBatch::try_new(bare, columns.clone())?;
    let table = Table::new(&bare).map_err(ParquetError::General)?;
    let (mut all, mut buffer) = (RowsHash::default(), Vec::new());
    let mut hashes = Vec::with_capacity(rows);
    for row in 0..table.rows() {
        let hash = table.hash(row, &mut buffer);
        all.add(&hash);
        hashes.push(hex::encode(hash));
    }
    columns.push(Arc::new(StringArray::from(hashes)));
    Ok((RecordBatch::try_new(SCHEMA.clone(), columns)?, all.finish()))
}

/// Every column but the last, which has the hashes.
fn columns_of(rows: &[Placed<'_>]) -> Vec<ArrayRef> {
    let text = |get: fn(&AuditRecord) -> Option<&str>| -> ArrayRef {
        Arc::new(
            rows.iter()
                .map(|(r, ..)| get(&r.audit))
                .collect::<StringArray>(),
        )
    };
    let count = |get: fn(&AuditRecord) -> u64| -> ArrayRef {
        let counts = rows.iter().map(|(r, ..)| signed(get(&r.audit)));
        Arc::new(Int64Array::from_iter_values(counts))
    };
    let times = rows.iter().map(|(r, ..)| signed(r.audit.ts));
    let times = TimestampMillisecondArray::from_iter_values(times).with_timezone(UTC);
    let status = rows.iter().map(|(r, ..)| r.audit.status.map(i32::from));
    let deltas = rows.iter().map(|(r, ..)| r.audit.delta_micro_usd);
    let extra = rows.iter().map(|(r, ..)| r.extra.as_deref());
    vec![
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
        text(|r| r.call.as_deref()),
        text(|r| r.settlement.as_deref()),
        Arc::new(deltas.collect::<Int64Array>()),
        text(|r| r.month.as_deref()),
        count(|r| r.duration_ms),
        text(|r| Some(decision(r.decision))),
        text(|r| r.rule.as_deref()),
        text(|r| r.ip.as_deref()),
        text(|r| r.trace_id.as_deref()),
        Arc::new(extra.collect::<StringArray>()),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
        count(|r| r.count),
    ]
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

    use super::*;

    fn record(id: &str, tenant: Option<&str>) -> Row {
        let audit = serde_json::json!({
            "v": 1, "id": id, "ts": 1_770_094_799_999_u64, "action": "request", "tenant": tenant, "role": "client",
            "status": 429, "input_tokens": 3, "output_tokens": u64::MAX, "cost_micro_usd": 5,
            "delta_micro_usd": -5, "duration_ms": 7, "decision": "refused", "rule": "key",
        });
        let audit = serde_json::from_value(audit).unwrap();
        let extra = Some(r#"{"later":1}"#.to_owned()).filter(|_| tenant.is_some());
        Row { audit, extra }
    }

    #[test]
    fn rows_come_back_from_a_file() {
        let (a, b) = (record("a", Some("acme")), record("b", None));
        let rows = [(&a, 2, 10), (&b, 2, 12)];
        let file = encode(&rows).unwrap();
        assert_eq!(file, encode(&rows).unwrap());

        let content = Bytes::from(file.content);
        let reader = ParquetRecordBatchReaderBuilder::try_new(content.clone()).unwrap();
        let column = reader.metadata().row_group(0).column(1).compression();
        assert!(matches!(column, Compression::ZSTD(_)));
        assert_eq!(reader.schema().fields(), SCHEMA.fields());
        let batches = decode(content).unwrap();
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
        assert_eq!(
            (text("extra", 0).as_deref(), text("extra", 1)),
            (Some(r#"{"later":1}"#), None)
        );
        // The hashes can be computed from what is in the file.
        let table = Table::new(&batches[0]).unwrap();
        let (mut all, mut buffer) = (RowsHash::default(), Vec::new());
        for row in 0..2 {
            let hash = table.hash(row, &mut buffer);
            assert_eq!(text(ROW_HASH, row).unwrap(), hex::encode(hash));
            all.add(&hash);
        }
        assert_eq!(all.finish(), file.rows_sha256);
    }

    #[test]
    fn a_row_of_other_content_has_another_hash() {
        let hash = |row: &Row, offset| encode(&[(row, 2, offset)]).unwrap().rows_sha256;
        let row = record("a", Some("acme"));
        let mut others = vec![
            record("b", Some("acme")),
            record("a", None),
            record("a", Some("acm")),
        ];
        // What moves from one column to the next is a change too.
        let mut moved = record("a", Some("acme"));
        moved.audit.trace_id = moved.extra.take();
        others.push(moved);
        let mut hashes: Vec<String> = others.iter().map(|row| hash(row, 10)).collect();
        hashes.extend([hash(&row, 10), hash(&row, 11)]);
        let count = hashes.len();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }
}
