//! Who speaks: labels such as `Ana:` at the start of a line, and which of them are names.
//!
//! `Remember: salt it` looks just like `Ana: salt it`. So the decision is made over the whole file: a label is a name
//! if it is one by its form (`[SPEAKER_00]:`), or recurs before different words, or if most turns carry one. Anything
//! else stays text. A wrong speaker is worse than none: where some cue is named, a label that is not known to be a name
//! still begins a turn, of nobody.

use super::label::{Kind, Label, leading_label};
use super::markup::single_spaced;
use super::turns::{Turn, ends_sentence};
use std::collections::HashMap;

/// A piece of speech as a file cuts it: a line of a cue, a segment of a speech recogniser.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub start_ms: Option<u64>,
    /// Where the file says so apart from the words.
    pub speaker: Option<String>,
    pub text: String,
    pub place: Place,
}

/// Where a piece stands, which tells what a label at its start can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// The first line of a cue, or a segment.
    #[default]
    StartsCue,
    /// A further line, which may be the rest of a sentence.
    InCue,
    /// The rest of a line that began in the cue before, without a label of its own.
    InLine,
}

/// Without speakers or punctuation a line ends with the piece that makes it this long (bytes).
const UNNAMED_LINE_BYTES: usize = 500;
/// As few labels as this need not recur where most turns carry one.
const FEW_LABELS: usize = 5;
/// A single name that recurs among unnamed turns has at least one in so many of them.
const LONE_NAME_TURNS: usize = 20;

/// An unknown label of more words than this, not all of them capitalised, is no name.
const MAX_UNKNOWN_WORDS: usize = 3;

/// Joins the pieces into whole turns: a piece of the same speaker continues the turn. One of nobody does so too where
/// most cues are named, else until a sentence ends, because a whole file in one line could not be split into training
/// and validation text.
pub(super) fn turns(pieces: Vec<Piece>) -> Vec<Turn> {
    let pieces = without_marks(pieces);
    let names = Names::of(&pieces);
    let mut turns: Vec<Turn> = Vec::new();
    for MarkedPiece { piece, opens } in pieces {
        let resolved = names.resolve(piece, opens, turns.last());
        let text = single_spaced(&resolved.text);
        match turns.last_mut() {
            Some(turn) if names.continues(turn, &resolved) => {
                if !turn.text.is_empty() && !text.is_empty() {
                    turn.text.push(' ');
                }
                turn.text.push_str(&text);
            }
            _ => turns.push(Turn { start_ms: resolved.start_ms, speaker: resolved.speaker, text }),
        }
    }
    turns
}

/// A piece whose label has become its speaker, if it is a name.
struct Resolved {
    start_ms: Option<u64>,
    speaker: Option<String>,
    text: String,
    /// Begins a turn, be it of nobody.
    opens: bool,
}

/// A piece without `>>` or `-` at its start; either means that somebody else speaks.
struct MarkedPiece {
    piece: Piece,
    opens: bool,
}

/// Takes the marks of a change of speaker away: the `>>` of broadcast captions, and the dashes of dialogues, of which
/// at least one cue has two.
fn without_marks(pieces: Vec<Piece>) -> Vec<MarkedPiece> {
    let chevrons = pieces.iter().filter(|piece| without_chevrons(&piece.text).is_some()).count();
    let mut has_dialogue = false;
    let mut dashes_in_cue = 0;
    for piece in &pieces {
        if piece.place == Place::StartsCue {
            dashes_in_cue = 0;
        }
        dashes_in_cue += usize::from(without_dash(&piece.text).is_some());
        has_dialogue |= dashes_in_cue >= 2;
    }
    let mut marked = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let parts: Vec<&str> = if chevrons >= 2 { piece.text.split(" >> ").collect() } else { vec![&piece.text] };
        for (position, part) in parts.into_iter().enumerate() {
            let undashed = without_dash(part).filter(|_| has_dialogue && piece.speaker.is_none());
            let unmarked = without_chevrons(part).or(undashed);
            let opens = unmarked.is_some() || position > 0;
            let text = unmarked.unwrap_or(part).to_string();
            marked.push(MarkedPiece { piece: Piece { text, speaker: piece.speaker.clone(), ..piece }, opens });
        }
    }
    marked
}

