//! Continues a prompt token by token, with several samples side by side, and shows every token with its routing.

use super::choose::log_probability;
use super::{Chooser, SamplingOptions};
use crate::model::decode::{Decoder, Logits, Step};
use crate::model::memory::Reading;
use crate::model::router::Routing;
use crate::model::transformer::Transformer;
use crate::random::Stream;
use crate::routing::log::{Recall, Source};
use crate::tokenizer::{TextStream, Tokenizer};
use anyhow::Result;

/// What to continue, and by how many tokens at most.
pub struct Prompt<'a> {
    pub text: &'a str,
    /// Takes the text for text alone: no special token is recognised in it, and none put in front.
    pub plain: bool,
    pub tokens: usize,
}

impl<'a> Prompt<'a> {
    pub fn new(text: &'a str, tokens: usize) -> Self {
        Self { text, plain: false, tokens }
    }

    /// Never empty: where there is no prompt, a text begins.
    fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = if self.plain { tokenizer.encode(self.text)? } else { tokenizer.encode_prompt(self.text)? };
        if ids.is_empty() {
            ids.push(tokenizer.roles().begins.or(tokenizer.end_of_text()).unwrap_or(0));
        }
        Ok(ids)
    }
}

/// One token after it has passed through the model.
pub struct Passed<'a> {
    pub sample: usize,
    /// Position in the sample, prompt included.
    pub index: usize,
    pub id: u32,
    pub source: Source,
    /// Under the model's own distribution; none for the first token, which nothing predicted.
    pub logprob: Option<f32>,
    routing: &'a [Routing],
    readings: &'a [Reading],
    row: usize,
}

impl Passed<'_> {
    /// The token's experts, best first, for each MoE layer.
    pub fn experts(&self) -> Vec<Vec<u32>> {
        self.rows(|routing| &routing.experts_NK)
    }

    /// The weights of [`Self::experts`].
    pub fn gates(&self) -> Vec<Vec<f32>> {
        self.rows(|routing| &routing.gates_NK)
    }

    /// What the token read from each memory.
    pub fn recalls(&self) -> Vec<Recall> {
        Recall::all(self.readings, self.row)
    }

    /// The expert with the largest gate in one MoE layer.
    pub fn first_expert(&self, moe_layer: usize) -> usize {
        let routing = &self.routing[moe_layer];
        routing.experts_NK[self.row * routing.experts_per_token()] as usize
    }

    fn rows<T: Clone>(&self, values_NK: impl Fn(&Routing) -> &Vec<T>) -> Vec<Vec<T>> {
        let row = |routing: &Routing| {
            let k = routing.experts_per_token();
            values_NK(routing)[self.row * k..][..k].to_vec()
        };
        self.routing.iter().map(row).collect()
    }
}

/// Draws `count` continuations of a prompt and shows every token, prompt included, to `observe`. A sample ends with
/// a token that ends texts or after `prompt.tokens` tokens. Where the context is full, the model goes on with the second
/// half of it. An empty prompt starts after the token that begins texts.
pub fn generate(
    model: &Transformer,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    options: &SamplingOptions,
    count: usize,
    mut observe: impl FnMut(&Passed) -> Result<()>,
) -> Result<()> {
    let prompt_ids = prompt.ids(tokenizer)?;
    let mut context = Context::new(model, prompt_ids.len().saturating_add(prompt.tokens));
    let mut logits_SV = context.read_prompt(&prompt_ids, count, &mut observe)?;
    context.decoder = context.decoder.repeat(count);
    context.histories = vec![prompt_ids.clone(); count];
    let vocab = model.vocab_size;
    let mut chooser = Chooser::default();
    let streams: Vec<_> = (0..count as u64).map(|sample| Stream::new(options.seed, "sample", &[sample])).collect();
    let mut ended = vec![false; count];
    for number in 0..prompt.tokens {
        let choose = |sample: usize| {
            let draw = streams[sample].uniform(number as u64);
            chooser.choose(&logits_SV[sample * vocab..][..vocab], &context.histories[sample], options, draw)
        };
        let chosen: Vec<_> = (0..count).map(choose).collect();
        let ids: Vec<u32> = chosen.iter().map(|chosen| chosen.id).collect();
        let Step { routing, readings, logits_NV } = context.advance(&ids)?;
        for (sample, chosen) in chosen.iter().enumerate().filter(|&(sample, _)| !ended[sample]) {
            let index = prompt_ids.len() + number;
            let (id, logprob) = (chosen.id, Some(chosen.logprob));
            observe(&Passed { sample, index, id, source: Source::Generated, logprob, routing, readings, row: sample })?;
        }
        for (ended, &id) in ended.iter_mut().zip(&ids) {
            *ended |= tokenizer.roles().ends.contains(&id);
        }
        if ended.iter().all(|&ended| ended) {
            break;
        }
        logits_SV.clone_from(logits_NV);
    }
    Ok(())
}

