//! Rows with a text each: lines of JSONL, rows of a table, a list in a JSON file. Each is a document; rows that tell who
//! speaks or when are the turns of one talk instead.

use super::file::{Origin, PART_BYTES, Visit};
use super::turns::{Speech, Turn, join};
use super::{ReadOptions, at_line, plain, with_unix_newlines};
use anyhow::{Result, bail};

/// A row, and where it is in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    /// From 1: the line, or where a file has no lines, the row.
    pub line: usize,
    pub source_bytes: usize,
    pub text: String,
    pub domain: Option<String>,
    pub speaker: Option<String>,
    pub start_ms: Option<u64>,
}

/// Turns rows into documents as they come.
pub(super) struct Rows<'a> {
    origin: Origin<'a>,
    options: &'a ReadOptions,
    /// Of the rows of the file, as far as they are read.
    is_talk: Option<bool>,
    talk: Talk,
    documents: usize,
    first_fault: Option<(usize, String)>,
}

/// The turns since the last change of the domain.
#[derive(Default)]
struct Talk {
    line: usize,
    domain: Option<String>,
    turns: Vec<Turn>,
    source_bytes: usize,
}

impl<'a> Rows<'a> {
    pub fn new(origin: Origin<'a>, options: &'a ReadOptions) -> Self {
        let talk = Talk::default();
        Self { origin, options, is_talk: None, talk, documents: 0, first_fault: None }
    }

    /// Says beforehand whether the rows are the turns of a talk, where a header tells. Otherwise the first row does.
    pub fn decide(&mut self, is_talk: bool) {
        self.is_talk = Some(is_talk);
    }

    pub fn push(&mut self, row: Row, visit: &mut Visit) -> Result<()> {
        if row.text.trim().is_empty() {
            let reason = format!("\"{}\" is empty", self.options.text_column);
            return visit(self.origin.skipped(row.line, reason, true));
        }
        if *self.is_talk.get_or_insert(row.speaker.is_some() || row.start_ms.is_some()) {
            return self.continue_talk(row, visit);
        }
        let Row { line, source_bytes, text, domain, speaker, start_ms } = row;
        let speech = match speaker {
            Some(_) => Speech::of(&join(vec![Turn { start_ms, speaker, text }]), self.options),
            None => {
                let text = with_unix_newlines(&text);
                return self.push_texts(line, domain.as_deref(), text.trim(), source_bytes, visit);
            }
        };
        self.push_speech(line, domain.as_deref(), speech, source_bytes, visit)
    }

    /// A row that is more than one text.
    pub fn push_speech(
        &mut self,
        line: usize,
        domain: Option<&str>,
        speech: Speech,
        source_bytes: usize,
        visit: &mut Visit,
    ) -> Result<()> {
        if speech.text.trim().is_empty() {
            return visit(self.origin.skipped(line, "there is no text in this row", true));
        }
        self.documents += 1;
        let name = format!("{}:{line}", self.origin.name);
        visit(self.origin.document(&name, domain.unwrap_or(self.origin.domain), speech, source_bytes))
    }

    fn push_texts(
        &mut self,
        line: usize,
        domain: Option<&str>,
        text: &str,
        source_bytes: usize,
        visit: &mut Visit,
    ) -> Result<()> {
        let parts: Vec<&str> = plain::documents(text).collect();
        for part in &parts {
            let bytes = if parts.len() == 1 { source_bytes } else { part.len() };
            self.push_speech(line, domain, plain::read(part, self.options), bytes, visit)?;
        }
        Ok(())
    }

    /// A row that cannot be read: it is skipped, unless all are like it.
    pub fn fault(&mut self, line: usize, reason: String, visit: &mut Visit) -> Result<()> {
        visit(self.origin.skipped(line, &reason, false))?;
        self.first_fault.get_or_insert((line, reason));
        Ok(())
    }

    fn continue_talk(&mut self, row: Row, visit: &mut Visit) -> Result<()> {
        let is_new = self.talk.turns.is_empty();
        if !is_new && (row.domain != self.talk.domain || self.talk.source_bytes > PART_BYTES) {
            self.end_talk(visit)?;
        }
        if self.talk.turns.is_empty() {
            self.talk = Talk { line: row.line, domain: row.domain, ..Talk::default() };
        }
        self.talk.source_bytes += row.source_bytes;
        self.talk.turns.push(Turn { start_ms: row.start_ms, speaker: row.speaker, text: row.text });
        Ok(())
    }

    /// The talk is a document; it has the name of the file if it is the only one.
    fn end_talk(&mut self, visit: &mut Visit) -> Result<()> {
        let Talk { line, domain, turns, source_bytes } = std::mem::take(&mut self.talk);
        if turns.is_empty() {
            return Ok(());
        }
        let speech = Speech::of(&join(turns), self.options);
        self.push_speech(line, domain.as_deref(), speech, source_bytes, visit)
    }

    /// Hands over what is left.
    ///
    /// # Errors
    /// Where the file held no text: the fault of its first row, if there was one.
    pub fn finish(mut self, visit: &mut Visit) -> Result<()> {
        self.end_talk(visit)?;
        match self.first_fault {
            _ if self.documents > 0 => Ok(()),
            Some((line, reason)) => Err(at_line(self.origin.name, line, reason)),
            None => bail!("{}: there is no text in this file", self.origin.name),
        }
    }
}
