//! The findings in plain words, most notable first.
//!
//! Findings of different kinds compare by their evidence in bits. For "expert e handles this kind of token": n I of the
//! two-by-two table of tokens, of that kind or not, served by e or not (half of Dunning's log-likelihood ratio, in bits).
//! For a rate that differs from chance (repetition, an idle or overrun expert): n D(rate || chance), with D the
//! Kullback-Leibler divergence of two coins. For a knockout: the bits that the whole text costs more without the expert,
//! N times the change of its cross-entropy. All grow with the size of the effect and with the number of tokens that show
//! it.
//!
//! One threshold holds for all of them. Chance reaches E bits with a probability of about 2^-E at most; a z reaches
//! z^2 / (2 ln 2) bits. With T tests made on a text, a finding needs log2(T / 0.01) bits, so that one false finding is to
//! be expected in a hundred reports (Bonferroni's correction). That is as if tokens were independent, which neighbours
//! are not: so an effect must be large as well. What counts at all: tokens above the vocabulary's minimum; at least 20
//! tokens of a class or domain; 20 windows for a knockout; a lift of 1.5, or of 1.25 for a repetition; a cost of 0.005
//! nats. Where every token has all experts, only gates and losses can tell anything. One finding for each expert and for
//! each subject.

use super::classes::ClassTotals;
use super::importance::Losses;
use super::information::{evidence, z_score};
use super::report::{DomainTotals, LayerReport};
use super::summary::visible;
use super::vocabulary::TokenLift;
use serde::Serialize;

const FACTS: usize = 12;
/// The probability of a single finding that is none, over all tests.
const LEVEL: f64 = 0.01;
/// Of a class or domain.
const MIN_TOKENS: u64 = 20;
const MIN_LIFT: f64 = 1.5;
const MIN_PAIRS: u64 = 100;
const MIN_REPETITION: f64 = 1.25;
const MIN_WINDOWS: usize = 20;
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

/// What findings are made from.
pub struct Findings<'a> {
    pub classes: &'a [ClassTotals],
    pub domains: &'a [DomainTotals],
    /// N
    pub tokens: u64,
    /// K
    pub experts_per_token: usize,
    /// Windows of the text.
    pub windows: usize,
    pub significance: Significance,
}

/// What a finding needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Significance {
    /// Probability of a false finding over all tests.
    pub level: f64,
    pub tests: u64,
    /// Bits of evidence that follow from both.
    pub bits: f64,
}

/// What an expert is called: by what it serves most, and by what it stands out for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Name {
    /// The class that most of its tokens have, and their share; none for an expert without tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mostly: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mostly_share: Option<f64>,
    /// What it serves more often than others do, by evidence; empty where nothing stands out.
    pub typical: String,
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

impl Significance {
    /// For the tests that these findings are chosen from.
    pub fn of(layers: &[LayerReport], classes: &[ClassTotals], domains: &[DomainTotals], K: usize) -> Self {
        let enough = |tokens: u64| u64::from(tokens >= MIN_TOKENS);
        let groups: u64 = classes.iter().map(|class| enough(class.tokens)).sum::<u64>()
            + domains.iter().filter(|_| domains.len() > 1).map(|domain| enough(domain.tokens)).sum::<u64>();
        let of_layer = |layer: &LayerReport| {
            let experts = layer.counts.len();
            let knockouts = if layer.importance.knockout.is_some() { experts } else { 0 } as u64;
            let choices = if K < experts { groups + layer.vocabulary.frequent as u64 + 1 } else { 0 };
            // One more for the repetition, and one for the domains as a whole.
            choices * experts as u64 + knockouts + 2
        };
        let tests = layers.iter().map(of_layer).sum::<u64>().max(1);
        Self { level: LEVEL, tests, bits: (tests as f64 / LEVEL).log2() }
    }

    /// Whether a distance of z standard deviations is evidence enough.
    fn admits_z(&self, z: f64) -> bool {
        z > 0.0 && z * z / (2.0 * std::f64::consts::LN_2) >= self.bits
    }
}

