//! From a file on disk, or its bytes, to what its reader makes of it.

use super::cues::UNDECODABLE;
use super::format::{Format, Recognised};
use super::recognise::recognise;
use super::rows::Rows;
use super::sources::Source;
use super::turns::Speech;
use super::{
    Document, Facts, Item, ReadOptions, Skipped, at_line, json, markdown, plain, subtitles, tables, with_unix_newlines,
};
use anyhow::{Context, Result, ensure};
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;

/// Takes what a file brings.
pub(super) type Visit<'a> = dyn FnMut(Item) -> Result<()> + 'a;

/// Larger files of the formats that are read whole are refused.
pub(super) const MAX_WHOLE_BYTES: u64 = 1 << 30;
/// Plain text and JSONL of more than this are read in parts of about as much, cut at a line, each a document (or, of
/// JSONL, several) of its own.
pub(super) const PART_BYTES: usize = 16 << 20;
/// A longer line of plain text is cut.
const MAX_LINE_BYTES: usize = 64 << 20;
/// As much is read at once of a file in parts.
const READ_BYTES: usize = 1 << 20;
/// As much of a file tells its format.
const HEAD_BYTES: u64 = 64 << 10;

/// The file that is being read, and what it was recognised as.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    pub name: &'a str,
    pub domain: &'a str,
    pub recognised: Recognised,
}

impl Origin<'_> {
    /// The document that `speech` is; `name` and `domain` are the file's, or a row's.
    pub fn document(&self, name: &str, domain: &str, speech: Speech, source_bytes: usize) -> Item {
        let Speech { text, speakers, turns, variety, .. } = speech;
        let Recognised { format, by } = self.recognised;
        let facts = Facts { format, variety, recognised_by: by, speakers, turns, source_bytes };
        Item::Document(Document { name: name.to_owned(), domain: domain.to_owned(), text, facts })
    }

    pub fn skipped(&self, line: usize, reason: impl ToString, is_empty: bool) -> Item {
        Item::Skipped(Skipped { place: format!("{}:{line}", self.name), reason: reason.to_string(), is_empty })
    }
}

/// Reads a file. An error is about the whole file; single rows that cannot be read are handed over as skipped.
pub(super) fn read(source: &Source, options: &ReadOptions, visit: &mut Visit) -> Result<()> {
    let Source { path, name, domain, .. } = source;
    let unreadable = || format!("cannot read {name}");
    let mut file = File::open(path).with_context(unreadable)?;
    let metadata = file.metadata().with_context(unreadable)?;
    ensure!(metadata.is_file(), "{name}: not a regular file");
    let mut bytes = Vec::new();
    file.by_ref().take(HEAD_BYTES).read_to_end(&mut bytes).with_context(unreadable)?;
    let origin = Origin { name, domain, recognised: recognise(name, &bytes, &options.text_column)? };
    if is_read_in_parts(origin.recognised.format) && metadata.len() > PART_BYTES as u64 {
        return read_parts(&mut file, bytes, origin, options, visit);
    }
    ensure!(
        metadata.len() <= MAX_WHOLE_BYTES,
        "{name}: {} bytes are too many, the limit for this format is {MAX_WHOLE_BYTES}; split the file",
        metadata.len()
    );
    // No more than expected, should the file grow meanwhile.
    let rest = metadata.len().saturating_sub(bytes.len() as u64);
    file.take(rest).read_to_end(&mut bytes).with_context(unreadable)?;
    read_whole(bytes, origin, options, visit)
}

/// The documents in a file's bytes, without what is skipped.
///
/// # Errors
/// Where the bytes are not of a known format, or not well-formed, or hold no text.
pub fn parse(name: &str, domain: &str, bytes: Vec<u8>, options: &ReadOptions) -> Result<Vec<Document>> {
    let head = &bytes[..bytes.len().min(HEAD_BYTES as usize)];
    let origin = Origin { name, domain, recognised: recognise(name, head, &options.text_column)? };
    let mut documents = Vec::new();
    read_whole(bytes, origin, options, &mut |item| {
        documents.extend(match item {
            Item::Document(document) => Some(document),
            Item::Skipped(_) => None,
        });
        Ok(())
    })?;
    Ok(documents)
}

