//! Classes of tokens: which kinds of tokens an expert serves, and where the loss is.
//!
//! Every token is in exactly one class, which its first byte that is not white space decides in the context of its
//! document: part of a speaker's label, of a number or date, a function word, the capital at the start of a word, the start
//! or a later part of any other word, punctuation; tokens of white space alone, and the end of a text. Number words,
//! months, weekdays and function words are English.
//!
//! For each class the share of its tokens that reach expert e, as for domains: of the tokens as input, and of the
//! positions that predict one. The loss of a class is the mean over the positions that predict it.

use super::information::{chance_information, explained, mutual_information};
use super::load::load;
use super::trace::{LayerTrace, Trace, ratio};
use crate::dataset::Tokens;
use crate::tokenizer::Tokenizer;
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Speaker,
    Number,
    Function,
    Capitalised,
    Start,
    Continuation,
    Punctuation,
    Space,
    End,
}

impl Class {
    pub const ALL: [Self; 9] = [
        Self::Speaker,
        Self::Number,
        Self::Function,
        Self::Capitalised,
        Self::Start,
        Self::Continuation,
        Self::Punctuation,
        Self::Space,
        Self::End,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Speaker => "speaker labels",
            Self::Number => "numbers and dates",
            Self::Function => "function words",
            Self::Capitalised => "capitalised words",
            Self::Start => "word starts",
            Self::Continuation => "word continuations",
            Self::Punctuation => "punctuation",
            Self::Space => "line breaks and spaces",
            Self::End => "ends of text",
        }
    }
}

/// Examples of a class.
const EXAMPLES: usize = 6;
/// A speaker's label has at most so many bytes and words.
const LONGEST_LABEL: usize = 40;
const MOST_LABEL_WORDS: usize = 4;

/// Also split into parts by the tokenizer's rules: "didn" of "didn't".
const FUNCTION_WORDS: &str = "a about above after again against ain all am an and any are aren as at be because been before \
    being below between both but by can cannot could couldn d did didn do does doesn doing don down during each few for \
    from further had hadn has hasn have haven having he her here hers herself him himself his how i if in into is isn it \
    its itself just ll m me might more most must my myself no nor not now of off on once only or other our ours \
    ourselves out over own re s same shall she should shouldn so some such t than that the their theirs them themselves \
    then there these they this those through to too under until up us ve very was wasn we were weren what when where \
    which while who whom whose why will with won would wouldn yet you your yours yourself yourselves";
const NUMBER_WORDS: &str = "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen \
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand \
    thousands million millions billion january february april june july august september october november december \
    monday tuesday wednesday thursday friday saturday sunday";
/// Months that are ordinary words without their capital.
const CAPITAL_MONTHS: [&str; 2] = ["March", "May"];

/// The class of each token of the texts, of which the last is a target only.
pub fn classify(tokens: &Tokens, tokenizer: &Tokenizer) -> Vec<Class> {
    let mut classes = vec![Class::End; tokens.ids.len()];
    for (range, _) in &tokens.texts {
        let bytes = tokenizer.decode(&tokens.ids[range.clone()]);
        let text = String::from_utf8_lossy(&bytes);
        let of_bytes = classes_of_bytes(&text);
        let mut start = 0;
        for (class, &id) in classes[range.clone()].iter_mut().zip(&tokens.ids[range.clone()]) {
            let end = start + tokenizer.token_bytes(id).len();
            let of_token = of_bytes.get(start..end.min(of_bytes.len())).unwrap_or_default();
            *class = match of_token {
                [] => Class::End,
                _ => of_token.iter().copied().find(|&class| class != Class::Space).unwrap_or(Class::Space),
            };
            start = end;
        }
    }
    classes
}

/// The class of each byte of a text.
fn classes_of_bytes(text: &str) -> Vec<Class> {
    let mut classes = vec![Class::Space; text.len()];
    for (start, c) in text.char_indices().filter(|(_, c)| !c.is_whitespace()) {
        classes[start..start + c.len_utf8()].fill(Class::Punctuation);
    }
    let mut rest = 0;
    while let Some(offset) = text[rest..].find(char::is_alphanumeric) {
        let start = rest + offset;
        let end = text[start..].find(|c: char| !c.is_alphanumeric()).map_or(text.len(), |length| start + length);
        let (first, later) = classes_of_word(&text[start..end]);
        let first_length = text[start..].chars().next().map_or(1, char::len_utf8);
        classes[start..start + first_length].fill(first);
        classes[start + first_length..end].fill(later);
        // The apostrophe of "it's" belongs to the short form behind it.
        let before = text[..start].chars().next_back().filter(|&c| matches!(c, '\'' | '’'));
        if let Some(apostrophe) = before
            && first == Class::Function
            && text[..start - apostrophe.len_utf8()].ends_with(char::is_alphanumeric)
        {
            classes[start - apostrophe.len_utf8()..start].fill(Class::Function);
        }
        rest = end;
    }
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        if let Some(length) = label_length(line) {
            classes[line_start..line_start + length].fill(Class::Speaker);
        }
        line_start += line.len();
    }
    classes
}

