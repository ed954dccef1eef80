//! The times of cues. They are thrown away or become `[HH:MM:SS]`, so whatever was clearly meant as a time is one:
//! negative, of one digit, with a comma, a point or a colon before the fraction, with spaces that a translation program
//! put between its parts, of any number of hours.

/// The line that begins a cue: `START --> END SETTINGS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CueTimes<'a> {
    /// None where the start cannot be read, though the line is clearly one of times.
    pub start_ms: Option<u64>,
    pub end_ms: Option<u64>,
    /// What follows the times, if it is speech; players drop it, but speech is not thrown away here.
    pub words: &'a str,
}

/// What draws a line between two times, besides `-->`.
const ARROWS: [&str; 8] = ["-->", "--&gt;", "->", "=>", "—>", "–>", "→", "-- >"];

/// Keys of the settings that follow a cue's times, as WebVTT and SRT players know them.
const SETTINGS: [&str; 12] =
    ["align", "line", "position", "size", "region", "vertical", "x1", "x2", "y1", "y2", "d", "l"];

/// The times that `line` consists of, if it is the first line of a cue in SRT or WebVTT. `In Haskell x --> y` is not.
pub(super) fn cue_times(line: &str) -> Option<CueTimes<'_>> {
    let line = line.trim();
    let starts_like_a_time = line.starts_with(|c: char| c.is_ascii_digit() || "-−+".contains(c));
    if !starts_like_a_time {
        return None;
    }
    readable_start(line).or_else(|| unreadable_start(line))
}

fn readable_start(line: &str) -> Option<CueTimes<'_>> {
    let (start, after) = leading_time(line)?;
    if let Some(after) = leading_arrow(after) {
        return after_arrow(start, after);
    }
    // Without an arrow, only two times and nothing else.
    let (end, rest) = leading_time(after)?;
    (rest.is_empty() && start.is_precise && end.is_precise).then(|| CueTimes::of(Some(start), Some(end), ""))
}

fn after_arrow(start: Time, after: &str) -> Option<CueTimes<'_>> {
    // The end is thrown away in any case, as long as the start leaves no doubt.
    let (end, rest) = match leading_time(after) {
        Some((end, rest)) => (Some(end), rest),
        None if start.is_precise => (None, after.trim_start()),
        None => return None,
    };
    let rest_of_end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    Some(CueTimes::of(Some(start), end, words_after(&rest[rest_of_end..])))
}

/// `00:0x:01,000 --> 00:00:02,000`: one word with digits and colons on either side of the arrow.
fn unreadable_start(line: &str) -> Option<CueTimes<'_>> {
    let (start, end) = line.split_once("-->")?;
    let resembles_time = |text: &str| {
        let text = text.trim();
        text.contains(':') && text.starts_with(|c: char| c.is_ascii_digit() || c == '-') && !text.contains(' ')
    };
    let end_word = end.split_whitespace().next().unwrap_or_default();
    (resembles_time(start) && resembles_time(end_word)).then(|| CueTimes::of(None, None, ""))
}

/// The times of a cue in YouTube's SBV: `0:00:01.000,0:00:03.000`.
pub(super) fn sbv_times(line: &str) -> Option<CueTimes<'_>> {
    let (start, after) = leading_time(line.trim())?;
    let (end, after) = leading_time(after.strip_prefix(',')?)?;
    after.is_empty().then(|| CueTimes::of(Some(start), Some(end), ""))
}

/// One time and nothing else.
pub(super) fn cue_time(text: &str) -> Option<u64> {
    leading_time(text.trim()).filter(|(_, after)| after.is_empty()).map(|(time, _)| time.ms)
}

impl<'a> CueTimes<'a> {
    fn of(start: Option<Time>, end: Option<Time>, words: &'a str) -> Self {
        Self { start_ms: start.map(|time| time.ms), end_ms: end.map(|time| time.ms), words }
    }
}

#[derive(Clone, Copy)]
struct Time {
    /// 0 for a negative time.
    ms: u64,
    /// With hours or a fraction: `3:16` can be other things.
    is_precise: bool,
}

fn leading_arrow(text: &str) -> Option<&str> {
    let text = text.trim_start();
    ARROWS.iter().find_map(|arrow| text.strip_prefix(arrow))
}

/// The time that `text` begins with, and what follows it: `H:M:S`, `M:S`, either with a fraction.
fn leading_time(text: &str) -> Option<(Time, &str)> {
    let text = text.trim_start();
    let unsigned = text.trim_start_matches(['-', '−', '+']);
    let is_negative = text.starts_with(['-', '−']);
    let (first, mut rest) = leading_digits(unsigned)?;
    let mut parts = vec![first];
    let mut fraction = None;
    while fraction.is_none() && parts.len() < 4 {
        let Some((digits, delimiter, after)) = next_part(rest) else { break };
        // `00:00:01:500`, a fourth part, is a fraction too.
        if ":：".contains(delimiter) && parts.len() < 3 {
            parts.push(digits);
        } else {
            fraction = Some(digits);
        }
        rest = after;
    }
    if parts.len() < 2 {
        return None;
    }
    let seconds = parts.iter().fold(0, |sum: u64, part| sum.saturating_mul(60).saturating_add(number(part)));
    let fraction_ms = number(&format!("{:0<3.3}", fraction.unwrap_or_default()));
    let ms = if is_negative { 0 } else { seconds.saturating_mul(1000).saturating_add(fraction_ms) };
    Some((Time { ms, is_precise: parts.len() == 3 || fraction.is_some() }, rest))
}

