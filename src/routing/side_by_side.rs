//! A [`Comparison`] as text: two models beside each other, then for each layer which experts do the same work.

use super::compare::{Comparison, LayerComparison, ModelFacts};
use super::summary::{Style, heading, wrapped};
use crate::terminal;
use crate::train::prepare::grouped;

/// Pairs of experts listed for a layer, the most similar first.
const PAIRS: usize = 24;

/// The whole comparison. Lines end with a newline.
pub fn render_comparison(comparison: &Comparison, style: Style) -> String {
    let Comparison { a, b, a_facts, b_facts, layers, .. } = comparison;
    let (a, b) = (terminal::line(a), terminal::line(b));
    let mut out = format!("A  {a}\nB  {b}\n\n{:<22}  {:>14}  {:>14}\n", "", "A", "B");
    let mut row = |name: &str, value: &dyn Fn(&ModelFacts) -> String| {
        out += &format!("{name:<22}  {:>14}  {:>14}\n", value(a_facts), value(b_facts));
    };
    row("step", &|facts| facts.step.map_or_else(|| "-".into(), grouped));
    row("parameters", &|facts| grouped(facts.parameters));
    row("  active per token", &|facts| grouped(facts.active_parameters));
    row("experts", &|facts| format!("{} of {}", facts.experts_per_token, facts.experts));
    row("nats/token", &|facts| format!("{:.4}", facts.loss));
    row("bits/byte", &|facts| format!("{:.4}", facts.bits_per_byte));
    row("busiest, x fair share", &|facts| extremes(&facts.max_over_uniform));
    row("router entropy, nats", &|facts| extremes(&facts.router_entropy));
    if layers.is_empty() {
        return out + "\nThey have no MoE layers to match.\n";
    }
    out += &heading("Experts that do the same work, A=B (bytes that both serve, of those that either does)", style);
    for layer in layers {
        out += &pairs(layer);
    }
    out
}

/// The smallest and the largest over the layers.
fn extremes(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.is_empty() { "-".into() } else { format!("{least:.2} to {most:.2}") }
}

fn pairs(layer: &LayerComparison) -> String {
    let mut matched: Vec<_> = layer.pairs.iter().filter_map(|pair| Some((pair.a?, pair.b?, pair.similarity))).collect();
    matched.sort_by(|x, y| y.2.total_cmp(&x.2));
    let shown: Vec<String> = matched
        .iter()
        .take(PAIRS)
        .map(|(a, b, similarity)| format!("{a}={b}\u{a0}{:.0}%", 100.0 * similarity))
        .collect();
    let more = matched.len().saturating_sub(PAIRS);
    let more = if more > 0 { format!("  and {more} more") } else { String::new() };
    let layers = if layer.a == layer.b { format!("{}", layer.a) } else { format!("{}, {}", layer.a, layer.b) };
    let (mean, expected) = (100.0 * layer.mean, 100.0 * layer.expected);
    let text = format!("layer {layers}: {mean:.0}% on average, by chance {expected:.0}%: {}{more}", shown.join("  "));
    wrapped(&text, 2).replace('\u{a0}', " ")
}
