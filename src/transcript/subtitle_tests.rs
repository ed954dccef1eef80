//! What subtitles of many programs are read as: a table of small files with the exact text of each, and, for each
//! format, that what is written in it is read again.

use super::{Document, ReadOptions, parse};
use proptest::prelude::*;

const WORDS_ONLY: ReadOptions = ReadOptions { keep_speakers: false, ..ReadOptions::DEFAULT };
const ALL: ReadOptions = ReadOptions { keep_timestamps: true, ..ReadOptions::DEFAULT };

fn read(name: &str, contents: &[u8], options: &ReadOptions) -> Document {
    let mut documents =
        parse(name, "talks", contents.to_vec(), options).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    assert_eq!(documents.len(), 1, "{name}");
    documents.remove(0)
}

fn text(name: &str, contents: &str) -> String {
    read(name, contents.as_bytes(), &ReadOptions::DEFAULT).text
}

/// Cues of two seconds each, numbered.
fn srt<S: AsRef<str>>(cues: &[S]) -> String {
    let clock = |seconds: usize| format!("{:02}:{:02}:{:02},000", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let cue = |(index, text): (usize, &S)| {
        format!("{}\n{} --> {}\n{}\n\n", index + 1, clock(2 * index), clock(2 * index + 2), text.as_ref())
    };
    cues.iter().enumerate().map(cue).collect()
}

fn vtt<S: AsRef<str>>(cues: &[S]) -> String {
    format!("WEBVTT\n\n{}", srt(cues).replace(",000", ".000"))
}

fn sbv<S: AsRef<str>>(cues: &[S]) -> String {
    let cue = |(index, text): (usize, &S)| {
        let clock = |seconds: usize| format!("{}:{:02}:{:02}.000", seconds / 3600, seconds / 60 % 60, seconds % 60);
        format!("{},{}\n{}\n\n", clock(2 * index), clock(2 * index + 2), text.as_ref())
    };
    cues.iter().enumerate().map(cue).collect()
}

/// Each line is shown, held for 10 ms, and shown above the next one.
fn automatic_captions<S: AsRef<str>>(lines: &[S]) -> String {
    let mut contents = String::new();
    for (index, line) in lines.iter().enumerate() {
        let above = index.checked_sub(1).map_or(" ", |above| lines[above].as_ref());
        let clock =
            |ms: usize| format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
        let (start, end, held) = (clock(2010 * index), clock(2010 * index + 2000), clock(2010 * index + 2010));
        let line = line.as_ref();
        contents += &format!("{start} --> {end} align:start position:0%\n{above}\n{line}\n\n");
        contents += &format!("{end} --> {held} align:start position:0%\n{line}\n \n\n");
    }
    contents
}

/// As broadcast captions: the last three lines are on the screen.
fn rolled_up<S: AsRef<str>>(lines: &[S]) -> Vec<String> {
    let line = |line: &S| line.as_ref().to_string();
    (1..=lines.len())
        .map(|end| lines[end.saturating_sub(3)..end].iter().map(line).collect::<Vec<_>>().join("\n"))
        .collect()
}

/// As live captions: each cue has one more word of the line.
fn grown<S: AsRef<str>>(lines: &[S]) -> Vec<String> {
    let mut cues = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.as_ref().split(' ').collect();
        cues.extend((1..=words.len()).map(|end| words[..end].join(" ")));
    }
    cues
}

const HERONS: [&str; 6] = [
    "a heron stands in the reeds",
    "it does not move for an hour",
    "then a fish comes by",
    "the fish has not seen it",
    "no no",
    "and that was breakfast",
];

#[test]
fn captions_that_roll_are_read_once() {
    let expected = format!("{}\n", HERONS.join(" "));
    let automatic = automatic_captions(&HERONS);
    let words = |line: &&str| line.split(' ').map(|word| format!("<00:00:00.500><c> {word}</c>")).collect::<String>();
    let tagged = automatic_captions(&HERONS.iter().map(words).collect::<Vec<_>>());
    let highlighted: Vec<String> = HERONS[..5]
        .iter()
        .flat_map(|line| {
            line.split(' ').map(|word| line.replacen(word, &format!("<u>{word}</u>"), 1)).collect::<Vec<_>>()
        })
        .collect();
    for (name, contents) in [
        ("automatic.srt", automatic.replace(" align:start position:0%", "")),
        ("translated.vtt", format!("WEBVTT\nKind: captions\nLanguage: de\n\n{automatic}")),
        ("words.vtt", format!("WEBVTT\n\n{tagged}")),
        ("roll-up.srt", srt(&rolled_up(&HERONS))),
        ("roll-up.sbv", sbv(&rolled_up(&HERONS))),
        ("live.vtt", vtt(&grown(&HERONS))),
        (
            "window.srt",
            srt(&[
                "a heron stands in the reeds it does",
                "in the reeds it does not move for an hour",
                "not move for an hour then a fish comes by the",
                "a fish comes by the fish has not seen it no no and",
                "it no no and that was breakfast",
            ]),
        ),
    ] {
        assert_eq!(text(name, &contents), expected, "{name}");
    }
    assert_eq!(text("highlight.srt", &srt(&highlighted)), format!("{}\n", HERONS[..5].join(" ")));
}

