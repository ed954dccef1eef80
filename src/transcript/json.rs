//! JSON from Whisper and its relatives, and JSONL with one text per line.

use super::file::{Origin, Visit};
use super::turns::{Speech, Turn, join};
use super::{ReadOptions, at_line, plain, with_unix_newlines};
use anyhow::Result;
use serde::Deserialize;

/// A speech recogniser's output: `segments`, or only the whole `text`. Other keys are ignored, here and below.
#[derive(Deserialize)]
struct Recording {
    segments: Option<Vec<Segment>>,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Segment {
    /// Seconds.
    start: f64,
    text: String,
    /// As WhisperX and other diarising tools add it.
    speaker: Option<String>,
}

/// One line of a JSONL file.
#[derive(Deserialize)]
struct Record {
    text: String,
    domain: Option<String>,
}

/// The turns of a recording, one per line. Errors name file, line, column and what is missing there.
pub(super) fn read(name: &str, contents: &str, options: &ReadOptions) -> Result<Speech> {
    if contents.trim().is_empty() {
        return Ok(Speech::default());
    }
    let recording: Recording = serde_json::from_str(contents).map_err(|error| located(name, error.line(), &error))?;
    let (segments, whole) = match (recording.segments, recording.text) {
        (Some(segments), _) => (segments, String::new()),
        (None, Some(text)) => (Vec::new(), text),
        (None, None) => {
            return Err(at_line(name, 1, "neither \"segments\" nor \"text\" in this object; is it a transcript?"));
        }
    };
    let mut speech = read_text(&whole, options);
    let pieces = segments.into_iter().map(|segment| Turn {
        start_ms: Some((segment.start * 1000.0) as u64),
        speaker: segment.speaker,
        text: segment.text,
    });
    for turn in join(pieces.collect()) {
        speech.push(&turn, options);
    }
    Ok(speech)
}

/// One document for each line `{"text": ..., "domain"?: ...}`, numbered from `first_line`; blank lines are passed over.
/// Returns how many.
pub(super) fn read_lines(
    origin: Origin,
    contents: &str,
    first_line: usize,
    options: &ReadOptions,
    visit: &mut Visit,
) -> Result<usize> {
    let mut documents = 0;
    let name = origin.name;
    for (line, number) in contents.lines().zip(first_line..).filter(|(line, _)| !line.trim().is_empty()) {
        let record: Record = serde_json::from_str(line).map_err(|error| located(name, number, &error))?;
        let speech = read_text(&record.text, options);
        if speech.text.trim().is_empty() {
            visit(origin.skipped(number, "\"text\" is empty", true))?;
            continue;
        }
        let domain = record.domain.as_deref().unwrap_or(origin.domain);
        visit(origin.document(&format!("{name}:{number}"), domain, speech, line.len()))?;
        documents += 1;
    }
    Ok(documents)
}

/// Plain text out of a JSON string, where line ends are still as the tool wrote them. Whisper's begins with a space.
fn read_text(text: &str, options: &ReadOptions) -> Speech {
    plain::read(with_unix_newlines(text).trim(), options)
}

fn located(name: &str, line: usize, error: &serde_json::Error) -> anyhow::Error {
    // serde_json appends its own position, in which the line of a JSONL file would always be 1.
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    at_line(name, line, format!("column {}: {}", error.column(), message.strip_suffix(&position).unwrap_or(&message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, contents: &str, options: ReadOptions) -> Result<String> {
        super::read(name, contents, &options).map(|speech| speech.text)
    }

    const DEFAULT: ReadOptions = ReadOptions::DEFAULT;
    const ALL: ReadOptions = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };

    const TALK: &str = r#"{"language": "en", "text": "not this", "segments": [
        {"id": 0, "start": 0.5, "end": 2.0, "speaker": "Mo", "text": " Hello."},
        {"start": 2.0, "end": 3.0, "speaker": "Mo", "text": " Is it on?"},
        {"start": 62.25, "end": 63.0, "speaker": "Dev", "text": " Yes."}]}"#;

    #[test]
    fn segments_of_one_speaker_join_into_one_line() {
        assert_eq!(read("a.json", TALK, DEFAULT).unwrap(), "Mo: Hello. Is it on?\nDev: Yes.\n");
        assert_eq!(read("a.json", TALK, ALL).unwrap(), "[00:00:00] Mo: Hello. Is it on?\n[00:01:02] Dev: Yes.\n");
        let words_only = ReadOptions { keep_speakers: false, ..DEFAULT };
        assert_eq!(read("a.json", TALK, words_only).unwrap(), "Hello. Is it on?\nYes.\n");
    }

    #[test]
    fn segments_of_nobody_named_become_lines_of_whole_sentences() {
        let contents = r#"{"segments": [{"start": 0, "end": 1, "text": " So we"}, {"start": 1, "end": 2, "text": " left."},
            {"start": 2, "end": 3, "text": " Bye."}]}"#;
        assert_eq!(read("a.json", contents, DEFAULT).unwrap(), "So we left.\nBye.\n");
    }

    #[test]
    fn a_recording_without_segments_is_its_text() {
        assert_eq!(read("a.json", r#"{"text": " One.\r\nTwo."}"#, DEFAULT).unwrap(), "One.\nTwo.\n");
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_missing_field() {
        for (contents, message) in [
            ("{\"segments\": [\n{\"start\": 0}]}", "a.json:2: column 12: missing field `text`"),
            ("{\"segments\": [\n{\"text\": \"a\"}]}", "a.json:2: column 13: missing field `start`"),
            ("{\n\"segments\": 3}", "a.json:2: column 13: invalid type: integer `3`"),
            ("{\"segments\": [", "a.json:1: column 14: EOF while parsing"),
            ("{\"chunks\": []}", "a.json:1: neither \"segments\" nor \"text\""),
        ] {
            let error = read("a.json", contents, DEFAULT).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
