//! What each kind of transcript is read as, to the letter.

use super::{Document, Format, ReadOptions, RecognisedBy, parse};

fn read(name: &str, contents: impl AsRef<[u8]>) -> Vec<Document> {
    parse(name, "talks", contents.as_ref().to_vec(), &ReadOptions::DEFAULT).unwrap()
}

/// The text of all documents, one after the other.
fn text(name: &str, contents: impl AsRef<[u8]>) -> String {
    read(name, contents).into_iter().map(|document| document.text).collect()
}

fn error(name: &str, contents: impl AsRef<[u8]>) -> String {
    let error = parse(name, "talks", contents.as_ref().to_vec(), &ReadOptions::DEFAULT).unwrap_err();
    format!("{error:#}")
}

/// The same five turns as each program writes them.
const TURNS: &str = "Ada: Is the kiln hot? Not yet.\nBea: Then we wait.\nAda: And the glaze?\nBea: It is dry.\n";
const UNNAMED: &str = "Is the kiln hot?\nNot yet.\nThen we wait.\n";

#[test]
fn json_of_every_program_is_read_as_turns() {
    for (program, contents, expected) in [
        (
            "Whisper",
            r#"{"text": "not this", "language": "en", "segments": [
                {"id": 0, "start": 0.0, "end": 2.0, "text": " Is the kiln hot?", "avg_logprob": NaN},
                {"id": 1, "start": 2.0, "end": 4.0, "text": " Not yet.", "no_speech_prob": -Infinity},
                {"id": 2, "start": 4.0, "end": 6.0, "text": " Then we wait."}]}"#,
            UNNAMED,
        ),
        (
            "Whisper",
            r#"{"segments": [{"start": 0, "text": "Is the kiln hot?", "speaker": "Ada"},
                {"start": "2.5", "text": "Not yet.", "speaker": "Ada"}, {"start": null, "text": "Then we wait.", "speaker": "Bea"},
                {"text": "And the glaze?", "speaker": "Ada"}, {"start": "00:00:09,000", "text": "It is dry.", "speaker": "Bea"}]}"#,
            TURNS,
        ),
        (
            "faster-whisper",
            r#"[{"id": 1, "seek": 0, "start": 0.0, "end": 2.0, "text": " Is the kiln hot?", "words": null},
                {"id": 2, "start": 2.0, "text": " Not yet."}, {"id": 3, "start": 4.0, "text": " Then we wait."}]"#,
            UNNAMED,
        ),
        (
            "whisper.cpp",
            r#"{"systeminfo": "", "transcription": [
                {"timestamps": {"from": "00:00:00,000"}, "offsets": {"from": 0, "to": 2000}, "text": " Is the kiln hot?"},
                {"offsets": {"from": 2000, "to": 4000}, "text": " Not yet."}, {"text": " Then we wait."}]}"#,
            UNNAMED,
        ),
        (
            "Hugging Face",
            r#"{"speakers": [], "chunks": [{"timestamp": [0.0, 2.0], "text": " Is the kiln hot?"},
                {"timestamp": [2.0, 3.0], "text": " Not yet."}, {"timestamp": [4.0, null], "text": " Then we wait."}], "text": ""}"#,
            UNNAMED,
        ),
        (
            "Hugging Face",
            r#"{"speakers": [{"speaker": "Ada", "timestamp": [0.0, 2.0], "text": " Is the kiln hot?"},
                {"speaker": "Ada", "timestamp": [2.0, 3.0], "text": " Not yet."},
                {"speaker": "Bea", "timestamp": [4.0, 5.0], "text": " Then we wait."},
                {"speaker": "Ada", "timestamp": [5.0, 6.0], "text": " And the glaze?"},
                {"speaker": "Bea", "timestamp": [6.0, null], "text": " It is dry."}],
                "chunks": [{"timestamp": [0.0, 2.0], "text": " not this"}], "text": " nor this"}"#,
            TURNS,
        ),
        (
            "AssemblyAI",
            r#"{"id": "x", "text": "not this", "words": [{"text": "Is", "speaker": "Ada"}], "utterances": [
                {"speaker": "Ada", "start": 0, "text": "Is the kiln hot? Not yet."}, {"speaker": "Bea", "start": 9, "text": "Then we wait."},
                {"speaker": "Ada", "start": 20, "text": "And the glaze?"}, {"speaker": "Bea", "start": 30, "text": "It is dry."}]}"#,
            TURNS,
        ),
        (
            "Deepgram",
            r#"{"metadata": {}, "results": {"channels": [{"alternatives": [{"transcript": "not this", "paragraphs": {"paragraphs": [
                {"speaker": 0, "sentences": [{"text": "Is the kiln hot?", "start": 0.1}, {"text": "Not yet.", "start": 2}]},
                {"speaker": 1, "sentences": [{"text": "Then we wait.", "start": 4}]}]}}]}]}}"#,
            "Speaker 0: Is the kiln hot? Not yet.\nSpeaker 1: Then we wait.\n",
        ),
        (
            "Deepgram",
            r#"{"results": {"channels": [{"alternatives": [{"transcript": "not this", "words": [
                {"word": "hot", "punctuated_word": "Hot?", "speaker": 0, "start": 0}, {"word": "no", "punctuated_word": "No,", "speaker": 1},
                {"word": "cold", "punctuated_word": "cold.", "speaker": 1}]}]}]}}"#,
            "Speaker 0: Hot?\nSpeaker 1: No, cold.\n",
        ),
        (
            "Deepgram",
            r#"{"results": {"channels": [{"alternatives": [{"transcript": "Is the kiln hot?"}]}]}}"#,
            "Is the kiln hot?\n",
        ),
        (
            "Deepgram",
            r#"{"results": {"utterances": [{"start": 0, "speaker": 0, "transcript": "Hot?"}, {"start": 1, "speaker": 1, "transcript": "No."}],
                "channels": [{"alternatives": [{"transcript": "not this"}]}]}}"#,
            "Speaker 0: Hot?\nSpeaker 1: No.\n",
        ),
        (
            "Amazon Transcribe",
            r#"{"jobName": "j", "results": {"transcripts": [{"transcript": "not this"}], "speaker_labels": {"speakers": 2, "segments": [
                {"speaker_label": "spk_0", "items": [{"start_time": "0.1", "speaker_label": "spk_0"}]},
                {"speaker_label": "spk_1", "items": [{"start_time": "1.1", "speaker_label": "spk_1"}, {"start_time": "1.5", "speaker_label": "spk_1"}]}]},
                "items": [{"type": "pronunciation", "start_time": "0.1", "alternatives": [{"confidence": "1.0", "content": "Hot"}]},
                {"type": "punctuation", "alternatives": [{"content": "?"}]},
                {"type": "pronunciation", "start_time": "1.1", "alternatives": [{"content": "Not"}]},
                {"type": "pronunciation", "start_time": "1.5", "alternatives": [{"content": "yet"}]},
                {"type": "punctuation", "alternatives": [{"content": "."}]}]}}"#,
            "spk_0: Hot?\nspk_1: Not yet.\n",
        ),
        (
            "Amazon Transcribe",
            r#"{"results": {"transcripts": [{"transcript": "Is the kiln hot?"}], "items": []}}"#,
            "Is the kiln hot?\n",
        ),
        (
            "Podcasting 2.0",
            r#"{"version": "1.0.0", "segments": [{"speaker": "Ada", "startTime": 0.0, "endTime": 2.0, "body": "Is the kiln hot?"},
                {"speaker": "Ada", "startTime": 2, "body": "Not yet."}, {"speaker": "Bea", "startTime": 4.0, "body": "Then we wait."},
                {"speaker": "Ada", "startTime": 6, "body": "And the glaze?"}, {"speaker": "Bea", "startTime": 8, "body": "It is dry."}]}"#,
            TURNS,
        ),
        (
            "WhisperX",
            r#"{"segments": [{"start": 0.0, "end": 4.0, "text": " Is the kiln hot? Not yet. Then we wait.", "words": [
                {"word": "Is", "score": 0.9, "speaker": "Ada"}, {"word": "the", "score": 0.9, "speaker": "Ada"}, {"word": "kiln"},
                {"word": "hot?", "speaker": "Ada"}, {"word": "Not", "speaker": "Ada"}, {"word": "yet.", "speaker": "Ada"},
                {"word": "Then", "start": 3.1, "score": 0.5, "speaker": "Bea"}, {"word": "we", "speaker": "Bea"}, {"word": "wait."}]},
                {"text": "And the glaze?", "words": [{"word": "And", "speaker": "Ada"}]},
                {"text": "It is dry.", "speaker": "Bea", "words": [{"word": "It", "speaker": "Bea"}]}], "word_segments": []}"#,
            TURNS,
        ),
    ] {
        let documents = read("a.json", contents);
        assert_eq!(documents.len(), 1, "{program}");
        assert_eq!(documents[0].text, expected, "{program}");
        assert_eq!(documents[0].facts.variety, Some(program), "{contents}");
        // The contents tell, whatever the name promises.
        assert_eq!(text("a.srt", contents), expected, "{program}");
        assert_eq!(text("a.txt", contents), expected, "{program}");
    }
}

