//! The checkpoints of one run: `checkpoints/step-*`, and the links `best` and `latest` that point at two of them.
//!
//! [`link`], [`newest`] and [`prune`] are for the one process that trains in the run: they tidy up after crashes.
//! [`resolve`] only reads.

use super::corrupt;
use super::directory::{
    Files, MANIFEST, is_checkpoint, is_plain_name, load, remove_file_if_present, remove_if_present, rename, sibling,
    step_name, sync_directory, write_new,
};
use crate::error::Failure;
use crate::fault;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const LINKS: [&str; 2] = ["best", "latest"];
/// More than any file name has.
const MAX_LINK_BYTES: u64 = 4096;

/// What [`newest`] found.
#[derive(Debug)]
pub struct Newest {
    /// The newest checkpoint that verifies, with its contents.
    pub found: Option<(PathBuf, Files)>,
    /// Newer checkpoints that do not verify, newest first, each with the reason.
    pub rejected: Vec<(PathBuf, String)>,
}

/// Points `checkpoints/<name>` ("best", "latest") at the checkpoint `target` in the same directory. The change is
/// atomic. Where the file system has no symbolic links, a text file holds the target's name.
pub fn link(checkpoints: &Path, name: &str, target: &Path) -> Result<()> {
    ensure!(LINKS.contains(&name), "{name:?} is not the name of a checkpoint link");
    let target = target.file_name().and_then(|target| target.to_str()).unwrap_or_default();
    ensure!(is_checkpoint(&checkpoints.join(target)), "{target:?} is not a checkpoint in {}", checkpoints.display());
    let path = checkpoints.join(name);
    ensure!(
        !is_directory(&path),
        "{} is in the way: it is a directory, and not a copy of a checkpoint here; move it elsewhere",
        path.display()
    );
    let temporary = sibling(&path, "tmp");
    remove_file_if_present(&temporary)?;
    if symlink(target, &temporary).is_err() {
        write_new(&temporary, format!("{target}\n").as_bytes())?;
    }
    let linked = rename(&temporary, &path);
    if linked.is_err() {
        // What cannot be removed now, the next prune removes.
        _ = remove_file_if_present(&temporary);
    }
    linked?;
    sync_directory(checkpoints)
}

/// Removes what [`link`] made, if it is there.
pub fn unlink(checkpoints: &Path, name: &str) -> Result<()> {
    ensure!(LINKS.contains(&name), "{name:?} is not the name of a checkpoint link");
    remove_file_if_present(&checkpoints.join(name))
}

/// The checkpoint that `RUN` on the command line means: itself, or the run's best, else latest, else newest one. The
/// checkpoint is not verified; [`load`] does that.
///
/// # Errors
/// `Usage` when there is nothing of the kind at `run`, `CorruptCheckpoint` when a link points nowhere.
pub fn resolve(run: &Path) -> Result<PathBuf> {
    // `checkpoints/best` where links are text files.
    if let (true, Some(parent), Some(name)) = (run.is_file(), run.parent(), run.file_name().and_then(|n| n.to_str()))
        && LINKS.contains(&name)
        && let Some(target) = read_link(parent, name)?
    {
        return Ok(target);
    }
    if !run.is_dir() {
        let shown = run.display();
        return Err(Failure::Usage(format!("{shown} is not a directory: give a run or a checkpoint of it")).into());
    }
    // With a config.json it is a checkpoint that lost its manifest, or one of transformers: load tells. Such a model may
    // have a folder of that name, too.
    if is_checkpoint(run) || run.join("config.json").is_file() {
        return Ok(run.to_path_buf());
    }
    let checkpoints = run.join("checkpoints");
    if !checkpoints.is_dir() {
        return Err(Failure::Usage(format!("{} is neither a run nor a checkpoint", run.display())).into());
    }
    for name in LINKS {
        let Some(target) = read_link(&checkpoints, name)? else { continue };
        if !target.is_dir() {
            let (link, target) = (checkpoints.join(name), target.display());
            return Err(corrupt(format!("{} points at {target}, which is missing", link.display())));
        }
        return Ok(target);
    }
    let newest = steps(&checkpoints)?.into_iter().next();
    newest.ok_or_else(|| Failure::Usage(format!("{} has no checkpoint yet", run.display())).into())
}

