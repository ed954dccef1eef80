//! Markdown transcripts: one turn or paragraph per line, turns marked `**Speaker:** text`.
//!
//! This is no Markdown parser. It works line by line and removes what is clearly markup; everything else stays text.

use super::ReadOptions;
use super::blocks::{Line, lines};
use super::inline::inline;
use super::label::{Kind, leading_label};
use super::turns::{Speech, Turn, parse_clock, stamp};
use std::collections::HashMap;
use std::fmt::Write;

pub(super) fn read(contents: &str, options: &ReadOptions) -> Speech {
    let mut speech = Speech { text: String::with_capacity(contents.len()), ..Speech::default() };
    let lines = lines(contents);
    let heads = Heads::of(&lines);
    // A speaker in a line of their own, whose words are in the next one.
    let mut announced: Option<Head> = None;
    for line in &lines {
        let line = match line {
            Line::Code(code) => {
                speech.push_line(code);
                announced = None;
                continue;
            }
            Line::Text(text) => text.trim(),
        };
        let (head, words) = match heads.split(line) {
            Some((head, words)) => (Some(head), words),
            None => (announced.take(), without_heading_marks(line)),
        };
        if words.is_empty() {
            announced = head;
            continue;
        }
        announced = None;
        let (start_ms, words) = take_timestamps(&inline(words), options);
        let Head { name, start_ms: head_ms } = head.unwrap_or_default();
        let speaker = name.filter(|name| !name.is_empty());
        speech.push(&Turn { start_ms: head_ms.or(start_ms), speaker, text: words }, options);
    }
    speech
}

/// Who begins to speak, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Head {
    name: Option<String>,
    start_ms: Option<u64>,
}

/// How often each bold beginning of a line occurs: one that has not the form of a name is one if it recurs.
struct Heads<'a>(HashMap<&'a str, usize>);

impl<'a> Heads<'a> {
    fn of(lines: &'a [Line<'a>]) -> Self {
        let mut counts = HashMap::new();
        for line in lines {
            if let Line::Text(text) = line
                && let Some((name, ..)) = bold_head(text.trim())
            {
                *counts.entry(name).or_default() += 1;
            }
        }
        Self(counts)
    }

    /// The head of a line, and what follows it.
    fn split<'b>(&self, line: &'b str) -> Option<(Head, &'b str)> {
        match bold_head(line) {
            Some((name, start_ms, words)) => {
                let head = self.head(name)?;
                Some((Head { start_ms: head.start_ms.or(start_ms), ..head }, words))
            }
            None => plain_head(line),
        }
    }

    /// `name` stands in bold before a colon or a time.
    fn head(&self, name: &str) -> Option<Head> {
        let text = inline(name.trim_end_matches(':').trim());
        match leading_label(&format!("{text}:")) {
            Some(label) if label.kind == Kind::Heading => None,
            Some(label) if label.kind != Kind::Loose && label.words.is_empty() => {
                Some(Head { name: Some(label.name.to_string()), start_ms: label.start_ms })
            }
            _ => {
                (self.0.get(name).copied().unwrap_or_default() > 1).then_some(Head { name: Some(text), start_ms: None })
            }
        }
    }
}

/// `**Speaker:** text`, `**Speaker**: text` and `**Speaker** (00:12): text`: what is bold, the time, and the text.
fn bold_head(line: &str) -> Option<(&str, Option<u64>, &str)> {
    let (name, words) = line.strip_prefix("**")?.split_once("**")?;
    // `**Break:** [23:42]` announces nobody: its time stays with it.
    let (start_ms, words) = match leading_time(words.trim_start()) {
        Some((ms, after)) if !name.ends_with(':') || !after.trim().is_empty() => (Some(ms), after),
        _ => (None, words),
    };
    let words = match words.trim_start().strip_prefix(':') {
        Some(words) => words,
        None if name.ends_with(':') || start_ms.is_some() => words,
        None => return None,
    };
    (!name.trim_end_matches(':').trim().is_empty()).then_some((name.trim(), start_ms, words.trim()))
}

/// `(00:12)` or `[00:12]`, brackets escaped or not, and what follows. A span of two times is left to
/// [`take_timestamps`].
fn leading_time(text: &str) -> Option<(u64, &str)> {
    let inside = text.trim_start_matches('\\').strip_prefix(['(', '['])?;
    let (clock, after) = inside.split_once([')', ']'])?;
    let ms = parse_clock(clock.trim_end_matches('\\').trim())?;
    (!after.trim_start().starts_with("to ")).then_some((ms, after))
}

/// A name that is one because a time is with it: `Ana Lee: 00:00:20` alone in a line, `Ana Lee (00:00:20): text`.
fn plain_head(line: &str) -> Option<(Head, &str)> {
    // Most lines have no time: this is quicker than to look closely at each.
    let digits = |window: &[u8]| window[0].is_ascii_digit() && window[1] == b':' && window[2].is_ascii_digit();
    if !line.as_bytes().windows(3).take(100).any(digits) {
        return None;
    }
    let label = leading_label(line)?;
    let start_ms = label.start_ms.or_else(|| parse_clock(label.words));
    let words = if label.start_ms.is_none() && start_ms.is_some() { "" } else { label.words };
    let is_name = matches!(label.kind, Kind::Marked | Kind::Name | Kind::Uncased);
    (is_name && start_ms.is_some()).then(|| (Head { name: Some(label.name.to_string()), start_ms }, words))
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
