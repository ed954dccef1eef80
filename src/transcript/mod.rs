//! Transcripts become [`Document`]s: plain text with one turn or paragraph per line, whatever the file's format was.
//! This is the first step of a token's journey; the tokenizer sees exactly the text that leaves here.
//!
//! `sources` finds the files, `format` tells what each one is, `file` brings it from disk to its reader, one module per
//! format reads it, `turns` holds what the formats with speakers and times share.

mod blocks;
mod corpus;
mod cues;
mod file;
mod format;
mod inline;
mod json;
mod label;
mod markdown;
mod markup;
#[cfg(feature = "parquet")]
mod parquet;
mod plain;
mod receipt;
mod recognise;
mod recordings;
mod rolling;
mod rows;
mod sources;
mod speakers;
mod styled;
#[cfg(test)]
mod subtitle_tests;
mod subtitles;
#[cfg(test)]
mod table_tests;
mod tables;
mod talks;
mod times;
mod turns;

pub use corpus::{Corpus, Selection};
pub use file::parse;
pub use format::{Format, RecognisedBy};
pub use receipt::{FileEntry, Receipt};

use anyhow::{Result, anyhow};
use std::borrow::Cow;

/// One transcript as plain text, ready for the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The path as it was found, with `/`; a row of a JSONL file is `path:LINE`.
    pub name: String,
    /// What the text is about: the source's label, else the name of the folder that holds the file.
    pub domain: String,
    /// One turn or paragraph per line; every line ends in `\n`. Never blank.
    pub text: String,
    pub facts: Facts,
}

/// What the receipt of the data says about a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub format: Format,
    /// Whose JSON it is, where there are several: `Whisper`, `AssemblyAI`.
    pub variety: Option<&'static str>,
    pub recognised_by: RecognisedBy,
    /// In the order in which they first speak; also those that the options leave out of the text.
    pub speakers: Vec<String>,
    /// Turns whose speaker or start is known, and lines of others.
    pub turns: usize,
    /// What the document was read from: the file, or its part of the file.
    pub source_bytes: usize,
}

impl Facts {
    /// Bytes of markup, times and repetitions that did not become text.
    pub fn dropped_bytes(&self, text: &str) -> usize {
        self.source_bytes.saturating_sub(text.len())
    }
}

/// Something in a file that did not become text, though the rest of the file did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// `file:LINE`, or the file.
    pub place: String,
    pub reason: String,
    /// There was nothing to read, which is no fault: an empty row.
    pub is_empty: bool,
}

/// What reading a file brings, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Document(Document),
    Skipped(Skipped),
}

/// What of a transcript, besides what was said, stays in the text, and where the text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// `[HH:MM:SS] ` before each turn whose start is known.
    pub keep_timestamps: bool,
    /// `Name: ` before each turn whose speaker is known.
    pub keep_speakers: bool,
    /// Where relative sources are; empty: in the current directory.
    pub directory: Cow<'static, str>,
    /// The column of a table (CSV, TSV, Parquet), or the key of a JSONL row, that holds the text.
    pub text_column: Cow<'static, str>,
}

impl ReadOptions {
    /// Speakers stay, timestamps go, and a table's text is in its column `text`.
    pub const DEFAULT: Self = Self {
        keep_timestamps: false,
        keep_speakers: true,
        directory: Cow::Borrowed(""),
        text_column: Cow::Borrowed("text"),
    };
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Reads every file of each source (a file, a directory searched recursively, or a glob; `path=domain` carries a label
/// unless a file of that whole name exists), sorted by name and each once. For more text than fits in memory see
/// [`Corpus`], which also tells what was skipped. Relative sources are in `options.directory`, which takes no part in
/// names, domains and order.
///
/// # Errors
/// [`Failure::Usage`](crate::error::Failure::Usage) where a source names nothing to read; otherwise they tell file and
/// line of what cannot be read.
pub fn read_sources(sources: &[String], options: &ReadOptions) -> Result<Vec<Document>> {
    let selection = Selection { sources: sources.to_vec(), options: options.clone(), ..Selection::default() };
    let mut documents = Vec::new();
    Corpus::find(&selection)?.read(|document| {
        documents.push(document);
        Ok(())
    })?;
    Ok(documents)
}

fn with_unix_newlines(text: &str) -> Cow<'_, str> {
    if !text.contains('\r') {
        return text.into();
    }
    // Two programs that each added a CR leave CRCRLF.
    text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace('\r', "\n").into()
}

fn at_line(name: &str, line: usize, message: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{name}:{line}: {message}")
}

#[cfg(test)]
mod tests {
    use super::file::{MAX_WHOLE_BYTES, PART_BYTES, decode};
    use super::*;
    use proptest::prelude::*;
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};

