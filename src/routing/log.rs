//! The routing log: JSON lines that say, token by token, which experts served it.
//!
//! ```text
//! {"header": {"model": {..}, "layers": [0, 1], "E": 8, "K": 2, "tokenizer_sha256": "..", "sampling": {..}}}
//! {"index": 0, "id": 17, "text": "a", "source": "prompt", "logprob": null, "experts": [[3, 0], [1, 2]], "gates": [[0.7, 0.3], [0.6, 0.4]]}
//! ```

use crate::model::memory::Reading;
use crate::{fault, output};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What a token read from one memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// How much of it was let in, from 0 to 1.
    pub gate: f32,
    /// The row in each of the header's tables.
    pub rows: Vec<u32>,
}

impl Recall {
    /// What token number `token` read from each memory.
    pub fn all<'a>(readings: impl IntoIterator<Item = &'a Reading>, token: usize) -> Vec<Self> {
        let recall = |reading: &Reading| Self { gate: reading.gates_N[token], rows: reading.rows(token).to_vec() };
        readings.into_iter().map(recall).collect()
    }
}

/// The memories of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHeader {
    /// The transformer layers before whose attention there is one: `memory` of each token has one entry for each.
    pub layers: Vec<usize>,
    /// Orders of the n-grams, one table each: `rows` has one number for each.
    pub ngrams: Vec<usize>,
    /// Rows of a table, and channels of a row.
    pub slots: usize,
    pub dim: usize,
}

/// The first line: what the rest was made with. `S` is the type of the sampling settings; a log that was read has them
/// as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header<S = Value> {
    /// Checkpoint and parameter counts.
    pub model: Map<String, Value>,
    /// The transformer layers that route, counted from 0: `experts` and `gates` of each token have one row for each.
    pub layers: Vec<usize>,
    /// Experts in a layer.
    #[serde(rename = "E")]
    pub num_experts: usize,
    /// Experts chosen for each token.
    #[serde(rename = "K")]
    pub experts_per_token: usize,
    /// Left out where the model has no memory, and by older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryHeader>,
    pub tokenizer_sha256: String,
    pub sampling: S,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Prompt,
    Generated,
}

/// One token that passed through the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Which sample it belongs to, from 0, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<usize>,
    /// Position in the sample, the prompt included.
    pub index: usize,
    pub id: u32,
    pub text: String,
    pub source: Source,
    /// Natural logarithm of the model's own probability of this token. None for the first, which nothing predicts.
    pub logprob: Option<f32>,
    /// For each layer of the header the K chosen experts, best first.
    pub experts: Vec<Vec<u32>>,
    /// Their weights.
    pub gates: Vec<Vec<f32>>,
    /// What was read from each memory of the header.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Recall>,
}

/// Writes a log to `W`, called `name` in errors.
pub struct RoutingLog<W: Write> {
    out: BufWriter<W>,
    name: String,
    /// The file's name until it is finished, and then.
    names: Option<[PathBuf; 2]>,
}

/// Refuses to write a log at `path` if a file of another kind stands there, or one of `inputs`.
///
/// # Errors
/// [`crate::error::Failure::Usage`]
pub fn check_place(path: &Path, inputs: &[PathBuf]) -> Result<()> {
    let is_log = |start: &[u8]| start.starts_with(START);
    output::check(path, "a routing log", is_log, inputs)?;
    if output::is_stream(path) { Ok(()) } else { output::check(&partial(path), "a routing log", is_log, inputs) }
}

/// What every log starts with.
const START: &[u8] = br#"{"header":{"model":{"#;

/// The name of a log that is not finished.
fn partial(path: &Path) -> PathBuf {
    let mut name = output::behind_links(path).into_os_string();
    name.push(".partial");
    name.into()
}

impl RoutingLog<File> {
    /// Begins the log `path.partial`, which [`RoutingLog::finish`] gives its name: a process that is killed leaves there
    /// what it has written, and an earlier log at `path` as it was. What is a pipe or a device is written to directly.
    pub fn create<S: Serialize>(path: &Path, header: &Header<S>) -> Result<Self> {
        let name = path.display().to_string();
        let names = (!output::is_stream(path)).then(|| [partial(path), output::behind_links(path)]);
        fault::system_call();
        let file = match &names {
            Some([partial, _]) => File::create(partial),
            None => OpenOptions::new().append(true).open(path),
        };
        let file = file.with_context(|| format!("cannot create the routing log {name}"))?;
        Ok(Self { names, ..Self::new(file, name, header)? })
    }
}

impl<W: Write> RoutingLog<W> {
    pub fn new<S: Serialize>(out: W, name: String, header: &Header<S>) -> Result<Self> {
        #[derive(Serialize)]
        struct Line<'a, S> {
            header: &'a Header<S>,
        }
        let mut log = Self { out: BufWriter::new(out), name, names: None };
        log.line(&Line { header })?;
        Ok(log)
    }

    pub fn write(&mut self, entry: &Entry) -> Result<()> {
        self.line(entry)
    }

    /// Writes out what is buffered, and gives the file its name. Without it, an error in the last lines would pass
    /// unseen.
    pub fn finish(mut self) -> Result<()> {
        let mut finish = || {
            fault::system_call();
            self.out.flush()?;
            fault::system_call();
            self.names.as_ref().map_or(Ok(()), |[partial, whole]| fs::rename(partial, whole))
        };
        finish().with_context(|| format!("cannot write the routing log {}", self.name))
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.out, line)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(self.out.write_all(b"\n")?))
            .with_context(|| format!("cannot write the routing log {}", self.name))
    }
}

