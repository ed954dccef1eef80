//! Everything that is known about a model's routing on a text, as one value: what `--json` prints, what the page
//! embeds, and what the terminal summary is drawn from. docs/routing.md explains the measures.

use super::classes::{self, Class, ClassSpecialisation, ClassTotals};
use super::compare::Comparison;
use super::domains::{self, DomainSpecialisation};
use super::excerpt::{Excerpt, domains_of, excerpts};
use super::facts::{Fact, Findings, Name, Significance};
use super::gate::{Gate, gate};
use super::history::History;
use super::importance::{self, Importance, Knockouts};
use super::load::{Load, load};
use super::memory::{self, MemoryReport};
use super::repetition::{Repetition, repetition};
use super::saturation::Saturation;
use super::trace::{LayerTrace, Trace};
use super::transitions::{Transition, transitions};
use super::vocabulary::{Limits, Occurrences, Role, Source, Vocabulary};
use super::{coactivation, expert_colour};
use crate::dataset::Tokens;
use crate::model::transformer::Transformer;
use crate::tokenizer::Tokenizer;
use serde::Serialize;
use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub format: u32,
    pub run: RunFacts,
    pub model: ModelFacts,
    /// The colour of each expert, as #rrggbb.
    pub palette: Vec<String>,
    pub text: TextFacts,
    /// Most notable first.
    pub facts: Vec<Fact>,
    /// What they, and the experts' labels, needed to count.
    pub significance: Significance,
    pub domains: Vec<DomainTotals>,
    pub classes: Vec<ClassTotals>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<History>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturation: Option<Saturation>,
    /// One entry a MoE layer.
    pub layers: Vec<LayerReport>,
    /// One entry a memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub memories: Vec<MemoryReport>,
    pub transitions: Vec<Transition>,
    pub texts: Vec<Excerpt>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Comparison>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunFacts {
    pub name: String,
    pub checkpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    pub version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    pub layers: usize,
    /// Transformer layers that route.
    pub moe_layers: Vec<usize>,
    pub experts: usize,
    pub experts_per_token: usize,
    pub hidden_size: usize,
    pub expert_width: usize,
    pub shared_experts: usize,
    pub context: usize,
    pub vocabulary: usize,
    pub parameters: usize,
    pub active_parameters: usize,
    pub router: RouterFacts,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterFacts {
    pub scoring: crate::config::ScoringFunc,
    /// Whether the chosen gates are scaled to sum to 1.
    pub renormalised: bool,
    pub balance: crate::config::Balance,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextFacts {
    pub source: String,
    /// Input positions: all tokens but the last.
    pub tokens: usize,
    /// Of the predicted tokens.
    pub bytes: usize,
    /// Of the predicted tokens, those that do not tell which character they stand for.
    pub unknown_tokens: usize,
    pub unknown_share: f64,
    /// The most frequent of their characters, in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unknown_characters: String,
    /// Tokens in a window.
    pub context: usize,
    pub documents: usize,
    /// Nats per token.
    pub loss: f64,
    pub perplexity: f64,
    /// The bytes of unknown characters counted, at 8 bits each.
    pub bits_per_byte: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ngram_bits_per_byte: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainTotals {
    pub name: String,
    pub tokens: u64,
    /// Mean nats of predicting what comes next there.
    pub loss: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// Index of the transformer layer.
    pub layer: usize,
    /// What each expert stands out for, in a few words; may be empty.
    pub labels: Vec<String>,
    /// What it serves most, and what it stands out for most.
    pub names: Vec<Name>,
    /// Tokens that reach each expert.
    #[serde(skip)]
    pub counts: Vec<u64>,
    pub load: Load,
    pub gate: Gate,
    pub domains: DomainSpecialisation,
    pub classes: ClassSpecialisation,
    pub vocabulary: Vocabulary,
    /// None where a token has a single expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coactivation: Option<Vec<Vec<f64>>>,
    pub repetition: Repetition,
    pub loss: LossServed,
    pub importance: Importance,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LossServed {
    /// Mean nats over the positions that each expert serves.
    pub served: Vec<Option<f64>>,
}

/// A traced text with what it came from.
pub struct Traced<'a> {
    pub model: &'a Transformer,
    pub tokenizer: &'a Tokenizer,
    pub tokens: &'a Tokens,
    pub trace: &'a Trace,
    /// Where the trace kept gates.
    pub excerpts: &'a [Range<usize>],
}

/// What the caller knows besides the trace.
#[derive(Default)]
pub struct Context {
    pub run: RunFacts,
    pub source: String,
    pub ngram_bits_per_byte: Option<f64>,
    pub training: Option<History>,
    pub saturation: Option<Saturation>,
    /// One entry a MoE layer, if experts were knocked out.
    pub knockouts: Option<Vec<Knockouts>>,
    /// The name of each text.
    pub names: Vec<String>,
}

/// The labels of each position.
struct Labels {
    blocks: Vec<domains::Block>,
    classes: Vec<Class>,
    present: Vec<Class>,
    occurrences: [Occurrences; 3],
}

impl Report {
    /// All measures of a traced text.
    pub fn new(traced: &Traced, context: Context) -> Self {
        let Traced { model, tokenizer, tokens, trace, .. } = *traced;
        let labels = Labels::new(traced);
        let mut knockouts = context.knockouts.map(Vec::into_iter);
        let mut layers: Vec<LayerReport> = trace
            .layers
            .iter()
            .map(|layer| layer_report(traced, layer, &labels, knockouts.as_mut().and_then(Iterator::next)))
            .collect();
        let class_totals = classes::class_totals(trace, &labels.present, &labels.classes, &tokens.ids, tokenizer);
        let domain_losses =
            importance::domain_losses(&trace.losses_N, &domains_of(&labels.blocks), tokens.domains.len());
        let names = tokens.domains.iter().zip(domain_losses);
        let domains: Vec<DomainTotals> =
            names.map(|(name, (tokens, loss))| DomainTotals { name: name.clone(), tokens, loss }).collect();
        let findings = Findings {
            classes: &class_totals,
            domains: &domains,
            tokens: trace.tokens() as u64,
            experts_per_token: trace.experts_per_token,
            windows: trace.tokens().div_ceil(trace.time.max(1)),
            significance: Significance::of(&layers, &class_totals, &domains, trace.experts_per_token),
        };
        for layer in &mut layers {
            layer.labels = findings.labels(layer);
            layer.names = findings.names(layer);
        }
        let (facts, significance) = (findings.facts(&layers), findings.significance);
        let text_of = |position: usize| tokens.texts.partition_point(|(range, _)| range.end <= position);
        let name = |position: usize| context.names.get(text_of(position)).cloned().unwrap_or_default();
        let shape = (trace.num_experts, trace.experts_per_token);
        let predicted = tokens.predicted(tokenizer);
        let loss = trace.loss();
        Self {
            format: 1,
            run: context.run,
            model: ModelFacts::of(model),
            palette: (0..trace.num_experts).map(hex).collect(),
            text: TextFacts {
                source: context.source,
                tokens: trace.tokens(),
                bytes: predicted.bytes,
                unknown_tokens: predicted.unknown_tokens,
                unknown_share: predicted.unknown_share(),
                unknown_characters: tokens.unknown.names(),
                context: trace.time,
                documents: tokens.texts.len(),
                loss,
                perplexity: loss.exp(),
                bits_per_byte: predicted.bits_per_byte(loss),
                ngram_bits_per_byte: context.ngram_bits_per_byte,
            },
            facts,
            significance,
            domains,
            classes: class_totals,
            training: context.training,
            saturation: context.saturation,
            transitions: transitions(&trace.layers, shape),
            layers,
            memories: memory::memories(model, trace, tokens, tokenizer),
            texts: excerpts(trace, traced.excerpts, tokens, tokenizer, (&labels.classes, &labels.present), name),
            comparisons: Vec::new(),
        }
    }
}

impl Labels {
    fn new(traced: &Traced) -> Self {
        let Traced { model, tokenizer, tokens, trace, .. } = *traced;
        let inputs = trace.tokens();
        let classes = classes::classify(tokens, tokenizer);
        let vocab = model.vocab_size;
        Self {
            blocks: domains::blocks(tokens, inputs, trace.time),
            present: classes::present(&classes),
            classes,
            occurrences: [
                Occurrences::new(Role::Input, &tokens.ids[..inputs], vocab),
                Occurrences::new(Role::Predicted, &trace.likeliest_N, vocab),
                Occurrences::new(Role::Target, &tokens.ids[1..], vocab),
            ],
        }
    }
}

fn layer_report(traced: &Traced, layer: &LayerTrace, labels: &Labels, knockouts: Option<Knockouts>) -> LayerReport {
    let Traced { tokenizer, tokens, trace, .. } = *traced;
    let shape @ (E, K) = (trace.num_experts, trace.experts_per_token);
    let counts = layer.counts_E(E);
    let block_length = trace.time;
    let source =
        Source { layer, counts_E: &counts, experts_per_token: K, tokens, tokenizer, limits: Limits::of(traced) };
    LayerReport {
        layer: layer.layer,
        labels: Vec::new(),
        names: Vec::new(),
        load: load(&counts),
        gate: gate(&layer.sums, &counts),
        domains: domains::domain_specialisation(layer, &labels.blocks, tokens.domains.len(), shape, block_length),
        classes: classes::class_specialisation(layer, &labels.present, &labels.classes, shape),
        vocabulary: source.vocabulary(&labels.occurrences),
        coactivation: (K > 1).then(|| coactivation::coactivation(layer, shape)),
        repetition: repetition(layer, tokens, shape),
        loss: LossServed { served: importance::loss_served(layer, &trace.losses_N, shape) },
        importance: importance::importance(layer, &counts, knockouts),
        counts,
    }
}

impl Limits {
    /// Less for each expert where there are many, so that a page stays small.
    fn of(traced: &Traced) -> Self {
        match traced.trace.layers.len() * traced.trace.num_experts {
            ..=64 => Self { tokens: 10, contexts: 3 },
            65..=256 => Self { tokens: 8, contexts: 2 },
            _ => Self { tokens: 5, contexts: 1 },
        }
    }
}

impl ModelFacts {
    fn of(transformer: &Transformer) -> Self {
        let (model, router) = (&transformer.model, &transformer.router);
        Self {
            layers: model.num_hidden_layers,
            moe_layers: transformer.moe_layers(),
            experts: model.num_experts,
            experts_per_token: model.num_experts_per_tok,
            hidden_size: model.hidden_size,
            expert_width: model.moe_intermediate_size,
            shared_experts: model.n_shared_experts,
            context: model.max_position_embeddings,
            vocabulary: transformer.vocab_size,
            parameters: transformer.parameters.count(),
            active_parameters: transformer.active_parameters(),
            router: RouterFacts {
                scoring: router.scoring_func,
                renormalised: router.norm_topk_prob,
                balance: router.balance,
            },
        }
    }
}

fn hex(expert: usize) -> String {
    let (r, g, b) = expert_colour(expert);
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    use super::super::facts::Measure;
    use super::super::importance::Losses;
    use super::*;
    use crate::config::{Config, TokenizerConfig, TokenizerKind};
    use crate::dataset::Part;

    /// A text of digits and words whose digits all go to expert 2, and whose other tokens to 0 and 1 in turn.
    fn planted(knockouts: Option<Vec<Knockouts>>) -> Report {
        let kind = TokenizerKind::Bytes;
        let tokenizer =
            Tokenizer::from_config(&TokenizerConfig { kind, vocab_size: 0, path: String::new() }, &[]).unwrap();
        let mut config = Config::default();
        config.model.num_experts = 4;
        config.model.num_experts_per_tok = 1;
        config.model.num_hidden_layers = 1;
        config.model.max_position_embeddings = 16;
        let model = Transformer::blank(&config.model, &config.router, tokenizer.vocab_size()).unwrap();
        let text = "zébra 4711 zorro\n".repeat(40);
        let parts = [Part { domain: "d", text: &text }];
        let tokens = Tokens::encode(&parts, &tokenizer).unwrap();
        let excerpts = super::super::excerpt_positions(&tokens, 1);
        let mut trace = Trace::record(&model, &tokens, 16, &excerpts, |_| Ok(())).unwrap();
        for (position, expert) in trace.layers[0].experts_NK.iter_mut().enumerate() {
            let is_digit = tokenizer.token_bytes(tokens.ids[position])[0].is_ascii_digit();
            *expert = if is_digit { 2 } else { (position % 2) as u16 };
        }
        let traced =
            Traced { model: &model, tokenizer: &tokenizer, tokens: &tokens, trace: &trace, excerpts: &excerpts };
        Report::new(&traced, Context { names: vec!["talk.txt".into()], knockouts, ..Context::default() })
    }

    #[test]
    fn a_planted_specialist_leads_the_facts_and_a_dead_expert_is_named() {
        let report = planted(None);
        let first = &report.facts[0];
        assert_eq!((first.measure, first.layer, first.expert), (Measure::Class, Some(0), Some(2)));
        // Four of the 18 bytes of a line.
        assert_eq!(first.text, "Layer 0, expert 2 gets 100% of numbers and dates (22% of all tokens come here)");
        assert!(report.facts.iter().any(|fact| fact.text.contains("1 of 4 experts is dead")), "{:?}", report.facts);
        assert_eq!(report.layers[0].labels[2], "numbers and dates");
        // Experts 0 and 1 serve every kind but numbers; most of it is inside words, which nobody else serves either.
        let names = &report.layers[0].names;
        assert_eq!((names[2].mostly, names[2].mostly_share), (Some("numbers and dates"), Some(1.0)));
        assert_eq!((names[0].mostly, names[3].mostly), (Some("word continuations"), None));
        assert!((names[0].mostly_share.unwrap() - 8.0 / 14.0).abs() < 0.01, "{names:?}");
        assert!(report.facts.iter().all(|fact| fact.evidence >= report.significance.bits), "{report:?}");
        assert_eq!((report.layers[0].labels[3].as_str(), &report.layers[0].load.dead[..]), ("", &[3][..]));
    }

    #[test]
    fn an_expert_that_the_text_cannot_do_without_outweighs_a_preference() {
        // Digits are 2 of 9 bytes: 720 times 0.764 bits for telling them. One nat a token is more.
        let losses =
            Losses { delta: vec![0.001, 1.0, 0.5, 0.0], standard_error: vec![0.01; 4], by_domain: vec![vec![None; 4]] };
        let report = planted(Some(vec![Knockouts { renormalised: losses.clone(), zeroed: losses }]));
        let first = &report.facts[0];
        assert_eq!(first.text, "Without layer 0's expert 1 the loss rises by 1.000 nats per token");
        assert!((first.evidence - 720.0 / std::f64::consts::LN_2).abs() < 1e-6 && first.z == Some(100.0), "{first:?}");
        assert!((report.facts[1].evidence - 720.0 * 0.764_204_5).abs() < 0.01, "{:?}", report.facts[1]);
    }

    #[test]
    fn an_excerpt_gives_the_text_back_with_a_choice_and_a_gate_for_each_token() {
        let report = planted(None);
        let excerpt = &report.texts[0];
        assert_eq!((excerpt.name.as_str(), excerpt.domain.as_str()), ("talk.txt", "d"));
        assert_eq!(excerpt.tokens.concat(), "zébra 4711 zorro\n".repeat(40));
        assert_eq!(&excerpt.tokens[..3], ["z", "", "é"], "a character is in the last of its tokens");
        assert_eq!(&excerpt.experts[7..11], [2; 4]);
        // All weights are zero: each of four experts has a quarter.
        assert!(excerpt.gates.iter().all(|&gate| gate == 25 || gate == 100), "{:?}", excerpt.gates);
        assert_eq!(excerpt.logprob[0], None);
        let uniform = -(report.model.vocabulary as f32).ln();
        assert!(excerpt.logprob[1..].iter().all(|logprob| (logprob.unwrap() - uniform).abs() < 1e-4));
    }
}