    const WORDS_ONLY: ReadOptions = ReadOptions { keep_speakers: false, ..ReadOptions::DEFAULT };
    const DEFAULT: ReadOptions = ReadOptions::DEFAULT;
    const ALL: ReadOptions = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };

    fn read_bytes(file: &str, bytes: &[u8]) -> Result<Vec<Document>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        fs::write(&path, bytes).unwrap();
        read_sources(&[path.to_str().unwrap().to_string()], &DEFAULT)
    }

    fn error_of(file: &str, bytes: &[u8]) -> String {
        format!("{:#}", read_bytes(file, bytes).unwrap_err())
    }

    #[test]
    fn the_extension_chooses_the_format() {
        let cues = "1\n00:00:01,000 --> 00:00:02,000\nAna: <i>Hi.</i>\n";
        assert_eq!(read_bytes("a.SRT", cues.as_bytes()).unwrap()[0].text, "Ana: Hi.\n");
        assert_eq!(read_bytes("a.transcript", b"1\nAna: <i>Hi.</i>\n").unwrap()[0].text, "1\nAna: <i>Hi.</i>\n");
        assert_eq!(read_bytes("a.md", b"**Ana:** Hi.").unwrap()[0].text, "Ana: Hi.\n");
    }

    #[test]
    fn a_byte_order_mark_and_foreign_line_ends_disappear() {
        assert_eq!(read_bytes("a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree").unwrap()[0].text, "one\ntwo\nthree\n");
    }

    #[test]
    fn files_without_text_are_refused() {
        for (file, contents) in
            [("a.txt", ""), ("a.txt", "\n \n"), ("a.md", "---\n"), ("a.srt", ""), ("a.vtt", "WEBVTT")]
        {
            let error = error_of(file, contents.as_bytes());
            assert!(error.ends_with(&format!("{file}: there is no text in this file")), "{error}");
        }
    }

    #[test]
    fn what_is_not_utf8_is_refused_with_line_and_byte() {
        let error = error_of("a.txt", b"one\ntwo \xe9t\xe9\n");
        assert!(error.contains("a.txt:2: not valid UTF-8: byte 0xe9 at offset 8"), "{error}");
        for name in ["a.txt", "a.jsonl", "a.json"] {
            let error = error_of(name, b"\n");
            assert!(error.ends_with("there is no text in this file"), "{error}");
        }
        let error = error_of("a.txt", b"one\n\x00\x01");
        assert!(error.contains("a.txt:2: ") && error.contains("looks like a binary file"), "{error}");
        let error = error_of("a.txt", b"\xff\xfeh\0i\0");
        assert!(error.contains("a.txt:1: this is UTF-16"), "{error}");
    }

    #[test]
    fn files_over_the_limit_are_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes, message) in [
            ("huge.srt", MAX_WHOLE_BYTES + 1, "huge.srt: 1073741825 bytes are too many"),
            ("huge.txt", 8 << 30, "huge.txt:1: a NUL byte at offset 0"),
        ] {
            let path = folder.path().join(name);
            // Sparse: it takes no room on the disk.
            File::create(&path).unwrap().set_len(bytes).unwrap();
            let error = read_sources(&[path.to_str().unwrap().to_string()], &DEFAULT).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    /// Lines made of what the formats give a meaning to, which random strings would hardly ever hit.
    fn lines_like_a_transcript() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "\\PC{0,6}",
            prop::sample::select(vec![
                "\n",
                "\n\n",
                " ",
                ":",
                "WEBVTT\n",
                "NOTE ",
                "1\n",
                "00:00:01.000",
                "00:01,5",
                " --> ",
                "Ana: ",
                "<v Bo>",
                "</v>",
                "<c.x>",
                "<00:00:01.000>",
                "{\\an8}",
                "&amp;",
                "&",
                "**",
                "*",
                "_",
                "`",
                "``",
                "[",
                "](",
                ")",
                "\\[",
                "\\",
                "\\]",
                "# ",
                "[00:12:34.56]",
                " to ",
                "Starting point is ",
                "é",
                "{\"segments\":[",
                "{\"start\":1,",
                "\"text\":\"a\"",
                "}",
                "]",
                "\r\n",
                "\u{feff}",
            ])
            .prop_map(str::to_string),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn a_large_file_comes_in_parts_that_are_together_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let line = |number: usize| format!("line {number} {}\n", "of some words ".repeat(number % 9));
        let text: String = (0..)
            .map(line)
            .scan(0, |bytes, line| {
                *bytes += line.len();
                (*bytes < 40 << 20).then_some(line)
            })
            .collect();
        let write = |name: &str, contents: &str| {
            fs::write(folder.path().join(name), contents).unwrap();
            folder.path().join(name).to_str().unwrap().to_string()
        };
        let documents = read_sources(&[write("a.txt", &text)], &DEFAULT).unwrap();
        assert_eq!(documents.len(), 3);
        assert!(documents[1].name.ends_with("a.txt (part 2)"), "{}", documents[1].name);
        assert!(documents.iter().all(|part| part.text.ends_with('\n') && part.text.len() < PART_BYTES + 1000));
        assert!(documents.iter().map(|part| part.text.as_str()).collect::<String>() == text);

        let jsonl: String = text.lines().step_by(2).map(|line| format!("{{\"text\": \"{line}\"}}\n")).collect();
        let documents = read_sources(&[write("b.jsonl", &jsonl)], &DEFAULT).unwrap();
        assert_eq!(documents.len(), text.lines().count().div_ceil(2));
        assert!(documents.last().unwrap().name.ends_with(&format!("b.jsonl:{}", documents.len())));
        let broken = write("c.jsonl", &format!("{jsonl}{{\"text\": 1}}\n"));
        let selection = Selection { sources: vec![broken], ..Selection::default() };
        let skipped = Corpus::find(&selection).unwrap().read(|_| Ok(())).unwrap().skipped_rows;
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].place.ends_with(&format!("c.jsonl:{}", documents.len() + 1)), "{}", skipped[0].place);
        assert_eq!(skipped[0].reason, "\"text\" is a number, not text");
    }

    #[test]
    fn a_line_longer_than_any_part_is_cut_at_spaces() {
        let folder = tempfile::tempdir().unwrap();
        let words: String = (0..).map(|number| format!("word{number} ")).take(8 << 20).collect();
        assert!(words.len() > 90 << 20);
        let path = folder.path().join("a.txt");
        fs::write(&path, &words).unwrap();
        let documents = read_sources(&[path.to_str().unwrap().to_string()], &DEFAULT).unwrap();
        assert!(documents.len() > 5);
        assert!(documents.iter().all(|part| part.text.len() < PART_BYTES + 100 && part.text.ends_with('\n')));
        let text: String = documents.into_iter().map(|part| part.text).collect();
        assert!(text.split_whitespace().eq(words.split_whitespace()));

        // Without spaces, between characters.
        fs::write(&path, "語".repeat(28 << 20)).unwrap();
        let documents = read_sources(&[path.to_str().unwrap().to_string()], &DEFAULT).unwrap();
        assert!(documents.len() > 4);
        assert_eq!(documents.iter().map(|part| part.text.matches('語').count()).sum::<usize>(), 28 << 20);
    }

    proptest! {
        #[test]
        fn no_input_of_any_format_panics_and_every_line_ends(
            contents in lines_like_a_transcript(),
            keep_timestamps: bool,
            keep_speakers: bool,
        ) {
            let options = &ReadOptions { keep_timestamps, keep_speakers, ..DEFAULT };
            let Ok(contents) = decode(contents.into_bytes(), "a", 1) else { return Ok(()) };
            let texts = [
                Ok(plain::read(&contents, options)),
                Ok(markdown::read(&contents, options)),
                subtitles::read("a", &contents, Format::Srt, options),
                subtitles::read("a", &contents, Format::WebVtt, options),
                subtitles::read("a", &format!("WEBVTT\n\n{contents}"), Format::WebVtt, options),
            ];
            for turns::Speech { text, .. } in texts.into_iter().flatten() {
                prop_assert!(text.is_empty() || text.ends_with('\n'));
            }
            for name in ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.txt", "a"] {
                for document in parse(name, "text", contents.clone().into_bytes(), options).into_iter().flatten() {
                    prop_assert!(document.text.ends_with('\n') && !document.text.trim().is_empty());
                }
            }
        }

        #[test]
        fn plain_text_comes_through_unchanged(lines in prop::collection::vec("[ a-zA-Z:*#\\[\\]<>]{0,20}", 0..10)) {
            let contents: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(plain::read(&contents, &DEFAULT).text, contents);
        }
    }

    /// Real transcripts that are too large, or not ours, to be in the repository.
    fn real_transcripts() -> Option<PathBuf> {
        let folder = match std::env::var_os("TINYMOE_TEST_DATA") {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        };
        if !folder.is_dir() {
            eprintln!("skipped: no real transcripts; name a folder of them in TINYMOE_TEST_DATA");
            return None;
        }
        Some(folder)
    }

    fn read_real(file: &str, options: &ReadOptions) -> Option<Vec<Document>> {
        let path = real_transcripts()?.join(file);
        if !path.exists() {
            eprintln!("skipped: no {file} among the real transcripts");
            return None;
        }
        Some(read_sources(&[path.to_str().unwrap().to_string()], options).unwrap())
    }

    #[test]
    fn tiny_shakespeare_comes_through_byte_identical() {
        let Some(documents) = read_real("tinyshakespeare.txt", &ALL) else { return };
        assert_eq!(documents[0].text, fs::read_to_string(&documents[0].name).unwrap());
    }

    #[test]
    fn a_podcast_page_loses_its_timestamps_and_nothing_else() {
        let Some(documents) = read_real("seed-transcript.txt", &DEFAULT) else { return };
        let page = fs::read_to_string(&documents[0].name).unwrap();
        assert!(!documents[0].text.contains("Starting point is"));
        for (read, line) in documents[0].text.lines().zip(page.lines()) {
            assert!(line.ends_with(read), "{line} became {read}");
        }
        assert_eq!(documents[0].text.lines().count(), page.lines().count());
    }

    #[test]
    fn podcast_markdown_becomes_turns_without_markup() {
        let Some(documents) = read_real("changelog", &DEFAULT) else { return };
        for document in &documents {
            assert!(["gotime", "jsparty"].contains(&document.domain.as_str()), "{}", document.domain);
            for markup in ["\n\n", "\n**", "\\", "](", "`", "Break:"] {
                assert!(!document.text.contains(markup), "{} still contains {markup:?}", document.name);
            }
        }
        let words_only = read_real("changelog", &WORDS_ONLY).unwrap();
        assert!(documents[0].text.starts_with(&format!("Mat Ryer: {}", &words_only[0].text[..20])));
    }
}
