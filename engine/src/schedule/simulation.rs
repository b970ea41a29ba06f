//! The scheduler of a simulation.
//!
//! Every thread is a real one, and has a turn; whoever has it runs, all others wait for theirs. At
//! each point where a thread would wait, and by chance at others, the one whose turn it is hands it
//! on: to a thread that can go on, chosen by the seed; if there is none, after setting the clock to
//! the first moment at which one can. What threads do between such points nobody can see.
//!
//! Cost: a step is two context switches, some microseconds where all threads share a core.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::dice::Dice;
use super::trace::{Event, Trace};

/// Is told that a simulation cannot end, and does not return: its threads are stuck for good.
pub type Hang = fn(&str) -> !;

/// Nothing waits for so long without being stuck.
const TIME_MAX: Duration = Duration::from_secs(6 * 3600);
/// Nothing takes so many steps without turning in circles.
const STEPS_MAX: u64 = 5_000_000;
/// Once in so many steps the clock goes on although somebody could run: a slow thread.
const SLOW_ONE_IN: u64 = 400;
/// By no more than this, or a peer is given up that only had no turn.
const SLOW_MAX: Duration = Duration::from_millis(500);

/// Runs `body`, and all threads that it begins, as `seed` decides.
///
/// # Panics
/// When a thread of it was left behind; with whatever `body` panics with.
pub fn simulate<T>(seed: u64, hang: Hang, body: impl FnOnce() -> T) -> (T, Trace) {
    let mut dice = Dice::new(seed);
    let pause_one_in = 1 << dice.below(6);
    let is_uniform = dice.one_in(2);
    let simulation = Arc::new(Simulation {
        base: Instant::now(),
        hang,
        state: Mutex::new(State {
            dice,
            now: Duration::ZERO,
            threads: vec![Thread::new(0)],
            running: 0,
            pause_one_in,
            is_uniform,
            trace: Trace::default(),
        }),
    });
    let member = Member {
        simulation: simulation.clone(),
        number: 0,
    };
    let before = CURRENT.replace(Some(member));
    let ended = catch_unwind(AssertUnwindSafe(body));
    CURRENT.replace(before);
    let mut state = simulation.state();
    let left = state.threads[1..].iter().filter(|t| !t.is_done).count();
    let trace = Trace {
        time: state.now,
        ..std::mem::take(&mut state.trace)
    };
    drop(state);
    let value = ended.unwrap_or_else(|panic| resume_unwind(panic));
    assert_eq!(left, 0, "threads left behind");
    (value, trace)
}

/// Whether this thread belongs to a simulation.
#[must_use]
pub fn is_simulated() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// A point at which others may go on before this thread does. Nothing outside of a simulation.
pub fn pause() {
    if let Some(member) = current() {
        member.pause_one_in(1);
    }
}

/// Adds to the trace. Nothing outside of a simulation.
pub fn note(what: &'static str, about: (u64, u64)) {
    if let Some(member) = current() {
        member.state().note(what, about);
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Member>> = const { RefCell::new(None) };
}

/// This thread's place in its simulation, where it has one.
pub(super) fn current() -> Option<Member> {
    CURRENT.with_borrow(Clone::clone)
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// The thing at this address. Whoever waits for it keeps it where it is.
    Address(usize),
    /// The end of the thread with this number.
    End(usize),
}

struct Simulation {
    /// The moment that is called 0.
    base: Instant,
    hang: Hang,
    /// Only touched by the thread that has the turn.
    state: Mutex<State>,
}

struct State {
    dice: Dice,
    now: Duration,
    threads: Vec<Thread>,
    running: usize,
    /// How seldom a thread lets others go on where it need not.
    pause_one_in: u64,
    /// Whether all threads have the same chance, or some are preferred for a while.
    is_uniform: bool,
    trace: Trace,
}

struct Thread {
    turn: Arc<Turn>,
    /// What it waits for, and until when.
    waits: Option<(Option<Resource>, Option<Duration>)>,
    /// Whether the last wait ended by its time.
    by_time: bool,
    is_done: bool,
    weight: u64,
}

impl Thread {
    fn new(weight: u64) -> Self {
        Self {
            turn: Arc::default(),
            waits: None,
            by_time: false,
            is_done: false,
            weight,
        }
    }
}

#[derive(Default)]
struct Turn {
    is_mine: Mutex<bool>,
    given: Condvar,
}

impl Turn {
    fn give(&self) {
        *self.is_mine.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.given.notify_one();
    }

    fn wait(&self) {
        let mut is_mine = self.is_mine.lock().unwrap_or_else(PoisonError::into_inner);
        while !*is_mine {
            let waited = self.given.wait(is_mine);
            is_mine = waited.unwrap_or_else(PoisonError::into_inner);
        }
        *is_mine = false;
    }
}

impl Simulation {
    // A panic in a scheduler's step is a defect of the tests; the state is of no more use.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, what: &'static str, about: (u64, u64)) {
        self.trace.events.push(Event {
            at: self.now,
            thread: self.running,
            what,
            about,
        });
    }

    /// Who goes on; `None` when nobody ever can.
    fn choose(&mut self) -> Option<usize> {
        loop {
            let can_run = |thread: &Thread| thread.waits.is_none() && !thread.is_done;
            let count = self.threads.iter().filter(|t| can_run(t)).count();
            let limit = match count {
                0 => Duration::MAX,
                _ if self.dice.one_in(SLOW_ONE_IN) => SLOW_MAX,
                _ => Duration::ZERO,
            };
            if !limit.is_zero() && self.advance(limit) {
                continue;
            }
            if count == 0 {
                return None;
            }
            let runnable = self.threads.iter().enumerate().filter(|(_, t)| can_run(t));
            if self.is_uniform {
                let nth = self.dice.index(count);
                return runnable.map(|(number, _)| number).nth(nth);
            }
            let found = runnable.max_by_key(|(_, t)| t.weight);
            let number = found.map(|(number, _)| number)?;
            if self.dice.one_in(16) {
                self.threads[number].weight = self.dice.next_u64() >> 1;
            }
            return Some(number);
        }
    }

    /// Sets the clock to the first moment that somebody waits for, if it is no further off.
    fn advance(&mut self, limit: Duration) -> bool {
        let times = self.threads.iter().filter(|t| !t.is_done);
        let first = times.filter_map(|t| t.waits.and_then(|(_, until)| until));
        let near = |first: &Duration| first.saturating_sub(self.now) <= limit;
        let Some(first) = first.min().filter(near) else {
            return false;
        };
        self.now = self.now.max(first);
        for thread in self.threads.iter_mut().filter(|t| !t.is_done) {
            if thread
                .waits
                .is_some_and(|(_, until)| until <= Some(first) && until.is_some())
            {
                thread.waits = None;
                thread.by_time = true;
            }
        }
        true
    }

    fn wake(&mut self, on: Resource, mut count: usize) {
        let waiting = |t: &Thread| t.waits.is_some_and(|(what, _)| what == Some(on));
        while count > 0 {
            let all = self.threads.iter().filter(|t| waiting(t)).count();
            if all == 0 {
                return;
            }
            let nth = match count {
                usize::MAX => 0,
                _ => self.dice.index(all),
            };
            let woken = self.threads.iter_mut().filter(|t| waiting(t)).nth(nth);
            let woken = woken.expect("below their count");
            woken.waits = None;
            woken.by_time = false;
            count -= usize::from(count != usize::MAX);
        }
    }

    fn describe(&self) -> String {
        let threads = self.threads.iter().enumerate().filter(|(_, t)| !t.is_done);
        let threads = threads.map(|(number, t)| format!("{number}: {:?}", t.waits));
        let last = self.trace.events.iter().rev().take(30).collect::<Vec<_>>();
        let threads = threads.collect::<Vec<_>>().join(", ");
        format!(
            "after {:?} and {} steps; threads {threads}; before that {last:?}",
            self.now, self.trace.steps
        )
    }
}