fn without_chevrons(text: &str) -> Option<&str> {
    let text = text.trim_start();
    let after = text.trim_start_matches('>');
    let is_mark = (2..=3).contains(&(text.len() - after.len()));
    let begins_speech = after.starts_with(|c: char| c.is_whitespace() || c.is_alphabetic() || "[(".contains(c));
    (is_mark && begins_speech).then(|| after.trim_start())
}

fn without_dash(text: &str) -> Option<&str> {
    let after = text.trim_start().strip_prefix(['-', '–', '—', '‐'])?.trim_start();
    after.starts_with(|c: char| c.is_alphabetic() || "\"'¿¡[(<♪…«“‘".contains(c)).then_some(after)
}

/// How a label is used in a file.
#[derive(Debug)]
struct Use {
    kind: Kind,
    times: usize,
    first_words: String,
    /// Different words follow it.
    is_varied: bool,
    /// It is followed by a small letter, as the word of a sentence is.
    before_small: usize,
    /// The same word, written small, elsewhere in the file.
    as_word: usize,
}

impl Use {
    fn recurs(&self) -> bool {
        self.times >= 2 && self.is_varied
    }
}

/// Which labels of a file are names.
struct Names {
    known: HashMap<String, bool>,
    /// Some piece has a speaker.
    any: bool,
    /// More than half of the cues have one.
    in_most_cues: bool,
}

impl Names {
    fn of(pieces: &[MarkedPiece]) -> Self {
        let evidence = Evidence::of(pieces);
        let known: HashMap<String, bool> =
            evidence.uses.iter().map(|(name, label)| (name.clone(), evidence.is_name(name, label))).collect();
        let mut names = Self { known, any: false, in_most_cues: false };
        let named = count_cues(pieces, |piece| names.is_named(piece));
        names.any = named > 0 || pieces.iter().any(|marked| names.is_named(&marked.piece));
        names.in_most_cues = named * 2 > evidence.cues;
        names
    }

    fn is_named(&self, piece: &Piece) -> bool {
        piece.speaker.is_some() || label_of(piece).is_some_and(|label| self.is_name(&label))
    }

    fn is_name(&self, label: &Label) -> bool {
        self.known.get(label.name).copied().unwrap_or_default() || label.kind == Kind::Marked
    }

    fn resolve(&self, piece: Piece, opens: bool, before: Option<&Turn>) -> Resolved {
        let Piece { start_ms, speaker, text, place } = piece;
        if speaker.is_some() {
            return Resolved { start_ms, speaker, text, opens: true };
        }
        let label = if place == Place::InLine { None } else { leading_label(&text) };
        match label {
            Some(label) if self.is_name(&label) => {
                let speaker = Some(label.name.to_string()).filter(|name| !name.is_empty());
                let start_ms = start_ms.or(label.start_ms);
                Resolved { start_ms, speaker, text: label.words.to_string(), opens: true }
            }
            Some(label) => {
                let opens = opens || (self.any && begins_unnamed_turn(&label, place, before));
                Resolved { start_ms, speaker, text, opens }
            }
            None => Resolved { start_ms, speaker, text, opens },
        }
    }

    fn continues(&self, turn: &Turn, piece: &Resolved) -> bool {
        if piece.speaker.is_some() {
            return piece.speaker == turn.speaker;
        }
        if turn.text.is_empty() {
            // A label in a line of its own.
            return true;
        }
        let in_turn =
            (self.any && self.in_most_cues) || (!ends_sentence(&turn.text) && turn.text.len() < UNNAMED_LINE_BYTES);
        !piece.opens && in_turn
    }
}

