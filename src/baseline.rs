//! The n-gram language model that every evaluation is compared with: what counting bytes alone would achieve.
//!
//! Interpolated Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1998, section 2.5): with c(h b) the count
//! of byte b after context h, c(h) that of the context, T(h) the number of different bytes seen after it, and h' the
//! context without its oldest byte,
//!
//! P(b | h) = (c(h b) + T(h) P(b | h')) / (c(h) + T(h)),   ending in the uniform 1/256.
//!
//! An order-n model has contexts of up to n - 1 bytes. Each text is followed by one 0 byte, which is predicted and
//! counted like any other; contexts do not reach across texts.
//!
//! Where a text has bytes that the training text does not lead to expect, every shorter context costs such a byte more,
//! far beyond the 8 bits that a byte costs anybody who knows nothing. So the n-gram is mixed with the uniform
//! distribution once more, at the end: (1 - w) P(b | h) + w / 256, which sums to 1 as P does. The order and the weight w
//! that suit the validation text best are taken; with w = 1 among them no text costs more than 8 bits per byte.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::RangeInclusive;

/// Orders that are tried.
const ORDERS: RangeInclusive<usize> = 2..=6;
/// Weights of the uniform distribution that are tried. None below 1/16, so that text of the kind that it was trained on
/// has the plain formula's bits: there smaller weights would only tune the smoothing.
const WEIGHTS: [f64; 6] = [0.0, 0.0625, 0.125, 0.25, 0.5, 1.0];

/// The best n-gram model's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    pub order: usize,
    /// Weight of the uniform distribution.
    pub uniform: f64,
    pub bits_per_byte: f64,
}

/// Trains all orders on the training texts and returns the one with the fewest bits per byte on the validation texts,
/// with the weight of the uniform distribution that gives the fewest.
///
/// # Errors
/// If there is no validation text.
pub fn ngram_baseline<S: AsRef<str>>(training: &[S], validation: &[S]) -> Result<Baseline> {
    ensure!(!validation.is_empty(), "there is no validation text to measure the n-gram baseline on");
    let mut counts = Counts::default();
    for text in training {
        counts.add(text.as_ref());
    }
    let mut bits = [[0.0f64; WEIGHTS.len()]; *ORDERS.end() + 1];
    let mut bytes = 0;
    for text in validation {
        for_each_byte(text.as_ref(), |history, byte| {
            bytes += 1;
            for (order, probability) in counts.probabilities(history, byte) {
                for (sum, weight) in bits[order].iter_mut().zip(WEIGHTS) {
                    *sum -= mixed(probability, weight).log2();
                }
            }
        });
    }
    let candidates = ORDERS.flat_map(|order| (0..WEIGHTS.len()).map(move |weight| (order, weight)));
    let of = |(order, weight): (usize, usize)| bits[order][weight];
    let best = candidates.min_by(|&a, &b| of(a).total_cmp(&of(b))).unwrap_or((*ORDERS.start(), 0));
    Ok(Baseline { order: best.0, uniform: WEIGHTS[best.1], bits_per_byte: of(best) / bytes as f64 })
}

/// A byte's probability after mixing in the uniform distribution. Exact at the ends: without it, and with it alone.
fn mixed(probability: f64, weight: f64) -> f64 {
    (1.0 - weight) * probability + weight / 256.0
}

/// Calls `visit` with each byte of a text, and at last its 0 byte, and with up to five bytes before it.
fn for_each_byte(text: &str, mut visit: impl FnMut(&[u8], u8)) {
    let bytes = text.as_bytes();
    for (position, &byte) in bytes.iter().chain(&[0]).enumerate() {
        visit(&bytes[position.saturating_sub(ORDERS.end() - 1)..position], byte);
    }
}

/// Counts of contexts and of their continuations. A sequence of up to seven bytes is packed into its key: the bytes,
/// behind them their number.
#[derive(Default)]
struct Counts {
    continuations: HashMap<u64, u32, BuildHasherDefault<KeyHasher>>,
    /// c(h) and T(h).
    contexts: HashMap<u64, (u32, u32), BuildHasherDefault<KeyHasher>>,
}

impl Counts {
    fn add(&mut self, text: &str) {
        for_each_byte(text, |history, byte| {
            for context in contexts(history) {
                let count = self.continuations.entry(extended(context, byte)).or_insert(0);
                let (total, distinct) = self.contexts.entry(context).or_insert((0, 0));
                *distinct += u32::from(*count == 0);
                *count += 1;
                *total += 1;
            }
        });
    }

