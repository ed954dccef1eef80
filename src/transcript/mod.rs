//! Transcripts become [`Document`]s: plain text with one turn or paragraph per line, whatever the file's format was.
//! This is the first step of a token's journey; the tokenizer sees exactly the text that leaves here.
//!
//! `sources` finds the files, one module per format reads them, `turns` holds what the formats with speakers and
//! times share.

mod json;
mod markdown;
mod plain;
mod sources;
mod subtitles;
mod turns;

use anyhow::{Context, Result, anyhow, ensure};
use sources::Source;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// One transcript as plain text, ready for the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The path as it was found, with `/`; a line of a JSONL file is `path:LINE`.
    pub name: String,
    /// What the text is about: the source's label, else the name of the folder that holds the file.
    pub domain: String,
    /// One turn or paragraph per line; every line ends in `\n`. Never blank.
    pub text: String,
}

/// What of a transcript, besides what was said, stays in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// `[HH:MM:SS] ` before each turn whose start is known.
    pub keep_timestamps: bool,
    /// `Name: ` before each turn whose speaker is known.
    pub keep_speakers: bool,
}

/// Larger files of the formats that are read whole are refused.
const MAX_WHOLE_BYTES: u64 = 256 << 20;
/// Plain text and JSONL of more than this are read in parts of about as much, cut at a line, each a document (or, of
/// JSONL, several) of its own.
const PART_BYTES: usize = 16 << 20;
/// The longest line of such a file.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Expands each source (a file, a directory searched recursively, or a glob; `path=domain` carries a label unless a
/// file of that whole name exists) and reads every file, sorted by name and each once. Relative sources are in
/// `directory`, or in the current directory if it is empty.
///
/// Errors are [`Failure::Usage`](crate::error::Failure::Usage) where a source names nothing to read, and otherwise
/// tell file and line of what cannot be read.
pub fn read_sources(directory: &Path, sources: &[String], options: ReadOptions) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for_each_document(directory, sources, options, |document| {
        documents.push(document);
        Ok(())
    })?;
    Ok(documents)
}

/// As [`read_sources`], for more text than fits in memory: hands each document over before it reads on.
pub fn for_each_document(
    directory: &Path,
    sources: &[String],
    options: ReadOptions,
    mut visit: impl FnMut(Document) -> Result<()>,
) -> Result<()> {
    for source in sources::expand(directory, sources)? {
        read_file(&source, options, &mut visit)?;
    }
    Ok(())
}

fn read_file(source: &Source, options: ReadOptions, visit: &mut dyn FnMut(Document) -> Result<()>) -> Result<()> {
    let Source { path, name, domain } = source;
    let unreadable = || format!("cannot read {name}");
    let mut file = File::open(path).with_context(unreadable)?;
    let metadata = file.metadata().with_context(unreadable)?;
    ensure!(metadata.is_file(), "{name}: not a regular file");
    let extension = sources::extension(path);
    let whole = ["json", "srt", "vtt", "md"].contains(&extension.as_str());
    if whole || metadata.len() <= PART_BYTES as u64 {
        ensure!(
            !whole || metadata.len() <= MAX_WHOLE_BYTES,
            "{name}: {} bytes are too many, the limit for this format is {MAX_WHOLE_BYTES}; split the file",
            metadata.len()
        );
        let mut bytes = Vec::new();
        // No more than expected, should the file grow meanwhile.
        file.take(metadata.len()).read_to_end(&mut bytes).with_context(unreadable)?;
        return parse(name, domain, bytes, options)?.into_iter().try_for_each(visit);
    }
    let (mut part, mut first_line, mut blank) = (1, 1, true);
    let mut bytes = Vec::new();
    while read_part(&mut file, &mut bytes, name)? {
        let end = if bytes.len() > PART_BYTES { PART_BYTES } else { bytes.len() };
        let rest = match bytes[end..].iter().position(|&byte| byte == b'\n') {
            Some(offset) => bytes.split_off(end + offset + 1),
            None => Vec::new(),
        };
        let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
        let contents = decode(bytes, name, first_line)?;
        if extension == "jsonl" {
            json::read_lines(name, domain, &contents, first_line, options)?.into_iter().try_for_each(&mut *visit)?;
            blank &= contents.trim().is_empty();
        } else {
            let text = plain::read(&contents, options);
            if !text.trim().is_empty() {
                blank = false;
                visit(Document { name: format!("{name} (part {part})"), domain: domain.clone(), text })?;
            }
        }
        (part, first_line, bytes) = (part + 1, first_line + lines, rest);
    }
    ensure!(!blank, "{name}: there is no text in this file");
    Ok(())
}

