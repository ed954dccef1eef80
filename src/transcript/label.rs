//! The form of a speaker's label at the start of a line: `Ana Lee:`, `[SPEAKER_00]:`, `omar (he/him):`, `王芳：`,
//! `(Petra Novak)`, with or without times. Whether a label of that form is a name, the whole file decides.

use super::turns::parse_clock;

/// What a line begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label<'a> {
    /// Without times and without brackets around it; empty for an unknown speaker (`(speaker ?)`).
    pub name: &'a str,
    pub start_ms: Option<u64>,
    pub kind: Kind,
    /// What follows the label.
    pub words: &'a str,
}

/// How far the form alone tells that a label is a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The form leaves no doubt: `SPEAKER_00`, or a name with a time.
    Marked,
    /// Capitalised words and particles: `d'Arcy`, `Dr. Mary-Ann O'Neil`, `Ana (host)`.
    Name,
    /// In a script without capitals.
    Uncased,
    /// Short enough for a name: `omar`, but also `here is one`.
    Loose,
    /// `Step 1`, `Question`: never a name.
    Heading,
    /// In brackets and without a colon: `(Petra Novak)`, but also `(Door closes)`.
    Bracketed,
}

const MAX_LABEL_CHARS: usize = 60;
const MAX_LABEL_WORDS: usize = 6;

/// Parts of names that are written small.
const PARTICLES: &str = "\
    & + abu af al and auf av ben bin da das de degli del della den der des di do dos du e el et i ibn la las \
    le les los op st. te ten ter und van von y zu zur";

/// Words that announce something instead of naming a speaker, alone or with a number.
const HEADINGS: &str = "\
    a achtung action advantage advice again agenda allergens also and announcement another answer antwort \
    appendix assumption attention background basically because beispiel benefit big bonus bottom breaking \
    bullet but caption captions case caution caveat challenge chapitre chapter chorus closing clue comment \
    conclusion conditions congratulations cons consider context copyright correct correction credits danger \
    date day definition description dessert difference directions disclaimer discussion domanda edge edit \
    ejemplo email episode etape etc exactly example exception exemple exercise experiment extra fact false \
    figure final finally finding first focus footnote formula frage fun goal heads here hint hinweis how \
    hypothesis i.e. idea imagine important in incorrect ingredients instructions interesting interestingly \
    intro introduction item kapitel key keyword keywords language last learning lesson level line list listen \
    location look lyrics main materials meaning meanwhile method mission moral music my myth next no nota \
    note notes now number objective observation once one opening opinion option otherwise outcome outro \
    overview page paragraph part paso passo pergunta phase place plan point prediction pregunta preparation \
    prerequisites principle pro problem proof pros ps purpose q question questions quick quiz quote reality \
    reason recap recipe references remark remarque remember reminder requirements resposta respuesta result \
    results right risposta round rule réponse scene schritt season second secret section serves serving setup \
    side slide so solution source sources specifically spoiler sponsor stage statement step storage \
    story subject subtitles suggestion summary supplies table takeaway takeaways task technically the theme \
    then theory third this three thus time timeline tip tips title today tomorrow tools topic transcript \
    translation trivia true truth turns two update verdict verse version vocabulary warning warum week well \
    what when where who why worst wrong yes yesterday your étape внимание вопрос ответ шаг שאלה جواب سؤال 例如 問 \
    步骤 注意 答 答え 答案 質問 问 问题";

/// What recognisers and captions put in brackets besides names.
const SOUNDS: &str = "\
    applaudissements applaus applause aplausos audio background bell blank_audio chatter cheering cheers \
    chuckles chuckling clears closes coughs cries crosstalk crying door foreign gasps groans inaudible \
    indistinct laugh laughing laughs laughter music musik musique música noise pause phone playing risas rires \
    ringing screaming sighs silence singing sobbing sound sounds speaking speaks unintelligible whispering \
    whispers 拍手 掌声 笑 音楽";

/// The label that `text` begins with, if it begins like one.
pub(super) fn leading_label(text: &str) -> Option<Label<'_>> {
    let text = text.trim_start();
    match leading_time(text) {
        Some((start_ms, after)) => untimed_label(after).map(|label| label.with_time(Some(start_ms))),
        None => untimed_label(text),
    }
}

impl Label<'_> {
    /// A name beside a time is one by its form, but `so at (00:12): go` is none.
    fn with_time(self, start_ms: Option<u64>) -> Self {
        let kind = match self.kind {
            Kind::Name | Kind::Uncased if start_ms.is_some() => Kind::Marked,
            kind => kind,
        };
        Self { start_ms: self.start_ms.or(start_ms), kind, ..self }
    }
}

