//! What a run needs before its first step: text read and split, a tokenizer, token arrays, a model, and the n-gram
//! baseline, which is computed in the background.

use super::memory;
use super::survey::Survey;
use crate::baseline::{Baseline, ngram_baseline};
use crate::config::{Config, DataConfig};
use crate::dataset::{Coverage, IdArray, Ids, Tokens, split};
use crate::error::Failure;
use crate::model::transformer::Transformer;
use crate::terminal::Phase;
use crate::tokenizer::Tokenizer;
use crate::transcript::{Document, ReadOptions, for_each_document, read_sources};
use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::thread::JoinHandle;

/// Text, tokenizer and model of a run.
pub struct Prepared {
    pub tokenizer: Tokenizer,
    pub training: Tokens<Ids>,
    pub validation: Tokens<Ids>,
    /// What the validation split's predicted tokens stand for.
    pub predicted: Coverage,
    pub model: Transformer,
    /// SHA-256 of all text with its domains.
    pub data_sha256: String,
    /// The files it came from.
    pub files: Vec<DataFile>,
    /// Of a large corpus, what the tokenizer and the n-gram baseline were made from.
    sampled: Option<String>,
    baseline: Pending,
}

/// A file of the training data, for `run.json`.
#[derive(Debug, Serialize)]
pub struct DataFile {
    name: String,
    domain: String,
    /// Of the text as it was read, timestamps and speakers kept or dropped.
    sha256: String,
}

/// The baseline, or the thread that computes it.
enum Pending {
    Running(Option<JoinHandle<Result<Baseline>>>),
    Done(Baseline),
}

/// Reads the configured sources.
pub fn read_data(data: &DataConfig) -> Result<Vec<Document>> {
    read_sources(&data.sources, &read_options(data))
}

/// As [`read_data`], for more text than fits in memory.
pub fn for_each_text(data: &DataConfig, visit: impl FnMut(Document) -> Result<()>) -> Result<()> {
    for_each_document(&data.sources, &read_options(data), visit)
}

/// [`data_sha256`] of the configured sources.
pub fn texts_sha256(data: &DataConfig) -> Result<String> {
    let mut hash = DataHash::default();
    for_each_text(data, |document| {
        hash.add(&document);
        Ok(())
    })?;
    Ok(hash.finish())
}

/// Bytes of text in the configured sources, counted as far as `enough`.
pub fn text_bytes(data: &DataConfig, enough: usize) -> Result<usize> {
    let mut bytes = 0;
    let counted = for_each_text(data, |document| {
        bytes += document.text.len();
        ensure!(bytes < enough, "this is enough");
        Ok(())
    });
    if bytes < enough {
        counted?;
    }
    Ok(bytes)
}

fn read_options(data: &DataConfig) -> ReadOptions {
    ReadOptions {
        directory: data.directory.clone().into(),
        keep_timestamps: data.keep_timestamps,
        keep_speakers: data.keep_speakers,
        text_column: data.text_column.clone().into(),
    }
}

/// SHA-256 over domains and texts of all documents.
pub fn data_sha256(documents: &[Document]) -> String {
    let mut hash = DataHash::default();
    documents.iter().for_each(|document| hash.add(document));
    hash.finish()
}

#[derive(Default)]
pub(super) struct DataHash(Sha256);

impl DataHash {
    pub(super) fn add(&mut self, Document { domain, text, .. }: &Document) {
        for part in [domain, text] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    pub(super) fn finish(self) -> String {
        format!("{:x}", self.0.finalize())
    }
}

impl DataFile {
    pub(super) fn of(document: &Document) -> Self {
        let Document { name, domain, text, .. } = document;
        Self { name: name.clone(), domain: domain.clone(), sha256: format!("{:x}", Sha256::digest(text)) }
    }
}

impl Prepared {
    /// Reads the data and builds everything from it; `tokenizer` is that of the run being resumed, if there is one.
    ///
    /// # Errors
    /// [`Failure::Usage`] where there is too little text for the context, or a domain's text cannot be split.
    pub fn new(config: &Config, tokenizer: Option<Tokenizer>) -> Result<Self> {
        memory::check(config)?;
        let phase = Phase::new("reading the texts");
        let survey = Survey::of(config)?;
        drop(phase);
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => {
                let _phase = Phase::new("training the tokenizer");
                survey.tokenizer(&config.tokenizer)?
            }
        };
        let Survey { data_sha256, files, training: sample, validation: held_out, .. } = survey;
        let bytes = sample.seen_bytes() + held_out.seen_bytes();
        let sampled = sample.is_partial().then(|| sample.describe());
        let baseline = Pending::start(sample.texts(), held_out.texts())?;
        let phase = Phase::new("encoding the texts");
        let (mut done, total) = (0, bytes);
        let (mut training, mut validation, mut hash) = (Tokens::default(), Tokens::default(), DataHash::default());
        for_each_text(&config.data, |document| {
            hash.add(&document);
            let (head, tail) = split(std::slice::from_ref(&document), config.data.validation_fraction);
            head.iter().try_for_each(|part| training.push(part, &tokenizer))?;
            tail.iter().try_for_each(|part| validation.push(part, &tokenizer))?;
            done += document.text.len();
            phase.at(done, total);
            Ok(())
        })?;
        drop(phase);
        if hash.finish() != data_sha256 {
            let message = "the text in data.sources changed while it was read; start again when it is at rest";
            return Err(Failure::Usage(message.into()).into());
        }
        training.sort_domains();
        validation.sort_domains();
        check_lengths(config, &training, &validation)?;
        tokenizer.encode(&config.train.sample_prompt).context("train.sample_prompt cannot be used")?;
        let predicted = validation.predicted(&tokenizer);
        let model = Transformer::new(&config.model, &config.router, tokenizer.vocab_size(), config.train.seed)?;
        Ok(Self { tokenizer, training, validation, predicted, model, data_sha256, files, sampled, baseline })
    }

