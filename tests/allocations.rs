//! Once it is warm, decoding takes no memory from the allocator. In a file of its own, because it counts for the whole
//! process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use tinymoe::config::Config;
use tinymoe::model::decode::{Decoder, Logits};
use tinymoe::model::transformer::Transformer;

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

#[test]
fn a_decoded_token_allocates_nothing() {
    let mut config = Config::default();
    config.model.max_position_embeddings = 64;
    config.model.n_shared_experts = 1;
    config.model.memory_layers = vec![0, 2];
    config.model.resolve();
    let model = Transformer::new(&config.model, &config.router, 300, 1).unwrap();
    for sequences in [1, 3] {
        let mut decoder = Decoder::new(&model).repeat(sequences);
        // The first steps fill the lists of buffers, of which longer contexts need larger ones.
        let ids = vec![7; sequences];
        (0..48).for_each(|_| _ = decoder.advance(&ids, Logits::Last).unwrap());
        decoder.clear();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..40).for_each(|_| _ = decoder.advance(&ids, Logits::Last).unwrap());
        // Two threads that want a buffer of one kind at once for the first time need a second one.
        let taken = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert!(taken <= 3, "{taken} allocations in 40 steps of {sequences} sequences");
    }
}