#[test]
fn what_is_said_twice_is_read_twice() {
    for cues in [
        &["No.", "No. No.", "Never."][..],
        &["La la la.", "La la la.", "Oh, the ferry.", "La la la.", "La la la."],
        &["Is it?", "Is it?\nIt is.", "So it is.", "We go.", "They stay."],
    ] {
        let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        assert_eq!(words(&text("a.srt", &srt(cues))), words(&cues.join(" ")));
    }
    let repeated = ["wait for it", "no", "no", "no", "there it goes", "up and away"];
    assert_eq!(text("a.srt", &automatic_captions(&repeated)), format!("{}\n", repeated.join(" ")));
}

#[test]
fn cues_are_found_whatever_their_times_and_line_ends() {
    let expected = "The gate is shut.\nBring the key.\nIt opens at ten.\n";
    let good = srt(&["The gate is shut.", "Bring the key.", "It opens at ten."]);
    for (name, contents) in [
        ("negative.srt", good.replacen("00:00:00,000", "-00:00:00,500", 1)),
        ("reversed.srt", good.replace("--> 00:00:04,000", "--> 00:00:01,000")),
        ("one_digit.srt", good.replace("00:00:02,000 --> 00:00:04,000", "0:0:2,5 --> 0:0:4,0")),
        ("point.srt", good.replace(",000", ".54")),
        ("no_fraction.srt", good.replace(",000", "")),
        ("hours.srt", good.replace("00:00:0", "1234:00:0")),
        ("translated.srt", good.replace("00:00:02,000 -->", "00: 00: 02, 000 ->")),
        ("unreadable_end.srt", good.replace("--> 00:00:04,000", "--> 00:00:0x")),
        ("unreadable_start.srt", good.replace("00:00:02,000 -->", "00:0x:02,000 -->")),
        ("crlf.srt", good.replace('\n', "\r\n")),
        ("cr.srt", good.replace('\n', "\r")),
        ("crcrlf.srt", good.replace('\n', "\r\r\n")),
        ("doubled_lines.srt", good.replace('\n', "\n\n")),
        ("no_numbers.srt", good.replace("1\n00:00:00", "00:00:00").replace("2\n00:00:02", "00:00:02").replace("3\n00:00:04", "00:00:04")),
        ("doubled_numbers.srt", good.replace("2\n00:00:02", "2\n2\n00:00:02").replace("3\n00:00:04", "2\n00:00:04")),
        ("no_blank_lines.srt", good.replace("\n\n", "\n")),
        ("mark.srt", format!("\u{feff}{good}")),
        ("coordinates.srt", good.replace("--> 00:00:04,000", "--> 00:00:04,000 X1:100 X2:600 Y1:400 Y2:450")),
        ("styles.srt", good.replace("The gate", "{\\an8}<font color=\"#fff\"><i>The gate</i></font>")),
        ("crcrlf.vtt", vtt(&["The gate is shut.", "Bring the key.", "It opens at ten."]).replace('\n', "\r\r\n")),
        ("teams.vtt", "WEBVTT\n\n0:0:0.0 --> 0:0:3.180\nThe gate is shut.\n\n3f-12/7-0\n0:0:3.180 --> 0:0:13.540\nBring the key.\n\n\
            NOTE Confidence: 0.9\n\n0:0:13.540 --> 0:0:5.9\nIt opens at ten.\n".to_string()),
        ("joined.vtt", ["The gate is shut.", "Bring the key.", "It opens at ten."].map(|line| format!(
            "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000\n\n00:00:01.000 --> 00:00:03.000\n{line}\n\n")).concat()),
        ("overlapping_parts.vtt", "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:0\n\n00:01.000 --> 00:03.000\nThe gate is shut.\n\n\
            00:03.000 --> 00:05.000\nBring the key.\nWEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:0\n\n00:03.000 --> 00:05.000\nBring the key.\n\n\
            00:05.000 --> 00:06.000\nIt opens at ten.\n".to_string()),
        ("blocks.vtt", "WEBVTT - Gate\nRegion: id=a\n\nSTYLE\n::cue { color: red }\n\nREGION\nid:a\n\nNOTE\na long\ncomment\n\nintro\n\
            00:01.000 --> 00:02.000 region:a line:0 align:start\nThe gate is shut.\n\n00:02.000 --> 00:03.000\nBring the key.\n\n\
            NOTE done\n\n00:03.000 --> 00:04.000\nIt opens at ten.\n".to_string()),
        ("youtube.sbv", sbv(&["The gate is shut.", "Bring the key.", "It opens\nat ten."])),
    ] {
        assert_eq!(text(name, &contents), expected, "{name}");
    }
}

