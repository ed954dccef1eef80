//! What a person sees of a training run, on stderr: a live line with each layer's expert load on a terminal, plain
//! lines elsewhere.

use super::metrics::Record;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

/// How much to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Quiet,
    Normal,
    /// Samples too.
    Verbose,
}

/// Heights of a bar: at `▄` an expert has exactly its share.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub struct Progress {
    verbosity: Verbosity,
    /// On a terminal only.
    bar: Option<ProgressBar>,
    started: Instant,
    /// Steps and tokens of this session.
    steps: usize,
    tokens: usize,
    smoothed_loss: f64,
    first_step: usize,
    last_step: usize,
}

impl Progress {
    /// Progress of a session that goes from `first_step` to `last_step`.
    pub fn new(verbosity: Verbosity, first_step: usize, last_step: usize) -> Self {
        let bar = (verbosity > Verbosity::Quiet && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(last_step as u64), ProgressDrawTarget::stderr_with_hz(8));
            let template = "{bar:24} step {pos}/{len}  {msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(first_step as u64);
            bar
        });
        let started = Instant::now();
        Self { verbosity, bar, started, steps: 0, tokens: 0, smoothed_loss: 0.0, first_step, last_step }
    }

    /// After a step; `expert_load` is its share of pairs per expert and MoE layer.
    pub fn step(&mut self, step: usize, loss: f64, tokens: usize, expert_load: &[Vec<f64>]) {
        self.steps += 1;
        self.tokens += tokens;
        let weight = (1.0 / self.steps as f64).max(0.05);
        self.smoothed_loss += weight * (loss - self.smoothed_loss);
        if let Some(bar) = &self.bar {
            let load = expert_load.iter().map(|load| load_picture(load)).collect::<Vec<_>>().join(" ");
            bar.set_message(format!(
                "loss {:.3}  {:.0} tok/s  {} left  {load}",
                self.smoothed_loss,
                self.tokens_per_s(),
                duration(self.seconds_left(step))
            ));
            bar.set_position(step as u64);
        }
    }

    /// Training tokens per second in this session, evaluations included.
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn seconds_left(&self, step: usize) -> f64 {
        let done = step.saturating_sub(self.first_step).max(1);
        self.started.elapsed().as_secs_f64() / done as f64 * self.last_step.saturating_sub(step) as f64
    }

    /// A line of `metrics.jsonl`: training lines where there is no bar, evaluations always.
    pub fn log(&self, record: &Record) {
        let Record { step, loss, bits_per_byte, .. } = record;
        if let Some(ngram) = record.ngram_bits_per_byte {
            let verdict = if *bits_per_byte < ngram { "below" } else { "above" };
            self.line(&format!(
                "step {step}: validation loss {loss:.4} nats/token, {bits_per_byte:.4} bits/byte ({verdict} the n-gram \
                 baseline's {ngram:.4})"
            ));
        } else if self.bar.is_none() {
            let load = record.expert_load.iter().map(|load| load_picture(load)).collect::<Vec<_>>().join(" ");
            self.line(&format!(
                "step {step}: loss {loss:.4}, lr {:.2e}, {:.0} tokens/s, {} left  {load}",
                record.lr,
                self.tokens_per_s(),
                duration(self.seconds_left(*step))
            ));
        }
    }

    pub fn sample(&self, text: &str) {
        if self.verbosity == Verbosity::Verbose {
            self.line(&format!("sample: {text}"));
        }
    }

    pub fn warn(&self, message: &str) {
        self.line(&format!("warning: {message}"));
    }

    /// Prints a line above the bar. A stderr that is gone is no reason to stop training.
    pub fn line(&self, text: &str) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.println(text),
            None => _ = writeln!(io::stderr(), "{text}"),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// One character per expert, in comparison with an equal share.
fn load_picture(load_E: &[f64]) -> String {
    let share = 1.0 / load_E.len().max(1) as f64;
    let height = |&load: &f64| (load / share * 4.0).round().clamp(1.0, BARS.len() as f64) as usize - 1;
    load_E.iter().map(|load| BARS[height(load)]).collect()
}

/// As in 12s, 1m15s, 2h05m.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_picture_shows_more_less_and_equal() {
        assert_eq!(load_picture(&[0.25, 0.25, 0.25, 0.25]), "▄▄▄▄");
        assert_eq!(load_picture(&[0.5, 0.5, 0.0, 0.0]), "██▁▁");
    }

    #[test]
    fn durations_read_naturally() {
        assert_eq!([12.4, 75.0, 3_700.0].map(duration), ["12s", "1m15s", "1h01m"]);
    }
}
