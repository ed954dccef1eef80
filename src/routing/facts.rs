//! The findings in plain words, most notable first.
//!
//! Findings of different kinds compare by their evidence in bits. For "expert e handles this kind of token": n I of the
//! two-by-two table of tokens, of that kind or not, served by e or not (half of Dunning's log-likelihood ratio, in bits).
//! For a rate that differs from chance (repetition, an idle or overrun expert): n D(rate || chance), with D the
//! Kullback-Leibler divergence of two coins. For a knockout: the bits that the whole text costs more without the expert,
//! N times the change of its cross-entropy. All grow with the size of the effect and with the number of tokens that show
//! it.
//!
//! What counts at all: tokens above the vocabulary's minimum; at least 20 tokens of a class; domains whose information
//! is beyond 95% of the permutations; a lift of 1.5 and a z of 5; a cost of 0.005 nats. One finding for each expert and for each subject.

use super::classes::ClassTotals;
use super::importance::Losses;
use super::information::{evidence, z_score};
use super::report::{DomainTotals, LayerReport};
use super::summary::visible;
use serde::Serialize;

const FACTS: usize = 12;
const MIN_CLASS_TOKENS: u64 = 20;
const MIN_LIFT: f64 = 1.5;
const MIN_Z: f64 = 5.0;
/// Nats per token that a knockout must cost.
const MIN_COST: f64 = 0.005;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact {
    pub text: String,
    pub measure: Measure,
    /// Counted among MoE layers.
    pub layer: Option<usize>,
    pub expert: Option<usize>,
    /// Bits.
    pub evidence: f64,
    pub z: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    Class,
    Token,
    Domain,
    Load,
    Repetition,
    Importance,
}

/// A finding before it is put into words.
struct Finding {
    measure: Measure,
    layer: usize,
    expert: Option<usize>,
    subject: String,
    evidence: f64,
    z: Option<f64>,
    text: String,
}

/// How strongly a kind of token goes to an expert.
struct Preference {
    name: String,
    share: f64,
    evidence: f64,
    z: f64,
}

/// The preference of `part` tokens, `both` of them at an expert that serves `served` of `all`; if it is one.
fn preference(name: String, both: u64, part: u64, served: u64, all: u64) -> Option<Preference> {
    let lift = (both as f64 / part.max(1) as f64) / (served as f64 / all.max(1) as f64);
    let z = z_score(both, part, served, all);
    (part > 0 && lift >= MIN_LIFT && z >= MIN_Z).then(|| Preference {
        name,
        share: both as f64 / part as f64,
        evidence: evidence(both, part, served, all),
        z,
    })
}

/// The classes that an expert stands out for, as inputs.
fn class_preferences(layer: &LayerReport, expert: usize, classes: &[ClassTotals], all: u64) -> Vec<Preference> {
    let of = |(class, served_E): (&ClassTotals, &Vec<u64>)| {
        let enough = class.tokens >= MIN_CLASS_TOKENS;
        enough.then(|| preference(class.name.into(), served_E[expert], class.tokens, layer.counts[expert], all))?
    };
    classes.iter().zip(&layer.classes.served).filter_map(of).collect()
}

/// The domains that it stands out for, where domains mean anything.
fn domain_preferences(layer: &LayerReport, expert: usize, domains: &[(String, u64)], all: u64) -> Vec<Preference> {
    if layer.domains.p.is_none_or(|p| p > 0.05) {
        return Vec::new();
    }
    let of = |((name, tokens), share_E): (&(String, u64), &Vec<f64>)| {
        let served = (share_E[expert] * *tokens as f64).round() as u64;
        preference(name.clone(), served, *tokens, layer.counts[expert], all)
    };
    domains.iter().zip(&layer.domains.share).filter_map(of).collect()
}

