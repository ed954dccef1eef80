//! The special tokens that a tokenizer's post-processor puts around a text, usually a beginning-of-text token in front.

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Ids before and after a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

impl Frame {
    /// The `post_processor` of a `tokenizer.json` whose ids are below `size`.
    ///
    /// # Errors
    /// For a kind of post-processor whose tokens are unknown, and for ids that no token has.
    pub(super) fn parse(post_processor: &Value, size: usize) -> anyhow::Result<Self> {
        let frame = Self::of(post_processor)?;
        match frame.before.iter().chain(&frame.after).find(|&&id| id as usize >= size) {
            Some(id) => bail!("it adds token {id}, which does not exist"),
            None => Ok(frame),
        }
    }

    fn of(part: &Value) -> anyhow::Result<Self> {
        if part.is_null() {
            return Ok(Self::default());
        }
        match part["type"].as_str().unwrap_or("step without a type") {
            // Changes where tokens say that they stand, and no token.
            "ByteLevel" => Ok(Self::default()),
            "Sequence" => {
                let mut frame = Self::default();
                for part in part["processors"].as_array().context("Sequence has no processors")? {
                    // Each works on what the one before it has put around the text.
                    let Self { mut before, after } = Self::of(part)?;
                    before.append(&mut frame.before);
                    frame.before = before;
                    frame.after.extend(after);
                }
                Ok(frame)
            }
            "TemplateProcessing" => Self::of_template(part),
            "BertProcessing" | "RobertaProcessing" => {
                let id = |key: &str| token_id(&part[key][1]).with_context(|| format!("{key} is no token with its id"));
                Ok(Self { before: vec![id("cls")?], after: vec![id("sep")?] })
            }
            kind => bail!("{kind} is not supported"),
        }
    }

    fn of_template(template: &Value) -> anyhow::Result<Self> {
        let (mut frame, mut texts) = (Self::default(), 0);
        for piece in template["single"].as_array().context("its template has no list of pieces for a single text")? {
            if piece.get("Sequence").is_some() {
                texts += 1;
                continue;
            }
            let name = piece["SpecialToken"]["id"].as_str().with_context(|| format!("{piece} is no piece"))?;
            let ids =
                template["special_tokens"][name]["ids"].as_array().with_context(|| format!("{name} has no ids"))?;
            let side = if texts == 0 { &mut frame.before } else { &mut frame.after };
            for id in ids {
                side.push(token_id(id).with_context(|| format!("{id} is no id"))?);
            }
        }
        ensure!(texts == 1, "its template has the text {texts} times, not once");
        Ok(frame)
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