    /// P(byte | history) for every order.
    fn probabilities(&self, history: &[u8], byte: u8) -> impl Iterator<Item = (usize, f64)> {
        let mut by_length = [0.0; *ORDERS.end()];
        let mut probability = 1.0 / 256.0;
        let mut contexts = contexts(history);
        for slot in &mut by_length {
            // A context that was never seen, or that the start of the text cuts short, keeps the shorter one's value.
            if let Some((context, &(total, distinct))) = contexts.next().and_then(|c| Some((c, self.contexts.get(&c)?)))
            {
                let count = self.continuations.get(&extended(context, byte)).map_or(0.0, |&count| f64::from(count));
                let distinct = f64::from(distinct);
                probability = (count + distinct * probability) / (f64::from(total) + distinct);
            }
            *slot = probability;
        }
        ORDERS.map(move |order| (order, by_length[order - 1]))
    }
}

/// The keys of a history's last 0, 1, 2, ... bytes.
fn contexts(history: &[u8]) -> impl Iterator<Item = u64> {
    (0..=history.len()).map(|length| {
        let bytes = &history[history.len() - length..];
        (bytes.iter().fold(0, |key, &byte| (key << 8) | u64::from(byte)) << 8) | length as u64
    })
}

/// The key of a context with one more byte.
fn extended(context: u64, byte: u8) -> u64 {
    ((context & !0xff) << 8) | (u64::from(byte) << 8) | ((context & 0xff) + 1)
}

/// Keys are unique already; this spreads them.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, key: u64) {
        let mixed = (self.0 ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_follow_the_formula_by_hand() {
        let mut counts = Counts::default();
        counts.add("aba");
        // Seen: a, b, a, end. Empty context: c = 4, T = 3.
        let uniform = 1.0 / 256.0;
        let after_nothing = (2.0 + 3.0 * uniform) / 7.0;
        // After "b": a once. After "a": b once, end once.
        let a_after_b = (1.0 + 1.0 * after_nothing) / 2.0;
        let probabilities: Vec<_> = counts.probabilities(b"b", b'a').collect();
        assert!((probabilities[0].1 - a_after_b).abs() < 1e-12, "order 2");
        assert!((probabilities[4].1 - a_after_b).abs() < 1e-12, "order 6 has no longer context to go by");
        let a_after_ab = (1.0 + 1.0 * a_after_b) / 2.0;
        assert!((counts.probabilities(b"ab", b'a').nth(1).unwrap().1 - a_after_ab).abs() < 1e-12, "order 3");
    }

    #[test]
    fn probabilities_sum_to_one_after_any_history() {
        let mut counts = Counts::default();
        counts.add("the cat sat on the mat");
        for history in [&b""[..], b"the ", b"xyz", b"at on"] {
            for weight in WEIGHTS {
                let mut sums = [0.0; 7];
                for byte in 0..=255 {
                    let probabilities = counts.probabilities(history, byte);
                    probabilities.for_each(|(order, probability)| sums[order] += mixed(probability, weight));
                }
                assert!(ORDERS.into_iter().all(|order| (sums[order] - 1.0).abs() < 1e-9), "{history:?}: {sums:?}");
            }
        }
    }

    #[test]
    fn no_text_costs_more_than_eight_bits_per_byte() {
        let english = "the cat sat on the mat and it said no\n".repeat(50);
        let stream = crate::random::Stream::new(1, "noise", &[]);
        let noise: String = (0..4000).map(|n| char::from((stream.uniform(n) * 128.0) as u8)).collect();
        // Letters that training never saw: by the formula alone 17 bits per byte and more.
        let foreign = "ψωφ χξζ λμν ".repeat(40);
        for (training, validation) in [(&english, &foreign), (&english, &noise), (&noise, &foreign)] {
            let found = ngram_baseline(&[training], &[validation]).unwrap();
            assert!(found.bits_per_byte <= 8.0, "{found:?}");
        }
        assert!(ngram_baseline(&["a"], &["ψω"]).unwrap().uniform > 0.0);
        // Half of it foreign: the weight says so, and the other half is still predicted.
        let half = format!("{}{foreign}", &english[..foreign.len()]);
        let found = ngram_baseline(&[&english], &[&half]).unwrap();
        assert!((0.25..=0.5).contains(&found.uniform) && found.bits_per_byte < 6.5, "{found:?}");
        // Text of the kind that it was trained on needs none of it.
        assert!(ngram_baseline(&[english.as_str()], &[&english[..400]]).unwrap().uniform == 0.0);
    }

    #[test]
    fn repeated_text_is_learned_and_texts_shorter_than_the_order_are_fine() {
        let text = "abcabcabc".repeat(50);
        let baseline = ngram_baseline(&[text.as_str()], &["abcabcabcabc"]).unwrap();
        assert!(baseline.bits_per_byte < 1.0, "{baseline:?}");
        assert!(ngram_baseline(&["a"], &["b"]).unwrap().bits_per_byte > 4.0);
        assert!(ngram_baseline(&["a"], &[]).is_err());
    }
}
