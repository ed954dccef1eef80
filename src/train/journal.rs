//! The files that grow beside a run's checkpoints: `metrics.jsonl` and `samples.txt`. They are appended to as training
//! goes on and flushed before a checkpoint, which knows how far they had come and the SHA-256 of what stood there. So a
//! run that goes back to it cuts off what came later, and notices what is missing or was changed.

use super::metrics::LoggedTime;
use super::state::TrainerState;
use crate::checkpoint;
use crate::fault;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Fields of a line of metrics that no two runs share.
const TIMES: [&str; 2] = ["elapsed_s", "tokens_per_s"];

/// One of the files.
pub struct Journal {
    path: PathBuf,
    /// Of all that was appended, as it went into [`Journal::append`].
    hash: Sha256,
}

impl Journal {
    pub fn new(path: PathBuf) -> Self {
        Self { path, hash: Sha256::new() }
    }

    /// Appends `bytes`, and `hashed`, which stands for them in the hash.
    pub fn append(&mut self, bytes: &[u8], hashed: &[u8]) -> Result<()> {
        let append = || {
            fault::system_call();
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            for part in [head, tail] {
                fault::system_call();
                file.write_all(part)?;
            }
            Ok::<_, io::Error>(())
        };
        append().with_context(|| format!("cannot write to {}", self.path.display()))?;
        self.hash.update(hashed);
        Ok(())
    }

