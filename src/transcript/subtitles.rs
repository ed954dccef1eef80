//! SRT and WebVTT subtitles: cues of text with a start and an end.
//!
//! WebVTT: <https://www.w3.org/TR/webvtt1/>. SRT has no specification; what players accept is accepted here: missing
//! cue numbers, blank lines inside a cue, none between cues, a dot for the comma.

use super::turns::{Speech, Turn, join, parse_clock};
use super::{Format, ReadOptions, at_line};
use anyhow::Result;

/// The names of tags, which are removed. Other text in angle brackets, such as `Vec<u8>`, is not a tag.
const TAGS: [&str; 10] = ["b", "c", "font", "i", "lang", "rt", "ruby", "s", "u", "v"];

const ENTITIES: [(&str, &str); 9] = [
    ("&amp;", "&"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&quot;", "\""),
    ("&#39;", "'"),
    ("&apos;", "'"),
    ("&nbsp;", " "),
    ("&lrm;", "\u{200e}"),
    ("&rlm;", "\u{200f}"),
];

struct Cue<'a> {
    start_ms: u64,
    lines: Vec<&'a str>,
}

/// The turns of a subtitle file, one per line. Errors name file and line of a malformed cue.
pub(super) fn read(name: &str, contents: &str, format: Format, options: &ReadOptions) -> Result<Speech> {
    let mut cues = cues(name, contents, format)?;
    if contents.contains("><c>") {
        drop_rolled_lines(&mut cues);
    }
    Ok(Speech::of(&join(cues.iter().flat_map(pieces).collect()), options))
}

fn cues<'a>(name: &str, contents: &'a str, format: Format) -> Result<Vec<Cue<'a>>> {
    let lines: Vec<&str> = contents.lines().collect();
    let mut cues: Vec<Cue> = Vec::new();
    let mut index = if format == Format::WebVtt { after_header(name, &lines)? } else { 0 };
    while let Some(&line) = lines.get(index) {
        let starts_block = index == 0 || lines[index - 1].trim().is_empty();
        if is_time_line(line) {
            cues.push(Cue { start_ms: start_of_cue(name, index + 1, line)?, lines: Vec::new() });
        } else if format == Format::WebVtt && starts_block && is_comment(line) {
            index += lines[index..].iter().take_while(|line| !line.is_empty()).count();
        } else if is_cue_name(line, starts_block, format) && lines.get(index + 1).is_some_and(|next| is_time_line(next))
        {
            // The times that follow make the cue.
        } else if let Some(cue) = cues.last_mut() {
            cue.lines.push(line);
        } else if !line.trim().is_empty() {
            let message =
                format!("expected the times of a cue (00:00:01.000 --> 00:00:02.000), found \"{}\"", shortened(line));
            return Err(at_line(name, index + 1, message));
        }
        index += 1;
    }
    Ok(cues)
}

/// Index of the line after the WebVTT header: its first line, and metadata up to a blank line or the first cue.
fn after_header(name: &str, lines: &[&str]) -> Result<usize> {
    let first = lines.first().copied().unwrap_or_default();
    if first.split([' ', '\t']).next() != Some("WEBVTT") {
        return Err(at_line(name, 1, "a WebVTT file begins with the line WEBVTT, this one does not"));
    }
    Ok(1 + lines[1..].iter().take_while(|line| !line.trim().is_empty() && !is_time_line(line)).count())
}

/// Also two times with a broken arrow or none: better an error there than times in the text.
fn is_time_line(line: &str) -> bool {
    let is_time = |word: &str| word.contains(['.', ',']) && parse_clock(word).is_some();
    let mut words = line.split_whitespace();
    line.contains("-->") || (words.next().is_some_and(is_time) && words.next_back().is_some_and(is_time))
}

/// `NOTE`, `STYLE` and `REGION` blocks last until a blank line.
fn is_comment(line: &str) -> bool {
    ["NOTE", "STYLE", "REGION"].contains(&line.split([' ', '\t']).next().unwrap_or_default())
}

/// SRT numbers its cues. WebVTT may name them anything, but only after a blank line is that not text.
fn is_cue_name(line: &str, starts_block: bool, format: Format) -> bool {
    let line = line.trim();
    let is_number = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit());
    is_number || (format == Format::WebVtt && starts_block)
}

/// Checks `start --> end settings` and returns the start in milliseconds.
fn start_of_cue(name: &str, number: usize, line: &str) -> Result<u64> {
    let malformed = || {
        at_line(
            name,
            number,
            format!("malformed times \"{}\"; expected 00:00:01.000 --> 00:00:02.000", shortened(line)),
        )
    };
    let (start, end_and_settings) = line.split_once("-->").ok_or_else(malformed)?;
    let end = end_and_settings.split_whitespace().next().unwrap_or_default();
    let start_ms = parse_clock(start.trim()).ok_or_else(malformed)?;
    let end_ms = parse_clock(end).ok_or_else(malformed)?;
    if end_ms < start_ms {
        return Err(at_line(name, number, format!("this cue ends ({end}) before it starts ({})", start.trim())));
    }
    Ok(start_ms)
}

