//! JSON: recordings, lists of rows, and JSONL, which is a row per line.

use super::file::{Origin, Visit};
use super::recordings::{self, speaker};
use super::rows::{Row, Rows};
use super::{ReadOptions, at_line};
use anyhow::{Result, anyhow, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Deserializer, Error, Map, Value};
use std::borrow::Cow;

/// What the beginning of a file says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One value, which may go on where the beginning ends.
    One { lines: usize },
    /// A value per line.
    Rows,
    /// Something else follows where JSON would go on.
    Broken,
}

/// Whether a file that begins with `head` is JSON.
pub(super) fn shape(head: &str) -> Option<Shape> {
    let inside = head.strip_prefix(['{', '['])?.trim_start();
    let is_object = head.starts_with('{') && inside.starts_with(['"', '}']);
    let is_list = head.starts_with('[') && inside.starts_with(['{', '[', '"', ']']);
    if !is_object && !is_list {
        return None;
    }
    let mended = mended(head);
    let mut values = Deserializer::from_str(&mended).into_iter::<IgnoredAny>();
    let lines = |end: usize| mended[..end].lines().count();
    match values.next()? {
        Ok(_) => {
            let end = values.byte_offset();
            let follows = mended[end..].trim_start();
            Some(if follows.starts_with(['{', '[']) { Shape::Rows } else { Shape::One { lines: lines(end) } })
        }
        Err(error) if error.is_eof() => Some(Shape::One { lines: lines(mended.len()) }),
        // Broken JSON is JSON still, and to be refused as that; prose in brackets is not.
        Err(_) => is_object.then_some(Shape::Broken),
    }
}

/// Reads a JSON file: a recording is a document, a list of texts one for each.
///
/// # Errors
/// They name file and line of broken JSON, and otherwise the field that is not as expected.
pub(super) fn read(origin: Origin, contents: &str, options: &ReadOptions, visit: &mut Visit) -> Result<()> {
    let name = origin.name;
    ensure!(!contents.trim().is_empty(), "{name}: there is no text in this file");
    let value = parse(contents).map_err(|error| located(name, error.line(), &error))?;
    if let Value::Array(list) = &value
        && !list.is_empty()
        && recordings::is_list_of_texts(list, &options.text_column)
    {
        let mut rows = Rows::new(origin, options);
        for (index, value) in list.iter().enumerate() {
            push(&mut rows, value, index + 1, 0, options, visit)?;
        }
        return rows.finish(visit);
    }
    let speech = recordings::speech(&value, options).map_err(|reason| anyhow!("{name}: {reason}"))?;
    ensure!(!speech.text.trim().is_empty(), "{name}: there is no text in this file");
    visit(origin.document(name, origin.domain, speech, contents.len()))
}

/// Adds the rows in lines of JSONL, the first of which is line `first_line` of its file. Blank lines are passed over.
pub(super) fn read_lines(
    rows: &mut Rows,
    contents: &str,
    first_line: usize,
    options: &ReadOptions,
    visit: &mut Visit,
) -> Result<()> {
    for (line, number) in contents.lines().zip(first_line..).filter(|(line, _)| !line.trim().is_empty()) {
        match parse(line) {
            Ok(value) => push(rows, &value, number, line.len(), options, visit)?,
            Err(error) => rows.fault(number, describe(&error), visit)?,
        }
    }
    Ok(())
}

fn push(
    rows: &mut Rows,
    value: &Value,
    line: usize,
    source_bytes: usize,
    options: &ReadOptions,
    visit: &mut Visit,
) -> Result<()> {
    let Value::Object(fields) = value else {
        let reason = format!("this row is {}, not an object with \"{}\"", recordings::kind(value), options.text_column);
        return rows.fault(line, reason, visit);
    };
    if fields.contains_key(&*options.text_column) {
        return match row(fields, options) {
            Ok(row) => rows.push(Row { line, source_bytes: source_bytes.max(row.text.len()), ..row }, visit),
            Err(reason) => rows.fault(line, reason, visit),
        };
    }
    match recordings::speech(value, options) {
        Ok(speech) => {
            let domain = fields.get("domain").and_then(Value::as_str);
            let bytes = source_bytes.max(speech.text.len());
            rows.push_speech(line, domain, speech, bytes, visit)
        }
        Err(_) => {
            let names: Vec<String> = fields.keys().take(6).map(|key| format!("\"{key}\"")).collect();
            let reason = format!(
                "this row has no \"{}\", only {}; data.text_column names the column to read",
                options.text_column,
                names.join(", ")
            );
            rows.fault(line, reason, visit)
        }
    }
}

/// A row with the column of the text.
fn row(fields: &Map<String, Value>, options: &ReadOptions) -> Result<Row, String> {
    let text_of = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("\"{key}\" is {}, not text", recordings::kind(other))),
    };
    let start = ["start", "start_time", "startTime"].iter().find_map(|key| recordings::seconds(fields.get(*key)?));
    Ok(Row {
        text: text_of(&options.text_column)?.unwrap_or_default(),
        domain: text_of("domain")?.filter(|domain| !domain.trim().is_empty()),
        speaker: fields.get("speaker").and_then(speaker),
        // A lone "start" may count anything.
        start_ms: start
            .filter(|_| ["end", "end_time", "endTime", "duration"].iter().any(|key| fields.contains_key(*key))),
        ..Row::default()
    })
}

/// A JSON value; also with what Python and cut-off characters leave in it.
fn parse(text: &str) -> Result<Value, Error> {
    let strict = |text: &str| {
        let mut deserializer = Deserializer::from_str(text);
        let value = Value::deserialize(&mut deserializer)?;
        deserializer.end().map(|()| value)
    };
    strict(text).or_else(|error| match mended(text) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(mended) => strict(&mended),
    })
}

/// `NaN` and `Infinity` become `null`; in strings, half a surrogate pair becomes U+FFFD, and line ends and tabs are
/// escaped.
fn mended(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut copied, mut position, mut in_string) = (0, 0, false);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(position) {
        let (length, replacement): (usize, Option<&str>) = match byte {
            b'"' => {
                in_string = !in_string;
                (1, None)
            }
            b'\\' if in_string => escape(&bytes[position..]),
            b'\n' if in_string => (1, Some("\\n")),
            b'\t' if in_string => (1, Some("\\t")),
            b'N' | b'I' | b'-' | b'n' if !in_string => {
                let word = ["NaN", "-Infinity", "Infinity", "nan", "-NaN"];
                match word.iter().find(|word| bytes[position..].starts_with(word.as_bytes())) {
                    Some(word) => (word.len(), Some("null")),
                    None => (1, None),
                }
            }
            _ => (1, None),
        };
        if let Some(replacement) = replacement {
            out.push_str(&text[copied..position]);
            out.push_str(replacement);
            copied = position + length;
        }
        position += length;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Bytes of the escape that `bytes` start with, and what it is replaced by.
fn escape(bytes: &[u8]) -> (usize, Option<&'static str>) {
    let unit = |at: usize| {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    match (unit(0), unit(6)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, None),
        (Some(0xd800..=0xdfff), _) => (6, Some("\\ufffd")),
        // The byte after a backslash is no quote that ends the string; it may be part of a character, cut off here.
        _ => (if bytes.get(1).is_some_and(u8::is_ascii) { 2 } else { 1 }, None),
    }
}

fn located(name: &str, line: usize, error: &Error) -> anyhow::Error {
    at_line(name, line, describe(error))
}

/// serde_json appends its own position, in which the line of a JSONL file would always be 1.
fn describe(error: &Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    format!("column {}: {}", error.column(), message.strip_suffix(&position).unwrap_or(&message))
}
