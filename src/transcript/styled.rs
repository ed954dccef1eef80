//! Subtitles whose files are made of fields instead of lines: SubStation Alpha (`.ass`, `.ssa`) and TTML.

use super::at_line;
use super::cues::{Cue, Cues};
use super::markup::{References, SpokenLine, single_spaced, spoken_lines};
use super::times::cue_time;
use anyhow::Result;
use roxmltree::{Document, Node};
use std::borrow::Cow;
use std::collections::HashMap;

/// The columns of an event where no `Format:` line names them.
const EVENT_COLUMNS: &str = "Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text";

/// A paragraph's times and agent may be those of what it is in, but not from farther than this.
const MAX_DEPTH: usize = 8;

/// The `Dialogue:` lines of a SubStation Alpha file, sorted by their start; other events are not speech. `Name` holds
/// the speaker, if anything.
pub(super) fn substation(contents: &str) -> Cues<'_> {
    let mut columns = column_names(EVENT_COLUMNS);
    let mut found = Cues::default();
    let mut in_events = false;
    for (index, line) in contents.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            in_events = line.eq_ignore_ascii_case("[events]");
        } else if let Some(names) = line.strip_prefix("Format:").filter(|_| in_events) {
            columns = column_names(names);
        } else if let Some(event) = line.strip_prefix("Dialogue:") {
            match dialogue(event, &columns) {
                Some(cue) => found.cues.push(Cue { line: index + 1, ..cue }),
                None => found.stray.push(index + 1),
            }
        }
    }
    found.cues.sort_by_key(|cue| cue.start_ms);
    found
}

fn column_names(names: &str) -> Vec<String> {
    names.split(',').map(|name| name.trim().to_ascii_lowercase()).collect()
}

/// The text is the last column, and may contain commas.
fn dialogue<'a>(event: &'a str, columns: &[String]) -> Option<Cue<'a>> {
    let fields: Vec<&str> = event.splitn(columns.len(), ',').collect();
    let field = |name: &str| fields.get(columns.iter().position(|column| column == name)?).map(|field| field.trim());
    let text = field("text")?;
    let raw: Vec<Cow<str>> =
        text.split("\\N").map(|line| Cow::Owned(line.replace("\\n", " ").replace("\\h", " "))).collect();
    let raw: Vec<Cow<str>> = raw.iter().map(|line| Cow::Owned(without_overrides(line))).collect();
    let mut lines = spoken_lines(&raw, References::Strict);
    if let Some(name) = field("name").or_else(|| field("actor")).filter(|name| !name.is_empty()) {
        lines.iter_mut().for_each(|line| line.speaker = Some(single_spaced(name)));
    }
    let (start_ms, end_ms) = (field("start").and_then(cue_time), field("end").and_then(cue_time));
    Some(Cue { start_ms, end_ms, lines, raw: vec![Cow::Borrowed(text)], ..Cue::default() })
}

/// Without `{\i1}` and comments in braces; drawings (`{\p1}m 0 0 l 100 0`) have no words at all.
fn without_overrides(line: &str) -> String {
    let mut words = String::with_capacity(line.len());
    let (mut rest, mut is_drawing) = (line, false);
    while let Some((before, (style, after))) = rest.split_once('{').and_then(|(b, a)| Some((b, a.split_once('}')?))) {
        if !is_drawing {
            words.push_str(before);
        }
        let drawing =
            style.split('\\').filter_map(|tag| tag.strip_prefix('p')).find_map(|scale| scale.parse::<u32>().ok());
        is_drawing = drawing.map_or(is_drawing, |scale| scale > 0);
        rest = after;
    }
    if !is_drawing {
        words.push_str(rest);
    }
    words
}

/// The paragraphs of a TTML file, with the agents that they name as speakers.
///
/// # Errors
/// Where the XML is broken: file, line and why.
pub(super) fn ttml<'a>(name: &str, contents: &str) -> Result<Cues<'a>> {
    let document = Document::parse(contents)
        .map_err(|error| at_line(name, error.pos().row as usize, format!("broken XML: {error}")))?;
    let agents = agent_names(&document);
    let mut found = Cues::default();
    let mut read_to = 0;
    for paragraph in document.descendants().filter(|node| node.has_tag_name_of("p")) {
        // One inside of another has been read with it.
        if paragraph.range().start < read_to {
            continue;
        }
        read_to = paragraph.range().end;
        let text = text_of(paragraph);
        let agent = paragraph.ancestors().take(MAX_DEPTH).find_map(|node| node.attribute_of("agent"));
        let speaker = agent.map(|id| agents.get(id).cloned().unwrap_or_else(|| id.to_string()));
        let lines = text.split('\n').map(single_spaced).filter(|line| !line.is_empty());
        let lines = lines.map(|text| SpokenLine { speaker: speaker.clone(), text, continues: false }).collect();
        let time =
            |key| paragraph.ancestors().take(MAX_DEPTH).find_map(|node| node.attribute_of(key)).and_then(ttml_time);
        let line = document.text_pos_at(paragraph.range().start).row as usize;
        let raw = vec![Cow::Owned(text)];
        found.cues.push(Cue { line, start_ms: time("begin"), end_ms: time("end"), lines, raw, ..Cue::default() });
    }
    Ok(found)
}

