//! Reads a configuration: the file is laid over [`DEFAULTS`], then each `--set section.key=value`, one value at a
//! time, so that every error names the line or the argument at fault. The defaults are the schema: a key that they
//! lack is unknown, and a value must have the type that it has there. One string or number stands for a list of one.

use super::Config;
use super::validate::violations;
use crate::error::Failure;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

/// The commented file of all defaults.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// A configuration is a page of text; a larger file is a mistake (a checkpoint, a corpus).
const MAX_BYTES: u64 = 1 << 20;

/// Section name -> key -> value.
type Sections = BTreeMap<String, Table>;

/// One value that a file or a `--set` gives to a key.
struct Setting<'a> {
    /// `section.key`, as written.
    key: String,
    value: Spanned<DeValue<'a>>,
    /// Where it was written, for errors: `configs/x.toml:7` or `--set model.hidden_size=64`.
    place: String,
}

impl Default for Config {
    /// The defaults, resolved. They name no data yet.
    fn default() -> Self {
        let mut config: Config = toml::from_str(DEFAULTS).expect("the defaults are a configuration: a test says so");
        config.model.resolve();
        config
    }
}

/// A configuration as it is written, with settings that the program itself lays over it.
#[derive(Clone, Debug)]
pub struct Draft {
    text: Cow<'static, str>,
    /// Where the text came from, for errors.
    origin: String,
    /// `section.key=value`, as behind `--set`.
    settings: Vec<String>,
}

impl Draft {
    pub fn new(text: impl Into<Cow<'static, str>>, origin: impl Into<String>) -> Self {
        Self { text: text.into(), origin: origin.into(), settings: Vec::new() }
    }

    /// The file at `path`.
    ///
    /// # Errors
    /// [`Failure::Usage`] when it cannot be read, or is no configuration at first sight.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        Ok(Self::new(read(path)?, path.display().to_string()))
    }

    /// Gives one more key another value.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.settings.push(format!("{key}={}", value.into()));
    }

    /// The whole configuration, with `--set` arguments `overrides` over it.
    ///
    /// # Errors
    /// [`Failure::Usage`] for TOML that does not parse, an unknown key, a value of the wrong type (the first one), and
    /// combinations that cannot work (all of them, one per line).
    pub fn resolve(&self, overrides: &[String]) -> anyhow::Result<Config> {
        let Self { text, origin, settings } = self;
        let mut sections: Sections = toml::from_str(DEFAULTS)?;
        for (offset, key, value) in values_in_order(text, origin, &sections)? {
            let place = format!("{origin}:{}", line_of(text, offset));
            apply(&mut sections, Setting { key, value, place })?;
        }
        for setting in settings {
            let setting = parse_setting(setting, origin.clone())?;
            apply(&mut sections, setting)?;
        }
        let inherited = violations(&typed(&sections)?);
        let mut blamed = BTreeMap::new();
        for argument in overrides {
            let setting = parse_setting(argument, format!("--set {argument}"))?;
            blamed.insert(setting.key.clone(), setting.place.clone());
            apply(&mut sections, setting)?;
        }
        let config = typed(&sections)?;
        let place = |problem: &String| match &inherited {
            inherited if inherited.contains(problem) => origin.clone(),
            _ => places(problem, &blamed).unwrap_or_else(|| origin.clone()),
        };
        match violations(&config) {
            problems if problems.is_empty() => Ok(config),
            problems => usage(problems.iter().map(|p| format!("{}: {p}", place(p))).collect::<Vec<_>>().join("\n")),
        }
    }
}

/// Reads, resolves and validates the configuration file at `path` with `--set` arguments `overrides`.
///
/// # Errors
/// As [`Draft::read`] and [`Draft::resolve`].
pub fn load(path: &Path, overrides: &[String]) -> anyhow::Result<Config> {
    Draft::read(path)?.resolve(overrides)
}

/// As [`load`], on text that came from `origin` (a name for errors).
///
/// # Errors
/// As [`Draft::resolve`].
pub fn parse(text: &str, origin: &str, overrides: &[String]) -> anyhow::Result<Config> {
    Draft::new(text.to_owned(), origin).resolve(overrides)
}