/// The class of a word's first character, and of the others.
fn classes_of_word(word: &str) -> (Class, Class) {
    let lower = word.to_lowercase();
    let among = |list: &str| list.split_ascii_whitespace().any(|entry| entry == lower);
    if word.contains(|c: char| c.is_numeric()) || among(NUMBER_WORDS) || CAPITAL_MONTHS.contains(&word) {
        (Class::Number, Class::Number)
    } else if among(FUNCTION_WORDS) {
        (Class::Function, Class::Function)
    } else if word.starts_with(char::is_uppercase) {
        (Class::Capitalised, Class::Continuation)
    } else {
        (Class::Start, Class::Continuation)
    }
}

/// Bytes of a line's "Name: ", the colon included: one to four words that begin with a capital or digit, and white space
/// behind the colon.
fn label_length(line: &str) -> Option<usize> {
    let colon = line.bytes().take(LONGEST_LABEL).position(|byte| byte == b':')?;
    let name = line.get(..colon)?;
    let words: Vec<&str> = name.split(' ').collect();
    let is_name = |word: &&str| word.starts_with(|c: char| c.is_uppercase() || c.is_numeric());
    let ends = line[colon + 1..].is_empty() || line[colon + 1..].starts_with(char::is_whitespace);
    (ends && words.len() <= MOST_LABEL_WORDS && words.iter().all(is_name)).then_some(colon + 1)
}

/// A class in the text as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassTotals {
    pub key: Class,
    pub name: &'static str,
    /// Inputs of the class, and positions that predict it.
    pub tokens: u64,
    pub targets: u64,
    /// Mean nats over the latter.
    pub loss: Option<f64>,
    /// Their share of the loss of the whole text.
    pub loss_share: f64,
    /// The most frequent tokens.
    pub examples: Vec<String>,
}

/// How one layer divides the classes. Rows are the classes that occur.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassSpecialisation {
    pub input: Vec<Vec<f64>>,
    pub target: Vec<Vec<f64>>,
    /// Mutual information of input class and expert, in bits.
    pub information: f64,
    /// What the class explains of the choice of experts: information beyond chance, over all that there is to tell. None
    /// where there is nothing to tell.
    pub explained: Option<f64>,
    /// Input tokens that reach each expert.
    #[serde(skip)]
    pub served: Vec<Vec<u64>>,
}

/// The classes that occur among inputs or targets.
pub fn present(classes: &[Class]) -> Vec<Class> {
    Class::ALL.into_iter().filter(|class| classes.contains(class)).collect()
}

/// One entry for each of `present`.
pub fn class_totals(
    trace: &Trace,
    present: &[Class],
    classes: &[Class],
    ids: &[u32],
    tokenizer: &Tokenizer,
) -> Vec<ClassTotals> {
    let inputs = trace.tokens();
    let total: f64 = trace.losses_N.iter().map(|&loss| f64::from(loss)).sum();
    let of_class = |&class: &Class| {
        let mut counts = vec![0u64; tokenizer.vocab_size()];
        let of = classes.iter().zip(ids).filter(|&(&other, _)| other == class);
        of.for_each(|(_, &id)| counts[id as usize] += 1);
        let mut frequent: Vec<u32> = (0..counts.len() as u32).filter(|&id| counts[id as usize] > 0).collect();
        frequent.sort_by_key(|&id| std::cmp::Reverse(counts[id as usize]));
        let targets = classes.iter().skip(1).zip(&trace.losses_N).filter(|&(&other, _)| other == class);
        let (sum, count) = targets.fold((0.0, 0u64), |(sum, count), (_, &loss)| (sum + f64::from(loss), count + 1));
        ClassTotals {
            key: class,
            name: class.name(),
            tokens: classes[..inputs].iter().filter(|&&other| other == class).count() as u64,
            targets: count,
            loss: (count > 0).then(|| sum / count as f64),
            loss_share: if total > 0.0 { sum / total } else { 0.0 },
            examples: frequent.into_iter().take(EXAMPLES).map(|id| tokenizer.token_text(id)).collect(),
        }
    };
    present.iter().map(of_class).collect()
}