#[test]
fn a_recording_without_segments_is_its_text_and_starts_are_known_in_every_unit() {
    assert_eq!(text("a.json", r#"{"text": " One.\r\nTwo.", "segments": []}"#), "One.\nTwo.\n");
    assert_eq!(text("a.json", r#"{"text": "One."}"#), "One.\n");
    assert!(error("a.json", r#"{"text": "", "segments": []}"#).ends_with("a.json: there is no text in this file"));
    let timed = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };
    for contents in [
        r#"{"segments": [{"start": 62.5, "speaker": "A", "text": "x"}]}"#,
        r#"{"segments": [{"start": "62.5", "speaker": "A", "text": "x"}]}"#,
        r#"{"segments": [{"startTime": 62, "speaker": "A", "body": "x"}]}"#,
        r#"{"utterances": [{"start": 62500, "speaker": "A", "text": "x"}]}"#,
        r#"{"chunks": [{"timestamp": [62.5, null], "speaker": "A", "text": "x"}]}"#,
        r#"{"transcription": [{"offsets": {"from": 62500}, "speaker": "A", "text": "x"}]}"#,
    ] {
        let documents = parse("a.json", "talks", contents.as_bytes().to_vec(), &timed).unwrap();
        assert_eq!(documents[0].text, "[00:01:02] A: x\n", "{contents}");
    }
}

#[test]
fn half_a_surrogate_pair_is_replaced_and_a_pair_is_a_character() {
    let contents = r#"{"segments": [{"text": "Warm \ud83d clay."}, {"text": "Yes \ud83d\ude00 \\ud83d."}]}"#;
    assert_eq!(text("a.json", contents), "Warm \u{fffd} clay.\nYes \u{1f600} \\ud83d.\n");
    assert_eq!(
        text("a.json", "{\"text\": \"It says NaN\tand -Infinity\", \"x\": [NaN, Infinity]}"),
        "It says NaN\tand -Infinity\n"
    );
}

#[test]
fn a_wrong_field_is_named_in_plain_words() {
    for (contents, message) in [
        (r#"{"segments": [{"text": "a"}, {"text": 3}]}"#, "a.json: segments[1].text is a number, not text"),
        (r#"{"segments": [{"text": ["a"]}]}"#, "a.json: segments[0].text is a list, not text"),
        (r#"{"segments": [["a", 1]]}"#, "a.json: segments[0] is a list, not an object with \"text\""),
        (r#"{"segments": [{"start": 0}]}"#, "a.json: segments[0] has no \"text\""),
        (r#"{"segments": 3}"#, "a.json: \"segments\" is a number, not a list"),
        (r#"{"text": 5}"#, "a.json: \"text\" is a number, not text"),
        (
            r#"{"name": "site", "version": 2}"#,
            "a.json: neither \"segments\" nor \"text\" in this object, only \"name\", \"version\"",
        ),
        (r#"[["Q", "A"]]"#, "a.json: item 1 is a list, not an object with \"text\""),
        ("{\"segments\": [", "a.json:1: column 14: EOF"),
        ("{\"a\":\n 1 2}", "a.json:2: column 4: expected `,` or `}`"),
        ("3", "a.json: this is a number, not a transcript"),
    ] {
        let error = error("a.json", contents);
        assert!(error.starts_with(message), "{error}");
    }
    let error = error("a.json", b"{\"text\":\n\"Rig\xc4\"}");
    assert!(error.starts_with("a.json:2: not valid UTF-8: byte 0xc4"), "{error}");
}

#[test]
fn a_json_list_of_texts_is_a_document_each() {
    let documents = read("a.json", r#"[{"text": "One.", "domain": "law"}, {"text": "Two.\nThree."}]"#);
    let found: Vec<_> = documents.iter().map(|d| (d.name.as_str(), d.domain.as_str(), d.text.as_str())).collect();
    assert_eq!(found, [("a.json:1", "law", "One.\n"), ("a.json:2", "talks", "Two.\nThree.\n")]);
}

#[test]
fn each_row_of_jsonl_is_a_document() {
    let contents = "{\"text\": \"One.\"}\n\n{\"text\": \"\"}\n{\"text\": null}\n{\"text\": \"Two.\\nThree.\\n\", \"domain\": \"law\"}\n";
    for name in ["a.jsonl", "a.ndjson", "a.json", "a.txt", "rows"] {
        let documents = read(name, contents);
        let found: Vec<_> = documents.iter().map(|d| (d.domain.as_str(), d.text.as_str())).collect();
        assert_eq!(found, [("talks", "One.\n"), ("law", "Two.\nThree.\n")], "{name}");
        assert_eq!(documents[1].name, format!("{name}:5"));
        assert_eq!(documents[0].facts.format, Format::Jsonl);
    }
    let talk = "{\"speaker\": 1, \"text\": \"Hot?\"}\n{\"speaker\": 1, \"text\": \"Hm.\"}\n{\"speaker\": \"Bea\", \"text\": \"No.\"}\n";
    assert_eq!(text("a.jsonl", talk), "Speaker 1: Hot? Hm.\nBea: No.\n");
    let recordings =
        "{\"segments\": [{\"text\": \"Hot?\"}]}\n{\"utterances\": [{\"speaker\": \"A\", \"text\": \"No.\"}]}\n";
    assert_eq!(read("a.jsonl", recordings).iter().map(|d| d.text.as_str()).collect::<Vec<_>>(), ["Hot?\n", "A: No.\n"]);
}

#[test]
fn rows_of_other_shapes_are_never_text() {
    for (row, message) in [
        ("[\"Q\", \"A\"]", "a.jsonl:1: this row is a list, not an object with \"text\""),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}]}",
            "a.jsonl:1: this row has no \"text\", only \"messages\"",
        ),
        (
            "{\"question\": \"Q\", \"answer\": \"A\"}",
            "a.jsonl:1: this row has no \"text\", only \"answer\", \"question\"",
        ),
        ("{\"text\": 1}", "a.jsonl:1: \"text\" is a number, not text"),
        ("{\"text\": \"a\", \"domain\": 1}", "a.jsonl:1: \"domain\" is a number, not text"),
        ("{\"text\": \"a\"", "a.jsonl:1: column 12: EOF"),
    ] {
        let contents = format!("{row}\n").repeat(3);
        assert!(error("a.jsonl", &contents).starts_with(message), "{}", error("a.jsonl", &contents));
        // One such row does not end everything.
        assert_eq!(text("a.jsonl", format!("{{\"text\": \"One.\"}}\n{row}\n{{\"text\": \"Two.\"}}\n")), "One.\nTwo.\n");
    }
    let options = ReadOptions { text_column: "question".into(), ..ReadOptions::DEFAULT };
    let row = b"{\"question\": \"Hot?\", \"answer\": \"No.\"}\n".to_vec();
    assert_eq!(parse("a.jsonl", "talks", row, &options).unwrap()[0].text, "Hot?\n");
}

#[test]
fn tables_are_read_by_their_header() {
    for (name, contents, expected) in [
        // As Whisper writes: milliseconds, no quotes around anything.
        (
            "a.tsv",
            "start\tend\ttext\n0\t2800\tThe \"kiln\" is hot.\n3000\t5800\t\"Wait\n6000\t9000\tfor it.\n",
            "The \"kiln\" is hot.\n\"Wait for it.\n",
        ),
        ("a.csv", "id,text\n1,\"One, \"\"two\"\"\nand three.\"\n2,Four.\n", "One, \"two\"\nand three.\nFour.\n"),
        ("a.csv", "text;domain\nUn, deux.;fr\n\"Trois; quatre.\";fr\n", "Un, deux.\nTrois; quatre.\n"),
        (
            "a.csv",
            "speaker,text\nAda,Is the kiln hot?\nAda,Not yet.\nBea,Then we wait.\n",
            "Ada: Is the kiln hot? Not yet.\nBea: Then we wait.\n",
        ),
        ("a.tsv", "id\ttext\n1\t\"a \"\"b\"\"\"\n2\t\"c\td\"\n", "a \"b\"\nc\td\n"),
        ("a.csv", "\u{feff}Text,N\r\nOne.,1\r\n", "One.\n"),
    ] {
        assert_eq!(text(name, contents), expected, "{contents}");
        // The header tells what it is in a file of another name.
        assert_eq!(text("a.txt", contents.replace("Text", "text")), expected, "{contents}");
    }
    let rows = read("a.csv", "text,domain\nOne.,law\nTwo.,\n");
    assert_eq!(
        rows.iter().map(|d| (d.domain.as_str(), d.name.as_str())).collect::<Vec<_>>(),
        [("law", "a.csv:2"), ("talks", "a.csv:3")]
    );
    let timed = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };
    let timed_text =
        |name: &str, contents: &str| parse(name, "talks", contents.into(), &timed).unwrap()[0].text.clone();
    assert_eq!(timed_text("a.tsv", "start\tend\ttext\n62500\t63000\tOne.\n"), "[00:01:02] One.\n");
    assert_eq!(timed_text("a.csv", "start,end,text\n62.5,63,One.\n"), "[00:01:02] One.\n");
}

#[test]
fn a_row_with_a_comma_too_many_is_skipped_and_a_table_without_text_refused() {
    assert_eq!(text("a.csv", "id,text\n1,One.\n2,Two, three.\n3,Four.\n"), "One.\nFour.\n");
    let message = error("a.csv", "id,text\n2,Two, three.\n");
    assert_eq!(
        message,
        "a.csv:2: this row has 3 fields, the header 2; a text with the separator in it must be in quotes"
    );
    let message = error("a.csv", "id,body\n1,One.\n");
    assert_eq!(
        message,
        "a.csv:1: no column \"text\" in this table, only \"id\", \"body\"; data.text_column names the column to read"
    );
    let message = error("a.data", "a\tb\n1\t2\n3\t4\n");
    assert!(message.starts_with("a.data: this looks like a table without a column \"text\""), "{message}");
}

#[test]
fn what_has_no_reader_is_refused_by_name() {
    for (name, contents, what) in [
        ("a.txt", "<!DOCTYPE html>\n<html><body>Hi</body></html>", "an HTML page"),
        ("a.html", "<p>Hello</p>\n", "XML"),
        ("a.htm", "Hello", "an HTML page"),
        ("a.transcript", "<?xml version=\"1.0\"?>\n<transcript><text start=\"0\">Hi</text></transcript>", "XML"),
        ("a.doc", "{\\rtf1\\ansi Hello}", "an RTF document"),
        ("a.txt", "%PDF-1.7\n\u{0}", "a PDF file"),
        ("a.txt", "PK\u{3}\u{4}\u{0}", "a zip archive or an Office document"),
        ("a.sub", "{0}{25}Hello\n{26}{50}there", "subtitles timed in frames"),
        ("a.txt", "[0][25]Hello\n[26][50]there", "subtitles timed in frames"),
        ("a.smi", "<SAMI>\n<BODY><SYNC Start=0><P>Hi</BODY></SAMI>", "SAMI subtitles"),
        ("a.parquet", "hello", "not a Parquet file"),
    ] {
        let error = error(name, contents);
        assert!(error.starts_with(&format!("{name}: ")) && error.contains(what), "{error}");
    }
}

#[test]
fn contents_tell_the_format_and_names_only_what_contents_do_not() {
    let srt = "1\n00:00:01,000 --> 00:00:02,000\nThe kiln is hot.\n\n2\n00:00:03,000 --> 00:00:04,000\nWait for it.\n";
    let vtt = "WEBVTT\n\n00:01.000 --> 00:02.000\nThe kiln is hot.\n\n00:03.000 --> 00:04.000\nWait for it.\n";
    let sbv = "0:00:01.000,0:00:02.000\nThe kiln is hot.\n\n0:00:03.000,0:00:04.000\nWait for it.\n";
    let ass = "[Script Info]\nTitle: x\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n\
        Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{\\i1}The kiln is hot.\n\
        Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,Wait\\Nfor it.\n";
    let ttml = "<?xml version=\"1.0\"?>\n<tt xmlns=\"http://www.w3.org/ns/ttml\"><body><div>\
        <p begin=\"1s\" end=\"2s\">The kiln is hot.</p><p begin=\"3s\" end=\"4s\">Wait for it.</p></div></body></tt>";
    for (contents, own, format) in [
        (srt, "srt", Format::Srt),
        (vtt, "vtt", Format::WebVtt),
        (sbv, "sbv", Format::Sbv),
        (ass, "ass", Format::SubStation),
        (ttml, "ttml", Format::Ttml),
    ] {
        for extension in [own, "txt", "log", "captions", "json", "srt"] {
            let documents = read(&format!("a.{extension}"), contents);
            assert_eq!(documents[0].text, "The kiln is hot.\nWait for it.\n", "{format} in .{extension}");
            assert_eq!(documents[0].facts.format, format, ".{extension}");
            let by = if extension == own { RecognisedBy::Extension } else { RecognisedBy::Contents };
            assert_eq!(documents[0].facts.recognised_by, by, "{format} in .{extension}");
        }
    }
    for plain in [
        "In Haskell you write x --> y here.\nThat is all.\n",
        "<Ada> is it hot?\n<Bea> no\n",
        "[1] A footnote.\n",
        "{sighs} Well.\n",
        "[laughs] \"Well\".\n",
        "Hello, text, and more.\n",
        "1\n2\n3\n",
    ] {
        for extension in ["txt", "text", "transcript", "log", "unknown"] {
            let documents = read(&format!("a.{extension}"), plain);
            assert_eq!((documents[0].text.as_str(), documents[0].facts.format), (plain, Format::Plain), ".{extension}");
        }
    }
    for extension in ["md", "markdown", "mdx"] {
        assert_eq!(text(&format!("a.{extension}"), "**Ada:** \\[00:01\\] It *is* hot."), "Ada: It is hot.\n");
    }
}

#[test]
fn end_of_text_divides_documents_and_is_no_text() {
    for name in ["a.txt", "a.md", "a"] {
        let documents =
            read(name, "One.\nTwo.\n<|endoftext|>\nThree.<|endoftext|>Four.\n<|endoftext|>\n\n<|endoftext|>\n");
        let texts: Vec<_> = documents.iter().map(|document| document.text.as_str()).collect();
        assert_eq!(texts, ["One.\nTwo.\n", "Three.\n", "Four.\n"], "{name}");
        assert_eq!(documents[1].name, format!("{name} (part 2)"));
    }
    let spoken = "GPT-2 stops at \"<|endoftext|>\" alone.\n";
    assert_eq!(text("a.txt", spoken), spoken);
    assert_eq!(text("a.txt", "One.\n<|endoftext|>\n"), "One.\n");
    assert_eq!(text("a.jsonl", r#"{"text": "One.<|endoftext|>Two."}"#), "One.\nTwo.\n");
}

#[test]
fn markdown_is_read_without_what_is_not_speech() {
    for (markdown, expected) in [
        (
            "---\ntitle: \"Kiln talk: 7\"\nspeakers:\n  - Ada Moor\n# a comment\nurl: https://x.org/a\n---\n\n## Welcome\n\n\
             Ada Moor: 00:00:20\n\nIs it hot?\n\nBea Reed: 00:01:02\n\nSee [the list](https://x.org).\n",
            "Welcome\nAda Moor: Is it hot?\nBea Reed: See the list.\n",
        ),
        ("+++\ntitle = \"Kiln\"\n+++\nHello.\n", "Hello.\n"),
        (
            "---\nThis is no front matter. It is text: between rules.\n---\nMore.\n",
            "This is no front matter. It is text: between rules.\nMore.\n",
        ),
        (
            "<!-- reviewed\nby the editor -->\n**Ada:** It&#39;s warm &amp; dry.<br>Really. <em>Very</em> dry, R&D, &eacute;t&eacute;.\n\n\
             **Bea:** <a\nhref=\"https://x.org\">link</a> and <https://x.org/y> and Vec<u8> and `<br>` &lt;b&gt;.\n\n\
             <iframe src=\"https://x.org\"></iframe>\n\n<details><summary>Notes</summary>\n\nhidden\n\n</details>\n",
            "Ada: It's warm & dry. Really. Very dry, R&D, été.\nBea: link and https://x.org/y and Vec<u8> and <br> <b>.\nNotes\nhidden\n",
        ),
        (
            "**Ada:** Write this:\n\n```python\ndef kiln(t):\n    # not a *heading*\n\n    return t * 2\n```\n\n**Bea:** And `kiln(3)`.\n",
            "Ada: Write this:\ndef kiln(t):\n    # not a *heading*\n    return t * 2\nBea: And kiln(3).\n",
        ),
        (
            "Text:\n\n    # code\n      more\n\n- item\n\n    its paragraph\n",
            "Text:\n# code\n  more\n- item\nits paragraph\n",
        ),
        ("```\nnever closed\n\n**Ada:** Hi.\n", "never closed\nAda: Hi.\n"),
        (
            "**[00:02] SPEAKER_00:** The gate is live.\n\n**[1:02:10] SPEAKER_01:** Then open it.\n\n\
             **Ada** (00:12): Done.\n\n**Bea Lee** [00:14] Yes.\n",
            "SPEAKER_00: The gate is live.\nSPEAKER_01: Then open it.\nAda: Done.\nBea Lee: Yes.\n",
        ),
        ("**Question:** Is it hot?\n\n**Step 1:** Wait.\n", "Question: Is it hot?\nStep 1: Wait.\n"),
        ("Title\n=====\n\nA line\\\nand another.\n", "Title\nA line\nand another.\n"),
    ] {
        assert_eq!(text("a.md", markdown), expected, "{markdown}");
    }
    let words_only = ReadOptions { keep_speakers: false, ..ReadOptions::DEFAULT };
    let markdown = "**Question:** Is it hot?\n\n**Ada:** Yes.\n";
    assert_eq!(parse("a.md", "talks", markdown.into(), &words_only).unwrap()[0].text, "Question: Is it hot?\nYes.\n");
    let timed = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };
    let markdown = "**[00:02] SPEAKER_00:** Hot.\n";
    assert_eq!(parse("a.md", "talks", markdown.into(), &timed).unwrap()[0].text, "[00:00:02] SPEAKER_00: Hot.\n");
}
