//! `tinymoe inspect`: what the router does, on the run's validation split or on other text.

use super::eval::Texts;
use super::{Global, Trained};
use crate::dataset::Tokens;
use crate::error::Failure;
use crate::routing::{Statistics, Style, render};
use crate::train::evaluate::{Seen, evaluate};
use anyhow::Result;
use clap::Args;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A run directory (its best checkpoint) or a checkpoint directory
    run: PathBuf,
    /// Text to look at instead of the validation split: a file, directory or glob, with a domain label if wanted; may
    /// be repeated
    #[arg(long, value_name = "PATH[=DOMAIN]")]
    data: Vec<String>,
    /// All numbers as one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// Usage errors, a damaged checkpoint, and files that cannot be read.
pub fn run(args: InspectArgs, global: &Global) -> Result<()> {
    let trained = Trained::load(&args.run)?;
    let texts = Texts::read(&trained, &args.data)?;
    let tokens = Tokens::encode(&texts.parts().1, &trained.tokenizer)?;
    if tokens.ids.len() < 2 {
        return Err(Failure::Usage("there is no text to look at".into()).into());
    }
    let model = &trained.model;
    let layers = model.moe_layers();
    let (experts, k) = (model.model.num_experts, model.model.num_experts_per_tok);
    let mut statistics = Statistics::new(layers.len(), experts, k, model.vocab_size, tokens.domains.clone());
    evaluate(model, &tokens, |seen| count_by_domain(&mut statistics, &tokens, seen))?;
    let summary = statistics.summary(&layers, |id| trained.tokenizer.token_text(id));
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &summary)?;
        writeln!(out)?;
    } else {
        let style = if global.colours() { Style::Colour } else { Style::Plain };
        write!(out, "{}", render(&summary, style))?;
    }
    Ok(())
}

/// Adds what the model did with consecutive tokens, cut where the domain changes.
fn count_by_domain(statistics: &mut Statistics, tokens: &Tokens, seen: &Seen) {
    let mut start = seen.positions.start;
    while start < seen.positions.end {
        let domain = tokens.domain_at(start);
        let end = (start..seen.positions.end).find(|&position| tokens.domain_at(position) != domain);
        let end = end.unwrap_or(seen.positions.end);
        let rows = start - seen.positions.start..end - seen.positions.start;
        let layers: Vec<_> = seen.routing.iter().map(|routing| Arc::new(routing.slice(rows.clone()))).collect();
        statistics.add(&seen.ids_N[rows], domain, &layers);
        start = end;
    }
}
