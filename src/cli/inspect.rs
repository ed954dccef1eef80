//! `tinymoe inspect`: what the routers do and which tokens the experts get, on the run's validation split or on other text.

use super::eval::Texts;
use super::{Global, Trained};
use crate::checkpoint;
use crate::dataset::Tokens;
use crate::error::Failure;
use crate::model::transformer::Transformer;
use crate::output::{self, Draft};
use crate::routing::log::{Entry, Recall, RoutingLog, Source, check_place};
use crate::routing::{
    CheckpointSaturation, Comparison, Context, ModelFacts, Report, RunFacts, Saturation, Side, Style, Trace, Traced,
    blocks, domains_of, excerpt_positions, history, is_page, knock_out, knockout_passes, load, match_layers, overlap,
    page, render, render_comparison,
};
use crate::terminal::{self, Phase};
use crate::train::evaluate::Seen;
use anyhow::Result;
use clap::Args;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The report's name in its directory.
const PAGE: &str = "index.html";
/// A measurement of the loss without each expert that takes less than this is made unasked.
const SHORT_KNOCKOUT: Duration = Duration::from_secs(20);
/// Tokens that earlier checkpoints are compared on.
const SATURATION_TOKENS: usize = 16_384;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A run directory (its best checkpoint), a checkpoint directory, or a model that transformers wrote
    #[arg(required_unless_present = "compare")]
    run: Option<PathBuf>,
    /// Text to look at instead of the validation split: a file, directory or glob, with a domain label if wanted; may
    /// be repeated
    #[arg(long, value_name = "PATH[=DOMAIN]")]
    data: Vec<String>,
    /// Length of the windows in tokens [default: all of the model's positions]
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Write the report as a page, DIR/index.html
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// All numbers as one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Measure the loss without each expert, however long it takes [default: where it takes less than 20 s]
    #[arg(long, conflicts_with = "no_knockout")]
    knockout: bool,
    /// Leave the loss without each expert out
    #[arg(long)]
    no_knockout: bool,
    /// Put other runs or checkpoints beside RUN (or beside the first of these) on the same text, their experts matched
    /// by what they serve
    #[arg(long, value_name = "RUN", num_args = 1..)]
    compare: Vec<PathBuf>,
    /// Log experts and gates of every token of the text to a file (JSON lines), FILE.partial until it is complete
    #[arg(long, value_name = "FILE")]
    routing_log: Option<PathBuf>,
}

/// # Errors
/// Usage errors, a damaged checkpoint, and files that cannot be read or written.
pub fn run(args: InspectArgs, global: &Global) -> Result<()> {
    let mut runs = args.run.iter().chain(&args.compare);
    let (first, others) = (runs.next(), runs.collect::<Vec<_>>());
    let Some(first) = first.filter(|_| args.compare.is_empty() || !others.is_empty()) else {
        return Err(Failure::Usage("--compare takes two: RUN and another, or two runs behind it".into()).into());
    };
    let trained = Trained::load(first)?;
    let texts = Texts::read(&trained, &args.data)?;
    let phase = Phase::new("encoding the texts");
    let tokens = Tokens::encode(&texts.parts().1, &trained.tokenizer)?;
    drop(phase);
    trained.warn_of_normalized(tokens.normalized_texts);
    if tokens.ids.len() < 2 {
        return Err(Failure::Usage("there is no text to look at".into()).into());
    }
    let others = others.into_iter().map(|other| Trained::load(other)).collect::<Result<Vec<_>>>()?;
    check_outputs(&args, &texts, std::iter::once(&trained).chain(&others))?;
    let model = &trained.model;
    let excerpts = excerpt_positions(&tokens, model.moe_layers().len() * model.model.num_experts_per_tok);
    let time = trained.context(args.context)?;
    let start = Instant::now();
    let trace = traced(&trained, &tokens, time, &excerpts, args.routing_log.as_deref())?;
    let knockout = wants_knockouts(&args, model, start.elapsed());
    let traced = Traced { model, tokenizer: &trained.tokenizer, tokens: &tokens, trace: &trace, excerpts: &excerpts };
    let mut report = Report::new(&traced, context(&args, &trained, &texts, &traced, knockout)?);
    for other in &others {
        report.comparisons.push(comparison(&traced, &report, other, &texts)?);
    }
    if let Some(directory) = &args.out {
        write_page(&report, directory)?;
    }
    print(&report, args.json, global)
}

/// Before the work: nothing that is to be written may replace what it is made from, or what is of another kind.
fn check_outputs<'a>(args: &InspectArgs, texts: &Texts, models: impl Iterator<Item = &'a Trained>) -> Result<()> {
    let mut inputs = texts.files();
    inputs.extend(models.flat_map(Trained::files));
    if let Some(log) = &args.routing_log {
        check_place(log, &inputs)?;
    }
    if let Some(directory) = &args.out {
        output::check(&directory.join(PAGE), "a routing report", is_page, &inputs)?;
    }
    Ok(())
}

