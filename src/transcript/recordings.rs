//! What speech recognisers and hosts of podcasts write as JSON: Whisper and its relatives (whisper.cpp, faster-whisper,
//! WhisperX, insanely-fast-whisper), AssemblyAI, Deepgram, Amazon Transcribe, Google, Rev, the Podcasting 2.0 namespace.
//!
//! They differ in names and nesting, not in what they say. Each shape below finds the list of its segments; one function
//! reads a segment. What is not needed is not looked at, and need not be valid.

use super::turns::{Speech, Turn, join, parse_clock};
use super::{ReadOptions, plain, with_unix_newlines};
use serde_json::{Map, Value};

type Fields = Map<String, Value>;

/// What is in a JSON file that is a recording.
///
/// # Errors
/// Which field is missing or not as expected, in plain words.
pub(super) fn speech(value: &Value, options: &ReadOptions) -> Result<Speech, String> {
    let (variety, turns) = match value {
        Value::Array(list) => ("faster-whisper", segments("", list, 1000.0)?),
        Value::Object(fields) => match recording(fields)? {
            Some(found) => found,
            None => return whole_text(fields, options),
        },
        other => return Err(format!("this is {}, not a transcript", kind(other))),
    };
    let speech = Speech::of(&join(turns), options);
    match value.as_object().and_then(|fields| text(fields, &["text"])) {
        // A recogniser that did not cut its text into segments.
        Some(_) if speech.text.is_empty() => whole_text(value.as_object().unwrap_or(&Fields::new()), options),
        _ => Ok(Speech { variety: Some(variety), ..speech }),
    }
}

/// Whether a list at the root holds texts that stand alone, not the segments of a recording.
pub(super) fn is_list_of_texts(list: &[Value], text_column: &str) -> bool {
    const TIMES: [&str; 6] = ["start", "startTime", "start_time", "timestamp", "offsets", "speaker"];
    let is_text =
        |fields: &Fields| fields.contains_key(text_column) && !TIMES.iter().any(|key| fields.contains_key(*key));
    list.iter().filter_map(Value::as_object).any(is_text)
}

/// Only the whole text, without turns.
fn whole_text(fields: &Fields, options: &ReadOptions) -> Result<Speech, String> {
    let key = ["text", "transcript"].into_iter().find(|key| fields.contains_key(*key)).ok_or_else(|| {
        let keys: Vec<String> = fields.keys().take(6).map(|key| format!("\"{key}\"")).collect();
        let found = if keys.is_empty() { "nothing".to_string() } else { keys.join(", ") };
        format!("neither \"segments\" nor \"text\" in this object, only {found}; is it a transcript?")
    })?;
    match &fields[key] {
        Value::String(text) => Ok(plain::read(with_unix_newlines(text).trim(), options)),
        Value::Null => Ok(Speech::default()),
        other => Err(format!("\"{key}\" is {}, not text", kind(other))),
    }
}

/// The turns of a recording and whose format it is; none if it is no known one.
fn recording(fields: &Fields) -> Result<Option<(&'static str, Vec<Turn>)>, String> {
    let list = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(format!("\"{key}\" is {}, not a list", kind(other))),
    };
    if let Some(results) = fields.get("results") {
        return results_of(results).map(Some);
    }
    // Who speaks is told in the first two where it is known at all.
    for (key, variety, unit_ms) in
        [("utterances", "AssemblyAI", 1.0), ("transcription", "whisper.cpp", 1.0), ("segments", "Whisper", 1000.0)]
    {
        if let Some(list) = list(key)?.filter(|list| !list.is_empty() || !fields.contains_key("text")) {
            let is_podcast = list.first().is_some_and(|first| first.get("body").is_some());
            let is_diarised = list.first().is_some_and(|first| words(first).any(|word| word.get("score").is_some()));
            let variety = match (is_podcast, is_diarised) {
                (true, _) => "Podcasting 2.0",
                (_, true) => "WhisperX",
                _ => variety,
            };
            return Ok(Some((variety, segments(key, list, unit_ms)?)));
        }
    }
    for key in ["speakers", "chunks"] {
        let list = if fields.contains_key("chunks") { list(key)? } else { None };
        if let Some(list) = list.filter(|list| list.iter().any(|segment| segment.get("text").is_some())) {
            return Ok(Some(("Hugging Face", segments(key, list, 1000.0)?)));
        }
    }
    if let Some(list) = list("monologues")? {
        return Ok(Some(("Rev", list.iter().enumerate().map(monologue).collect::<Result<_, _>>()?)));
    }
    if fields.get("events").is_some_and(|events| events.get(0).is_some_and(|event| event.get("tStartMs").is_some())) {
        return Ok(Some(("YouTube", list("events")?.into_iter().flatten().filter_map(caption).collect())));
    }
    Ok(None)
}

