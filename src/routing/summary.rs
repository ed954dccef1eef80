//! A [`Report`] as one screen of text, at most 100 columns wide: the most notable findings in words, then a line for each
//! layer, class and domain.

use super::facts::Fact;
use super::memory::NgramGate;
use super::paint;
use super::report::{LayerReport, Report};
use crate::terminal::{self, Colours};
use crate::train::prepare::grouped;

const WIDTH: usize = 100;
/// Facts that lead.
const LEAD: usize = 3;
/// Columns of a layer's loads.
const BARS: usize = 24;
/// Columns of a class's or domain's name.
const NAME: usize = 24;
/// Lines for what the experts of a layer stand out for.
const LABEL_LINES: usize = 3;
/// Rows of classes and of domains.
const ROWS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Colour(Colours),
}

/// The whole summary. Lines end with a newline.
pub fn render(report: &Report, style: Style) -> String {
    if report.layers.is_empty() {
        let nothing = "This model has no MoE layers: there is no routing to report.\n".to_string();
        return nothing + &memories(report, style);
    }
    let mut out = introduction(report);
    out += &heading("Most notable", style);
    for (number, Fact { text, .. }) in (1..).zip(report.facts.iter().take(LEAD)) {
        out += &wrapped(&format!("  {number}. {text}"), 5);
    }
    if report.facts.is_empty() {
        out += "  Nothing stands out from chance.\n";
    }
    out += &heading("Layers", style);
    out += &layers(report);
    out += &heading("What the experts stand out for", style);
    for layer in &report.layers {
        out += &labels(layer, style);
    }
    out += &served(report, style);
    out += &memories(report, style);
    out += &knockouts(report, style);
    out += &trained(report);
    out
}