/// For one layer; `classes` has one more token than there are inputs.
pub fn class_specialisation(
    layer: &LayerTrace,
    present: &[Class],
    classes: &[Class],
    (E, K): (usize, usize),
) -> ClassSpecialisation {
    let count = |classes: &[Class]| {
        let mut counts = vec![vec![0u64; E]; Class::ALL.len()];
        for (&class, experts_K) in classes.iter().zip(layer.experts_NK.chunks_exact(K)) {
            experts_K.iter().for_each(|&expert| counts[class as usize][usize::from(expert)] += 1);
        }
        present.iter().map(|&class| std::mem::take(&mut counts[class as usize])).collect::<Vec<_>>()
    };
    let share = |rows: &[Vec<u64>]| {
        let of = |row: &Vec<u64>| {
            let tokens = row.iter().sum::<u64>() / K as u64;
            row.iter().map(|&count| ratio(count, tokens)).collect()
        };
        rows.iter().map(of).collect()
    };
    let served = count(classes);
    let information = mutual_information(&served.concat(), E);
    let counts_E = layer.counts_E(E);
    let chance = chance_information(present.len(), E, counts_E.iter().sum());
    ClassSpecialisation {
        input: share(&served),
        target: share(&count(classes.get(1..).unwrap_or_default())),
        information,
        explained: explained(information, chance, &load(&counts_E).share, K),
        served,
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{close, layer};
    use super::*;

    #[test]
    fn words_are_classed_in_their_context() {
        let text = "Tunde: It's 1843, the Leeds man-of 3rd May didn't.\nSo: no\n";
        let classes = classes_of_bytes(text);
        let class_at = |part: &str| classes[text.find(part).unwrap()];
        for (part, class) in [
            ("Tunde", Class::Speaker),
            (": It", Class::Speaker),
            ("It's", Class::Function),
            ("'s", Class::Function),
            (" 1843", Class::Space),
            ("1843", Class::Number),
            (", the", Class::Punctuation),
            ("the", Class::Function),
            ("Leeds", Class::Capitalised),
            ("eeds", Class::Continuation),
            ("man", Class::Start),
            ("an-", Class::Continuation),
            ("-of", Class::Punctuation),
            ("of", Class::Function),
            ("3rd", Class::Number),
            ("rd", Class::Number),
            ("May", Class::Number),
            ("didn't", Class::Function),
            ("'t", Class::Function),
            ("\n", Class::Space),
            // Nothing tells it from a name.
            ("So:", Class::Speaker),
        ] {
            assert_eq!(class_at(part), class, "{part:?}");
        }
    }

    #[test]
    fn labels_are_short_names_before_a_colon_and_a_space() {
        for (line, length) in [
            ("Mo: hi", Some(3)),
            ("First Citizen:\n", Some(14)),
            ("SPEAKER 1: x", Some(10)),
            ("it was this: x", None),
            ("At 10:30 we", None),
            ("One Two Three Four Five: x", None),
            ("no colon", None),
            (": x", None),
        ] {
            assert_eq!(label_length(line), length, "{line:?}");
        }
    }

    fn bytes() -> Tokenizer {
        let kind = crate::config::TokenizerKind::Bytes;
        let config = crate::config::TokenizerConfig { kind, vocab_size: 0, path: String::new() };
        Tokenizer::from_config(&config, &[]).unwrap()
    }

    #[test]
    fn tokens_take_the_class_of_their_first_visible_byte() {
        let tokenizer = bytes();
        let parts = [crate::dataset::Part { domain: "d", text: "é 7.\n" }];
        let tokens = Tokens::encode(&parts, &tokenizer).unwrap();
        let expected =
            [Class::Start, Class::Start, Class::Space, Class::Number, Class::Punctuation, Class::Space, Class::End];
        assert_eq!(classify(&tokens, &tokenizer), expected);
    }

    #[test]
    fn shares_by_input_and_by_target_and_the_loss_by_hand() {
        use Class::{Number, Start};
        // Inputs Number, Start, Start, Number; targets Start, Start, Number, Start.
        let classes = [Number, Start, Start, Number, Start];
        let layer = layer(&[0, 1, 0, 0]);
        let found = class_specialisation(&layer, &[Number, Start], &classes, (2, 1));
        assert_eq!(found.input, [[1.0, 0.0], [0.5, 0.5]]);
        assert_eq!(found.target, [[1.0, 0.0], [2.0 / 3.0, 1.0 / 3.0]]);
        assert_eq!(found.served, [[2, 0], [1, 1]]);
        close(found.information, 0.311_278_1);

        let trace = Trace {
            memories: Vec::new(),
            time: 16,
            num_experts: 2,
            experts_per_token: 1,
            layers: vec![layer],
            losses_N: vec![1.0, 2.0, 4.0, 3.0],
            likeliest_N: vec![0; 4],
        };
        let tokenizer = bytes();
        let totals = class_totals(&trace, &[Number, Start], &classes, &[50, 98, 99, 50, 98], &tokenizer);
        assert_eq!((totals[0].tokens, totals[0].targets, totals[1].tokens, totals[1].targets), (2, 1, 2, 3));
        close(totals[0].loss.unwrap(), 4.0);
        close(totals[1].loss.unwrap(), 2.0);
        close(totals[0].loss_share, 0.4);
        assert_eq!(totals[1].examples.len(), 2);
    }
}
