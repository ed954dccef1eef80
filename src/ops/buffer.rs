//! Recycled memory. A training step needs the same buffers as the one before; taking them from a list instead of the
//! operating system saves clearing their pages every time.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Numbers that go back to the list of free buffers when they are dropped.
#[derive(Debug, Default)]
pub struct Buffer {
    /// As long as its size class.
    vector: Vec<f32>,
    len: usize,
}

/// Free vectors by length.
static FREE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

/// Free numbers kept at most; beyond that, memory goes back to the system.
const FREE_LIMIT: usize = 1 << 30;

/// Lets the C library keep freed memory instead of giving it back page by page, for the tensors that candle allocates
/// itself. To be called first thing in the program; where the library is not glibc, nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers and has no other preconditions.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 25);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

impl Buffer {
    /// `len` numbers of any value: the caller overwrites them all.
    pub fn any(len: usize) -> Self {
        let class = size_class(len);
        let recycled = FREE.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&class).and_then(Vec::pop);
        Self { vector: recycled.unwrap_or_else(|| vec![0.0; class]), len }
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::any(len);
        buffer.fill(0.0);
        buffer
    }
}

/// The length to allocate for `len` numbers: experts have other numbers of tokens in every step, and their buffers
/// should be found again all the same. At most a quarter is wasted.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 8).max(1);
    len.next_multiple_of(step)
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let vector = std::mem::take(&mut self.vector);
        if vector.is_empty() {
            return;
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = free.iter().map(|(len, vectors)| len * vectors.len()).sum();
        if kept + vector.len() <= FREE_LIMIT {
            free.entry(vector.len()).or_default().push(vector);
        } else {
            free.clear();
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.vector[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.vector[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_and_zeros_are_zero() {
        let mut first = Buffer::any(12_345);
        first.fill(7.0);
        let address = first.as_ptr();
        drop(first);
        let second = Buffer::zeros(12_345);
        assert_eq!(second.as_ptr(), address);
        assert!(second.len() == 12_345 && second.iter().all(|&x| x == 0.0));
    }

    #[test]
    fn size_classes_hold_what_they_are_for_without_much_waste() {
        for len in (0..5_000).chain([1 << 20, (1 << 20) + 1]) {
            let class = size_class(len);
            assert!(class >= len && class <= len + len / 4 + 1, "{len} in {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