impl Findings<'_> {
    /// The preference of `part` tokens, `both` of them at an expert that serves `served` of all; if it is one.
    fn preference(&self, name: String, both: u64, part: u64, served: u64) -> Option<Preference> {
        if part == 0 || served == 0 {
            return None;
        }
        let lift = (both as f64 / part as f64) / (served as f64 / self.tokens as f64);
        let evidence = evidence(both, part, served, self.tokens);
        (lift >= MIN_LIFT && evidence >= self.significance.bits).then(|| Preference {
            name,
            share: both as f64 / part as f64,
            evidence,
            z: z_score(both, part, served, self.tokens),
        })
    }

    /// The classes that an expert stands out for, as inputs.
    fn class_preferences(&self, layer: &LayerReport, expert: usize) -> Vec<Preference> {
        let of = |(class, served_E): (&ClassTotals, &Vec<u64>)| {
            let enough = class.tokens >= MIN_TOKENS;
            enough.then(|| self.preference(class.name.into(), served_E[expert], class.tokens, layer.counts[expert]))?
        };
        self.classes.iter().zip(&layer.classes.served).filter_map(of).collect()
    }

    /// The domains that it stands out for, where domains mean anything.
    fn domain_preferences(&self, layer: &LayerReport, expert: usize) -> Vec<Preference> {
        if !layer.domains.z.is_some_and(|z| self.significance.admits_z(z)) {
            return Vec::new();
        }
        let of = |(domain, share_E): (&DomainTotals, &Vec<f64>)| {
            let served = (share_E[expert] * domain.tokens as f64).round() as u64;
            let enough = domain.tokens >= MIN_TOKENS;
            enough.then(|| self.preference(domain.name.clone(), served, domain.tokens, layer.counts[expert]))?
        };
        self.domains.iter().zip(&layer.domains.share).filter_map(of).collect()
    }

    /// The tokens that it stands out for, as inputs.
    fn token_preferences(&self, layer: &LayerReport, expert: usize) -> Vec<Preference> {
        let of = |token: &TokenLift| {
            let name = format!("“{}”", visible(&token.text));
            self.preference(name, token.served, token.count, layer.counts[expert])
        };
        layer.vocabulary.input[expert].iter().filter_map(of).collect()
    }

    /// For each expert up to two classes and domains that it stands out for, else its best tokens.
    pub fn labels(&self, layer: &LayerReport) -> Vec<String> {
        let label = |expert: usize| {
            let mut found = self.class_preferences(layer, expert);
            found.extend(self.domain_preferences(layer, expert));
            if found.is_empty() {
                found = self.token_preferences(layer, expert);
            }
            found.sort_by(|a, b| b.evidence.total_cmp(&a.evidence));
            found.into_iter().take(2).map(|preference| preference.name).collect::<Vec<_>>().join(", ")
        };
        (0..layer.counts.len()).map(label).collect()
    }

    /// The names of a layer's experts, which must have labels.
    pub fn names(&self, layer: &LayerReport) -> Vec<Name> {
        let name = |(expert, label): (usize, &String)| {
            let served = layer.classes.served.iter().map(|served_E| served_E[expert]);
            // Of equal ones the first.
            let most = self.classes.iter().zip(served).rev().max_by_key(|&(_, served)| served);
            let most = most.filter(|&(_, served)| served > 0);
            Name {
                mostly: most.map(|(class, _)| class.name),
                mostly_share: most.map(|(_, served)| served as f64 / layer.counts[expert] as f64),
                typical: label.split(", ").next().unwrap_or_default().to_string(),
            }
        };
        layer.labels.iter().enumerate().map(name).collect()
    }

    /// The most notable findings, best first, each about another expert and another subject.
    pub fn facts(&self, layers: &[LayerReport]) -> Vec<Fact> {
        let mut findings: Vec<Finding> = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            if self.experts_per_token < layer.counts.len() {
                findings.extend(self.choices(layer, index));
            }
            findings.extend(self.repetition(layer, index));
            findings.extend(self.importance(layer, index));
        }
        findings.sort_by(|a, b| b.evidence.total_cmp(&a.evidence));
        let mut chosen: Vec<Finding> = Vec::new();
        for finding in findings {
            let repeats = |other: &Finding| {
                let same_expert = other.layer == finding.layer && other.expert == finding.expert;
                other.subject == finding.subject || same_expert && finding.expert.is_some()
            };
            if chosen.len() < FACTS && !chosen.iter().any(repeats) {
                chosen.push(finding);
            }
        }
        chosen.into_iter().map(Finding::fact).collect()
    }

    /// What a layer's choices tell.
    fn choices(&self, layer: &LayerReport, index: usize) -> Vec<Finding> {
        let mut findings = Vec::new();
        for expert in 0..layer.counts.len() {
            let mut gets = |measure, preferences: Vec<Preference>, of: &str| {
                let finding = |found| self.gets(layer, (index, expert), measure, (found, of));
                findings.extend(preferences.into_iter().map(finding));
            };
            gets(Measure::Class, self.class_preferences(layer, expert), "");
            gets(Measure::Token, self.token_preferences(layer, expert), "the token ");
            gets(Measure::Domain, self.domain_preferences(layer, expert), "the tokens of ");
        }
        findings.extend(self.load(layer, index));
        findings
    }

    fn gets(
        &self,
        layer: &LayerReport,
        (index, expert): (usize, usize),
        measure: Measure,
        (Preference { name, share, evidence, z }, of): (Preference, &str),
    ) -> Finding {
        let of_all = layer.counts[expert] as f64 / self.tokens as f64;
        Finding {
            measure,
            layer: index,
            expert: Some(expert),
            evidence,
            z: Some(z),
            text: format!(
                "Layer {}, expert {expert} gets {:.0}% of {of}{name} ({:.0}% of all tokens come here)",
                layer.layer,
                100.0 * share,
                100.0 * of_all
            ),
            subject: name,
        }
    }

    /// Dead experts, or else one that takes far more than its fair share.
    fn load(&self, layer: &LayerReport, index: usize) -> Option<Finding> {
        let experts = layer.counts.len();
        let number = layer.layer;
        let pairs = layer.counts.iter().sum::<u64>() as f64;
        let even = 1.0 / experts as f64;
        let finding = |expert, evidence, subject: &str, text| Finding {
            measure: Measure::Load,
            layer: index,
            expert,
            subject: subject.into(),
            evidence,
            z: None,
            text,
        };
        let dead = layer.load.dead.len();
        let of_one = pairs * divergence(0.0, even);
        if dead > 0 {
            let are = if dead == 1 { "is" } else { "are" };
            let text = format!("Layer {number}: {dead} of {experts} experts {are} dead: no token goes there");
            let found = of_one >= self.significance.bits;
            return found.then(|| finding(None, of_one * dead as f64, "dead experts", text));
        }
        let (busiest, &share) = layer.load.share.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        let text = format!(
            "Layer {number}, expert {busiest} does {:.0}% of the layer's work, {:.1}x its fair share",
            100.0 * share,
            share / even
        );
        let evidence = pairs * divergence(share, even);
        let found = share >= MIN_LIFT * even && evidence >= self.significance.bits;
        found.then(|| finding(Some(busiest), evidence, "load", text))
    }

    fn repetition(&self, layer: &LayerReport, index: usize) -> Option<Finding> {
        let found = &layer.repetition;
        let (rate, chance) = (found.first, found.first_expected);
        let evidence = found.pairs as f64 * divergence(rate, chance);
        let differs = rate >= MIN_REPETITION * chance || rate * MIN_REPETITION <= chance;
        let than = if rate > chance { "more" } else { "less" };
        let enough = found.pairs >= MIN_PAIRS && evidence >= self.significance.bits;
        (differs && enough).then(|| Finding {
            measure: Measure::Repetition,
            layer: index,
            expert: None,
            subject: "repetition".into(),
            evidence,
            z: None,
            text: format!(
                "Layer {} sends consecutive tokens to the same expert {than} often than chance: {:.0}%, by chance {:.0}%",
                layer.layer,
                100.0 * rate,
                100.0 * chance
            ),
        })
    }

    /// The expert whose loss costs most.
    fn importance(&self, layer: &LayerReport, index: usize) -> Option<Finding> {
        let Losses { delta, standard_error, .. } = &layer.importance.knockout.as_ref()?.renormalised;
        let (expert, &cost) = delta.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        let z = cost / standard_error[expert].max(f64::MIN_POSITIVE);
        let enough = self.windows >= MIN_WINDOWS && cost >= MIN_COST && self.significance.admits_z(z);
        enough.then(|| Finding {
            measure: Measure::Importance,
            layer: index,
            expert: Some(expert),
            subject: "importance".into(),
            evidence: self.tokens as f64 * cost / std::f64::consts::LN_2,
            z: Some(z),
            text: format!("Without layer {}'s expert {expert} the loss rises by {cost:.3} nats per token", layer.layer),
        })
    }
}

