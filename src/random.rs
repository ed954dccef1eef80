//! Counter-based random numbers: every number is a pure function of (seed, purpose, coordinates, index), so nothing
//! has to be saved to resume a run and nothing depends on the order of iteration.
//!
//! The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
//! generators"), applied once to absorb each coordinate and once for each index.

/// One stream of random numbers, addressed by index.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: u64,
}

impl Stream {
    /// The stream of `seed` for one purpose (a fixed name such as `"dropout"`) at the given coordinates
    /// (step, layer, ...).
    pub fn new(seed: u64, purpose: &str, coordinates: &[u64]) -> Self {
        let mut key = mix(seed ^ 0x9e37_79b9_7f4a_7c15);
        for byte in purpose.bytes() {
            key = mix(key ^ u64::from(byte));
        }
        for &coordinate in coordinates {
            key = mix(key.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(coordinate));
        }
        Self { key }
    }

    /// 64 uniform random bits.
    #[inline(always)]
    pub fn bits(self, index: u64) -> u64 {
        mix(self.key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Uniform in [0, 1) with 53 random bits.
    pub fn uniform(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box-Muller on two uniforms of this index).
    pub fn normal(self, index: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(2 * index)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(2 * index + 1)).cos()
    }

    /// Where `index` goes in a random permutation of `0..count`: a four-round Feistel network over the next even
    /// power of two, walked until it lands inside the range (Black and Rogaway 2002, "cycle walking").
    pub fn permuted(self, index: u64, count: u64) -> u64 {
        debug_assert!(index < count);
        let half_bits = (64 - (count - 1).leading_zeros()).div_ceil(2).max(1);
        let mask = (1u64 << half_bits) - 1;
        let mut position = index;
        loop {
            let (mut left, mut right) = (position >> half_bits, position & mask);
            for round in 0..4 {
                let scrambled = self.bits(round << 40 | right) & mask;
                (left, right) = (right, left ^ scrambled);
            }
            position = left << half_bits | right;
            if position < count {
                return position;
            }
        }
    }
}

/// The finaliser of SplitMix64, a bijection: every bit of the result depends on every bit of `z`.
#[inline(always)]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permuted_visits_every_index_once() {
        for count in [1, 2, 3, 7, 64, 65, 1000] {
            let stream = Stream::new(3, "test", &[count]);
            let mut seen = vec![false; count as usize];
            for index in 0..count {
                let position = stream.permuted(index, count) as usize;
                assert!(!std::mem::replace(&mut seen[position], true), "{position} twice of {count}");
            }
        }
    }

    #[test]
    fn streams_of_different_purpose_seed_or_coordinate_differ() {
        let base = Stream::new(1, "a", &[0]).bits(0);
        for other in [Stream::new(2, "a", &[0]), Stream::new(1, "b", &[0]), Stream::new(1, "a", &[1])] {
            assert_ne!(base, other.bits(0));
        }
    }

    #[test]
    fn normal_numbers_have_unit_moments() {
        let stream = Stream::new(7, "test", &[]);
        let draws: Vec<f64> = (0..100_000).map(|index| stream.normal(index)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
