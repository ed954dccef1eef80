//! The cues of SRT, WebVTT and SBV files: lines of text with a start and an end.
//!
//! WebVTT: <https://www.w3.org/TR/webvtt1/>. SRT and SBV have no specification; what players accept is accepted here:
//! missing and doubled cue numbers, blank lines anywhere, none between cues. Only the lines of times matter: what
//! follows one, up to the next, is its cue.

use super::Format;
use super::markup::{References, SpokenLine, spoken_lines};
use super::times::{CueTimes, cue_times, sbv_times};
use std::borrow::Cow;

/// Stands where bytes are that are not UTF-8; a character that no text has (Unicode 23.7, noncharacters).
pub(super) const UNDECODABLE: char = '\u{fdd0}';

/// Text that is shown from a start to an end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cue<'a> {
    /// Of its times, from 1.
    pub line: usize,
    pub start_ms: Option<u64>,
    pub end_ms: Option<u64>,
    /// Number of the part of a joined stream.
    pub part: usize,
    /// The lines of the file, with their markup.
    pub raw: Vec<Cow<'a, str>>,
    pub lines: Vec<SpokenLine>,
}

impl Cue<'_> {
    /// Whether both hold the same, markup included.
    pub fn has_markup_of(&self, other: &Self) -> bool {
        let lines = |cue: &'_ Self| -> Vec<String> {
            cue.raw.iter().map(|line| line.trim().to_string()).filter(|line| !line.is_empty()).collect()
        };
        lines(self) == lines(other)
    }
}

/// The cues of a file, and the lines (numbered from 1) that belong to none.
#[derive(Clone, Debug, Default)]
pub(super) struct Cues<'a> {
    pub cues: Vec<Cue<'a>>,
    pub stray: Vec<usize>,
}

/// The cues of `contents` in the order of the file.
pub(super) fn cues(contents: &str, format: Format) -> Cues<'_> {
    let lines: Vec<&str> = contents.lines().map(|line| line.trim_start_matches('\u{feff}')).collect();
    let mut file = Lines { format, is_numbered: false, lines };
    file.is_numbered = file.most_cues_are_numbered();
    let references = if format == Format::WebVtt { References::Html } else { References::Strict };
    let mut found = file.collect();
    for cue in &mut found.cues {
        cue.lines = spoken_lines(&cue.raw, references);
    }
    found
}

struct Lines<'a> {
    format: Format,
    /// Whether a number before the times is the cue's, and not the last word of the cue before.
    is_numbered: bool,
    lines: Vec<&'a str>,
}

impl<'a> Lines<'a> {
    fn collect(&self) -> Cues<'a> {
        let mut found = Cues::default();
        let (mut index, mut part) = (0, 0);
        while let Some(&line) = self.lines.get(index) {
            if let Some(times) = self.times(index) {
                let raw = Some(times.words).filter(|words| !words.is_empty()).map(Cow::Borrowed).into_iter().collect();
                let CueTimes { start_ms, end_ms, .. } = times;
                found.cues.push(Cue { line: index + 1, start_ms, end_ms, part, raw, lines: Vec::new() });
            } else if self.is_header(index) {
                part += 1;
                index = self.end_of_block(index);
                continue;
            } else if self.starts_comment(index) {
                index = self.end_of_block(index);
                continue;
            } else if line.starts_with("X-TIMESTAMP-MAP=") || self.is_cue_name(index) {
                // Says nothing about the words.
            } else if let Some(cue) = found.cues.last_mut() {
                cue.raw.push(Cow::Borrowed(line));
            } else if !line.trim().is_empty() {
                found.stray.push(index + 1);
            }
            index += 1;
        }
        found
    }

    fn times(&self, index: usize) -> Option<CueTimes<'a>> {
        let line = self.lines.get(index)?;
        if self.format == Format::Sbv { sbv_times(line) } else { cue_times(line) }
    }

    fn starts_block(&self, index: usize) -> bool {
        index == 0 || self.lines[index - 1].trim().is_empty()
    }

    /// Index of the blank line or the times that end the block which `index` is in.
    fn end_of_block(&self, index: usize) -> usize {
        let ends = |&index: &usize| self.lines[index].trim().is_empty() || self.times(index).is_some();
        (index + 1..self.lines.len()).find(ends).unwrap_or(self.lines.len())
    }

    /// `WEBVTT`, with a title or metadata up to the next blank line. Streams that were cut and joined again (HLS) have
    /// one in each part, not always after a blank line.
    fn is_header(&self, index: usize) -> bool {
        let line = self.lines[index];
        let Some(title) = line.strip_prefix("WEBVTT") else { return false };
        let next = self.lines.get(index + 1).map_or("", |next| next.trim());
        let ends_here = title.trim().is_empty() && (next.is_empty() || self.times(index + 1).is_some());
        (self.starts_block(index) && (title.is_empty() || title.starts_with([' ', '\t'])))
            || next.starts_with("X-TIMESTAMP-MAP=")
            || ends_here
    }

    /// `NOTE`, `STYLE` and `REGION` blocks of WebVTT.
    fn starts_comment(&self, index: usize) -> bool {
        let line = self.lines[index];
        let is_note = line == "NOTE" || line.starts_with("NOTE ") || line.starts_with("NOTE\t");
        let is_comment = is_note || ["STYLE", "REGION"].contains(&line.trim_end());
        self.format == Format::WebVtt && is_comment && self.starts_block(index)
    }

    /// The number of an SRT cue, also twice or with blank lines after it; in WebVTT, any line between a blank one and
    /// the times.
    fn is_cue_name(&self, index: usize) -> bool {
        match self.format {
            Format::WebVtt => self.times(index + 1).is_some() && (self.starts_block(index) || self.is_number(index)),
            Format::Srt => {
                let is_doubled = || self.lines.get(index + 1) == Some(&self.lines[index]) && self.starts_block(index);
                let last = if self.is_number(index) && is_doubled() { index + 1 } else { index };
                let is_before_times = self.times(last + 1).is_some() || (self.is_numbered && self.times_follow(last));
                self.is_number(index) && is_before_times
            }
            _ => false,
        }
    }

    /// Whether the next line that is not blank holds times.
    fn times_follow(&self, index: usize) -> bool {
        let next = (index + 1..self.lines.len()).find(|&next| !self.lines[next].trim().is_empty());
        next.is_some_and(|next| self.times(next).is_some())
    }

    fn is_number(&self, index: usize) -> bool {
        let line = self.lines[index].trim();
        let digits = line.strip_prefix('-').unwrap_or(line);
        digits.starts_with(|c: char| c.is_ascii_digit()) && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    }

    fn most_cues_are_numbered(&self) -> bool {
        let (mut cues, mut numbered, mut last_is_number) = (0, 0, false);
        for index in 0..self.lines.len() {
            if self.times(index).is_some() {
                cues += 1;
                numbered += usize::from(last_is_number);
            }
            if !self.lines[index].trim().is_empty() {
                last_is_number = self.is_number(index);
            }
        }
        numbered * 2 > cues
    }
}