/// Reads a whole log.
///
/// # Errors
/// Name the file, and for a line that is not what the header promises, its number.
pub fn read_log(path: &Path) -> Result<(Header, Vec<Entry>)> {
    #[derive(Deserialize)]
    struct Line {
        header: Header,
    }
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the routing log {name}"))?;
    let mut lines = (1..).zip(BufReader::new(file).lines());
    let (_, first) = lines.next().with_context(|| format!("{name} is empty: a routing log starts with a header"))?;
    let Line { header } = first
        .map_err(anyhow::Error::from)
        .and_then(|line| parse(&line))
        .with_context(|| format!("{name}:1: not the header of a routing log"))?;
    let mut entries = Vec::new();
    for (number, line) in lines {
        let entry = line.map_err(anyhow::Error::from).and_then(|line| {
            let entry: Entry = parse(&line)?;
            check(&entry, &header)?;
            Ok(entry)
        });
        entries.push(entry.with_context(|| format!("{name}:{number}: not an entry of a routing log"))?);
    }
    Ok((header, entries))
}

/// serde_json numbers lines within the text that it gets, here always 1: leave the column alone.
fn parse<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T> {
    serde_json::from_str(line).map_err(|error| {
        let message = error.to_string();
        let cause = message.rsplit_once(" at line ").map_or(message.as_str(), |(cause, _)| cause);
        anyhow::anyhow!("column {}: {cause}", error.column())
    })
}

