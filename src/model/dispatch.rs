//! Sorting tokens by expert, so that each expert multiplies its tokens in one go, without padding (Gale et al. 2022,
//! "MegaBlocks").

use super::router::Routing;
use crate::ops::buffer::Buffer;
use crate::ops::{pool, rows_per_task, simd};
use std::ops::Range;

/// (token, expert) pairs sorted by expert; dropped pairs are left out.
pub struct Dispatch {
    /// Rows of each expert among the sorted pairs.
    pub rows_E: Vec<Range<usize>>,
    /// Token and gate of each sorted pair.
    pub tokens_S: Vec<u32>,
    pub gates_S: Vec<f32>,
    /// Where the pair (token, k) went; `None` if it was dropped.
    pub places_NK: Vec<Option<u32>>,
}

impl Dispatch {
    pub fn new(routing: &Routing, experts_per_token: usize) -> Self {
        let kept = |&(_, (_, &gate)): &(usize, (&u32, &f32))| gate != 0.0 || routing.dropped == 0;
        let pairs = || routing.experts_NK.iter().zip(&routing.gates_NK).enumerate().filter(kept);
        let mut ends = vec![0; routing.num_experts];
        pairs().for_each(|(_, (&expert, _))| ends[expert as usize] += 1);
        let mut rows_E = Vec::with_capacity(ends.len());
        let mut total = 0;
        for end in &mut ends {
            rows_E.push(total..total + *end);
            total += *end;
            *end = total - *end;
        }
        let mut next_E = ends;
        let (mut tokens_S, mut gates_S) = (vec![0; total], vec![0.0; total]);
        let mut places_NK = vec![None; routing.experts_NK.len()];
        for (pair, (&expert, &gate)) in pairs() {
            let place = next_E[expert as usize];
            next_E[expert as usize] += 1;
            tokens_S[place] = (pair / experts_per_token) as u32;
            gates_S[place] = gate;
            places_NK[pair] = Some(place as u32);
        }
        Self { rows_E, tokens_S, gates_S, places_NK }
    }

    /// Copies each pair's row of `x_ND`.
    pub fn gather(&self, x_ND: &[f32], hidden: usize) -> Buffer {
        let mut x_SD = Buffer::any(self.tokens_S.len() * hidden);
        let chunk = rows_per_task(self.tokens_S.len());
        let tasks = x_SD.chunks_mut(chunk * hidden).zip(self.tokens_S.chunks(chunk)).collect();
        pool::run(tasks, |(rows, tokens): (&mut [f32], &[u32])| {
            for (row_D, &token) in rows.chunks_exact_mut(hidden).zip(tokens) {
                row_D.copy_from_slice(&x_ND[token as usize * hidden..][..hidden]);
            }
        });
        x_SD
    }

    /// The Euclidean length of each pair's row of `y_SD`; 0 for a dropped pair.
    pub fn norms(&self, y_SD: &[f32], hidden: usize) -> Vec<f32> {
        let mut norms_S = vec![0.0; self.tokens_S.len()];
        simd::vectorized!(|| {
            for (norm, y_D) in norms_S.iter_mut().zip(y_SD.chunks_exact(hidden)) {
                *norm = simd::dot(y_D, y_D).sqrt();
            }
        });
        self.places_NK.iter().map(|place| place.map_or(0.0, |place| norms_S[place as usize])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_sorted_by_expert_and_dropped_ones_left_out() {
        // Three tokens choose two of three experts; the last pair was dropped, and expert 1 is idle.
        let routing = Routing {
            num_experts: 3,
            experts_NK: vec![2, 0, 0, 2, 2, 0],
            gates_NK: vec![0.9, 0.1, 0.8, 0.2, 0.7, 0.0],
            dropped: 1,
            ..Routing::default()
        };
        let dispatch = Dispatch::new(&routing, 2);
        assert_eq!(dispatch.rows_E, [0..2, 2..2, 2..5]);
        assert_eq!(dispatch.tokens_S, [0, 1, 0, 1, 2]);
        assert_eq!(dispatch.gates_S, [0.1, 0.8, 0.9, 0.2, 0.7]);
        assert_eq!(dispatch.places_NK, [Some(2), Some(0), Some(1), Some(3), Some(4), None]);
        assert_eq!(dispatch.gather(&[10.0, 11.0, 12.0], 1)[..], [10.0, 11.0, 10.0, 11.0, 12.0]);
        let y_SD = [3.0, 4.0, 1.0, 0.0, 0.0, 2.0, 6.0, 8.0, 5.0, 12.0];
        assert_eq!(dispatch.norms(&y_SD, 2), [2.0, 5.0, 1.0, 10.0, 13.0, 0.0]);
    }
}