fn read_whole(bytes: Vec<u8>, origin: Origin, options: &ReadOptions, visit: &mut Visit) -> Result<()> {
    let Origin { name, domain, recognised: Recognised { format, .. } } = origin;
    let source_bytes = bytes.len();
    let is_subtitles = matches!(format, Format::Srt | Format::WebVtt | Format::Sbv | Format::SubStation | Format::Ttml);
    if format == Format::Parquet {
        #[cfg(feature = "parquet")]
        return super::parquet::read(origin, bytes, options, visit);
        #[cfg(not(feature = "parquet"))]
        anyhow::bail!("{name}: this program was built without its feature \"parquet\"");
    }
    let bytes = if is_subtitles { with_damage_marked(bytes) } else { bytes };
    let contents = decode(bytes, name, 1)?;
    match format {
        Format::Parquet => Ok(()),
        Format::Csv | Format::Tsv => tables::read(origin, &contents, options, visit),
        Format::Json => json::read(origin, &contents, options, visit),
        Format::Jsonl => {
            let mut rows = Rows::new(origin, options);
            json::read_lines(&mut rows, &contents, 1, options, visit)?;
            rows.finish(visit)
        }
        Format::Srt | Format::WebVtt | Format::Sbv | Format::SubStation | Format::Ttml => {
            let speech = subtitles::read(name, &contents, format, options)?;
            for (line, reason) in &speech.skipped {
                visit(origin.skipped(*line, reason, false))?;
            }
            ensure!(!speech.text.trim().is_empty(), no_text(name));
            visit(origin.document(name, domain, speech, source_bytes))
        }
        Format::Markdown | Format::Plain => {
            let mut texts = Texts { origin, options, documents: 0, is_part: false };
            texts.read(&contents, source_bytes, visit)?;
            texts.finish()
        }
    }
}

/// The documents in plain text or Markdown, as it comes.
struct Texts<'a> {
    origin: Origin<'a>,
    options: &'a ReadOptions,
    documents: usize,
    /// There is more in the file than one call of [`Self::read`] gets.
    is_part: bool,
}

impl Texts<'_> {
    fn read(&mut self, contents: &str, source_bytes: usize, visit: &mut Visit) -> Result<()> {
        let Origin { name, domain, recognised } = self.origin;
        let texts: Vec<&str> = plain::documents(contents).collect();
        for text in &texts {
            let speech = match recognised.format {
                Format::Markdown => markdown::read(text, self.options),
                _ => plain::read(text, self.options),
            };
            if speech.text.trim().is_empty() {
                continue;
            }
            self.documents += 1;
            let is_whole = texts.len() == 1 && !self.is_part;
            let name = if is_whole { name.to_string() } else { format!("{name} (part {})", self.documents) };
            let bytes = if texts.len() == 1 { source_bytes } else { text.len() };
            visit(self.origin.document(&name, domain, speech, bytes))?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        ensure!(self.documents > 0, no_text(self.origin.name));
        Ok(())
    }
}

pub(super) fn no_text(name: &str) -> String {
    format!("{name}: there is no text in this file")
}

fn is_read_in_parts(format: Format) -> bool {
    matches!(format, Format::Plain | Format::Jsonl)
}

/// Reads a large file, of which `bytes` are the first, in parts.
fn read_parts(
    file: &mut File,
    mut bytes: Vec<u8>,
    origin: Origin,
    options: &ReadOptions,
    visit: &mut Visit,
) -> Result<()> {
    let is_jsonl = origin.recognised.format == Format::Jsonl;
    // A row cannot be cut, a line of plain text can.
    let max_line_bytes = if is_jsonl { MAX_WHOLE_BYTES as usize } else { MAX_LINE_BYTES };
    let mut rows = Rows::new(origin, options);
    let mut texts = Texts { origin, options, documents: 0, is_part: true };
    let (mut first_line, mut is_in_line) = (1, false);
    loop {
        let end = fill_part(file, &mut bytes, if is_in_line { 0 } else { max_line_bytes }, origin.name)?;
        if bytes.is_empty() {
            break;
        }
        let rest = bytes.split_off(end);
        ensure!(
            !is_jsonl || rest.is_empty() || bytes.ends_with(b"\n"),
            "{}:{first_line}: a row of more than {max_line_bytes} bytes; is this JSONL?",
            origin.name
        );
        is_in_line = !rest.is_empty() && !bytes.ends_with(b"\n");
        let (lines, source_bytes) = (bytes.iter().filter(|&&byte| byte == b'\n').count(), bytes.len());
        let contents = decode(bytes, origin.name, first_line)?;
        if is_jsonl {
            json::read_lines(&mut rows, &contents, first_line, options, visit)?;
        } else {
            texts.read(&contents, source_bytes, visit)?;
        }
        (first_line, bytes) = (first_line + lines, rest);
    }
    if is_jsonl { rows.finish(visit) } else { texts.finish() }
}

