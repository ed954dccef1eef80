//! What the formats with speakers and times share: a turn, how pieces of speech join into turns, and clock times.

use super::ReadOptions;
use super::speakers::{self, Piece, Place};

/// What one speaker says until the next one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub start_ms: Option<u64>,
    pub speaker: Option<String>,
    pub text: String,
}

impl Turn {
    /// `[HH:MM:SS] Speaker: text\n`, as far as known and wanted.
    fn render(&self, options: &ReadOptions, out: &mut String) {
        if let Some(start_ms) = self.start_ms.filter(|_| options.keep_timestamps) {
            out.push_str(&stamp(start_ms));
            out.push(' ');
        }
        if let Some(speaker) = self.speaker.as_deref().filter(|_| options.keep_speakers) {
            out.push_str(speaker);
            out.push_str(": ");
        }
        out.push_str(&self.text);
        out.push('\n');
    }
}

/// The text of a document as its reader makes it, and what the receipt says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Speech {
    pub text: String,
    /// In the order in which they first speak.
    pub speakers: Vec<String>,
    /// Turns and lines that are not blank.
    pub turns: usize,
    /// See [`Facts::variety`](super::Facts::variety).
    pub variety: Option<&'static str>,
    /// What did not become text though it should have: lines (from 1), and why.
    pub skipped: Vec<(usize, String)>,
}

impl Speech {
    /// Appends a turn; one without words leaves nothing.
    pub fn push(&mut self, turn: &Turn, options: &ReadOptions) {
        if turn.text.is_empty() {
            return;
        }
        if let Some(speaker) = turn.speaker.as_ref().filter(|speaker| !self.speakers.contains(speaker)) {
            self.speakers.push(speaker.clone());
        }
        self.turns += 1;
        turn.render(options, &mut self.text);
    }

    /// Appends a line as it is.
    pub fn push_line(&mut self, line: &str) {
        self.turns += usize::from(!line.trim().is_empty());
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// All of the turns.
    pub fn of(turns: &[Turn], options: &ReadOptions) -> Self {
        let mut speech = Self::default();
        turns.iter().for_each(|turn| speech.push(turn, options));
        speech
    }
}

/// Joins the segments of a speech recogniser into whole turns.
pub(super) fn join(segments: Vec<Turn>) -> Vec<Turn> {
    let pieces = segments.into_iter().map(|Turn { start_ms, speaker, text }| Piece {
        start_ms,
        speaker,
        text,
        place: Place::StartsCue,
    });
    speakers::turns(pieces.collect())
}

pub(super) fn ends_sentence(text: &str) -> bool {
    text.trim_end_matches(['"', '\'', '”', '’', '»', ')', ']']).ends_with(['.', '?', '!', '…', '。', '？', '！'])
}

/// `[HH:MM:SS]`
pub(super) fn stamp(ms: u64) -> String {
    let seconds = ms / 1000;
    format!("[{:02}:{:02}:{:02}]", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Milliseconds of `HH:MM:SS` or `MM:SS`, either with a fraction after a dot or comma.
pub(super) fn parse_clock(clock: &str) -> Option<u64> {
    let (whole, fraction) = clock.split_once(['.', ',']).unwrap_or((clock, "0"));
    let mut parts = whole.rsplit(':');
    let seconds = number(parts.next()?, 2..=2)?;
    let minutes = number(parts.next()?, 2..=2)?;
    let hours = parts.next().map_or(Some(0), |hours| number(hours, 1..=4))?;
    if parts.next().is_some() || seconds > 59 || minutes > 59 {
        return None;
    }
    let fraction_ms = number(fraction, 1..=3)? * 10u64.pow(3 - fraction.len() as u32);
    Some(((hours * 60 + minutes) * 60 + seconds) * 1000 + fraction_ms)
}

fn number(digits: &str, lengths: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let plausible = lengths.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plausible.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(speaker: Option<&str>, text: &str) -> Turn {
        Turn { start_ms: None, speaker: speaker.map(str::to_string), text: text.to_string() }
    }

    fn joined(pieces: Vec<Turn>) -> Vec<String> {
        join(pieces).into_iter().map(|turn| turn.text).collect()
    }

    #[test]
    fn a_turn_lasts_until_another_speaker_begins() {
        let pieces = vec![
            piece(Some("Ana"), " One."),
            piece(None, "Two."),
            piece(Some("Ana"), "Three."),
            piece(Some("Bo"), "Four."),
        ];
        assert_eq!(joined(pieces), ["One. Two. Three.", "Four."]);
    }

    #[test]
    fn speech_of_nobody_named_breaks_where_sentences_end() {
        let pieces = ["So then", "we left.", "He said \"no.\"", "And"].map(|text| piece(None, text)).to_vec();
        assert_eq!(joined(pieces), ["So then we left.", "He said \"no.\"", "And"]);
    }

    #[test]
    fn unpunctuated_speech_of_nobody_named_breaks_by_length() {
        let turns = joined(vec![piece(None, "and then we went home"); 100]);
        assert!(turns.len() > 2 && turns.iter().all(|turn| turn.len() < 600), "{turns:?}");
    }

    #[test]
    fn clocks_are_read_with_or_without_hours_and_fraction() {
        for (clock, ms) in [
            ("01:02:03,456", 3_723_456),
            ("02:03.456", 123_456),
            ("100:00:00", 360_000_000),
            ("00:00:01.5", 1500),
            ("0:00:00.05", 50),
        ] {
            assert_eq!(parse_clock(clock), Some(ms), "{clock}");
        }
        for clock in
            ["", "1", "3:16", "00:60", "00:00:60,000", "1:2:3:4", "00:00:01,", "00:00:01,0000", "-1:00:00", "+1:00:00"]
        {
            assert_eq!(parse_clock(clock), None, "{clock}");
        }
        assert_eq!(stamp(3_723_999), "[01:02:03]");
    }
}