    /// Of everything so far, in lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        format!("{:x}", self.hash.clone().finalize())
    }

    /// Flushes the file to disk, if there is one.
    pub fn sync(&self) -> Result<()> {
        fault::system_call();
        match OpenOptions::new().append(true).open(&self.path).and_then(|file| file.sync_all()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot flush {} to disk", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Cuts metrics back to where `state` was saved; returns the seconds logged until then. Where they are not what they
    /// were, the whole lines until its step stay, and `state` counts those.
    pub fn rewind_metrics(&mut self, state: &mut TrainerState) -> Result<f64> {
        let bytes = self.read()?;
        let kept: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').take(state.metrics_lines).collect();
        let hash = hash_of(&kept);
        let is_known = |hash: &Sha256| is(hash, state.metrics_sha256.as_deref());
        if let Some(hash) = hash.filter(|hash| kept.len() == state.metrics_lines && is_known(hash)) {
            self.hash = hash;
            self.cut(kept.concat().len(), bytes.len())?;
            return Ok(kept.last().and_then(|line| logged(line)).map_or(0.0, |line| line.elapsed_s));
        }
        let is_sound = |line: &&[u8]| logged(line).is_some_and(|logged| logged.step <= state.step);
        let lines = bytes.split_inclusive(|&byte| byte == b'\n').filter(is_sound);
        let sound: Vec<&[u8]> = lines.take(state.metrics_lines).collect();
        let what = format!("{} of {} lines are whole", sound.len(), state.metrics_lines);
        self.hash = hash_of(&sound).unwrap_or_default();
        self.mend(&bytes, &sound.concat(), &what, state.step)?;
        state.metrics_lines = sound.len();
        Ok(sound.last().and_then(|line| logged(line)).map_or(0.0, |line| line.elapsed_s))
    }

    /// As [`Self::rewind_metrics`], for samples.
    pub fn rewind_samples(&mut self, state: &mut TrainerState) -> Result<()> {
        let bytes = self.read()?;
        let known = usize::try_from(state.samples_bytes).ok().and_then(|len| bytes.get(..len));
        let hash = known.map(|known| Sha256::new().chain_update(known));
        if let Some(hash) = hash.filter(|hash| is(hash, state.samples_sha256.as_deref())) {
            self.hash = hash;
            return self.cut(state.samples_bytes as usize, bytes.len());
        }
        let sound = &bytes[..whole_samples(&bytes, state.step)];
        let what = format!("{} of {} bytes are kept", sound.len(), state.samples_bytes);
        self.hash = Sha256::new().chain_update(sound);
        self.mend(&bytes, sound, &what, state.step)?;
        state.samples_bytes = sound.len() as u64;
        Ok(())
    }

    /// The file's bytes; none where it is missing.
    fn read(&self) -> Result<Vec<u8>> {
        match fs::read(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            read => read.with_context(|| format!("cannot read {}", self.path.display())),
        }
    }

    fn cut(&self, len: usize, current: usize) -> Result<()> {
        if len == current {
            return Ok(());
        }
        fault::system_call();
        let file = OpenOptions::new().write(true).open(&self.path);
        file.and_then(|file| file.set_len(len as u64))
            .with_context(|| format!("cannot shorten {}", self.path.display()))
    }

    /// Replaces `damaged` by what of it is sound, keeps it under another name, and says so.
    fn mend(&self, damaged: &[u8], sound: &[u8], what: &str, step: usize) -> Result<()> {
        let name = self.path.display();
        if damaged.is_empty() {
            log::warn!("{name} is missing or empty: what was logged until step {step} is lost");
            return Ok(());
        }
        let aside = aside(&self.path);
        checkpoint::replace(&aside, damaged)?;
        checkpoint::replace(&self.path, sound)?;
        log::warn!("{name} is not what it was at step {step}: {what}; the file as it was is now {}", aside.display());
        Ok(())
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    name.into()
}

/// A line of metrics as it is hashed: without times, keys in order.
///
/// # Errors
/// Where it is not one JSON object on a whole line.
pub fn untimed(line: &[u8]) -> Result<Vec<u8>> {
    let line = line.strip_suffix(b"\n").context("the line has no end")?;
    let mut record: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line)?;
    record.retain(|key, _| !TIMES.contains(&key.as_str()));
    let mut bytes = serde_json::to_vec(&record)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn logged(line: &[u8]) -> Option<LoggedTime> {
    untimed(line).ok().and_then(|_| serde_json::from_slice(line).ok())
}

/// Of lines of metrics; none if one is not whole.
fn hash_of(lines: &[&[u8]]) -> Option<Sha256> {
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(untimed(line).ok()?);
    }
    Some(hash)
}

/// Checkpoints of earlier versions do not know the hash.
fn is(hash: &Sha256, known: Option<&str>) -> bool {
    known.is_none_or(|known| known == format!("{:x}", hash.clone().finalize()))
}

/// Bytes until the first sample of a later step than `step`, or the first half of one.
fn whole_samples(bytes: &[u8], step: usize) -> usize {
    let (mut start, mut last) = (0, 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if let Some(number) = sample_step(line) {
            last = start;
            if number > step {
                return start;
            }
        }
        start += line.len();
    }
    if bytes.ends_with(b"\n\n") { bytes.len() } else { last }
}

/// The step in `=== step 500 ===`, the line above a sample.
fn sample_step(line: &[u8]) -> Option<usize> {
    std::str::from_utf8(line).ok()?.strip_prefix("=== step ")?.strip_suffix(" ===\n")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{TempDir, tempdir};

    fn state(step: usize) -> TrainerState {
        let json = format!(
            r#"{{"step": {step}, "tokens": 0, "seed": 1, "best_val_loss": null, "best_step": null,
                "evaluations_without_improvement": 0, "metrics_lines": 0, "samples_bytes": 0, "config_sha256": "",
                "data_sha256": ""}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn line(step: usize, elapsed_s: f64) -> String {
        format!("{{\"step\":{step},\"elapsed_s\":{elapsed_s},\"split\":\"train\",\"loss\":{}.5}}\n", 10 - step)
    }

    fn sample(step: usize) -> String {
        format!("=== step {step} ===\nit said\n\nno {step}\n\n")
    }

    /// Journals of six steps, and the state after step 4.
    fn journals() -> (TempDir, [Journal; 2], TrainerState) {
        let folder = tempdir().unwrap();
        let mut journals = ["metrics.jsonl", "samples.txt"].map(|name| Journal::new(folder.path().join(name)));
        let mut saved = state(4);
        for step in 1..=6 {
            let [metrics, samples] = &mut journals;
            let line = line(step, step as f64);
            metrics.append(line.as_bytes(), &untimed(line.as_bytes()).unwrap()).unwrap();
            samples.append(sample(step).as_bytes(), sample(step).as_bytes()).unwrap();
            if step == 4 {
                saved.metrics_lines = 4;
                saved.samples_bytes = (1..=4).map(|step| sample(step).len() as u64).sum();
                (saved.metrics_sha256, saved.samples_sha256) = (Some(metrics.sha256()), Some(samples.sha256()));
            }
        }
        (folder, journals, saved)
    }

    fn rewound(journals: &mut [Journal; 2], saved: &TrainerState) -> (TrainerState, f64, String, String) {
        let mut state = saved.clone();
        let elapsed_s = journals[0].rewind_metrics(&mut state).unwrap();
        journals[1].rewind_samples(&mut state).unwrap();
        let [metrics, samples] = journals.each_ref().map(|journal| fs::read_to_string(&journal.path).unwrap());
        (state, elapsed_s, metrics, samples)
    }

    #[test]
    fn what_came_after_a_checkpoint_is_cut_off_and_the_hash_goes_on_from_there() {
        for known in [true, false] {
            let (folder, mut journals, mut saved) = journals();
            if !known {
                // As an earlier version saved it.
                (saved.metrics_sha256, saved.samples_sha256) = (None, None);
            }
            // Whatever stands behind it.
            for journal in &journals {
                let mut file = OpenOptions::new().append(true).open(&journal.path).unwrap();
                file.write_all(b"\xff\xfe\n{\"step\":").unwrap();
            }
            let (state, elapsed_s, metrics, samples) = rewound(&mut journals, &saved);
            assert_eq!((&state, elapsed_s), (&saved, 4.0));
            assert_eq!(metrics, (1..=4).map(|step| line(step, step as f64)).collect::<String>());
            assert_eq!(samples, (1..=4).map(sample).collect::<String>());
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
            let line = line(5, 99.0);
            journals[0].append(line.as_bytes(), &untimed(line.as_bytes()).unwrap()).unwrap();
            let (_again, mut straight, _) = self::journals();
            let mut until_5 = super::tests::state(5);
            until_5.metrics_lines = 5;
            straight[0].rewind_metrics(&mut until_5).unwrap();
            assert_eq!(journals[0].sha256(), straight[0].sha256(), "times make no difference");
        }
    }

    #[test]
    fn damage_before_the_checkpoint_is_noticed_and_what_is_whole_stays() {
        type Damage = fn(&mut Vec<u8>);
        let cases: [(Damage, usize); 6] = [
            // Torn within the fourth line; the third one gone; one byte that is no UTF-8; another number; all gone.
            (|bytes| bytes.truncate(line(1, 1.0).len() * 4 - 9), 3),
            (|bytes| drop(bytes.drain(line(1, 1.0).len() * 2..line(1, 1.0).len() * 3)), 3),
            (|bytes| bytes[line(1, 1.0).len() + 9] = 0xff, 3),
            (|bytes| bytes[line(1, 1.0).len() * 2 - 5] = b'7', 4),
            (|bytes| bytes[line(1, 1.0).len() * 2 - 1] = b' ', 2),
            (|bytes| bytes.clear(), 0),
        ];
        for (number, (damage, lines)) in cases.into_iter().enumerate() {
            let (folder, mut journals, saved) = journals();
            let mut bytes = fs::read(&journals[0].path).unwrap();
            damage(&mut bytes);
            fs::write(&journals[0].path, &bytes).unwrap();
            let (state, elapsed_s, metrics, _) = rewound(&mut journals, &saved);
            assert_eq!(state.metrics_lines, lines, "case {number}");
            assert_eq!(metrics.lines().count(), lines, "case {number}: {metrics}");
            assert!(metrics.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{metrics}");
            assert!(elapsed_s <= 4.0);
            let aside = folder.path().join("metrics.jsonl.damaged");
            assert_eq!(fs::read(aside).unwrap_or_default(), bytes, "case {number}");
            // From here on it is what the state says.
            let mended = TrainerState { metrics_sha256: Some(journals[0].sha256()), ..state };
            assert_eq!(rewound(&mut journals, &mended).0, mended, "case {number}");
        }
    }

    #[test]
    fn samples_that_are_torn_changed_or_missing_are_noticed() {
        let whole: String = (1..=4).map(sample).collect();
        let three = whole.len() - sample(4).len();
        let cases: [(Vec<u8>, usize); 4] = [
            (whole.as_bytes()[..whole.len() - 3].to_vec(), three),
            (whole.as_bytes()[..three].to_vec(), three),
            ((whole.replace("it said", "\u{e9}!") + &sample(5)).into_bytes(), whole.len() - 4 * 4),
            (Vec::new(), 0),
        ];
        for (bytes, kept) in cases {
            let (folder, mut journals, saved) = journals();
            fs::write(&journals[1].path, &bytes).unwrap();
            let (state, _, _, samples) = rewound(&mut journals, &saved);
            assert_eq!((state.samples_bytes as usize, samples.len()), (kept, kept));
            assert_eq!(fs::read(folder.path().join("samples.txt.damaged")).unwrap_or_default(), bytes);
        }
    }
}
