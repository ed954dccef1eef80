//! A [`Summary`] as text for the terminal: for each layer two lines of plain words and a table with a row for each
//! expert, at most 100 columns wide.

use super::{LayerSummary, Summary, TokenLift, paint};

const WIDTH: usize = 100;
/// Columns of a load bar.
const BAR: usize = 10;
/// Columns of a domain, and the domains that leave room for tokens beside them; more go to a further table.
const DOMAIN: usize = 8;
const DOMAINS_PER_TABLE: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// 24-bit ANSI colours.
    Colour,
}

/// The whole report. Lines end with a newline.
pub fn render(summary: &Summary, style: Style) -> String {
    if summary.layers.is_empty() {
        return "This model has no MoE layers: there is no routing to report.\n".to_string();
    }
    let mut out = introduction(summary);
    let (E, K) = (summary.num_experts as f64, summary.experts_per_token as f64);
    // One scale for all layers; an even load fills half a bar, so that both more and less show.
    let loads = summary.layers.iter().flat_map(|layer| &layer.expert_load);
    let full_bar = loads.copied().fold((2.0 / E).min(1.0), f64::max);
    for layer in &summary.layers {
        out.push('\n');
        out += &in_words(layer, E, K, style);
        for first_domain in (0..summary.domains.len().max(1)).step_by(DOMAINS_PER_TABLE) {
            out += &table(summary, layer, first_domain, full_bar, style);
        }
    }
    out
}

fn introduction(summary: &Summary) -> String {
    let Summary { tokens, num_experts: E, experts_per_token: K, min_occurrences, layers, .. } = summary;
    let plural = if layers.len() == 1 { "" } else { "s" };
    let (even_load, even_domain) = (100.0 / *E as f64, 100.0 * *K as f64 / *E as f64);
    format!(
        "Routing of {tokens} tokens: {} MoE layer{plural}, {K} of {E} experts for each token.\n\
         load     the expert's share of the work (even: {even_load:.1}%; then variation is 0 and evenness 1)\n\
         domains  % of the domain's tokens that reach the expert (even: {even_domain:.1}%)\n         \
         ▲ at least 1.5 times, ▼ at most half of even, and beyond chance (3 standard errors)\n\
         tokens   2.0x: the token comes here twice as often as the average token (seen {min_occurrences} times or more)\n",
        layers.len()
    )
}

/// The metrics of a layer in two or three lines.
fn in_words(layer: &LayerSummary, E: f64, K: f64, style: Style) -> String {
    // Every token has K different experts, so none can have more than 1 / K of the pairs: E / K times the even share.
    let verdict = match layer.max_over_uniform {
        max if E > K && max >= 0.9 * E / K => "collapsed",
        max if max <= 1.25 => "even",
        max if max <= 2.0 => "somewhat uneven",
        _ => "uneven",
    };
    let (bold, reset) = if style == Style::Colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let mut out = format!(
        "{bold}Layer {}: load {verdict}.{reset} Busiest expert {:.2}x even, variation {:.2}, evenness {:.3}.\n",
        layer.layer, layer.max_over_uniform, layer.coefficient_of_variation, layer.load_entropy
    );
    out += &format!(
        "  Router: the first choice weighs {:.2}; as unsure as among {:.1} equal experts ({:.2} of {:.2} nats).\n",
        layer.mean_top1_gate,
        layer.router_entropy.exp(),
        layer.router_entropy,
        E.ln()
    );
    match layer.dead_experts.len() {
        0 => {}
        1 => out += "  1 expert is dead: no token reaches it.\n",
        dead => out += &format!("  {dead} experts are dead: no token reaches them.\n"),
    }
    out
}

