//! `tinymoe eval`: the loss on the run's validation split, or on other text.

use super::{Global, Trained};
use crate::baseline::ngram_baseline;
use crate::config::DataConfig;
use crate::dataset::split::{Split, SplitRule};
use crate::dataset::{Coverage, Part, Tokens};
use crate::error::Failure;
use crate::terminal::Phase;
use crate::train::evaluate::evaluate;
use crate::train::prepare::{data_sha256, grouped, read_data};
use crate::transcript::Document;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run directory (its best checkpoint), a checkpoint directory, or a model that transformers wrote
    run: PathBuf,
    /// Text to evaluate on instead of the validation split: files, directories or globs; may be repeated
    #[arg(long, value_name = "PATH")]
    data: Vec<String>,
    /// Length of the windows in tokens [default: all of the model's positions]
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Text of a run or from the command line.
pub(super) struct Texts {
    documents: Vec<Document>,
    /// How they are divided, where they are the run's own data.
    split: Option<Split>,
}

impl Texts {
    /// The files in `data`; with none, the validation split of the run's own data.
    pub fn read(trained: &Trained, data: &[String]) -> Result<Self> {
        let _phase = Phase::new("reading the texts");
        if data.is_empty() {
            let config = trained.run_config()?.ok_or_else(|| trained.no_validation_split())?.data;
            let documents = read_data(&config)?;
            trained.check_data(&data_sha256(&documents))?;
            let rule = trained.state.as_ref().map_or(SplitRule::NEWEST, |state| state.split);
            let split = Split::of(&documents, rule, config.validation_fraction);
            return Ok(Self { documents, split: Some(split) });
        }
        // Text is read as the run's was, where that is known.
        let options = trained.run_config()?.unwrap_or_default().data;
        let data = DataConfig { directory: String::new(), sources: data.to_vec(), exclude: Vec::new(), ..options };
        let documents = read_data(&data)?;
        Ok(Self { documents, split: None })
    }

    /// The names of the documents that have such text, in its order.
    pub fn names(&self) -> Vec<String> {
        let has_text = |document: &&Document| self.split.is_none_or(|split| split.parts(document).1.is_some());
        self.documents.iter().filter(has_text).map(|document| document.name.clone()).collect()
    }

    /// The files that the text was read from.
    pub fn files(&self) -> Vec<PathBuf> {
        // A row of a JSONL file has its line behind the file's name.
        let file = |name: &str| match name.rsplit_once(':') {
            Some((file, line)) if line.parse::<usize>().is_ok() && !Path::new(name).exists() => PathBuf::from(file),
            _ => PathBuf::from(name),
        };
        let mut files: Vec<PathBuf> = self.documents.iter().map(|document| file(&document.name)).collect();
        files.dedup();
        files
    }

    /// The text to evaluate on, and where it is a validation split also the training part.
    pub fn parts(&self) -> (Option<Vec<Part<'_>>>, Vec<Part<'_>>) {
        let Some(split) = self.split else {
            let whole = self.documents.iter().map(|Document { domain, text, .. }| Part { domain, text });
            return (None, whole.collect());
        };
        let (training, validation): (Vec<_>, Vec<_>) =
            self.documents.iter().map(|document| split.parts(document)).unzip();
        (Some(training.into_iter().flatten().collect()), validation.into_iter().flatten().collect())
    }
}

#[derive(Serialize)]
struct Report {
    /// Nats per token.
    loss: f64,
    perplexity: f64,
    bits_per_byte: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ngram_bits_per_byte: Option<f64>,
    /// `bits_per_byte` counts the bytes of unknown characters, at 8 bits each; `loss` does not.
    #[serde(flatten)]
    predicted: Coverage,
    /// Share of the tokens that are unknown.
    unknown_share: f64,
    context: usize,
}

/// # Errors
/// Usage errors, a damaged checkpoint, and files that cannot be read.
pub fn run(args: EvalArgs, _global: &Global) -> Result<()> {
    let trained = Trained::load(&args.run)?;
    let texts = Texts::read(&trained, &args.data)?;
    let (training, parts) = texts.parts();
    let phase = Phase::new("encoding the texts");
    let tokens = Tokens::encode(&parts, &trained.tokenizer)?;
    drop(phase);
    trained.warn_of_normalized(tokens.normalized_texts);
    if tokens.ids.len() < 2 {
        return Err(Failure::Usage("there is no text to evaluate on".into()).into());
    }
    let context = trained.context(args.context)?;
    let phase = Phase::new("measuring the loss");
    let evaluation = evaluate(&trained.model, &tokens, context, |seen| phase.at(seen.positions.end, tokens.ids.len()))?;
    drop(phase);
    let predicted = tokens.predicted(&trained.tokenizer);
    let phase = Phase::new("computing the n-gram baseline");
    let ngram_bits_per_byte = match training {
        Some(training) => Some(ngram_baseline(&texts_of(&training), &texts_of(&parts))?.bits_per_byte),
        None => None,
    };
    drop(phase);
    let report = Report {
        loss: evaluation.loss,
        perplexity: evaluation.loss.exp(),
        bits_per_byte: predicted.bits_per_byte(evaluation.loss),
        ngram_bits_per_byte,
        predicted,
        unknown_share: predicted.unknown_share(),
        context,
    };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", render(&report, &tokens.unknown.names()))?;
    }
    Ok(())
}

/// The report as lines of text.
fn render(report: &Report, unknown_characters: &str) -> String {
    let Report { loss, perplexity, bits_per_byte, predicted, context, .. } = report;
    let mut out = format!("loss           {loss:.4} nats/token (perplexity {perplexity:.2})\n");
    out += &format!("bits per byte  {bits_per_byte:.4}\n");
    if let Some(ngram) = report.ngram_bits_per_byte {
        out += &format!("n-gram         {ngram:.4} bits per byte, trained on the run's training split\n");
    }
    if predicted.unknown_tokens > 0 {
        out += &format!(
            "unknown        {} tokens ({:.2}%) are characters that the tokenizer does not know: {unknown_characters}; bits \
             per byte count 8 bits for each of their bytes, the loss does not\n",
            grouped(predicted.unknown_tokens),
            100.0 * report.unknown_share,
        );
    }
    let (tokens, bytes) = (grouped(predicted.tokens), grouped(predicted.bytes));
    out + &format!("text           {tokens} tokens, {bytes} bytes, in windows of {} tokens\n", grouped(*context))
}

fn texts_of<'a>(parts: &[Part<'a>]) -> Vec<&'a str> {
    parts.iter().map(|part| part.text).collect()
}
