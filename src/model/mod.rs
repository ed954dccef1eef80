//! The transformer, to be read in the order in which a token passes through it:
//! [`transformer`] (the whole), [`memory`], [`attention`], [`moe`] with its [`router`] and [`dispatch`], [`head`];
//! [`plain`] is all of it once more, slow and obvious; [`decode`] runs the same weights
//! one token at a time. [`parameters`] holds the weights, [`operation`] joins our kernels to candle's graph.

pub mod attention;
pub mod decode;
pub mod dispatch;
pub mod head;
pub mod memory;
pub mod moe;
pub mod operation;
pub mod parameters;
pub mod plain;
pub mod router;
pub mod transformer;