#[test]
fn words_that_look_like_times_numbers_or_markup_stay_words() {
    for (cues, expected) in [
        (
            &["In Haskell you write x --> y here.", "That is all."][..],
            "In Haskell you write x --> y here.\nThat is all.\n",
        ),
        (&["How many?\n42", "I <3 a < b > c."], "How many?\n42 I <3 a < b > c.\n"),
        (&["It is 10:30 --> go.", "From 1:00 to 2:00, R&D."], "It is 10:30 --> go.\nFrom 1:00 to 2:00, R&D.\n"),
        (&["A Vec<u8> of {x} and\nWEBVTT too."], "A Vec<u8> of {x} and WEBVTT too.\n"),
    ] {
        assert_eq!(text("a.srt", &srt(cues)), expected);
    }
}

#[test]
fn webvtt_character_references_are_read() {
    let cues = [
        "It&#39;s the chef&#8217;s cr&egrave;me, 5&deg;C&hellip;",
        "Q&amp;A &ndash; that&#x27;s &lt;all&gt;&nbsp;folks &copy;",
    ];
    assert_eq!(text("a.vtt", &vtt(&cues)), "It's the chef\u{2019}s crème, 5°C…\nQ&A – that's <all> folks ©\n");
    assert_eq!(text("a.srt", &srt(&["Tom &amp; Jerry&apos;s R&D &eacute;t&eacute;."])), "Tom & Jerry's R&D été.\n");
}

#[test]
fn a_cue_with_broken_characters_is_skipped_and_the_others_are_read() {
    let contents = b"WEBVTT\n\n00:01.000 --> 00:02.000\n a pinch of it\n\n00:02.000 --> 00:03.000\n\x98\n\n00:03.000 --> 00:04.000\n and stir.\n";
    assert_eq!(read("a.vtt", contents, &ReadOptions::DEFAULT).text, "a pinch of it and stir.\n");
    let latin1: Vec<u8> =
        srt(&["Ca fait.", "E E E E E"]).bytes().map(|byte| if byte == b'E' { 0xe9 } else { byte }).collect();
    let error = parse("a.srt", "talks", latin1, &ReadOptions::DEFAULT).unwrap_err().to_string();
    assert!(error.contains("a.srt:7: not valid UTF-8: byte 0xe9"), "{error}");
}

