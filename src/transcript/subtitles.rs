//! Subtitles become turns: their cues are found, rolling captions unrolled, speakers told from other labels.

use super::cues::{Cue, Cues, UNDECODABLE, cues};
use super::rolling::unroll;
use super::speakers::{Piece, Place, turns};
use super::styled;
use super::turns::Speech;
use super::{Format, ReadOptions, at_line};
use anyhow::Result;

/// The turns of a subtitle file, one per line. Cues that cannot be read are skipped and listed.
///
/// # Errors
/// Where there is no cue in the file, or the XML of a TTML file is broken.
pub(super) fn read(name: &str, contents: &str, format: Format, options: &ReadOptions) -> Result<Speech> {
    let Cues { mut cues, stray } = match format {
        Format::SubStation => styled::substation(contents),
        Format::Ttml => styled::ttml(name, contents)?,
        _ => cues(contents, format),
    };
    if let Some(&line) = stray.first().filter(|_| cues.is_empty()) {
        let found = contents.lines().nth(line - 1).unwrap_or_default();
        let message = "expected the times of a cue (00:00:01.000 --> 00:00:02.000), found";
        return Err(at_line(name, line, format!("{message} \"{}\"", shortened(found))));
    }
    let mut skipped: Vec<(usize, String)> =
        stray.into_iter().map(|line| (line, "text before the first cue".to_string())).collect();
    cues.retain(|cue| {
        let damages = |text: &String| text.contains(UNDECODABLE);
        let is_damaged = cue.lines.iter().any(|line| damages(&line.text) || line.speaker.as_ref().is_some_and(damages));
        if is_damaged {
            skipped.push((cue.line, "a cue that is not valid UTF-8".to_string()));
        }
        !is_damaged
    });
    unroll(&mut cues);
    let speech = Speech::of(&turns(cues.into_iter().flat_map(pieces).collect()), options);
    Ok(Speech { skipped, ..speech })
}

fn shortened(line: &str) -> String {
    line.trim().chars().take(60).collect()
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

    fn read(name: &str, contents: &str, format: Format, options: ReadOptions) -> Result<String> {
        super::read(name, contents, format, &options).map(|speech| speech.text)
    }

    const WORDS_ONLY: ReadOptions = ReadOptions { keep_speakers: false, ..ReadOptions::DEFAULT };
    const DEFAULT: ReadOptions = ReadOptions::DEFAULT;
    const ALL: ReadOptions = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };

    fn srt(contents: &str) -> String {
        read("a.srt", contents, Format::Srt, DEFAULT).unwrap()
    }

    fn vtt(contents: &str) -> String {
        read("a.vtt", &format!("WEBVTT\n\n{contents}"), Format::WebVtt, DEFAULT).unwrap()
    }

    const TALK: &str = "1\n00:00:01,000 --> 00:00:04,000\nAna: Hello <i>there</i>,\nI said.\n\n2\n\
        00:01:04,500 --> 00:01:06,000\nIt is 10:30.\n\n3\n01:00:00,000 --> 01:00:01,000\nDr. Bo O'Neil: Tom &amp; Jerry?\n";

    #[test]
    fn srt_cues_of_one_speaker_join_into_one_line() {
        assert_eq!(srt(TALK), "Ana: Hello there, I said. It is 10:30.\nDr. Bo O'Neil: Tom & Jerry?\n");
        let words = read("a.srt", TALK, Format::Srt, WORDS_ONLY).unwrap();
        assert_eq!(words, "Hello there, I said. It is 10:30.\nTom & Jerry?\n");
    }

    #[test]
    fn a_kept_timestamp_is_the_start_of_the_first_cue_of_the_turn() {
        let kept = read("a.srt", TALK, Format::Srt, ALL).unwrap();
        assert_eq!(kept, "[00:00:01] Ana: Hello there, I said. It is 10:30.\n[01:00:00] Dr. Bo O'Neil: Tom & Jerry?\n");
    }

    #[test]
    fn sloppy_srt_is_understood() {
        let sloppy = "00:00:01.000 --> 00:00:02.000 X1:10 X2:20\nAna:\n{\\an8}One\n\nmore.\n7\n0:00:03,000-->0:00:04,0\n42\n01:23.4 is the record.\n";
        assert_eq!(srt(sloppy), "Ana: One more.\n42 01:23.4 is the record.\n");
    }

    #[test]
    fn only_capitalised_words_before_a_colon_are_a_speaker() {
        assert_eq!(
            srt("1\n00:00:01,0 --> 00:00:02,0\nSPEAKER 2: a\nHere is one: b\nhttps://x.org\nA B C D E: f\n"),
            "SPEAKER 2: a Here is one: b https://x.org\nA B C D E: f\n"
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
        assert_eq!(read("a.vtt", contents, Format::WebVtt, DEFAULT).unwrap(), "Hi.\n");
    }

    #[test]
    fn captions_that_grow_word_by_word_are_read_once() {
        let contents = "00:00:00.000 --> 00:00:02.000 align:start position:0%\n \nhello<00:00:00.500><c> world</c>\n\n\
            00:00:02.000 --> 00:00:02.010\nhello world\n \n\n00:00:02.010 --> 00:00:04.000\nhello world\n\
            this<00:00:02.500><c> is</c>\n\n00:00:04.000 --> 00:00:04.010\nthis is\n \n";
        assert_eq!(vtt(contents), "hello world this is\n");
    }

    #[test]
    fn a_file_without_cues_is_refused_with_the_line_that_is_none() {
        let error = read("a.srt", "\nHi.\n", Format::Srt, DEFAULT).unwrap_err().to_string();
        assert_eq!(error, "a.srt:2: expected the times of a cue (00:00:01.000 --> 00:00:02.000), found \"Hi.\"");
    }

    #[test]
    fn what_is_no_cue_is_skipped_and_named() {
        let contents = format!(
            "Downloaded\n1\n00:00:01,000 --> 00:00:02,000\nOne.\n\n2\n00:00:02,000 --> x\n{UNDECODABLE}\n\n\
            3\n00:00:0x,000 --> 00:00:04,000\nThree.\n"
        );
        let speech = super::read("a.srt", &contents, Format::Srt, &DEFAULT).unwrap();
        assert_eq!(speech.text, "One.\nThree.\n");
        let expected = [(1, "text before the first cue".to_string()), (7, "a cue that is not valid UTF-8".to_string())];
        assert_eq!(speech.skipped, expected);
    }
}