/// An unknown label at the start of a cue may be a name, and then what follows is not the speaker's before. Inside of a
/// cue, only where a name could stand.
fn begins_unnamed_turn(label: &Label, place: Place, before: Option<&Turn>) -> bool {
    let after_sentence = before.is_none_or(|turn| ends_sentence(&turn.text));
    match label.kind {
        Kind::Bracketed => false,
        // `So tune to four:` is a sentence.
        Kind::Loose if label.name.split_whitespace().count() > MAX_UNKNOWN_WORDS => false,
        Kind::Loose if place != Place::StartsCue => after_sentence,
        _ => true,
    }
}

fn label_of(piece: &Piece) -> Option<Label<'_>> {
    if piece.speaker.is_some() || piece.place == Place::InLine { None } else { leading_label(&piece.text) }
}

/// In how many cues a piece is as `is_wanted` says.
fn count_cues(pieces: &[MarkedPiece], is_wanted: impl Fn(&Piece) -> bool) -> usize {
    let (mut count, mut counted) = (0, false);
    for MarkedPiece { piece, .. } in pieces {
        counted &= piece.place != Place::StartsCue;
        if !counted && is_wanted(piece) {
            count += 1;
            counted = true;
        }
    }
    count
}

/// What the labels of a file tell about each other.
struct Evidence {
    uses: HashMap<String, Use>,
    cues: usize,
    labelled_cues: usize,
    bracketed_cues: usize,
    /// Sentences begin with capitals.
    is_cased: bool,
    /// The file names speakers apart from the words.
    has_speakers: bool,
    totals: Totals,
}

/// Sums over all labels of a file.
#[derive(Default)]
struct Totals {
    /// How often there is a label that may be a name.
    labels: usize,
    /// Whether one of them is there twice.
    some_recur: bool,
    /// Different names in brackets that recur.
    recurring_brackets: usize,
    /// Different ones that recur and do not look like words of the text.
    recurring_names: usize,
}

impl Evidence {
    fn of(pieces: &[MarkedPiece]) -> Self {
        let mut uses: HashMap<String, Use> = HashMap::new();
        for (index, marked) in pieces.iter().enumerate() {
            let Some(label) = label_of(&marked.piece) else { continue };
            // A label may have a line of its own.
            let next = pieces.get(index + 1).map_or("", |next| next.piece.text.as_str());
            let words = if label.words.is_empty() { next } else { label.words };
            let entry = uses.entry(label.name.to_string()).or_insert_with(|| Use {
                kind: label.kind,
                times: 0,
                first_words: words.to_string(),
                is_varied: false,
                before_small: 0,
                as_word: 0,
            });
            entry.times += 1;
            entry.is_varied |= entry.first_words != words;
            entry.before_small += usize::from(words.starts_with(char::is_lowercase));
            // The same name with and without a time, in and without brackets.
            if label.kind == Kind::Marked || entry.kind == Kind::Bracketed {
                entry.kind = label.kind;
            }
        }
        count_as_words(&mut uses, pieces);
        let cues = pieces.iter().filter(|marked| marked.piece.place == Place::StartsCue).count();
        let is_labelled = |piece: &Piece| {
            let can_be_name = |label: Label| !matches!(label.kind, Kind::Heading | Kind::Bracketed);
            piece.speaker.is_some() || label_of(piece).is_some_and(can_be_name)
        };
        let is_bracketed = |piece: &Piece| label_of(piece).is_some_and(|label| label.kind == Kind::Bracketed);
        let starts =
            |test: fn(char) -> bool| pieces.iter().filter(|marked| marked.piece.text.starts_with(test)).count();
        let mut evidence = Self {
            cues,
            labelled_cues: count_cues(pieces, is_labelled),
            bracketed_cues: count_cues(pieces, is_bracketed),
            is_cased: starts(char::is_uppercase) > starts(char::is_lowercase),
            has_speakers: pieces.iter().any(|marked| marked.piece.speaker.is_some()),
            totals: Totals::default(),
            uses,
        };
        evidence.totals = evidence.sum();
        evidence
    }

