//! CSV and TSV: a header, and a row per text. Speech recognisers write TSV with a row per segment.

use super::file::{Origin, Visit};
use super::format::Format;
use super::recordings::speaker;
use super::rows::{Row, Rows};
use super::turns::parse_clock;
use super::{ReadOptions, at_line};
use anyhow::{Result, anyhow};
use csv::{ReaderBuilder, StringRecord};
use serde_json::Value;

/// Which column is which.
struct Columns {
    count: usize,
    text: usize,
    domain: Option<usize>,
    speaker: Option<usize>,
    start: Option<usize>,
    /// Milliseconds of a whole number in the column of starts, as Whisper writes them.
    start_unit_ms: f64,
}

/// Reads a table: rows that tell who speaks or when are a talk, others a document each.
///
/// # Errors
/// Where no column has the name of the text's.
pub(super) fn read(origin: Origin, contents: &str, options: &ReadOptions, visit: &mut Visit) -> Result<()> {
    let header = contents.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let delimiter = delimiter(header, origin.recognised.format);
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .quoting(delimiter != b'\t' || !is_unquoted(contents))
        .from_reader(contents.as_bytes());
    let at_error = |error: csv::Error| {
        let line = error.position().map_or(1, |position| position.line());
        at_line(origin.name, line as usize, error)
    };
    let columns = Columns::of(reader.headers().map_err(at_error)?, options, delimiter == b'\t')
        .map_err(|reason| anyhow!("{}:1: {reason}", origin.name))?;
    let mut rows = Rows::new(origin, options);
    rows.decide(columns.speaker.is_some() || columns.start.is_some());
    for record in reader.into_records() {
        let record = record.map_err(at_error)?;
        let line = record.position().map_or(1, |position| position.line() as usize);
        match columns.row(&record, line) {
            Ok(row) => rows.push(row, visit)?,
            Err(reason) => rows.fault(line, reason, visit)?,
        }
    }
    rows.finish(visit)
}

/// What separates the fields, whatever the extension says: tabs, or the semicolons of languages with a decimal comma.
fn delimiter(header: &str, format: Format) -> u8 {
    let count = |separator: char| header.matches(separator).count();
    if count('\t') > 0 || (format == Format::Tsv && count(',') == 0) {
        b'\t'
    } else if count(';') > count(',') {
        b';'
    } else {
        b','
    }
}

/// Whether every line is a row of its own, so that a quotation mark is no more than that: so Whisper writes.
fn is_unquoted(contents: &str) -> bool {
    let mut fields = contents.lines().filter(|line| !line.is_empty()).map(|line| line.matches('\t').count());
    let columns = fields.next();
    fields.all(|count| Some(count) == columns)
}

impl Columns {
    fn of(header: &StringRecord, options: &ReadOptions, is_tsv: bool) -> Result<Self, String> {
        let names: Vec<String> = header.iter().map(|name| unquoted(name.trim()).to_lowercase()).collect();
        let column = |wanted: &str| names.iter().position(|name| *name == wanted.to_lowercase());
        let text = column(&options.text_column).ok_or_else(|| no_column(&options.text_column, &names))?;
        let other = |wanted: &[&str]| wanted.iter().find_map(|name| column(name)).filter(|&found| found != text);
        let end = other(&["end", "end_time", "duration"]);
        Ok(Self {
            count: names.len(),
            text,
            domain: other(&["domain"]),
            speaker: other(&["speaker"]),
            // A lone "start" may count anything.
            start: other(&["start", "start_time"]).filter(|_| end.is_some()),
            start_unit_ms: if is_tsv { 1.0 } else { 1000.0 },
        })
    }

    fn row(&self, record: &StringRecord, line: usize) -> Result<Row, String> {
        if record.len() != self.count {
            let quotes =
                if record.len() > self.count { "; a text with the separator in it must be in quotes" } else { "" };
            return Err(format!("this row has {} fields, the header {}{quotes}", record.len(), self.count));
        }
        let field = |column: Option<usize>| {
            column
                .and_then(|column| record.get(column))
                .map(|field| unquoted(field.trim()))
                .filter(|field| !field.is_empty())
        };
        Ok(Row {
            line,
            source_bytes: record.as_slice().len() + record.len(),
            text: field(Some(self.text)).unwrap_or_default(),
            domain: field(self.domain),
            speaker: field(self.speaker).and_then(|name| speaker(&Value::String(name))),
            start_ms: field(self.start).and_then(|start| self.start_ms(&start)),
        })
    }

    fn start_ms(&self, start: &str) -> Option<u64> {
        let unit_ms = if start.bytes().all(|byte| byte.is_ascii_digit()) { self.start_unit_ms } else { 1000.0 };
        let number = start.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
        number.map(|number| (number * unit_ms) as u64).or_else(|| parse_clock(start))
    }
}

pub(super) fn no_column(wanted: &str, names: &[String]) -> String {
    let names: Vec<String> = names.iter().take(8).map(|name| format!("\"{name}\"")).collect();
    format!(
        "no column \"{wanted}\" in this table, only {}; data.text_column names the column to read",
        names.join(", ")
    )
}

/// The field without the quotes that other programs put around it.
fn unquoted(field: &str) -> String {
    match field.strip_prefix('"').and_then(|field| field.strip_suffix('"')) {
        Some(inside) if !inside.replace("\"\"", "").contains('"') => inside.replace("\"\"", "\""),
        _ => field.to_string(),
    }
}
