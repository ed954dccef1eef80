//! A [`Report`] as one screen of text, at most 100 columns wide: the most notable findings in words, then a line for each
//! layer, class and domain.

use super::facts::{Fact, Name, Significance};
use super::memory::NgramGate;
use super::paint;
use super::report::{LayerReport, Report};
use crate::terminal::{self, Colours};
use crate::train::prepare::grouped;

const WIDTH: usize = 100;
/// Facts that lead.
const LEAD: usize = 3;
/// Columns of a layer's loads.
const BARS: usize = 16;
/// Columns of a class's or domain's name.
const NAME: usize = 24;
/// Lines and columns for the names of a layer's experts.
const LABEL_LINES: usize = 4;
const LABEL_COLUMNS: usize = 2;
/// Rows of classes and of domains.
const ROWS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Colour(Colours),
}

/// The whole summary. Lines end with a newline.
pub fn render(report: &Report, style: Style) -> String {
    if report.model.experts == 1 && !report.layers.is_empty() {
        let nothing = "Every token goes to the only expert of each layer: there is no routing to report.\n".to_string();
        return introduction(report) + &nothing + &losses(report, style) + &memories(report, style);
    }
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
        let Significance { tests, level, .. } = report.significance;
        let (tests, level) = (grouped(tests as usize), 100.0 * level);
        let nothing = format!("  Nothing that {tests} tests tell from chance (all together at {level:.0}%).");
        out += &wrapped(&nothing, 2);
    }
    out += &heading("Layers", style);
    out += &layers(report);
    out += &explanation(report);
    if report.model.experts_per_token < report.model.experts {
        out += &heading("The experts: what each mostly reads (share of its tokens); what is most typical of it", style);
        for layer in &report.layers {
            out += &names(layer, style);
        }
    }
    out += &losses(report, style);
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
        "{}{step}: {} MoE layer{plural}, {} of {} experts per token",
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
    let mut out = wrapped(&first, 2) + &wrapped(&second, 2);
    if text.unknown_tokens > 0 {
        let unknown = format!(
            "{} of the tokens ({:.2}%) are characters that the tokenizer does not know: {}; bits/byte count 8 bits for \
             each of their bytes, nats/token do not",
            grouped(text.unknown_tokens),
            100.0 * text.unknown_share,
            visible(&text.unknown_characters).replace('␣', " ")
        );
        out += &wrapped(&unknown, 2);
    }
    let dropped = report.training.as_ref().and_then(|training| training.train.dropped_share.last());
    if let Some(dropped) = dropped {
        out += &wrapped(
            &format!(
                "in training {:.1}% of the choices were dropped at the end, because the expert was full; here none is",
                100.0 * dropped
            ),
            2,
        );
    }
    out
}

