//! Once it is warm, decoding takes no memory from the allocator, or none that grows with the number of tokens. In a file of its own, because it counts for the whole
//! process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use tinymoe::config::Config;
use tinymoe::model::decode::{Decoder, Logits};
use tinymoe::model::transformer::Transformer;
use tinymoe::ops::pool;

/// The system's allocator with a count of what it is asked for.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations in `steps` steps of a warm decoder.
fn allocations(decoder: &mut Decoder, ids: &[u32], steps: usize) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..steps.div_ceil(40) {
        decoder.clear();
        (0..40).for_each(|_| _ = decoder.advance(ids, Logits::Last).unwrap());
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// On one thread not a single one. Threads that want buffers of one kind at once need one each, and when that happens
/// first is up to the system; but there are never more than a few for each thread, however many tokens are decoded.
#[test]
fn a_decoded_token_allocates_nothing() {
    let mut config = Config::default();
    config.model.max_position_embeddings = 64;
    config.model.n_shared_experts = 1;
    config.model.memory_layers = vec![0, 2];
    config.model.resolve();
    let model = Transformer::new(&config.model, &config.router, 300, 1).unwrap();
    for threads in [1, 4] {
        pool::set_threads(threads);
        for sequences in [1, 3] {
            let mut decoder = Decoder::new(&model).repeat(sequences);
            // The first steps fill the lists of buffers, of which longer contexts need larger ones.
            let ids = vec![7; sequences];
            (0..48).for_each(|_| _ = decoder.advance(&ids, Logits::Last).unwrap());
            let (taken, limit) = (allocations(&mut decoder, &ids, 2000), 20 * (threads - 1));
            assert!(taken <= limit, "{taken} allocations on {threads} threads in 2,000 steps of {sequences} sequences");
        }
    }
}
