//! What a run needs before its first step: text read and split, a tokenizer, token arrays, a model, and the n-gram
//! baseline, which is computed in the background.

use super::memory;
use super::receipt;
use super::survey::Survey;
use crate::baseline::{Baseline, ngram_baseline};
use crate::cache::Cache;
use crate::config::{Config, DataConfig, OnBadFile};
use crate::dataset::split::SplitRule;
use crate::dataset::{Coverage, IdArray, Ids, Tokens, stored};
use crate::error::Failure;
use crate::model::transformer::Transformer;
use crate::terminal::Phase;
use crate::tokenizer::Tokenizer;
use crate::transcript::{Corpus, Document, ReadOptions, Receipt, Selection};
use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::thread::JoinHandle;

/// Token arrays of a smaller text are made anew each time, faster than they are found.
const LEAST_KEPT_BYTES: usize = 4 << 20;
/// Names how what is kept was made: to be changed with the tokenizer's training, the encoding or the baseline.
const KEPT_FORMAT: &str = "1";

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
    /// What it came from, and what was left out.
    pub receipt: Receipt,
    /// How it was divided.
    pub split: SplitRule,
    /// Of a large corpus, what the tokenizer and the n-gram baseline were made from.
    sampled: Option<String>,
    baseline: Pending,
}

/// The baseline, or the thread that computes it.
enum Pending {
    Running(Option<JoinHandle<Result<Baseline>>>),
    Done(Baseline),
}

/// Reads the configured sources.
pub fn read_data(data: &DataConfig) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    let receipt = Corpus::find(&selection(data))?.read(|document| {
        documents.push(document);
        Ok(())
    })?;
    receipt::warn_of_skipped(&receipt);
    Ok(documents)
}

/// What a configuration wants to be read.
pub fn selection(data: &DataConfig) -> Selection {
    Selection {
        sources: data.sources.clone(),
        exclude: data.exclude.clone(),
        skip_bad_files: data.on_bad_file == OnBadFile::Skip,
        options: read_options(data),
    }
}

