//! The learning rate at every step: linear warmup, then cosine (Loshchilov and Hutter 2016), linear, or
//! warmup-stable-decay (Hu et al. 2024, MiniCPM).

use crate::config::{OptimizerConfig, ScheduleKind};

/// The learning rate of step `step` (from 0) in a run of `max_steps`.
pub fn learning_rate(config: &OptimizerConfig, step: usize, max_steps: usize) -> f64 {
    let peak = config.learning_rate;
    if step < config.warmup_steps {
        return peak * (step + 1) as f64 / config.warmup_steps as f64;
    }
    let floor = peak * config.min_lr_ratio;
    let remaining = max_steps.saturating_sub(config.warmup_steps).max(1) as f64;
    let progress = ((step - config.warmup_steps) as f64 / remaining).min(1.0);
    match config.schedule {
        ScheduleKind::Constant => peak,
        ScheduleKind::Linear => peak + (floor - peak) * progress,
        ScheduleKind::Cosine => floor + (peak - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        ScheduleKind::Wsd => {
            let decay_steps = config.decay_fraction * max_steps as f64;
            let left = max_steps.saturating_sub(step) as f64;
            floor + (peak - floor) * (left / decay_steps).min(1.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: ScheduleKind) -> Vec<f64> {
        let defaults = crate::config::Config::default().optimizer;
        let config = OptimizerConfig {
            learning_rate: 1.0,
            min_lr_ratio: 0.1,
            schedule,
            warmup_steps: 10,
            decay_fraction: 0.2,
            ..defaults
        };
        (0..=110).map(|step| learning_rate(&config, step, 110)).collect()
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn every_schedule_warms_up_to_the_peak() {
        for schedule in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Wsd, ScheduleKind::Constant] {
            let rates = rates(schedule);
            assert!(near(rates[0], 0.1) && near(rates[9], 1.0) && near(rates[10], 1.0), "{schedule:?}");
        }
    }

    #[test]
    fn schedules_pass_through_the_points_that_define_them() {
        let cosine = rates(ScheduleKind::Cosine);
        assert!(near(cosine[60], 0.55) && near(cosine[110], 0.1));
        let linear = rates(ScheduleKind::Linear);
        assert!(near(linear[60], 0.55) && near(linear[110], 0.1) && near(linear[35], 0.775));
        let wsd = rates(ScheduleKind::Wsd);
        assert!(near(wsd[88], 1.0) && near(wsd[99], 0.55) && near(wsd[110], 0.1));
        assert!(rates(ScheduleKind::Constant)[10..].iter().all(|&rate| near(rate, 1.0)));
    }
}
