//! What a file is: told by its contents where they speak clearly, else by its extension.

use super::format::{Format, Recognised, RecognisedBy};
use super::times::{cue_times, sbv_times};
use super::{json, sources};
use anyhow::{Result, bail};
use std::path::Path;

/// Lines at the beginning of a file that tell whether it holds cues.
const CUE_LINES: usize = 200;

/// What begins a file that is no text, what it is, and what to do.
const BINARY: [(&[u8], &str); 8] = [
    (b"%PDF-", "a PDF file; save its text as .txt"),
    (b"PK\x03\x04", "a zip archive or an Office document (.docx, .odt, .epub); unpack it, or save its text as .txt"),
    (b"\xd0\xcf\x11\xe0", "an old Office document (.doc); save its text as .txt"),
    (b"\x1f\x8b", "compressed (gzip); unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd); unpack it"),
    (b"ARROW1", "an Arrow file; save the table as Parquet or JSONL"),
    (b"Obj\x01", "an Avro file; save the table as Parquet or JSONL"),
    (b"SQLite format 3", "a database; save the text as JSONL or CSV"),
];

/// How a text of a format begins that is not read, what it is, and what to do. In lower case.
const FOREIGN: [(&str, &str); 8] = [
    ("{\\rtf", "an RTF document; save its text as .txt"),
    ("<!doctype html", HTML),
    ("<html", HTML),
    ("<head", HTML),
    ("<body", HTML),
    ("<sami", "SAMI subtitles; convert them to SRT or WebVTT"),
    ("scenarist_scc", "Scenarist captions (.scc); convert them to SRT or WebVTT"),
    ("%!ps", "PostScript; save its text as .txt"),
];
const HTML: &str = "an HTML page; save its text as .txt, or convert it to Markdown";
const XML: &str = "XML; save its text as .txt, or convert subtitles to SRT or WebVTT";
const FRAMES: &str = "subtitles timed in frames (MicroDVD, MPL2); convert them to SRT or WebVTT";

/// Extensions of such files, should their contents not tell.
const FOREIGN_EXTENSIONS: [(&str, &str); 16] = [
    ("html", HTML),
    ("htm", HTML),
    ("xhtml", HTML),
    ("xml", XML),
    ("rtf", "an RTF document; save its text as .txt"),
    ("tex", "a LaTeX document; save its text as .txt"),
    ("ipynb", "a notebook; save its text as .txt or .md"),
    ("smi", "SAMI subtitles; convert them to SRT or WebVTT"),
    ("sami", "SAMI subtitles; convert them to SRT or WebVTT"),
    ("scc", "Scenarist captions; convert them to SRT or WebVTT"),
    ("sub", FRAMES),
    ("stl", "EBU subtitles; convert them to SRT or WebVTT"),
    ("sup", "subtitles made of pictures; convert them to SRT or WebVTT"),
    ("yaml", "YAML; save its text as .txt"),
    ("yml", "YAML; save its text as .txt"),
    ("toml", "TOML; save its text as .txt"),
];

/// The format of the file `name` that begins with the bytes `head`. The text of a table is in its `text_column`.
///
/// # Errors
/// Where it is recognisably something that has no reader; the message says what, and what to do.
pub(super) fn recognise(name: &str, head: &[u8], text_column: &str) -> Result<Recognised> {
    if let Some((_, what)) = BINARY.iter().find(|(start, _)| head.starts_with(start)) {
        bail!("{name}: this is {what}");
    }
    if head.starts_with(b"PAR1") {
        return Ok(recognised(name, Format::Parquet));
    }
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let extension = sources::extension(Path::new(name));
    let promised = Format::of_extension(&extension);
    let contents = Contents { text, promised, text_column };
    if let Some(what) = contents.foreign() {
        bail!("{name}: this looks like {what}");
    }
    if let Some(format) = contents.format() {
        return Ok(recognised(name, format));
    }
    if let Some((_, what)) = FOREIGN_EXTENSIONS.iter().find(|(foreign, _)| *foreign == extension) {
        bail!("{name}: a .{extension} file is not read as a transcript: by its name it is {what}");
    }
    match promised {
        Some(Format::Parquet) => bail!("{name}: not a Parquet file (it does not begin with PAR1)"),
        Some(format) => Ok(recognised(name, format)),
        None if contents.is_table_without_text() => {
            bail!(
                "{name}: this looks like a table without a column \"{text_column}\"; name the column in data.text_column"
            )
        }
        None => Ok(recognised(name, Format::Plain)),
    }
}

fn recognised(name: &str, format: Format) -> Recognised {
    let promised = Format::of_extension(&sources::extension(Path::new(name)));
    let by = if promised == Some(format) { RecognisedBy::Extension } else { RecognisedBy::Contents };
    Recognised { format, by }
}

/// The beginning of a text file, without leading blanks.
struct Contents<'a> {
    text: &'a str,
    promised: Option<Format>,
    text_column: &'a str,
}

