//! Subtitles: SRT, WebVTT and SBV become turns.

use super::cues::{Cue, Syntax, cues};
use super::rolling::unroll;
use super::speakers::{Piece, Place, turns};
use super::{ReadOptions, at_line};
use anyhow::Result;

/// The turns of a subtitle file, one per line. An error tells that there is no cue in it.
pub(super) fn read(name: &str, contents: &str, syntax: Syntax, options: ReadOptions) -> Result<String> {
    let found = cues(contents, syntax);
    let mut cues = found.cues;
    unroll(&mut cues);
    let mut text = String::with_capacity(contents.len());
    for turn in turns(cues.into_iter().flat_map(pieces).collect()) {
        turn.render(options, &mut text);
    }
    Ok(text)
}

fn pieces(cue: Cue) -> Vec<Piece> {
    let place = |index| if index == 0 { Place::StartsCue } else { Place::InCue };
    let lines = cue.lines.into_iter().enumerate();
    lines
        .map(|(index, line)| Piece {
            start_ms: cue.start_ms,
            speaker: line.speaker,
            text: line.text,
            place: if line.continues { Place::InLine } else { place(index) },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS_ONLY: ReadOptions = ReadOptions { keep_timestamps: false, keep_speakers: false };
    const DEFAULT: ReadOptions = ReadOptions { keep_timestamps: false, keep_speakers: true };
    const ALL: ReadOptions = ReadOptions { keep_timestamps: true, keep_speakers: true };

    fn srt(contents: &str) -> String {
        read("a.srt", contents, Syntax::Srt, DEFAULT).unwrap()
    }

    fn vtt(contents: &str) -> String {
        read("a.vtt", &format!("WEBVTT\n\n{contents}"), Syntax::WebVtt, DEFAULT).unwrap()
    }

    const TALK: &str = "1\n00:00:01,000 --> 00:00:04,000\nAna: Hello <i>there</i>,\nI said.\n\n2\n\
        00:01:04,500 --> 00:01:06,000\nIt is 10:30.\n\n3\n01:00:00,000 --> 01:00:01,000\nDr. Bo O'Neil: Tom &amp; Jerry?\n";

    #[test]
    fn srt_cues_of_one_speaker_join_into_one_line() {
        assert_eq!(srt(TALK), "Ana: Hello there, I said. It is 10:30.\nDr. Bo O'Neil: Tom & Jerry?\n");
        let words = read("a.srt", TALK, Syntax::Srt, WORDS_ONLY).unwrap();
        assert_eq!(words, "Hello there, I said. It is 10:30.\nTom & Jerry?\n");
    }

    #[test]
    fn a_kept_timestamp_is_the_start_of_the_first_cue_of_the_turn() {
        let kept = read("a.srt", TALK, Syntax::Srt, ALL).unwrap();
        assert_eq!(kept, "[00:00:01] Ana: Hello there, I said. It is 10:30.\n[01:00:00] Dr. Bo O'Neil: Tom & Jerry?\n");
    }

    #[test]
    fn sloppy_srt_is_understood() {
        let sloppy = "00:00:01.000 --> 00:00:02.000 X1:10 X2:20\nAna:\n{\\an8}One\n\nmore.\n7\n0:00:03,000-->0:00:04,0\n42\n01:23.4 is the record.\n";
        assert_eq!(srt(sloppy), "Ana: One more. 42 01:23.4 is the record.\n");
    }

    #[test]
    fn only_capitalised_words_before_a_colon_are_a_speaker() {
        assert_eq!(
            srt("1\n00:00:01,0 --> 00:00:02,0\nSPEAKER 2: a\nHere is one: b\nhttps://x.org\nA B C D E: f\n"),
            "SPEAKER 2: a Here is one: b https://x.org A B C D E: f\n"
        );
    }

    #[test]
    fn webvtt_keeps_only_what_is_said() {
        let contents = "STYLE\n::cue { color: red }\n\nNOTE a\ncomment\n\nintro\n00:01.000 --> 00:02.000 align:start\n\
            <v.loud Ana Lee>Hi, <c.yellow>you</c>! 1 &lt; 2</v>\n\n00:02.000 --> 00:03.000\n<v Ana Lee>More <00:02.500>of it,\n\
            Vec<u8>.\n\nREGION\nid:x\n\n01:00:00.000 --> 01:00:01.000\n<v Bo>Yes. <v Ana Lee>No?\n";
        assert_eq!(vtt(contents), "Ana Lee: Hi, you! 1 < 2 More of it, Vec<u8>.\nBo: Yes.\nAna Lee: No?\n");
    }

    #[test]
    fn webvtt_header_metadata_is_skipped() {
        let contents = "WEBVTT - A title\nKind: captions\n00:01.000 --> 00:02.000\nHi.\n";
        assert_eq!(read("a.vtt", contents, Syntax::WebVtt, DEFAULT).unwrap(), "Hi.\n");
    }

    #[test]
    fn captions_that_grow_word_by_word_are_read_once() {
        let contents = "00:00:00.000 --> 00:00:02.000 align:start position:0%\n \nhello<00:00:00.500><c> world</c>\n\n\
            00:00:02.000 --> 00:00:02.010\nhello world\n \n\n00:00:02.010 --> 00:00:04.000\nhello world\n\
            this<00:00:02.500><c> is</c>\n\n00:00:04.000 --> 00:00:04.010\nthis is\n \n";
        assert_eq!(vtt(contents), "hello world this is\n");
    }

    #[test]
    fn malformed_cues_are_named_with_file_and_line() {
        for (contents, message) in [
            ("1\n00:00:01,000 --> 00:00:0x,000\nHi.\n", "a.srt:2: malformed times \"00:00:01,000 --> 00:00:0x,000\""),
            ("1\n00:00:01,000 -> 00:00:02,000\nHi.\n", "a.srt:2: malformed times"),
            ("1\n00:00:01,000 00:00:02,000\nHi.\n", "a.srt:2: malformed times"),
            ("1\n00:00:01,000 --> \nHi.\n", "a.srt:2: malformed times"),
            (
                "1\n00:00:03,000 --> 00:00:02,000\nHi.\n",
                "a.srt:2: this cue ends (00:00:02,000) before it starts (00:00:03,000)",
            ),
            ("\nHi.\n", "a.srt:2: expected the times of a cue (00:00:01.000 --> 00:00:02.000), found \"Hi.\""),
        ] {
            let error = read("a.srt", contents, Syntax::Srt, DEFAULT).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
        let error = read("a.vtt", "1\n00:01.000 --> 00:02.000\n", Syntax::WebVtt, DEFAULT).unwrap_err().to_string();
        assert_eq!(error, "a.vtt:1: a WebVTT file begins with the line WEBVTT, this one does not");
        let error = read("a.vtt", "WEBVTT\n\n00:01.000 --> 61:02.000\n", Syntax::WebVtt, DEFAULT).unwrap_err();
        assert!(error.to_string().starts_with("a.vtt:3: malformed times"), "{error}");
    }
}