/// The newest checkpoint in `checkpoints` that verifies, and those rejected on the way. A missing directory is one
/// without checkpoints.
pub fn newest(checkpoints: &Path) -> Result<Newest> {
    recover(checkpoints)?;
    let mut rejected = Vec::new();
    for directory in steps(checkpoints)? {
        match load(&directory) {
            Ok(files) => return Ok(Newest { found: Some((directory, files)), rejected }),
            Err(error) if is_damage(&error) => rejected.push((directory, format!("{error:#}"))),
            // A file that cannot be read now may be sound.
            Err(error) => return Err(error),
        }
    }
    Ok(Newest { found: None, rejected })
}

fn is_damage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Failure::CorruptCheckpoint(_)))
}

/// Where the checkpoint of a step is, or would be.
pub fn of_step(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(step_name(step))
}

/// Renames a checkpoint that does not verify to `step-000500.damaged`, which nothing here takes for a checkpoint.
pub fn set_aside(directory: &Path) -> Result<PathBuf> {
    let aside = directory.with_extension("damaged");
    remove_if_present(&aside)?;
    rename(directory, &aside)?;
    Ok(aside)
}

/// Removes the leftovers of crashed saves and all checkpoints but the newest `keep` (at least one), that of step
/// `spared`, and those that `best` and `latest` point at.
///
/// # Errors
/// If the newest checkpoint does not verify, or a link cannot be read: then no checkpoint is removed.
pub fn prune(checkpoints: &Path, keep: usize, spared: u64) -> Result<()> {
    recover(checkpoints)?;
    for (_, leftover) in leftovers(checkpoints, "tmp")? {
        if is_directory(&leftover) {
            remove_if_present(&leftover)?;
        } else {
            remove_file_if_present(&leftover)?;
        }
    }
    let steps = steps(checkpoints)?;
    let Some(newest) = steps.first() else { return Ok(()) };
    load(newest).context("no checkpoint was pruned, because the newest one does not verify")?;
    let mut linked = Vec::new();
    for name in LINKS {
        linked.extend(read_link(checkpoints, name)?.and_then(|target| target.canonicalize().ok()));
    }
    let spared = of_step(checkpoints, spared);
    for directory in steps.iter().skip(keep.max(1)).filter(|directory| **directory != spared) {
        let real = directory.canonicalize().with_context(|| format!("cannot look at {}", directory.display()))?;
        if !linked.contains(&real) {
            discard(directory, directory)?;
        }
    }
    Ok(())
}

/// Removes the checkpoints of later steps than `step`.
pub fn discard_after(checkpoints: &Path, step: u64) -> Result<()> {
    for name in names(checkpoints)?.iter().filter(|name| step_number(name).is_some_and(|number| number > step)) {
        let directory = checkpoints.join(name);
        discard(&directory, &directory)?;
    }
    Ok(())
}

/// Ends what a crash cut off in the middle of replacing a checkpoint (see [`super::directory`]), and makes links
/// possible again where a copy has put directories in their place.
fn recover(checkpoints: &Path) -> Result<()> {
    for (name, aside) in leftovers(checkpoints, "old")? {
        let directory = checkpoints.join(name);
        if directory.exists() {
            discard(&aside, &directory)?;
        } else {
            rename(&aside, &directory)?;
            sync_directory(checkpoints)?;
        }
    }
    LINKS.into_iter().try_for_each(|name| settle_copy(checkpoints, name))
}

/// `cp -L`, archives and cloud folders put a copy of the checkpoint where a link was. It goes if the checkpoint is there,
/// too, byte for byte by its manifest; else it is the only one, and gets the name of its step. Anything else is let be.
fn settle_copy(checkpoints: &Path, name: &str) -> Result<()> {
    let copy = checkpoints.join(name);
    if !is_directory(&copy) {
        return Ok(());
    }
    let Ok(manifest) = fs::read(copy.join(MANIFEST)) else { return Ok(()) };
    let is_original = |step: &PathBuf| fs::read(step.join(MANIFEST)).is_ok_and(|bytes| bytes == manifest);
    match steps(checkpoints)?.into_iter().find(is_original) {
        // The copy may be the sound one of the two.
        Some(original) if load(&original).is_ok() || load(&copy).is_err() => discard(&copy, &copy),
        Some(original) => {
            set_aside(&original)?;
            rename(&copy, &original)
        }
        None => match saved_step(&copy).map(|step| of_step(checkpoints, step)).filter(|place| !place.exists()) {
            Some(place) => rename(&copy, &place),
            None => Ok(()),
        },
    }
}

