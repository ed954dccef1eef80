//! Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face models: channel i of a head
//! turns with channel i + C/2 by the angle position * theta^(-2i/C). Where a part of the channels turns, they are the
//! first ones, and C stands for their number.

use std::sync::OnceLock;

/// Positions whose angles are computed at a time.
const BLOCK: usize = 256;

/// cos and sin of every position's angles, computed when a position of the block is first met: a context of a million
/// positions costs what of it is used.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    half: usize,
    theta: f64,
    /// Per position: C/2 cosines, then C/2 sines.
    blocks: Vec<OnceLock<Vec<f32>>>,
}

impl RotaryTable {
    /// The angles of positions `0..positions` for heads of which `width` channels (an even number) turn.
    pub fn new(positions: usize, width: usize, theta: f64) -> Self {
        Self { half: width / 2, theta, blocks: vec![OnceLock::new(); positions.div_ceil(BLOCK)] }
    }

    /// How many channels turn.
    pub fn width(&self) -> usize {
        2 * self.half
    }

    #[inline(always)]
    fn angles(&self, position: usize) -> (&[f32], &[f32]) {
        let block = self.blocks[position / BLOCK].get_or_init(|| self.block(position / BLOCK));
        block[position % BLOCK * 2 * self.half..][..2 * self.half].split_at(self.half)
    }

    #[cold]
    fn block(&self, block: usize) -> Vec<f32> {
        let turn = |i: usize| self.theta.powf(-2.0 * i as f64 / self.width() as f64);
        let turns: Vec<f64> = (0..self.half).map(turn).collect();
        let mut cos_sin = Vec::with_capacity(BLOCK * self.width());
        for position in block * BLOCK..(block + 1) * BLOCK {
            cos_sin.extend(turns.iter().map(|turn| (position as f64 * turn).cos() as f32));
            cos_sin.extend(turns.iter().map(|turn| (position as f64 * turn).sin() as f32));
        }
        cos_sin
    }

    /// Turns one head's channels to `position`.
    #[inline(always)]
    pub fn rotate(&self, head_C: &mut [f32], position: usize) {
        let (cos, sin) = self.angles(position);
        let (first, second) = head_C.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }

    /// Turns one head's channels back: the inverse of [`Self::rotate`] and, as rotations go, its backward pass.
    #[inline(always)]
    pub fn rotate_back(&self, head_C: &mut [f32], position: usize) {
        let (cos, sin) = self.angles(position);
        let (first, second) = head_C.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] + b * sin[i];
            second[i] = b * cos[i] - a * sin[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd;

    #[test]
    fn a_long_context_costs_what_is_used_of_it() {
        let long = RotaryTable::new(1 << 20, 1 << 8, 10_000.0);
        assert!(long.blocks.iter().all(|block| block.get().is_none()));
        let mut head = vec![1.0; 1 << 8];
        long.rotate(&mut head, 3 * BLOCK + 1);
        assert_eq!(long.blocks.iter().filter(|block| block.get().is_some()).count(), 1);
        let angle = (3 * BLOCK + 1) as f64;
        assert_eq!(head[0], angle.cos() as f32 - angle.sin() as f32);
    }

    #[test]
    fn turning_back_undoes_a_turn_and_scores_depend_on_distance_alone() {
        let table = RotaryTable::new(32, 8, 10_000.0);
        let (q, k) = ([1.0, 2.0, -1.0, 0.5, 0.3, -0.7, 0.9, 1.1], [0.2, -1.0, 0.4, 0.8, 1.5, 0.1, -0.6, 0.7]);
        let turned = |head: [f32; 8], position| {
            let mut head = head;
            table.rotate(&mut head, position);
            head
        };
        let mut back = turned(q, 17);
        table.rotate_back(&mut back, 17);
        assert!(back.iter().zip(q).all(|(a, b)| (a - b).abs() < 1e-6));
        let score = |i, j| simd::dot(&turned(q, i), &turned(k, j));
        assert!((score(9, 4) - score(30, 25)).abs() < 1e-5);
    }
}