    fn sum(&self) -> Totals {
        let mut totals = Totals::default();
        for label in self.uses.values() {
            let recurs = usize::from(label.recurs());
            match label.kind {
                Kind::Heading => continue,
                Kind::Bracketed => {
                    totals.recurring_brackets += recurs;
                    continue;
                }
                Kind::Name => totals.recurring_names += usize::from(self.recurs_as_name(label)),
                Kind::Uncased | Kind::Marked => totals.recurring_names += recurs,
                Kind::Loose => {}
            }
            totals.labels += label.times;
            totals.some_recur |= label.times >= 2;
        }
        totals
    }

    fn is_name(&self, name: &str, label: &Use) -> bool {
        match label.kind {
            // "so it is:" and "yes Bo:" are words of a sentence, however often they come.
            Kind::Loose if is_phrase(name) => false,
            Kind::Marked => true,
            Kind::Heading => false,
            Kind::Bracketed => self.is_bracketed_name(label),
            _ if self.labelled_cues * 2 > self.cues => self.is_name_among_many(label),
            Kind::Name => {
                let is_frequent = label.times * LONE_NAME_TURNS >= self.cues;
                self.recurs_as_name(label) && (is_frequent || self.totals.recurring_names >= 2 || self.has_speakers)
            }
            // Without capitals, nothing but numbers tells a name from the start of a sentence.
            Kind::Uncased => label.times >= 3 && label.recurs() && self.totals.recurring_names >= 2,
            Kind::Loose => false,
        }
    }

    /// Where most cues carry a label, one that is there once may be a name as well.
    fn is_name_among_many(&self, label: &Use) -> bool {
        let some_recur = self.has_speakers || self.totals.some_recur;
        let are_few = self.totals.labels < FEW_LABELS;
        let almost_all = self.labelled_cues * 10 >= self.cues * 9;
        label.times >= 2
            || match label.kind {
                Kind::Name => some_recur || are_few,
                Kind::Uncased => (some_recur && almost_all) || are_few,
                _ => some_recur && almost_all,
            }
    }

    /// `(Petra Novak)` above what she says, in most cues or taking turns with another.
    fn is_bracketed_name(&self, label: &Use) -> bool {
        label.recurs() && (self.bracketed_cues * 2 > self.cues || self.totals.recurring_brackets >= 2)
    }

    /// Recurs, and neither continues in small letters nor is a word of the text.
    fn recurs_as_name(&self, label: &Use) -> bool {
        let is_word = label.as_word >= label.times || (self.is_cased && label.before_small * 2 > label.times);
        label.recurs() && !is_word
    }
}

/// Several words, what is said beside a name (`(he/him)`, `| Company`) left out.
fn is_phrase(name: &str) -> bool {
    let bare = name.split(['(', '|']).next().unwrap_or(name);
    bare.trim().contains(char::is_whitespace) && !bare.contains(',')
}

/// Counts how often each one-word label is a word in the text, written small.
fn count_as_words(uses: &mut HashMap<String, Use>, pieces: &[MarkedPiece]) {
    let mut counts: HashMap<String, usize> = uses
        .keys()
        .filter(|name| name.starts_with(char::is_uppercase) && !name.contains(char::is_whitespace))
        .map(|name| (name.to_lowercase(), 0))
        .collect();
    if counts.is_empty() {
        return;
    }
    for word in pieces.iter().flat_map(|marked| marked.piece.text.split(|c: char| !c.is_alphanumeric())) {
        if let Some(count) = counts.get_mut(word) {
            *count += 1;
        }
    }
    for (name, label) in uses {
        label.as_word = counts.get(&name.to_lowercase()).copied().unwrap_or_default();
    }
}
