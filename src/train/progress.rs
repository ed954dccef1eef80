//! What a person sees of a training run: two lines at the bottom of a terminal, drawn again and again; a message for
//! every training line of the metrics elsewhere.

use super::metrics::Record;
use super::prepare::grouped;
use crate::terminal::{self, duration};
use console::{measure_text_width, truncate_str};
use std::time::Instant;

/// Heights of a bar: at `▄` an expert has exactly its share.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns that the progress bar takes.
const BAR_WIDTH: std::ops::RangeInclusive<usize> = 5..=30;

pub struct Progress {
    started: Instant,
    /// Steps and tokens of this session.
    steps: usize,
    tokens: usize,
    smoothed_loss: f64,
    first_step: usize,
    last_step: usize,
    /// The latest evaluation, and the n-gram baseline, both in bits per byte.
    validation: Option<(f64, f64)>,
}

impl Progress {
    /// Progress of a session that goes from `first_step` to `last_step`.
    pub fn new(first_step: usize, last_step: usize) -> Self {
        let started = Instant::now();
        Self { started, steps: 0, tokens: 0, smoothed_loss: 0.0, first_step, last_step, validation: None }
    }

    /// After a step; `expert_load` is its share of pairs per expert and MoE layer.
    pub fn step(&mut self, step: usize, loss: f64, tokens: usize, expert_load: &[Vec<f64>]) {
        self.steps += 1;
        self.tokens += tokens;
        let weight = (1.0 / self.steps as f64).max(0.05);
        self.smoothed_loss += weight * (loss - self.smoothed_loss);
        terminal::draw(|width| {
            let display = Display {
                step,
                last_step: self.last_step,
                loss: self.smoothed_loss,
                tokens_per_s: self.tokens_per_s(),
                seconds_left: self.seconds_left(step),
                validation: self.validation,
                expert_load,
            };
            display.lines(width)
        });
    }

    /// Training tokens per second in this session, evaluations included.
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.seconds().max(1e-9)
    }

    /// The smoothed training loss in nats per token; none before the first step.
    pub fn loss(&self) -> Option<f64> {
        (self.steps > 0).then_some(self.smoothed_loss)
    }

    /// Since the session began.
    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn seconds_left(&self, step: usize) -> f64 {
        let done = step.saturating_sub(self.first_step).max(1);
        self.seconds() / done as f64 * self.last_step.saturating_sub(step) as f64
    }

    /// A line of `metrics.jsonl`: training lines where nothing is drawn, evaluations always.
    pub fn log(&mut self, record: &Record) {
        let Record { step, loss, bits_per_byte, .. } = record;
        let dropped = record.dropped_share.map_or(String::new(), |share| format!(", {:.1}% dropped", 100.0 * share));
        let unknown = record.unknown_share.map_or(String::new(), |share| format!(", {:.1}% unknown", 100.0 * share));
        let step = grouped(*step);
        if let Some(ngram) = record.ngram_bits_per_byte {
            self.validation = Some((*bits_per_byte, ngram));
            let verdict = if *bits_per_byte < ngram { "below" } else { "above" };
            log::info!(
                "step {step}: validation loss {loss:.4}, {bits_per_byte:.4} bits/byte ({verdict} the n-gram's {ngram:.4})\
                 {unknown}"
            );
        } else if !terminal::is_live() {
            log::info!(
                "step {step}: loss {loss:.4}, lr {:.2e}, {} tokens/s, {} left{dropped}{}",
                record.lr,
                grouped(self.tokens_per_s() as usize),
                duration(self.seconds_left(record.step)),
                summary(&record.expert_load).map_or_else(String::new, |load| format!(", {load}"))
            );
        }
    }

    /// Removes the display.
    pub fn finish(&self) {
        terminal::clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the two lines say.
struct Display<'a> {
    step: usize,
    last_step: usize,
    /// Nats per token.
    loss: f64,
    tokens_per_s: f64,
    seconds_left: f64,
    /// Bits per byte: the model's, the n-gram baseline's.
    validation: Option<(f64, f64)>,
    /// Shares of pairs, per MoE layer.
    expert_load: &'a [Vec<f64>],
}

impl Display<'_> {
    /// The lines, none wider than `width`: the narrower, the less they say.
    fn lines(&self, width: usize) -> Vec<String> {
        let mut lines = vec![self.progress(width)];
        lines.extend(widest(&self.quality(), width));
        lines.into_iter().map(|line| truncate_str(&line, width, "").into_owned()).collect()
    }

    fn progress(&self, width: usize) -> String {
        let (step, last) = (grouped(self.step), grouped(self.last_step));
        let share = self.step as f64 / self.last_step.max(1) as f64;
        let percent = format!("{:.0}%", (100.0 * share).floor());
        let (loss, left) = (format!("loss {:.3}", self.loss), format!("{} left", duration(self.seconds_left)));
        let speed = grouped(self.tokens_per_s as usize);
        let forms = [
            format!("step {step} of {last}  {loss}  {speed} tokens/s  {left}"),
            format!("{step}/{last}  {loss}  {speed} tokens/s  {left}"),
            format!("{percent}  {loss}  {speed} tok/s  {left}"),
            format!("{percent}  {loss}  {left}"),
            format!("{percent}  {:.3}", self.loss),
        ];
        let with_bar = |form: &String| measure_text_width(form) + 1 + BAR_WIDTH.start() <= width;
        match forms[..3].iter().find(|form| with_bar(form)) {
            Some(form) => {
                let room = width - measure_text_width(form) - 1;
                format!("{} {form}", bar(share, room.min(*BAR_WIDTH.end())))
            }
            None => widest(&forms[2..], width).unwrap_or_default(),
        }
    }

    /// Forms of the second line, the widest first.
    fn quality(&self) -> Vec<String> {
        let mut validation = Vec::new();
        if let Some((model, ngram)) = self.validation {
            validation = vec![
                format!("validation {model:.3} bits/byte, n-gram {ngram:.3}"),
                format!("val {model:.3} bits/byte, n-gram {ngram:.3}"),
                format!("val {model:.3}, n-gram {ngram:.3}"),
                format!("val {model:.3}"),
            ];
        }
        let mut load = Vec::new();
        if let Some(summary) = summary(self.expert_load) {
            let picture = self.expert_load.iter().map(|load| load_picture(load)).collect::<Vec<_>>().join(" ");
            load = vec![
                format!("expert load {picture} (▄ = even share)"),
                format!("load {picture} (▄ = even)"),
                summary.clone(),
                summary.replace("expert load ", "load ").replace(" an even share", " even"),
            ];
        }
        if validation.is_empty() || load.is_empty() {
            return [validation, load].concat();
        }
        let both = |(v, l): (usize, usize)| format!("{}  {}", validation[v], load[l]);
        let pairs = [(0, 0), (1, 0), (1, 1), (0, 2), (2, 1), (1, 2), (2, 2), (2, 3)].map(both);
        [pairs.to_vec(), validation.split_off(2)].concat()
    }
}

