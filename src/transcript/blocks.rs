//! The lines of a Markdown file: which are text, which are code, and which are neither.

use std::borrow::Cow;

/// A line that is part of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Text(Cow<'a, str>),
    /// As it is, in a block of code.
    Code(&'a str),
}

/// The lines without front matter, comments, rules, fences and blanks.
pub(super) fn lines(contents: &str) -> Vec<Line<'_>> {
    let mut found = Vec::new();
    let mut rest = after_front_matter(contents);
    let (mut fence, mut after_blank, mut in_list) = (None, true, false);
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = after;
        if let Some(open) = &fence {
            if Fence::of(line).is_some_and(|close: Fence| close.closes(open)) {
                fence = None;
            } else if !line.trim().is_empty() {
                found.push(Line::Code(open.without_indent(line)));
            }
            continue;
        }
        let mark = Fence::of(line);
        let is_fence = mark.as_ref().is_some_and(|mark| mark.info.split_whitespace().count() <= 1);
        fence = mark.filter(|open| open.is_closed_in(rest));
        let trimmed = line.trim();
        if fence.is_some() || is_fence || trimmed.is_empty() {
            after_blank = true;
            continue;
        }
        let indented = line.strip_prefix("    ").or_else(|| line.strip_prefix('\t'));
        if let Some(code) = indented.filter(|_| after_blank && !in_list) {
            found.push(Line::Code(code.trim_end()));
            continue;
        }
        (after_blank, in_list) = (false, is_list_item(trimmed) || (in_list && line.starts_with([' ', '\t'])));
        if is_rule(trimmed) {
            continue;
        }
        let (text, after) = without_hidden(line, rest);
        rest = after;
        if !text.trim().is_empty() {
            found.push(Line::Text(text));
        }
    }
    found
}

/// ```` ``` ```` or `~~~` around code.
struct Fence<'a> {
    mark: &'a str,
    indent: usize,
    /// What follows the mark: the language.
    info: &'a str,
}

impl<'a> Fence<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let text = line.trim_start();
        let info = text.trim_start_matches(if text.starts_with('~') { '~' } else { '`' });
        let mark = &text[..text.len() - info.len()];
        (mark.len() >= 3 && !(mark.starts_with('`') && info.contains('`'))).then_some(Self {
            mark,
            indent: line.len() - text.len(),
            info,
        })
    }

    fn closes(&self, open: &Fence) -> bool {
        self.info.trim().is_empty() && self.mark.starts_with(open.mark)
    }

    /// A fence that is never closed would take all that follows for code: what is said there is worth more.
    fn is_closed_in(&self, rest: &str) -> bool {
        rest.lines().any(|line| Fence::of(line).is_some_and(|close| close.closes(self)))
    }

    fn without_indent<'b>(&self, line: &'b str) -> &'b str {
        let blanks = line.len() - line.trim_start_matches([' ', '\t']).len();
        line[blanks.min(self.indent)..].trim_end()
    }
}

/// Without what stands between two lines `---` (YAML) or `+++` (TOML) at the very beginning, if it looks like that.
fn after_front_matter(contents: &str) -> &str {
    let Some((mark, body)) = contents.split_once('\n').map(|(mark, body)| (mark.trim_end(), body)) else {
        return contents;
    };
    let (separator, ends): (char, &[&str]) = match mark {
        "---" => (':', &["---", "..."]),
        "+++" => ('=', &["+++"]),
        _ => return contents,
    };
    let is_key = |line: &str| {
        let is_name = |key: &str| !key.trim().is_empty() && !key.contains(['.', '!', '?', '*']);
        line.split_once(separator).is_some_and(|(key, value)| {
            is_name(key) && (separator == '=' || value.is_empty() || value.starts_with(char::is_whitespace))
        })
    };
    let mut position = 0;
    for line in body.split_inclusive('\n') {
        position += line.len();
        let line = line.trim_end();
        if ends.contains(&line) {
            return &body[position..];
        }
        let belongs_to_a_key = line.is_empty() || line.starts_with([' ', '\t', '#', '-', '[', ']', '}', '"']);
        if !belongs_to_a_key && !is_key(line) {
            return contents;
        }
    }
    contents
}

/// `---`, `***` or `___`, with or without spaces between, or the `===` below a heading.
fn is_rule(line: &str) -> bool {
    let is_of =
        |mark: char| line.chars().all(|c| c == mark || c == ' ') && line.chars().filter(|&c| c == mark).count() >= 3;
    ['-', '*', '_', '='].into_iter().any(is_of)
}

fn is_list_item(line: &str) -> bool {
    let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    ["- ", "* ", "+ "].iter().any(|mark| line.starts_with(mark))
        || (number.len() < line.len() && (number.starts_with(". ") || number.starts_with(") ")))
}

/// What begins and ends something that no reader of the page sees.
const HIDDEN: [(&str, &str); 4] = [("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"), ("{/*", "*/}")];

/// The line without comments, scripts and the like, and what follows in the file. They may span lines, as a tag may:
/// then the line goes on where they end.
fn without_hidden<'a>(line: &'a str, rest: &'a str) -> (Cow<'a, str>, &'a str) {
    if !line.contains(['<', '{']) {
        return (Cow::Borrowed(line), rest);
    }
    let (mut text, mut rest) = (line.to_string(), rest);
    let mut searched = 0;
    while let Some((start, end_mark)) = next_hidden(&text, searched) {
        if let Some(end) = text[start..].find(end_mark) {
            text.replace_range(start..start + end + end_mark.len(), "");
        } else if let Some(end) = rest.find(end_mark) {
            let after = &rest[end + end_mark.len()..];
            let (line, next) = after.split_once('\n').unwrap_or((after, ""));
            text.truncate(start);
            text.push_str(line);
            rest = next;
        } else {
            searched = start + 1;
        }
    }
    while opens_tag(&text) {
        let (line, next) = rest.split_once('\n').unwrap_or((rest, ""));
        if line.trim().is_empty() {
            break;
        }
        text.push(' ');
        text.push_str(line.trim());
        rest = next;
    }
    (Cow::Owned(text), rest)
}

/// The first beginning at or after `from`, not in a code span.
fn next_hidden(text: &str, from: usize) -> Option<(usize, &'static str)> {
    let found = HIDDEN.iter().filter_map(|(start, end)| Some((from + text[from..].find(start)?, *end))).min()?;
    let is_code = text[..found.0].matches('`').count() % 2 == 1;
    if is_code { next_hidden(text, found.0 + 1) } else { Some(found) }
}

/// `... <a class="x"` at the end of a line.
fn opens_tag(text: &str) -> bool {
    let Some((before, tag)) = text.rsplit_once('<') else { return false };
    let has_name = tag.starts_with(|c: char| c.is_ascii_alphabetic());
    has_name
        && !tag.contains('>')
        && tag.contains(['=', ' '])
        && tag.contains("=\"")
        && before.matches('`').count() % 2 == 0
        || (has_name
            && !tag.contains(|c: char| !c.is_ascii_alphanumeric())
            && ["a", "img", "iframe", "div", "span"].contains(&tag))
}
