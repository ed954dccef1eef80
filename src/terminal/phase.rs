//! What takes long and is not training: reading, tokenizers, baselines, evaluations.

use super::screen;
use console::truncate_str;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is over sooner is not worth showing.
const PATIENCE: Duration = Duration::from_millis(400);
/// Where nothing can be drawn, a line says after this time what is being done, and again each time that much later.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(125);
const SPINNER: [char; 4] = ['|', '/', '-', '\\'];

/// A slow part of a job, which is shown as long as this lives: a line at the bottom of a terminal, a message every ten
/// seconds elsewhere. Of phases within each other the innermost is shown.
pub struct Phase {
    state: Arc<State>,
    /// The thread that shows it, and what ends that. None where no thread could be started: then nothing is shown.
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

/// How many phases there are.
static DEPTH: AtomicUsize = AtomicUsize::new(0);

struct State {
    /// 1 for the outermost.
    depth: usize,
    /// As in "reading texts".
    what: String,
    started: Instant,
    done: AtomicU64,
    total: AtomicU64,
}

impl Phase {
    /// Begins something; `what` is a phrase like "reading texts".
    pub fn new(what: impl Into<String>) -> Self {
        let zero = || AtomicU64::new(0);
        let state = Arc::new(State {
            depth: DEPTH.fetch_add(1, Ordering::SeqCst) + 1,
            what: what.into(),
            started: Instant::now(),
            done: zero(),
            total: zero(),
        });
        let ticker = log::log_enabled!(log::Level::Info).then(|| {
            let (end, ended) = mpsc::channel();
            let state = state.clone();
            let thread = std::thread::Builder::new().name("progress".into());
            thread.spawn(move || state.show_until(&ended)).ok().map(|thread| (end, thread))
        });
        Self { state, ticker: ticker.flatten() }
    }

    /// How much is done, in any unit.
    pub fn at(&self, done: usize, total: usize) {
        self.state.done.store(done as u64, Ordering::Relaxed);
        self.state.total.store(total as u64, Ordering::Relaxed);
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.ticker.take() {
            drop(end);
            _ = thread.join();
        }
        DEPTH.fetch_sub(1, Ordering::SeqCst);
    }
}

impl State {
    fn show_until(&self, ended: &mpsc::Receiver<()>) {
        let live = screen::is_live();
        let mut pause = if live { PATIENCE } else { PLAIN_INTERVAL };
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            if DEPTH.load(Ordering::SeqCst) > self.depth {
                continue;
            }
            if live {
                screen::draw(|width| vec![self.line(width, self.started.elapsed())]);
                pause = TICK;
            } else {
                log::info!("{}", self.describe(self.started.elapsed()));
            }
        }
        if live {
            screen::clear();
        }
    }

    fn line(&self, width: usize, elapsed: Duration) -> String {
        let frame = SPINNER[(elapsed.as_millis() / TICK.as_millis()) as usize % SPINNER.len()];
        let line = format!("{frame} {}", self.describe(elapsed));
        truncate_str(&line, width, "…").into_owned()
    }

    fn describe(&self, elapsed: Duration) -> String {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        // Of a single piece it is not known how far it is.
        let share = if done == 0 || done >= total {
            String::new()
        } else {
            format!("{:.0}%, ", 100.0 * done as f64 / total as f64)
        };
        format!("{}: {share}{}", super::line(&self.what), super::duration(elapsed.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(what: &str, done: u64, total: u64) -> State {
        State { depth: 1, what: what.into(), started: Instant::now(), done: done.into(), total: total.into() }
    }

    #[test]
    fn a_phase_says_what_how_far_and_how_long_in_any_width() {
        let elapsed = Duration::from_secs(75);
        assert_eq!(state("reading texts", 1, 4).line(80, elapsed), "| reading texts: 25%, 1m15s");
        assert_eq!(state("reading texts", 0, 4).line(80, elapsed), "| reading texts: 1m15s");
        assert_eq!(state("training the tokenizer", 0, 0).line(80, elapsed), "| training the tokenizer: 1m15s");
        for width in [1, 5, 20] {
            let line = state("reading 語語語語語語語語語語\x1b[2J", 1, 4).line(width, elapsed);
            assert!(console::measure_text_width(&line) <= width && !line.contains('\x1b'), "{line:?}");
        }
    }
}
