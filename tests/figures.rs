//! Figures in the documentation have one home each: a file in `docs/figures/`, written by the script that measured them.
//! Markdown quotes a figure as `1.8745<!--learning.quickstart.bits_per_byte-->`: the number, then, in a comment that a
//! reader does not see, the file and the path in it. Below a block of code, where a comment would be seen, it is
//! `<!--above: 1.8745 = learning.quickstart.bits_per_byte-->`. Above a table, `<!--table: ROWS; COLUMNS-->` names a path for
//! each row and its continuation for each column: `-` for a column without figures, `min+max` for a cell with two; a cell
//! without a digit quotes nothing. A number may have any number of decimals; it must be the rounded figure. `UPDATE_FIGURES=1 cargo test --release --test figures` writes what the files say into the documents.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A figure that a document quotes.
struct Quote {
    /// The number's place in the document.
    range: Range<usize>,
    key: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn figures() -> BTreeMap<String, Value> {
    let parse = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap())
    };
    files(&root().join("docs/figures"), "json").into_iter().map(parse).collect()
}

/// The figure at a path such as `learning.quickstart.loss`.
fn look_up(figures: &BTreeMap<String, Value>, key: &str) -> Option<f64> {
    let mut parts = key.split('.');
    let file = figures.get(parts.next()?)?;
    parts.try_fold(file, |value, part| value.get(part))?.as_f64()
}

fn quotes(text: &str) -> Vec<Quote> {
    let mut quotes = Vec::new();
    for (start, _) in text.match_indices("<!--") {
        let Some(length) = text[start..].find("-->") else { continue };
        let comment = text[start + 4..start + length].trim();
        if let Some(list) = comment.strip_prefix("above:") {
            quote_above(text, start, list, &mut quotes);
        } else if let Some(keys) = comment.strip_prefix("table:") {
            quote_table(text, start + length + "-->\n".len(), keys, &mut quotes);
        } else if comment.contains('.') && !comment.contains(' ') {
            let number = numbers(&text[..start]).pop().expect("a number stands before its figure");
            assert_eq!(number.end, start, "a number stands before {comment}");
            quotes.push(Quote { range: number, key: comment.to_owned() });
        }
    }
    quotes
}

/// Figures in the block of code before the comment at `start`, and in the comment itself.
fn quote_above(text: &str, start: usize, list: &str, quotes: &mut Vec<Quote>) {
    let block = text[..start].trim_end().strip_suffix("```").expect("a block of code stands above");
    let block = block.rfind("```").unwrap()..block.len();
    for pair in list.split(',') {
        let (number, key) = pair.split_once('=').expect("NUMBER = KEY");
        let (number, key) = (number.trim(), key.trim().to_owned());
        for within in [block.clone(), start..text.len()] {
            let offset = text[within.clone()].find(number).unwrap_or_else(|| panic!("{number} does not stand above"));
            let range = within.start + offset..within.start + offset + number.len();
            quotes.push(Quote { range, key: key.clone() });
        }
    }
}

/// Figures in the table that begins at `start`.
fn quote_table(text: &str, start: usize, keys: &str, quotes: &mut Vec<Quote>) {
    let (rows, columns) = keys.split_once(';').expect("ROWS; COLUMNS");
    let columns: Vec<&str> = columns.split_whitespace().collect();
    // The header and the line below it.
    let mut line_start = start + text[start..].split_inclusive('\n').take(2).map(str::len).sum::<usize>();
    for row in rows.split_whitespace() {
        let line = text[line_start..].split_inclusive('\n').next().unwrap_or_default();
        let cells: Vec<&str> = line.trim_end().trim_end_matches('|').split('|').skip(1).collect();
        assert_eq!(cells.len(), columns.len(), "{line}");
        let mut cell_start = line_start + 1;
        line_start += line.len();
        for (cell, column) in cells.into_iter().zip(&columns) {
            let (found, start) = (numbers(cell), cell_start);
            cell_start += cell.len() + 1;
            if *column == "-" {
                continue;
            }
            let keys: Vec<&str> = column.split('+').collect();
            assert!(found.is_empty() || found.len() == keys.len(), "{cell}: not {} figures", keys.len());
            for (number, key) in found.into_iter().zip(keys) {
                let range = start + number.start..start + number.end;
                quotes.push(Quote { range, key: format!("{row}.{key}") });
            }
        }
    }
}

