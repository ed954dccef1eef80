//! `tinymoe bench`: speed of training and sampling on this machine.

use super::Global;
use crate::bench::{Report, matmul_peak, run as run_workload};
use crate::config;
use crate::ops::{pool, simd};
use crate::terminal;
use crate::train::prepare::grouped;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::io::{self, Write};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The shape to time; may be repeated [default: the workloads in configs/bench]
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Change one value of each configuration; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The published workloads, in the program so that it can be timed from anywhere.
const WORKLOADS: [(&str, &str); 4] = [
    ("w1", include_str!("../../configs/bench/w1.toml")),
    ("w2", include_str!("../../configs/bench/w2.toml")),
    ("w3", include_str!("../../configs/bench/w3.toml")),
    ("w4", include_str!("../../configs/bench/w4.toml")),
];

/// # Errors
/// Usage errors in configurations.
pub fn run(args: BenchArgs, _global: &Global) -> Result<()> {
    let mut workloads = Vec::new();
    for path in &args.config {
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        workloads.push((name, config::load(path, &args.overrides)?));
    }
    if workloads.is_empty() {
        for (name, text) in WORKLOADS {
            workloads.push((name.to_owned(), config::parse(text, name, &args.overrides)?));
        }
    }
    let mut reports = Vec::new();
    for (name, config) in &workloads {
        // Measured beside each workload: the speed of shared machines drifts.
        let peak = matmul_peak(config.train.precision);
        let report = run_workload(name, config, peak)?;
        if !args.json {
            print(&report, peak)?;
        }
        reports.push(json!({ "matmul_peak_gflop_per_s": peak, "report": report }));
    }
    if args.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &json!({ "kernels": simd::path().name(), "workloads": reports }))?;
        writeln!(out)?;
    }
    Ok(())
}

fn print(report: &Report, peak: f64) -> io::Result<()> {
    let Report { name, training, sampling, .. } = report;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}: {} parameters, {} active; {} tokens per step; {} threads, {} kernels",
        terminal::line(name),
        grouped(report.parameters),
        grouped(report.active_parameters),
        grouped(report.tokens_per_step),
        pool::threads(),
        simd::path().name()
    )?;
    writeln!(
        out,
        "  training  {:>9} tokens/s   {:.2} ms per step, {:.1} GFLOP/s, {:.0}% of the matmul peak of {peak:.1}",
        grouped(training.tokens_per_s as usize),
        training.ms_per_step,
        training.gflop_per_s,
        100.0 * training.share_of_peak
    )?;
    writeln!(
        out,
        "  sampling  {:>9} tokens/s   greedy, one sequence, {} new tokens",
        grouped(sampling.tokens_per_s as usize),
        sampling.new_tokens
    )?;
    if let Some(memory) = report.peak_memory_mb {
        writeln!(out, "  memory    {:>9} MB at most so far", grouped(memory as usize))?;
    }
    for (operation, ms) in &training.operations {
        writeln!(out, "    {operation:<24} {ms:>8.2} ms  {:>5.1}%", 100.0 * ms / training.ms_per_step)?;
    }
    writeln!(out)
}
