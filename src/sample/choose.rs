//! The choice of one token from logits, in the order of transformers: repetition penalty, temperature, top-k, top-p,
//! min-p, then the draw. A pure function of its arguments: equal logits are ranked by id, lowest first, and the random
//! number comes from the caller.

use crate::error::Failure;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingOptions {
    /// Logits are divided by it: below 1 sharper, above 1 flatter. 0 always takes the best token.
    pub temperature: f32,
    /// Keep the k best tokens. 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest best tokens that together reach this probability (Holtzman 2019, "nucleus"). 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the best one (Nguyen 2024). 0 keeps all.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of tokens that have occurred (CTRL, Keskar 2019). 1 does nothing.
    pub repetition_penalty: f32,
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 1337 }
    }
}

impl SamplingOptions {
    /// # Errors
    /// [`Failure::Usage`] that names the flag whose value is out of range.
    pub fn validate(&self) -> Result<()> {
        let range = |flag: &str, value: f32, valid: bool, rule: &str| {
            if valid { Ok(()) } else { Err(Failure::Usage(format!("{flag} {value} is out of range: {rule}"))) }
        };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        range(
            "--temperature",
            temperature,
            temperature.is_finite() && temperature >= 0.0,
            "give 0 to always take the best token, or a positive number such as 0.8",
        )?;
        range("--top-p", top_p, top_p > 0.0 && top_p <= 1.0, "give a number above 0 and up to 1 (1 keeps all tokens)")?;
        range("--min-p", min_p, (0.0..=1.0).contains(&min_p), "give a number from 0 to 1 (0 keeps all tokens)")?;
        range(
            "--repetition-penalty",
            repetition_penalty,
            repetition_penalty.is_finite() && repetition_penalty > 0.0,
            "give a positive number (1 does nothing, above 1 discourages repetition)",
        )?;
        Ok(())
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    pub id: u32,
    /// Natural logarithm of its probability under the model's own distribution: temperature 1, nothing filtered.
    pub logprob: f32,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// Logit after the repetition penalty.
    score: f32,
    /// Probability after temperature, as a fraction of the best candidate's.
    weight: f32,
}

/// Chooses tokens, with buffers that are kept from one token to the next.
#[derive(Debug, Default)]
pub struct Chooser {
    scores_V: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Chooser {
    /// Chooses the token that `draw`, uniform in [0, 1), falls on. `history` holds the ids that the repetition penalty
    /// applies to. `options` are taken as [valid](SamplingOptions::validate).
    ///
    /// A logit of negative infinity or NaN is never chosen, positive infinity counts as the largest finite number.
    /// Where nothing can be chosen, the result is id 0 with a logprob of negative infinity.
    pub fn choose(&mut self, logits_V: &[f32], history: &[u32], options: &SamplingOptions, draw: f64) -> Chosen {
        self.penalise(logits_V, history, options.repetition_penalty);
        let Some(best) = self.collect() else {
            return Chosen { id: 0, logprob: f32::NEG_INFINITY };
        };
        let mut id = best.id;
        if options.temperature > 0.0 {
            for candidate in &mut self.candidates {
                // Subtracting first keeps small temperatures from overflowing.
                candidate.weight = ((candidate.score - best.score) / options.temperature).exp();
            }
            self.filter(options);
            id = self.draw(draw).unwrap_or(best.id);
        }
        Chosen { id, logprob: log_probability(logits_V, id) }
    }

    fn penalise(&mut self, logits_V: &[f32], history: &[u32], penalty: f32) {
        self.scores_V.clear();
        self.scores_V.extend(logits_V.iter().copied().map(bounded));
        if penalty == 1.0 {
            return;
        }
        for &id in history {
            // From the original logit: a token that occurred twice is penalised once.
            if let (Some(score), Some(&logit)) = (self.scores_V.get_mut(id as usize), logits_V.get(id as usize)) {
                *score = bounded(if logit > 0.0 { logit / penalty } else { logit * penalty });
            }
        }
    }

    /// Makes every id that may be chosen a candidate, in the order of ids, and returns the best.
    fn collect(&mut self) -> Option<Candidate> {
        self.candidates.clear();
        let mut best: Option<Candidate> = None;
        for (id, &score) in (0..).zip(&self.scores_V) {
            if score > f32::NEG_INFINITY {
                let candidate = Candidate { id, score, weight: 1.0 };
                self.candidates.push(candidate);
                if best.is_none_or(|best| score > best.score) {
                    best = Some(candidate);
                }
            }
        }
        best
    }

    /// Each filter keeps the first few candidates in the order of score, then id. Those kept are put back in the order
    /// of ids, so that a filter that removes nothing changes nothing.
    fn filter(&mut self, options: &SamplingOptions) {
        if options.top_k > 0 && options.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(options.top_k - 1, best_first);
            self.candidates.truncate(options.top_k);
        }
        if options.top_p < 1.0 {
            self.keep_top_p(f64::from(options.top_p));
        }
        if options.min_p > 0.0 {
            // Weights are relative to the best candidate, whose weight is 1.
            self.candidates.retain(|candidate| candidate.weight >= options.min_p);
        }
        if options.top_k > 0 || options.top_p < 1.0 {
            self.candidates.sort_unstable_by_key(|candidate| candidate.id);
        }
    }

