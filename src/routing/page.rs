//! The report as one HTML file: the page's style, script and data are put into its frame, so that it opens from disk
//! without a network.

use super::report::Report;
use anyhow::Result;
use serde_json::{Number, Value};

const FRAME: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
/// The line of the frame that names what made it.
const GENERATOR: &str = r#"<meta name="generator" content="tinymoe">"#;
/// In the order in which they build on each other.
const SCRIPTS: [&str; 9] = [
    include_str!("page/dom.js"),
    include_str!("page/charts.js"),
    include_str!("page/text.js"),
    include_str!("page/figures.js"),
    include_str!("page/flow.js"),
    include_str!("page/importance.js"),
    include_str!("page/training.js"),
    include_str!("page/cards.js"),
    include_str!("page/report.js"),
];
/// Significant digits of numbers in the page.
const DIGITS: usize = 4;

/// The page for a report.
///
/// # Errors
/// None that a report could cause.
pub fn page(report: &Report) -> Result<String> {
    let mut data = serde_json::to_value(report)?;
    shorten(&mut data);
    // No text can end the script element that holds the data.
    let data = serde_json::to_string(&data)?.replace('<', "\\u003c");
    let page = FRAME.replacen("/*STYLE*/", STYLE, 1);
    let page = page.replacen("/*SCRIPT*/", &SCRIPTS.join("\n"), 1);
    Ok(page.replacen("/*DATA*/", &data, 1))
}

/// Whether a file with this start is a page of [`page`], of this version or an earlier one.
pub fn is_page(start: &[u8]) -> bool {
    let start = String::from_utf8_lossy(start);
    let marks = [GENERATOR, "<!-- Nothing may be loaded from anywhere: the file is all there is. -->"];
    marks.iter().any(|mark| start.contains(mark))
}

/// Rounds all numbers that are not integers.
fn shorten(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let rounded = number.as_f64().and_then(|x| format!("{x:.*e}", DIGITS - 1).parse().ok());
            if let Some(rounded) = rounded.and_then(Number::from_f64) {
                *number = rounded;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_by_its_frame() {
        assert!(FRAME.contains(GENERATOR) && is_page(&FRAME.as_bytes()[..600]));
        assert!(!is_page(b"<!doctype html><title>Routing report</title>") && !is_page(b"\xff\xfe"));
    }

    #[test]
    fn numbers_are_cut_to_four_digits_and_integers_and_text_left_alone() {
        let mut value = serde_json::json!({"a": [0.123456789, 1e-9, 123456, -2.0, "0.123456789"], "b": 98765.4321});
        shorten(&mut value);
        assert_eq!(value, serde_json::json!({"a": [0.1235, 1e-9, 123456, -2.0, "0.123456789"], "b": 98770.0}));
    }
}