/// The first of `forms` that is no wider than `width`; the last, if none is.
fn widest(forms: &[String], width: usize) -> Option<String> {
    forms.iter().find(|form| measure_text_width(form) <= width).or(forms.last()).cloned()
}

/// A bar of `width` columns, filled to `share`.
fn bar(share: f64, width: usize) -> String {
    let filled = ((share * width as f64) as usize).min(width);
    "━".repeat(filled) + &"─".repeat(width - filled)
}

/// One character per expert, in comparison with an even share.
fn load_picture(load_E: &[f64]) -> String {
    let share = 1.0 / load_E.len().max(1) as f64;
    let height = |&load: &f64| (load / share * 4.0).round().clamp(1.0, BARS.len() as f64) as usize - 1;
    load_E.iter().map(|load| BARS[height(load)]).collect()
}

/// The least and the most loaded expert of any layer; none without experts.
fn summary(expert_load: &[Vec<f64>]) -> Option<String> {
    let times_even = expert_load.iter().flat_map(|load_E| load_E.iter().map(move |load| load * load_E.len() as f64));
    let (least, most) = times_even.fold((f64::INFINITY, 0.0f64), |(least, most), x| (least.min(x), most.max(x)));
    least.is_finite().then(|| format!("expert load {least:.1}x to {most:.1}x an even share"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_picture_shows_more_less_and_equal() {
        assert_eq!(load_picture(&[0.25, 0.25, 0.25, 0.25]), "▄▄▄▄");
        assert_eq!(load_picture(&[0.5, 0.5, 0.0, 0.0]), "██▁▁");
        assert_eq!(summary(&[vec![0.5, 0.5], vec![0.75, 0.25]]).unwrap(), "expert load 0.5x to 1.5x an even share");
        assert_eq!(summary(&[]), None);
    }

    fn display(expert_load: &[Vec<f64>]) -> Display<'_> {
        Display {
            step: 1_250,
            last_step: 2_000,
            loss: 1.8734,
            tokens_per_s: 12_345.6,
            seconds_left: 65.0,
            validation: Some((1.9021, 2.1034)),
            expert_load,
        }
    }

    #[test]
    fn the_display_says_all_it_can_in_two_lines() {
        let load = vec![vec![0.125; 8]; 4];
        let at = |columns: usize| display(&load).lines(columns - 3).join("\n");
        assert_eq!(
            at(100),
            "━━━━━━━━━━━━━━━━━━──────────── step 1,250 of 2,000  loss 1.873  12,345 tokens/s  1m05s left\n\
             val 1.902 bits/byte, n-gram 2.103  load ▄▄▄▄▄▄▄▄ ▄▄▄▄▄▄▄▄ ▄▄▄▄▄▄▄▄ ▄▄▄▄▄▄▄▄ (▄ = even)"
        );
        assert_eq!(
            at(80),
            "━━━━━━━━━━────── step 1,250 of 2,000  loss 1.873  12,345 tokens/s  1m05s left\n\
             val 1.902, n-gram 2.103  load ▄▄▄▄▄▄▄▄ ▄▄▄▄▄▄▄▄ ▄▄▄▄▄▄▄▄ ▄▄▄▄▄▄▄▄ (▄ = even)"
        );
        assert_eq!(
            at(50),
            "━━━── 62%  loss 1.873  12,345 tok/s  1m05s left\n\
             val 1.902, n-gram 2.103  load 1.0x to 1.0x even"
        );
        assert_eq!(at(20), "62%  1.873\nval 1.902");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_whatever_it_says() {
        let loads = [vec![], vec![vec![1.0]], vec![vec![1.0 / 64.0; 64]; 32], vec![vec![0.5; 2]; 7]];
        for load in &loads {
            let mut display = display(load);
            for validation in [None, Some((1.0, 2.0)), Some((f64::NAN, 12_345.678))] {
                display.validation = validation;
                for (step, last_step, seconds_left) in [(0, 0, 0.0), (1, usize::MAX, 1e12), (7, 5, f64::NAN)] {
                    (display.step, display.last_step, display.seconds_left) = (step, last_step, seconds_left);
                    for width in (1..=100).step_by(7).chain([1_000]) {
                        let lines = display.lines(width);
                        assert!(lines.len() <= 2);
                        let fits = |line: &String| measure_text_width(line) <= width && !line.contains('\n');
                        assert!(lines.iter().all(fits), "{width}: {lines:?}");
                    }
                }
            }
        }
    }
}