impl Contents<'_> {
    fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines().map(str::trim).filter(|line| !line.is_empty())
    }

    /// What it is, if it is nothing that can be read.
    fn foreign(&self) -> Option<&'static str> {
        let start: String = self.text.chars().take(20).collect::<String>().to_lowercase();
        if let Some((_, what)) = FOREIGN.iter().find(|(known, _)| start.starts_with(known)) {
            return Some(what);
        }
        if self.lines().next().is_some_and(is_timed_in_frames) {
            return Some(FRAMES);
        }
        (self.format() != Some(Format::Ttml) && self.is_markup()).then_some(XML)
    }

    /// `<?xml ...` or `<name ...>` with its `</name>`; not `<Ana> hello`. Markdown may hold HTML.
    fn is_markup(&self) -> bool {
        if self.text.starts_with("<?xml") {
            return true;
        }
        let name = self.text.strip_prefix('<').map(|tag| tag.split(|c: char| !c.is_alphanumeric() && c != ':').next());
        let closed = |name: &str| !name.is_empty() && self.text.contains(&format!("</{name}>"));
        self.promised != Some(Format::Markdown) && name.flatten().is_some_and(closed)
    }

    fn format(&self) -> Option<Format> {
        let first = self.lines().next()?;
        if first.split([' ', '\t']).next() == Some("WEBVTT") {
            Some(Format::WebVtt)
        } else if first.eq_ignore_ascii_case("[script info]") || first.starts_with("Dialogue: ") {
            Some(Format::SubStation)
        } else if self.is_ttml() {
            Some(Format::Ttml)
        } else if sbv_times(first).is_some() {
            Some(Format::Sbv)
        } else if self.is_cues() {
            // A reader of cues does not need the header of WebVTT.
            Some(if self.promised == Some(Format::WebVtt) { Format::WebVtt } else { Format::Srt })
        } else {
            self.json().or_else(|| self.table())
        }
    }

    fn is_ttml(&self) -> bool {
        let root = self.text.find("<tt").map(|start| &self.text[start + 3..]);
        self.text.starts_with('<') && root.is_some_and(|rest| rest.starts_with([' ', '>', '\n', '\r', '\t']))
    }

    /// Times at the start, or again and again.
    fn is_cues(&self) -> bool {
        let mut first = self.lines();
        let is_number = |line: &str| line.bytes().all(|byte| byte.is_ascii_digit());
        let starts = match first.next() {
            Some(line) if is_number(line) => first.next().is_some_and(is_cue_times),
            Some(line) => is_cue_times(line),
            None => false,
        };
        let (mut lines, mut times) = (0, 0);
        for line in self.lines().take(CUE_LINES) {
            (lines, times) = (lines + 1, times + usize::from(is_cue_times(line)));
        }
        let is_prose = matches!(self.promised, Some(Format::Markdown));
        starts || (!is_prose && times >= 2 && times * 6 >= lines)
    }

    /// JSON, or rows of it. What is promised to be JSON is, unless it is one of the others above.
    fn json(&self) -> Option<Format> {
        let promised = self.promised.filter(|format| matches!(format, Format::Json | Format::Jsonl));
        match json::shape(self.text) {
            Some(json::Shape::One { lines: 1 } | json::Shape::Broken) => promised.or(Some(Format::Json)),
            Some(json::Shape::One { .. }) => Some(Format::Json),
            Some(json::Shape::Rows) => Some(Format::Jsonl),
            None => promised,
        }
    }

    /// A table with a header that names the column of the text.
    fn table(&self) -> Option<Format> {
        let promised = self.promised.filter(|format| matches!(format, Format::Csv | Format::Tsv));
        let header = self.lines().next()?;
        let named = |separator: char| {
            let names: Vec<&str> = header.split(separator).map(|name| name.trim().trim_matches('"')).collect();
            let is_name = |name: &&str| name.len() <= 40 && !name.contains(['.', '!', '?']);
            names.len() > 1 && names.iter().all(is_name) && names.contains(&self.text_column)
        };
        // A column called "text" in the first line is no accident if the names are separated as a program does.
        let csv = (named(',') || named(';')) && !header.contains(", ");
        if named('\t') {
            Some(Format::Tsv)
        } else if csv {
            Some(Format::Csv)
        } else {
            promised
        }
    }

    /// Lines that are all cut into as many fields, by tabs or by commas that no blank follows.
    fn is_table_without_text(&self) -> bool {
        let lines: Vec<&str> = self.lines().take(20).collect();
        let cut = |separator: char, least: usize| {
            let count = |line: &str| line.matches(separator).count();
            lines.len() >= 3 && count(lines[0]) >= least && lines[1..].iter().all(|line| count(line) == count(lines[0]))
        };
        cut('\t', 1) || (cut(',', 2) && !lines.iter().any(|line| line.contains(", ")))
    }
}

/// `00:00:01,000 --> 00:00:02,000` and what is like it, but not `x --> y`.
fn is_cue_times(line: &str) -> bool {
    line.contains("-->") && cue_times(line).is_some()
}

/// `{0}{25}Hello` or `[0][25]Hello`.
fn is_timed_in_frames(line: &str) -> bool {
    let number = |line: &str, open: char, close: char| {
        let (number, rest) = line.strip_prefix(open)?.split_once(close)?;
        (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| rest.to_string())
    };
    [('{', '}'), ('[', ']')]
        .iter()
        .any(|&(open, close)| number(line, open, close).is_some_and(|rest| number(&rest, open, close).is_some()))
}