fn untimed_label(text: &str) -> Option<Label<'_>> {
    if let Some((inside, after)) = leading_brackets(text) {
        return bracketed_label(inside.trim(), after);
    }
    for (position, colon) in text.char_indices().take(MAX_LABEL_CHARS + 20).filter(|(_, c)| is_colon(*c)) {
        let (head, words) = (&text[..position], &text[position + colon.len_utf8()..]);
        if !ends_label(head, colon, words) {
            continue;
        }
        // A colon inside of brackets may be that of a time.
        let is_open = |open, close| head.matches(open).count() > head.matches(close).count();
        match label_of_head(head.trim(), words) {
            None if is_open('(', ')') || is_open('[', ']') => {}
            label => return label,
        }
    }
    None
}

fn is_colon(c: char) -> bool {
    c == ':' || c == '：'
}

/// `10:30` and `https://x.org` have a colon too, but scripts without capitals need no space after theirs.
fn ends_label(head: &str, colon: char, words: &str) -> bool {
    let glued = head.ends_with(is_uncased) && !words.starts_with(|c: char| c == '/' || c.is_numeric());
    colon == '：' || words.is_empty() || words.starts_with(char::is_whitespace) || glued
}

/// `[Ana]: Hi`, `[SPEAKER_00] Hi`, `(Ana)`.
fn bracketed_label<'a>(inside: &'a str, after: &'a str) -> Option<Label<'a>> {
    if let Some(words) = after.trim_start().strip_prefix([':', '：']) {
        return label_of_head(inside, words);
    }
    let kind = match form(inside)? {
        Kind::Marked => Kind::Marked,
        Kind::Name | Kind::Uncased if !is_sound(inside) => Kind::Bracketed,
        _ => return None,
    };
    Some(Label { name: known_name(inside), start_ms: None, kind, words: after.trim() })
}

fn label_of_head<'a>(head: &'a str, words: &'a str) -> Option<Label<'a>> {
    let (name, time) = without_trailing_time(head);
    let label = Label { name: known_name(name), start_ms: None, kind: form(name)?, words: words.trim() };
    match leading_time(label.words) {
        Some((start_ms, after)) => Some(Label { words: after, ..label.with_time(time.or(Some(start_ms))) }),
        None => Some(label.with_time(time)),
    }
}

/// `[00:12]`, `(00:12)`, `00:00:12` and what follows; `10:30 is fine` speaks of a time.
fn leading_time(text: &str) -> Option<(u64, &str)> {
    if let Some((inside, after)) = leading_brackets(text) {
        return Some((parse_clock(inside.trim())?, after.trim_start()));
    }
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    Some((parse_full_clock(&text[..end])?, text[end..].trim_start()))
}

/// The name in `Ana (00:00:12)`, `Ana [00:12]`, `Ana 00:00:12`.
fn without_trailing_time(head: &str) -> (&str, Option<u64>) {
    let (opening, closing) = match head.chars().next_back() {
        Some(')') => ("(", ")"),
        Some(']') => ("[", "]"),
        _ => (" ", ""),
    };
    let Some((name, time)) = head.rsplit_once(opening) else { return (head, None) };
    let time = time.strip_suffix(closing).unwrap_or(time).trim();
    match if closing.is_empty() { parse_full_clock(time) } else { parse_clock(time) } {
        Some(ms) if !name.trim().is_empty() => (name.trim(), Some(ms)),
        _ => (head, None),
    }
}

/// With hours, as nobody says a time.
fn parse_full_clock(clock: &str) -> Option<u64> {
    parse_clock(clock).filter(|_| clock.matches(':').count() == 2)
}

/// The inside of the brackets that `text` starts with, not longer than a label, and what follows them.
fn leading_brackets(text: &str) -> Option<(&str, &str)> {
    let (open, close) =
        [('[', ']'), ('(', ')'), ('（', '）'), ('【', '】')].into_iter().find(|(open, _)| text.starts_with(*open))?;
    let inside = &text[open.len_utf8()..];
    let (end, _) = inside.char_indices().take(MAX_LABEL_CHARS).find(|(_, c)| *c == close)?;
    Some((&inside[..end], &inside[end + close.len_utf8()..]))
}

fn known_name(name: &str) -> &str {
    if name.ends_with('?') { "" } else { name }
}

