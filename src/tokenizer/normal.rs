//! Unicode normal forms (Unicode Standard Annex 15), which some tokenizers put a text into first.

use serde_json::Value;
use std::borrow::Cow;
use tokenizers::normalizers::unicode::{NFC, NFD, NFKC, NFKD};
use tokenizers::{NormalizedString, Normalizer};

type Form = fn(&mut NormalizedString) -> tokenizers::Result<()>;
const FORMS: [(&str, Form); 4] = [
    ("NFC", |text| NFC.normalize(text)),
    ("NFD", |text| NFD.normalize(text)),
    ("NFKC", |text| NFKC.normalize(text)),
    ("NFKD", |text| NFKD.normalize(text)),
];

/// The normal forms of a tokenizer, in its order.
#[derive(Clone, Default)]
pub struct NormalForms(Vec<(&'static str, Form)>);

impl NormalForms {
    pub fn of(normalizers: &[&Value]) -> Self {
        Self(normalizers.iter().filter_map(|step| FORMS.into_iter().find(|(name, _)| step["type"] == *name)).collect())
    }

    pub fn names(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
    }

    /// The text in these forms. They leave ASCII as it is, and nothing combines with a line feed, so that lines can be
    /// taken one by one.
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.0.is_empty() || text.is_ascii() {
            return text.into();
        }
        let mut normal = String::with_capacity(text.len());
        for line in text.split_inclusive('\n') {
            let mut line = NormalizedString::from(line);
            for (_, form) in &self.0 {
                // None of the four can fail.
                _ = form(&mut line);
            }
            normal.push_str(line.get());
        }
        if normal == text { text.into() } else { normal.into() }
    }
}