/// The text of one continuation, without the prompt.
pub fn generate_text(
    model: &Transformer,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    options: &SamplingOptions,
) -> Result<String> {
    let (mut text, mut bytes) = (TextStream::new(tokenizer), Vec::new());
    generate(model, tokenizer, prompt, options, 1, |passed| {
        let added = text.push(passed.id);
        if passed.source == Source::Generated {
            bytes.extend_from_slice(&added);
        }
        Ok(())
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A decoder that never runs out of room.
struct Context<'a> {
    decoder: Decoder<'a>,
    /// All tokens of each sample.
    histories: Vec<Vec<u32>>,
    /// Tokens that stay in the context when it is full.
    kept: usize,
}

impl<'a> Context<'a> {
    /// For `tokens` in all: of a long context only what they need is taken.
    fn new(model: &'a Transformer, tokens: usize) -> Self {
        let decoder = Decoder::with_room(model, tokens);
        let kept = model.model.max_position_embeddings / 2;
        Self { decoder, histories: vec![Vec::new()], kept }
    }

    /// Reads the prompt as one sequence and shows its tokens, once for each of `count` samples; returns the logits of
    /// what follows for all of them.
    fn read_prompt(
        &mut self,
        prompt_ids: &[u32],
        count: usize,
        observe: &mut impl FnMut(&Passed) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let mut last_V: Option<Vec<f32>> = None;
        let mut rest = prompt_ids;
        while !rest.is_empty() {
            self.make_room()?;
            let (now, later) = rest.split_at(rest.len().min(self.decoder.room()));
            let start = prompt_ids.len() - rest.len();
            rest = later;
            let step = self.decoder.advance(now, Logits::All)?;
            self.histories[0].extend_from_slice(now);
            let vocab = step.logits_NV.len() / now.len();
            for (row, &id) in now.iter().enumerate() {
                let logits_V = match row {
                    0 => last_V.as_deref(),
                    _ => Some(&step.logits_NV[(row - 1) * vocab..][..vocab]),
                };
                let logprob = logits_V.map(|logits_V| log_probability(logits_V, id));
                let (index, routing, readings) = (start + row, &step.routing[..], &step.readings[..]);
                for sample in 0..count {
                    observe(&Passed { sample, index, id, source: Source::Prompt, logprob, routing, readings, row })?;
                }
            }
            last_V = Some(step.logits_NV[(now.len() - 1) * vocab..].to_vec());
        }
        Ok(last_V.unwrap_or_default().repeat(count))
    }

    /// Appends one token to each sample.
    fn advance(&mut self, ids: &[u32]) -> Result<&Step> {
        self.make_room()?;
        for (history, &id) in self.histories.iter_mut().zip(ids) {
            history.push(id);
        }
        self.decoder.advance(ids, Logits::Last)
    }

    /// Where the context is full, starts it again with the most recent tokens.
    fn make_room(&mut self) -> Result<()> {
        if self.decoder.room() == 0 {
            self.decoder.clear();
            let recent: Vec<u32> =
                self.histories.iter().flat_map(|history| &history[history.len() - self.kept..]).copied().collect();
            if !recent.is_empty() {
                self.decoder.advance(&recent, Logits::Last)?;
            }
        }
        Ok(())
    }
}