/// What a label may be by its form; None if it cannot be one.
fn form(name: &str) -> Option<Kind> {
    if name.chars().count() > MAX_LABEL_CHARS || !name.contains(char::is_alphabetic) {
        return None;
    }
    if is_diarised(name) {
        return Some(Kind::Marked);
    }
    let core = without_affiliation(name)?;
    let words: Vec<&str> = core.split_whitespace().collect();
    let has_foreign_mark =
        core.contains(|c: char| !c.is_alphanumeric() && !c.is_whitespace() && !"._-'’·&+,".contains(c) && !is_mark(c));
    if words.is_empty()
        || words.len() > MAX_LABEL_WORDS
        || has_foreign_mark
        || words.iter().any(|word| ends_sentence(word))
    {
        return None;
    }
    if is_heading(&words) {
        return Some(Kind::Heading);
    }
    let (mut capitals, mut uncased, mut small) = (0, 0, 0);
    for (position, word) in words.iter().enumerate() {
        if is_capitalised(word) {
            capitals += 1;
        } else if word.starts_with(is_uncased) {
            uncased += 1;
        } else if !(is_in(PARTICLES, word) || (position > 0 && word.starts_with(char::is_numeric))) {
            small += 1;
        }
    }
    Some(match (capitals, uncased) {
        _ if small > 0 || core.contains(',') => Kind::Loose,
        (0, 0) => Kind::Loose,
        (0, _) => Kind::Uncased,
        _ => Kind::Name,
    })
}

/// `SPEAKER_00`, `speaker 1`, `Speaker A`, `spk_0`, `speaker ?`.
fn is_diarised(name: &str) -> bool {
    let lower = name.to_lowercase();
    let Some(number) = ["speaker", "spk", "sprecher", "locuteur"].iter().find_map(|word| lower.strip_prefix(word))
    else {
        return false;
    };
    let id = number.trim_start_matches([' ', '_', '-', '#']);
    let is_number = !id.is_empty() && id.len() <= 4 && id.bytes().all(|byte| byte.is_ascii_digit());
    let is_letter = id.len() == 1 && id.starts_with(|c: char| c.is_ascii_lowercase() || c == '?');
    is_number || (is_letter && number != id)
}

/// `Ana Lee` of `Ana Lee (she/her) | Marketing`. None if what is left out is no affiliation.
fn without_affiliation(name: &str) -> Option<&str> {
    let mut core = [" | ", "|", " - ", " – ", " — ", " / ", " @ ", " · "]
        .iter()
        .find_map(|separator| name.split_once(separator))
        .map_or(name, |(core, _)| core)
        .trim();
    while let Some((before, _)) = core.strip_suffix([')', ']']).and_then(|inner| inner.rsplit_once(['(', '['])) {
        core = before.trim();
    }
    let left_out = &name[core.len()..];
    (!left_out.contains(['?', '!', ';', '"', '.'])).then_some(core)
}

/// `there.`, but not `Dr.` or `J.`
fn ends_sentence(word: &str) -> bool {
    word.strip_suffix('.').is_some_and(|word| word.chars().count() > 5)
}

fn is_in(list: &str, word: &str) -> bool {
    list.split(' ').any(|known| known == word)
}

fn is_heading(words: &[&str]) -> bool {
    let is_known = |word: &str| is_in(HEADINGS, &word.to_lowercase());
    let is_number = |word: &str| {
        let word = word.trim_start_matches('#');
        let is_roman = !word.is_empty() && word.chars().all(|c| "IVX".contains(c));
        word.starts_with(char::is_numeric) || is_roman || word.chars().count() == 1
    };
    words.iter().enumerate().all(|(position, word)| is_known(word) || (position > 0 && is_number(word)))
}

/// A capital at the start, after a particle (`d'Arcy`, `al-Rashid`), or inside (`deGrasse`, `iPhone`).
fn is_capitalised(word: &str) -> bool {
    let word = word.trim_start_matches(['\'', '’']);
    let first_is_letter = word.starts_with(char::is_alphabetic);
    first_is_letter && word.contains(char::is_uppercase)
}

/// A letter of a script without capitals.
pub(super) fn is_uncased(c: char) -> bool {
    c.is_alphabetic() && !c.is_lowercase() && !c.is_uppercase()
}

/// A combining mark, as Devanagari and decomposed accents need them, or a joiner.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{591}'..='\u{5c7}' | '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}'
        | '\u{900}'..='\u{dff}' | '\u{e00}'..='\u{eff}' | '\u{200c}'..='\u{200f}')
}

