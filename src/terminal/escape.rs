//! Text from files, made safe to show; and commands, made safe to copy into a shell.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::Path;

/// Text of several lines: line feeds and tabs stay, every other control character is shown as an escape like `\x1b` or
/// `\u{202e}`. Control characters are C0, DEL, C1, and those that reorder what stands beside them (Unicode's
/// bidirectional embeddings, overrides and isolates).
pub fn text(text: &str) -> Cow<'_, str> {
    escaped(text, |character| is_control(character) && !matches!(character, '\n' | '\t'))
}

/// A name or other text that belongs on one line: as [`text`], with line feeds and tabs shown as `\n` and `\t`.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_control)
}

fn is_control(character: char) -> bool {
    character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        // Writing to a String cannot fail.
        _ = match character {
            _ if !hidden(character) => shown.write_char(character),
            '\n' => shown.write_str("\\n"),
            '\t' => shown.write_str("\\t"),
            '\r' => shown.write_str("\\r"),
            '\0'..='\x7f' => write!(shown, "\\x{:02x}", u32::from(character)),
            _ => write!(shown, "\\u{{{:x}}}", u32::from(character)),
        };
    }
    Cow::Owned(shown)
}

/// A path, as [`line`].
pub fn path(path: &Path) -> String {
    line(&path.to_string_lossy()).into_owned()
}

/// JSON, which has escapes of its own for C0: the other control characters are written as those, too, which means the
/// same to whoever reads it.
pub fn json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        if is_control(character) && !matches!(character, '\n' | '\t') {
            // Writing to a String cannot fail.
            _ = write!(shown, "\\u{:04x}", u32::from(character));
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A path as an argument: one that begins with `-` would pass for an option.
pub fn operand(path: &Path) -> OsString {
    match path.as_os_str().as_encoded_bytes().starts_with(b"-") {
        true => Path::new(".").join(path).into_os_string(),
        false => path.as_os_str().to_owned(),
    }
}

/// A command line for a person to copy, its words quoted for POSIX shells where they need it. A word that is a path
/// beginning with `-` should come as `./-...`: see [`operand`].
pub fn command<W: AsRef<OsStr>>(words: &[W]) -> String {
    words.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// One word for a POSIX shell. Control characters and bytes that are not UTF-8 take the form `$'...'`, which bash, zsh
/// and ksh know and POSIX has since 2024.
fn quoted(word: &OsStr) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
    match word.to_str() {
        Some(word) if !word.is_empty() && word.as_bytes().iter().all(is_plain) => word.to_owned(),
        Some(word) if !word.contains(is_control) => format!("'{}'", word.replace('\'', "'\\''")),
        _ => dollar_quoted(word.as_encoded_bytes()),
    }
}

fn dollar_quoted(bytes: &[u8]) -> String {
    let mut word = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\'' | '\\' => word.extend(['\\', character]),
                _ if is_control(character) => octal(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut word),
                _ => word.push(character),
            }
        }
        octal(chunk.invalid(), &mut word);
    }
    word + "'"
}

/// Octal, because a hexadecimal escape has no fixed length in some shells.
fn octal(bytes: &[u8], word: &mut String) {
    for byte in bytes {
        // Writing to a String cannot fail.
        _ = write!(word, "\\{byte:03o}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_others_stay() {
        assert_eq!(text("a\x1b]0;x\x07b\x7f\u{9b}31m\r"), "a\\x1b]0;x\\x07b\\x7f\\u{9b}31m\\r");
        assert_eq!(text("\u{202e}txt.exe\u{2066}\u{2069}"), "\\u{202e}txt.exe\\u{2066}\\u{2069}");
        assert_eq!(text("one\n\ttwo"), "one\n\ttwo");
        assert_eq!(line("one\n\ttwo"), "one\\n\\ttwo");
        for harmless in ["", "naïve café 🦀 \u{200d}", "שלום", "a\\x1b"] {
            assert!(matches!(text(harmless), Cow::Borrowed(same) if same == harmless));
        }
    }

    #[test]
    fn every_control_character_is_escaped() {
        let controls = (0..0x20).chain(0x7f..0xa0).chain(0x202a..0x202f).chain(0x2066..0x206a);
        for character in controls.filter_map(char::from_u32) {
            let shown = line(&character.to_string()).into_owned();
            assert!(shown.starts_with('\\') && shown.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{shown:?}");
        }
    }

    #[test]
    fn words_are_quoted_only_where_a_shell_needs_it() {
        assert_eq!(command(&["tinymoe", "resume", "runs/a-1_b"]), "tinymoe resume runs/a-1_b");
        assert_eq!(command(&["x", "my run", "it's", "$HOME", ""]), "x 'my run' 'it'\\''s' '$HOME' ''");
        assert_eq!(command(&["a\nb\x1b'\u{9b}"]), "$'a\\012b\\033\\'\\302\\233'");
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let shown = json("{\"a\": \"\u{9b}\u{202e}\u{7f}é\"}\n");
        assert_eq!(shown, "{\"a\": \"\\u009b\\u202e\\u007fé\"}\n");
    }

    #[test]
    fn a_path_that_looks_like_an_option_is_none() {
        assert_eq!(command(&["resume".into(), operand(Path::new("-x"))]), "resume ./-x");
        assert_eq!(operand(Path::new("runs/a")), "runs/a");
    }

    /// What a real shell makes of it.
    #[cfg(unix)]
    #[test]
    fn a_shell_gets_the_same_bytes_back() {
        use std::os::unix::ffi::OsStrExt;
        let words: [&[u8]; 6] =
            [b"my run", b"it's", b"`$(x)`\"\\!*?~", b"caf\xe9", b"a\nb\tc\x1b[1m'\\", "ü é".as_bytes()];
        for word in words {
            let quoted = command(&[OsStr::from_bytes(word)]);
            let script = format!("printf %s {quoted}");
            let Ok(output) = std::process::Command::new("bash").args(["-c", &script]).output() else {
                return eprintln!("skipped: there is no bash here");
            };
            assert_eq!(output.stdout, word, "{quoted}");
        }
    }
}
