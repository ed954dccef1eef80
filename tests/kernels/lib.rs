//! The kernels of tinymoe and what they use of it.

#![allow(non_snake_case)]

#[path = "../../src/error.rs"]
pub mod error;
#[path = "../../src/ops/mod.rs"]
pub mod ops;
#[path = "../../src/random.rs"]
pub mod random;
