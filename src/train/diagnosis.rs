//! Where a step went wrong: its micro-batches once more, with a look at everything on the way.

use super::metrics::RoutingAverages;
use crate::dataset::Batch;
use crate::fault;
use crate::model::operation::Pass;
use crate::model::transformer::{Station, Transformer};
use anyhow::Result;
use candle_core::Tensor;
use std::fmt;

/// Sequences that a message names.
const SHOWN: usize = 8;

/// What was found, for people; every line ends in a line feed.
pub struct Evidence {
    batches: Vec<String>,
    /// The first numbers that are not finite.
    origin: Option<String>,
    largest_weight: String,
    learning_rate: f64,
    routers: String,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for batch in &self.batches {
            writeln!(f, "  {batch}")?;
        }
        if let Some(origin) = &self.origin {
            writeln!(f, "  first bad numbers: {origin}")?;
        }
        writeln!(f, "  learning rate {:.3e}; {}", self.learning_rate, self.largest_weight)?;
        if !self.routers.is_empty() {
            writeln!(f, "  routers: {}", self.routers)?;
        }
        Ok(())
    }
}

/// Examines the micro-batches of a step; the gradient is something else afterwards. Where the weights have `moved` since
/// the step was computed, it cannot be computed again, and only what is known without that is told.
pub fn examine(
    model: &Transformer,
    batches: &[(u64, Batch, Pass)],
    learning_rate: f64,
    routed: &RoutingAverages,
    moved: bool,
) -> Result<Evidence> {
    let mut origin = None;
    for (number, batch, pass) in batches {
        if origin.is_none() && !moved {
            origin = find_origin(model, *number, batch, *pass)?;
        }
    }
    Ok(Evidence {
        batches: batches.iter().map(|(number, batch, _)| describe_batch(*number, batch)).collect(),
        origin,
        largest_weight: format!("largest weight: {}", largest(model, &model.parameters.values())),
        learning_rate,
        routers: describe_routers(model, routed),
    })
}

/// Where in the order of computation, forward and then backward, the first number appears that is not finite.
fn find_origin(model: &Transformer, number: u64, batch: &Batch, pass: Pass) -> Result<Option<String>> {
    let mut forward = None;
    let mut check = |station: Station, x_ND: &Tensor| {
        if forward.is_none() {
            let place = describe_numbers(x_ND, batch, pass.time)?;
            forward = place.map(|place| format!("micro-batch {number}: the residual stream after {station}, {place}"));
        }
        Ok(())
    };
    let x_ND = model.embed(&batch.ids, pass)?;
    check(Station::Embedding, &x_ND)?;
    let x_ND = model.sub_layers(Station::Embedding, &batch.ids, x_ND, pass, check)?.x_ND;
    if forward.is_some() {
        return Ok(forward);
    }
    let loss = model.head.loss(&model.parameters, &x_ND, &batch.targets, pass)?;
    if let Some(token) = loss.losses_N.iter().position(|loss| !loss.is_finite()) {
        let (sequence, position) = (token / pass.time, token % pass.time);
        let loss = loss.losses_N[token];
        return Ok(Some(format!("micro-batch {number}: loss {loss} in sequence {sequence}, position {position}")));
    }
    model.parameters.clear_gradients();
    loss.root.backward()?;
    let mut gradients = model.parameters.gradients();
    fault::gradient(number, &mut gradients);
    // Parameters lie in the order of the forward pass.
    for parameter in model.parameters.list().iter().rev() {
        let slice = &gradients[parameter.range.clone()];
        if let Some(index) = slice.iter().position(|number| !number.is_finite()) {
            let (name, value) = (&parameter.name, slice[index]);
            let count = slice.iter().filter(|number| !number.is_finite()).count();
            return Ok(Some(format!(
                "micro-batch {number}: the gradient of {name}, {count} of {} numbers, the first, {value}, at index \
                 {index}; all activations are finite",
                slice.len()
            )));
        }
    }
    let norm = gradients.iter().map(|&gradient| f64::from(gradient).powi(2)).sum::<f64>().sqrt();
    let too_large = norm > f64::from(f32::MAX).sqrt();
    Ok(too_large.then(|| {
        let gradient = largest(model, &gradients);
        format!("micro-batch {number}: none, but the gradient's norm of {norm:.3e} overflows; largest: {gradient}")
    }))
}

/// How many numbers of the stream are not finite, and where the first is; none if all are finite.
fn describe_numbers(x_ND: &Tensor, batch: &Batch, time: usize) -> candle_core::Result<Option<String>> {
    let numbers = x_ND.flatten_all()?.to_vec1::<f32>()?;
    let Some(first) = numbers.iter().position(|number| !number.is_finite()) else { return Ok(None) };
    let bad = numbers.iter().filter(|number| !number.is_finite()).count();
    let token = first / (numbers.len() / batch.ids.len());
    Ok(Some(format!(
        "{bad} of {} numbers, the first, {}, in sequence {}, position {} (token id {})",
        numbers.len(),
        numbers[first],
        token / time,
        token % time,
        batch.ids[token]
    )))
}

