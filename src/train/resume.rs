//! What may change when a run is resumed, and what must not.

use super::prepare::grouped;
use super::state::TrainerState;
use crate::config::Config;
use crate::error::Failure;
use crate::optim::schedule::learning_rate;
use crate::terminal;
use anyhow::Result;
use std::ffi::OsString;
use std::path::Path;

/// Keys that may have another value when a run is resumed, and why that does no harm. All others decide what a step
/// computes: with another value it would be another run.
const MAY_CHANGE: [(&str, &str); 15] = [
    ("data.directory", "the texts may have moved; they must be the same, which their SHA-256 shows"),
    ("data.sources", "as `data.directory`"),
    ("train.max_steps", "how far the run goes; the learning rate follows the new length, which is said"),
    ("train.log_interval", "looking changes nothing"),
    ("train.eval_interval", "looking changes nothing; the best checkpoint is the best of what was evaluated"),
    ("train.checkpoint_interval", "what is saved, and how far a rewind goes back"),
    ("train.keep_checkpoints", "what is kept"),
    ("train.early_stopping_patience", "how far the run goes"),
    ("train.on_bad_numbers", "what becomes of a step that goes wrong"),
    ("train.on_loss_spike", "as `train.on_bad_numbers`"),
    ("train.spike_window", "when a loss counts as a spike"),
    ("train.spike_threshold", "as `train.spike_window`"),
    ("train.recompute_fraction", "how many steps are checked"),
    ("train.sample_prompt", "looking changes nothing"),
    ("train.sample_tokens", "looking changes nothing"),
];

/// The command that goes on with a run, with settings (`key=value`) that make it do so.
pub fn command(run: &Path, settings: &[&str]) -> String {
    let mut words: Vec<OsString> = vec!["tinymoe".into(), "resume".into(), terminal::operand(run)];
    for setting in settings {
        words.extend(["--set".into(), setting.into()]);
    }
    terminal::command(&words)
}

/// Refuses to go on with a run under a configuration that differs in anything else than [`MAY_CHANGE`].
///
/// # Errors
/// [`Failure::Usage`]
pub(super) fn check_compatible(run: &Path, saved: &Config, config: &Config) -> Result<()> {
    let may_change = |key: &String| MAY_CHANGE.iter().any(|(name, _)| name == key);
    let differences: Vec<String> = differing_keys(saved, config)?.into_iter().filter(|key| !may_change(key)).collect();
    if differences.is_empty() {
        return Ok(());
    }
    let allowed = MAY_CHANGE.map(|(key, _)| key).join(", ");
    Err(Failure::Usage(format!(
        "the run in {} has another configuration: {}; resume it unchanged (only {allowed} may change), or start another \
         run in another directory",
        run.display(),
        differences.join(", "),
    ))
    .into())
}

/// The keys, as `section.key`, with different values.
pub fn differing_keys(a: &Config, b: &Config) -> Result<Vec<String>> {
    let (a, b) = (toml::Table::try_from(a)?, toml::Table::try_from(b)?);
    let mut keys = Vec::new();
    for (section, values) in &b {
        for (key, value) in values.as_table().into_iter().flatten() {
            if a.get(section).and_then(|values| values.get(key)) != Some(value) {
                keys.push(format!("{section}.{key}"));
            }
        }
    }
    Ok(keys)
}

/// What another `max_steps` does to the learning rate of a run that goes on after step `state.step`; none where it has
/// no other.
pub fn describe_new_length(saved: &Config, config: &Config, state: &TrainerState) -> Option<String> {
    let (before, now, step) = (saved.train.max_steps, config.train.max_steps, state.step);
    if before == now || step == 0 {
        return None;
    }
    let last = learning_rate(&saved.optimizer, step - 1, before);
    let next = learning_rate(&config.optimizer, step, now);
    let change = match next / last {
        ratio if (0.99..1.01).contains(&ratio) => "as before".to_string(),
        ratio if ratio.is_finite() => format!("{ratio:.2} times that of step {step}"),
        _ => "up from nothing".to_string(),
    };
    Some(format!(
        "train.max_steps is {} instead of {}: the learning rate goes from {last:.2e} in step {step} to {next:.2e} in step \
         {}, {change}",
        grouped(now),
        grouped(before),
        step + 1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ScheduleKind, parse};
    use std::fmt::Write;

    fn config(settings: &[&str]) -> Config {
        let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
        parse("data.sources = 'a'", "x.toml", &settings).unwrap()
    }

    /// The table in docs/trust.md: every key of the configuration once.
    fn table() -> String {
        let mut keys: Vec<String> = Vec::new();
        for (section, values) in toml::Table::try_from(config(&[])).unwrap() {
            keys.extend(values.as_table().unwrap().keys().map(|key| format!("{section}.{key}")));
        }
        let mut table = "| key | may change | why |\n|---|---|---|\n".to_string();
        for (key, reason) in MAY_CHANGE {
            let place = keys.iter().position(|known| known == key);
            keys.remove(place.unwrap_or_else(|| panic!("{key} is no key")));
            writeln!(table, "| `{key}` | yes | {reason} |").unwrap();
        }
        for section in keys.chunk_by(|a, b| a.split('.').next() == b.split('.').next()) {
            let names: Vec<String> = section.iter().map(|key| format!("`{key}`")).collect();
            writeln!(table, "| {} | no | it would be another run |", names.join(", ")).unwrap();
        }
        table
    }

    #[test]
    fn the_documentation_has_the_table_of_what_may_change() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trust.md");
        let table = table();
        assert!(std::fs::read_to_string(path).unwrap().contains(&table), "docs/trust.md lacks this table:\n{table}");
    }

    #[test]
    fn only_what_may_change_is_accepted() {
        let saved = config(&[]);
        let path = Path::new("r");
        check_compatible(path, &saved, &config(&["train.keep_checkpoints=7", "train.eval_interval=3"])).unwrap();
        let error =
            check_compatible(path, &saved, &config(&["train.seed=2", "train.max_steps=300", "model.num_experts=4"]));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("another configuration: model.num_experts, train.seed; "), "{error}");
    }

    #[test]
    fn a_new_length_says_what_the_learning_rate_becomes() {
        let state = |step| TrainerState { step, ..TrainerState::default() };
        let saved = config(&["train.max_steps=100", "optimizer.warmup_steps=0", "optimizer.schedule=linear"]);
        let mut longer = saved.clone();
        longer.train.max_steps = 200;
        assert_eq!(saved.optimizer.schedule, ScheduleKind::Linear);
        let message = describe_new_length(&saved, &longer, &state(100)).unwrap();
        let (last, next) = (learning_rate(&saved.optimizer, 99, 100), learning_rate(&saved.optimizer, 100, 200));
        assert!(next > 4.0 * last);
        for part in [format!("{last:.2e} in step 100"), format!("{next:.2e} in step 101"), "200 instead of 100".into()]
        {
            assert!(message.contains(&part), "no {part:?} in {message}");
        }
        assert!(message.ends_with(&format!("{:.2} times that of step 100", next / last)), "{message}");
        assert_eq!(describe_new_length(&saved, &saved, &state(50)), None);
        longer.optimizer.schedule = ScheduleKind::Constant;
        let constant = Config { optimizer: longer.optimizer.clone(), ..saved };
        assert!(describe_new_length(&constant, &longer, &state(50)).unwrap().ends_with("as before"));
    }
}
