//! Which part of the text is held out for validation. The data alone decides, so that the same text is always held
//! out, whatever the seed; and copies of a document always fall on one side.

use super::Part;
use crate::tokenizer::char_boundary;
use crate::transcript::Document;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How text is divided. A checkpoint names the rule that it was trained with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitRule {
    /// The first rule, of checkpoints that name none: the last part of each document, cut at a line. A document of one
    /// line is training text altogether.
    #[default]
    Lines,
    /// Long documents as before, or where no line ends at the right place cut at a space; short documents as a whole.
    Documents,
}

impl SplitRule {
    /// The rule of new runs.
    pub const NEWEST: Self = Self::Documents;
}

/// Documents of fewer bytes are short: the tenth part of one would be a sentence or two.
const SHORT_BYTES: usize = 2048;
/// The hash of a short document is a number below this.
const BUCKETS: usize = 4096;

/// A rule with all that it needs to divide a document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    fraction: f64,
    /// None under the first rule.
    short: Option<Short>,
}

/// What becomes of short documents.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Short {
    /// Those whose contents have a hash below this are held out.
    Whole { below: usize },
    /// They are too few for that: each is cut.
    Cut,
}

/// Sizes of short documents by hash, and of what was divided: tells whether a split came out as asked.
#[derive(Clone, Debug)]
pub struct Shares {
    short_bytes: Vec<usize>,
    /// Bytes on the two sides.
    pub training: usize,
    pub validation: usize,
}

impl Default for Shares {
    fn default() -> Self {
        Self { short_bytes: vec![0; BUCKETS], training: 0, validation: 0 }
    }
}

impl Split {
    /// Holds out `fraction` of the text. [`Self::settled`] makes it fit where short documents are few.
    pub fn new(rule: SplitRule, fraction: f64) -> Self {
        let below = (fraction * BUCKETS as f64).round() as usize;
        Self { fraction, short: (rule == SplitRule::Documents).then_some(Short::Whole { below }) }
    }

    /// The split of these documents.
    pub fn of(documents: &[Document], rule: SplitRule, fraction: f64) -> Self {
        let split = Self::new(rule, fraction);
        let mut shares = Shares::default();
        documents.iter().for_each(|document| shares.add(document, &split));
        split.settled(&shares)
    }

    /// The training and the validation part of a document; at least one of them is there.
    pub fn parts<'a>(&self, document: &'a Document) -> (Option<Part<'a>>, Option<Part<'a>>) {
        let (head, tail) = document.text.split_at(self.cut(&document.text));
        let part = |text: &'a str| (!text.is_empty()).then_some(Part { domain: &document.domain, text });
        (part(head), part(tail))
    }

    /// Where the validation part of a text begins: 0 where the whole text is held out, its length where nothing is.
    fn cut(&self, text: &str) -> usize {
        let at_line = self.cut_at_line(text);
        match self.short {
            None => at_line,
            Some(Short::Whole { below }) if text.len() < SHORT_BYTES => {
                if bucket(text) < below {
                    0
                } else {
                    text.len()
                }
            }
            Some(_) if at_line < text.len() => at_line,
            Some(_) => self.cut_at_space(text),
        }
    }

    fn target(&self, text: &str) -> usize {
        (text.len() as f64 * (1.0 - self.fraction)) as usize
    }

    /// The end of the line in which the last `fraction` of the text begins.
    fn cut_at_line(&self, text: &str) -> usize {
        let target = self.target(text);
        let line_end = text.as_bytes()[target..].iter().position(|&byte| byte == b'\n');
        line_end.map_or(text.len(), |offset| target + offset + 1)
    }

    /// In front of the white space that is next to where the last `fraction` begins; right there, if there is none for
    /// half as long as that part is.
    fn cut_at_space(&self, text: &str) -> usize {
        let target = char_boundary(text, self.target(text));
        let reach = (text.len() - target) / 2;
        let (first, last) = (char_boundary(text, target.saturating_sub(reach)), target + reach);
        let after = text[target..char_boundary(text, last)].find(char::is_whitespace).map(|offset| target + offset);
        let before = || text[first..target].rfind(char::is_whitespace).map(|offset| first + offset);
        let cut = after.or_else(before).unwrap_or(target);
        let (head, tail) = text.split_at(cut);
        if head.trim().is_empty() || tail.trim().is_empty() { text.len() } else { cut }
    }

    /// The split that fits the shares that this one gave: where short documents held out much less or more than they
    /// should, another limit of their hashes, and where none fits, a cut through each.
    pub fn settled(self, shares: &Shares) -> Self {
        let Some(Short::Whole { below }) = self.short else { return self };
        let total: usize = shares.short_bytes.iter().sum();
        let share = |below: usize| shares.short_bytes[..below].iter().sum::<usize>() as f64 / total.max(1) as f64;
        if total == 0 || (0.8..=1.25).contains(&(share(below) / self.fraction)) {
            return self;
        }
        let distance = |below: &usize| (share(*below) - self.fraction).abs();
        let best = (0..BUCKETS).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(below);
        let fits = is_near(share(best), self.fraction);
        Self { short: Some(if fits { Short::Whole { below: best } } else { Short::Cut }), ..self }
    }
}

