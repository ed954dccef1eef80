//! What the routers decided, and what can be read from it: a record of every token ([`log`]), and a report on a whole text
//! (`report`) for the terminal ([`render`]), as JSON, and as a page to look at ([`page()`]).
//!
//! One pass keeps a [`Trace`] of every choice; each measure is a function of it, in a file of its own that names its
//! formula and its source. docs/routing.md puts them side by side.

mod classes;
mod coactivation;
mod compare;
mod domains;
mod excerpt;
mod facts;
mod gate;
mod history;
mod importance;
mod information;
mod load;
pub mod log;
mod memory;
mod page;
mod palette;
mod repetition;
mod report;
mod saturation;
mod side_by_side;
mod summary;
mod trace;
mod transitions;
mod vocabulary;

pub use compare::{Comparison, ModelFacts, Side, match_layers};
pub use domains::blocks;
pub use excerpt::{domains_of, excerpt_positions};
pub use history::history;
pub use importance::{Knockouts, knock_out, knockout_passes};
pub use load::load;
pub use page::{is_page, page};
pub use palette::{expert_colour, legend, paint};
pub use report::{Context, Report, RunFacts, Traced};
pub use saturation::{CheckpointSaturation, Saturation, overlap};
pub use side_by_side::render_comparison;
pub use summary::{Style, render};
pub use trace::Trace;

pub use crate::model::router::Routing;
