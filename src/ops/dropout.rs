//! Dropout whose mask is a pure function of the stream and the element's position: the backward pass draws it again
//! instead of storing it.

use super::buffer::Buffer;
use super::{pool, simd};
use crate::random::Stream;

/// Which elements are dropped, and with what probability. Probability 0 leaves everything as it is.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    probability: f64,
    stream: Stream,
}

impl Dropout {
    pub fn new(probability: f64, stream: Stream) -> Self {
        Self { probability, stream }
    }

    /// Multiplies the elements, of which the first has position `start`, by 0 or 1 / (1 - probability).
    pub fn apply(&self, elements: &mut [f32], start: usize) {
        if self.probability == 0.0 {
            return;
        }
        let scale = (1.0 / (1.0 - self.probability)) as f32;
        let threshold = (self.probability * (1u64 << 32) as f64) as u32;
        // One draw of 64 bits serves two neighbours. Each makes it for itself: vectors do that faster than share it.
        simd::vectorized!(|| {
            for (offset, element) in elements.iter_mut().enumerate() {
                let position = (start + offset) as u64;
                let half = (self.stream.bits(position / 2) >> (32 * (position % 2))) as u32;
                *element = if half < threshold { 0.0 } else { *element * scale };
            }
        });
    }

    /// A copy with [`Self::apply`] done to it: the backward pass for a gradient.
    pub fn copy(&self, elements: &[f32]) -> Buffer {
        const CHUNK: usize = 1 << 14;
        let mut copy = Buffer::any(elements.len());
        let tasks = copy.chunks_mut(CHUNK).zip(elements.chunks(CHUNK)).enumerate().collect();
        pool::run(tasks, |(task, (copy, elements)): (usize, (&mut [f32], &[f32]))| {
            copy.copy_from_slice(elements);
            self.apply(copy, task * CHUNK);
        });
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_depends_on_position_alone_and_keeps_the_mean() {
        let dropout = Dropout::new(0.25, Stream::new(1, "dropout", &[2]));
        let mut whole = vec![1.0; 40_000];
        dropout.apply(&mut whole, 0);
        let mut part = vec![1.0; 1_001];
        dropout.apply(&mut part, 777);
        assert_eq!(part, whole[777..1_778]);
        let mean = whole.iter().sum::<f32>() / 40_000.0;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }
}