impl Finding {
    fn fact(self) -> Fact {
        let Self { measure, layer, expert, evidence, z, text, .. } = self;
        Fact { text, measure, layer: Some(layer), expert, evidence, z }
    }
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

    fn findings(tokens: u64, tests: u64) -> Findings<'static> {
        let significance = Significance { level: LEVEL, tests, bits: (tests as f64 / LEVEL).log2() };
        Findings { classes: &[], domains: &[], tokens, experts_per_token: 1, windows: 100, significance }
    }

    #[test]
    fn a_preference_needs_lift_and_evidence_and_counts_its_bits() {
        let few = findings(1000, 100);
        let found = few.preference("x".into(), 30, 40, 250).unwrap();
        close(found.share, 0.75);
        // 10 expected, with a variance of 7.5.
        close(found.z, 20.0 / 7.5f64.sqrt());
        close(found.evidence, evidence(30, 40, 250, 1000));
        assert!(few.preference("rare".into(), 4, 4, 250).is_none(), "8 bits of 13.3");
        let many = findings(100_000, 100);
        assert!(many.preference("weak".into(), 3000, 10_000, 25_000).is_none(), "a lift of 1.2 however sure");
        assert!(
            few.preference("absent".into(), 0, 0, 250).is_none() && few.preference("dead".into(), 0, 9, 0).is_none()
        );
    }

    #[test]
    fn more_tests_ask_for_more_evidence() {
        // 11 of 12 where 3 are expected: 17.7 bits.
        let bits = evidence(11, 12, 250, 1000);
        assert!((17.0..18.5).contains(&bits), "{bits}");
        assert!(findings(1000, 1000).preference("x".into(), 11, 12, 250).is_some());
        assert!(findings(1000, 10_000).preference("x".into(), 11, 12, 250).is_none());
        // z of 5 is 18 bits.
        assert!(findings(1, 2000).significance.admits_z(5.0) && !findings(1, 10_000).significance.admits_z(5.0));
        assert!(!findings(1, 1).significance.admits_z(-9.0));
    }

    #[test]
    fn on_noise_nothing_is_found() {
        // Experts drawn at random for tokens of random kinds: 200 texts with 40 tests each, and no finding.
        let found = (0..200).filter(|&text| {
            let stream = crate::random::Stream::new(7, "noise", &[text]);
            let mut both = [[0u64; 4]; 10];
            (0..400).for_each(|n| {
                let (kind, expert) = (stream.uniform(2 * n) * 10.0, stream.uniform(2 * n + 1) * 4.0);
                both[kind as usize][expert as usize] += 1;
            });
            let findings = findings(400, 40);
            let served = |expert: usize| both.iter().map(|row| row[expert]).sum();
            let is_found = |row: &[u64; 4], expert: usize| {
                findings.preference(String::new(), row[expert], row.iter().sum(), served(expert)).is_some()
            };
            both.iter().any(|row| (0..4).any(|expert| is_found(row, expert)))
        });
        assert_eq!(found.count(), 0);
    }
}