    fn keep_top_p(&mut self, top_p: f64) {
        let total = self.total_weight();
        // Candidates below the mean of what may go hold less than that together: there is no need to sort them.
        let least = (1.0 - top_p) * total / self.candidates.len() as f64;
        self.candidates.retain(|candidate| f64::from(candidate.weight) >= least);
        self.candidates.sort_unstable_by(best_first);
        let mut mass = 0.0;
        let kept = self.candidates.iter().take_while(|candidate| {
            let is_short = mass < top_p * total;
            mass += f64::from(candidate.weight);
            is_short
        });
        let kept = kept.count();
        self.candidates.truncate(kept);
    }

    fn total_weight(&self) -> f64 {
        self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
    }

    /// The candidate on which `draw` falls when [0, 1) is divided in proportion to the weights.
    fn draw(&self, draw: f64) -> Option<u32> {
        let target = draw * self.total_weight();
        let mut mass = 0.0;
        let mut chosen = None;
        for candidate in self.candidates.iter().filter(|candidate| candidate.weight > 0.0) {
            mass += f64::from(candidate.weight);
            chosen = Some(candidate.id);
            if mass > target {
                break;
            }
        }
        chosen
    }
}

fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    // No score is NaN, and 0.0 ties with -0.0, which `total_cmp` would tell apart.
    b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// The logit with NaN as negative infinity and positive infinity as the largest number.
fn bounded(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// Log-softmax of the logits at `id`, in nats.
pub(super) fn log_probability(logits_V: &[f32], id: u32) -> f32 {
    let best = logits_V.iter().copied().map(bounded).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits_V.iter().map(|&logit| f64::from((bounded(logit) - best).exp())).sum();
    (f64::from(bounded(logits_V[id as usize])) - f64::from(best) - sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: SamplingOptions =
        SamplingOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 };

    /// Logits whose softmax is these probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    /// How often each id is chosen over 1,000 evenly spaced draws, in thousandths.
    fn shares(logits_V: &[f32], history: &[u32], options: &SamplingOptions) -> Vec<usize> {
        let mut chooser = Chooser::default();
        let mut counts = vec![0; logits_V.len()];
        for i in 0..1000 {
            counts[chooser.choose(logits_V, history, options, (i as f64 + 0.5) / 1000.0).id as usize] += 1;
        }
        counts
    }

    #[test]
    fn shares_follow_the_softmax_at_temperature_one() {
        assert_eq!(shares(&logits(&[0.1, 0.2, 0.3, 0.4]), &[], &PLAIN), [100, 200, 300, 400]);
    }

    #[test]
    fn temperature_raises_probabilities_to_its_inverse() {
        // Squares 1 : 4 : 9 : 16; square roots 1 : 2 of 1 : 4.
        let sharp = SamplingOptions { temperature: 0.5, ..PLAIN };
        assert_eq!(shares(&logits(&[0.1, 0.2, 0.3, 0.4]), &[], &sharp), [33, 134, 300, 533]);
        let flat = SamplingOptions { temperature: 2.0, ..PLAIN };
        assert_eq!(shares(&logits(&[0.2, 0.8]), &[], &flat), [333, 667]);
    }

    #[test]
    fn top_k_keeps_k_tokens_and_of_equal_ones_the_lowest_ids() {
        let options = SamplingOptions { top_k: 2, ..PLAIN };
        assert_eq!(shares(&logits(&[0.1, 0.2, 0.3, 0.4]), &[], &options), [0, 0, 429, 571]);
        assert_eq!(shares(&[0.0; 4], &[], &options), [500, 500, 0, 0]);
    }

    #[test]
    fn top_p_keeps_the_fewest_best_tokens_that_reach_it() {
        let logits_V = logits(&[0.1, 0.2, 0.3, 0.4]);
        let share = |top_p| shares(&logits_V, &[], &SamplingOptions { top_p, ..PLAIN });
        assert_eq!(share(0.6), [0, 0, 429, 571]);
        assert_eq!(share(0.75), [0, 222, 334, 444]);
        assert_eq!(share(1e-6), [0, 0, 0, 1000], "at least one is kept");
    }

    #[test]
    fn top_p_measures_what_top_k_left() {
        // Of 0.3 and 0.4 the better one holds 0.571.
        let logits_V = logits(&[0.1, 0.2, 0.3, 0.4]);
        let options = SamplingOptions { top_k: 2, top_p: 0.57, ..PLAIN };
        assert_eq!(shares(&logits_V, &[], &options), [0, 0, 0, 1000]);
    }

    #[test]
    fn min_p_is_relative_to_the_best_token() {
        let logits_V = logits(&[0.1, 0.2, 0.3, 0.4]);
        let options = SamplingOptions { min_p: 0.51, ..PLAIN };
        assert_eq!(shares(&logits_V, &[], &options), [0, 0, 429, 571]);
        assert_eq!(shares(&logits_V, &[], &SamplingOptions { min_p: 1.0, ..PLAIN }), [0, 0, 0, 1000]);
    }

    #[test]
    fn repetition_penalty_divides_positive_and_multiplies_negative_logits_once() {
        let options = SamplingOptions { repetition_penalty: 2.0, ..PLAIN };
        let mut chooser = Chooser::default();
        chooser.choose(&[3.0, -1.0, 0.5], &[0, 1, 1, 0, 99], &options, 0.0);
        assert_eq!(chooser.scores_V, [1.5, -2.0, 0.5]);
        let greedy = SamplingOptions { temperature: 0.0, ..options };
        assert_eq!(chooser.choose(&[3.0, 2.0], &[0], &greedy, 0.0).id, 1);
    }

    #[test]
    fn temperature_zero_takes_the_best_token_and_the_lowest_id_of_equals() {
        let greedy = SamplingOptions { temperature: 0.0, ..PLAIN };
        assert_eq!(Chooser::default().choose(&[1.0, 5.0, 5.0, 2.0], &[], &greedy, 0.99).id, 1);
    }

    #[test]
    fn logprob_is_the_models_own_whatever_the_filters_say() {
        let options = SamplingOptions { temperature: 0.3, top_k: 1, repetition_penalty: 3.0, ..PLAIN };
        let chosen = Chooser::default().choose(&logits(&[0.25, 0.75]), &[1], &options, 0.5);
        assert_eq!(chosen.id, 1);
        assert!((chosen.logprob - 0.75f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_a_number_is_never_chosen_and_infinity_is_the_largest() {
        let choose = |logits_V: &[f32]| Chooser::default().choose(logits_V, &[], &PLAIN, 0.0);
        assert_eq!(choose(&[f32::NAN, f32::NEG_INFINITY, -4.0]), Chosen { id: 2, logprob: 0.0 });
        assert_eq!(choose(&[0.0, f32::INFINITY, f32::NAN]), Chosen { id: 1, logprob: 0.0 });
        for hopeless in [&[][..], &[f32::NAN], &[f32::NEG_INFINITY; 3]] {
            assert_eq!(choose(hopeless), Chosen { id: 0, logprob: f32::NEG_INFINITY });
        }
    }

    #[test]
    fn values_out_of_range_are_refused_by_the_name_of_their_flag() {
        SamplingOptions::default().validate().unwrap();
        for (options, flag) in [
            (SamplingOptions { temperature: -1.0, ..PLAIN }, "--temperature -1"),
            (SamplingOptions { temperature: f32::NAN, ..PLAIN }, "--temperature NaN"),
            (SamplingOptions { top_p: 0.0, ..PLAIN }, "--top-p 0"),
            (SamplingOptions { top_p: 1.5, ..PLAIN }, "--top-p 1.5"),
            (SamplingOptions { min_p: -0.1, ..PLAIN }, "--min-p -0.1"),
            (SamplingOptions { repetition_penalty: 0.0, ..PLAIN }, "--repetition-penalty 0"),
        ] {
            let error = options.validate().unwrap_err();
            assert!(error.to_string().starts_with(flag), "{error}");
            assert_eq!(crate::error::exit_code(&error), 2);
        }
    }

    /// Whether `id` passes the filters, by their definitions: in probabilities, and against every other token.
    fn passes(logits_V: &[f32], id: usize, options: &SamplingOptions) -> bool {
        let best = logits_V.iter().copied().fold(f32::MIN, f32::max);
        let weight = |i: usize| f64::from((logits_V[i] - best) / options.temperature).exp();
        let is_better = |i: &usize| logits_V[*i] > logits_V[id] || (logits_V[*i] == logits_V[id] && *i < id);
        let better: Vec<usize> = (0..logits_V.len()).filter(is_better).collect();
        let mut weights: Vec<f64> = (0..logits_V.len()).map(weight).collect();
        weights.sort_by(|a, b| b.total_cmp(a));
        weights.truncate(if options.top_k == 0 { usize::MAX } else { options.top_k });
        let mass_before: f64 = better.iter().map(|&i| weight(i)).sum();
        (options.top_k == 0 || better.len() < options.top_k)
            && mass_before < f64::from(options.top_p) * weights.iter().sum::<f64>() * (1.0 + 1e-5)
            && weight(id) >= f64::from(options.min_p) * (1.0 - 1e-5)
    }

    prop_compose! {
        fn options()(temperature in 0.05..4f32, top_k in 0..12usize, top_p in 0.01..=1f32, min_p in 0..=1u8, scale in 0.0..1f32)
            -> SamplingOptions {
            SamplingOptions { temperature, top_k, top_p, min_p: f32::from(min_p) * scale, ..PLAIN }
        }
    }

    proptest! {
        #[test]
        fn the_chosen_token_passes_every_filter(
            logits_V in proptest::collection::vec((-40i8..40).prop_map(|x| f32::from(x) / 8.0), 1..20),
            options in options(),
            draw in 0.0..1f64,
        ) {
            let chosen = Chooser::default().choose(&logits_V, &[], &options, draw);
            prop_assert!(passes(&logits_V, chosen.id as usize, &options), "{chosen:?}");
        }

        #[test]
        fn a_filter_that_removes_nothing_changes_nothing(
            logits_V in proptest::collection::vec(-5f32..5.0, 1..20),
            draw in 0.0..1f64,
        ) {
            let all = SamplingOptions { top_k: logits_V.len(), ..PLAIN };
            let mut chooser = Chooser::default();
            prop_assert_eq!(chooser.choose(&logits_V, &[], &PLAIN, draw), chooser.choose(&logits_V, &[], &all, draw));
        }

        #[test]
        fn any_floats_choose_an_id_of_the_vocabulary_with_a_possible_logit(
            logits_V in proptest::collection::vec(proptest::num::f32::ANY, 1..20),
            history in proptest::collection::vec(0..30u32, 0..5),
            options in options(),
            penalty in 0.1..10f32,
            draw in 0.0..1f64,
        ) {
            let options = SamplingOptions { repetition_penalty: penalty, ..options };
            let chosen = Chooser::default().choose(&logits_V, &history, &options, draw);
            prop_assert!((chosen.id as usize) < logits_V.len());
            let logit = logits_V[chosen.id as usize];
            let hopeless = Chosen { id: 0, logprob: f32::NEG_INFINITY };
            prop_assert!(logit > f32::NEG_INFINITY || chosen == hopeless);
            prop_assert!(!chosen.logprob.is_nan() && chosen.logprob <= 0.0);
        }
    }
}
