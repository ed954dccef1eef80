//! Plain text, and text copied from podcast pages.

use super::ReadOptions;
use super::turns::{Speech, Turn, parse_clock};

/// The text as it is: blank lines and spaces may mean something. Only the page lines
/// `Starting point is HH:MM:SS text` lose their prefix, or keep it as `[HH:MM:SS] text`.
pub(super) fn read(contents: &str, options: &ReadOptions) -> Speech {
    let mut speech = Speech { text: String::with_capacity(contents.len() + 1), ..Speech::default() };
    for line in contents.lines() {
        match timed_line(line) {
            Some(turn) => speech.push(&turn, options),
            None => speech.push_line(line),
        }
    }
    speech
}

/// Stands between the documents of a corpus, at an end of a line or alone in it.
const BOUNDARY: &str = "<|endoftext|>";

/// The documents in a text, between boundaries. One in quotes or backticks is spoken of, and none.
pub(super) fn documents(contents: &str) -> impl Iterator<Item = &str> {
    let is_quote = |c: char| "`\"'“”‘’".contains(c);
    let mut rest = Some(contents);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let boundary = text.match_indices(BOUNDARY).map(|(start, _)| start).find(|&start| {
            let after = &text[start + BOUNDARY.len()..];
            !(text[..start].ends_with(is_quote) && after.starts_with(is_quote))
        });
        let Some(start) = boundary else { return Some(text) };
        let after = &text[start + BOUNDARY.len()..];
        rest = Some(after.strip_prefix('\n').unwrap_or(after)).filter(|after| !after.trim().is_empty());
        Some(&text[..start])
    })
    .filter(|text| !text.trim().is_empty())
}

fn timed_line(line: &str) -> Option<Turn> {
    let timed = line.strip_prefix("Starting point is ")?;
    let (clock, words) = timed.split_once(' ').unwrap_or((timed, ""));
    Some(Turn { start_ms: Some(parse_clock(clock)?), speaker: None, text: words.trim().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "A Podcast\n\nTranscript\nStarting point is 00:00:09 Hello there. Hi.\n\
        Starting point is 01:02:03 \nStarting point is a hard thing to choose.\n\nFooter";

    #[test]
    fn page_timestamps_are_dropped_and_all_other_lines_stay() {
        let options = &ReadOptions::DEFAULT;
        let expected =
            "A Podcast\n\nTranscript\nHello there. Hi.\nStarting point is a hard thing to choose.\n\nFooter\n";
        assert_eq!(read(PAGE, options).text, expected);
    }

    #[test]
    fn page_timestamps_are_kept_in_brackets() {
        let options = &ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };
        assert!(read(PAGE, options).text.contains("Transcript\n[00:00:09] Hello there. Hi.\nStarting point is a hard"));
    }

    #[test]
    fn verse_keeps_its_blank_lines_and_spaces() {
        let verse = "First Citizen:\n  Before we proceed,  \n\nAll:\nSpeak, speak.\n";
        assert_eq!(read(verse, &ReadOptions { keep_speakers: false, ..ReadOptions::DEFAULT }).text, verse);
    }
}
