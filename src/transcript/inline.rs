//! Markdown inside a line: emphasis, links, code spans, escapes, character references, HTML tags.

use super::markup::{References, decode_references, reference_bytes};

/// Code spans, link targets and tags longer than this many characters are taken for text.
const MAX_SPAN_CHARS: usize = 4096;

/// HTML elements whose tags are markup without any attribute. `<T>` and `Vec<u8>` are not.
const ELEMENTS: &[&str] = &[
    "a",
    "abbr",
    "address",
    "article",
    "aside",
    "audio",
    "b",
    "bdi",
    "bdo",
    "big",
    "blockquote",
    "body",
    "br",
    "button",
    "caption",
    "center",
    "cite",
    "code",
    "col",
    "colgroup",
    "dd",
    "del",
    "details",
    "dfn",
    "div",
    "dl",
    "dt",
    "em",
    "embed",
    "figcaption",
    "figure",
    "font",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hr",
    "html",
    "i",
    "iframe",
    "img",
    "input",
    "ins",
    "kbd",
    "label",
    "li",
    "link",
    "main",
    "mark",
    "meta",
    "nav",
    "ol",
    "p",
    "picture",
    "pre",
    "q",
    "rp",
    "rt",
    "ruby",
    "s",
    "samp",
    "section",
    "small",
    "source",
    "span",
    "strike",
    "strong",
    "sub",
    "summary",
    "sup",
    "svg",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "time",
    "tr",
    "track",
    "tt",
    "u",
    "ul",
    "var",
    "video",
    "wbr",
];
/// Those that end a word.
const BREAKS: &[&str] = &["br", "p", "div", "li", "td", "th", "tr", "hr", "summary", "dd", "dt"];

/// The line without emphasis marks, backticks, link targets, tags and backslash escapes.
pub(super) fn inline(line: &str) -> String {
    let mut line_so_far = Inline::default();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        rest = match c {
            // A line break that is to be kept, as Markdown writes it; here every line is one.
            '\\' if rest.len() == 1 => "",
            '\\' if rest[1..].starts_with(|next: char| next.is_ascii_punctuation()) => {
                line_so_far.out.push_str(&rest[1..2]);
                &rest[2..]
            }
            '`' => line_so_far.code(rest),
            '<' => line_so_far.tag(rest),
            '&' => line_so_far.reference(rest),
            '[' => {
                line_so_far.open_bracket = Some(line_so_far.out.len());
                line_so_far.out.push('[');
                &rest[1..]
            }
            ']' => line_so_far.close_bracket(&rest[1..]),
            '*' | '_' => line_so_far.emphasis(c, rest),
            _ => {
                line_so_far.out.push(c);
                &rest[c.len_utf8()..]
            }
        };
    }
    line_so_far.finish()
}

/// The output so far of [`inline`], and the marks in it that are markup if their other half comes.
#[derive(Default)]
struct Inline {
    out: String,
    open_bracket: Option<usize>,
    /// Where in `out` the last unclosed run of one, two or three `*` (first row) or `_` (second row) begins.
    open_runs: [[Option<usize>; 3]; 2],
    /// Starts and lengths of what turned out to be markup.
    removed: Vec<(usize, usize)>,
}

