//! Figures in the documentation have one home each: a file in `docs/figures/`, written by the script that measured them.
//! Markdown quotes a figure as `1.8745<!--learning.quickstart.bits_per_byte-->`: the number, then, in a comment that a
//! reader does not see, the file and the path in it. Below a block of code, where a comment would be seen, it is
//! `<!--above: 1.8745 = learning.quickstart.bits_per_byte-->`. The number may have any number of decimals; it must be the
//! rounded figure. `UPDATE_FIGURES=1 cargo test --release --test figures` writes what the files say into the documents.

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
            let block = text[..start].trim_end().strip_suffix("```").expect("a block of code stands above");
            let block = block.rfind("```").unwrap()..block.len();
            for pair in list.split(',') {
                let (number, key) = pair.split_once('=').expect("NUMBER = KEY");
                let number = number.trim();
                let offset = text[block.clone()].find(number).unwrap_or_else(|| panic!("{number} stands not above"));
                let offset = block.start + offset;
                quotes.push(Quote { range: offset..offset + number.len(), key: key.trim().to_owned() });
                // The pair in the comment itself, so that both are rewritten.
                let pair = start + text[start..].find(number).unwrap();
                quotes.push(Quote { range: pair..pair + number.len(), key: key.trim().to_owned() });
            }
        } else if comment.contains('.') && !comment.contains(' ') {
            let digits = text[..start].rfind(|c: char| !c.is_ascii_digit() && c != '.' && c != ',').map_or(0, |at| {
                at + text[at..].chars().next().map_or(0, char::len_utf8)
            });
            quotes.push(Quote { range: digits..start, key: comment.to_owned() });
        }
    }
    quotes
}

/// `value` as `like` is written: with as many decimals, and with commas where that has some.
fn written_like(value: f64, like: &str) -> String {
    let decimals = like.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let number = format!("{value:.decimals$}");
    let (whole, fraction) = number.split_once('.').map_or((number.as_str(), None), |(w, f)| (w, Some(f)));
    let grouped: Vec<&str> =
        whole.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap()).collect();
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
    let text = "about 2,561,408<!--a.n--> of **1.96**, -0.5<!--a.b.c--> x\n\n```\nloss 3.55 here\n```\n<!--above: 3.55 = a.l-->\n";
    let found = quotes(text);
    let numbers: Vec<&str> = found.iter().map(|quote| &text[quote.range.clone()]).collect();
    assert_eq!(numbers, ["2,561,408", "0.5", "3.55", "3.55"]);
    assert_eq!(found[1].key, "a.b.c");
    assert_eq!(written_like(3.5541, "3.55"), "3.55");
    assert_eq!(written_like(2561408.0, "1"), "2,561,408");
    assert_eq!(written_like(12575.4, "12,575"), "12,575");
}