fn typed(sections: &Sections) -> anyhow::Result<Config> {
    let mut config = Config::deserialize(Value::try_from(sections)?)?;
    config.model.resolve();
    Ok(config)
}

/// The places that gave values to the keys that a problem mentions; all of `blamed` where it mentions none of them.
fn places(problem: &str, blamed: &BTreeMap<String, String>) -> Option<String> {
    let part_of_a_key = |character: char| character.is_ascii_alphanumeric() || "._".contains(character);
    let mentions = |key: &str| problem.split(|character| !part_of_a_key(character)).any(|word| word == key);
    let mentioned: Vec<&str> =
        blamed.iter().filter(|(key, _)| mentions(key)).map(|(_, place)| place.as_str()).collect();
    let places = if mentioned.is_empty() { blamed.values().map(String::as_str).collect() } else { mentioned };
    (!places.is_empty()).then(|| places.join(", "))
}

fn usage<T>(message: String) -> anyhow::Result<T> {
    Err(Failure::Usage(message).into())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let unreadable = |error| Failure::Usage(format!("cannot read the configuration {name}: {error}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return usage(format!("{name} is larger than {MAX_BYTES} bytes, so it is not a configuration file"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
            usage(format!("{name}:{line}: not UTF-8 text; a configuration is a TOML file, see the ones in configs/"))
        }
    }
}

/// The (byte offset, `section.key`, value) of each value in the file, from top to bottom.
fn values_in_order<'a>(
    text: &'a str,
    origin: &str,
    sections: &Sections,
) -> anyhow::Result<Vec<(usize, String, Spanned<DeValue<'a>>)>> {
    let document = match DeTable::parse(text) {
        Ok(document) => document.into_inner(),
        Err(error) => {
            let line = line_of(text, error.span().map_or(text.len(), |span| span.start));
            return usage(format!("{origin}:{line}: {}", error.message()));
        }
    };
    let mut values = Vec::new();
    for (section, body) in document {
        let (name, offset, span) = (section.get_ref(), section.span().start, body.span());
        match body.into_inner() {
            DeValue::Table(keys) if !keys.is_empty() || sections.contains_key(name.as_ref()) => {
                values.extend(keys.into_iter().map(|(k, v)| (k.span().start, format!("{name}.{}", k.get_ref()), v)));
            }
            // Not `section.key`, so `apply` refuses it.
            outside => values.push((offset, name.to_string(), Spanned::new(span, outside))),
        }
    }
    values.sort_by_key(|(offset, ..)| *offset);
    Ok(values)
}

/// The line, from 1, of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

/// Reads `section.key=value`. The value is TOML or, when it does not parse as TOML, a plain string, so that neither
/// `--set router.balance=bias` nor `--set data.sources=talks.txt` needs quotes within quotes.
fn parse_setting(setting: &str, place: String) -> anyhow::Result<Setting<'_>> {
    let Some((key, value)) = setting.split_once('=') else {
        return usage(format!("{place}: expected section.key=value"));
    };
    let plain = || Spanned::new(0..value.len(), DeValue::String(value.into()));
    let value = DeValue::parse(value.trim()).unwrap_or_else(|_| plain());
    Ok(Setting { key: key.trim().to_string(), value, place })
}

/// Puts one value in the place of the default, or of an earlier value, which has the same type.
fn apply(sections: &mut Sections, Setting { key, value, place }: Setting) -> anyhow::Result<()> {
    let Some(slot) = key.split_once('.').and_then(|(section, key)| sections.get_mut(section)?.get_mut(key)) else {
        return usage(format!("{place}: {}", unknown_key(&key, sections)));
    };
    match typed_like(slot, value) {
        Ok(value) => *slot = value,
        Err(problem) => return usage(format!("{place}: {key}: {problem}")),
    }
    // Only serde knows the variants of an enum, and what an array holds. All other values are sound, so an error is
    // this value's.
    match Config::deserialize(Value::try_from(&*sections)?) {
        Ok(_) => Ok(()),
        Err(error) => usage(format!("{place}: {key}: {}", error.message())),
    }
}

