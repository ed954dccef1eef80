//! stderr, shared by messages and the progress display: a few lines at the bottom that are drawn again and again, and
//! messages that scroll above them.

use console::{Term, measure_text_width};
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two drawings.
const INTERVAL: Duration = Duration::from_millis(100);

static SCREEN: Mutex<Screen<io::Stderr>> = Mutex::new(Screen::new(None));

/// Lines at the bottom of a terminal.
struct Screen<W> {
    /// None where nothing is drawn: no terminal, one that cannot move its cursor, or one that shall be left alone.
    out: Option<W>,
    /// What stands there now. The cursor is behind the last line.
    lines: Vec<String>,
    last_drawn: Option<Instant>,
}

/// Turns the display on, if it is wanted and stderr is a terminal that can move its cursor.
pub(super) fn open(wanted: bool) {
    let live = wanted && io::stderr().is_terminal() && !console::is_dumb();
    screen().out = live.then(io::stderr);
}

/// Whether [`draw`] draws anything.
pub fn is_live() -> bool {
    screen().out.is_some()
}

/// Columns that a drawn line may have. The last three stay free: a Ctrl-C that the terminal shows as `^C` would
/// otherwise break the line, and the display could no longer be removed.
pub fn width() -> usize {
    columns().saturating_sub(3).max(1)
}

fn columns() -> usize {
    columns_of(&Term::stderr()).unwrap_or(80)
}

/// Columns of stdout, if it is a terminal; else there is no limit.
pub fn stdout_width() -> usize {
    columns_of(&Term::stdout()).unwrap_or(usize::MAX)
}

/// None where the terminal does not know.
fn columns_of(terminal: &Term) -> Option<usize> {
    let (_, columns) = terminal.size_checked()?;
    (columns > 0).then_some(usize::from(columns))
}

/// Shows what `lines` returns for a [`width`], at most ten times a second. They must not be wider.
pub fn draw(lines: impl FnOnce(usize) -> Vec<String>) {
    let mut screen = screen();
    let due = screen.last_drawn.is_none_or(|last| last.elapsed() >= INTERVAL);
    if screen.out.is_some() && due {
        // A stderr that is gone is no reason to stop.
        _ = screen.draw(lines(width()), columns());
        screen.last_drawn = Some(Instant::now());
    }
}

/// Removes what [`draw`] drew.
pub fn clear() {
    let mut screen = screen();
    _ = screen.draw(Vec::new(), columns());
    screen.last_drawn = None;
}

/// Writes a message of one line or more above the display.
pub(super) fn print(message: &str) {
    let mut screen = screen();
    _ = match screen.out {
        Some(_) => screen.print(message, columns()),
        None => writeln!(io::stderr(), "{}", wrapped(message, columns_of(&Term::stderr()).unwrap_or(usize::MAX))),
    };
}

fn screen() -> MutexGuard<'static, Screen<io::Stderr>> {
    // Drawing again repairs whatever a panic left.
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Write> Screen<W> {
    const fn new(out: Option<W>) -> Self {
        Self { out, lines: Vec::new(), last_drawn: None }
    }

    /// Replaces what is drawn.
    fn draw(&mut self, lines: Vec<String>, columns: usize) -> io::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        let mut output = erase(&self.lines, columns);
        output += &lines.join("\r\n");
        self.lines = lines;
        out.write_all(output.as_bytes())?;
        out.flush()
    }

    /// Writes above what is drawn.
    fn print(&mut self, message: &str, columns: usize) -> io::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        let mut output = erase(&self.lines, columns);
        for line in wrapped(message, columns).lines() {
            output += line;
            output += "\r\n";
        }
        output += &self.lines.join("\r\n");
        out.write_all(output.as_bytes())?;
        out.flush()
    }
}

/// Lines that are wider than `columns`, broken between words. Commands, which are between backquotes or on indented
/// lines, are left to the terminal, which breaks them where it likes and copies them as they were.
pub fn wrapped(text: &str, columns: usize) -> String {
    text.split('\n').map(|line| wrapped_line(line, columns)).collect::<Vec<_>>().join("\n")
}

