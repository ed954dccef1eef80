//! The one thread pool. A job is a list of tasks; the calling thread works too. Workers spin for a moment between
//! jobs, because the next one usually follows within microseconds, and then sleep.
//!
//! Which thread runs a task is left to chance, and nothing may depend on it: tasks own disjoint outputs.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Turns of the spin loop before a worker sleeps: some tens of microseconds. Miri is slow.
const SPINS: usize = if cfg!(miri) { 10 } else { 20_000 };

struct Pool {
    /// One job at a time; a second caller runs its tasks itself.
    busy: Mutex<()>,
    state: Mutex<State>,
    wake: Condvar,
    /// Counts published jobs; what spinning workers watch.
    published: AtomicUsize,
    /// Workers that sleep on `wake`.
    asleep: AtomicUsize,
    /// Workers inside the current job.
    inside: AtomicUsize,
}

#[derive(Default)]
struct State {
    workers: usize,
    limit: usize,
    job: Option<Job>,
}

/// A job as the workers see it: a counter of tasks and a body to call with each number.
#[derive(Clone, Copy)]
struct Job {
    number: usize,
    shared: *const Shared<'static>,
}

// SAFETY: `Shared` may be used by several threads at once (atomics, a mutex, a body that is `Sync`), and a worker looks
// at it only while it is alive: `run_numbered` takes the job back under the lock under which workers copy it and raise
// `inside`, and does not return before all of these have left.
unsafe impl Send for Job {}

struct Shared<'a> {
    next: AtomicUsize,
    count: usize,
    body: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

thread_local! {
    /// Set while this thread runs a task: a job started from within a task runs on this thread alone.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        busy: Mutex::new(()),
        state: Mutex::new(State { limit: available_threads(), ..State::default() }),
        wake: Condvar::new(),
        published: AtomicUsize::new(0),
        asleep: AtomicUsize::new(0),
        inside: AtomicUsize::new(0),
    })
}

/// The machine's threads as this process may use them.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Uses `threads` threads, the calling one included, from now on (at least one).
pub fn set_threads(threads: usize) {
    lock(&pool().state).limit = threads.max(1);
}

/// Keeps candle from starting a spinning pool of its own, which would fight with this one for the cores. To be called
/// first thing in the program; it does nothing where the system does not confirm that this is the only thread.
pub fn keep_candle_on_one_thread() {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1) {
        // SAFETY: no other thread exists that could read the environment at the same time.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}

/// Makes rayon's pool, which candle and the tokenizers use, with as many threads as this one. Left to itself, rayon
/// panics where the system gives it none; then the calling thread does all of its work. To be called once, from the
/// program's main thread.
pub fn start_rayon() {
    // rayon tries once: after a failure it never makes a pool. So threads are tried out first.
    let pool = rayon::ThreadPoolBuilder::new();
    let pool =
        if can_start(threads()) { pool.num_threads(threads()) } else { pool.num_threads(1).use_current_thread() };
    // It fails where there is a pool already, which is as good.
    _ = pool.build_global();
}

/// Whether the system gives this process `count` more threads at once.
fn can_start(count: usize) -> bool {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Arc::new(Mutex::new(wait));
    let start = |_| {
        let wait = wait.clone();
        // Until the sender is gone.
        std::thread::Builder::new().spawn(move || _ = lock(&wait).recv())
    };
    let started: Vec<_> = (0..count).map(start).collect();
    drop(release);
    started.into_iter().all(|thread| thread.is_ok_and(|thread| thread.join().is_ok()))
}

/// The number of threads in use, the calling one included.
pub fn threads() -> usize {
    lock(&pool().state).limit
}

/// Calls `body` with every task, on all threads. Tasks start in the order of the list: put the largest first.
pub fn run<T: Send>(tasks: Vec<T>, body: impl Fn(T) + Sync) {
    let slots: Vec<Mutex<Option<T>>> = tasks.into_iter().map(|task| Mutex::new(Some(task))).collect();
    run_numbered(slots.len(), &|number| {
        if let Some(task) = lock(&slots[number]).take() {
            body(task);
        }
    });
}

/// Cuts every row of `row_len` numbers into pieces of `piece` and calls `body` with each piece, its row and where in
/// the row it starts, on all threads. Unlike [`run`] it allocates nothing.
pub fn run_pieces(rows: &mut [f32], row_len: usize, piece: usize, body: impl Fn(&mut [f32], usize, usize) + Sync) {
    /// Lets tasks on other threads reach their pieces.
    struct Start(*mut f32);
    // SAFETY: tasks touch disjoint pieces, of numbers that any thread may have, of a slice that is borrowed until all
    // of them have ended.
    unsafe impl Sync for Start {}

    if row_len == 0 || piece == 0 {
        return;
    }
    let (count, pieces, start) = (rows.len() / row_len, row_len.div_ceil(piece), Start(rows.as_mut_ptr()));
    run_numbered(count * pieces, &|number| {
        // All rows' pieces at one place follow each other: they may share a weight.
        let (row, first) = (number % count, number / count * piece);
        let start = &start;
        debug_assert!(row < count && first < row_len);
        // SAFETY: the piece starts and ends within the row, which lies within `rows`; `number` is the only one with
        // this row and start, each is handed out once, and `rows` is not used before all have come back.
        let numbers =
            unsafe { std::slice::from_raw_parts_mut(start.0.add(row * row_len + first), piece.min(row_len - first)) };
        body(numbers, row, first);
    });
}

/// Calls `body` with every number below `count`, on all threads.
pub fn run_numbered(count: usize, body: &(dyn Fn(usize) + Sync)) {
    let pool = pool();
    let alone = count <= 1 || IN_TASK.get();
    let Some(busy) = (if alone { None } else { pool.busy.try_lock().ok() }) else {
        return (0..count).for_each(body);
    };
    let shared = Shared { next: AtomicUsize::new(0), count, body, panic: Mutex::new(None) };
    // Only the lifetime is erased; see `Job`.
    let erased: *const Shared<'static> = (&raw const shared).cast();
    publish(pool, erased);
    work(&shared);
    lock(&pool.state).job = None;
    let mut turns = 0;
    while pool.inside.load(Ordering::Acquire) > 0 {
        turns += 1;
        // A worker that takes this long may be waiting for a core.
        if turns < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
    let payload = lock(&shared.panic).take();
    // Unwinding with the lock held would poison it.
    drop(busy);
    if let Some(payload) = payload {
        resume_unwind(payload);
    }
}

fn publish(pool: &'static Pool, shared: *const Shared<'static>) {
    let mut state = lock(&pool.state);
    while state.workers + 1 < state.limit {
        let seat = state.workers;
        let spawned = std::thread::Builder::new().name(format!("worker-{seat}")).spawn(move || worker(pool, seat));
        if spawned.is_err() {
            state.limit = state.workers + 1;
            break;
        }
        state.workers += 1;
    }
    if state.limit == 1 {
        return;
    }
    let number = pool.published.load(Ordering::Relaxed) + 1;
    state.job = Some(Job { number, shared });
    pool.published.store(number, Ordering::Release);
    drop(state);
    if pool.asleep.load(Ordering::SeqCst) > 0 {
        pool.wake.notify_all();
    }
}

/// Takes tasks until none is left.
fn work(shared: &Shared) {
    IN_TASK.set(true);
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= shared.count {
            break;
        }
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (shared.body)(number))) {
            lock(&shared.panic).get_or_insert(payload);
        }
    }
    IN_TASK.set(false);
}