/// `value`, if its type is that of `model`; an integer also serves where a float stands. The type is looked at before
/// the value is converted, so nothing nested is ever walked.
fn typed_like(model: &Value, mut value: Spanned<DeValue>) -> Result<Value, String> {
    if model.is_array() && (value.get_ref().is_str() || value.get_ref().is_integer()) {
        let mut list = DeArray::new();
        list.push(value);
        value = Spanned::new(0..0, DeValue::Array(list));
    }
    let given = value.get_ref();
    let holds_one_type = |items: &DeArray| {
        items.iter().all(|item| item.get_ref().is_str()) || items.iter().all(|item| item.get_ref().is_integer())
    };
    let (expected, fits) = match model {
        Value::Boolean(_) => ("true or false", given.is_bool()),
        Value::Integer(_) => ("a whole number", given.is_integer()),
        Value::Float(_) => ("a number", given.is_float() || given.is_integer()),
        Value::Array(_) => ("an array of strings or of whole numbers", given.as_array().is_some_and(holds_one_type)),
        _ => ("a string", given.is_str()),
    };
    if !fits {
        return Err(format!("expected {expected}, found {}", given.type_str()));
    }
    match Value::deserialize(ValueDeserializer::from(value)) {
        Ok(Value::Integer(negative)) if negative < 0 && model.is_integer() => {
            Err(format!("expected a whole number of at least 0, found {negative}"))
        }
        Ok(Value::Integer(whole)) if model.is_float() => Ok(Value::Float(whole as f64)),
        Ok(value) => Ok(value),
        Err(error) => Err(error.message().to_string()),
    }
}