fn check(entry: &Entry, header: &Header) -> Result<()> {
    let (layers, K) = (header.layers.len(), header.experts_per_token);
    ensure!(
        entry.experts.len() == layers && entry.gates.len() == layers,
        "the header has {layers} layers, experts has {} and gates {}",
        entry.experts.len(),
        entry.gates.len()
    );
    ensure!(
        entry.experts.iter().all(|row| row.len() == K) && entry.gates.iter().all(|row| row.len() == K),
        "each layer must have {K} experts and {K} gates"
    );
    for &expert in entry.experts.iter().flatten() {
        ensure!((expert as usize) < header.num_experts, "expert {expert} of {} does not exist", header.num_experts);
    }
    let (memories, tables, slots) =
        header.memory.as_ref().map_or((0, 0, 0), |memory| (memory.layers.len(), memory.ngrams.len(), memory.slots));
    ensure!(entry.memory.len() == memories, "the header has {memories} memories, memory has {}", entry.memory.len());
    for recall in &entry.memory {
        ensure!(recall.rows.len() == tables, "each memory must have {tables} rows");
        let missing = recall.rows.iter().find(|&&row| row as usize >= slots);
        ensure!(missing.is_none(), "row {} of {slots} does not exist", missing.unwrap_or(&0));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::SamplingOptions;
    use serde_json::json;

    fn header() -> Header<SamplingOptions> {
        let Value::Object(model) = json!({"run": "runs/quickstart", "model_type": "qwen3_moe"}) else { unreachable!() };
        Header {
            model,
            layers: vec![1, 2],
            num_experts: 4,
            experts_per_token: 2,
            memory: None,
            tokenizer_sha256: "ab12".into(),
            sampling: SamplingOptions::default(),
        }
    }

    fn entry() -> Entry {
        Entry {
            sample: None,
            index: 0,
            id: 7,
            text: "é\n".into(),
            source: Source::Prompt,
            logprob: None,
            experts: vec![vec![3, 0], vec![1, 2]],
            gates: vec![vec![0.7, 0.3], vec![0.6, 0.4]],
            memory: Vec::new(),
        }
    }

    #[test]
    fn lines_have_the_documented_form() {
        let mut bytes = Vec::new();
        let mut log = RoutingLog::new(&mut bytes, "memory".into(), &header()).unwrap();
        log.write(&entry()).unwrap();
        log.write(&Entry { sample: Some(1), index: 1, source: Source::Generated, logprob: Some(-0.5), ..entry() })
            .unwrap();
        log.finish().unwrap();
        let expected = concat!(
            r#"{"header":{"model":{"model_type":"qwen3_moe","run":"runs/quickstart"},"layers":[1,2],"E":4,"K":2,"#,
            r#""tokenizer_sha256":"ab12","sampling":{"temperature":0.8,"top_k":0,"top_p":1.0,"min_p":0.0,"#,
            r#""repetition_penalty":1.0,"seed":1337}}}"#,
            "\n",
            r#"{"index":0,"id":7,"text":"é\n","source":"prompt","logprob":null,"#,
            r#""experts":[[3,0],[1,2]],"gates":[[0.7,0.3],[0.6,0.4]]}"#,
            "\n",
            r#"{"sample":1,"index":1,"id":7,"text":"é\n","source":"generated","logprob":-0.5,"#,
            r#""experts":[[3,0],[1,2]],"gates":[[0.7,0.3],[0.6,0.4]]}"#,
            "\n",
        );
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let generated = Entry { sample: Some(2), logprob: Some(-1.1), source: Source::Generated, ..entry() };
        let mut log = RoutingLog::create(&path, &header()).unwrap();
        for entry in [&entry(), &generated] {
            log.write(entry).unwrap();
        }
        log.finish().unwrap();
        let (read, entries) = read_log(&path).unwrap();
        assert_eq!((&read.model, &read.layers), (&header().model, &header().layers));
        assert_eq!(serde_json::from_value::<SamplingOptions>(read.sampling).unwrap(), header().sampling);
        assert_eq!(entries, [entry(), generated]);
    }

    #[test]
    fn a_log_has_another_name_until_it_is_finished_and_replaces_nothing_but_logs() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let path = at("log.jsonl");
        let write = |count: usize| {
            check_place(&path, &[]).unwrap();
            let mut log = RoutingLog::create(&path, &header()).unwrap();
            (0..count).for_each(|_| log.write(&entry()).unwrap());
            log
        };
        write(1).finish().unwrap();
        // Given up: the earlier one stands, and what was written is beside it.
        drop(write(3));
        assert_eq!(read_log(&path).unwrap().1.len(), 1);
        assert_eq!(read_log(&at("log.jsonl.partial")).unwrap().1.len(), 3);
        write(2).finish().unwrap();
        assert_eq!(read_log(&path).unwrap().1.len(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // Of another kind, under either name; and a log that is read.
        fs::write(at("weights"), "numbers").unwrap();
        fs::write(at("new.jsonl.partial"), "numbers").unwrap();
        for (name, inputs, why) in [
            ("weights", vec![], "is not a routing log"),
            ("new.jsonl", vec![], "new.jsonl.partial exists already and is not a routing log"),
            ("log.jsonl", vec![path.clone()], "is being read"),
        ] {
            let error = check_place(&at(name), &inputs).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(fs::read(at("weights")).unwrap(), b"numbers");
    }

    #[test]
    fn a_memory_is_logged_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let memory = MemoryHeader { layers: vec![1], ngrams: vec![2, 3], slots: 100, dim: 8 };
        let recalled = |rows: &[u32]| Entry { memory: vec![Recall { gate: 0.25, rows: rows.to_vec() }], ..entry() };
        let write = |entry: &Entry| {
            let mut log = RoutingLog::create(&path, &Header { memory: Some(memory.clone()), ..header() }).unwrap();
            log.write(entry).unwrap();
            log.finish().unwrap();
            read_log(&path)
        };
        let (read, entries) = write(&recalled(&[7, 99])).unwrap();
        assert_eq!((read.memory, entries), (Some(memory.clone()), vec![recalled(&[7, 99])]));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""K":2,"memory":{"layers":[1],"ngrams":[2,3],"slots":100,"dim":8},"#), "{text}");
        assert!(text.ends_with(concat!(r#""memory":[{"gate":0.25,"rows":[7,99]}]}"#, "\n")), "{text}");
        for (entry, cause) in
            [(recalled(&[7]), "2 rows"), (recalled(&[7, 100]), "row 100 of 100"), (entry(), "1 memories")]
        {
            let error = format!("{:#}", write(&entry).unwrap_err());
            assert!(error.contains("log.jsonl:2:") && error.contains(cause), "{error}");
        }
    }

    #[test]
    fn a_malformed_line_is_named_by_file_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let header = r#"{"header":{"model":{},"layers":[0],"E":4,"K":1,"tokenizer_sha256":"","sampling":{}}}"#;
        let line = |experts: &str| {
            format!(
                r#"{{"index":0,"id":1,"text":"","source":"prompt","logprob":null,"experts":{experts},"gates":[[1]]}}"#
            )
        };
        let good = line("[[3]]");
        for (text, place, cause) in [
            (String::new(), "log.jsonl is empty", "header"),
            (good.clone(), "log.jsonl:1:", "missing field `header`"),
            (format!("{header}\n{good}\n{}", &good[..20]), "log.jsonl:3:", "column 20"),
            (format!("{header}\n{}", line("[[4]]")), "log.jsonl:2:", "expert 4 of 4"),
            (format!("{header}\n{}", line("[[3,1]]")), "log.jsonl:2:", "1 experts"),
            (format!("{header}\n{}", line("[]")), "log.jsonl:2:", "1 layers"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", read_log(&path).unwrap_err());
            assert!(error.contains(place) && error.contains(cause), "{error}");
        }
    }

    #[test]
    fn a_failing_disk_is_reported_with_the_file() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = RoutingLog::new(Full, "out.jsonl".into(), &header()).unwrap();
        assert!(format!("{:#}", log.finish().unwrap_err()).contains("out.jsonl"));
    }
}