fn print(report: &Report, json: bool, global: &Global) -> Result<()> {
    let mut out = io::stdout().lock();
    let style = global.palette().map_or(Style::Plain, Style::Colour);
    if json {
        let json = serde_json::to_string(report)?;
        writeln!(out, "{}", if io::stdout().is_terminal() { terminal::json(&json) } else { json })?;
    } else if report.comparisons.is_empty() {
        write!(out, "{}", render(report, style))?;
    } else {
        let comparisons: Vec<String> =
            report.comparisons.iter().map(|comparison| render_comparison(comparison, style)).collect();
        write!(out, "{}", comparisons.join("\n"))?;
    }
    out.flush()?;
    Ok(())
}

fn write_page(report: &Report, directory: &Path) -> Result<()> {
    let path = directory.join(PAGE);
    let shown = path.display();
    Draft::write(&path, page(report)?.as_bytes())?;
    log::info!("the report is in {shown}");
    Ok(())
}

/// One pass over the text, logged token by token if asked for.
fn traced(
    trained: &Trained,
    tokens: &Tokens,
    time: usize,
    excerpts: &[std::ops::Range<usize>],
    log: Option<&Path>,
) -> Result<Trace> {
    let phase = Phase::new("running the model over the text");
    let show = |seen: &Seen| phase.at(seen.positions.end, tokens.ids.len());
    let Some(path) = log else {
        return Trace::record(&trained.model, tokens, time, excerpts, |seen| {
            show(seen);
            Ok(())
        });
    };
    let mut log = RoutingLog::create(path, &trained.log_header(Value::Null))?;
    let mut previous_loss = None;
    let trace = Trace::record(&trained.model, tokens, time, excerpts, |seen| {
        show(seen);
        write_entries(&mut log, trained, tokens, seen, &mut previous_loss)
    });
    // What was logged stays, also where the pass failed.
    log.finish()?;
    trace
}

fn write_entries(
    log: &mut RoutingLog<File>,
    trained: &Trained,
    tokens: &Tokens,
    seen: &Seen,
    previous_loss: &mut Option<f32>,
) -> Result<()> {
    for (row, position) in seen.positions.clone().enumerate() {
        let text = tokens.texts.partition_point(|(range, _)| range.end <= position);
        let start = tokens.texts.get(text).map_or(0, |(range, _)| range.start);
        let rows = |routing: &crate::routing::Routing| {
            let k = routing.experts_per_token();
            row * k..(row + 1) * k
        };
        log.write(&Entry {
            sample: (tokens.texts.len() > 1).then_some(text),
            index: position - start,
            id: seen.ids_N[row],
            text: trained.tokenizer.token_text(seen.ids_N[row]),
            source: Source::Prompt,
            logprob: previous_loss.map(|loss| -loss),
            experts: seen.routing.iter().map(|routing| routing.experts_NK[rows(routing)].to_vec()).collect(),
            gates: seen.routing.iter().map(|routing| routing.gates_NK[rows(routing)].to_vec()).collect(),
            memory: Recall::all(seen.readings.iter().map(AsRef::as_ref), row),
        })?;
        *previous_loss = Some(seen.losses_N[row]);
    }
    Ok(())
}

/// Whether to measure the loss without each expert, when a pass over the text took `pass`: if it was asked for, or is
/// quickly done and shown.
fn wants_knockouts(args: &InspectArgs, model: &Transformer, pass: Duration) -> bool {
    let is_shown = args.compare.is_empty() || args.out.is_some() || args.json;
    if args.knockout || args.no_knockout || !is_shown || model.model.num_experts < 2 {
        return args.knockout;
    }
    let estimate = pass.mul_f64(knockout_passes(model));
    if estimate >= SHORT_KNOCKOUT {
        let seconds = estimate.as_secs();
        let time = if seconds < 90 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) };
        log::info!("the loss without each expert is left out: it would take about {time}; --knockout measures it");
    }
    estimate < SHORT_KNOCKOUT
}

/// What stands around the trace: the run, its history, its other checkpoints, knockouts.
fn context(args: &InspectArgs, trained: &Trained, texts: &Texts, traced: &Traced, knockout: bool) -> Result<Context> {
    let run = run_directory(&trained.checkpoint);
    let training = run.as_ref().and_then(|run| history(&run.join("metrics.jsonl")));
    let whole = args.data.is_empty();
    let named = run.as_deref().unwrap_or(&trained.checkpoint).file_name();
    let state = trained.state.as_ref();
    Ok(Context {
        run: RunFacts {
            name: named.map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            checkpoint: trained.checkpoint.display().to_string(),
            step: state.map(|state| state.step),
            seed: state.map(|state| state.seed),
            version: env!("CARGO_PKG_VERSION"),
        },
        source: if whole { "the validation split".into() } else { args.data.join(", ") },
        ngram_bits_per_byte: training.as_ref().and_then(|training| training.ngram_bits_per_byte).filter(|_| whole),
        training,
        saturation: saturation(trained, traced)?,
        knockouts: if knockout { knockouts(traced)? } else { None },
        names: texts.names(),
    })
}

