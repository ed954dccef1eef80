//! Parquet, as Hugging Face data sets come: a table with a column of texts.

use super::ReadOptions;
use super::file::{Origin, Visit};
use super::recordings::speaker;
use super::rows::{Row, Rows};
use super::tables::no_column;
use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::Value;

/// Reads the columns that are needed, and no others: rows with a speaker are a talk, others a document each.
///
/// # Errors
/// Where no column has the name of the text's, or the file is damaged.
pub(super) fn read(origin: Origin, bytes: Vec<u8>, options: &ReadOptions, visit: &mut Visit) -> Result<()> {
    let name = origin.name;
    let damaged = || format!("{name}: this Parquet file cannot be read");
    let reader = SerializedFileReader::new(Bytes::from(bytes)).with_context(damaged)?;
    let schema = reader.metadata().file_metadata().schema();
    let text_column = &*options.text_column;
    let wanted = |field: &Type| [text_column, "domain", "speaker"].contains(&field.name());
    let columns: Vec<_> = schema.get_fields().iter().filter(|field| wanted(field)).cloned().collect();
    let has = |column: &str| columns.iter().any(|field| field.name() == column);
    let names: Vec<String> = schema.get_fields().iter().map(|field| field.name().to_string()).collect();
    ensure!(has(text_column), "{name}: {}", no_column(text_column, &names));
    let mut rows = Rows::new(origin, options);
    rows.decide(text_column != "speaker" && has("speaker"));
    let needed = Type::group_type_builder(schema.name()).with_fields(columns).build().with_context(damaged)?;
    for (index, record) in reader.get_row_iter(Some(needed)).with_context(damaged)?.enumerate() {
        let record = record.map_err(|error| anyhow!("{name}:{}: {error}", index + 1))?;
        match row(record.get_column_iter(), text_column) {
            Ok(row) => rows.push(Row { line: index + 1, source_bytes: row.text.len(), ..row }, visit)?,
            Err(reason) => rows.fault(index + 1, reason, visit)?,
        }
    }
    rows.finish(visit)
}

fn row<'a>(fields: impl Iterator<Item = (&'a String, &'a Field)>, text_column: &str) -> Result<Row, String> {
    let mut row = Row::default();
    for (column, field) in fields {
        let text = match field {
            Field::Null => None,
            Field::Str(text) => Some(text.clone()),
            Field::Int(number) if column != text_column => Some(number.to_string()),
            Field::Long(number) if column != text_column => Some(number.to_string()),
            _ => return Err(format!("\"{column}\" is not text")),
        };
        if column == text_column {
            row.text = text.unwrap_or_default();
        } else if column == "domain" {
            row.domain = text.filter(|domain| !domain.trim().is_empty());
        } else {
            row.speaker = text.and_then(|name| speaker(&Value::String(name)));
        }
    }
    Ok(row)
}
