//! Captions that roll: each cue shows again what the one before it ended with, and adds a line or a word. Read as they
//! are, everything would be said two or three times.
//!
//! YouTube's automatic captions hold a line for 10 ms and then show it above the next one, broadcast captions
//! (CEA-608) roll two or three rows up, live captions grow word by word, and speech recognisers repeat a line for each
//! word that they highlight. All of them are measured by the same thing: how much of the end of one cue the next one
//! begins with. Only where most pairs of cues overlap so, or many in a row, is the overlap removed; a single
//! repetition is speech.

use super::cues::Cue;

/// Cues of more rows are not on a screen; only so many are compared.
const MAX_ROWS: usize = 16;
/// So many words of a cue are compared where lines are broken anew.
const MAX_WORDS: usize = 64;
/// Fewer words than this may well be said twice.
const MIN_WORDS: usize = 3;
/// A cue shown for less is there for technical reasons.
const BRIEF_MS: u64 = 50;
/// A file rolls where at least two fifths of the pairs that can tell overlap, two of them at least...
const ROLLING_SHARE: (usize, usize) = (2, 5);
/// ...by so many bytes together.
const ROLLING_BYTES: usize = 16;
/// So many overlapping pairs in a row are rolling, whatever the rest of the file does.
const ROLLING_RUN: usize = 4;

/// How a cue's text relates to that of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    /// The cue begins with what the one before ends with: whole lines, and so many bytes of the next line.
    Overlap {
        lines: usize,
        bytes: usize,
    },
    /// The same text again, which may be a repetition by the speaker.
    Same,
    Different,
}

/// Removes cues without words, copies of a cue, and, if the cues roll, from each what it repeats of the one before.
/// Returns how many cues rolled.
pub(super) fn unroll(cues: &mut Vec<Cue>) -> usize {
    cues.retain(|cue| !cue.lines.is_empty());
    drop_copies(cues);
    let pairs: Vec<Pair> = cues.windows(2).map(|pair| compare(&pair[0], &pair[1])).collect();
    let rolls = is_rolling(cues, &pairs);
    let mut rolled = 0;
    let mut start = 0;
    while start < pairs.len() {
        // At least one pair: a different one makes an empty run.
        let run = pairs[start..].iter().take_while(|pair| **pair != Pair::Different).count();
        let overlaps = pairs[start..start + run].iter().filter(|pair| matches!(pair, Pair::Overlap { .. })).count();
        if rolls || overlaps >= ROLLING_RUN {
            for index in start..start + run {
                cut(&mut cues[index + 1], pairs[index]);
            }
            rolled += run;
        }
        start += run + 1;
    }
    cues.retain(|cue| !cue.lines.is_empty());
    rolled
}

/// The parts of a joined HLS stream repeat the cues that are on the screen where they meet. A cue of the same times and
/// words as the one before is a copy too.
fn drop_copies(cues: &mut Vec<Cue>) {
    let is_copy = |earlier: &Cue, cue: &Cue| {
        cue.end_ms.is_some()
            && (earlier.start_ms, earlier.end_ms) == (cue.start_ms, cue.end_ms)
            && earlier.lines == cue.lines
    };
    let copies: Vec<bool> = (0..cues.len())
        .map(|index| {
            let near = &cues[index.saturating_sub(MAX_ROWS)..index];
            let previous_part = near.iter().filter(|earlier| earlier.part + 1 == cues[index].part);
            near.last().into_iter().chain(previous_part).any(|earlier| is_copy(earlier, &cues[index]))
        })
        .collect();
    let mut copies = copies.into_iter();
    cues.retain(|_| !copies.next().unwrap_or_default());
}