/// A thread of a simulation.
#[derive(Clone)]
pub(super) struct Member {
    simulation: Arc<Simulation>,
    number: usize,
}

impl Member {
    fn state(&self) -> MutexGuard<'_, State> {
        self.simulation.state()
    }

    /// The present moment.
    pub(super) fn now(&self) -> Instant {
        self.simulation.base + self.state().now
    }

    /// A random number.
    pub(super) fn draw(&self) -> u64 {
        self.state().dice.next_u64()
    }

    /// Waits; whether the time was over before anybody woke it.
    pub(super) fn block(&self, on: Option<Resource>, limit: Option<Duration>) -> bool {
        let mut state = self.state();
        let limit = limit.filter(|limit| *limit != Duration::MAX);
        let until = limit.and_then(|limit| state.now.checked_add(limit));
        state.threads[self.number].waits = Some((on, until));
        self.hand_on(state, true);
        self.state().threads[self.number].by_time
    }

    /// Wakes up to `count` threads that wait for `on`.
    pub(super) fn wake(&self, on: Resource, count: usize) {
        self.state().wake(on, count);
    }

    /// Lets others go on, now and then.
    pub(super) fn pause_rarely(&self) {
        self.pause_one_in(4);
    }

    fn pause_one_in(&self, seldom: u64) {
        let mut state = self.state();
        let one_in = state.pause_one_in * seldom;
        if state.dice.one_in(one_in) {
            self.hand_on(state, true);
        }
    }

    /// A thread that is about to begin.
    pub(super) fn begin_thread(&self) -> Self {
        let mut state = self.state();
        let weight = state.dice.next_u64() >> 1;
        state.threads.push(Thread::new(weight));
        Self {
            simulation: self.simulation.clone(),
            number: state.threads.len() - 1,
        }
    }

    /// Its number.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Runs it, on a real thread of its own.
    pub(super) fn run<T>(self, body: impl FnOnce() -> T) -> T {
        let turn = self.state().threads[self.number].turn.clone();
        turn.wait();
        CURRENT.set(Some(self.clone()));
        let ended = catch_unwind(AssertUnwindSafe(body));
        CURRENT.set(None);
        let mut state = self.state();
        state.threads[self.number].is_done = true;
        state.wake(Resource::End(self.number), usize::MAX);
        self.hand_on(state, false);
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Waits for the end of another thread.
    pub(super) fn wait_for(&self, number: usize) {
        while !self.state().threads[number].is_done {
            self.block(Some(Resource::End(number)), None);
        }
    }

    /// Gives the turn to whoever is chosen, and waits for it to come back.
    fn hand_on(&self, mut state: MutexGuard<'_, State>, comes_back: bool) {
        state.trace.steps += 1;
        let is_stuck = state.now > TIME_MAX || state.trace.steps > STEPS_MAX;
        let next = match state.choose() {
            Some(next) if !is_stuck => next,
            _ => (self.simulation.hang)(&state.describe()),
        };
        if next == self.number {
            return;
        }
        state.running = next;
        state.note("runs", (0, 0));
        let theirs = state.threads[next].turn.clone();
        let mine = comes_back.then(|| state.threads[self.number].turn.clone());
        drop(state);
        theirs.give();
        if let Some(mine) = mine {
            mine.wait();
        }
    }
}