/// `results` of Deepgram, Amazon and Google.
fn results_of(results: &Value) -> Result<(&'static str, Vec<Turn>), String> {
    if let Some(list) = results.as_array() {
        let turns = list.iter().map(|result| turn(best(result).get("transcript"), None, None)).collect();
        return Ok(("Google", turns));
    }
    let list = |key: &str| results.get(key).and_then(Value::as_array).filter(|list| !list.is_empty());
    if let Some(utterances) = list("utterances") {
        return Ok(("Deepgram", segments("results.utterances", utterances, 1000.0)?));
    }
    if let Some(channels) = list("channels") {
        return Ok(("Deepgram", deepgram(channels)));
    }
    if let Some(audio) = list("audio_segments") {
        return Ok(("Amazon Transcribe", segments("results.audio_segments", audio, 1000.0)?));
    }
    if let Some(items) = list("items") {
        return Ok(("Amazon Transcribe", amazon(results, items)));
    }
    match list("transcripts") {
        Some(whole) => {
            Ok(("Amazon Transcribe", whole.iter().map(|whole| turn(whole.get("transcript"), None, None)).collect()))
        }
        None => match results {
            Value::Object(_) if results.get("items").is_some() || results.get("channels").is_some() => {
                Ok(("JSON", Vec::new()))
            }
            other => Err(format!("\"results\" is {} without a transcript that is known", kind(other))),
        },
    }
}

/// Channels are speakers where there are several.
fn deepgram(channels: &[Value]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for (index, channel) in channels.iter().enumerate() {
        let best = best(channel);
        let own = (channels.len() > 1).then(|| format!("Channel {index}"));
        let speaker_of = |part: &Value| part.get("speaker").and_then(speaker).or_else(|| own.clone());
        let paragraphs = best.get("paragraphs").and_then(|all| all.get("paragraphs")).and_then(Value::as_array);
        let has_speaker = |word: &Value| word.get("speaker").is_some();
        if let Some(paragraphs) = paragraphs.filter(|paragraphs| !paragraphs.is_empty()) {
            for paragraph in paragraphs {
                for sentence in paragraph.get("sentences").and_then(Value::as_array).into_iter().flatten() {
                    let start = sentence.get("start").and_then(seconds);
                    turns.push(turn(sentence.get("text"), speaker_of(paragraph), start));
                }
            }
        } else if best.get("words").is_some_and(|_| words(best).any(has_speaker)) {
            turns.extend(words(best).map(|word| {
                let text = word.get("punctuated_word").or_else(|| word.get("word"));
                turn(text, speaker_of(word), word.get("start").and_then(seconds))
            }));
        } else {
            turns.push(turn(best.get("transcript"), own, None));
        }
    }
    // Those of several channels were said at the same time; the sort is stable.
    if channels.len() > 1 {
        turns.sort_by_key(|turn| turn.start_ms);
    }
    turns
}