/// The directory of the run that a checkpoint belongs to.
fn run_directory(checkpoint: &Path) -> Option<PathBuf> {
    let checkpoints = checkpoints_of(checkpoint)?;
    checkpoints.parent().filter(|run| run.join("config.toml").exists()).map(Path::to_path_buf)
}

/// The directory that holds a run's checkpoints.
fn checkpoints_of(checkpoint: &Path) -> Option<PathBuf> {
    let checkpoint = fs::canonicalize(checkpoint).ok()?;
    checkpoint.parent().filter(|parent| parent.ends_with("checkpoints")).map(Path::to_path_buf)
}

/// How far the choices of the run's earlier checkpoints were those of its last one. Checkpoints that cannot be loaded are
/// left out with a warning.
fn saturation(trained: &Trained, traced: &Traced) -> Result<Option<Saturation>> {
    let Some(checkpoints) = checkpoints_of(&trained.checkpoint) else { return Ok(None) };
    let Traced { tokens, trace, .. } = traced;
    let (time, ids) = (trace.time, tokens.ids[..tokens.ids.len().min(SATURATION_TOKENS + 1)].to_vec());
    let start = Tokens { ids, ..Tokens::default() };
    let mut reference: Option<(usize, Trace)> = None;
    let mut earlier = Vec::new();
    // Newest first.
    let steps = checkpoint::steps(&checkpoints)?;
    let phase = Phase::new("comparing with earlier checkpoints");
    for (number, directory) in steps.iter().enumerate() {
        phase.at(number, steps.len());
        let other = match Trained::load(directory) {
            Ok(other) if other.tokenizer_sha256 == trained.tokenizer_sha256 => other,
            Ok(_) => continue,
            Err(error) => {
                log::warn!("{} is left out of the saturation: {error:#}", directory.display());
                continue;
            }
        };
        let Some(step) = other.state.as_ref().map(|state| state.step) else { continue };
        let trace = Trace::record(&other.model, &start, time, &[], |_| Ok(()))?;
        match &reference {
            None => reference = Some((step, trace)),
            Some((_, last)) => {
                let layers = trace.layers.iter().zip(&last.layers);
                let (all, first) = layers.map(|(a, b)| overlap(a, b, last.experts_per_token)).unzip();
                earlier.push(CheckpointSaturation { step, all, first });
            }
        }
    }
    earlier.reverse();
    let tokens = start.ids.len() - 1;
    Ok(reference.map(|(reference_step, _)| Saturation { reference_step, tokens, checkpoints: earlier }))
}

fn knockouts(traced: &Traced) -> Result<Option<Vec<crate::routing::Knockouts>>> {
    let Traced { model, tokens, trace, .. } = traced;
    // Without a second expert there is nobody to take over.
    if trace.num_experts < 2 || trace.layers.is_empty() {
        return Ok(None);
    }
    let phase = Phase::new("measuring the loss without each expert");
    let domains_N = domains_of(&blocks(tokens, trace.tokens(), trace.time));
    let done = |done| phase.at(done, trace.tokens());
    let knockouts = knock_out(model, tokens, trace.time, &trace.losses_N, &domains_N, done)?;
    Ok(Some(knockouts))
}

/// Another model on the same text, its experts matched with ours.
fn comparison(traced: &Traced, report: &Report, other: &Trained, texts: &Texts) -> Result<Comparison> {
    let _phase = Phase::new("running the other model over the text");
    let tokens = Tokens::encode(&texts.parts().1, &other.tokenizer)?;
    let time = traced.trace.time.min(other.model.model.max_position_embeddings);
    let trace = Trace::record(&other.model, &tokens, time, &[], |_| Ok(()))?;
    let facts = |step, traced: &Traced| {
        let Traced { model, tokenizer, tokens, trace, .. } = traced;
        let predicted = tokens.predicted(tokenizer);
        let loads = trace.layers.iter().map(|layer| load(&layer.counts_E(trace.num_experts)));
        ModelFacts {
            step,
            parameters: model.parameters.count(),
            active_parameters: model.active_parameters(),
            experts: trace.num_experts,
            experts_per_token: trace.experts_per_token,
            loss: trace.loss(),
            bits_per_byte: predicted.bits_per_byte(trace.loss()),
            max_over_uniform: loads.map(|load| load.max_over_uniform).collect(),
            router_entropy: trace.layers.iter().map(|layer| layer.sums.entropy / trace.tokens() as f64).collect(),
        }
    };
    let theirs =
        Traced { model: &other.model, tokenizer: &other.tokenizer, tokens: &tokens, trace: &trace, excerpts: &[] };
    Ok(Comparison {
        a: report.run.checkpoint.clone(),
        b: other.checkpoint.display().to_string(),
        unit: "bytes",
        a_facts: facts(report.run.step, traced),
        b_facts: facts(other.state.as_ref().map(|state| state.step), &theirs),
        layers: match_layers(
            &Side::new(traced.trace, traced.tokens, traced.tokenizer),
            &Side::new(theirs.trace, theirs.tokens, theirs.tokenizer),
        ),
    })
}