/// A column of the table of layers: its head in two lines, its width, and a layer's entry.
type Column = ([&'static str; 2], usize, fn(&LayerReport) -> String);

/// Those that mean something in any model with several experts.
const GATE_COLUMNS: [Column; 3] = [
    (["first", "gate"], 5, |layer| format!("{:.2}", layer.gate.mean_by_rank.first().copied().unwrap_or(0.0))),
    (["effective", "experts"], 9, |layer| format!("{:.1}", layer.gate.router_entropy.exp())),
    (["same as", "previous"], 9, |layer| {
        format!("{:.0}% ({:.0}%)", 100.0 * layer.repetition.first, 100.0 * layer.repetition.first_expected)
    }),
];
/// And those that need a choice: where every token has all experts, they are the same for every model.
const CHOICE_COLUMNS: [Column; 5] = [
    (["", "busiest"], 7, |layer| format!("{:.2}x", layer.load.max_over_uniform)),
    (["", "evenness"], 8, |layer| format!("{:.3}", layer.load.entropy)),
    (["", "close"], 5, |layer| percent_of(layer.gate.close)),
    (["", "domain"], 6, |layer| percent_of(layer.domains.explained)),
    (["", "kind"], 4, |layer| percent_of(layer.classes.explained)),
];

fn percent_of(share: Option<f64>) -> String {
    match share {
        None => "-".into(),
        Some(share) if share < 0.0995 => format!("{:.1}%", 100.0 * share),
        Some(share) => format!("{:.0}%", 100.0 * share),
    }
}

fn layers(report: &Report) -> String {
    let experts = report.model.experts;
    let chooses = report.model.experts_per_token < experts;
    let bars = experts.min(BARS);
    let width = bars.max(4);
    let choices = if chooses { &CHOICE_COLUMNS[..] } else { &[] };
    let shown: Vec<&Column> = choices.iter().take(2).chain(&GATE_COLUMNS).chain(choices.iter().skip(2)).collect();
    let load = if chooses { "load" } else { "" };
    let mut out = String::new();
    for (line, [layer, load]) in [["", ""], ["layer", load]].into_iter().enumerate() {
        out += &format!("{layer:5}  {load:width$}");
        shown.iter().for_each(|(heads, width, _)| out += &format!("  {:>width$}", heads[line]));
        out.push('\n');
    }
    for layer in &report.layers {
        let load = if chooses { sparkline(&layer.load.share, bars) } else { String::new() };
        out += &format!("{:>5}  {load:width$}", layer.layer);
        shown.iter().for_each(|(_, width, of)| out += &format!("  {:>width$}", of(layer)));
        match layer.load.dead.len() {
            0 => {}
            dead => out += &format!(" {dead} dead"),
        }
        out.push('\n');
    }
    out
}

/// What the columns mean that do not say it themselves.
fn explanation(report: &Report) -> String {
    let mut text = "effective experts: exp of the router's entropy. In brackets: by chance.".to_string();
    if report.model.experts_per_token < report.model.experts {
        text += " close: choices that a small change would turn. domain, kind: what a token's domain and kind explain of the \
                 choice of its experts.";
    }
    wrapped(&text, 0)
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

/// What each expert of a layer mostly reads, and what is most typical of it; where not all have room, the experts with
/// the most tokens.
fn names(layer: &LayerReport, style: Style) -> String {
    const INDENT: usize = 7;
    let digits = layer.names.len().saturating_sub(1).to_string().len();
    let experts = (0..layer.names.len()).filter(|&expert| layer.names[expert].mostly.is_some());
    let mut experts: Vec<usize> = experts.collect();
    let found = experts.len();
    experts.sort_by_key(|&expert| std::cmp::Reverse(layer.counts[expert]));
    experts.truncate(LABEL_LINES * LABEL_COLUMNS);
    experts.sort_unstable();
    let column = (WIDTH - INDENT) / LABEL_COLUMNS;
    let mut out = String::new();
    for (line, experts) in experts.chunks(LABEL_COLUMNS).enumerate() {
        out += &if line == 0 { format!("{:>5}  ", layer.layer) } else { " ".repeat(INDENT) };
        for &expert in experts {
            let number = format!(" {expert:>digits$} ");
            match style {
                Style::Plain => out += &number,
                Style::Colour(colours) => paint(&number, expert, colours, &mut out),
            }
            let name =
                shorten(&format!(" {}", terminal::line(&name(&layer.names[expert]))), column - columns(&number) - 1);
            out += &format!("{name}{}", " ".repeat(column - columns(&number) - columns(&name)));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    if found > experts.len() {
        out += &format!("{:INDENT$}and {} more\n", "", found - experts.len());
    }
    out
}

fn name(Name { mostly, mostly_share, typical }: &Name) -> String {
    let mostly = mostly.unwrap_or_default();
    let share = 100.0 * mostly_share.unwrap_or(0.0);
    let same = typical.is_empty() || typical == mostly;
    if same { format!("{mostly} {share:.0}%") } else { format!("{mostly} {share:.0}%; {typical}") }
}

/// Loss by class and domain beside the experts that made the predictions.
fn losses(report: &Report, style: Style) -> String {
    let mut out = heading("Where the loss is, and the experts that predicted it most", style);
    out += &format!("{:NAME$}  tokens   loss  of all loss  layer:expert, share of these predictions\n", "to predict");
    let all = report.text.tokens.max(1) as f64;
    let mut classes: Vec<usize> = (0..report.classes.len()).collect();
    classes.sort_by(|&a, &b| report.classes[b].loss_share.total_cmp(&report.classes[a].loss_share));
    for class in classes.into_iter().take(ROWS) {
        let totals = &report.classes[class];
        let Some(loss) = totals.loss else { continue };
        let most = most_served(report, |layer| &layer.classes.target[class]);
        out += &row(totals.name, totals.targets as f64 / all, loss, totals.loss_share, &most);
    }
    let loss = (report.text.loss * all).max(f64::MIN_POSITIVE);
    for (index, domain) in report.domains.iter().enumerate().take(ROWS) {
        let most = most_served(report, |layer| &layer.domains.share[index]);
        let tokens = domain.tokens as f64;
        let name = format!("all in {}", domain.name);
        out += &row(&name, tokens / all, domain.loss, tokens * domain.loss / loss, &most);
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

/// The expert of each layer that serves most of a group; none where all serve all.
fn most_served<'a>(report: &'a Report, share_E: impl Fn(&'a LayerReport) -> &'a Vec<f64>) -> Vec<String> {
    let best = |layer: &'a LayerReport| {
        let (expert, share) = share_E(layer).iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        Some(format!("{}:{expert} {:.0}%", layer.layer, 100.0 * share))
    };
    let chooses = report.model.experts_per_token < report.model.experts;
    report.layers.iter().filter(|_| chooses).filter_map(best).collect()
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
    // Where every token has all experts, all checkpoints share all choices.
    let chooses = report.model.experts_per_token < report.model.experts;
    let Some(saturation) = report.saturation.as_ref().filter(|found| chooses && !found.checkpoints.is_empty()) else {
        return String::new();
    };
    let of = |checkpoint: &super::saturation::CheckpointSaturation| {
        let mean = checkpoint.all.iter().sum::<f64>() / checkpoint.all.len().max(1) as f64;
        format!("{:.0}% at step {}", 100.0 * mean, checkpoint.step)
    };
    let checkpoints: Vec<String> = saturation.checkpoints.iter().map(of).collect();
    let reference = saturation.reference_step;
    "\n".to_string()
        + &wrapped(
            &format!("Choices that earlier checkpoints share with step {reference}: {}", checkpoints.join(", ")),
            2,
        )
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