/// Cues, their text with speakers, their text without, and the speakers.
type SpeakerCase<'a> = (&'a [&'a str], &'a str, &'a str, &'a [&'a str]);

#[test]
fn speakers_are_told_from_other_labels() {
    let cases: &[SpeakerCase] = &[
        (
            &["[SPEAKER_00]: Is it open?", "[SPEAKER_00]: It was", "[SPEAKER_01]: No,", "[SPEAKER_01]: not today."],
            "SPEAKER_00: Is it open? It was\nSPEAKER_01: No, not today.\n",
            "Is it open? It was\nNo, not today.\n",
            &["SPEAKER_00", "SPEAKER_01"],
        ),
        (
            &["(speaker 0) Is it open?", "(speaker 1) No.", "(speaker ?) Maybe."],
            "speaker 0: Is it open?\nspeaker 1: No.\nMaybe.\n",
            "Is it open?\nNo.\nMaybe.\n",
            &["speaker 0", "speaker 1"],
        ),
        (
            &[
                "Ilse: Is it open?",
                "李娜：不。",
                "Ilse: Why?",
                "李娜：星期一。",
                "d'Arcy: A pity.",
                "van Dijk: Indeed.",
                "Ilse Ek (host): Bye.",
            ],
            "Ilse: Is it open?\n李娜: 不。\nIlse: Why?\n李娜: 星期一。\nd'Arcy: A pity.\nvan Dijk: Indeed.\nIlse Ek (host): Bye.\n",
            "Is it open?\n不。\nWhy?\n星期一。\nA pity.\nIndeed.\nBye.\n",
            &["Ilse", "李娜", "d'Arcy", "van Dijk", "Ilse Ek (host)"],
        ),
        (
            &[
                "Ilse Ek: Is it open?",
                "tariq (he/him): No.",
                "Ilse Ek: Why?",
                "tariq (he/him): Monday.",
                "Zoë Ng | Sales: Hm.",
                "iPad von Ilse: Oh.",
            ],
            "Ilse Ek: Is it open?\ntariq (he/him): No.\nIlse Ek: Why?\ntariq (he/him): Monday.\nZoë Ng | Sales: Hm.\niPad von Ilse: Oh.\n",
            "Is it open?\nNo.\nWhy?\nMonday.\nHm.\nOh.\n",
            &["Ilse Ek", "tariq (he/him)", "Zoë Ng | Sales", "iPad von Ilse"],
        ),
        (
            &["סיגל: שלום.", "דוד: שלום לך.", "סיגל: מה נשמע?", "דוד: טוב."],
            "סיגל: שלום.\nדוד: שלום לך.\nסיגל: מה נשמע?\nדוד: טוב.\n",
            "שלום.\nשלום לך.\nמה נשמע?\nטוב.\n",
            &["סיגל", "דוד"],
        ),
        (
            &["Ilse (00:00:00): Open?", "[00:00:02] Bo: No.", "Ilse 00:00:04: Why?", "Bo: [00:06] Monday."],
            "Ilse: Open?\nBo: No.\nIlse: Why?\nBo: Monday.\n",
            "Open?\nNo.\nWhy?\nMonday.\n",
            &["Ilse", "Bo"],
        ),
        (
            &["(Ilse Ek)\nIs it open?", "(Bo Said)\nNo.", "(Applause)", "(Ilse Ek)\nWhy?", "(Bo Said)\nMonday."],
            "Ilse Ek: Is it open?\nBo Said: No. (Applause)\nIlse Ek: Why?\nBo Said: Monday.\n",
            "Is it open?\nNo. (Applause)\nWhy?\nMonday.\n",
            &["Ilse Ek", "Bo Said"],
        ),
        (
            &[">> ILSE: Is it open? >> BO: No.", ">> Why?", "&gt;&gt; ILSE: Monday.", ">> BO: I see."],
            "ILSE: Is it open?\nBO: No.\nWhy?\nILSE: Monday.\nBO: I see.\n",
            "Is it open?\nNo.\nWhy?\nMonday.\nI see.\n",
            &["ILSE", "BO"],
        ),
        (
            &["- Is it open?\n- No.", "-Why?\n-Monday.", "At -5 degrees."],
            "Is it open?\nNo.\nWhy?\nMonday.\nAt -5 degrees.\n",
            "Is it open?\nNo.\nWhy?\nMonday.\nAt -5 degrees.\n",
            &[],
        ),
        (
            &[
                "Step 1: Rinse the rice.",
                "Step 2: Boil it.",
                "Question: How long?",
                "Answer: Ten minutes.",
                "Warning: Hot!",
            ],
            "Step 1: Rinse the rice.\nStep 2: Boil it.\nQuestion: How long?\nAnswer: Ten minutes.\nWarning: Hot!\n",
            "Step 1: Rinse the rice.\nStep 2: Boil it.\nQuestion: How long?\nAnswer: Ten minutes.\nWarning: Hot!\n",
            &[],
        ),
        (
            &[
                "Ilse: Is it open?",
                "Bo: No.",
                "Remember: it is Monday.",
                "Ilse: Right.",
                "casual visitor: Hello!",
                "Bo: Hello.",
                "Ilse: Bye.",
            ],
            "Ilse: Is it open?\nBo: No.\nRemember: it is Monday.\nIlse: Right.\ncasual visitor: Hello!\nBo: Hello.\nIlse: Bye.\n",
            "Is it open?\nNo.\nRemember: it is Monday.\nRight.\ncasual visitor: Hello!\nHello.\nBye.\n",
            &["Ilse", "Bo"],
        ),
    ];
    for (cues, with, without, speakers) in cases {
        let document = read("a.srt", srt(cues).as_bytes(), &ReadOptions::DEFAULT);
        assert_eq!(document.text, *with);
        assert_eq!(document.facts.speakers, *speakers, "{with}");
        assert_eq!(read("a.srt", srt(cues).as_bytes(), &WORDS_ONLY).text, *without);
        assert_eq!(read("a.sbv", sbv(cues).as_bytes(), &ReadOptions::DEFAULT).text, *with);
    }
}

#[test]
fn stray_labels_are_words_and_leave_the_lines_whole_sentences() {
    let mut cues: Vec<String> = (0..300).map(|index| format!("We rinse the rice {index} times.")).collect();
    for (index, label) in
        [(40, "Listen"), (90, "Spoiler"), (91, "But mind"), (170, "Elsewhere"), (200, "Spoiler"), (250, "Grandma")]
    {
        cues[index] = format!("{label}: this is how spoiler {index} goes.");
    }
    for options in [ReadOptions::DEFAULT, WORDS_ONLY] {
        let document = read("a.srt", srt(&cues).as_bytes(), &options);
        assert_eq!(document.text, cues.iter().map(|cue| format!("{cue}\n")).collect::<String>());
        assert_eq!(document.facts.speakers, [""; 0]);
    }
}

#[test]
fn unnamed_cues_between_few_names_break_at_sentences() {
    let mut cues: Vec<String> = (0..60).map(|index| format!("It rained on day {index}.")).collect();
    for (index, name) in [(0, "Ilse"), (20, "Bo"), (40, "Ilse"), (50, "Bo")] {
        cues[index] = format!("{name}: {}", cues[index]);
    }
    let document = read("a.srt", srt(&cues).as_bytes(), &ReadOptions::DEFAULT);
    assert_eq!(document.text, cues.iter().map(|cue| format!("{cue}\n")).collect::<String>());
    assert_eq!(document.facts.speakers, ["Ilse", "Bo"]);
}

#[test]
fn voices_and_times_of_webvtt_are_kept_where_wanted() {
    let contents = "WEBVTT\n\n00:01.000 --> 00:02.000\n<v.loud Ilse &amp; Co>Is it <c.red>open</c>?</v>\n\n01:00:05.000 --> 01:00:06.000\n<v Bo>No.\n";
    assert_eq!(
        read("a.vtt", contents.as_bytes(), &ALL).text,
        "[00:00:01] Ilse & Co: Is it open?\n[01:00:05] Bo: No.\n"
    );
}

/// A turn of a conversation: which of the names, and what is said.
fn conversation() -> impl Strategy<Value = Vec<(usize, String)>> {
    let word = prop_oneof![
        8 => "[a-z]{1,7}",
        1 => prop::sample::select(vec!["R&D", "<3", "a<b", "--", "10:30", "42", "über", "{x}", "naïve", "&c"]).prop_map(str::to_string),
    ];
    let said = prop::collection::vec(word, 1..9).prop_map(|words| format!("So {}.", words.join(" ")));
    prop::collection::vec((0..NAMES.len(), said), 2..12)
}

const NAMES: [&str; 4] = ["Ilse Ek", "Bo", "d'Arcy", "SPEAKER_01"];

/// The turns as they should be read: those of one speaker in a row are one.
fn joined(turns: &[(usize, String)], prefix: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for (index, (name, said)) in turns.iter().enumerate() {
        let continues = index > 0 && turns[index - 1].0 == *name;
        match (continues, index) {
            (true, _) => text.push(' '),
            (false, 0) => text.push_str(&prefix(*name)),
            (false, _) => text.push_str(&format!("\n{}", prefix(*name))),
        }
        text.push_str(said);
    }
    text + "\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn substation(turns: &[(usize, String)]) -> String {
    let events = turns.iter().enumerate().map(|(index, (name, said))| {
        format!(
            "Dialogue: 0,0:{:02}:00.00,0:{:02}:01.00,Default,{},0,0,0,,{{\\i1}}{}\n",
            index,
            index,
            NAMES[*name],
            said.replace("{x}", "x")
        )
    });
    format!(
        "[Script Info]\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n{}",
        events.collect::<String>()
    )
}

fn ttml(turns: &[(usize, String)]) -> String {
    let agents: String = NAMES
        .iter()
        .enumerate()
        .map(|(id, name)| format!("<ttm:agent xml:id=\"n{id}\"><ttm:name>{name}</ttm:name></ttm:agent>"))
        .collect();
    let paragraphs: String = turns
        .iter()
        .map(|(name, said)| {
            format!("<p begin=\"1s\" end=\"2s\" ttm:agent=\"n{name}\">{}</p>\n", escaped(said).replace(' ', "\n"))
        })
        .collect();
    format!(
        "<tt xmlns=\"http://www.w3.org/ns/ttml\" xmlns:ttm=\"http://www.w3.org/ns/ttml#metadata\"><head>{agents}</head><body><div>{paragraphs}</div></body></tt>"
    )
}

/// Runs of letters and digits.
fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_conversation_written_in_any_format_is_read_again(turns in conversation()) {
        let labelled: Vec<String> = turns.iter().map(|(name, said)| format!("{}: {said}", NAMES[*name])).collect();
        let voices: Vec<String> = turns.iter().map(|(name, said)| format!("<v {}>{}</v>", NAMES[*name], escaped(said))).collect();
        let bracketed: Vec<String> = turns.iter().map(|(name, said)| format!("[{}]:\n{}", NAMES[*name], said.replacen(' ', "\n", 1))).collect();
        let with_names = joined(&turns, |name| format!("{}: ", NAMES[name]));
        let without = joined(&turns, |_| String::new());
        for (name, contents) in [
            ("a.srt", srt(&labelled)),
            ("b.srt", srt(&bracketed)),
            ("a.sbv", sbv(&labelled)),
            ("a.vtt", vtt(&voices)),
            ("b.vtt", vtt(&labelled.iter().map(|cue| escaped(cue)).collect::<Vec<_>>())),
            ("a.ttml", ttml(&turns)),
        ] {
            prop_assert_eq!(&read(name, contents.as_bytes(), &ReadOptions::DEFAULT).text, &with_names, "{}", name);
            prop_assert_eq!(&read(name, contents.as_bytes(), &WORDS_ONLY).text, &without, "{}", name);
        }
        let styled = read("a.ass", substation(&turns).as_bytes(), &ReadOptions::DEFAULT).text;
        prop_assert_eq!(styled, with_names.replace("{x}", "x"));
    }

    #[test]
    fn captions_that_roll_in_any_way_give_each_line_once(
        lines in prop::collection::vec(prop::collection::vec("[a-z]{1,8}", 3..7), 4..12),
    ) {
        let lines: Vec<String> = lines.iter().enumerate().map(|(index, words)| format!("{} {index}", words.join(" "))).collect();
        let expected = lines.join(" ");
        for (name, contents) in [
            ("automatic.srt", automatic_captions(&lines)),
            ("roll-up.vtt", vtt(&rolled_up(&lines))),
            ("roll-up.sbv", sbv(&rolled_up(&lines))),
            ("live.srt", srt(&grown(&lines))),
        ] {
            let read = text(name, &contents);
            prop_assert_eq!(read.split_whitespace().collect::<Vec<_>>().join(" "), expected.as_str(), "{}", name);
        }
    }

    #[test]
    fn no_word_of_a_cue_is_lost_but_speakers(
        cues in prop::collection::vec(
            (
                prop::sample::select(vec!["", "Ilse: ", "Bo (host): ", "Step 1: ", "note: ", "so it is: ", "[Ilse] ", "(laughs) ", "10:30: ", "李娜：", ">> ", "- ", "[00:12] Bo: "]),
                prop::collection::vec(prop::sample::select(vec!["we", "No!", "Then:", "x --> y", "<3", "5", "{a}", "Bo:", "R&D;", "(so)", "\n", "\n- yes", "\n\n"]), 0..7),
            ),
            1..20,
        ),
    ) {
        // The number keeps a cue from being a repetition.
        let cues: Vec<String> = cues.iter().enumerate().map(|(index, (label, words))| format!("{label}{} end{index}.", words.join(" "))).collect();
        let said = cues.join(" ");
        for (name, contents) in [("a.srt", srt(&cues)), ("a.vtt", vtt(&cues)), ("a.sbv", sbv(&cues))] {
            let with = read(name, contents.as_bytes(), &ReadOptions::DEFAULT);
            // A speaker who goes on is not named again, one who says nothing is not named at all, and times beside a name
            // are times.
            let may_be_lost = |word: &&str| ["Ilse", "Bo", "host", "李娜", "00", "12"].contains(word);
            let spoken = |text: &str| words(text).into_iter().filter(|word| !may_be_lost(word)).map(str::to_string).collect::<Vec<_>>();
            prop_assert_eq!(spoken(&with.text), spoken(&said), "{}", name);
            let without = read(name, contents.as_bytes(), &WORDS_ONLY);
            prop_assert_eq!(spoken(&without.text), spoken(&said), "{}", name);
        }
    }
}