/// A row for each expert: the first table with load, some domains and tokens, the further ones with more domains.
fn table(summary: &Summary, layer: &LayerSummary, first_domain: usize, full_bar: f64, style: Style) -> String {
    let domains = first_domain..(first_domain + DOMAINS_PER_TABLE).min(summary.domains.len());
    let is_first = first_domain == 0;
    let mut out = String::from(if is_first { "expert  load             " } else { "expert" });
    for domain in &summary.domains[domains.clone()] {
        let name = shorten(&domain.name, DOMAIN - 1);
        out += &" ".repeat(DOMAIN - columns(&name));
        out += &name;
    }
    out += if is_first { "  tokens\n" } else { "\n" };
    for expert in 0..summary.num_experts {
        let label = format!("{expert:^6}");
        match style {
            Style::Plain => out += &label,
            Style::Colour => paint(&label, expert, &mut out),
        }
        let mut columns = 6;
        if is_first {
            let load = layer.expert_load[expert];
            out += &format!("  {} {:>5.1}%", bar(load / full_bar), 100.0 * load);
            columns += BAR + 9;
        }
        for domain in domains.clone() {
            out += &domain_cell(summary, layer.domain_share[domain][expert], domain);
            columns += DOMAIN;
        }
        if is_first && layer.dead_experts.contains(&expert) {
            out += "  dead";
        } else if is_first {
            out += &token_list(&layer.top_tokens[expert], WIDTH - columns);
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

/// A load bar in eighths of a column; any load above 0 is visible.
fn bar(fraction: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let least = if fraction > 0.0 { 1.0 } else { 0.0 };
    let eighths = (fraction * 8.0 * BAR as f64).round().max(least) as usize;
    let bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    format!("{bar:<BAR$}")
}

/// The share in percent, marked where the domain strongly prefers or avoids the expert.
fn domain_cell(summary: &Summary, share: f64, domain: usize) -> String {
    let tokens = summary.domains[domain].tokens as f64;
    if tokens == 0.0 {
        return format!("{:>DOMAIN$}", "- ");
    }
    let even = summary.experts_per_token as f64 / summary.num_experts as f64;
    let standard_error = (even * (1.0 - even) / tokens).sqrt();
    let mark = match share / even {
        _ if (share - even).abs() < 3.0 * standard_error => ' ',
        ratio if ratio >= 1.5 => '▲',
        ratio if ratio <= 0.5 => '▼',
        _ => ' ',
    };
    format!("{:>width$.0}{mark}", 100.0 * share, width = DOMAIN - 1)
}

/// As many tokens with their lift as fit into `room` columns.
fn token_list(tokens: &[TokenLift], room: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for token in tokens {
        let item = format!("  {} {:.1}x", visible(&token.text), token.lift);
        used += columns(&item);
        if used > room {
            break;
        }
        out += &item;
    }
    out
}

/// The text with spaces as ␣ and what cannot be seen as escapes.
fn visible(text: &str) -> String {
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
    let text = visible(text);
    if columns(&text) <= room {
        return text;
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
    use super::super::{DomainTokens, Routing, Statistics};
    use super::*;
    use crate::random::Stream;
    use std::sync::Arc;

    /// Random routing with the given preference of each token for an expert, rendered.
    fn rendered(layers: usize, E: usize, K: usize, domains: &[&str], style: Style) -> String {
        const V: u64 = 300;
        const N: u64 = 5000;
        let names = domains.iter().map(|name| name.to_string()).collect();
        let mut statistics = Statistics::new(layers, E, K, V as usize, names);
        for domain in 0..domains.len() {
            let draw = Stream::new(1, "ids", &[domain as u64]);
            // Frequent tokens are much more frequent than rare ones; each domain has some of its own.
            let ids: Vec<u32> =
                (0..N).map(|n| ((draw.uniform(n).powi(3) * 250.0) as u64 + domain as u64 * 7) as u32).collect();
            let routings: Vec<_> =
                (0..layers).map(|layer| Arc::new(random_routing(&ids, layer as u64, E, K))).collect();
            statistics.add(&ids, domain, &routings);
        }
        let words = [" the", "\n", "ing", "e", " a", "é", "日本", ":", " cat", "'s", "\u{fffd}", "\\", "\t"];
        let text = |id: u32| words.get(id as usize % 17).map_or(format!(" w{id}"), |word| word.to_string());
        render(&statistics.summary(&(0..layers).collect::<Vec<_>>(), text), style)
    }

    fn random_routing(ids: &[u32], layer: u64, E: usize, K: usize) -> Routing {
        let mut routing = Routing { num_experts: E, ..Routing::default() };
        for (n, &id) in (0..).zip(ids) {
            let score = |e: usize| {
                let taste = Stream::new(2, "taste", &[layer, u64::from(id)]).normal(e as u64);
                let noise = Stream::new(3, "noise", &[layer, n]).normal(e as u64);
                // Some experts are more popular than others, more so in later layers.
                (taste + 0.5 * noise + 0.2 * layer as f64 * (e % 3) as f64).exp()
            };
            let scores: Vec<f64> = (0..E).map(score).collect();
            let total: f64 = scores.iter().sum();
            let mut order: Vec<usize> = (0..E).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            routing.probs_NE.extend(scores.iter().map(|score| (score / total) as f32));
            let chosen: f64 = order[..K].iter().map(|&e| scores[e]).sum();
            routing.experts_NK.extend(order[..K].iter().map(|&e| e as u32));
            routing.gates_NK.extend(order[..K].iter().map(|&e| (scores[e] / chosen) as f32));
        }
        routing
    }

    fn without_colour(line: &str) -> String {
        line.split('\x1b')
            .map(|part| part.split_once('m').filter(|(code, _)| code.starts_with('[')).map_or(part, |(_, text)| text))
            .collect()
    }

    #[test]
    fn no_line_is_wider_than_100_columns() {
        let many = ["cooking", "a-very-long-domain-name", "日本語の会話", "sports", "news", "science", "history"];
        for style in [Style::Plain, Style::Colour] {
            for (E, K, domains) in [(8, 2, &many[..4]), (64, 8, &many[..]), (1, 1, &many[..1])] {
                let text = rendered(2, E, K, domains, style);
                for line in text.lines() {
                    assert!(columns(&without_colour(line)) <= WIDTH, "{line}");
                }
                assert_eq!(text.contains('\x1b'), style == Style::Colour);
            }
        }
    }

    #[test]
    fn a_model_without_experts_says_so() {
        let dense = Statistics::new(0, 0, 0, 10, vec!["all".into()]).summary(&[], |_| String::new());
        assert_eq!(render(&dense, Style::Plain), "This model has no MoE layers: there is no routing to report.\n");
    }

    #[test]
    fn the_report_reads_as_documented() {
        let token = |text: &str, lift| TokenLift { id: 0, text: text.into(), occurrences: 10, served: 5, lift };
        let domain = |name: &str, tokens| DomainTokens { name: name.into(), tokens };
        let summary = Summary {
            tokens: 1040,
            num_experts: 4,
            experts_per_token: 1,
            domains: vec![domain("cooking", 1000), domain("conversation", 40), domain("empty", 0)],
            min_occurrences: 5,
            layers: vec![LayerSummary {
                layer: 2,
                expert_load: vec![0.6, 0.3, 0.1, 0.0],
                max_over_uniform: 2.4,
                coefficient_of_variation: 0.917,
                load_entropy: 0.6477,
                dead_experts: vec![3],
                mean_top1_gate: 0.8125,
                router_entropy: 0.6,
                domain_share: vec![vec![0.6, 0.3, 0.1, 0.0], vec![0.45, 0.4, 0.15, 0.0], vec![0.0; 4]],
                top_tokens: vec![
                    vec![token("\n", 1.67), token(" the", 1.5)],
                    vec![],
                    vec![token("it's", 9.96)],
                    vec![],
                ],
            }],
        };
        let expected = "\
Routing of 1040 tokens: 1 MoE layer, 1 of 4 experts for each token.
load     the expert's share of the work (even: 25.0%; then variation is 0 and evenness 1)
domains  % of the domain's tokens that reach the expert (even: 25.0%)
         ▲ at least 1.5 times, ▼ at most half of even, and beyond chance (3 standard errors)
tokens   2.0x: the token comes here twice as often as the average token (seen 5 times or more)

Layer 2: load uneven. Busiest expert 2.40x even, variation 0.92, evenness 0.648.
  Router: the first choice weighs 0.81; as unsure as among 1.8 equal experts (0.60 of 1.39 nats).
  1 expert is dead: no token reaches it.
expert  load              cooking conver…   empty  tokens
  0     ██████████  60.0%     60▲     45       -   \\n 1.7x  ␣the 1.5x
  1     █████       30.0%     30      40       -
  2     █▋          10.0%     10▼     15       -   it's 10.0x
  3                  0.0%      0▼      0▼      -   dead
";
        assert_eq!(render(&summary, Style::Plain), expected);
    }
}
