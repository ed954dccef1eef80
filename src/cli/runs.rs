//! `tinymoe runs`: the runs in a directory, side by side.

use crate::error::Failure;
use crate::terminal::{self, duration};
use crate::train::overview::{Overview, State, overviews};
use crate::train::resume::differing_keys;
use anyhow::Result;
use clap::Args;
use console::{Term, measure_text_width, truncate_str};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct RunsArgs {
    /// The directory that holds the runs, or one run
    #[arg(value_name = "DIR", default_value = "runs")]
    directory: PathBuf,
    /// An array of JSON objects instead of a table
    #[arg(long)]
    json: bool,
}

/// A run and the values of the keys in which the configurations of the list differ.
#[derive(Serialize)]
struct Listed {
    name: String,
    #[serde(flatten)]
    run: Overview,
    differences: BTreeMap<String, Value>,
}

/// # Errors
/// [`Failure::Usage`] where there is no such directory. Runs that cannot be read are listed as damaged.
pub fn run(args: RunsArgs) -> Result<()> {
    let directory = &args.directory;
    if !directory.is_dir() {
        let message = format!("{} is not a directory: give the one that holds your runs", directory.display());
        return Err(Failure::Usage(message).into());
    }
    let runs = listed(overviews(directory)?)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", terminal::json(&serde_json::to_string_pretty(&runs)?))?;
    } else if runs.is_empty() {
        writeln!(out, "no runs in {}", terminal::path(directory))?;
    } else {
        let is_terminal = io::stdout().is_terminal();
        let columns = Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns).max(20));
        for line in table(&runs, if is_terminal { columns } else { usize::MAX }) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn listed(runs: Vec<Overview>) -> Result<Vec<Listed>> {
    let mut keys = BTreeSet::new();
    let mut configs = runs.iter().filter_map(|run| run.config.as_ref());
    if let Some(first) = configs.next() {
        for config in configs {
            keys.extend(differing_keys(first, config)?);
        }
    }
    runs.into_iter()
        .map(|run| {
            let config = serde_json::to_value(&run.config)?;
            let value = |key: &String| {
                let (section, name) = key.split_once('.')?;
                Some((key.clone(), config.get(section)?.get(name)?.clone()))
            };
            Ok(Listed { name: name_of(&run.path), differences: keys.iter().filter_map(value).collect(), run })
        })
        .collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy()).into_owned()
}

/// A column: its title, how soon it gives way where the terminal is narrow (0: never), and what it shows of a run.
struct Column {
    title: &'static str,
    gives_way: u8,
    cell: fn(&Listed) -> String,
}

static COLUMNS: [Column; 9] = [
    Column { title: "run", gives_way: 0, cell: |listed| terminal::line(&listed.name).into_owned() },
    Column { title: "state", gives_way: 0, cell: |listed| listed.run.state.name().into() },
    Column { title: "step", gives_way: 2, cell: |listed| steps(&listed.run) },
    Column { title: "loss", gives_way: 3, cell: |listed| number(listed.run.loss) },
    Column { title: "bits/byte", gives_way: 1, cell: |listed| number(listed.run.bits_per_byte) },
    Column { title: "n-gram", gives_way: 4, cell: |listed| number(listed.run.ngram_bits_per_byte) },
    Column { title: "parameters", gives_way: 5, cell: |listed| count(listed.run.parameters.map(|count| count.total)) },
    Column { title: "active", gives_way: 6, cell: |listed| count(listed.run.parameters.map(|count| count.active)) },
    Column { title: "time", gives_way: 7, cell: |listed| listed.run.elapsed_s.map_or_else(missing, duration) },
];

const GAP: usize = 2;

fn missing() -> String {
    "-".into()
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(missing, |value| format!("{value:.4}"))
}

fn steps(run: &Overview) -> String {
    let show = |steps: Option<usize>| steps.map_or_else(missing, |steps| steps.to_string());
    format!("{}/{}", show(run.step), show(run.max_steps))
}

/// As in 935k, 2.56M.
fn count(value: Option<usize>) -> String {
    match value {
        None => missing(),
        Some(few @ 0..1_000) => few.to_string(),
        Some(thousands @ 1_000..1_000_000) => format!("{}k", thousands / 1_000),
        Some(many) => format!("{:.2}M", many as f64 / 1e6),
    }
}

/// A column with what it shows of each run, and how wide it is.
struct Filled {
    column: &'static Column,
    cells: Vec<String>,
    width: usize,
}

