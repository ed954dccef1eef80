//! tinymoe trains tiny mixture-of-experts (MoE) language models on a CPU, samples from them, and
//! shows which expert handles each token.
//!
//! # The token's journey
//!
//! ```text
//! transcript files -> documents -> tokenizer -> token ids -> batch(seed, step)      transcript, tokenizer, dataset
//!   ids_BT -> embedding x_ND -> [ (memory -> +) -> norm -> attention -> + -> norm -> router -> experts -> + ] x L
//!          -> norm -> head -> cross-entropy (+ balance loss + z-loss)                model, ops
//!          -> backward -> clip -> optimizer -> checkpoint                            optim, train, checkpoint
//! checkpoint -> sampler (same weights, KV cache) -> text + routing log               sample, routing
//! checkpoint + text -> routing report -> terminal summary, JSON, page                   routing
//! ```
//!
//! # Dimension key
//!
//! Tensors and slices carry their shape as a suffix of capital letters: `x_ND`, `gates_NK`.
//!
//! | letter | meaning | configuration key |
//! |---|---|---|
//! | B | sequences in a batch | `train.batch_size` |
//! | T | positions in a sequence | `model.max_position_embeddings` |
//! | N | tokens, `B * T` | |
//! | D | width of the residual stream | `model.hidden_size` |
//! | H | query heads | `model.num_attention_heads` |
//! | G | key/value heads | `model.num_key_value_heads` |
//! | C | channels of one head | `model.head_dim` |
//! | E | experts in a layer | `model.num_experts` |
//! | K | experts chosen for each token | `model.num_experts_per_tok` |
//! | F | hidden width of an expert | `model.moe_intermediate_size` |
//! | S | (token, expert) pairs, `N * K` when nothing is dropped | |
//! | L | layers | `model.num_hidden_layers` |
//! | V | vocabulary | `tokenizer.vocab_size` |

// Kernels may, and the one question to the system about signals; each use says why it is sound.
#![deny(unsafe_code, clippy::undocumented_unsafe_blocks)]
// Shape suffixes are capital letters: `x_ND` says more than `x_nd`.
#![allow(non_snake_case)]

pub mod baseline;
pub mod bench;
pub mod cache;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod dataset;
pub mod error;
pub mod fault;
pub mod model;
#[allow(unsafe_code)]
pub mod ops;
pub mod optim;
pub mod output;
pub mod random;
pub mod routing;
pub mod sample;
pub mod terminal;
pub mod tokenizer;
pub mod train;
pub mod transcript;
