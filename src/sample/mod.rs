//! From logits to text: the choice of the next token (`choose`) and the bytes of tokens as whole characters
//! (`stream`);
//! [`generate`] joins them to the model.

mod choose;
pub mod generate;
mod stream;

pub use choose::{Chooser, Chosen, SamplingOptions};
pub use stream::Utf8Stream;