/// The step that a checkpoint's own state names, if it verifies.
fn saved_step(directory: &Path) -> Option<u64> {
    let files = load(directory).ok()?;
    let state: serde_json::Value = serde_json::from_slice(files.get("trainer_state.json").ok()?).ok()?;
    state["step"].as_u64()
}

/// Whether there is a directory itself, not a link to one.
fn is_directory(path: &Path) -> bool {
    path.is_dir() && !path.is_symlink()
}

/// Removes `doomed`, a checkpoint or one moved aside, under the temporary name of `directory`, so that a crash halfway
/// leaves nothing that looks like a damaged checkpoint.
fn discard(doomed: &Path, directory: &Path) -> Result<()> {
    let temporary = sibling(directory, "tmp");
    remove_if_present(&temporary)?;
    rename(doomed, &temporary)?;
    remove_if_present(&temporary)
}

/// The checkpoint directories, newest first.
pub fn steps(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    let mut steps = Vec::new();
    for name in names(checkpoints)? {
        let path = checkpoints.join(&name);
        if let Some(step) = step_number(&name)
            && is_directory(&path)
        {
            steps.push((step, path));
        }
    }
    steps.sort_by(|left, right| right.cmp(left));
    Ok(steps.into_iter().map(|(_, path)| path).collect())
}

/// What processes left under `.NAME.<purpose>-PID`, as (NAME, path).
fn leftovers(checkpoints: &Path, purpose: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for hidden in names(checkpoints)? {
        if let Some((name, pid)) = hidden.strip_prefix('.').and_then(|rest| rest.rsplit_once(&format!(".{purpose}-")))
            && pid.parse::<u32>().is_ok()
            && (step_number(name).is_some() || LINKS.contains(&name))
        {
            found.push((name.to_string(), checkpoints.join(&hidden)));
        }
    }
    Ok(found)
}

fn step_number(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

/// The names in a directory; none if it does not exist. Names that are not UTF-8 are not ours.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", directory.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// Where `checkpoints/<name>` points, if it exists. A real directory of that name (a copy that followed the links)
/// is its own target.
fn read_link(checkpoints: &Path, name: &str) -> Result<Option<PathBuf>> {
    let path = checkpoints.join(name);
    let read = || format!("cannot read {}", path.display());
    let found = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found.with_context(read)?,
    };
    if found.is_symlink() {
        return Ok(Some(checkpoints.join(fs::read_link(&path).with_context(read)?)));
    }
    if found.is_dir() {
        return Ok(Some(path));
    }
    let damaged = || corrupt(format!("{} does not name a checkpoint", path.display()));
    if found.len() > MAX_LINK_BYTES {
        return Err(damaged());
    }
    let text = String::from_utf8(fs::read(&path).with_context(read)?).map_err(|_| damaged())?;
    if is_plain_name(text.trim()) { Ok(Some(checkpoints.join(text.trim()))) } else { Err(damaged()) }
}

#[cfg(unix)]
fn symlink(target: &str, path: &Path) -> std::io::Result<()> {
    fault::system_call();
    std::os::unix::fs::symlink(target, path)
}