/// The number of largest magnitude in a buffer that is laid out like the parameters, and whose it is.
fn largest(model: &Transformer, buffer: &[f32]) -> String {
    let magnitude = |number: &f32| if number.is_nan() { f32::INFINITY } else { number.abs() };
    let largest = buffer.iter().enumerate().max_by(|(_, a), (_, b)| magnitude(a).total_cmp(&magnitude(b)));
    let Some((index, number)) = largest else { return String::new() };
    let owner = model.parameters.list().iter().find(|parameter| parameter.range.contains(&index));
    format!("{number:.3e} in {}", owner.map_or("", |parameter| &parameter.name))
}

fn describe_batch(number: u64, batch: &Batch) -> String {
    let mut starts: Vec<String> = batch.starts.iter().take(SHOWN).map(usize::to_string).collect();
    if batch.starts.len() > SHOWN {
        starts.push(format!("and {} more", batch.starts.len() - SHOWN));
    }
    format!("micro-batch {number}: sequences from training tokens {}", starts.join(", "))
}

fn describe_routers(model: &Transformer, routed: &RoutingAverages) -> String {
    let layers = model.moe_layers().into_iter().zip(&routed.router_entropy).zip(&routed.expert_load);
    let describe = |((layer, entropy), load_E): ((usize, &f64), &Vec<f64>)| {
        let busiest = load_E.iter().copied().fold(0.0, f64::max) * load_E.len() as f64;
        let most = (load_E.len() as f64).ln();
        format!("layer {layer} entropy {entropy:.2} of {most:.2} nats, busiest expert {busiest:.2}x even")
    };
    layers.map(describe).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::model::operation::Mode;

    fn model() -> Transformer {
        let mut config = Config::default();
        (config.model.hidden_size, config.model.num_hidden_layers, config.model.max_position_embeddings) = (16, 2, 4);
        config.model.resolve();
        Transformer::new(&config.model, &config.router, 32, 1).unwrap()
    }

    fn examine_batch(model: &Transformer) -> String {
        let batch = Batch { ids: vec![3, 4, 5, 6, 7, 8, 9, 10], targets: vec![4; 8], starts: vec![40, 0] };
        let pass = Pass {
            batch: 2,
            time: 4,
            mode: Mode::Train { seed: 1, step: 9, loss_scale: 1.0 },
            precision: Config::default().train.precision,
        };
        let routed = RoutingAverages {
            expert_load: vec![vec![0.75, 0.25]; 2],
            router_entropy: vec![0.5; 2],
            ..RoutingAverages::default()
        };
        examine(model, &[(9, batch, pass)], 1e-3, &routed, false).unwrap().to_string()
    }

    fn poison(model: &Transformer, name: &str, value: f32) {
        let parameter = model.parameters.list().iter().find(|parameter| parameter.name == name).unwrap();
        model.parameters.values_mut()[parameter.range.start] = value;
    }

    #[test]
    fn a_sound_step_has_no_origin_of_bad_numbers() {
        let evidence = examine_batch(&model());
        assert!(evidence.contains("micro-batch 9: sequences from training tokens 40, 0\n"), "{evidence}");
        assert!(evidence.contains("learning rate 1.000e-3; largest weight: "), "{evidence}");
        assert!(evidence.contains("layer 1 entropy 0.50 of 0.69 nats, busiest expert 1.50x even"), "{evidence}");
        assert!(!evidence.contains("first bad numbers"), "{evidence}");
    }

    #[test]
    fn the_first_station_with_a_bad_number_is_named() {
        for (weight, station) in [
            ("model.layers.1.self_attn.o_proj.weight", "layer 1's attention"),
            ("model.layers.0.post_attention_layernorm.weight", "layer 0's feed-forward part"),
        ] {
            let model = model();
            poison(&model, weight, f32::INFINITY);
            let evidence = examine_batch(&model);
            assert!(evidence.contains(&format!("the residual stream after {station}, ")), "{evidence}");
            assert!(evidence.contains(&format!("largest weight: inf in {weight}")), "{evidence}");
        }
        // Row 6 of the embedding: the token at position 3 of the first sequence.
        let model = model();
        model.parameters.values_mut()[6 * 16] = f32::NAN;
        let evidence = examine_batch(&model);
        assert!(
            evidence.contains(
                "after the embedding, 1 of 128 numbers, the first, NaN, in sequence 0, position 3 (token id 6)"
            ),
            "{evidence}"
        );
    }
}
