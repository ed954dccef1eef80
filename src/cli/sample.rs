//! `tinymoe sample`: text from a checkpoint, streamed to stdout, with a log of the experts of every token.

use super::{Global, Trained, whole};
use crate::error::Failure;
use crate::routing::log::{Entry, RoutingLog, Source, check_place};
use crate::routing::{legend, paint};
use crate::sample::generate::{Passed, Prompt, generate};
use crate::sample::{SamplingOptions, Utf8Stream};
use crate::terminal::{self, Colours, Phase};
use crate::tokenizer::TextStream;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;

/// All samples are drawn side by side, each with its own cache.
const MAX_COUNT: usize = 1000;
/// Far more than any context holds; a device without end, such as /dev/zero, is not read on.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

#[derive(Debug, Args)]
pub struct SampleArgs {
    /// A run directory (its best checkpoint), a checkpoint directory, or a model that transformers wrote
    run: PathBuf,
    /// Text to continue [default: the start of a new text]
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Take the prompt for text alone: recognise no special tokens by name, and put none in front
    #[arg(long)]
    no_special_tokens: bool,
    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = whole::<usize>)]
    tokens: usize,
    /// Below 1 more predictable, above 1 more surprising; 0 always takes the most likely token
    #[arg(long, value_name = "X", default_value_t = SamplingOptions::default().temperature)]
    temperature: f32,
    /// Choose only among the N most likely tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>)]
    top_k: usize,
    /// Choose among the fewest tokens that together reach this probability
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    top_p: f32,
    /// Choose among tokens at least this fraction as likely as the most likely one
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    min_p: f32,
    /// Above 1 makes tokens that have already occurred less likely
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of the random choices: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = SamplingOptions::default().seed, value_parser = whole::<u64>)]
    seed: u64,
    /// Number of samples
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>)]
    count: usize,
    /// Log experts and gates of every token to a file (JSON lines), FILE.partial until it is complete
    #[arg(long, value_name = "FILE")]
    routing_log: Option<PathBuf>,
    /// Colour each token by its first expert in this layer, or "none"
    #[arg(long, value_name = "LAYER|none", default_value = "none", value_parser = parse_layer)]
    color_by: ColorBy,
    /// One JSON object per sample instead of text
    #[arg(long, conflicts_with = "color_by")]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ColorBy {
    Layer(usize),
    Nothing,
}

fn parse_layer(text: &str) -> Result<ColorBy, String> {
    match text {
        "none" => Ok(ColorBy::Nothing),
        _ => text.parse().map(ColorBy::Layer).map_err(|_| "expected a layer's number or none".into()),
    }
}

/// # Errors
/// Usage errors, a damaged checkpoint, and files that cannot be read or written.
pub fn run(args: SampleArgs, global: &Global) -> Result<()> {
    let options = args.options();
    options.validate()?;
    if !(1..=MAX_COUNT).contains(&args.count) {
        let message = format!("--count {} is out of range: give a number from 1 to {MAX_COUNT}", args.count);
        return Err(Failure::Usage(message).into());
    }
    let text = args.prompt_text()?;
    let trained = Trained::load(&args.run)?;
    trained.warn_of_normalized(usize::from(trained.tokenizer.normalized(&text) != text));
    let painted_layer = painted_layer(args.color_by, &trained, global)?;
    let mut log = match &args.routing_log {
        Some(path) => {
            let inputs: Vec<PathBuf> = trained.files().into_iter().chain(args.prompt_file.clone()).collect();
            check_place(path, &inputs)?;
            Some(RoutingLog::create(path, &trained.log_header(&options))?)
        }
        None => None,
    };
    let mut writer = Writer::new(&args, &trained, painted_layer);
    writer.begin()?;
    let prompt = Prompt { text: &text, plain: args.no_special_tokens, tokens: args.tokens };
    // A single sample shows by itself how far it is.
    let phase = (!writer.streams()).then(|| Phase::new("generating"));
    let outcome = generate(&trained.model, &trained.tokenizer, &prompt, &options, args.count, |passed| {
        if let Some(log) = &mut log {
            log.write(&entry(passed, &trained, args.count))?;
        }
        writer.token(passed)
    });
    drop(phase);
    // What was logged stays, also where stdout was closed meanwhile.
    log.map_or(Ok(()), RoutingLog::finish)?;
    outcome?;
    writer.end()
}

impl SampleArgs {
    fn options(&self) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }

    fn prompt_text(&self) -> Result<String> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(path)) => {
                let name = path.display();
                let unreadable = |error| Failure::Usage(format!("cannot read the prompt {name}: {error}"));
                let mut bytes = Vec::new();
                let file = File::open(path).map_err(unreadable)?;
                file.take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
                if bytes.len() as u64 > MAX_PROMPT_BYTES {
                    let message =
                        format!("the prompt {name} has more than {MAX_PROMPT_BYTES} bytes; give its last part");
                    return Err(Failure::Usage(message).into());
                }
                String::from_utf8(bytes).map_err(|error| {
                    Failure::Usage(format!("the prompt {name} is not UTF-8 text: {}", error.utf8_error())).into()
                })
            }
            (None, None) => Ok(String::new()),
        }
    }
}

