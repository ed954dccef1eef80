//! A run's `metrics.jsonl` as curves: losses over training, and the load of the experts as it came about.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// Steps for which the load of every expert is kept.
const ROUTING_STEPS: usize = 60;
/// Points of a curve.
const CURVE_POINTS: usize = 600;
/// With fewer evaluations than this, loads are those of training steps.
const FEW_EVALUATIONS: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct History {
    pub train: Curves,
    pub val: Curves,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ngram_bits_per_byte: Option<f64>,
    pub routing: RoutingHistory,
}

/// Column by column, one entry a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curves {
    pub step: Vec<u64>,
    pub loss: Vec<f64>,
    pub bits_per_byte: Vec<f64>,
    pub balance_loss: Vec<f64>,
    pub z_loss: Vec<f64>,
    pub lr: Vec<f64>,
    pub grad_norm: Vec<Option<f64>>,
    /// Share of dropped pairs, where experts have a capacity: in training only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped_share: Vec<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoutingHistory {
    pub step: Vec<u64>,
    /// Share of each expert, for each step and MoE layer.
    pub load: Vec<Vec<Vec<f64>>>,
    /// Mean router entropy in nats, for each step and MoE layer.
    pub entropy: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Line {
    step: u64,
    split: String,
    loss: f64,
    bits_per_byte: f64,
    ngram_bits_per_byte: Option<f64>,
    balance_loss: f64,
    z_loss: f64,
    grad_norm: Option<f64>,
    lr: f64,
    expert_load: Vec<Vec<f64>>,
    router_entropy: Vec<f64>,
    dropped_share: Option<f64>,
}

/// What `metrics.jsonl` has to tell; none where there is no such file, or nothing in it. Lines that are not of its kind
/// (the last one may be cut short while a run is under way) are left out.
pub fn history(path: &Path) -> Option<History> {
    let text = std::fs::read_to_string(path).ok()?;
    let lines: Vec<Line> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (val, train): (Vec<&Line>, Vec<&Line>) = lines.iter().partition(|line| line.split == "val");
    let loads = if val.len() >= FEW_EVALUATIONS || train.is_empty() { &val } else { &train };
    let loads = thinned(loads, ROUTING_STEPS);
    (!lines.is_empty()).then(|| History {
        ngram_bits_per_byte: val.iter().rev().find_map(|line| line.ngram_bits_per_byte),
        routing: RoutingHistory {
            step: loads.iter().map(|line| line.step).collect(),
            load: loads.iter().map(|line| line.expert_load.clone()).collect(),
            entropy: loads.iter().map(|line| line.router_entropy.clone()).collect(),
        },
        train: curves(&thinned(&train, CURVE_POINTS)),
        val: curves(&thinned(&val, CURVE_POINTS)),
    })
}

fn curves(lines: &[&Line]) -> Curves {
    let column = |of: fn(&Line) -> f64| lines.iter().map(|line| of(line)).collect();
    Curves {
        step: lines.iter().map(|line| line.step).collect(),
        loss: column(|line| line.loss),
        bits_per_byte: column(|line| line.bits_per_byte),
        balance_loss: column(|line| line.balance_loss),
        z_loss: column(|line| line.z_loss),
        lr: column(|line| line.lr),
        grad_norm: lines.iter().map(|line| line.grad_norm).collect(),
        dropped_share: lines.iter().map(|line| line.dropped_share).collect::<Option<_>>().unwrap_or_default(),
    }
}

/// At most `most` entries, evenly spaced, the first and the last among them.
fn thinned<'a>(lines: &[&'a Line], most: usize) -> Vec<&'a Line> {
    let count = lines.len().min(most);
    (0..count).map(|n| lines[if count == 1 { lines.len() - 1 } else { n * (lines.len() - 1) / (count - 1) }]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, split: &str) -> String {
        let ngram = if split == "val" { r#""ngram_bits_per_byte": 2.5,"# } else { r#""grad_norm": 0.5,"# };
        format!(
            r#"{{"step": {step}, "split": "{split}", "loss": {step}.5, "bits_per_byte": 2.0, {ngram} "balance_loss": 1.0,
            "z_loss": 3.0, "lr": 0.1, "expert_load": [[0.5, 0.5]], "router_entropy": [0.7]}}"#
        )
        .replace('\n', " ")
    }

    #[test]
    fn curves_and_loads_are_read_and_a_line_cut_short_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert_eq!(history(&path), None);
        let mut text: String = (1..=200).map(|step| line(step, "train") + "\n").collect();
        text += &line(200, "val");
        text += "\n{\"step\": 21";
        std::fs::write(&path, text).unwrap();
        let history = history(&path).unwrap();
        assert_eq!((history.train.step.len(), history.val.step.len()), (200, 1));
        assert_eq!((history.train.loss[9], history.ngram_bits_per_byte), (10.5, Some(2.5)));
        assert_eq!((history.train.grad_norm[0], history.val.grad_norm[0]), (Some(0.5), None));
        let steps = &history.routing.step;
        assert_eq!((steps.len(), steps[0], steps[59]), (60, 1, 200), "one evaluation is too few");
        assert_eq!(history.routing.load[0], [[0.5, 0.5]]);
    }
}
