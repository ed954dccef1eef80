//! Byte-level tokens may end in the middle of a character. [`Utf8Stream`] holds such bytes back until the rest of the
//! character arrives, so that generated text can be printed as it comes.

use std::str;

/// Turns a stream of bytes into text. All that it returns, put together, is [`String::from_utf8_lossy`] of all the
/// bytes, however they were cut.
#[derive(Debug, Default)]
pub struct Utf8Stream {
    /// The start of a character whose rest has not come yet: at most three bytes between calls.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// The text that is complete with these bytes. Never half a character: its bytes wait for the next call. Invalid
    /// bytes become U+FFFD as soon as they are known to be invalid.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut consumed = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            consumed += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = consumed + invalid.len() == self.pending.len();
            // An error without a length: more bytes may still make it a character.
            if at_end && str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none()) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            consumed += invalid.len();
        }
        self.pending.drain(..consumed);
        text
    }

    /// What is left at the end: a character that never became complete, as U+FFFD.
    pub fn finish(self) -> String {
        if self.pending.is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_appears_when_its_last_byte_arrives() {
        let mut stream = Utf8Stream::default();
        let bytes = "é€🦀".as_bytes();
        let pieces: Vec<String> = bytes.iter().map(|&byte| stream.push(&[byte])).collect();
        assert_eq!(pieces, ["", "é", "", "", "€", "", "", "", "🦀"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn invalid_bytes_are_replaced_at_once_and_an_unfinished_character_at_the_end() {
        let mut stream = Utf8Stream::default();
        assert_eq!(stream.push(b"a\xff"), "a\u{fffd}");
        assert_eq!(stream.push(b"\xe2\x82"), "");
        assert_eq!(stream.push(b"b"), "\u{fffd}b");
        assert_eq!(stream.push(b"\xf0\x9f"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    /// Mostly pieces of real characters, so that cuts fall inside them.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            3 => any::<char>().prop_map(|c| c.to_string().into_bytes()),
            1 => proptest::collection::vec(any::<u8>(), 0..4),
            1 => proptest::sample::select(vec![0xc2, 0xe0, 0xe2, 0xed, 0xf0, 0xf4, 0x80, 0x9f, 0xbf]).prop_map(|b| vec![b]),
        ];
        proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_pieces_make_the_lossy_text_of_all_bytes(bytes in bytes(), cuts in proptest::collection::vec(1..7usize, 1..50)) {
            let mut stream = Utf8Stream::default();
            let (mut text, mut rest) = (String::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                text += &stream.push(now);
                rest = later;
            }
            text += &stream.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
