//! What the routers decided: a record of every token ([`log`]), counts over a whole text ([`Statistics`]), and their
//! rendering for the terminal ([`render`], [`paint`]).

pub mod log;
mod palette;
mod statistics;
mod summary;

pub use palette::{expert_colour, legend, paint};
pub use statistics::{DomainTokens, LayerSummary, Statistics, Summary, TokenLift};
pub use summary::{Style, render};

/// The decisions of one MoE layer for N tokens: what training, logging and inspection all read.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// E.
    pub num_experts: usize,
    /// Chosen experts, best first.
    pub experts_NK: Vec<u32>,
    /// Their weights as applied (0 for a dropped pair).
    pub gates_NK: Vec<f32>,
    /// Full probabilities before the choice; each row sums to 1.
    pub probs_NE: Vec<f32>,
    /// 1.0 at perfect balance.
    pub balance_loss: f32,
    pub z_loss: f32,
    /// Pairs dropped for capacity.
    pub dropped: usize,
}
