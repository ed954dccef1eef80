//! From a file on disk, or its bytes, to what its reader makes of it.

use super::cues::UNDECODABLE;
use super::format::{self, Format, Recognised};
use super::sources::Source;
use super::turns::Speech;
use super::{
    Document, Facts, Item, ReadOptions, Skipped, at_line, json, markdown, plain, subtitles, with_unix_newlines,
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
/// A longer line of such a text is cut at a space.
const MAX_LINE_BYTES: usize = 64 << 20;
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
    let origin = Origin { name, domain, recognised: format::recognise(name, &bytes)? };
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
    let origin = Origin { name, domain, recognised: format::recognise(name, head)? };
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
    let (name, source_bytes) = (origin.name, bytes.len());
    let format = origin.recognised.format;
    let is_subtitles = matches!(format, Format::Srt | Format::WebVtt | Format::Sbv | Format::SubStation | Format::Ttml);
    let bytes = if is_subtitles { with_damage_marked(bytes) } else { bytes };
    let contents = decode(bytes, name, 1)?;
    let speech = match origin.recognised.format {
        Format::Jsonl => {
            let documents = json::read_lines(origin, &contents, 1, options, visit)?;
            ensure!(documents > 0, no_text(name));
            return Ok(());
        }
        Format::Json => json::read(name, &contents, options)?,
        Format::Srt | Format::WebVtt | Format::Sbv | Format::SubStation | Format::Ttml => {
            subtitles::read(name, &contents, format, options)?
        }
        Format::Markdown => markdown::read(&contents, options),
        Format::Plain => plain::read(&contents, options),
    };
    for (line, reason) in &speech.skipped {
        visit(origin.skipped(*line, reason, false))?;
    }
    ensure!(!speech.text.trim().is_empty(), no_text(name));
    visit(origin.document(name, origin.domain, speech, source_bytes))
}

fn no_text(name: &str) -> String {
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
    let name = origin.name;
    let (mut part, mut first_line, mut documents) = (1, 1, 0);
    let has_rows = origin.recognised.format == Format::Jsonl;
    while read_part(file, &mut bytes, has_rows, name)? {
        let rest = bytes.split_off(part_end(&bytes, has_rows));
        let (lines, source_bytes) = (bytes.iter().filter(|&&byte| byte == b'\n').count(), bytes.len());
        let contents = decode(bytes, name, first_line)?;
        if has_rows {
            documents += json::read_lines(origin, &contents, first_line, options, visit)?;
        } else {
            let speech = plain::read(&contents, options);
            if !speech.text.trim().is_empty() {
                documents += 1;
                visit(origin.document(&format!("{name} (part {part})"), origin.domain, speech, source_bytes))?;
            }
        }
        (part, first_line, bytes) = (part + 1, first_line + lines, rest);
    }
    ensure!(documents > 0, no_text(name));
    Ok(())
}

/// Fills `bytes` until a line ends after the first [`PART_BYTES`], or the file ends, or enough was read to know that the
/// line is too long to wait for. False if the file ended before.
fn read_part(file: &mut File, bytes: &mut Vec<u8>, has_rows: bool, name: &str) -> Result<bool> {
    let most = if has_rows { MAX_WHOLE_BYTES as usize } else { PART_BYTES + MAX_LINE_BYTES };
    let mut searched = PART_BYTES;
    loop {
        if bytes.len() > searched {
            if bytes[searched..].contains(&b'\n') {
                break;
            }
            searched = bytes.len();
        }
        if bytes.len() > most {
            ensure!(!has_rows, "{name}: a row of more than {MAX_WHOLE_BYTES} bytes");
            break;
        }
        let read = file.by_ref().take(1 << 20).read_to_end(bytes).with_context(|| format!("cannot read {name}"))?;
        if read == 0 {
            break;
        }
    }
    Ok(!bytes.is_empty())
}

/// Where the first part of `bytes` ends: behind a line, in front of a space where no line ends, or else between two
/// characters. The rest of a file is not cut if it is about as large as a part, and a row never is.
fn part_end(bytes: &[u8], has_rows: bool) -> usize {
    let Some(after) = bytes.get(PART_BYTES..) else { return bytes.len() };
    let place = |is: fn(&u8) -> bool| after.iter().position(is).map(|offset| PART_BYTES + offset);
    let line_end = place(|&byte| byte == b'\n').map(|line_end| line_end + 1);
    if line_end.is_some() || has_rows || bytes.len() <= 2 * PART_BYTES {
        return line_end.unwrap_or(bytes.len());
    }
    let is_character_start = |byte: &u8| byte & 0xc0 != 0x80;
    place(|&byte| byte == b' ').or_else(|| place(is_character_start)).unwrap_or(bytes.len())
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
