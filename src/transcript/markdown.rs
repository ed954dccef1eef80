//! Markdown transcripts: one turn or paragraph per line, turns marked `**Speaker:** text`.
//!
//! This is no Markdown parser. It works line by line and removes what is clearly markup; everything else stays text.

use super::ReadOptions;
use super::turns::{Speech, Turn, parse_clock, stamp};
use std::fmt::Write;

/// Code spans and link targets longer than this many characters are taken for text.
const MAX_SPAN_CHARS: usize = 4096;

pub(super) fn read(contents: &str, options: &ReadOptions) -> Speech {
    let mut speech = Speech { text: String::with_capacity(contents.len()), ..Speech::default() };
    // A speaker in a line of their own, whose words are in the next one.
    let mut announced: Option<String> = None;
    for line in contents.lines().map(str::trim).filter(|line| !is_rule(line)) {
        let (speaker, words) = match split_speaker(line) {
            Some((speaker, words)) => (Some(inline(speaker)), words),
            None => (announced.take(), without_heading_marks(line)),
        };
        if words.is_empty() {
            announced = speaker;
            continue;
        }
        announced = None;
        let (start_ms, words) = take_timestamps(&inline(words), options);
        speech.push(&Turn { start_ms, speaker, text: words }, options);
    }
    speech
}

/// `---`, `***` or `___`, with or without spaces between.
fn is_rule(line: &str) -> bool {
    ['-', '*', '_']
        .iter()
        .any(|&mark| line.chars().all(|c| c == mark || c == ' ') && line.chars().filter(|&c| c == mark).count() >= 3)
}

/// `**Speaker:** text` and `**Speaker**: text`.
fn split_speaker(line: &str) -> Option<(&str, &str)> {
    let (name, words) = line.strip_prefix("**")?.split_once("**")?;
    let (name, words) = match name.strip_suffix(':') {
        Some(name) => (name, words),
        None => (name, words.strip_prefix(':')?),
    };
    (!name.trim().is_empty()).then_some((name.trim(), words.trim()))
}

fn without_heading_marks(line: &str) -> &str {
    let title = line.trim_start_matches('#');
    let marks = line.len() - title.len();
    if (1..=6).contains(&marks) && title.starts_with(' ') {
        title.trim().trim_end_matches('#').trim_end()
    } else {
        line
    }
}

/// The line without emphasis marks, backticks, link targets and backslash escapes.
fn inline(line: &str) -> String {
    let mut line_so_far = Inline::default();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        rest = match c {
            '\\' if rest[1..].starts_with(|next: char| next.is_ascii_punctuation()) => {
                line_so_far.out.push_str(&rest[1..2]);
                &rest[2..]
            }
            '`' => line_so_far.code(rest),
            '[' => {
                line_so_far.open_bracket = Some(line_so_far.out.len());
                line_so_far.out.push('[');
                &rest[1..]
            }
            ']' => line_so_far.close_bracket(&rest[1..]),
            '*' | '_' => line_so_far.emphasis(c, rest),
            _ => {
                line_so_far.out.push(c);
                &rest[c.len_utf8()..]
            }
        };
    }
    line_so_far.finish()
}

/// The output so far of [`inline`], and the marks in it that are markup if their other half comes.
#[derive(Default)]
struct Inline {
    out: String,
    open_bracket: Option<usize>,
    /// Where in `out` the last unclosed run of one, two or three `*` (first row) or `_` (second row) begins.
    open_runs: [[Option<usize>; 3]; 2],
    /// Starts and lengths of what turned out to be markup.
    removed: Vec<(usize, usize)>,
}