/// Fills `bytes` until there is a whole line after the first [`PART_BYTES`], or the file ends; false if it ended before.
fn read_part(file: &mut File, bytes: &mut Vec<u8>, name: &str) -> Result<bool> {
    while bytes.len() <= PART_BYTES || !bytes[PART_BYTES..].contains(&b'\n') {
        ensure!(
            bytes.len() <= PART_BYTES + MAX_LINE_BYTES,
            "{name}: a line of more than {MAX_LINE_BYTES} bytes; is this a transcript?"
        );
        let read = file.by_ref().take(1 << 20).read_to_end(bytes).with_context(|| format!("cannot read {name}"))?;
        if read == 0 {
            break;
        }
    }
    Ok(!bytes.is_empty())
}

/// The documents in a file's bytes; the extension of `name` tells the format.
pub fn parse(name: &str, domain: &str, bytes: Vec<u8>, options: ReadOptions) -> Result<Vec<Document>> {
    let contents = decode(bytes, name, 1)?;
    let text = match sources::extension(Path::new(name)).as_str() {
        "jsonl" => {
            let documents = json::read_lines(name, domain, &contents, 1, options)?;
            ensure!(!documents.is_empty(), "{name}: there is no text in this file");
            return Ok(documents);
        }
        "json" => json::read(name, &contents, options)?,
        "srt" => subtitles::read(name, &contents, subtitles::Format::Srt, options)?,
        "vtt" => subtitles::read(name, &contents, subtitles::Format::WebVtt, options)?,
        "md" => markdown::read(&contents, options),
        _ => plain::read(&contents, options),
    };
    ensure!(!text.trim().is_empty(), "{name}: there is no text in this file");
    Ok(vec![Document { name: name.to_owned(), domain: domain.to_owned(), text }])
}

/// UTF-8 without a byte-order mark, its lines ending in `\n`. The first line has the number `first_line` in the file.
fn decode(bytes: Vec<u8>, name: &str, first_line: usize) -> Result<String> {
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
    Ok(with_unix_newlines(text.strip_prefix('\u{feff}').unwrap_or(&text)))
}