fn shortened(line: &str) -> String {
    line.trim().chars().take(60).collect()
}

/// Captions that grow word by word (YouTube's automatic ones: `word<00:00:01.000><c> word</c>`) begin each cue with
/// the line that the cue before it ended with.
fn drop_rolled_lines(cues: &mut [Cue]) {
    let mut shown = String::new();
    for cue in cues {
        cue.lines.retain(|line| {
            let words: String = voices(line).into_iter().map(|(_, words)| words).collect();
            let words = words.trim();
            let is_new = words != shown;
            if is_new && !words.is_empty() {
                shown = words.to_string();
            }
            is_new
        });
    }
}

/// What is said in a cue, cut where a `<v Name>` tag or a `Name: ` at the start of a line begins another voice.
fn pieces(cue: &Cue) -> Vec<Turn> {
    let mut pieces = Vec::new();
    let mut push = |speaker: Option<&str>, words: &str| {
        pieces.push(Turn {
            start_ms: Some(cue.start_ms),
            speaker: speaker.map(decode_entities),
            text: decode_entities(words),
        });
    };
    for (voice, words) in voices(&cue.lines.join("\n")) {
        if voice.is_some() {
            push(voice, &words);
            continue;
        }
        for line in words.lines() {
            match split_name(line) {
                Some((name, words)) => push(Some(name), words),
                None => push(None, line),
            }
        }
    }
    pieces
}

