//! What the routers decided: a record of every token ([`log`]), counts over a whole text ([`Statistics`]), and their
//! rendering for the terminal ([`render`], [`paint`]).

pub mod log;
mod palette;
mod statistics;
mod summary;

pub use palette::{expert_colour, legend, paint};
pub use statistics::{DomainTokens, LayerSummary, Statistics, Summary, TokenLift};
pub use summary::{Style, render};

pub use crate::model::router::Routing;
