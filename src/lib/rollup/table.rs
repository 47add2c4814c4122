//! Rows as they come from a file, whatever its columns, and the hash of a row. Pure.

use arrow::array::{
    Array, AsArray, Int32Array, Int64Array, StringArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use sha2::{Digest, Sha256};

/// The column with the hash of the row's other columns.
pub(super) const ROW_HASH: &str = "row_hash";

/// One value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell<'a> {
    /// There is none.
    Null,
    /// A text.
    Text(&'a str),
    /// A whole number.
    Int(i64),
    /// Milliseconds since the epoch.
    Time(i64),
}

#[derive(Debug)]
enum Column<'a> {
    Text(&'a StringArray),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Time(&'a TimestampMillisecondArray),
}

/// A batch of rows with columns of the kinds that audit files have.
#[derive(Debug)]
pub(super) struct Table<'a> {
    columns: Vec<(&'a str, Column<'a>)>,
    rows: usize,
}

impl<'a> Table<'a> {
    /// `Err` names a column of another kind.
    pub(super) fn new(batch: &'a RecordBatch) -> Result<Self, String> {
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let column = match array.data_type() {
                DataType::Utf8 => Column::Text(array.as_string()),
                DataType::Int32 => Column::Int32(array.as_primitive::<Int32Type>()),
                DataType::Int64 => Column::Int64(array.as_primitive::<Int64Type>()),
                DataType::Timestamp(TimeUnit::Millisecond, _) => {
                    Column::Time(array.as_primitive::<TimestampMillisecondType>())
                }
                kind => return Err(format!("the column {} is of the kind {kind}", field.name())),
            };
            columns.push((field.name().as_str(), column));
        }
        Ok(Self {
            columns,
            rows: batch.num_rows(),
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The row's values with the names of their columns, in the file's order.
    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = (&'a str, Cell<'a>)> {
        self.columns
            .iter()
            .map(move |(name, column)| (*name, column.cell(row)))
    }

    /// One value; null where there is no such column.
    pub(super) fn cell(&self, row: usize, name: &str) -> Cell<'a> {
        let found = self.columns.iter().find(|(column, _)| *column == name);
        found.map_or(Cell::Null, |(_, column)| column.cell(row))
    }

    pub(super) fn text(&self, row: usize, name: &str) -> Option<&'a str> {
        match self.cell(row, name) {
            Cell::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, row: usize, name: &str) -> Option<i64> {
        match self.cell(row, name) {
            Cell::Int(number) | Cell::Time(number) => Some(number),
            _ => None,
        }
    }

    /// SHA-256 over the row's values but its hash: for each that is not null, in the order of the
    /// columns, its column's name, its kind, its length and its bytes. So columns can be added without
    /// changing the hashes of rows that have nothing in them.
    pub(super) fn hash(&self, row: usize, buffer: &mut Vec<u8>) -> [u8; 32] {
        buffer.clear();
        let mut put = |name: &str, kind: u8, bytes: &[u8]| {
            buffer.extend_from_slice(name.as_bytes());
            buffer.extend_from_slice(&[0, kind]);
            buffer.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            buffer.extend_from_slice(bytes);
        };
        for (name, cell) in self.row(row).filter(|(name, _)| *name != ROW_HASH) {
            match cell {
                Cell::Null => {}
                Cell::Text(text) => put(name, b't', text.as_bytes()),
                Cell::Int(number) => put(name, b'i', &number.to_le_bytes()),
                Cell::Time(ms) => put(name, b'm', &ms.to_le_bytes()),
            }
        }
        Sha256::digest(buffer.as_slice()).into()
    }
}

impl<'a> Column<'a> {
    fn cell(&self, row: usize) -> Cell<'a> {
        let is_null = match self {
            Self::Text(array) => array.is_null(row),
            Self::Int32(array) => array.is_null(row),
            Self::Int64(array) => array.is_null(row),
            Self::Time(array) => array.is_null(row),
        };
        if is_null {
            return Cell::Null;
        }
        match *self {
            Self::Text(array) => Cell::Text(array.value(row)),
            Self::Int32(array) => Cell::Int(i64::from(array.value(row))),
            Self::Int64(array) => Cell::Int(array.value(row)),
            Self::Time(array) => Cell::Time(array.value(row)),
        }
    }
}

/// The hash of several rows, from their own.
#[derive(Debug, Default)]
pub(super) struct RowsHash(Sha256);

impl RowsHash {
    pub(super) fn add(&mut self, row: &[u8; 32]) {
        self.0.update(row);
    }

    pub(super) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}