pub fn heading(text: &str, style: Style) -> String {
    let (bold, reset) = if style != Style::Plain { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    format!("\n{bold}{text}{reset}\n")
}

fn introduction(report: &Report) -> String {
    let Report { run, model, text, .. } = report;
    let step = run.step.map_or(String::new(), |step| format!(", step {}", grouped(step)));
    let plural = if report.layers.len() == 1 { "" } else { "s" };
    let ngram = text.ngram_bits_per_byte.map_or(String::new(), |ngram| format!(" (n-gram {ngram:.4})"));
    let first = format!(
        "{}{step}: {} MoE layer{plural}, {} of {} experts for each token",
        run.name,
        report.layers.len(),
        model.experts_per_token,
        model.experts
    );
    let tokens = grouped(text.tokens);
    let second = format!(
        "{tokens} tokens of {}: {:.4} nats/token, {:.4} bits/byte{ngram}",
        text.source, text.loss, text.bits_per_byte
    );
    wrapped(&first, 2) + &wrapped(&second, 2)
}

fn layers(report: &Report) -> String {
    let experts = report.model.experts;
    let bars = experts.min(BARS);
    let width = bars.max(4);
    let mut out = format!(
        "layer  {:width$}  busiest  evenness  first gate  unsure among  close calls  repeats    domains\n",
        "load"
    );
    for layer in &report.layers {
        let LayerReport { load, gate, repetition, domains, .. } = layer;
        let information = match domains.z {
            Some(z) => format!("{:.4} bits, z {z:.1}", domains.information),
            None => "-".to_string(),
        };
        out += &format!(
            "{:>5}  {:width$}  {:>6.2}x  {:>8.3}  {:>10.2}  {:>12.1}  {:>11.0}% {:>3.0}% ({:.0}%)  {information}",
            layer.layer,
            sparkline(&load.share, bars),
            load.max_over_uniform,
            load.entropy,
            gate.mean_by_rank.first().copied().unwrap_or(0.0),
            gate.router_entropy.exp(),
            100.0 * gate.close,
            100.0 * repetition.first,
            100.0 * repetition.first_expected,
        );
        match load.dead.len() {
            0 => {}
            dead => out += &format!(", {dead} dead"),
        }
        out.push('\n');
    }
    out
}

/// A column for each expert, or for neighbours together where there are many; an even load fills half of it.
fn sparkline(share: &[f64], columns: usize) -> String {
    const EIGHTHS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let even = 1.0 / share.len() as f64;
    let column = |column: usize| {
        let experts = &share[column * share.len() / columns..(column + 1) * share.len() / columns];
        let load = experts.iter().sum::<f64>() / experts.len() as f64;
        if load == 0.0 { ' ' } else { EIGHTHS[((load / even * 4.0).round() as usize).clamp(1, 8) - 1] }
    };
    (0..columns).map(column).collect()
}

/// What each expert of a layer stands out for most; where not all have room, the experts with the most tokens.
fn labels(layer: &LayerReport, style: Style) -> String {
    const INDENT: usize = 7;
    let label = |expert: usize| layer.labels[expert].split(", ").next().unwrap_or_default();
    let mut experts: Vec<usize> = (0..layer.labels.len()).filter(|&expert| !layer.labels[expert].is_empty()).collect();
    let found = experts.len();
    experts.sort_by_key(|&expert| std::cmp::Reverse(layer.counts[expert]));
    let width = |expert: usize| columns(&format!(" {expert}  {}  ", label(expert)));
    // A little less than all of the lines, since the breaks between them may waste some.
    let mut room = LABEL_LINES * (WIDTH - INDENT) - 40;
    let mut shown: Vec<usize> = experts
        .into_iter()
        .take_while(|&expert| {
            let fits = width(expert) <= room;
            room = room.saturating_sub(width(expert));
            fits
        })
        .collect();
    shown.sort_unstable();
    let mut out = format!("{:>5}  ", layer.layer);
    let mut used = INDENT;
    for &expert in &shown {
        if used + width(expert) > WIDTH && used > INDENT {
            out += &format!("\n{:INDENT$}", "");
            used = INDENT;
        }
        match style {
            Style::Plain => out += &format!(" {expert} "),
            Style::Colour(colours) => paint(&format!(" {expert} "), expert, colours, &mut out),
        }
        out += &format!(" {}  ", terminal::line(label(expert)));
        used += width(expert);
    }
    match (found, found - shown.len()) {
        (0, _) => out += "none does",
        (_, 0) => {}
        (_, more) => out += &format!("and {more} more"),
    }
    out.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Loss by class and domain beside the experts that serve them most.
fn served(report: &Report, style: Style) -> String {
    let mut out = heading("Where compute goes", style);
    out += &format!("{:NAME$}  tokens   loss  of all loss  served most, layer:expert\n", "kind of token");
    let all = report.text.tokens.max(1) as f64;
    let mut classes: Vec<usize> = (0..report.classes.len()).collect();
    classes.sort_by(|&a, &b| report.classes[b].loss_share.total_cmp(&report.classes[a].loss_share));
    for class in classes.into_iter().take(ROWS) {
        let totals = &report.classes[class];
        let Some(loss) = totals.loss.filter(|_| totals.tokens > 0) else { continue };
        let most = most_served(report, |layer| &layer.classes.input[class]);
        out += &row(totals.name, totals.tokens as f64 / all, loss, totals.loss_share, &most);
    }
    let loss = (report.text.loss * all).max(f64::MIN_POSITIVE);
    for (index, domain) in report.domains.iter().enumerate().take(ROWS) {
        let most = most_served(report, |layer| &layer.domains.share[index]);
        let tokens = domain.tokens as f64;
        out += &row(&domain.name, tokens / all, domain.loss, tokens * domain.loss / loss, &most);
    }
    match report.domains.len().saturating_sub(ROWS) {
        0 => out,
        more => out + &format!("and {more} more domains\n"),
    }
}

fn row(name: &str, tokens: f64, loss: f64, share: f64, most: &[String]) -> String {
    let name = shorten(&terminal::line(name), NAME);
    let pad = " ".repeat(NAME - columns(&name));
    let mut out = format!("{name}{pad}  {:>5.1}%  {loss:>5.2}  {:>10.1}%", 100.0 * tokens, 100.0 * share);
    for item in most {
        if columns(&out) + 2 + columns(item) > WIDTH {
            break;
        }
        out += "  ";
        out += item;
    }
    out + "\n"
}

fn most_served<'a>(report: &'a Report, share_E: impl Fn(&'a LayerReport) -> &'a Vec<f64>) -> Vec<String> {
    let best = |layer: &'a LayerReport| {
        let (expert, share) = share_E(layer).iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        Some(format!("{}:{expert} {:.0}%", layer.layer, 100.0 * share))
    };
    report.layers.iter().filter_map(best).collect()
}

fn knockouts(report: &Report, style: Style) -> String {
    let mut out = String::new();
    for layer in &report.layers {
        let Some(knockout) = &layer.importance.knockout else { continue };
        if out.is_empty() {
            out = heading("Without an expert, the loss rises by (nats/token; renormalised, zeroed)", style);
        }
        let deltas = &knockout.renormalised.delta;
        let by_cost = |a: &usize, b: &usize| deltas[*a].total_cmp(&deltas[*b]);
        let (Some(most), Some(least)) = ((0..deltas.len()).max_by(by_cost), (0..deltas.len()).min_by(by_cost)) else {
            continue;
        };
        let cost = |expert: usize| format!("{expert} {:+.4}, {:+.4}", deltas[expert], knockout.zeroed.delta[expert]);
        let agreement = layer.importance.agreement.and_then(|agreement| agreement.reap_renormalised);
        let agreement = agreement.map_or(String::new(), |r| format!("   REAP agrees {r:.2}"));
        out += &format!("{:>5}  most expert {}   least expert {}{agreement}\n", layer.layer, cost(most), cost(least));
    }
    out
}

/// A line for each memory: how far its gate is open, how many rows are read, and for what it opens widest.
fn memories(report: &Report, style: Style) -> String {
    let Some(first) = report.memories.first() else { return String::new() };
    let orders: Vec<String> = first.ngrams.iter().map(usize::to_string).collect();
    let mut out = heading(&format!("Memory of n-grams of {} tokens", orders.join(", ")), style);
    let width = 8 * orders.len();
    out += &format!("layer  gate  {:width$}  opens widest at\n", "rows in use");
    for memory in &report.memories {
        let used: String = memory.rows_in_use.iter().map(|share| format!("{:>7.2}%", 100.0 * share)).collect();
        let widest = |ngram: &NgramGate| format!("“{}” {:.2}", visible(&ngram.text), ngram.mean_gate);
        let widest: Vec<String> = memory.widest.iter().map(widest).collect();
        let line = format!("{:>5}  {:>4.2}  {used:width$}  {}", memory.layer, memory.mean_gate, widest.join(" "));
        out += &shorten(&line, WIDTH);
        out.push('\n');
    }
    out
}

/// Saturation in a line.
fn trained(report: &Report) -> String {
    let Some(saturation) = report.saturation.as_ref().filter(|saturation| !saturation.checkpoints.is_empty()) else {
        return String::new();
    };
    let of = |checkpoint: &super::saturation::CheckpointSaturation| {
        let mean = checkpoint.all.iter().sum::<f64>() / checkpoint.all.len().max(1) as f64;
        format!("{:.0}% at step {}", 100.0 * mean, checkpoint.step)
    };
    let checkpoints: Vec<String> = saturation.checkpoints.iter().map(of).collect();
    let reference = saturation.reference_step;
    "\n".to_string()
        + &wrapped(&format!("Choices that are already those of step {reference}: {}", checkpoints.join(", ")), 2)
}

/// Broken between words into lines that fit, all but the first indented.
pub fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    let text = terminal::line(text);
    for word in text.split_inclusive(' ') {
        if used > indent && used + columns(word.trim_end()) > WIDTH {
            out.truncate(out.trim_end().len());
            out.push('\n');
            out += &" ".repeat(indent);
            used = indent;
        }
        out += word;
        used += columns(word);
    }
    out + "\n"
}