/// What to say about a key that the defaults lack: the section that it belongs in, or the most similar known key.
fn unknown_key(key: &str, sections: &Sections) -> String {
    if sections.contains_key(key) {
        return format!("{key} is a section, not a key: write [{key}] and its keys below it");
    }
    let leaf = |key: &str| key.rsplit('.').next().unwrap_or_default().chars().take(64).collect::<String>();
    let name = leaf(key);
    if let Some((section, _)) = sections.iter().find(|(_, keys)| keys.contains_key(&name)) {
        return format!("unknown key {key}; {name} belongs in [{section}]");
    }
    let keys = sections.iter().flat_map(|(section, keys)| keys.keys().map(move |key| format!("{section}.{key}")));
    let nearest = sections
        .keys()
        .cloned()
        .chain(keys)
        .map(|known| (strsim::damerau_levenshtein(&name, &leaf(&known)), known))
        .min_by_key(|(distance, known)| (*distance, known.split('.').next() != key.split('.').next()));
    match nearest {
        Some((distance, known)) if distance * 3 <= name.chars().count() => {
            format!("unknown key {key}; did you mean {known}?")
        }
        _ => format!("unknown key {key}; `tinymoe config --defaults` lists every key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Balance, ScoringFunc};
    use crate::error::exit_code;
    use proptest::prelude::*;

    const SOURCE: &str = "data.sources=talks";

    fn with_overrides(text: &str, overrides: &[&str]) -> anyhow::Result<Config> {
        let overrides: Vec<_> = overrides.iter().map(|o| o.to_string()).collect();
        parse(text, "configs/x.toml", &overrides)
    }

    #[track_caller]
    fn error_of(text: &str, overrides: &[&str]) -> String {
        let error = with_overrides(text, overrides).unwrap_err();
        assert_eq!(exit_code(&error), 2, "{error}");
        error.to_string()
    }

    #[test]
    fn a_file_changes_what_it_names_and_nothing_else() {
        let text = "[data]\nsources = [\"a.txt\", \"b\"]\n[model]\nnum_experts = 16\n";
        let config = with_overrides(text, &[]).unwrap();

        let mut expected: Config = toml::from_str(DEFAULTS).unwrap();
        expected.data.sources = vec!["a.txt".into(), "b".into()];
        expected.model.num_experts = 16;
        expected.model.num_key_value_heads = 4;
        expected.model.head_dim = 32;
        assert_eq!(config, expected);
    }

    #[test]
    fn overrides_come_after_the_file_and_the_last_one_wins() {
        let text = "model.num_experts = 16";
        let overrides = [SOURCE, "model.num_experts=4", "model.num_experts = 12"];
        assert_eq!(with_overrides(text, &overrides).unwrap().model.num_experts, 12);
    }

    #[test]
    fn override_values_are_toml_or_else_plain_strings() {
        let overrides = [
            "data.sources=talks/*.srt",
            "router.balance=bias",
            "router.scoring_func=\"sigmoid\"",
            "optimizer.learning_rate=3e-4",
            "optimizer.weight_decay=0",
            "train.sample_prompt=Once upon = a time",
            "model.qk_norm=false",
        ];
        let config = with_overrides("", &overrides).unwrap();
        assert_eq!(config.data.sources, ["talks/*.srt"]);
        assert_eq!((config.router.balance, config.router.scoring_func), (Balance::Bias, ScoringFunc::Sigmoid));
        assert_eq!((config.optimizer.learning_rate, config.optimizer.weight_decay), (3e-4, 0.0));
        assert_eq!(config.train.sample_prompt, "Once upon = a time");
        assert!(!config.model.qk_norm);
        let several = with_overrides("", &["data.sources=[\"a,b.txt\", 'c']"]).unwrap();
        assert_eq!(several.data.sources, ["a,b.txt", "c"]);
        assert_eq!(with_overrides("", &["data.sources=a,b"]).unwrap().data.sources, ["a,b"]);
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line_and_the_nearest_key() {
        assert_eq!(
            error_of("# one\n[model]\nnum_experts = 4\nhiden_size = 3\n", &[]),
            "configs/x.toml:4: unknown key model.hiden_size; did you mean model.hidden_size?"
        );
        assert_eq!(
            error_of("[modl]\nhiden_size = 3\n", &[]),
            "configs/x.toml:2: unknown key modl.hiden_size; did you mean model.hidden_size?"
        );
        assert_eq!(error_of("\n[modle]\n", &[]), "configs/x.toml:2: unknown key modle; did you mean model?");
        assert_eq!(
            error_of("", &["model.hiden_size=3"]),
            "--set model.hiden_size=3: unknown key model.hiden_size; did you mean model.hidden_size?"
        );
        assert_eq!(
            error_of("[train]\ncolour = 'red'", &[]),
            "configs/x.toml:2: unknown key train.colour; `tinymoe config --defaults` lists every key"
        );
    }

    #[test]
    fn a_key_in_the_wrong_section_is_told_its_section() {
        let message = "configs/x.toml:2: unknown key router.num_experts; num_experts belongs in [model]";
        assert_eq!(error_of("[router]\nnum_experts = 4\n", &[]), message);
        let message = "configs/x.toml:1: unknown key num_experts; num_experts belongs in [model]";
        assert_eq!(error_of("num_experts = 4\n", &[]), message);
        let message = "--set num_experts=4: unknown key num_experts; num_experts belongs in [model]";
        assert_eq!(error_of("", &["num_experts=4"]), message);
    }

    #[test]
    fn a_section_is_not_a_key() {
        let message = "configs/x.toml:1: model is a section, not a key: write [model] and its keys below it";
        assert_eq!(error_of("model = 3\n", &[]), message);
        assert_eq!(error_of("[[model]]\nnum_experts = 3\n", &[]), message);
        assert!(with_overrides("[model]\n", &[SOURCE]).is_ok(), "an empty section is fine");
    }

    #[test]
    fn the_first_mistake_from_the_top_is_reported() {
        let error = error_of("[train]\nx = 1\n[data]\ny = 1\n", &[]);
        assert!(error.starts_with("configs/x.toml:2: unknown key train.x;"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_line() {
        let cases = [
            ("[model]\nhidden_size = 1.0", "2: model.hidden_size: expected a whole number, found float"),
            ("[model]\nhidden_size = 'x'", "2: model.hidden_size: expected a whole number, found string"),
            ("[model]\nhidden_size = -1", "2: model.hidden_size: expected a whole number of at least 0, found -1"),
            ("[model.hidden_size]\nx = 1", "1: model.hidden_size: expected a whole number, found table"),
            ("[train]\nseed = -7", "2: train.seed: expected a whole number of at least 0, found -7"),
            ("[model]\nqk_norm = 1", "2: model.qk_norm: expected true or false, found integer"),
            ("[optimizer]\nbeta1 = '0.9'", "2: optimizer.beta1: expected a number, found string"),
            ("[tokenizer]\npath = []", "2: tokenizer.path: expected a string, found array"),
            (
                "[data]\nsources = true",
                "2: data.sources: expected an array of strings or of whole numbers, found boolean",
            ),
            ("[data]\nsources = [1]", "2: data.sources: invalid type: integer `1`, expected a string"),
            (
                "[data]\nsources = ['a', 1]",
                "2: data.sources: expected an array of strings or of whole numbers, found array",
            ),
            ("[model]\nmemory_layers = [-1]", "2: model.memory_layers: invalid value: integer `-1`, expected usize"),
            (
                "\n[router]\nscoring_func = 'softmx'",
                "3: router.scoring_func: unknown variant `softmx`, expected `softmax` or `sigmoid`",
            ),
            (
                "[tokenizer]\nkind = 'words'",
                "2: tokenizer.kind: unknown variant `words`, expected one of `bpe`, `bytes`, `chars`, `file`",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(error_of(text, &[]), format!("configs/x.toml:{message}"));
        }
        assert_eq!(
            error_of("", &["model.hidden_size=wide"]),
            "--set model.hidden_size=wide: model.hidden_size: expected a whole number, found string"
        );
    }

    #[test]
    fn an_integer_serves_as_a_float() {
        let config = with_overrides("[router]\ncapacity_factor = 1\n", &[SOURCE]).unwrap();
        assert_eq!(config.router.capacity_factor, 1.0);
    }

    #[test]
    fn numbers_that_no_integer_holds_are_refused() {
        for number in ["9223372036854775808", "99999999999999999999999999999999999999999", "1e999"] {
            let error = error_of(&format!("[train]\nseed = {number}"), &[]);
            assert!(error.starts_with("configs/x.toml:2: train.seed: "), "{error}");
        }
        assert_eq!(error_of("optimizer.beta1 = 1e999", &[]).matches("optimizer.beta1: ").count(), 1);
    }

    #[test]
    fn toml_that_does_not_parse_is_refused_with_its_line() {
        let error = error_of("[model]\nhidden_size = = 3\n", &[]);
        assert!(error.starts_with("configs/x.toml:2: "), "{error}");
        let error = error_of("[model]\nhidden_size = 3\nhidden_size = 4\n", &[]);
        assert_eq!(error, "configs/x.toml:3: duplicate key");
        let error = error_of("[model\n", &[]);
        assert!(error.starts_with("configs/x.toml:1: "), "{error}");
    }

    #[test]
    fn an_override_without_a_value_is_refused() {
        assert_eq!(error_of("", &["model.hidden_size"]), "--set model.hidden_size: expected section.key=value");
    }

    #[test]
    fn impossible_combinations_are_refused_with_the_name_of_the_file() {
        let error = error_of("[model]\nnum_experts = 1", &[]);
        let lines: Vec<_> = error.lines().collect();
        assert!(lines[0].starts_with("configs/x.toml: data.sources is empty"), "{error}");
        assert!(lines[1].starts_with("configs/x.toml: model.num_experts_per_tok = 2 is more than"), "{error}");
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn an_override_that_makes_a_combination_impossible_is_named_instead_of_the_file() {
        let file = "[data]\nsources = 'a'\n[train]\nbatch_size = 0\n";
        let error = error_of(file, &["model.num_experts=1", "train.seed=3"]);
        let lines: Vec<_> = error.lines().collect();
        assert!(lines[0].starts_with("--set model.num_experts=1: model.num_experts_per_tok = 2 is more"), "{error}");
        assert!(lines[1].starts_with("configs/x.toml: train.batch_size = 0"), "{error}");
        assert_eq!(lines.len(), 2);
        // Two of them together, the last value of a key, and a problem that the file had otherwise.
        let both = ["model.num_experts=8", "model.num_experts_per_tok=4", "model.num_experts=3"];
        let error = error_of("data.sources = 'a'", &both);
        let expected = "--set model.num_experts=3, --set model.num_experts_per_tok=4: model.num_experts_per_tok = 4 is";
        assert!(error.starts_with(expected), "{error}");
        let error = error_of("data.sources = 'a'\nmodel.num_experts = 1", &["model.num_experts_per_tok=5"]);
        assert!(error.starts_with("--set model.num_experts_per_tok=5: model.num_experts_per_tok = 5 is"), "{error}");
        let error = error_of("data.sources = 'a'", &["data.sources=[]"]);
        assert!(error.starts_with("--set data.sources=[]: data.sources is empty"), "{error}");
    }

    #[test]
    fn one_value_stands_for_a_list_of_one() {
        for (text, overrides) in [("[data]\nsources = 'talks'\n", &[][..]), ("", &["data.sources=talks"])] {
            assert_eq!(with_overrides(text, overrides).unwrap().data.sources, ["talks"]);
        }
        let config = with_overrides("data.sources = 'a'\n[model]\nmemory_layers = 1\nmemory_slots = 500", &[]).unwrap();
        assert_eq!(config.model.memory_layers, [1]);
        let message = "configs/x.toml:1: model.memory_layers: invalid type: string \"one\", expected usize";
        assert_eq!(error_of("model.memory_layers = 'one'", &[]), message);
    }

    #[test]
    fn what_is_not_a_configuration_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        let refused = |path: &Path| {
            let error = load(path, &[]).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            error.to_string()
        };
        assert!(refused(&path).starts_with(&format!("cannot read the configuration {}: ", path.display())));
        assert!(refused(folder.path()).starts_with("cannot read the configuration "));

        std::fs::write(&path, b"[data]\n# caf\xe9\n").unwrap();
        assert!(refused(&path).contains("x.toml:2: not UTF-8 text"), "{}", refused(&path));

        std::fs::write(&path, " ".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(refused(&path).contains("is larger than 1048576 bytes"), "{}", refused(&path));
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let dotted = ["a"; 79].join(".");
        let inline = format!("{dotted}={{").repeat(79) + &format!("{dotted}=1") + &"}".repeat(79);
        error_of(&inline, &[]);
        error_of(&format!("model.hidden_size={{{inline}}}"), &[]);
        error_of(&format!("data.sources={}", "[".repeat(500_000)), &[]);
        error_of(&format!("[{}]", ["a"; 400_000].join(".")), &[]);
        error_of("", &[&format!("data.sources={}{}", "[".repeat(70), "]".repeat(70))]);
        error_of("", &[&format!("model.hidden_size={}", "[".repeat(60_000))]);
        error_of(&format!("{}=1", "k".repeat(900_000)), &[]);
    }

    /// Text that gets past the TOML parser often enough to try what lies behind it.
    fn almost_a_configuration() -> impl Strategy<Value = String> {
        let name = r"(data|model|router|train|[a-z_.]{1,8})";
        let key = r"(sources|num_experts|hidden_size|scoring_func|beta1|[a-zA-Z_.]{1,12})";
        let value = r#"(-?[0-9]{1,30}|[0-9]\.[0-9e]{1,5}|nan|true|"[a-z\\]{0,9}"|\[.{0,9}\]|\{.{0,9}\}|.{0,9})"#;
        let line = format!(r"(\[{name}\]|{key} = {value}|{name}\.{key} = {value}|.{{0,20}})");
        proptest::collection::vec(proptest::string::string_regex(&line).unwrap(), 0..8).prop_map(|l| l.join("\n"))
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_a_usage_error(text in prop_oneof![any::<String>(), almost_a_configuration()]) {
            if let Err(error) = with_overrides(&text, &[]) {
                prop_assert_eq!(exit_code(&error), 2);
            }
        }

        #[test]
        fn any_override_applies_or_is_a_usage_error(line in prop_oneof![any::<String>(), almost_a_configuration()]) {
            if let Err(error) = with_overrides("", &[SOURCE, &line]) {
                prop_assert_eq!(exit_code(&error), 2);
            }
        }
    }
}