    /// The n-gram language model's result on the validation split; waits for it if need be.
    pub fn baseline(&mut self) -> Result<&Baseline> {
        if let Pending::Running(thread) = &mut self.baseline {
            let _phase = Phase::new("computing the n-gram baseline");
            let thread = thread.take().context("the n-gram baseline failed earlier")?;
            let baseline = thread.join().map_err(|_| anyhow!("the n-gram baseline's thread failed"))??;
            self.baseline = Pending::Done(baseline);
        }
        match &self.baseline {
            Pending::Done(baseline) => Ok(baseline),
            Pending::Running(_) => Err(anyhow!("the n-gram baseline is not ready")),
        }
    }

    /// Sizes of model and data in a few lines.
    pub fn describe(&self, config: &Config) -> String {
        let (train, tokens_per_step) = (&config.train, config.tokens_per_step());
        format!(
            "{} parameters, {} of them active per token; vocabulary {}\n{} training tokens, {} validation tokens\n{} \
             steps of {} tokens ({:.1} epochs)",
            grouped(self.model.parameters.count()),
            grouped(self.model.active_parameters()),
            grouped(self.tokenizer.vocab_size()),
            grouped(self.training.ids.len()),
            grouped(self.validation.ids.len()),
            grouped(train.max_steps),
            grouped(tokens_per_step),
            (train.max_steps * tokens_per_step) as f64 / self.training.ids.len() as f64,
        ) + &self.normalized_texts().unwrap_or_default()
            + self.sampled.as_deref().unwrap_or_default()
    }

    /// A line about texts that the tokenizer's normal form has changed.
    fn normalized_texts(&self) -> Option<String> {
        let (forms, texts) =
            (self.tokenizer.normal_forms()?, self.training.normalized_texts + self.validation.normalized_texts);
        (texts > 0).then(|| format!("\nthe tokenizer's Unicode normal form {forms} changes {texts} texts"))
    }

    /// What tokens of the training split stand for; an end of text counts as one byte, as in the n-gram baseline, and an
    /// unknown token as many as those of the split have in the mean.
    pub fn coverage(&self, ids: &[u32]) -> Coverage {
        let (end, unknown) = (self.tokenizer.end_of_text(), self.tokenizer.unknown());
        let mut found = Coverage { tokens: ids.len(), ..Coverage::default() };
        for &id in ids {
            match Some(id) {
                id if id == end => found.bytes += 1,
                id if id == unknown => found.unknown_tokens += 1,
                _ => found.bytes += self.tokenizer.token_bytes(id).len(),
            }
        }
        let all = &self.training.unknown;
        found.unknown_bytes = found.unknown_tokens * all.bytes() / all.tokens.max(1);
        found.bytes += found.unknown_bytes;
        found
    }

    /// Of unknown tokens in the two splits, what they are and what that means; if there are any.
    pub fn unknown_tokens(&self) -> Option<String> {
        let of = |name: &str, tokens: &Tokens<Ids>| {
            let unknown = &tokens.unknown;
            (unknown.tokens > 0).then(|| {
                format!(
                    "{} of the {name} split's {} tokens ({:.2}%) are unknown characters: {}",
                    grouped(unknown.tokens),
                    grouped(tokens.ids.len()),
                    100.0 * unknown.tokens as f64 / tokens.ids.len() as f64,
                    unknown.names()
                )
            })
        };
        let found: Vec<String> =
            [of("training", &self.training), of("validation", &self.validation)].into_iter().flatten().collect();
        (!found.is_empty()).then(|| {
            found.join("; ")
                + ". Bits per byte count 8 bits for each of their bytes, the loss in nats per token does not; with \
                   tokenizer.kind = \"bpe\" or \"bytes\" no character is unknown"
        })
    }
}

impl Pending {
    fn start(training: Vec<String>, validation: Vec<String>) -> Result<Self> {
        let thread = std::thread::Builder::new()
            .name("baseline".into())
            .spawn(move || ngram_baseline(&training, &validation))?;
        Ok(Pending::Running(Some(thread)))
    }
}

/// A number with its thousands set off by commas.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

fn check_lengths(config: &Config, training: &Tokens<Ids>, validation: &Tokens<Ids>) -> Result<()> {
    let time = config.model.max_position_embeddings;
    if training.ids.len() <= time {
        return Err(Failure::Usage(format!(
            "the training text has {} tokens, which is not more than model.max_position_embeddings = {time}; add to \
             data.sources, or make the context shorter",
            training.ids.len()
        ))
        .into());
    }
    if validation.ids.len() < 2 {
        return Err(Failure::Usage(
            "no text is left for validation: every document is a single line, or too short to cut \
             data.validation_fraction off its end at a line; add to data.sources or raise data.validation_fraction"
                .into(),
        )
        .into());
    }
    Ok(())
}
