//! Faults on purpose, for tests of what a run makes of them. The environment variable `TINYMOE_FAULT` holds one:
//!
//! | value | fault |
//! |---|---|
//! | `kill=N` | SIGKILL right before the N-th (from 1) system call that changes a run's files |
//! | `nan=BATCH` | the gradient of micro-batch BATCH (from 0) holds NaN whenever it is computed |
//! | `update=BATCH` | the update of the step that micro-batch BATCH belongs to makes a weight NaN |
//! | `flip=BATCH:TIMES` | a bit of that gradient flips, another one each time, the first TIMES times |
//!
//! Without the variable each place of a fault costs one comparison.

use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Kill { call: u64 },
    NaN { batch: u64 },
    Update { batch: u64 },
    Flip { batch: u64, times: u64 },
}

static FAULT: LazyLock<Fault> = LazyLock::new(|| {
    let Some(value) = std::env::var_os("TINYMOE_FAULT") else { return Fault::None };
    parse(&value.to_string_lossy()).unwrap_or_else(|| {
        log::warn!("TINYMOE_FAULT={} is not understood", value.display());
        Fault::None
    })
});

/// How often the fault's place was passed.
static PASSED: AtomicU64 = AtomicU64::new(0);

fn parse(value: &str) -> Option<Fault> {
    let (kind, rest) = value.split_once('=')?;
    Some(match kind {
        "kill" => Fault::Kill { call: rest.parse().ok()? },
        "nan" => Fault::NaN { batch: rest.parse().ok()? },
        "update" => Fault::Update { batch: rest.parse().ok()? },
        "flip" => {
            let (batch, times) = rest.split_once(':')?;
            Fault::Flip { batch: batch.parse().ok()?, times: times.parse().ok()? }
        }
        _ => return None,
    })
}

/// Stands before every system call that changes a run's files.
pub fn system_call() {
    if let Fault::Kill { call } = *FAULT
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == call
    {
        _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
    }
}

/// Stands after every backward pass; `gradients` are those that micro-batch `batch` was added to.
pub fn gradient(batch: u64, gradients: &mut [f32]) {
    match *FAULT {
        Fault::NaN { batch: bad } if bad == batch => gradients[0] = f32::NAN,
        Fault::Flip { batch: bad, times } if bad == batch => {
            let time = PASSED.fetch_add(1, Ordering::SeqCst);
            if time < times {
                let number = &mut gradients[time as usize];
                // A bit of the mantissa: nothing that a check for finite numbers would see.
                *number = f32::from_bits(number.to_bits() ^ 1 << 20);
            }
        }
        _ => (),
    }
}

/// Stands between the check of a step's gradient and its update; `batches` are those that the gradient is of.
pub fn update(batches: Range<u64>, gradients: &mut [f32]) {
    if let Fault::Update { batch } = *FAULT
        && batches.contains(&batch)
    {
        gradients[0] = f32::NAN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_from_their_names() {
        assert_eq!(parse("kill=3"), Some(Fault::Kill { call: 3 }));
        assert_eq!(parse("nan=0"), Some(Fault::NaN { batch: 0 }));
        assert_eq!(parse("update=2"), Some(Fault::Update { batch: 2 }));
        assert_eq!(parse("flip=7:1"), Some(Fault::Flip { batch: 7, times: 1 }));
        assert_eq!(["kill", "kill=x", "flip=1", "other=1", ""].map(parse), [None; 5]);
    }
}