fn with_unix_newlines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fn at_line(name: &str, line: usize, message: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{name}:{line}: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::PathBuf;

    const WORDS_ONLY: ReadOptions = ReadOptions { keep_timestamps: false, keep_speakers: false };
    const DEFAULT: ReadOptions = ReadOptions { keep_timestamps: false, keep_speakers: true };
    const ALL: ReadOptions = ReadOptions { keep_timestamps: true, keep_speakers: true };

    fn read_bytes(file: &str, bytes: &[u8]) -> Result<Vec<Document>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        fs::write(&path, bytes).unwrap();
        read_sources(Path::new(""), &[path.to_str().unwrap().to_string()], DEFAULT)
    }

    fn error_of(file: &str, bytes: &[u8]) -> String {
        format!("{:#}", read_bytes(file, bytes).unwrap_err())
    }

    #[test]
    fn the_extension_chooses_the_format() {
        let cues = "1\n00:00:01,000 --> 00:00:02,000\nAna: <i>Hi.</i>\n";
        assert_eq!(read_bytes("a.SRT", cues.as_bytes()).unwrap()[0].text, "Ana: Hi.\n");
        assert_eq!(read_bytes("a.transcript", cues.as_bytes()).unwrap()[0].text, cues);
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
            ("huge.srt", MAX_WHOLE_BYTES + 1, "huge.srt: 268435457 bytes are too many"),
            ("huge.txt", 8 << 30, "huge.txt: a line of more than 67108864 bytes"),
        ] {
            let path = folder.path().join(name);
            // Sparse: it takes no room on the disk.
            File::create(&path).unwrap().set_len(bytes).unwrap();
            let error =
                read_sources(Path::new(""), &[path.to_str().unwrap().to_string()], DEFAULT).unwrap_err().to_string();
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
        let documents = read_sources(Path::new(""), &[write("a.txt", &text)], DEFAULT).unwrap();
        assert_eq!(documents.len(), 3);
        assert!(documents[1].name.ends_with("a.txt (part 2)"), "{}", documents[1].name);
        assert!(documents.iter().all(|part| part.text.ends_with('\n') && part.text.len() < PART_BYTES + 1000));
        assert!(documents.iter().map(|part| part.text.as_str()).collect::<String>() == text);

        let jsonl: String = text.lines().step_by(2).map(|line| format!("{{\"text\": \"{line}\"}}\n")).collect();
        let documents = read_sources(Path::new(""), &[write("b.jsonl", &jsonl)], DEFAULT).unwrap();
        assert_eq!(documents.len(), text.lines().count().div_ceil(2));
        assert!(documents.last().unwrap().name.ends_with(&format!("b.jsonl:{}", documents.len())));
        let broken = write("c.jsonl", &format!("{jsonl}{{\"text\": 1}}\n"));
        let error = read_sources(Path::new(""), &[broken], DEFAULT).unwrap_err().to_string();
        assert!(error.contains(&format!("c.jsonl:{}: ", documents.len() + 1)), "{error}");
    }

    proptest! {
        #[test]
        fn no_input_of_any_format_panics_and_every_line_ends(
            contents in lines_like_a_transcript(),
            keep_timestamps: bool,
            keep_speakers: bool,
        ) {
            let options = ReadOptions { keep_timestamps, keep_speakers };
            let Ok(contents) = decode(contents.into_bytes(), "a", 1) else { return Ok(()) };
            let texts = [
                Ok(plain::read(&contents, options)),
                Ok(markdown::read(&contents, options)),
                subtitles::read("a", &contents, subtitles::Format::Srt, options),
                subtitles::read("a", &contents, subtitles::Format::WebVtt, options),
                subtitles::read("a", &format!("WEBVTT\n\n{contents}"), subtitles::Format::WebVtt, options),
                json::read("a", &contents, options),
            ];
            for text in texts.into_iter().flatten() {
                prop_assert!(text.is_empty() || text.ends_with('\n'));
            }
            let _ = json::read_lines("a", "text", &contents, 1, options);
        }

        #[test]
        fn plain_text_comes_through_unchanged(lines in prop::collection::vec("[ a-zA-Z:*#\\[\\]<>]{0,20}", 0..10)) {
            let contents: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(plain::read(&contents, DEFAULT), contents);
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

    fn read_real(file: &str, options: ReadOptions) -> Option<Vec<Document>> {
        let path = real_transcripts()?.join(file);
        if !path.exists() {
            eprintln!("skipped: no {file} among the real transcripts");
            return None;
        }
        Some(read_sources(Path::new(""), &[path.to_str().unwrap().to_string()], options).unwrap())
    }

    #[test]
    fn tiny_shakespeare_comes_through_byte_identical() {
        let Some(documents) = read_real("tinyshakespeare.txt", ALL) else { return };
        assert_eq!(documents[0].text, fs::read_to_string(&documents[0].name).unwrap());
    }

    #[test]
    fn a_podcast_page_loses_its_timestamps_and_nothing_else() {
        let Some(documents) = read_real("seed-transcript.txt", DEFAULT) else { return };
        let page = fs::read_to_string(&documents[0].name).unwrap();
        assert!(!documents[0].text.contains("Starting point is"));
        for (read, line) in documents[0].text.lines().zip(page.lines()) {
            assert!(line.ends_with(read), "{line} became {read}");
        }
        assert_eq!(documents[0].text.lines().count(), page.lines().count());
    }

    #[test]
    fn podcast_markdown_becomes_turns_without_markup() {
        let Some(documents) = read_real("changelog", DEFAULT) else { return };
        for document in &documents {
            assert!(["gotime", "jsparty"].contains(&document.domain.as_str()), "{}", document.domain);
            for markup in ["\n\n", "\n**", "\\", "](", "`", "Break:"] {
                assert!(!document.text.contains(markup), "{} still contains {markup:?}", document.name);
            }
        }
        let words_only = read_real("changelog", WORDS_ONLY).unwrap();
        assert!(documents[0].text.starts_with(&format!("Mat Ryer: {}", &words_only[0].text[..20])));
    }
}