/// The tokens that it stands out for, as inputs.
fn token_preferences(layer: &LayerReport, expert: usize, all: u64) -> Vec<Preference> {
    let tokens = layer.vocabulary.input[expert].iter();
    tokens
        .filter_map(|token| {
            let name = format!("“{}”", visible(&token.text));
            preference(name, token.served, token.count, layer.counts[expert], all)
        })
        .collect()
}

/// For each expert a few words about what it stands out for: up to two classes and domains, else its best tokens.
pub fn labels(layer: &LayerReport, classes: &[ClassTotals], domains: &[String], all: u64) -> Vec<String> {
    let domain_tokens: Vec<(String, u64)> =
        domains.iter().zip(&layer.domains.tokens).map(|(name, &tokens)| (name.clone(), tokens)).collect();
    let label = |expert: usize| {
        let mut found = class_preferences(layer, expert, classes, all);
        found.extend(domain_preferences(layer, expert, &domain_tokens, all));
        if found.is_empty() {
            found = token_preferences(layer, expert, all);
        }
        found.sort_by(|a, b| b.evidence.total_cmp(&a.evidence));
        found.into_iter().take(2).map(|preference| preference.name).collect::<Vec<_>>().join(", ")
    };
    (0..layer.counts.len()).map(label).collect()
}

/// The most notable findings, best first, each about another expert and another subject.
pub fn facts(layers: &[LayerReport], classes: &[ClassTotals], domains: &[DomainTotals], all: u64) -> Vec<Fact> {
    let mut findings: Vec<Finding> = Vec::new();
    let domains: Vec<(String, u64)> = domains.iter().map(|domain| (domain.name.clone(), domain.tokens)).collect();
    for (index, layer) in layers.iter().enumerate() {
        for expert in 0..layer.counts.len() {
            let mut handled = |measure, preferences: Vec<Preference>, of: &str| {
                findings.extend(
                    preferences.into_iter().map(|found| handles(layer, (index, expert), measure, (found, of), all)),
                );
            };
            handled(Measure::Class, class_preferences(layer, expert, classes, all), "");
            handled(Measure::Token, token_preferences(layer, expert, all), "the token ");
            handled(Measure::Domain, domain_preferences(layer, expert, &domains, all), "the tokens of ");
        }
        findings.extend(load_finding(layer, index, all));
        findings.push(repetition_finding(layer, index));
        findings.extend(importance_finding(layer, index, all));
    }
    findings.sort_by(|a, b| b.evidence.total_cmp(&a.evidence));
    let mut chosen: Vec<Finding> = Vec::new();
    for finding in findings.into_iter().filter(|finding| finding.evidence > 0.0) {
        let repeats = |other: &Finding| {
            let same_expert = other.layer == finding.layer && other.expert == finding.expert;
            other.subject == finding.subject || same_expert && finding.expert.is_some()
        };
        if chosen.len() < FACTS && !chosen.iter().any(repeats) {
            chosen.push(finding);
        }
    }
    chosen
        .into_iter()
        .map(|Finding { measure, layer, expert, evidence, z, text, .. }| Fact {
            text,
            measure,
            layer: Some(layer),
            expert,
            evidence,
            z,
        })
        .collect()
}

fn handles(
    layer: &LayerReport,
    (index, expert): (usize, usize),
    measure: Measure,
    (Preference { name, share, evidence, z }, of): (Preference, &str),
    all: u64,
) -> Finding {
    let of_all = layer.counts[expert] as f64 / all as f64;
    Finding {
        measure,
        layer: index,
        expert: Some(expert),
        evidence,
        z: Some(z),
        text: format!(
            "Layer {}, expert {expert} handles {:.0}% of {of}{name} ({:.0}% of all tokens come here)",
            layer.layer,
            100.0 * share,
            100.0 * of_all
        ),
        subject: name,
    }
}