/// Windows grants symbolic links only to administrators and developers.
#[cfg(not(unix))]
fn symlink(_target: &str, _path: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::example;
    use super::super::save;
    use super::*;
    use crate::error::exit_code;
    use tempfile::{TempDir, tempdir};

    /// A run directory with checkpoints of these steps.
    fn run_with(steps: &[u64]) -> (TempDir, PathBuf) {
        let run = tempdir().unwrap();
        let checkpoints = run.path().join("checkpoints");
        for &step in steps {
            save(&checkpoints, step, &example("weights")).unwrap();
        }
        (run, checkpoints)
    }

    fn sorted_names(directory: &Path) -> Vec<String> {
        let mut names = names(directory).unwrap();
        names.sort();
        names
    }

    fn damage(checkpoint: &Path) {
        fs::write(checkpoint.join("model.safetensors"), "garbage").unwrap();
    }

    #[test]
    fn a_run_resolves_to_its_best_then_latest_then_newest_checkpoint() {
        let (run, checkpoints) = run_with(&[1, 2, 1_000_000]);
        assert_eq!(resolve(run.path()).unwrap(), checkpoints.join("step-1000000"));
        link(&checkpoints, "latest", &checkpoints.join("step-000002")).unwrap();
        assert_eq!(resolve(run.path()).unwrap(), checkpoints.join("step-000002"));
        link(&checkpoints, "best", &checkpoints.join("step-000002")).unwrap();
        link(&checkpoints, "best", &checkpoints.join("step-000001")).unwrap();
        assert_eq!(resolve(run.path()).unwrap(), checkpoints.join("step-000001"));
        load(&resolve(&checkpoints.join("best")).unwrap()).unwrap();
    }

    #[test]
    fn links_as_text_files_work_like_symbolic_ones() {
        let (run, checkpoints) = run_with(&[1, 2]);
        fs::write(checkpoints.join("best"), "step-000001\n").unwrap();
        assert_eq!(resolve(run.path()).unwrap(), checkpoints.join("step-000001"));
        assert_eq!(resolve(&checkpoints.join("best")).unwrap(), checkpoints.join("step-000001"));
        prune(&checkpoints, 1, 0).unwrap();
        assert_eq!(sorted_names(&checkpoints), ["best", "step-000001", "step-000002"]);
        fs::write(checkpoints.join("best"), "../../elsewhere").unwrap();
        assert_eq!(exit_code(&resolve(run.path()).unwrap_err()), 4);
    }

    #[test]
    fn a_link_to_a_missing_checkpoint_and_an_empty_run_are_errors() {
        let (run, checkpoints) = run_with(&[1]);
        link(&checkpoints, "best", &checkpoints.join("step-000001")).unwrap();
        fs::remove_dir_all(checkpoints.join("step-000001")).unwrap();
        assert!(resolve(run.path()).unwrap_err().to_string().contains("which is missing"));
        fs::remove_file(checkpoints.join("best")).unwrap();
        assert_eq!(exit_code(&resolve(run.path()).unwrap_err()), 2);
        assert_eq!(exit_code(&resolve(&run.path().join("nowhere")).unwrap_err()), 2);
        assert_eq!(exit_code(&resolve(&checkpoints).unwrap_err()), 2);
        assert!(link(&checkpoints, "best", &checkpoints.join("step-000009")).is_err());
    }

    #[test]
    fn newest_skips_damaged_checkpoints_and_says_why() {
        let (run, checkpoints) = run_with(&[1, 2, 3]);
        damage(&checkpoints.join("step-000003"));
        fs::remove_file(checkpoints.join("step-000002/MANIFEST.json")).unwrap();
        let newest = newest(&checkpoints).unwrap();
        assert_eq!(newest.found.unwrap().0, checkpoints.join("step-000001"));
        assert_eq!(newest.rejected[0].0, checkpoints.join("step-000003"));
        assert!(newest.rejected[0].1.contains("model.safetensors"), "{}", newest.rejected[0].1);
        assert!(newest.rejected[1].1.contains("MANIFEST.json"), "{}", newest.rejected[1].1);
        assert!(super::newest(&run.path().join("nowhere")).unwrap().found.is_none());
    }

    #[test]
    fn a_checkpoint_of_a_newer_version_is_neither_passed_over_nor_moved() {
        let (_run, checkpoints) = run_with(&[1, 2]);
        let manifest = checkpoints.join("step-000002").join(MANIFEST);
        fs::write(&manifest, r#"{"format": 2, "parts": []}"#).unwrap();
        let error = newest(&checkpoints).unwrap_err();
        assert!(exit_code(&error) == 4 && error.to_string().contains("newer version"), "{error:#}");
        assert_eq!(sorted_names(&checkpoints), ["step-000001", "step-000002"]);
    }

    #[test]
    fn copies_in_the_place_of_links_become_links_again_and_the_only_copy_is_kept() {
        let copy = |checkpoints: &Path, from: &str, to: &str| {
            fs::create_dir(checkpoints.join(to)).unwrap();
            for file in fs::read_dir(checkpoints.join(from)).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), checkpoints.join(to).join(file.file_name())).unwrap();
            }
        };
        // Of checkpoints that are there, too.
        let (_run, checkpoints) = run_with(&[1]);
        save(&checkpoints, 2, &example("other weights")).unwrap();
        copy(&checkpoints, "step-000001", "best");
        copy(&checkpoints, "step-000002", "latest");
        assert_eq!(newest(&checkpoints).unwrap().found.unwrap().0, checkpoints.join("step-000002"));
        link(&checkpoints, "latest", &checkpoints.join("step-000002")).unwrap();
        link(&checkpoints, "best", &checkpoints.join("step-000001")).unwrap();
        assert_eq!(sorted_names(&checkpoints), ["best", "latest", "step-000001", "step-000002"]);
        // The original is damaged, and the copy is not.
        fs::remove_file(checkpoints.join("best")).unwrap();
        copy(&checkpoints, "step-000001", "best");
        damage(&checkpoints.join("step-000001"));
        newest(&checkpoints).unwrap();
        load(&checkpoints.join("step-000001")).unwrap();
        assert!(checkpoints.join("step-000001.damaged").exists() && !checkpoints.join("best").exists());
        // The original is gone.
        let mut files = example("weights");
        files.push(("trainer_state.json", br#"{"step": 7}"#.to_vec()));
        save(&checkpoints, 7, &files).unwrap();
        fs::rename(checkpoints.join("step-000007"), checkpoints.join("best")).unwrap();
        assert_eq!(newest(&checkpoints).unwrap().found.unwrap().0, checkpoints.join("step-000007"));
        // Somebody's own folder.
        fs::create_dir(checkpoints.join("best")).unwrap();
        let error = link(&checkpoints, "best", &checkpoints.join("step-000007")).unwrap_err();
        assert!(error.to_string().contains("best is in the way"), "{error:#}");
        assert!(sorted_names(&checkpoints).iter().all(|name| !name.starts_with('.')));
    }

    #[test]
    fn prune_keeps_the_newest_and_those_that_links_point_at() {
        let (_run, checkpoints) = run_with(&[1, 2, 3, 4, 5]);
        link(&checkpoints, "best", &checkpoints.join("step-000002")).unwrap();
        link(&checkpoints, "latest", &checkpoints.join("step-000005")).unwrap();
        fs::write(checkpoints.join("notes.txt"), "mine").unwrap();
        prune(&checkpoints, 2, 0).unwrap();
        let kept = ["best", "latest", "notes.txt", "step-000002", "step-000004", "step-000005"];
        assert_eq!(sorted_names(&checkpoints), kept);
        prune(&checkpoints, 0, 0).unwrap();
        assert_eq!(sorted_names(&checkpoints), ["best", "latest", "notes.txt", "step-000002", "step-000005"]);
    }

    #[test]
    fn prune_removes_nothing_while_the_newest_checkpoint_is_damaged() {
        let (_run, checkpoints) = run_with(&[1, 2, 3]);
        damage(&checkpoints.join("step-000003"));
        assert_eq!(exit_code(&prune(&checkpoints, 1, 0).unwrap_err()), 4);
        assert_eq!(sorted_names(&checkpoints), ["step-000001", "step-000002", "step-000003"]);
    }

    #[test]
    fn leftovers_of_crashes_are_removed_and_strangers_are_not() {
        let (_run, checkpoints) = run_with(&[1]);
        for name in [".step-000002.tmp-77", ".step-000001.old-77"] {
            fs::create_dir(checkpoints.join(name)).unwrap();
            fs::write(checkpoints.join(name).join("config.json"), "{}").unwrap();
        }
        fs::write(checkpoints.join(".best.tmp-77"), "step-000001").unwrap();
        fs::create_dir(checkpoints.join(".mine.tmp-77")).unwrap();
        prune(&checkpoints, 1, 0).unwrap();
        assert_eq!(sorted_names(&checkpoints), [".mine.tmp-77", "step-000001"]);
    }

    #[test]
    fn a_crash_between_the_two_renames_of_a_replacement_loses_nothing() {
        let (_run, checkpoints) = run_with(&[1, 2]);
        let (directory, aside) = (checkpoints.join("step-000002"), checkpoints.join(".step-000002.old-77"));
        fs::rename(&directory, aside).unwrap();
        assert_eq!(newest(&checkpoints).unwrap().found.unwrap().0, directory);
        assert_eq!(sorted_names(&checkpoints), ["step-000001", "step-000002"]);
    }
}