/// Words and punctuation, with speakers beside them or in a list of their own.
fn amazon(results: &Value, items: &[Value]) -> Vec<Turn> {
    let labels = results.get("speaker_labels").and_then(|labels| labels.get("segments")).and_then(Value::as_array);
    let spoken =
        labels.into_iter().flatten().filter_map(|segment| segment.get("items").and_then(Value::as_array)).flatten();
    let by_start: std::collections::HashMap<&str, &Value> =
        spoken.filter_map(|item| Some((item.get("start_time")?.as_str()?, item.get("speaker_label")?))).collect();
    let mut turns: Vec<Turn> = Vec::new();
    for item in items {
        let content = best(item).get("content");
        let start = item.get("start_time");
        let label = item.get("speaker_label").or_else(|| by_start.get(start?.as_str()?).copied());
        let is_mark = item.get("type").and_then(Value::as_str) == Some("punctuation");
        let word = turn(content, label.and_then(speaker), start.and_then(seconds));
        match turns.last_mut() {
            Some(last) if is_mark => last.text.push_str(&word.text),
            // One piece for each sentence, so that unnamed speech breaks there.
            Some(last) if word.speaker == last.speaker && !last.text.ends_with(['.', '?', '!']) => {
                last.text.push(' ');
                last.text.push_str(&word.text);
            }
            _ => turns.push(word),
        }
    }
    turns
}

/// Rev's turn: its elements are words, marks and the blanks between them.
fn monologue((index, monologue): (usize, &Value)) -> Result<Turn, String> {
    let elements = monologue.get("elements").and_then(Value::as_array);
    let elements = elements.ok_or_else(|| format!("monologues[{index}] has no \"elements\""))?;
    let text: String = elements.iter().filter_map(|element| element.get("value")?.as_str()).collect();
    let start = elements.iter().find_map(|element| seconds(element.get("ts")?));
    Ok(Turn { start_ms: start, speaker: monologue.get("speaker").and_then(speaker), text })
}

/// An event of YouTube's captions; one that only appends a line end has no words.
fn caption(event: &Value) -> Option<Turn> {
    let pieces = event.get("segs")?.as_array()?;
    let text: String = pieces.iter().filter_map(|piece| piece.get("utf8")?.as_str()).collect();
    let start_ms = event.get("tStartMs").and_then(Value::as_u64);
    Some(Turn { start_ms, speaker: None, text })
}

fn turn(text: Option<&Value>, speaker: Option<String>, start_ms: Option<u64>) -> Turn {
    Turn { start_ms, speaker, text: text.and_then(Value::as_str).unwrap_or_default().to_string() }
}

/// The first of the alternatives.
fn best(result: &Value) -> &Value {
    result.get("alternatives").and_then(|all| all.get(0)).unwrap_or(&Value::Null)
}

fn words(segment: &Value) -> impl Iterator<Item = &Value> {
    segment.get("words").and_then(Value::as_array).into_iter().flatten()
}

/// The segments in the list at `path`; their times are in units of `unit_ms`.
fn segments(path: &str, list: &[Value], unit_ms: f64) -> Result<Vec<Turn>, String> {
    let mut turns = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let place = if path.is_empty() { format!("item {}", index + 1) } else { format!("{path}[{index}]") };
        let Value::Object(fields) = value else {
            return Err(format!("{place} is {}, not an object with \"text\"", kind(value)));
        };
        segment(value, fields, &place, unit_ms, &mut turns)?;
    }
    Ok(turns)
}

