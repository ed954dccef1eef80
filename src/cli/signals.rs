//! Signals that ask the program to end: Ctrl-C, `kill`, a terminal that is closed, Ctrl-\. A training run saves first;
//! everything else ends at once, without leaving half a progress display behind.

use crate::terminal;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// The exit code of a run that was interrupted.
const INTERRUPTED: i32 = 130;

/// Those that are listened to. One that is ignored as the program starts stays ignored: `nohup` does this with SIGHUP,
/// a shell without job control with SIGINT and SIGQUIT for what it runs in the background.
fn heeded() -> Vec<i32> {
    [SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter().filter(|&signal| !is_ignored(signal)).collect()
}

#[allow(unsafe_code)]
fn is_ignored(signal: i32) -> bool {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, sigaction only writes the current one, to memory that is ours and large enough; it
    // is read only where the call says that it has been written.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), current.as_mut_ptr()) == 0
            && current.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// A write beyond the limit on file sizes (`ulimit -f`) fails with a message, instead of ending the program by SIGXFSZ.
pub fn survive_file_size_limits() {
    // A handler that only takes note; without one, the program ends as it would have.
    _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// For jobs that have nothing to save: a signal ends the program as it would without this, after the progress display
/// has been removed. Where nothing is displayed, nothing is done.
pub fn remove_display_at_end() {
    if !terminal::is_live() {
        return;
    }
    let Ok(mut signals) = Signals::new(heeded()) else { return };
    // Without a thread, as without all this, what is drawn stays where the program ends early.
    _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if SAVES.load(Ordering::SeqCst) {
                continue;
            }
            briefly(terminal::clear);
            _ = emulate_default_handler(signal);
        }
    });
}

/// Set where signals are a run's matter.
static SAVES: AtomicBool = AtomicBool::new(false);

/// Set by the first signal, which asks for a clean end after the current step; the second leaves at once, which is safe
/// because checkpoints appear whole or not at all.
pub fn ask_for_a_clean_end() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let signals = heeded();
    SAVES.store(true, Ordering::SeqCst);
    if let Err(error) = announce(&signals, interrupted.clone()) {
        log::debug!("no thread listens for signals: {error}");
        for &signal in &signals {
            // Before the flag is set, so that the first signal does not end the program.
            flag::register_conditional_shutdown(signal, INTERRUPTED, interrupted.clone())
                .context("cannot listen for Ctrl-C")?;
        }
    }
    for &signal in &signals {
        flag::register(signal, interrupted.clone()).context("cannot listen for Ctrl-C")?;
    }
    Ok(interrupted)
}

/// A thread that says what the first signal does, and ends the program at the second.
fn announce(signals: &[i32], interrupted: Arc<AtomicBool>) -> std::io::Result<()> {
    let mut signals = Signals::new(signals)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            interrupted.store(true, Ordering::SeqCst);
            briefly(|| log::info!("stopping after this step and saving; once more stops at once"));
        }
        if signals.next().is_some() {
            briefly(terminal::clear);
            std::process::exit(INTERRUPTED);
        }
    })?;
    Ok(())
}

/// Does something that a stderr nobody reads from could hold up for ever, and waits for it a little while.
fn briefly(act: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let act = move || {
        act();
        // Nobody may be waiting any more.
        _ = done.send(());
    };
    if std::thread::Builder::new().spawn(act).is_ok() {
        _ = is_done.recv_timeout(Duration::from_millis(200));
    }
}