impl Inline {
    /// `rest` starts with a backtick. Takes the code span, or the backticks if it is not closed.
    fn code<'a>(&mut self, rest: &'a str) -> &'a str {
        let ticks = rest.len() - rest.trim_start_matches('`').len();
        let (fence, after) = rest.split_at(ticks);
        let (code, after) = after[..byte_of_char(after, MAX_SPAN_CHARS)]
            .find(fence)
            .map_or((fence, after), |end| (&after[..end], &after[end + ticks..]));
        self.out.push_str(code);
        after
    }

    /// `after` follows a `]`. Takes the `(target)` of a link or an image.
    fn close_bracket<'a>(&mut self, after: &'a str) -> &'a str {
        if let Some((open, target)) = self.open_bracket.take().zip(link_target_bytes(after)) {
            let marks = if self.out[..open].ends_with('!') { 2 } else { 1 };
            self.removed.push((open + 1 - marks, marks));
            return &after[target..];
        }
        self.out.push(']');
        after
    }

    /// `rest` starts with a run of `mark`s, which is markup if it hugs a word: not the ones of `2 * 3` or `a_b`.
    fn emphasis<'a>(&mut self, mark: char, rest: &'a str) -> &'a str {
        let after = rest.trim_start_matches(mark);
        let run = rest.len() - after.len();
        let (before_char, after_char) = (self.out.chars().next_back(), after.chars().next());
        let opens = after_char.is_some_and(|c| !c.is_whitespace()) && !before_char.is_some_and(char::is_alphanumeric);
        let closes = before_char.is_some_and(|c| !c.is_whitespace()) && !after_char.is_some_and(char::is_alphanumeric);
        let row = usize::from(mark == '_');
        if let Some(open) = self.open_runs[row].get(run - 1).copied().flatten().filter(|_| closes) {
            self.removed.push((open, run));
            // What opened inside cannot close outside.
            for inner in self.open_runs.as_flattened_mut() {
                inner.take_if(|position| *position >= open);
            }
            return after;
        }
        if let Some(slot) = self.open_runs[row].get_mut(run - 1).filter(|_| opens) {
            *slot = Some(self.out.len());
        }
        self.out.push_str(&rest[..run]);
        after
    }

    fn finish(mut self) -> String {
        self.removed.sort_unstable();
        let mut text = String::with_capacity(self.out.len());
        let mut position = 0;
        for (start, length) in self.removed {
            text.push_str(&self.out[position..start]);
            position = start + length;
        }
        text.push_str(&self.out[position..]);
        text
    }
}

/// Bytes of the `(target)` that `text` starts with, if it does. Parentheses in the target come in pairs.
fn link_target_bytes(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (position, c) in text.char_indices().take(MAX_SPAN_CHARS) {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 => return None,
            _ => {}
        }
        if depth == 0 {
            return Some(position + 1);
        }
    }
    None
}

fn byte_of_char(text: &str, index: usize) -> usize {
    text.char_indices().nth(index).map_or(text.len(), |(position, _)| position)
}

/// Takes the timestamps out of a line: `[00:12:34.56]`, `[12:34]`, a span of two joined by "to", and those that end a
/// remark like `[unintelligible 00:12:34.56]`. Returns the one that the line begins with, and the words. Kept ones
/// stay inside the words where they do not begin the line.
fn take_timestamps(line: &str, options: &ReadOptions) -> (Option<u64>, String) {
    let mut start_ms = None;
    let mut words = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(open) = rest.find('[') {
        words.push_str(&rest[..open]);
        rest = &rest[open..];
        if let Some((ms, after)) = leading_timestamp(rest) {
            let end = after.strip_prefix(" to ").and_then(leading_timestamp);
            rest = end.map_or(after, |(_, after)| after);
            if words.trim().is_empty() && start_ms.is_none() {
                start_ms = Some(ms);
            } else if options.keep_timestamps {
                words.push_str(&stamp(ms));
                continue;
            }
            if words.is_empty() || words.ends_with(' ') {
                rest = rest.trim_start();
            }
        } else if let Some((remark, after)) = leading_remark(rest).filter(|_| !options.keep_timestamps) {
            let _ = write!(words, "[{remark}]");
            rest = after;
        } else {
            words.push('[');
            rest = &rest[1..];
        }
    }
    words.push_str(rest);
    (start_ms, words.trim().to_string())
}