fn is_sound(inside: &str) -> bool {
    let lower = inside.to_lowercase();
    lower.split(|c: char| c.is_whitespace() || ".,".contains(c)).any(|word| is_in(SOUNDS, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_by_their_form() {
        use Kind::*;
        for (line, name, kind, words) in [
            ("Ana: Hi.", "Ana", Name, "Hi."),
            ("Dr. Mary-Ann O'Neil: Hi", "Dr. Mary-Ann O'Neil", Name, "Hi"),
            ("d'Arcy: I can", "d'Arcy", Name, "I can"),
            ("van Dijk: No", "van Dijk", Name, "No"),
            ("Ahmed al-Rashid: Yes", "Ahmed al-Rashid", Name, "Yes"),
            ("iPhone von Anna: Me", "iPhone von Anna", Name, "Me"),
            ("Anna Lee (host): Hi", "Anna Lee (host)", Name, "Hi"),
            ("José Álvarez | Marketing: Hi", "José Álvarez | Marketing", Name, "Hi"),
            ("P1: Hi", "P1", Name, "Hi"),
            ("omar (he/him): Hi", "omar (he/him)", Loose, "Hi"),
            ("Smith, John: Hi", "Smith, John", Loose, "Hi"),
            ("王芳: 你好", "王芳", Uncased, "你好"),
            ("王芳：你好", "王芳", Uncased, "你好"),
            ("王芳:你好", "王芳", Uncased, "你好"),
            ("שרה: שלום", "שרה", Uncased, "שלום"),
            ("أحمد: مرحبا", "أحمد", Uncased, "مرحبا"),
            ("राम: नमस्ते", "राम", Uncased, "नमस्ते"),
            ("[SPEAKER_00]: Hi", "SPEAKER_00", Marked, "Hi"),
            ("[SPEAKER_00] Hi", "SPEAKER_00", Marked, "Hi"),
            ("(speaker 0) Hi", "speaker 0", Marked, "Hi"),
            ("(speaker ?) Hi", "", Marked, "Hi"),
            ("Speaker 1: Hi", "Speaker 1", Marked, "Hi"),
            ("spk_0: Hi", "spk_0", Marked, "Hi"),
            ("[Ana]: Hi", "Ana", Name, "Hi"),
            ("(Petra Novak)", "Petra Novak", Bracketed, ""),
            ("Step 1: Cut", "Step 1", Heading, "Cut"),
            ("Question: Is", "Question", Heading, "Is"),
            ("Pro tip: Salt", "Pro tip", Heading, "Salt"),
            ("Q: Why", "Q", Heading, "Why"),
            ("问题：为什么", "问题", Heading, "为什么"),
        ] {
            let label = leading_label(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((label.name, label.kind, label.words), (name, kind, words), "{line}");
        }
    }

    #[test]
    fn times_beside_a_name_are_times() {
        for line in [
            "Ana Lee (00:01:02): Hi",
            "Ana Lee [01:02]: Hi",
            "Ana Lee 00:01:02: Hi",
            "[00:01:02] Ana Lee: Hi",
            "(01:02) Ana Lee: Hi",
            "00:01:02 Ana Lee: Hi",
            "Ana Lee: [00:01:02] Hi",
            "Ana Lee: 00:01:02 Hi",
        ] {
            let label = leading_label(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((label.name, label.start_ms, label.words), ("Ana Lee", Some(62_000), "Hi"), "{line}");
        }
        let label = leading_label("Ana: 10:30 is fine").unwrap();
        assert_eq!((label.start_ms, label.words), (None, "10:30 is fine"));
    }

    #[test]
    fn a_time_of_day_makes_no_name() {
        assert_eq!(leading_label("Monday 10:30: a meeting"), None);
        assert_eq!(leading_label("10:30 Bus: late").map(|label| label.kind), None);
    }

    #[test]
    fn other_text_with_a_colon_is_no_label() {
        for line in [
            "",
            ":",
            "(",
            "It is 10:30 now",
            "https://x.org: here",
            "He said it there. Then: no",
            "What is it? Ana: no",
            "(laughs) so",
            "[MUSIC]",
            "[Door closes]",
            "(Applause)",
            "one two three four five six seven: no",
            "12: twelve",
            "Ana said: \"no",
            "Meet me at 10:30: bring it",
            "so we start at 00:00:05: go",
        ] {
            let label = leading_label(line);
            assert!(label.is_none_or(|label| label.kind == Kind::Loose), "{line}: {label:?}");
        }
    }
}
