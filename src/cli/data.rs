//! `tinymoe data`: the receipt of what would be read from files: how each is taken, what it comes to, what is left out.

use crate::config::{self, DataConfig};
use crate::error::Failure;
use crate::terminal;
use crate::train::prepare::{grouped, selection};
use crate::train::receipt::{counted, summary};
use crate::transcript::{Corpus, FileEntry, Receipt};
use anyhow::Result;
use clap::Args;
use console::Term;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io::{self, BufWriter, Write};

#[derive(Debug, Args)]
pub struct DataArgs {
    /// Files, directories and globs, each with a domain label if wanted
    #[arg(required = true, value_name = "PATH[=DOMAIN]")]
    sources: Vec<String>,
    /// Change how they are read, as in `--set data.keep_timestamps=true`; may be repeated
    #[arg(long = "set", value_name = "data.KEY=VALUE")]
    overrides: Vec<String>,
    /// Print the first N lines of every file as they are learned
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "text")]
    show: usize,
    /// Print the text that is learned, and nothing else
    #[arg(long, conflicts_with = "json")]
    text: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Of copies, skipped rows and the like, so many are listed; `--json` has more.
const LISTED: usize = 10;
/// The narrowest table.
const LEAST_WIDTH: usize = 80;
/// Longer lines are cut where they are only shown.
const SHOWN_CHARACTERS: usize = 300;

/// # Errors
/// Usage errors, and files that cannot be read.
pub fn run(args: DataArgs) -> Result<()> {
    let corpus = Corpus::find(&selection(&data_config(&args)?))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut first_lines: HashMap<String, Vec<String>> = HashMap::new();
    let receipt = corpus.read_files(|file, document| {
        if args.text {
            out.write_all(document.text.as_bytes())?;
        } else if args.show > 0 {
            let lines = first_lines.entry(file.to_string()).or_default();
            let wanted = args.show - lines.len();
            lines.extend(document.text.lines().take(wanted).map(str::to_string));
        }
        Ok(())
    })?;
    if args.json {
        serde_json::to_writer_pretty(&mut out, &with_lines(&receipt, &first_lines)?)?;
        writeln!(out)?;
    } else if !args.text {
        write!(out, "{}", render(&receipt, &first_lines, width()))?;
    }
    Ok(out.flush()?)
}

/// The `[data]` section that the arguments come to.
fn data_config(args: &DataArgs) -> Result<DataConfig> {
    if let Some(other) = args.overrides.iter().find(|setting| !setting.trim_start().starts_with("data.")) {
        return Err(Failure::Usage(format!("--set {other}: only keys of [data] say how text is read")).into());
    }
    // A configuration without sources is refused.
    let mut overrides = vec!["data.sources=-".to_string()];
    overrides.extend(args.overrides.iter().cloned());
    Ok(DataConfig { sources: args.sources.clone(), ..config::parse("", "the arguments", &overrides)?.data })
}

fn with_lines(receipt: &Receipt, first_lines: &HashMap<String, Vec<String>>) -> Result<Value> {
    let mut json = serde_json::to_value(receipt)?;
    for file in json["files"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        let lines = file.get("name").and_then(Value::as_str).and_then(|name| first_lines.get(name)).cloned();
        insert_some(file, "first_lines", lines);
    }
    json["total"] = json!(receipt.total());
    Ok(json)
}

fn insert_some(object: &mut Map<String, Value>, key: &str, value: Option<Vec<String>>) {
    if let Some(value) = value {
        object.insert(key.into(), json!(value));
    }
}

/// Columns to write in: a terminal's; anything else is read by a program, or in a pager.
fn width() -> Option<usize> {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.or_else(|| Term::stdout().size_checked().map(|(_, columns)| usize::from(columns)))
}

/// The receipt as text, at most `width` characters wide (but for what is shown of the files and reasons).
fn render(receipt: &Receipt, first_lines: &HashMap<String, Vec<String>>, width: Option<usize>) -> String {
    let mut out = table(receipt, first_lines, width);
    out += "\n";
    for (domain, total) in &receipt.domains {
        out += &format!(
            "domain {}: {}, {}, {} bytes kept, {} dropped\n",
            shown(domain),
            counted(total.documents, "document", "documents"),
            counted(total.turns, "turn", "turns"),
            grouped(total.bytes),
            grouped(total.dropped_bytes)
        );
    }
    list(
        &mut out,
        "copies of other files, learned as often as they occur",
        receipt.copies().map(|(file, of)| format!("{} has the text of {}", shown(&file.name), shown(of))),
    );
    list(
        &mut out,
        "other formats of a talk, not read",
        receipt
            .other_formats
            .iter()
            .map(|other| format!("{} has the words of {}", shown(&other.name), shown(&other.read_instead))),
    );
    list(
        &mut out,
        "files that cannot be read, skipped",
        receipt.skipped_files.iter().map(|file| format!("{}: {}", shown(&file.name), shown(&file.reason))),
    );
    list_of(
        &mut out,
        "empty or unreadable rows, skipped",
        receipt.skipped_row_count,
        receipt.skipped_rows.iter().map(|row| format!("{}: {}", shown(&row.place), shown(&row.reason))),
    );
    list(
        &mut out,
        "passed over",
        receipt.passed_over.iter().map(|passed| format!("{}: {}", shown(&passed.path), passed.reason)),
    );
    out + &summary(receipt).join("\n") + "\n"
}

