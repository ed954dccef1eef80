//! The configurations in `configs/`, which the program carries with it, and which of them fits a text of a given size.

use super::Draft;
use crate::error::Failure;

/// A configuration that comes with the program.
#[derive(Debug)]
pub struct Shipped {
    pub name: &'static str,
    /// What it shows, in a few words.
    pub summary: &'static str,
    /// The file.
    pub text: &'static str,
}

macro_rules! shipped {
    ($($name:literal: $summary:literal,)+) => {
        &[$(Shipped {
            name: $name,
            summary: $summary,
            text: include_str!(concat!("../../configs/", $name, ".toml")),
        }),+]
    };
}

/// All of them; a test compares the list with the directory.
pub const SHIPPED: &[Shipped] = shipped! {
    "quickstart": "8 experts, 2 per token; trains in a minute or two: start here",
    "transcript": "bytes, and strong regularisation, for a text of 100 to 300 KB of your own",
    "dense": "no experts, with the active parameters of quickstart",
    "switch-top1": "one expert of double width per token (Switch Transformer)",
    "top2": "gates that are not renormalised (OLMoE)",
    "fine-grained": "16 experts of half the width, 4 per token (DeepSeekMoE)",
    "shared-expert": "one of the four active experts is shared by all tokens (DeepSeekMoE)",
    "noisy-top2": "learned noise on the router's scores (Shazeer 2017)",
    "bias-balanced": "sigmoid scores, balanced by a bias (DeepSeek-V3)",
    "tinyshakespeare-char": "nanoGPT's CPU shape as a mixture, on characters",
    "tinyshakespeare-long": "half an hour of the same, wider and deeper",
};

impl Shipped {
    pub fn draft(&self) -> Draft {
        Draft::new(self.text, self.name)
    }
}

/// The configuration of that name.
pub fn shipped(name: &str) -> Option<&'static Shipped> {
    SHIPPED.iter().find(|shipped| shipped.name == name)
}

/// What to say about a name that no configuration has.
pub fn unknown(name: &str) -> Failure {
    let names: Vec<&str> = SHIPPED.iter().map(|shipped| shipped.name).collect();
    let distance = |known: &&&str| strsim::damerau_levenshtein(&name.chars().take(64).collect::<String>(), known);
    let nearest = names.iter().min_by_key(distance).filter(|known| distance(known) * 3 <= name.chars().count());
    let hint = nearest.map_or_else(String::new, |known| format!("; did you mean {known}?"));
    Failure::Usage(format!(
        "there is no file, directory or configuration {name:?}{hint} (configurations that come with the program: {})",
        names.join(", ")
    ))
}

/// Texts of up to this many bytes are read again and again: what matters is not to memorise them.
const SMALL: usize = 300_000;
/// From this many bytes on, no part of the text is read often enough to be memorised.
const LARGE: usize = 5_000_000;

/// The configuration for texts of `bytes` bytes, and in a few words what it is. A rule of thumb:
///
/// | bytes | configuration | steps |
/// |---|---|---|
/// | up to 300,000 | transcript | 20 times through the training split, 200 to 1,500 |
/// | up to 5 million | quickstart | 1,600 per million bytes, 500 to 3,000 |
/// | more | quickstart without dropout and with the usual weight decay | 3,000 |
pub fn for_texts(bytes: usize) -> (Draft, String) {
    let name = if bytes <= SMALL { "transcript" } else { "quickstart" };
    let steps = match bytes {
        // 2,048 bytes per step, nine tenths of the text.
        0..=SMALL => (bytes * 18 / 2048).clamp(200, 1500),
        _ => (bytes / 625).clamp(500, 3000),
    };
    let mut draft = Draft::new(shipped(name).map_or("", |shipped| shipped.text), name);
    draft.set("train.max_steps", steps as i64);
    let mut description = format!("{name} with {steps} steps");
    if bytes > LARGE {
        draft.set("model.hidden_dropout", 0.0);
        draft.set("model.attention_dropout", 0.0);
        draft.set("optimizer.weight_decay", 0.1);
        description += " and without dropout";
    }
    (draft, description)
}

/// How much text [`for_texts`] tells apart: more bytes than this make no difference.
pub const ENOUGH_BYTES: usize = LARGE + 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, TokenizerKind};
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn the_shipped_configurations_are_the_files_in_configs() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files: BTreeSet<String> = paths
            .filter(|path| path.is_file())
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(SHIPPED.iter().map(|shipped| shipped.name.to_owned()).collect::<BTreeSet<_>>(), files);
        assert_eq!(SHIPPED.len(), files.len());
        for shipped in SHIPPED {
            shipped.draft().resolve(&[]).unwrap();
        }
    }

    #[test]
    fn an_unknown_name_gets_the_nearest_one_and_all() {
        let message = unknown("quikstart").to_string();
        assert!(message.contains("did you mean quickstart?") && message.contains("bias-balanced"), "{message}");
        let message = unknown("zzzzzz").to_string();
        assert!(!message.contains("did you mean") && message.contains("quickstart"), "{message}");
    }

    fn chosen(bytes: usize) -> Config {
        for_texts(bytes).0.resolve(&["data.sources=x".into()]).unwrap()
    }

    #[test]
    fn the_size_of_a_text_chooses_tokenizer_steps_and_regularisation() {
        let small = chosen(137_000);
        assert_eq!((small.tokenizer.kind, small.train.max_steps), (TokenizerKind::Bytes, 1204));
        assert_eq!((small.optimizer.weight_decay, small.model.hidden_dropout), (3.0, 0.2));
        let middle = chosen(940_000);
        assert_eq!((middle.tokenizer.kind, middle.train.max_steps), (TokenizerKind::Bpe, 1504));
        assert_eq!((middle.optimizer.weight_decay, middle.model.hidden_dropout), (3.0, 0.1));
        let large = chosen(1_000_000_000);
        assert_eq!((large.optimizer.weight_decay, large.model.hidden_dropout), (0.1, 0.0));
        let steps = [0, 10_000, 300_000, 300_001, 5_000_000, ENOUGH_BYTES, usize::MAX];
        assert_eq!(steps.map(|bytes| chosen(bytes).train.max_steps), [200, 200, 1500, 500, 3000, 3000, 3000]);
        assert_eq!(chosen(ENOUGH_BYTES), large);
    }

    #[test]
    fn the_description_says_what_was_chosen() {
        assert_eq!(for_texts(940_000).1, "quickstart with 1504 steps");
        assert_eq!(for_texts(9_000_000).1, "quickstart with 3000 steps and without dropout");
    }
}