/// The text without tags, cut at each `<v Name>`. Also without the `{\an8}` that some SRT files use for positions.
fn voices(text: &str) -> Vec<(Option<&str>, String)> {
    let mut voices = Vec::new();
    let (mut voice, mut words) = (None, String::new());
    let mut rest = text;
    while let Some(open) = rest.find(['<', '{']) {
        words.push_str(&rest[..open]);
        rest = &rest[open..];
        match leading_tag(rest) {
            Some((tag, after)) => {
                if let Some(name) = voice_name(tag) {
                    voices.push((voice, std::mem::take(&mut words)));
                    voice = Some(name);
                }
                rest = after;
            }
            None => {
                words.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    words.push_str(rest);
    voices.push((voice, words));
    voices
}

/// The inside of the tag that `text` starts with, and what follows the tag.
fn leading_tag(text: &str) -> Option<(&str, &str)> {
    if let Some(style) = text.strip_prefix("{\\") {
        return style.split_once('}');
    }
    let inside = text.strip_prefix('<')?;
    let end = inside.find(['<', '>'])?;
    let (tag, after) = (&inside[..end], inside[end..].strip_prefix('>')?);
    let name = tag.trim_start_matches('/').split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    (TAGS.contains(&name.to_lowercase().as_str()) || parse_clock(tag).is_some()).then_some((tag, after))
}

/// The name in `v Name` or `v.loud Name`.
fn voice_name(tag: &str) -> Option<&str> {
    let (element, name) = tag.split_once(char::is_whitespace)?;
    let is_voice = element == "v" || element.starts_with("v.");
    (is_voice && !name.trim().is_empty()).then_some(name.trim())
}

/// `Name: text`, where the name is one to four capitalised words, as in `Dr. Mary-Ann O'Neil` or `SPEAKER 2`.
fn split_name(line: &str) -> Option<(&str, &str)> {
    let (name, words) = line.trim().split_once(':')?;
    let is_name_word = |(position, word): (usize, &str)| {
        word.starts_with(|c: char| c.is_uppercase() || (position > 0 && c.is_numeric()))
            && word.chars().all(|c| c.is_alphanumeric() || "._-'’".contains(c))
    };
    let is_name = name.split(' ').count() <= 4 && name.split(' ').enumerate().all(is_name_word);
    let ends_here = words.is_empty() || words.starts_with(char::is_whitespace);
    (is_name && ends_here).then_some((name, words))
}

fn decode_entities(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('&') {
        decoded.push_str(&rest[..position]);
        rest = &rest[position..];
        let (entity, character) =
            ENTITIES.into_iter().find(|(entity, _)| rest.starts_with(entity)).unwrap_or(("&", "&"));
        decoded.push_str(character);
        rest = &rest[entity.len()..];
    }
    decoded.push_str(rest);
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, contents: &str, format: Format, options: ReadOptions) -> Result<String> {
        super::read(name, contents, format, &options).map(|speech| speech.text)
    }

    const WORDS_ONLY: ReadOptions = ReadOptions { keep_speakers: false, ..ReadOptions::DEFAULT };
    const DEFAULT: ReadOptions = ReadOptions::DEFAULT;
    const ALL: ReadOptions = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };

    fn srt(contents: &str) -> String {
        read("a.srt", contents, Format::Srt, DEFAULT).unwrap()
    }

    fn vtt(contents: &str) -> String {
        read("a.vtt", &format!("WEBVTT\n\n{contents}"), Format::WebVtt, DEFAULT).unwrap()
    }

    const TALK: &str = "1\n00:00:01,000 --> 00:00:04,000\nAna: Hello <i>there</i>,\nI said.\n\n2\n\
        00:01:04,500 --> 00:01:06,000\nIt is 10:30.\n\n3\n01:00:00,000 --> 01:00:01,000\nDr. Bo O'Neil: Tom &amp; Jerry?\n";

    #[test]
    fn srt_cues_of_one_speaker_join_into_one_line() {
        assert_eq!(srt(TALK), "Ana: Hello there, I said. It is 10:30.\nDr. Bo O'Neil: Tom & Jerry?\n");
        let words = read("a.srt", TALK, Format::Srt, WORDS_ONLY).unwrap();
        assert_eq!(words, "Hello there, I said. It is 10:30.\nTom & Jerry?\n");
    }

    #[test]
    fn a_kept_timestamp_is_the_start_of_the_first_cue_of_the_turn() {
        let kept = read("a.srt", TALK, Format::Srt, ALL).unwrap();
        assert_eq!(kept, "[00:00:01] Ana: Hello there, I said. It is 10:30.\n[01:00:00] Dr. Bo O'Neil: Tom & Jerry?\n");
    }

    #[test]
    fn sloppy_srt_is_understood() {
        let sloppy = "00:00:01.000 --> 00:00:02.000 X1:10 X2:20\nAna:\n{\\an8}One\n\nmore.\n7\n0:00:03,000-->0:00:04,0\n42\n01:23.4 is the record.\n";
        assert_eq!(srt(sloppy), "Ana: One more. 42 01:23.4 is the record.\n");
    }

    #[test]
    fn only_capitalised_words_before_a_colon_are_a_speaker() {
        assert_eq!(
            srt("1\n00:00:01,0 --> 00:00:02,0\nSPEAKER 2: a\nHere is one: b\nhttps://x.org\nA B C D E: f\n"),
            "SPEAKER 2: a Here is one: b https://x.org A B C D E: f\n"
        );
    }

    #[test]
    fn webvtt_keeps_only_what_is_said() {
        let contents = "STYLE\n::cue { color: red }\n\nNOTE a\ncomment\n\nintro\n00:01.000 --> 00:02.000 align:start\n\
            <v.loud Ana Lee>Hi, <c.yellow>you</c>! 1 &lt; 2</v>\n\n00:02.000 --> 00:03.000\n<v Ana Lee>More <00:02.500>of it,\n\
            Vec<u8>.\n\nREGION\nid:x\n\n01:00:00.000 --> 01:00:01.000\n<v Bo>Yes. <v Ana Lee>No?\n";
        assert_eq!(vtt(contents), "Ana Lee: Hi, you! 1 < 2 More of it, Vec<u8>.\nBo: Yes.\nAna Lee: No?\n");
    }

    #[test]
    fn webvtt_header_metadata_is_skipped() {
        let contents = "WEBVTT - A title\nKind: captions\n00:01.000 --> 00:02.000\nHi.\n";
        assert_eq!(read("a.vtt", contents, Format::WebVtt, DEFAULT).unwrap(), "Hi.\n");
    }

    #[test]
    fn captions_that_grow_word_by_word_are_read_once() {
        let contents = "00:00:00.000 --> 00:00:02.000 align:start position:0%\n \nhello<00:00:00.500><c> world</c>\n\n\
            00:00:02.000 --> 00:00:02.010\nhello world\n \n\n00:00:02.010 --> 00:00:04.000\nhello world\n\
            this<00:00:02.500><c> is</c>\n\n00:00:04.000 --> 00:00:04.010\nthis is\n \n";
        assert_eq!(vtt(contents), "hello world this is\n");
    }

    #[test]
    fn malformed_cues_are_named_with_file_and_line() {
        for (contents, message) in [
            ("1\n00:00:01,000 --> 00:00:0x,000\nHi.\n", "a.srt:2: malformed times \"00:00:01,000 --> 00:00:0x,000\""),
            ("1\n00:00:01,000 -> 00:00:02,000\nHi.\n", "a.srt:2: malformed times"),
            ("1\n00:00:01,000 00:00:02,000\nHi.\n", "a.srt:2: malformed times"),
            ("1\n00:00:01,000 --> \nHi.\n", "a.srt:2: malformed times"),
            (
                "1\n00:00:03,000 --> 00:00:02,000\nHi.\n",
                "a.srt:2: this cue ends (00:00:02,000) before it starts (00:00:03,000)",
            ),
            ("\nHi.\n", "a.srt:2: expected the times of a cue (00:00:01.000 --> 00:00:02.000), found \"Hi.\""),
        ] {
            let error = read("a.srt", contents, Format::Srt, DEFAULT).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
        let error = read("a.vtt", "1\n00:01.000 --> 00:02.000\n", Format::WebVtt, DEFAULT).unwrap_err().to_string();
        assert_eq!(error, "a.vtt:1: a WebVTT file begins with the line WEBVTT, this one does not");
        let error = read("a.vtt", "WEBVTT\n\n00:01.000 --> 61:02.000\n", Format::WebVtt, DEFAULT).unwrap_err();
        assert!(error.to_string().starts_with("a.vtt:3: malformed times"), "{error}");
    }
}
