#![no_main]

// Each target uses one function of it.
#[allow(dead_code)]
#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::gguf::compare(bytes);
});