fn is_rolling(cues: &[Cue], pairs: &[Pair]) -> bool {
    let (mut overlapping, mut different, mut total_bytes) = (0, 0, 0);
    for (pair, cue) in pairs.iter().zip(&cues[1.min(cues.len())..]) {
        match pair {
            Pair::Overlap { lines, bytes } => {
                overlapping += 1;
                total_bytes += bytes + cue.lines[..*lines].iter().map(|line| line.text.len()).sum::<usize>();
            }
            Pair::Same => {}
            Pair::Different => different += 1,
        }
    }
    let (share, of) = ROLLING_SHARE;
    overlapping >= 2 && total_bytes >= ROLLING_BYTES && overlapping * of >= (overlapping + different) * share
}

fn compare(before: &Cue, cue: &Cue) -> Pair {
    if before.lines == cue.lines {
        let is_brief = |cue: &Cue| {
            cue.start_ms
                .zip(cue.end_ms)
                .is_some_and(|(start, end)| end.checked_sub(start).is_some_and(|ms| ms <= BRIEF_MS))
        };
        // The same words, with another one of them highlighted.
        let only_markup_differs = !before.has_markup_of(cue);
        let shown_again = is_brief(before) || is_brief(cue) || only_markup_differs;
        return if shown_again { Pair::Overlap { lines: cue.lines.len(), bytes: 0 } } else { Pair::Same };
    }
    common_lines(before, cue).or_else(|| common_words(before, cue)).unwrap_or(Pair::Different)
}

/// The last lines of one cue as the first of the next, of which the last one may have grown.
fn common_lines(before: &Cue, cue: &Cue) -> Option<Pair> {
    let most = before.lines.len().min(cue.lines.len()).min(MAX_ROWS);
    (1..=most).rev().find_map(|rows| {
        let (old, new) = (&before.lines[before.lines.len() - rows..], &cue.lines[..rows]);
        let last = rows - 1;
        if old[..last] != new[..last] || old[last].speaker != new[last].speaker {
            return None;
        }
        let grown = new[last].text.strip_prefix(old[last].text.as_str())?;
        if grown.is_empty() {
            return Some(Pair::Overlap { lines: rows, bytes: 0 });
        }
        let within_word = |c: char| c.is_lowercase() || c.is_uppercase() || c.is_numeric();
        let ends_in_word = old[last].text.ends_with(within_word) && grown.starts_with(within_word);
        (!ends_in_word).then_some(Pair::Overlap { lines: last, bytes: old[last].text.len() })
    })
}

/// The last words of one cue as the first of the next, wherever their lines break.
fn common_words(before: &Cue, cue: &Cue) -> Option<Pair> {
    let mut old: Vec<&str> = words_of(before).rev().take(MAX_WORDS).collect();
    old.reverse();
    let new: Vec<&str> = words_of(cue).take(MAX_WORDS).collect();
    let most = old.len().min(new.len());
    let count = (MIN_WORDS..=most).rev().find(|&count| old[old.len() - count..] == new[..count])?;
    let mut left = count;
    for (lines, line) in cue.lines.iter().enumerate() {
        let in_line = line.text.split_whitespace().count();
        if left < in_line {
            return Some(Pair::Overlap { lines, bytes: bytes_of_words(&line.text, left) });
        }
        left -= in_line;
    }
    Some(Pair::Overlap { lines: cue.lines.len(), bytes: 0 })
}

fn words_of<'a>(cue: &'a Cue) -> impl DoubleEndedIterator<Item = &'a str> {
    cue.lines.iter().flat_map(|line| line.text.split_whitespace())
}

fn bytes_of_words(text: &str, count: usize) -> usize {
    let rest = (0..count).fold(text, |rest, _| rest.trim_start().trim_start_matches(|c: char| !c.is_whitespace()));
    text.len() - rest.len()
}

fn cut(cue: &mut Cue, pair: Pair) {
    let (lines, bytes) = match pair {
        Pair::Overlap { lines, bytes } => (lines, bytes),
        Pair::Same => (cue.lines.len(), 0),
        Pair::Different => return,
    };
    cue.lines.drain(..lines);
    if let Some(line) = cue.lines.first_mut().filter(|_| bytes > 0) {
        line.text = line.text[bytes..].trim_start().to_string();
        line.continues = true;
    }
}
