//! What cue formats put between the words: tags, styles, voices, character references.

use super::times::cue_time;
use std::borrow::Cow;

/// One line of what is said in a cue, by one voice, without markup and with single spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpokenLine {
    /// From a `<v Name>` tag.
    pub speaker: Option<String>,
    pub text: String,
    /// The rest of a line whose beginning was in the cue before.
    pub continues: bool,
}

/// The names of tags, which are removed. Other text in angle brackets, such as `Vec<u8>`, is not a tag.
const TAGS: [&str; 20] = [
    "b", "br", "c", "center", "div", "em", "font", "h", "i", "lang", "p", "rp", "rt", "ruby", "s", "small", "span",
    "strong", "u", "v",
];
/// A style in braces is not longer than this many bytes.
const MAX_STYLE_BYTES: usize = 400;

/// How character references are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum References {
    /// As in HTML, on which WebVTT (section 6.4) relies: some old names need no semicolon.
    Html,
    /// Only those that end in a semicolon, so that `R&D` and `a=1&copy=2` are safe.
    Strict,
}

/// What is said in a cue: a line for each of its lines that has words, cut where a `<v Name>` tag begins another voice.
/// Also removes the `{\an8}` that some SRT files use for positions.
pub(super) fn spoken_lines(raw: &[Cow<str>], references: References) -> Vec<SpokenLine> {
    let text = raw.join("\n");
    let mut lines = Vec::new();
    let (mut speaker, mut words): (Option<String>, String) = (None, String::new());
    let mut end_line = |speaker: &Option<String>, words: &mut String| {
        let text = single_spaced(&decode_references(words, references));
        words.clear();
        if !text.is_empty() {
            lines.push(SpokenLine { speaker: speaker.clone(), text, continues: false });
        }
    };
    let mut rest = text.as_str();
    while let Some(position) = rest.find(['<', '{', '\n']) {
        words.push_str(&rest[..position]);
        rest = &rest[position..];
        if let Some(after) = rest.strip_prefix('\n') {
            end_line(&speaker, &mut words);
            rest = after;
        } else if let Some((tag, after)) = leading_tag(rest) {
            match tag_effect(tag) {
                Effect::Voice(name) => {
                    end_line(&speaker, &mut words);
                    speaker = name.map(|name| single_spaced(&decode_references(name, references)));
                }
                Effect::Break => end_line(&speaker, &mut words),
                Effect::None => {}
            }
            rest = after;
        } else {
            words.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    words.push_str(rest);
    end_line(&speaker, &mut words);
    lines
}

pub(super) fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text with its HTML character references (`&amp;`, `&#39;`, `&eacute;`, all of HTML's) replaced.
pub(super) fn decode_references(text: &str, references: References) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    if references == References::Html {
        return htmlize::unescape(text);
    }
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('&') {
        decoded.push_str(&rest[..position]);
        rest = &rest[position..];
        let reference_bytes = reference_bytes(rest);
        decoded.push_str(&htmlize::unescape(&rest[..reference_bytes]));
        rest = &rest[reference_bytes..];
        if reference_bytes == 0 {
            decoded.push('&');
            rest = &rest[1..];
        }
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

/// Bytes of the `&name;` or `&#number;` that `text` starts with, 0 if it does not.
pub(super) fn reference_bytes(text: &str) -> usize {
    let body = text[1..].trim_start_matches('#');
    let after = body.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
    if after.len() < body.len() && after.starts_with(';') { text.len() - after.len() + 1 } else { 0 }
}

/// The inside of the tag that `text` starts with, and what follows the tag.
fn leading_tag(text: &str) -> Option<(&str, &str)> {
    if let Some(braced) = text.strip_prefix('{') {
        return leading_style(braced);
    }
    let inside = text.strip_prefix('<')?;
    let end = inside.find(['<', '>'])?;
    let (tag, after) = (&inside[..end], inside[end..].strip_prefix('>')?);
    let body = tag.strip_prefix('/').unwrap_or(tag);
    let name_bytes = body.len() - body.trim_start_matches(|c: char| c.is_ascii_alphanumeric()).len();
    let (name, attributes) = body.split_at(name_bytes);
    let ends_name = attributes.is_empty() || attributes.starts_with(|c: char| c.is_whitespace() || "./".contains(c));
    let is_tag = TAGS.contains(&name.to_ascii_lowercase().as_str()) && ends_name;
    (is_tag || cue_time(tag).is_some()).then_some((tag, after))
}

/// `\an8}` of Advanced SubStation, `y:i}` of MicroDVD, after the opening brace.
fn leading_style(braced: &str) -> Option<(&str, &str)> {
    let is_microdvd = braced.as_bytes().get(1) == Some(&b':') && braced.starts_with(|c: char| c.is_ascii_alphabetic());
    if !braced.starts_with('\\') && !is_microdvd {
        return None;
    }
    let end = braced.bytes().take(MAX_STYLE_BYTES).position(|byte| byte == b'}' || byte == b'\n')?;
    Some((&braced[..end], braced[end..].strip_prefix('}')?))
}

enum Effect<'a> {
    Voice(Option<&'a str>),
    Break,
    None,
}

/// `v Name`, `v.loud Name` and `/v` change the voice, `br` breaks the line.
fn tag_effect(tag: &str) -> Effect<'_> {
    let (element, annotation) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
    let element = element.trim_end_matches('/');
    if element.eq_ignore_ascii_case("br") {
        return Effect::Break;
    }
    if element == "/v" {
        return Effect::Voice(None);
    }
    let is_voice = element == "v" || element.starts_with("v.");
    if is_voice && !annotation.trim().is_empty() { Effect::Voice(Some(annotation)) } else { Effect::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(Option<String>, String)> {
        let raw: Vec<Cow<str>> = text.split('\n').map(Cow::Borrowed).collect();
        spoken_lines(&raw, References::Html).into_iter().map(|line| (line.speaker, line.text)).collect()
    }

    fn words(text: &str) -> String {
        lines(text).into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn tags_go_and_other_angle_brackets_stay() {
        for (text, expected) in [
            ("<i>Hi</i> <b>you</b> <c.yellow.bg_blue>there</c>", "Hi you there"),
            ("<font color=\"#ff0000\">red</font> {\\an8}{\\i1}up{\\i0}", "red up"),
            ("go<00:00:01.000><c> on</c><0:0:2.5> then", "go on then"),
            ("{y:i}italic", "italic"),
            ("one<br>two<br/>three<BR />four", "one|two|three|four"),
            ("a < b, c > d and <3 of Vec<u8> {x} <b", "a < b, c > d and <3 of Vec<u8> {x} <b"),
            ("x <-y <brilliant> <c++> {\\", "x <-y <brilliant> <c++> {\\"),
            ("<v>nobody", "nobody"),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    #[test]
    fn a_voice_lasts_until_its_end_or_the_next() {
        let voice = |name: &str, text: &str| (Some(name.to_string()), text.to_string());
        assert_eq!(
            lines("<v.loud Ana &amp; Bo>One\ntwo</v> three <v Cy>four"),
            [voice("Ana & Bo", "One"), voice("Ana & Bo", "two"), (None, "three".to_string()), voice("Cy", "four")]
        );
    }

    #[test]
    fn all_character_references_of_html_are_read_once() {
        let text = "It&#39;s the chef&#8217;s caf&eacute;, 5&deg;C&hellip; &lt;b&gt; &amp;lt; &nbsp;&CounterClockwiseContourIntegral;";
        assert_eq!(words(text), "It's the chef\u{2019}s café, 5°C… <b> &lt; ∳");
        let strict = |text| decode_references(text, References::Strict).into_owned();
        assert_eq!(
            strict("R&D &copy &amp; &#x27;&#39; a=1&copy=2 &nosuch; &;&&#;&é;"),
            "R&D &copy & '' a=1&copy=2 &nosuch; &;&&#;&é;"
        );
        assert_eq!(decode_references("&copy 2", References::Html), "© 2");
    }
}