/// The MoE layer (counted among MoE layers) whose experts colour the text; none where colours are off.
fn painted_layer(color_by: ColorBy, trained: &Trained, global: &Global) -> Result<Option<(usize, Colours)>> {
    let ColorBy::Layer(layer) = color_by else { return Ok(None) };
    let moe_layers = trained.model.moe_layers();
    match moe_layers.iter().position(|&moe_layer| moe_layer == layer) {
        Some(position) => Ok(global.palette().map(|colours| (position, colours))),
        None => {
            let layers = moe_layers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            let known = if layers.is_empty() { "this model has none".into() } else { format!("they are {layers}") };
            Err(Failure::Usage(format!("--color-by {layer}: not a layer with experts; {known}")).into())
        }
    }
}

fn entry(passed: &Passed, trained: &Trained, count: usize) -> Entry {
    Entry {
        sample: (count > 1).then_some(passed.sample),
        index: passed.index,
        id: passed.id,
        text: trained.tokenizer.token_text(passed.id),
        source: passed.source,
        logprob: passed.logprob,
        experts: passed.experts(),
        gates: passed.gates(),
        memory: passed.recalls(),
    }
}

/// One sample on its way to stdout.
struct Sample<'a> {
    bytes: TextStream<'a>,
    stream: Utf8Stream,
    text: String,
    prompt_len: usize,
    tokens: usize,
    logprob: f64,
}

/// Prints samples: a single one as it comes, several one after the other at the end.
struct Writer<'a> {
    trained: &'a Trained,
    /// The layer and what a terminal can show.
    painted_layer: Option<(usize, Colours)>,
    json: bool,
    /// Whether control characters are shown and not obeyed: where a person looks. To files and pipes text goes as it is.
    escapes: bool,
    samples: Vec<Sample<'a>>,
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonSample<'a> {
    sample: usize,
    prompt: &'a str,
    text: &'a str,
    tokens: usize,
    /// Mean over generated tokens, in nats.
    mean_logprob: f64,
}

impl<'a> Writer<'a> {
    fn new(args: &SampleArgs, trained: &'a Trained, painted_layer: Option<(usize, Colours)>) -> Self {
        let sample = |_| Sample {
            bytes: TextStream::new(&trained.tokenizer),
            stream: Utf8Stream::default(),
            text: String::new(),
            prompt_len: 0,
            tokens: 0,
            logprob: 0.0,
        };
        let samples = (0..args.count).map(sample).collect();
        let escapes = painted_layer.is_some() || io::stdout().is_terminal();
        Self { trained, painted_layer, json: args.json, escapes, samples }
    }

    fn begin(&self) -> io::Result<()> {
        match self.painted_layer {
            Some((_, colours)) => {
                let experts = self.trained.model.model.num_experts;
                writeln!(io::stdout(), "{}", legend(experts, terminal::stdout_width(), colours))
            }
            None => Ok(()),
        }
    }

    fn streams(&self) -> bool {
        self.samples.len() == 1 && !self.json
    }

    fn token(&mut self, passed: &Passed) -> Result<()> {
        let streams = self.streams();
        let sample = &mut self.samples[passed.sample];
        let mut text = sample.stream.push(&sample.bytes.push(passed.id));
        if self.escapes && !self.json {
            text = terminal::text(&text).into_owned();
        }
        let mut shown = String::new();
        match self.painted_layer {
            Some((layer, colours)) if !text.is_empty() => {
                paint(&text, passed.first_expert(layer), colours, &mut shown);
            }
            _ => shown = text,
        }
        if passed.source == Source::Generated {
            sample.tokens += 1;
            sample.logprob += f64::from(passed.logprob.unwrap_or(0.0));
        } else {
            sample.prompt_len += shown.len();
        }
        if streams {
            let mut out = io::stdout().lock();
            out.write_all(shown.as_bytes())?;
            out.flush()?;
        } else {
            sample.text.push_str(&shown);
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let streams = self.streams();
        let several = self.samples.len() > 1;
        let mut out = io::stdout().lock();
        for (number, sample) in std::mem::take(&mut self.samples).into_iter().enumerate() {
            let text = sample.text + &sample.stream.finish();
            if streams {
                writeln!(out, "{text}")?;
            } else if self.json {
                let (prompt, text) = text.split_at(sample.prompt_len);
                let mean_logprob = sample.logprob / sample.tokens.max(1) as f64;
                let sample = JsonSample { sample: number, prompt, text, tokens: sample.tokens, mean_logprob };
                let json = serde_json::to_string(&sample)?;
                writeln!(out, "{}", if self.escapes { terminal::json(&json) } else { json })?;
            } else {
                if several {
                    writeln!(out, "--- sample {} ---", number + 1)?;
                }
                writeln!(out, "{text}")?;
            }
        }
        out.flush()?;
        Ok(())
    }
}
