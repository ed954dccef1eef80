//! The formats that are read, and the extensions that promise them.

use std::fmt;

/// A format that has a reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    #[default]
    Plain,
    Markdown,
    Srt,
    WebVtt,
    Sbv,
    SubStation,
    Ttml,
    Tsv,
    Csv,
    Parquet,
    Json,
    Jsonl,
}

/// What told the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecognisedBy {
    #[default]
    Extension,
    Contents,
}

/// A file's format, and what told it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recognised {
    pub format: Format,
    pub by: RecognisedBy,
}

/// The extensions, in lower case, of the files that a directory or a glob contributes.
const EXTENSIONS: [(&str, Format); 19] = [
    ("txt", Format::Plain),
    ("text", Format::Plain),
    ("transcript", Format::Plain),
    ("md", Format::Markdown),
    ("markdown", Format::Markdown),
    ("mdx", Format::Markdown),
    ("srt", Format::Srt),
    ("vtt", Format::WebVtt),
    ("sbv", Format::Sbv),
    ("ass", Format::SubStation),
    ("ssa", Format::SubStation),
    ("ttml", Format::Ttml),
    ("dfxp", Format::Ttml),
    ("tsv", Format::Tsv),
    ("csv", Format::Csv),
    ("parquet", Format::Parquet),
    ("json", Format::Json),
    ("jsonl", Format::Jsonl),
    ("ndjson", Format::Jsonl),
];

impl Format {
    /// The extensions of files that are taken for transcripts when a folder is searched, in lower case, without dots.
    pub fn extensions() -> impl Iterator<Item = &'static str> {
        EXTENSIONS.iter().map(|(extension, _)| *extension)
    }

    /// What the extension (in lower case) promises.
    pub(super) fn of_extension(extension: &str) -> Option<Self> {
        // Read when it is named, but in a folder a `.log` is a program's more often than a talk's.
        if extension == "log" {
            return Some(Self::Plain);
        }
        EXTENSIONS.iter().find(|(known, _)| *known == extension).map(|(_, format)| *format)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain text",
            Self::Markdown => "Markdown",
            Self::Srt => "SRT",
            Self::WebVtt => "WebVTT",
            Self::Sbv => "SBV",
            Self::SubStation => "SubStation Alpha",
            Self::Ttml => "TTML",
            Self::Tsv => "TSV",
            Self::Csv => "CSV",
            Self::Parquet => "Parquet",
            Self::Json => "JSON",
            Self::Jsonl => "JSONL",
        })
    }
}

impl fmt::Display for RecognisedBy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Extension => "extension",
            Self::Contents => "contents",
        })
    }
}
