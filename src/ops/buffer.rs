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

/// Vectors that nobody uses.
#[derive(Default)]
struct Free {
    by_len: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Numbers in all of them.
    total: usize,
}

static FREE: Mutex<Free> = Mutex::new(Free { by_len: BTreeMap::new(), total: 0 });

/// Free numbers kept at most; beyond that, memory goes back to the system.
const FREE_LIMIT: usize = 1 << 30;

/// Numbers from which on a buffer should have large pages: 4 MB.
const LARGE: usize = 1 << 20;

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

/// Asks the system for large pages under numbers that will be read and written over and over: fewer of them have to be
/// looked up. A hint; where it is not taken, nothing changes.
pub fn prefer_large_pages(numbers: &[f32]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let start = (numbers.as_ptr() as usize).next_multiple_of(PAGE);
        let end = numbers.as_ptr_range().end as usize / PAGE * PAGE;
        if start < end {
            // SAFETY: whole pages between the slice's first and last byte are asked about, and this advice changes
            // neither what they hold nor who may use them.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
}

impl Buffer {
    /// `len` numbers of any value: the caller overwrites them all.
    pub fn any(len: usize) -> Self {
        let class = size_class(len);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let recycled = free.by_len.get_mut(&class).and_then(Vec::pop);
        free.total -= recycled.as_ref().map_or(0, Vec::len);
        drop(free);
        let vector = recycled.unwrap_or_else(|| {
            let vector = vec![0.0; class];
            if class >= LARGE {
                prefer_large_pages(&vector);
            }
            vector
        });
        Self { vector, len }
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
        if free.total + vector.len() > FREE_LIMIT {
            *free = Free::default();
        }
        free.total += vector.len();
        free.by_len.entry(vector.len()).or_default().push(vector);
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