fn segment(value: &Value, fields: &Fields, place: &str, unit_ms: f64, turns: &mut Vec<Turn>) -> Result<(), String> {
    const TEXTS: [&str; 3] = ["text", "body", "transcript"];
    let text = match TEXTS.iter().find_map(|key| Some((key, fields.get(*key)?))) {
        Some((_, Value::String(text))) => text.clone(),
        Some((_, Value::Null)) => String::new(),
        Some((key, other)) => return Err(format!("{place}.{key} is {}, not text", kind(other))),
        None if fields.contains_key("words") => {
            let word = |word: &Value| Some(word.get("word").or_else(|| word.get("text"))?.as_str()?.trim().to_string());
            words(value).filter_map(word).collect::<Vec<_>>().join(" ")
        }
        None => return Err(format!("{place} has no \"text\"")),
    };
    let start_ms = start_ms(fields, unit_ms);
    let named = ["speaker", "speaker_label", "speaker_name", "speakerName", "speaker_id", "speakerId"];
    match named.iter().find_map(|key| speaker(fields.get(*key)?)) {
        Some(name) => turns.push(Turn { start_ms, speaker: Some(name), text }),
        None => turns.extend(cut_at_speakers(value, text, start_ms)),
    }
    Ok(())
}

/// WhisperX may name the speakers of words only: the text is cut before the first word of another one.
fn cut_at_speakers(segment: &Value, text: String, start_ms: Option<u64>) -> Vec<Turn> {
    let mut turns = vec![Turn { start_ms, speaker: None, text: String::new() }];
    let mut rest = text.as_str();
    for word in words(segment) {
        let Some(spoken) = word.get("word").or_else(|| word.get("text")).and_then(Value::as_str).map(str::trim) else {
            continue;
        };
        let Some(position) = rest.find(spoken).filter(|_| !spoken.is_empty()) else { continue };
        let name = word.get("speaker").and_then(speaker);
        let (before, from_word) = rest.split_at(position);
        let last = turns.len() - 1;
        turns[last].text.push_str(before);
        if let Some(name) = name {
            if turns[last].speaker.as_ref().is_some_and(|current| *current != name) {
                turns.push(Turn {
                    start_ms: word.get("start").and_then(seconds).or(start_ms),
                    speaker: None,
                    text: String::new(),
                });
            }
            let last = turns.len() - 1;
            turns[last].speaker = Some(name);
        }
        let last = turns.len() - 1;
        turns[last].text.push_str(&from_word[..spoken.len()]);
        rest = &from_word[spoken.len()..];
    }
    let last = turns.len() - 1;
    turns[last].text.push_str(rest);
    turns
}

/// When a segment starts, as far as it says so in a way that is understood.
fn start_ms(fields: &Fields, unit_ms: f64) -> Option<u64> {
    if let Some(offsets) = fields.get("offsets") {
        return milliseconds(offsets.get("from")?, 1.0);
    }
    if let Some(span) = fields.get("timestamp") {
        return milliseconds(span.get(0)?, 1000.0);
    }
    ["start", "startTime", "start_time"].iter().find_map(|key| milliseconds(fields.get(*key)?, unit_ms))
}

/// A time in seconds, in milliseconds.
pub(super) fn seconds(value: &Value) -> Option<u64> {
    milliseconds(value, 1000.0)
}

/// A number of units of `unit_ms`, the same as text, or a clock time.
fn milliseconds(value: &Value, unit_ms: f64) -> Option<u64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => match parse_clock(text.trim()) {
            Some(ms) => return Some(ms),
            None => text.trim().trim_end_matches('s').parse().ok()?,
        },
        _ => return None,
    };
    // From -0 on; what is not finite saturates nowhere.
    (number.is_finite() && number >= 0.0).then_some((number * unit_ms) as u64)
}

/// A name as it is, a number as `Speaker 3`. Anything else names nobody: a wrong speaker is worse than none.
pub(super) fn speaker(value: &Value) -> Option<String> {
    match value {
        Value::String(name) if name.trim().is_empty() => None,
        Value::String(name) if name.trim().bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(format!("Speaker {}", name.trim()))
        }
        Value::String(name) => Some(name.split_whitespace().collect::<Vec<_>>().join(" ")),
        Value::Number(number) => Some(format!("Speaker {number}")),
        Value::Object(fields) => fields.get("name").and_then(speaker),
        _ => None,
    }
}

fn text<'a>(fields: &'a Fields, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| fields.get(*key)?.as_str()).filter(|text| !text.trim().is_empty())
}

/// What a value is, in plain words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