/// A line per file.
fn table(receipt: &Receipt, first_lines: &HashMap<String, Vec<String>>, width: Option<usize>) -> String {
    const HEAD: [&str; 9] = ["file", "format", "told by", "domain", "docs", "speakers", "turns", "kept", "dropped"];
    let folder = width.map_or("", |_| common_folder(&receipt.files));
    let cells = |file: &FileEntry| {
        [
            shown(&file.name[folder.len()..]),
            shown(&file.format),
            file.recognised_by.clone(),
            shown(&file.domain),
            grouped(file.documents),
            grouped(file.speakers.len()),
            grouped(file.turns),
            grouped(file.bytes),
            grouped(file.dropped_bytes),
        ]
    };
    let rows: Vec<[String; 9]> =
        std::iter::once(HEAD.map(String::from)).chain(receipt.files.iter().map(cells)).collect();
    let mut widths = [0; 9];
    for (column, width) in widths.iter_mut().enumerate() {
        *width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    }
    if let Some(width) = width {
        fit(&mut widths, width.max(LEAST_WIDTH));
    }
    let mut out = if folder.is_empty() { String::new() } else { format!("in {}\n", shown(folder)) };
    for (row, file) in rows.iter().zip(std::iter::once(None).chain(receipt.files.iter().map(Some))) {
        let line: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                let cell = elided(cell, width);
                // Words to the left, numbers to the right.
                if column < 4 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            })
            .collect();
        out += line.join("  ").trim_end();
        out += "\n";
        for line in file.and_then(|file| first_lines.get(&file.name)).into_iter().flatten() {
            out += &format!(
                "    {}\n",
                elided_end(&shown(line), width.map_or(SHOWN_CHARACTERS, |width| width.max(LEAST_WIDTH) - 4))
            );
        }
    }
    out
}

/// The folder, with its slash, that all files lie below.
fn common_folder(files: &[FileEntry]) -> &str {
    let Some((first, others)) = files.split_first() else { return "" };
    let folders = first.name.match_indices('/').map(|(slash, _)| &first.name[..=slash]);
    folders.take_while(|folder| others.iter().all(|file| file.name.starts_with(folder))).last().unwrap_or("")
}

/// Narrows the columns of words until the table fits: that of the files first, then format and domain.
fn fit(widths: &mut [usize; 9], width: usize) {
    for (column, least) in [(0, 24), (1, 12), (3, 8), (0, 12)] {
        let total: usize = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
        let excess = total.saturating_sub(width);
        widths[column] -= excess.min(widths[column].saturating_sub(least));
    }
}

/// A name in `width` characters, its middle left out if it is longer.
fn elided(name: &str, width: usize) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= width || width < 3 {
        return name.to_string();
    }
    // The end tells more.
    let head = (width - 1) / 3;
    let tail = characters.len() - (width - 1 - head);
    let part = |characters: &[char]| characters.iter().collect::<String>();
    format!("{}…{}", part(&characters[..head]), part(&characters[tail..]))
}

fn elided_end(line: &str, width: usize) -> String {
    match line.char_indices().nth(width.max(1) - 1) {
        Some((end, character)) if end + character.len_utf8() < line.len() => format!("{}…", &line[..end]),
        _ => line.to_string(),
    }
}

fn list(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.collect();
    list_of(out, title, lines.len(), lines.into_iter());
}

/// The first of `count` lines below a title; nothing where there are none.
fn list_of(out: &mut String, title: &str, count: usize, lines: impl Iterator<Item = String>) {
    if count == 0 {
        return;
    }
    *out += &format!("{title}: {}\n", grouped(count));
    let mut listed = 0;
    for line in lines.take(LISTED) {
        *out += &format!("    {line}\n");
        listed += 1;
    }
    if count > listed {
        *out += &format!("    and {} more; --json lists them\n", grouped(count - listed));
    }
}

/// Text from outside, safe to print on one line.
fn shown(text: &str) -> String {
    terminal::line(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lines_are_cut_to_their_width() {
        assert_eq!(elided("talks/2024/a-long-name.srt", 16), "talks…g-name.srt");
        assert_eq!(elided("short", 16), "short");
        assert_eq!(elided_end("a line of words", 7), "a line…");
        assert_eq!(elided_end("a line", 6), "a line");
    }

    #[test]
    fn a_table_fits_the_width_as_far_as_it_can() {
        let mut widths = [90, 18, 9, 10, 9, 8, 5, 9, 7];
        fit(&mut widths, 100);
        assert_eq!(widths, [17, 12, 9, 8, 9, 8, 5, 9, 7]);
        assert_eq!(widths.iter().sum::<usize>() + 2 * 8, 100);
        let mut widths = [20, 10, 9, 6, 9, 8, 5, 9, 7];
        let before = widths;
        fit(&mut widths, 120);
        assert_eq!(widths, before);
    }
}