/// As [`read_data`], for more text than fits in memory.
pub fn for_each_text(data: &DataConfig, visit: impl FnMut(Document) -> Result<()>) -> Result<()> {
    Corpus::find(&selection(data))?.read(visit).map(|_| ())
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

/// The text as tokens.
struct Encoded {
    tokenizer: Tokenizer,
    training: Tokens<Ids>,
    validation: Tokens<Ids>,
}

impl Encoded {
    /// Reads the text again and encodes it; `survey` tells of the first reading.
    fn new(corpus: &Corpus, survey: &Survey, tokenizer: Tokenizer) -> Result<Self> {
        let (mut training, mut validation, mut hash) = (Tokens::default(), Tokens::default(), DataHash::default());
        let phase = Phase::new("encoding the texts");
        let (mut done, total) = (0, survey.shares.training + survey.shares.validation);
        corpus.read(|document| {
            hash.add(&document);
            let (head, tail) = survey.split.parts(&document);
            head.iter().try_for_each(|part| training.push(part, &tokenizer))?;
            tail.iter().try_for_each(|part| validation.push(part, &tokenizer))?;
            done += document.text.len();
            phase.at(done, total);
            Ok(())
        })?;
        drop(phase);
        if hash.finish() != survey.data_sha256 {
            let message = "the text in data.sources changed while it was read; start again when it is at rest";
            return Err(Failure::Usage(message.into()).into());
        }
        training.sort_domains();
        validation.sort_domains();
        Ok(Self { tokenizer, training, validation })
    }

    /// As it was kept in the cache, which `key` must be the key of.
    fn kept(cache: &Cache, key: &str) -> Option<Self> {
        let (json, [training, validation]) = stored::get(cache, key)?;
        let tokenizer = Tokenizer::from_json(&json, "tokenizer.json").ok()?;
        Some(Self { tokenizer, training, validation })
    }

    fn keep(&self, cache: &Cache, key: &str) -> Result<()> {
        let splits = [&self.training, &self.validation];
        let ids: usize = splits.iter().map(|tokens| tokens.ids.len()).sum();
        if !cache.has_room_for(4 * ids as u64) {
            return Ok(());
        }
        let _phase = Phase::new("keeping the tokens for the next run");
        stored::put(cache, key, &self.tokenizer.to_json()?, splits)
    }
}

impl Survey {
    /// The cache's name for what follows from the text, its split, and `options`.
    fn key(&self, kind: &str, options: &[u8]) -> String {
        let mut hash = Sha256::new();
        let split = format!("{:?}", self.split);
        for part in [KEPT_FORMAT.as_bytes(), kind.as_bytes(), self.data_sha256.as_bytes(), split.as_bytes(), options] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        format!("{:x}.{kind}", hash.finalize())
    }
}

/// What could not be kept is no reason to stop.
fn warn_of(kept: Result<()>) {
    if let Err(error) = kept {
        log::warn!("{error:#}");
    }
}

impl Prepared {
    /// Reads the data and builds everything from it for a new run.
    ///
    /// # Errors
    /// [`Failure::Usage`] where there is too little text for the context, or it cannot be split.
    pub fn new(config: &Config) -> Result<Self> {
        Self::build(config, None, SplitRule::NEWEST)
    }

    /// As [`Self::new`], for a run that goes on with its tokenizer and its split.
    pub fn resumed(config: &Config, tokenizer: Tokenizer, split: SplitRule) -> Result<Self> {
        Self::build(config, Some(tokenizer), split)
    }

    fn build(config: &Config, tokenizer: Option<Tokenizer>, rule: SplitRule) -> Result<Self> {
        memory::check(config)?;
        let corpus = Corpus::find(&selection(&config.data))?;
        let mut survey = Survey::of(config, &corpus, rule)?;
        receipt::warn_of_skipped(&survey.receipt);
        check_split(config, &survey)?;
        let is_large = survey.shares.training + survey.shares.validation >= LEAST_KEPT_BYTES;
        let cache = Cache::from_environment().filter(|_| is_large);
        let sampled = survey.training.is_partial().then(|| survey.training.describe());
        let made_how = match &tokenizer {
            Some(tokenizer) => tokenizer.to_json()?,
            None if config.tokenizer.path.is_empty() => serde_json::to_vec(&config.tokenizer)?,
            None => survey.tokenizer(&config.tokenizer)?.to_json()?,
        };
        let key = survey.key("tokens", &made_how);
        let (encoded, baseline) = match cache.as_ref().and_then(|cache| Encoded::kept(cache, &key)) {
            Some(kept) => (kept, Pending::start(cache, &mut survey)?),
            None => {
                let tokenizer = tokenizer.map_or_else(|| survey.tokenizer(&config.tokenizer), Ok)?;
                let baseline = Pending::start(cache.clone(), &mut survey)?;
                let encoded = Encoded::new(&corpus, &survey, tokenizer)?;
                if let Some(cache) = cache {
                    warn_of(encoded.keep(&cache, &key));
                }
                (encoded, baseline)
            }
        };
        let Encoded { tokenizer, training, validation } = encoded;
        check_lengths(config, &training, &validation)?;
        tokenizer.encode(&config.train.sample_prompt).context("train.sample_prompt cannot be used")?;
        let predicted = validation.predicted(&tokenizer);
        let model = Transformer::new(&config.model, &config.router, tokenizer.vocab_size(), config.train.seed)?;
        let Survey { data_sha256, receipt, .. } = survey;
        Ok(Self {
            tokenizer,
            training,
            validation,
            predicted,
            model,
            data_sha256,
            receipt,
            split: rule,
            sampled,
            baseline,
        })
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
            + &format!("\n{}", receipt::summary(&self.receipt).join("\n"))
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
    /// From the cache where it is there, else computed in the background and kept. Takes the survey's samples.
    fn start(cache: Option<Cache>, survey: &mut Survey) -> Result<Self> {
        let key = survey.key("baseline", b"");
        let kept = |cache: &Cache| {
            let mut json = Vec::new();
            cache.get(&key)?.1.read_to_end(&mut json).ok()?;
            serde_json::from_slice(&json).ok()
        };
        if let Some(baseline) = cache.as_ref().and_then(kept) {
            return Ok(Pending::Done(baseline));
        }
        let [training, validation] =
            [&mut survey.training, &mut survey.validation].map(|sample| std::mem::take(sample).texts());
        let thread = std::thread::Builder::new().name("baseline".into()).spawn(move || {
            let baseline = ngram_baseline(&training, &validation)?;
            if let Some(cache) = cache {
                warn_of(cache.put(&key, |out| Ok(out.write_all(&serde_json::to_vec(&baseline)?)?)));
            }
            Ok(baseline)
        })?;
        Ok(Pending::Running(Some(thread)))
    }
}

/// A number with its thousands set off by commas.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// Refuses a split that leaves a side empty, and warns of one that is far from what was asked for, before any work is
/// done on the text.
fn check_split(config: &Config, survey: &Survey) -> Result<()> {
    let shares = &survey.shares;
    if shares.validation == 0 || shares.training == 0 {
        let side = if shares.training == 0 { "training" } else { "validation" };
        return Err(Failure::Usage(format!(
            "no text is left for {side}: {} document(s) of {} bytes cannot be divided by data.validation_fraction = {}; \
             add to data.sources, or raise the fraction (up to 0.5)",
            survey.receipt.documents(),
            grouped(shares.training + shares.validation),
            config.data.validation_fraction,
        ))
        .into());
    }
    // A token is at least a byte, and each text ends with one more.
    let most = shares.training + survey.receipt.documents();
    if most <= config.model.max_position_embeddings {
        return Err(too_short(config, &format!("{} bytes", grouped(shares.training))));
    }
    if let Some(warning) = shares.warning(config.data.validation_fraction) {
        log::warn!("{warning}");
    }
    Ok(())
}

fn check_lengths(config: &Config, training: &Tokens<Ids>, validation: &Tokens<Ids>) -> Result<()> {
    if training.ids.len() <= config.model.max_position_embeddings {
        return Err(too_short(config, &format!("{} tokens", grouped(training.ids.len()))));
    }
    if validation.ids.len() < 2 {
        let message = "the validation text is a single token; add to data.sources or raise data.validation_fraction";
        return Err(Failure::Usage(message.into()).into());
    }
    Ok(())
}

fn too_short(config: &Config, size: &str) -> anyhow::Error {
    Failure::Usage(format!(
        "the training text has {size}, which is not more than model.max_position_embeddings = {}; add to data.sources, or \
         make the context shorter",
        config.model.max_position_embeddings
    ))
    .into()
}
