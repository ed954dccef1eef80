//! What stands on the screen after a training session: how far it came, how good it is, and what to do next.

use crate::error::Failure;
use crate::terminal::{self, command, duration, operand};
use crate::train::prepare::grouped;
use crate::train::{Best, Ending, Trainer};
use anyhow::Result;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

/// A training session that is over.
pub struct Session<'a> {
    pub run: &'a Path,
    pub ending: Ending,
    pub step: usize,
    /// Nats per token: of the session's last steps, smoothed; none where it had no step.
    pub loss: Option<f64>,
    pub best: Option<(usize, Best)>,
    /// Of the whole run.
    pub seconds: f64,
    /// Of this session.
    pub tokens_per_s: f64,
    /// The command that goes on with the run.
    pub resume: String,
}

impl<'a> Session<'a> {
    /// # Errors
    /// If the n-gram baseline failed.
    pub fn new(
        trainer: &mut Trainer,
        ending: Ending,
        run: &'a Path,
        (loss, tokens_per_s): (Option<f64>, f64),
    ) -> Result<Self> {
        // Where there is none, there is no need to wait for the baseline.
        let best = if trainer.state().best_step.is_some() { trainer.best()? } else { None };
        let state = trainer.state();
        Ok(Self {
            run,
            ending,
            step: state.step,
            loss,
            best: state.best_step.zip(best),
            seconds: trainer.seconds(),
            tokens_per_s,
            resume: trainer.resume_command(),
        })
    }

    /// Results, which the same run always has, go to stdout; how fast it was and what to do next are for people.
    ///
    /// # Errors
    /// The `io::Error` of stdout.
    pub fn print(&self) -> io::Result<()> {
        let text = terminal::wrapped(&self.describe(), terminal::stdout_width());
        let printed = io::stdout().lock().write_all(text.as_bytes());
        log::info!("{}", self.advise());
        printed
    }

    fn describe(&self) -> String {
        let step = grouped(self.step);
        let mut text = match self.ending {
            Ending::Finished => format!("finished after step {step}\n"),
            Ending::Paused => format!("paused after step {step}; continue with `{}`\n", self.resume),
            // That is said last: see `error`.
            Ending::Interrupted => String::new(),
            Ending::StoppedEarly => {
                format!("stopped early after step {step}: the validation loss no longer improves\n")
            }
        };
        if let Some((step, best)) = &self.best {
            text += &format!(
                "best validation: step {}, loss {:.4} nats/token, {:.4} bits/byte; n-gram baseline: {:.4} bits/byte\n",
                grouped(*step),
                best.loss,
                best.bits_per_byte,
                best.ngram_bits_per_byte
            );
        }
        text + &format!("run: {}\n", terminal::path(self.run))
    }

    fn advise(&self) -> String {
        let mut text = String::new();
        if let Some(loss) = self.loss {
            let speed = grouped(self.tokens_per_s as usize);
            text = format!("training loss: {loss:.4} nats/token (mean of the last steps), {speed} tokens/s\n");
        }
        text += &format!("time: {}\nnext:", duration(self.seconds));
        for subcommand in ["sample", "inspect"] {
            let words: [OsString; 3] = ["tinymoe".into(), subcommand.into(), operand(self.run)];
            text += &format!("\n  {}", command(&words));
        }
        text
    }

    /// What an interrupted run ends with.
    pub fn error(&self) -> Failure {
        let (step, resume) = (self.step, &self.resume);
        Failure::Interrupted(format!("interrupted after step {step}, which is saved; continue with `{resume}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(ending: Ending, run: &str) -> Session<'_> {
        Session {
            run: Path::new(run),
            ending,
            step: 1_250,
            loss: Some(1.87344),
            best: Some((1_000, Best { loss: 1.9, bits_per_byte: 1.8, ngram_bits_per_byte: 2.1 })),
            seconds: 75.0,
            tokens_per_s: 12_345.6,
            resume: "tinymoe resume 'my run'".into(),
        }
    }

    #[test]
    fn an_ending_says_how_good_how_long_and_what_next() {
        let session = session(Ending::Finished, "runs/a");
        let result = "finished after step 1,250\n\
                      best validation: step 1,000, loss 1.9000 nats/token, 1.8000 bits/byte; n-gram baseline: 2.1000 \
                      bits/byte\n\
                      run: runs/a\n";
        assert_eq!(session.describe(), result);
        let advice = "training loss: 1.8734 nats/token (mean of the last steps), 12,345 tokens/s\n\
                      time: 1m15s\n\
                      next:\n  \
                      tinymoe sample runs/a\n  \
                      tinymoe inspect runs/a";
        assert_eq!(session.advise(), advice);
    }

    #[test]
    fn commands_can_be_copied_whatever_the_run_is_called() {
        let paused = session(Ending::Paused, "my run");
        let text = paused.describe();
        assert!(text.starts_with("paused after step 1,250; continue with `tinymoe resume 'my run'`\n"), "{text}");
        let advice = paused.advise();
        assert!(advice.ends_with("next:\n  tinymoe sample 'my run'\n  tinymoe inspect 'my run'"), "{advice}");
        let odd = session(Ending::Interrupted, "-a\x1b[2J");
        assert!(odd.advise().contains("tinymoe sample $'./-a\\033[2J'"), "{}", odd.advise());
        assert!(!(odd.advise() + &odd.describe()).contains('\x1b'));
    }
}
