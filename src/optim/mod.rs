//! What turns gradients into better weights: [`adamw`], its learning-rate [`schedule`], and clipping by global norm.

pub mod adamw;
pub mod schedule;