impl Shares {
    pub fn add(&mut self, document: &Document, split: &Split) {
        let text = &document.text;
        if text.len() < SHORT_BYTES && split.short.is_some() {
            self.short_bytes[bucket(text)] += text.len();
        }
        let cut = split.cut(text);
        self.training += cut;
        self.validation += text.len() - cut;
    }

    /// What to say where the held-out share is far from `fraction`.
    pub fn warning(&self, fraction: f64) -> Option<String> {
        let share = self.validation as f64 / (self.training + self.validation).max(1) as f64;
        (!is_near(share, fraction)).then(|| {
            format!(
                "{:.1}% of the text is held out for validation, not the {:.1}% of data.validation_fraction = {fraction}: \
                 documents are cut at lines or held out whole, and there are too few of them to come closer",
                100.0 * share,
                100.0 * fraction
            )
        })
    }
}

/// Whether a share is between half of what was asked for and twice that.
fn is_near(share: f64, asked: f64) -> bool {
    (0.5..=2.0).contains(&(share / asked))
}

/// A number below [`BUCKETS`] that follows from a text's contents.
fn bucket(text: &str) -> usize {
    let hash = Sha256::digest(text);
    (usize::from(u16::from_be_bytes([hash[0], hash[1]])) * BUCKETS) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::Facts;
    use proptest::prelude::*;

    fn document(text: impl Into<String>) -> Document {
        Document { name: "d".into(), domain: "x".into(), text: text.into(), facts: Facts::default() }
    }

    /// The training and validation parts of texts under a rule.
    fn split(texts: &[String], rule: SplitRule, fraction: f64) -> (Vec<String>, Vec<String>) {
        let documents: Vec<Document> = texts.iter().map(document).collect();
        let split = Split::of(&documents, rule, fraction);
        let (mut training, mut validation) = (Vec::new(), Vec::new());
        for document in &documents {
            let (head, tail) = split.parts(document);
            training.extend(head.map(|part| part.text.to_string()));
            validation.extend(tail.map(|part| part.text.to_string()));
        }
        (training, validation)
    }

    fn rows(count: usize) -> Vec<String> {
        (0..count).map(|row| format!("Review {row}: the soup was warm and the bread fresh.\n")).collect()
    }

    fn bytes(texts: &[String]) -> usize {
        texts.iter().map(String::len).sum()
    }

    #[test]
    fn under_the_first_rule_validation_is_the_last_part_of_each_document_cut_at_a_line() {
        let texts = ["one\ntwo\nthree\nfour\n".to_string(), "a single line without end".to_string()];
        let (training, validation) = split(&texts, SplitRule::Lines, 0.4);
        assert_eq!(training, ["one\ntwo\nthree\n", "a single line without end"]);
        assert_eq!(validation, ["four\n"]);
        let (training, validation) = split(&["ääää\nöö\n".to_string()], SplitRule::Lines, 0.45);
        assert_eq!((training[0].as_str(), validation[0].as_str()), ("ääää\n", "öö\n"));
    }

    #[test]
    fn long_documents_of_lines_are_divided_as_under_the_first_rule() {
        let texts: Vec<String> = (0..5).map(|text| rows(100 + 7 * text).concat()).collect();
        for fraction in [0.03, 0.1, 0.3] {
            assert_eq!(split(&texts, SplitRule::Documents, fraction), split(&texts, SplitRule::Lines, fraction));
        }
        // As is a short one that stands alone.
        let texts = [rows(20).concat()];
        assert_eq!(split(&texts, SplitRule::Documents, 0.1), split(&texts, SplitRule::Lines, 0.1));
    }

    #[test]
    fn of_many_short_documents_the_asked_share_is_held_out_whole() {
        for (count, fraction) in [(5000, 0.1), (100, 0.1), (30, 0.1), (12, 0.1), (400, 0.02), (4, 0.5)] {
            let texts = rows(count);
            let (training, validation) = split(&texts, SplitRule::Documents, fraction);
            assert_eq!(training.len() + validation.len(), count);
            assert!(validation.iter().chain(&training).all(|part| texts.contains(part)));
            let share = bytes(&validation) as f64 / bytes(&texts) as f64;
            assert!((0.75..1.34).contains(&(share / fraction)), "{share} of {count} for {fraction}");
        }
    }

    #[test]
    fn copies_of_a_document_fall_on_one_side() {
        let mut texts = rows(60);
        texts.extend(rows(60));
        let (training, validation) = split(&texts, SplitRule::Documents, 0.1);
        assert!(!validation.is_empty());
        assert!(validation.iter().all(|row| !training.contains(row)));
    }

    #[test]
    fn which_documents_are_held_out_does_not_depend_on_their_order_or_on_new_ones() {
        let texts = rows(1000);
        let mut reversed = rows(1100);
        reversed.reverse();
        let held_out = |texts: &[String]| split(texts, SplitRule::Documents, 0.1).1;
        let more = held_out(&reversed);
        assert!(held_out(&texts).iter().all(|row| more.contains(row)));
    }

    #[test]
    fn a_document_without_line_ends_is_cut_at_a_space() {
        let line = "all the words of a very long line ".repeat(1000);
        let (training, validation) = split(std::slice::from_ref(&line), SplitRule::Documents, 0.1);
        assert_eq!(format!("{}{}", training[0], validation[0]), line);
        assert!(validation[0].starts_with(' ') && validation[0].len().abs_diff(line.len() / 10) < 10);
        // Characters, where there are no spaces.
        let (training, validation) = split(&["語".repeat(10_000)], SplitRule::Documents, 0.1);
        assert_eq!((training[0].len(), validation[0].len()), (27_000, 3_000));
        // A single short line, too.
        let (training, validation) = split(&["one two three four five\n".into()], SplitRule::Documents, 0.3);
        assert_eq!((training[0].as_str(), validation[0].as_str()), ("one two three four", " five\n"));
        // One word stays whole, on the side of training.
        assert_eq!(split(&["a\n".into()], SplitRule::Documents, 0.1), (vec!["a\n".to_string()], vec![]));
    }

    #[test]
    fn a_share_far_from_the_asked_one_is_told() {
        let warning = |texts: &[String], rule| {
            let documents: Vec<Document> = texts.iter().map(document).collect();
            let split = Split::of(&documents, rule, 0.1);
            let mut shares = Shares::default();
            documents.iter().for_each(|document| shares.add(document, &split));
            shares.warning(0.1)
        };
        assert_eq!(warning(&rows(100), SplitRule::Documents), None);
        let told = warning(&rows(100), SplitRule::Lines).unwrap();
        assert!(told.starts_with("0.0% of the text is held out for validation, not the 10.0%"), "{told}");
        // Long lines at the end.
        let long_line = format!("{}\nend\n", "word ".repeat(1000));
        let told = warning(&[long_line], SplitRule::Documents).unwrap();
        assert!(told.starts_with("0.1% of the text"), "{told}");
    }

    proptest! {
        #[test]
        fn parts_are_together_the_text(
            texts in prop::collection::vec("[a-zé語 \n]{1,90}", 1..12), fraction in 0.001f64..0.5, cuts: bool,
        ) {
            let rule = if cuts { SplitRule::Lines } else { SplitRule::Documents };
            let documents: Vec<Document> = texts.iter().map(document).collect();
            let split = Split::of(&documents, rule, fraction);
            for document in &documents {
                let (head, tail) = split.parts(document);
                let whole = [head, tail].into_iter().flatten().map(|part| part.text).collect::<String>();
                prop_assert_eq!(&whole, &document.text);
            }
        }
    }
}