fn worker(pool: &'static Pool, seat: usize) {
    let mut done = 0;
    loop {
        for _ in 0..SPINS {
            if pool.published.load(Ordering::Acquire) != done {
                break;
            }
            std::hint::spin_loop();
        }
        let mut state = lock(&pool.state);
        while pool.published.load(Ordering::Acquire) == done {
            pool.asleep.fetch_add(1, Ordering::SeqCst);
            state = pool.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            pool.asleep.fetch_sub(1, Ordering::SeqCst);
        }
        done = pool.published.load(Ordering::Acquire);
        let job = state.job.filter(|job| job.number == done && seat + 1 < state.limit);
        if let Some(job) = job {
            pool.inside.fetch_add(1, Ordering::AcqRel);
            drop(state);
            // SAFETY: the job was open under the lock when `inside` was raised, so the caller waits for us.
            work(unsafe { &*job.shared });
            pool.inside.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Locks, also after a panic elsewhere: the pool keeps its own state consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 4] {
            set_threads(threads);
            for count in [0, 1, 2, if cfg!(miri) { 50 } else { 1000 }] {
                let mut hits = vec![0u32; count];
                run(hits.iter_mut().collect(), |hit| *hit += 1);
                assert!(hits.iter().all(|&hit| hit == 1));
            }
        }
        set_threads(available_threads());
    }

    #[test]
    fn pieces_cover_every_row_once() {
        for (rows, row_len, piece) in [(3, 10, 4), (1, 7, 7), (2, 5, 9), (0, 5, 2)] {
            let mut numbers = vec![0.0; rows * row_len];
            run_pieces(&mut numbers, row_len, piece, |numbers, row, first| {
                numbers.iter_mut().enumerate().for_each(|(i, x)| *x += (row * row_len + first + i) as f32 + 1.0);
            });
            assert!(numbers.iter().enumerate().all(|(i, &x)| x == i as f32 + 1.0));
        }
    }

    #[test]
    fn a_job_started_from_a_task_completes() {
        let total = AtomicUsize::new(0);
        run_numbered(4, &|_| run_numbered(4, &|_| _ = total.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(total.into_inner(), 16);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_leaves_the_pool_usable() {
        let outcome = catch_unwind(|| run_numbered(8, &|number| assert_ne!(number, 3)));
        assert!(outcome.is_err());
        assert!(!pool().busy.is_poisoned(), "a poisoned lock would leave all later jobs to one thread");
        let total = AtomicUsize::new(0);
        run_numbered(8, &|_| _ = total.fetch_add(1, Ordering::Relaxed));
        assert_eq!(total.into_inner(), 8);
    }
}