/// Fills `bytes` until there is a whole line after the first [`PART_BYTES`], or the file ends, or the line is too long:
/// one that is cut already (0) in any case. Returns where the part ends: after that line, with the file, or in the line.
fn fill_part(file: &mut File, bytes: &mut Vec<u8>, max_line_bytes: usize, name: &str) -> Result<usize> {
    let mut searched = PART_BYTES;
    loop {
        if let Some(line_end) = bytes.get(searched..).and_then(|rest| rest.iter().position(|&byte| byte == b'\n')) {
            return Ok(searched + line_end + 1);
        }
        if bytes.len() > PART_BYTES + max_line_bytes.max(READ_BYTES) {
            return Ok(cut_in_line(bytes));
        }
        searched = bytes.len().max(PART_BYTES);
        let read =
            file.by_ref().take(READ_BYTES as u64).read_to_end(bytes).with_context(|| format!("cannot read {name}"))?;
        if read == 0 {
            return Ok(if max_line_bytes == 0 { cut_in_line(bytes) } else { bytes.len() });
        }
    }
}

/// Where a part that has no line end is cut: after a blank, or else between characters.
fn cut_in_line(bytes: &[u8]) -> usize {
    let Some(rest) = bytes.get(PART_BYTES..) else { return bytes.len() };
    let blank = rest.iter().position(|&byte| byte == b' ').map(|blank| blank + 1);
    let character = || rest.iter().position(|&byte| byte & 0xc0 != 0x80);
    blank.or_else(character).map_or(bytes.len(), |offset| PART_BYTES + offset)
}

/// Speech recognisers cut characters of several bytes between two cues. If only that little of the bytes is not UTF-8,
/// [`UNDECODABLE`] takes its place, and the cues with it are skipped; otherwise [`decode`] finds it.
fn with_damage_marked(bytes: Vec<u8>) -> Vec<u8> {
    const MAX_DAMAGED: usize = 3;
    const MAX_DAMAGED_SHARE: usize = 200;
    let damaged = bytes.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count();
    // UTF-16 begins with two bytes that no UTF-8 has; `decode` tells it.
    if damaged == 0
        || bytes.starts_with(b"\xff\xfe")
        || bytes.starts_with(b"\xfe\xff")
        || (damaged > MAX_DAMAGED && damaged * MAX_DAMAGED_SHARE > bytes.len())
    {
        return bytes;
    }
    let mut marked = String::with_capacity(bytes.len() + damaged * UNDECODABLE.len_utf8());
    for chunk in bytes.utf8_chunks() {
        marked.push_str(chunk.valid());
        marked.extend((!chunk.invalid().is_empty()).then_some(UNDECODABLE));
    }
    marked.into_bytes()
}

/// UTF-8 without a byte-order mark, its lines ending in `\n`. The first line has the number `first_line` in the file.
pub(super) fn decode(bytes: Vec<u8>, name: &str, first_line: usize) -> Result<String> {
    let line_of = |offset: usize| first_line + bytes[..offset].iter().filter(|&&byte| byte == b'\n').count();
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(at_line(name, 1, "this is UTF-16; save the file as UTF-8"));
    }
    if let Some(offset) = bytes.iter().position(|&byte| byte == 0) {
        let message = format!("a NUL byte at offset {offset}: this looks like a binary file, not a transcript");
        return Err(at_line(name, line_of(offset), message));
    }
    if let Err(error) = std::str::from_utf8(&bytes) {
        let offset = error.valid_up_to();
        let message =
            format!("not valid UTF-8: byte 0x{:02x} at offset {offset}; save the file as UTF-8", bytes[offset]);
        return Err(at_line(name, line_of(offset), message));
    }
    let text = String::from_utf8(bytes)?;
    match with_unix_newlines(text.strip_prefix('\u{feff}').unwrap_or(&text)) {
        Cow::Borrowed(unchanged) if unchanged.len() == text.len() => Ok(text),
        changed => Ok(changed.into_owned()),
    }
}