/// Where numbers stand: digits with commas and a point between them.
fn numbers(text: &str) -> Vec<Range<usize>> {
    let mut numbers: Vec<Range<usize>> = Vec::new();
    for (at, c) in text.char_indices() {
        let digit_follows = text[at + c.len_utf8()..].starts_with(|next: char| next.is_ascii_digit());
        match numbers.last_mut().filter(|last| last.end == at) {
            Some(last) if c.is_ascii_digit() || ((c == '.' || c == ',') && digit_follows) => last.end = at + 1,
            None if c.is_ascii_digit() => numbers.push(at..at + 1),
            _ => {}
        }
    }
    numbers
}

/// `value` as `like` is written: with as many decimals, and with commas where that has some.
fn written_like(value: f64, like: &str) -> String {
    let decimals = like.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let number = format!("{value:.decimals$}");
    let (whole, fraction) = number.split_once('.').map_or((number.as_str(), None), |(w, f)| (w, Some(f)));
    let grouped: Vec<&str> = whole.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap()).collect();
    let whole = if whole.len() > 3 { grouped.join(",") } else { whole.to_owned() };
    fraction.map_or(whole.clone(), |fraction| format!("{whole}.{fraction}"))
}

#[test]
fn documents_quote_the_figures_that_were_measured() {
    let figures = figures();
    let update = std::env::var_os("UPDATE_FIGURES").is_some();
    let mut documents = files(&root().join("docs"), "md");
    documents.push(root().join("README.md"));
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for path in documents {
        let mut text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut found = quotes(&text);
        found.sort_by_key(|quote| quote.range.start);
        seen += found.len();
        // From the end, so that earlier places stay where they are.
        for Quote { range, key } in found.into_iter().rev() {
            let number = text[range.clone()].to_owned();
            let line = text[..range.start].lines().count().max(1);
            match look_up(&figures, &key) {
                None => wrong.push(format!("{name}:{line}: there is no figure {key}")),
                Some(value) if written_like(value, &number) != number => {
                    let right = written_like(value, &number);
                    if update {
                        text.replace_range(range, &right);
                    } else {
                        wrong.push(format!("{name}:{line}: {number} should be {right} ({key})"));
                    }
                }
                Some(_) => {}
            }
        }
        if update {
            fs::write(&path, text).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 0, "no document quotes a figure");
}

#[test]
fn a_quoted_number_is_found_and_rounded() {
    let text = "about 2,561,408<!--a.n--> of **1.96**, 0.5<!--a.b.c--> x\n\n```\nloss 3.55 here\n```\n<!--above: 3.55 = a.l-->\n\n\
                <!--table: a.x a.y; - min+max mean-->\n| | range | mean |\n|---|---|---|\n| x2 | 1.5 to 2,000 | |\n| y | 3 to 4 | 3.5x |\n";
    let found = quotes(text);
    let of = |quote: &Quote| (text[quote.range.clone()].to_owned(), quote.key.clone());
    let expected = [
        ("2,561,408", "a.n"),
        ("0.5", "a.b.c"),
        ("3.55", "a.l"),
        ("3.55", "a.l"),
        ("1.5", "a.x.min"),
        ("2,000", "a.x.max"),
        ("3", "a.y.min"),
        ("4", "a.y.max"),
        ("3.5", "a.y.mean"),
    ];
    assert_eq!(found.iter().map(of).collect::<Vec<_>>(), expected.map(|(number, key)| (number.into(), key.into())));
    assert_eq!(written_like(3.5541, "3.55"), "3.55");
    assert_eq!(written_like(2561408.0, "1"), "2,561,408");
    assert_eq!(written_like(12575.4, "12,575"), "12,575");
}