/// Dead experts, or else one that takes far more than its part.
fn load_finding(layer: &LayerReport, index: usize, all: u64) -> Option<Finding> {
    let experts = layer.counts.len();
    if experts < 2 || all == 0 {
        return None;
    }
    let number = layer.layer;
    let pairs = layer.counts.iter().sum::<u64>() as f64;
    let even = 1.0 / experts as f64;
    let dead = layer.load.dead.len();
    let finding = |expert, evidence, text| Finding {
        measure: Measure::Load,
        layer: index,
        expert,
        subject: if expert.is_some() { "load".into() } else { "dead experts".into() },
        evidence,
        z: None,
        text,
    };
    if dead > 0 {
        let are = if dead == 1 { "is" } else { "are" };
        let evidence = pairs * divergence(0.0, even) * dead as f64;
        return Some(finding(
            None,
            evidence,
            format!("Layer {number}: {dead} of {experts} experts {are} dead: no token goes there"),
        ));
    }
    let (busiest, &share) = layer.load.share.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
    let text = format!(
        "Layer {number}, expert {busiest} does {:.0}% of the layer's work, {:.1} times its part",
        100.0 * share,
        share / even
    );
    (share >= MIN_LIFT * even).then(|| finding(Some(busiest), pairs * divergence(share, even), text))
}

fn repetition_finding(layer: &LayerReport, index: usize) -> Finding {
    let found = &layer.repetition;
    let (rate, chance) = (found.first, found.first_expected);
    let than = if rate > chance { "more" } else { "less" };
    Finding {
        measure: Measure::Repetition,
        layer: index,
        expert: None,
        subject: "repetition".into(),
        evidence: found.pairs as f64 * divergence(rate, chance),
        z: None,
        text: format!(
            "Layer {} sends consecutive tokens to the same expert {than} often than chance: {:.0}%, by chance {:.0}%",
            layer.layer,
            100.0 * rate,
            100.0 * chance
        ),
    }
}

/// The expert whose loss costs most.
fn importance_finding(layer: &LayerReport, index: usize, all: u64) -> Option<Finding> {
    let Losses { delta, standard_error, .. } = &layer.importance.knockout.as_ref()?.renormalised;
    let (expert, &cost) = delta.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
    let z = cost / standard_error[expert].max(f64::MIN_POSITIVE);
    (z >= MIN_Z && cost >= MIN_COST).then(|| Finding {
        measure: Measure::Importance,
        layer: index,
        expert: Some(expert),
        subject: "importance".into(),
        evidence: all as f64 * cost / std::f64::consts::LN_2,
        z: Some(z),
        text: format!("Without layer {}'s expert {expert} the loss rises by {cost:.3} nats per token", layer.layer),
    })
}

/// D(p || q) of two coins in bits.
fn divergence(p: f64, q: f64) -> f64 {
    let term = |p: f64, q: f64| if p > 0.0 { p * (p / q).log2() } else { 0.0 };
    if q <= 0.0 || q >= 1.0 { 0.0 } else { term(p, q) + term(1.0 - p, 1.0 - q) }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::close;
    use super::*;

    #[test]
    fn divergence_of_coins_by_hand() {
        close(divergence(0.5, 0.5), 0.0);
        close(divergence(1.0, 0.5), 1.0);
        // 1/2 log2 2 + 1/2 log2 (2/3)
        close(divergence(0.5, 0.25), 0.207_518_7);
        close(divergence(0.0, 0.25), 0.415_037_5);
    }

    #[test]
    fn a_preference_needs_lift_and_significance_and_counts_its_bits() {
        let found = preference("x".into(), 30, 40, 250, 1000).unwrap();
        close(found.share, 0.75);
        // 10 expected, with a variance of 7.5.
        close(found.z, 20.0 / 7.5f64.sqrt());
        close(found.evidence, evidence(30, 40, 250, 1000));
        assert!(preference("rare".into(), 4, 4, 250, 1000).is_none(), "z of 3.5");
        assert!(preference("weak".into(), 3000, 10_000, 25_000, 100_000).is_none(), "a lift of 1.2 however sure");
        assert!(preference("absent".into(), 0, 0, 250, 1000).is_none());
    }
}