/// The text with spaces as ␣ and what cannot be seen as escapes.
pub fn visible(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            ' ' => out.push('␣'),
            '"' | '\'' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}

/// Columns on a terminal: characters, those of East Asian scripts and emoji counted as two.
fn columns(text: &str) -> usize {
    text.chars()
        .map(|c| if matches!(c, '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{fffc}' | '\u{1f000}'..) { 2 } else { 1 })
        .sum()
}

fn shorten(text: &str, room: usize) -> String {
    if columns(text) <= room {
        return text.to_string();
    }
    let mut out = String::new();
    for c in text.chars() {
        if columns(&out) + columns(c.encode_utf8(&mut [0; 4])) >= room {
            break;
        }
        out.push(c);
    }
    out + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_drawn_with_an_even_one_at_half_height() {
        assert_eq!(sparkline(&[0.25, 0.5, 0.25, 0.0], 4), "▄█▄ ");
        assert_eq!(sparkline(&[0.25, 0.25, 0.5, 0.0], 2), "▄▄");
    }

    #[test]
    fn texts_are_made_visible_cut_and_wrapped_by_columns() {
        assert_eq!(visible(" a\n'\u{200b}"), "␣a\\n'\\u{200b}");
        assert_eq!((shorten("日本語です", 6), shorten("kurz", 4)), ("日本…".to_string(), "kurz".to_string()));
        let text = wrapped(&"word ".repeat(30), 3);
        assert!(text.lines().all(|line| columns(line) <= WIDTH) && text.lines().count() == 2, "{text}");
        assert!(text.lines().nth(1).unwrap().starts_with("   word"));
    }
}