fn wrapped_line(line: &str, columns: usize) -> String {
    if measure_text_width(line) <= columns || line.starts_with(' ') {
        return line.to_owned();
    }
    let (mut out, mut used, mut in_command) = (String::new(), 0, false);
    for (number, word) in line.split(' ').enumerate() {
        let width = measure_text_width(word);
        if number > 0 && !in_command && used + 1 + width > columns {
            out += "\n  ";
            used = 2;
        } else if number > 0 {
            out.push(' ');
            used += 1;
        }
        out += word;
        used += width;
        in_command ^= word.matches('`').count() % 2 == 1;
    }
    out
}

/// Moves the cursor to where these lines begin and erases from there to the end of the screen. Where the terminal has
/// become narrower than they are, it has broken them.
fn erase(lines: &[String], columns: usize) -> String {
    let rows = |line: &String| measure_text_width(line).div_ceil(columns.max(1)).max(1);
    match lines.iter().map(rows).sum::<usize>() {
        0 => String::new(),
        1 => "\r\x1b[J".into(),
        rows => format!("\r\x1b[{}A\x1b[J", rows - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(rows: u16, columns: u16) -> Screen<vt100::Parser> {
        Screen::new(Some(vt100::Parser::new(rows, columns, 0)))
    }

    fn shown(screen: &Screen<vt100::Parser>) -> String {
        screen.out.as_ref().unwrap().screen().contents()
    }

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.into()).collect()
    }

    #[test]
    fn drawing_replaces_and_messages_stand_above() {
        let mut screen = screen(8, 20);
        screen.draw(lines(&["bar 1", "load 1"]), 20).unwrap();
        screen.draw(lines(&["bar 2", "load"]), 20).unwrap();
        assert_eq!(shown(&screen), "bar 2\nload");
        screen.print("warning: one\ntwo", 20).unwrap();
        assert_eq!(shown(&screen), "warning: one\ntwo\nbar 2\nload");
        screen.print("a message that is wider than the screen", 20).unwrap();
        screen.draw(lines(&["bar 3"]), 20).unwrap();
        screen.draw(Vec::new(), 20).unwrap();
        assert_eq!(shown(&screen), "warning: one\ntwo\na message that is\n  wider than the\n  screen");
    }

    #[test]
    fn lines_break_between_words_and_not_in_commands() {
        assert_eq!(wrapped("one two three\n  tinymoe resume", 7), "one two\n  three\n  tinymoe resume");
        assert_eq!(
            wrapped("go on with `tinymoe resume a b`, please", 12),
            "go on with\n  `tinymoe resume a b`,\n  please"
        );
        assert_eq!(wrapped("", 1), "");
        assert_eq!(wrapped("überlang 語語語", 5), "überlang\n  語語語");
        assert_eq!(wrapped("as it was  with  gaps\n", 100), "as it was  with  gaps\n");
    }

    #[test]
    fn an_interrupt_that_the_terminal_shows_leaves_no_half_bar() {
        let mut screen = screen(8, 20);
        screen.draw(lines(&["bar bar bar bar b", "load load load lo"]), 20).unwrap();
        screen.out.as_mut().unwrap().write_all(b"^C").unwrap();
        screen.print("interrupted", 20).unwrap();
        screen.draw(Vec::new(), 20).unwrap();
        assert_eq!(shown(&screen), "interrupted");
    }

    #[test]
    fn lines_that_a_narrower_terminal_has_broken_are_removed_whole() {
        let mut screen = screen(8, 10);
        screen.print("before", 10).unwrap();
        screen.draw(lines(&["twelve chars", "load"]), 10).unwrap();
        screen.draw(Vec::new(), 10).unwrap();
        assert_eq!(shown(&screen), "before");
    }

    #[test]
    fn a_display_at_the_bottom_scrolls() {
        let mut screen = screen(3, 20);
        for number in 0..5 {
            screen.print(&format!("message {number}"), 20).unwrap();
            screen.draw(lines(&["bar", "load"]), 20).unwrap();
        }
        assert_eq!(shown(&screen), "message 4\nbar\nload");
    }
}