/// The digits after a delimiter, with or without spaces around it.
fn next_part(text: &str) -> Option<(&str, char, &str)> {
    let text = text.trim_start_matches(' ');
    let delimiter = text.chars().next().filter(|c| ":：.,．，。;".contains(*c))?;
    let (digits, after) = leading_digits(text[delimiter.len_utf8()..].trim_start_matches(' '))?;
    Some((digits, delimiter, after))
}

fn leading_digits(text: &str) -> Option<(&str, &str)> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    (digits > 0).then(|| text.split_at(digits))
}

fn number(digits: &str) -> u64 {
    digits
        .bytes()
        .fold(0, |sum: u64, digit| sum.saturating_mul(10).saturating_add(u64::from(digit.saturating_sub(b'0'))))
}

/// Speech that follows the times in the same line: anything but settings such as `align:start position:0%`.
fn words_after(rest: &str) -> &str {
    let rest = rest.trim();
    let is_setting = |word: &str| {
        let key = word.split([':', '=']).next().unwrap_or_default();
        word.contains([':', '=', '%']) && SETTINGS.contains(&key.to_ascii_lowercase().as_str())
    };
    let has_words =
        rest.split_whitespace().any(|word| word.contains(char::is_alphabetic) && !word.contains([':', '=', '%']));
    if has_words && !rest.split_whitespace().any(is_setting) { rest } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_meant_as_times_is_read() {
        for (line, start_ms) in [
            ("00:00:01,000 --> 00:00:03,000", 1000),
            ("  01:02:03.456 --> 01:02:04.000 align:start position:0%", 3_723_456),
            ("02:03.456-->02:04.000", 123_456),
            ("-00:00:01,000 --> 00:00:03,000", 0),
            ("00:00:06,500 --> 00:00:06,000", 6500),
            ("0:0:4,8 --> 0:0:7,4", 4800),
            ("0:0:13.540 --> 0:0:15", 13_540),
            ("00:00:01:500 --> 00:00:02:000", 1500),
            ("00: 00: 01, 250 -> 00: 00: 02, 000", 1250),
            ("00:00:01，000 --> 00：00：02。000", 1000),
            ("00:00:01 --> 00:00:02", 1000),
            ("123456:00:00,000 --> 123456:00:01,000", 444_441_600_000),
            ("00:00:75,1234567 --> 00:99:00,0", 75_123),
            ("00:00:01,000 --> 00:00:0x,000", 1000),
            ("00:00:01,000 -->", 1000),
            ("00:00:01,000 --&gt; 00:00:02,000 X1:10 X2:20", 1000),
            ("00:00:01,000 00:00:02,000", 1000),
            ("00:00:01,000 → 00:00:02,000 align: middle line: 90%", 1000),
        ] {
            let times = cue_times(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((times.start_ms, times.words), (Some(start_ms), ""), "{line}");
        }
        let unknown = cue_times("00:0x:01,000 --> 00:00:02,000").unwrap();
        assert_eq!((unknown.start_ms, unknown.end_ms), (None, None));
        let far = cue_times("99999999999999999999:00:00,000 --> 1:00:00,000").unwrap();
        assert_eq!(far.start_ms, Some(u64::MAX));
    }

    #[test]
    fn words_after_the_times_are_kept() {
        assert_eq!(cue_times("00:00:01,000 --> 00:00:02,000 Hello there").unwrap().words, "Hello there");
    }

    #[test]
    fn speech_about_arrows_and_times_is_speech() {
        for line in [
            "In Haskell you write x --> y here.",
            "x --> y",
            "5 --> 6",
            "3:16 --> y",
            "01:23.4 is the record.",
            "from 10:30 to 11:00",
            "10:30 11:00",
            "--> next",
            "2: 30 people --> home",
            "a: b --> 1:00",
            "",
        ] {
            assert_eq!(cue_times(line), None, "{line}");
        }
    }

    #[test]
    fn sbv_has_its_two_times_with_a_comma_between() {
        let times = sbv_times("0:00:01.000,0:00:03.500").unwrap();
        assert_eq!((times.start_ms, times.end_ms), (Some(1000), Some(3500)));
        assert_eq!(sbv_times("0:00:01.000, 0:00:03.500 and"), None);
        assert_eq!(sbv_times("It is 0:00:01.000,0:00:03.500"), None);
    }
}
