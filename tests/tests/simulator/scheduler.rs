//! Goal: a seed decides everything, other seeds decide otherwise, and time costs nothing. Method:
//! small programs under the scheduler.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use failback_engine::schedule::channel::bounded;
use failback_engine::schedule::{
    Condvar, Mutex, Trace, now, pause, random_id, scope, simulate, sleep, with_pool,
};

use crate::runner::hang;

/// The order in which some threads come to a lock.
fn order(seed: u64) -> (Vec<usize>, Trace) {
    simulate(seed, hang, || {
        let arrived = Mutex::new(Vec::new());
        scope(|scope| {
            for thread in 0..4 {
                let arrived = &arrived;
                scope.spawn(move || {
                    pause();
                    arrived.lock().unwrap().push(thread);
                });
            }
        });
        arrived.lock().unwrap().clone()
    })
}

#[test]
fn a_seed_decides_and_others_decide_otherwise() {
    let orders = (0..200).map(|seed| {
        assert_eq!(order(seed), order(seed));
        order(seed).0
    });
    let orders: BTreeSet<_> = orders.collect();
    assert_eq!(orders.len(), 24);
}

#[test]
fn an_update_that_can_be_lost_is_lost() {
    let lost = (0..100).filter(|seed| {
        let count = AtomicU64::new(0);
        let add = || {
            let seen = count.load(Ordering::SeqCst);
            pause();
            count.store(seen + 1, Ordering::SeqCst);
        };
        simulate(*seed, hang, || {
            scope(|scope| {
                scope.spawn(add);
                scope.spawn(add);
            });
        });
        count.load(Ordering::SeqCst) == 1
    });
    assert!((1..100).contains(&lost.count()));
}

#[test]
fn an_hour_takes_no_time_and_ends_in_order() {
    let begun = Instant::now();
    let (woken, trace) = simulate(7, hang, || {
        let woken = Mutex::new(Vec::new());
        let start = now();
        scope(|scope| {
            for minutes in [59, 20, 40] {
                let woken = &woken;
                scope.spawn(move || {
                    sleep(Duration::from_secs(minutes * 60));
                    let elapsed = now() - start;
                    woken.lock().unwrap().push(elapsed.as_secs() / 60);
                });
            }
        });
        woken.lock().unwrap().clone()
    });
    assert_eq!(woken, [20, 40, 59]);
    assert_eq!(trace.time, Duration::from_secs(59 * 60));
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn queues_keep_their_order_and_their_bound() {
    for seed in 0..50 {
        let (taken, _) = simulate(seed, hang, || {
            let (tx, rx) = bounded(2);
            scope(|scope| {
                scope.spawn(move || {
                    for number in 0..20 {
                        tx.send(number).unwrap();
                        assert!(tx.len() <= 2);
                    }
                });
                rx.iter().collect::<Vec<_>>()
            })
        });
        assert_eq!(taken, (0..20).collect::<Vec<_>>());
    }
}

#[test]
fn a_wait_ends_by_its_time_or_before() {
    for (delay, by_time) in [(50, false), (200, true)] {
        let (ended_by_time, _) = simulate(3, hang, || {
            let (is_done, changed) = (Mutex::new(false), Condvar::new());
            scope(|scope| {
                scope.spawn(|| {
                    sleep(Duration::from_millis(delay));
                    *is_done.lock().unwrap() = true;
                    changed.notify_all();
                });
                let guard = is_done.lock().unwrap();
                let waited = changed.wait_timeout(guard, Duration::from_millis(100));
                let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
                assert_eq!(*guard, !by_time);
                result.timed_out()
            })
        });
        assert_eq!(ended_by_time, by_time);
    }
}

#[test]
fn a_pool_does_all_that_it_was_given() {
    let done = std::sync::Arc::new(AtomicU64::new(0));
    simulate(11, hang, || {
        with_pool(3, |pool| {
            for _ in 0..10 {
                let done = done.clone();
                pool.spawn(move || {
                    done.fetch_add(1, Ordering::SeqCst);
                });
            }
        })
        .unwrap();
    });
    assert_eq!(done.load(Ordering::SeqCst), 10);
}

#[test]
fn ids_come_from_the_seed_in_a_simulation_alone() {
    let ids = || simulate(5, hang, random_id).0;
    assert_eq!(ids(), ids());
    assert_ne!(random_id(), random_id());
}