impl Inline {
    /// `rest` starts with a backtick. Takes the code span, or the backticks if it is not closed.
    fn code<'a>(&mut self, rest: &'a str) -> &'a str {
        let ticks = rest.len() - rest.trim_start_matches('`').len();
        let (fence, after) = rest.split_at(ticks);
        let (code, after) = after[..byte_of_char(after, MAX_SPAN_CHARS)]
            .find(fence)
            .map_or((fence, after), |end| (&after[..end], &after[end + ticks..]));
        self.out.push_str(code);
        after
    }

    /// `rest` starts with `<`. Takes a tag, of `<https://x.org>` only the brackets.
    fn tag<'a>(&mut self, rest: &'a str) -> &'a str {
        let inside = rest[1..byte_of_char(rest, MAX_SPAN_CHARS)].find(['<', '>']).map(|end| &rest[1..1 + end]);
        let Some(inside) = inside.filter(|inside| rest[1 + inside.len()..].starts_with('>')) else {
            self.out.push('<');
            return &rest[1..];
        };
        let after = &rest[inside.len() + 2..];
        if is_address(inside) {
            self.out.push_str(inside);
        } else if let Some(name) = tag_name(inside) {
            if BREAKS.contains(&name.as_str()) && !self.out.is_empty() && !self.out.ends_with(' ') {
                self.out.push(' ');
            }
            return if self.out.ends_with(' ') { after.trim_start() } else { after };
        } else {
            self.out.push('<');
            return &rest[1..];
        }
        after
    }

    /// `rest` starts with `&`. Takes a character reference, whose character is no markup.
    fn reference<'a>(&mut self, rest: &'a str) -> &'a str {
        let bytes = reference_bytes(rest).max(1);
        self.out.push_str(&decode_references(&rest[..bytes], References::Strict).replace('\u{a0}', " "));
        &rest[bytes..]
    }

    /// `after` follows a `]`. Takes the `(target)` of a link or an image.
    fn close_bracket<'a>(&mut self, after: &'a str) -> &'a str {
        if let Some((open, target)) = self.open_bracket.take().zip(link_target_bytes(after)) {
            let marks = if self.out[..open].ends_with('!') { 2 } else { 1 };
            self.removed.push((open + 1 - marks, marks));
            return &after[target..];
        }
        self.out.push(']');
        after
    }

    /// `rest` starts with a run of `mark`s, which is markup if it hugs a word: not the ones of `2 * 3` or `a_b`.
    fn emphasis<'a>(&mut self, mark: char, rest: &'a str) -> &'a str {
        let after = rest.trim_start_matches(mark);
        let run = rest.len() - after.len();
        let (before_char, after_char) = (self.out.chars().next_back(), after.chars().next());
        let opens = after_char.is_some_and(|c| !c.is_whitespace()) && !before_char.is_some_and(char::is_alphanumeric);
        let closes = before_char.is_some_and(|c| !c.is_whitespace()) && !after_char.is_some_and(char::is_alphanumeric);
        let row = usize::from(mark == '_');
        if let Some(open) = self.open_runs[row].get(run - 1).copied().flatten().filter(|_| closes) {
            self.removed.push((open, run));
            // What opened inside cannot close outside.
            for inner in self.open_runs.as_flattened_mut() {
                inner.take_if(|position| *position >= open);
            }
            return after;
        }
        if let Some(slot) = self.open_runs[row].get_mut(run - 1).filter(|_| opens) {
            *slot = Some(self.out.len());
        }
        self.out.push_str(&rest[..run]);
        after
    }

    fn finish(mut self) -> String {
        self.removed.sort_unstable();
        let mut text = String::with_capacity(self.out.len());
        let mut position = 0;
        for (start, length) in self.removed {
            text.push_str(&self.out[position..start]);
            position = start + length;
        }
        text.push_str(&self.out[position..]);
        text
    }
}

/// Bytes of the `(target)` that `text` starts with, if it does. Parentheses in the target come in pairs.
fn link_target_bytes(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (position, c) in text.char_indices().take(MAX_SPAN_CHARS) {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 => return None,
            _ => {}
        }
        if depth == 0 {
            return Some(position + 1);
        }
    }
    None
}

fn byte_of_char(text: &str, index: usize) -> usize {
    text.char_indices().nth(index).map_or(text.len(), |(position, _)| position)
}

/// `https://x.org` and `ana@x.org` in angle brackets.
fn is_address(inside: &str) -> bool {
    let is_mail = inside.contains('@') && !inside.starts_with('@') && inside.contains('.');
    let scheme = inside.split_once(':').map(|(scheme, _)| scheme);
    let is_scheme = |scheme: &str| scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    !inside.contains(char::is_whitespace) && (is_mail || scheme.is_some_and(is_scheme))
}

/// The name, in lower case, of the tag whose inside this is, if it is one: of a known element, or with attributes.
fn tag_name(inside: &str) -> Option<String> {
    let body = inside.strip_prefix('/').unwrap_or(inside);
    let after = body.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "-.:".contains(c));
    let name = body[..body.len() - after.len()].to_lowercase();
    let attributes = after.trim_end_matches('/').trim();
    let is_known = ELEMENTS.contains(&name.as_str()) && (attributes.is_empty() || attributes.len() < after.len());
    let has_attributes = after.starts_with(char::is_whitespace)
        && (attributes.contains("=\"") || attributes.contains("={") || attributes.contains("='"));
    let closes_itself = inside.ends_with('/') && attributes.is_empty();
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
    (starts_well && (is_known || has_attributes || closes_itself)).then_some(name)
}