fn leading_timestamp(text: &str) -> Option<(u64, &str)> {
    let (clock, after) = leading_brackets(text)?;
    Some((parse_clock(clock)?, after))
}

/// The `remark` of `[remark 00:12:34.56]`.
fn leading_remark(text: &str) -> Option<(&str, &str)> {
    let (content, after) = leading_brackets(text)?;
    let (remark, clock) = content.rsplit_once(' ')?;
    parse_clock(clock).map(|_| (remark, after))
}

fn leading_brackets(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('[')?;
    let end = inside.find(['[', ']'])?;
    Some((&inside[..end], inside[end..].strip_prefix(']')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(contents: &str, options: ReadOptions) -> String {
        super::read(contents, &options).text
    }

    const WORDS_ONLY: ReadOptions = ReadOptions { keep_speakers: false, ..ReadOptions::DEFAULT };
    const DEFAULT: ReadOptions = ReadOptions::DEFAULT;
    const ALL: ReadOptions = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };

    const EPISODE: &str = "# Episode 1: *Beans*\n\n**Jerod Santo:** \\[00:12:34.56\\] Hello. \\[laughs\\]\n\n\
        \\[13:50\\] It was \\[unintelligible 00:14:01.25\\] C\\# \\[14:10\\] then.\n\n---\n\n\
        **Break:** \\[23:42\\]\n\n**Jingle:** \\[50:00\\] to \\[50:18\\]\n\n**Kball**: Bye.\n";

    #[test]
    fn turns_and_paragraphs_become_lines_and_empty_turns_go() {
        let expected =
            "Episode 1: Beans\nJerod Santo: Hello. [laughs]\nIt was [unintelligible] C# then.\nKball: Bye.\n";
        assert_eq!(read(EPISODE, DEFAULT), expected);
        assert_eq!(read(EPISODE, WORDS_ONLY), expected.replace("Jerod Santo: ", "").replace("Kball: ", ""));
    }

    #[test]
    fn timestamps_are_kept_in_one_form() {
        let expected = "Episode 1: Beans\n[00:12:34] Jerod Santo: Hello. [laughs]\n\
            [00:13:50] It was [unintelligible 00:14:01.25] C# [00:14:10] then.\nKball: Bye.\n";
        assert_eq!(read(EPISODE, ALL), expected);
    }

    #[test]
    fn a_speaker_in_a_line_of_their_own_says_the_next_line() {
        assert_eq!(
            read("**Ana:**\n\nHello.\n\nStill me.\n\n**Bo:**\n**Cy:** Hi.", DEFAULT),
            "Ana: Hello.\nStill me.\nCy: Hi.\n"
        );
    }

    #[test]
    fn markup_is_removed_where_it_clearly_is_markup() {
        for (markdown, text) in [
            ("a [Go `map`](https://x.org/a_(b)_c \"T\"), *so* **very __good__**!", "a Go map, so very good!"),
            ("_Releases_ ***all*** \"*quoted*\" ![a *fish*](f.png)", "Releases all \"quoted\" a fish"),
            ("**[bold link](u)** and [**link bold**](u)", "bold link and link bold"),
            ("`a * b_c` and ``tick ` tick`` \\*thumbs\\_up\\*", "a * b_c and tick ` tick *thumbs_up*"),
            ("## Heading ##", "Heading"),
            ("see [[BOSH](https://bosh.io)] \\[[x](y)\\]", "see [BOSH] [x]"),
        ] {
            assert_eq!(read(markdown, DEFAULT), format!("{text}\n"));
        }
    }

    #[test]
    fn what_only_resembles_markup_stays() {
        for text in [
            "2 * 3 * 4 and snake_case_name and f*** it",
            "* a list item, #hashtag, footnote*",
            "an open ` tick, an [open (bracket, [one] (two)",
            "*never closed and **neither is this",
            "C:\\dir \\ x",
            "[3:16] is no time",
        ] {
            assert_eq!(read(text, DEFAULT), format!("{text}\n"));
        }
    }
}