/// Names and attributes whatever their namespace, of which the versions of TTML have several.
trait LocalNames<'a> {
    fn has_tag_name_of(&self, name: &str) -> bool;
    fn attribute_of(&self, name: &str) -> Option<&'a str>;
}

impl<'a> LocalNames<'a> for Node<'a, '_> {
    fn has_tag_name_of(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }

    fn attribute_of(&self, name: &str) -> Option<&'a str> {
        self.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
    }
}

/// `<ttm:agent xml:id="p1"><ttm:name>Ana</ttm:name></ttm:agent>` in the head.
fn agent_names<'a>(document: &'a Document) -> HashMap<&'a str, String> {
    let agents = document.descendants().filter(|node| node.has_tag_name_of("agent"));
    agents
        .filter_map(|agent| {
            let name = agent.descendants().find(|node| node.has_tag_name_of("name"))?.text()?;
            Some((agent.attribute_of("id")?, single_spaced(name))).filter(|(_, name)| !name.is_empty())
        })
        .collect()
}

/// The words of a paragraph: line ends are spaces, `<br/>` is a line end, and spans that are a word each, as podcast
/// hosts write them, are apart.
fn text_of(paragraph: Node) -> String {
    let mut text = String::new();
    for node in paragraph.descendants() {
        let is_metadata = node.parent().is_some_and(|parent| parent.has_tag_name_of("metadata"));
        if let Some(words) = node.text().filter(|_| node.is_text() && !is_metadata) {
            text.push_str(&words.replace(['\n', '\r'], " "));
        } else if node.has_tag_name_of("br") {
            text.push('\n');
        } else if node.attribute_of("unit").is_some() {
            text.push(' ');
        }
    }
    text
}

/// `00:00:01.5`, `1.5s`, `1500ms`; frames and ticks need numbers that are not in the cue, so their start stays unknown.
fn ttml_time(time: &str) -> Option<u64> {
    let seconds = |number: &str, unit: f64| number.trim().parse::<f64>().ok().map(|value| (value * unit) as u64);
    let time = time.trim();
    cue_time(time)
        .or_else(|| seconds(time.strip_suffix("ms")?, 1.0))
        .or_else(|| seconds(time.strip_suffix('s')?, 1000.0))
        .or_else(|| seconds(time.strip_suffix('m')?, 60_000.0))
        .or_else(|| seconds(time.strip_suffix('h')?, 3_600_000.0))
}

#[cfg(test)]
mod tests {
    use crate::transcript::{Format, ReadOptions, subtitles};

    fn read(contents: &str, format: Format) -> String {
        let options = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };
        subtitles::read("a", contents, format, &options).unwrap().text
    }

    #[test]
    fn substation_dialogue_comes_sorted_and_without_styles() {
        let contents = "[Script Info]\nTitle: T\n\n[V4+ Styles]\nFormat: Name, Fontname\nStyle: Default,Arial\n\n[Events]\n\
            Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n\
            Dialogue: 0,0:01:04.50,0:01:06.00,Default,Bo,0,0,0,,{\\i1}No{\\i0},\\Nhe said, no.\n\
            Comment: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,a note\n\
            Dialogue: 0,0:00:01.00,0:00:02.00,Default,Ana,0,0,0,,{\\an8\\pos(1,2)}Is it\\hcold?\n\
            Dialogue: 1,0:00:01.00,0:00:02.00,Default,Ana,0,0,0,,{\\an8\\blur4}Is it\\hcold?\n\
            Dialogue: 0,0:02:00.00,0:02:01.00,Sign,,0,0,0,,{\\p1}m 0 0 l 100 0{\\p0}\n";
        assert_eq!(
            read(contents, Format::SubStation),
            "[00:00:01] Ana: Is it cold?\n[00:01:04] Bo: No, he said, no.\n"
        );
    }

    #[test]
    fn ttml_paragraphs_have_agents_and_words() {
        let contents = "<?xml version=\"1.0\"?><tt xmlns=\"http://www.w3.org/ns/ttml\" xmlns:ttm=\"m\" xmlns:p=\"p\">\
            <head><metadata><ttm:agent xml:id=\"p1\"><ttm:name>Ana</ttm:name></ttm:agent></metadata></head><body>\
            <div begin=\"5s\" ttm:agent=\"p1\"><p begin=\"00:00:01.000\" end=\"2s\">Is it<br/>\n  <span>so &amp; cold</span>?</p></div>\
            <div><p begin=\"64.5s\" ttm:agent=\"SPEAKER_1\"><span p:unit=\"sentence\"><span p:unit=\"word\">No</span>\
            <span p:unit=\"word\">sir.</span></span></p></div></body></tt>";
        assert_eq!(read(contents, Format::Ttml), "[00:00:01] Ana: Is it so & cold?\n[00:01:04] SPEAKER_1: No sir.\n");
        let error =
            subtitles::read("a", "<tt>\n</p></tt>", Format::Ttml, &ReadOptions::DEFAULT).unwrap_err().to_string();
        assert!(error.starts_with("a:2: broken XML: "), "{error}");
    }
}