impl Filled {
    fn new(column: &'static Column, runs: &[Listed]) -> Self {
        let cells: Vec<String> = runs.iter().map(column.cell).collect();
        let widest = cells.iter().map(|cell| measure_text_width(cell)).max().unwrap_or(0);
        Self { column, cells, width: widest.max(column.title.len()) }
    }

    /// Words stand to the left, numbers to the right.
    fn padded(&self, text: &str) -> String {
        let space = " ".repeat(self.width.saturating_sub(measure_text_width(text)));
        if self.column.gives_way == 0 { format!("{text}{space}") } else { format!("{space}{text}") }
    }
}

/// The table and, below each run, what its configuration has that others have not, or what is damaged. No line is wider
/// than `width`.
fn table(runs: &[Listed], width: usize) -> Vec<String> {
    let mut columns: Vec<Filled> = COLUMNS.iter().map(|column| Filled::new(column, runs)).collect();
    let total = |columns: &[Filled]| columns.iter().map(|filled| filled.width + GAP).sum::<usize>() - GAP;
    while total(&columns) > width
        && let Some(last) = (0..columns.len()).max_by_key(|&place| columns[place].column.gives_way)
        && columns[last].column.gives_way > 0
    {
        columns.remove(last);
    }
    let row = |cells: Vec<String>| fitted(cells.join(&" ".repeat(GAP)).trim_end(), width);
    let mut lines = vec![row(columns.iter().map(|filled| filled.padded(filled.column.title)).collect())];
    for (place, run) in runs.iter().enumerate() {
        lines.push(row(columns.iter().map(|filled| filled.padded(&filled.cells[place])).collect()));
        if let Some(below) = below(run) {
            lines.push(fitted(&format!("    {below}"), width));
        }
    }
    lines
}

fn below(listed: &Listed) -> Option<String> {
    if let (State::Damaged, Some(problem)) = (listed.run.state, &listed.run.problem) {
        return Some(problem.replace('\n', " "));
    }
    let differences: Vec<String> =
        listed.differences.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
    (!differences.is_empty()).then(|| differences.join(" "))
}

/// A value as behind `--set`.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains(char::is_whitespace) => text.clone(),
        value => value.to_string(),
    }
}

fn fitted(line: &str, width: usize) -> String {
    truncate_str(&terminal::line(line), width, "…").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::run_directory::ParameterCounts;

    fn run(name: &str, state: State) -> Listed {
        let overview = Overview {
            path: name.into(),
            state,
            problem: (state == State::Damaged).then(|| "model.safetensors is damaged\nin many ways".into()),
            step: Some(500),
            max_steps: Some(1500),
            loss: Some(3.5541),
            best_step: Some(500),
            bits_per_byte: Some(1.8745),
            ngram_bits_per_byte: None,
            parameters: Some(ParameterCounts { total: 2_561_408, active: 939_392 }),
            elapsed_s: Some(75.0),
            config: None,
        };
        let differences = [("model.num_experts", Value::from(8)), ("train.sample_prompt", Value::from("\n"))];
        let differences = differences.map(|(key, value)| (key.to_string(), value));
        Listed { name: name.into(), run: overview, differences: differences.into() }
    }

    #[test]
    fn the_table_shows_all_that_fits() {
        let runs = [run("quickstart", State::Finished), run("languages-語\x1b", State::Damaged)];
        let wide = table(&runs, usize::MAX).join("\n");
        assert_eq!(wide.lines().count(), 5);
        for column in &COLUMNS {
            assert!(wide.lines().next().unwrap().contains(column.title), "{wide}");
        }
        assert!(wide.contains("500/1500  3.5541     1.8745       -       2.56M    939k  1m15s"), "{wide}");
        assert!(wide.contains("    model.num_experts=8 train.sample_prompt=\"\\n\""), "{wide}");
        assert!(wide.contains("    model.safetensors is damaged in many ways"), "{wide}");
        assert!(!wide.contains('\x1b'), "{wide}");
        for width in [100, 80, 50, 30] {
            let narrow = table(&runs, width);
            assert_eq!(narrow.len(), 5);
            assert!(narrow.iter().all(|line| measure_text_width(line) <= width), "{width}: {narrow:#?}");
            assert!(narrow[1].starts_with("quickstart") && narrow[1].contains("finished"), "{narrow:#?}");
        }
        assert!(table(&runs, 50)[0].ends_with("bits/byte"), "{:#?}", table(&runs, 50));
    }
}
