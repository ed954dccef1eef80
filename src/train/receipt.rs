//! The receipt of the data as a run tells it: in two lines on the terminal, in full in `run.json`.

use super::prepare::grouped;
use crate::transcript::Receipt;
use serde_json::{Value, json};

/// Files that `run.json` lists.
const MAX_LISTED: usize = 10_000;

/// What is learned, and what is not.
pub fn summary(receipt: &Receipt) -> [String; 2] {
    let total = receipt.total();
    let read = format!(
        "read {} from {} in {}: {}, {} bytes of text; {} bytes of markup and times dropped",
        counted(total.documents, "document", "documents"),
        counted(receipt.files.len(), "file", "files"),
        counted(receipt.domains.len(), "domain", "domains"),
        counted(total.turns, "turn", "turns"),
        grouped(total.bytes),
        grouped(total.dropped_bytes)
    );
    let left_out = [
        (receipt.skipped_files.len(), "file that cannot be read", "files that cannot be read"),
        (receipt.skipped_row_count, "empty or unreadable row", "empty or unreadable rows"),
        (receipt.other_formats.len(), "other format of a talk", "other formats of talks"),
        (receipt.passed_over.len(), "path passed over", "paths passed over"),
    ];
    let told: Vec<String> = left_out
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, many)| counted(count, one, many))
        .collect();
    let mut skipped =
        if told.is_empty() { "nothing was skipped".into() } else { format!("skipped {}", told.join(", ")) };
    match receipt.copies().count() {
        0 => {}
        copies => skipped += &format!("; {} of other files", counted(copies, "file is a copy", "files are copies")),
    }
    [read, skipped]
}

/// Names the files that could not be read, the first ten of them.
pub fn warn_of_skipped(receipt: &Receipt) {
    let skipped = &receipt.skipped_files;
    if skipped.is_empty() {
        return;
    }
    let mut lines =
        vec![format!("skipped {}:", counted(skipped.len(), "file that cannot be read", "files that cannot be read"))];
    lines.extend(skipped.iter().take(10).map(|file| format!("  {}: {}", file.name, file.reason)));
    lines.extend((skipped.len() > 10).then(|| format!("  and {} more", grouped(skipped.len() - 10))));
    log::warn!("{}", lines.join("\n"));
}

/// For `run.json`: the files, and all else.
pub fn facts(receipt: &Receipt) -> (Value, Value) {
    let listed = &receipt.files[..receipt.files.len().min(MAX_LISTED)];
    let total = receipt.total();
    let rest = json!({
        "files": receipt.files.len(),
        "documents": total.documents,
        "turns": total.turns,
        "bytes": total.bytes,
        "dropped_bytes": total.dropped_bytes,
        "domains": receipt.domains,
        "other_formats": receipt.other_formats,
        "skipped_files": receipt.skipped_files,
        "skipped_rows": receipt.skipped_rows,
        "skipped_row_count": receipt.skipped_row_count,
        "passed_over": receipt.passed_over,
    });
    (json!(listed), rest)
}

/// "1 file", "2 files".
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}
