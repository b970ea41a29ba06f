//! Goal: a panic in whatever a job calls ends the job with an error, soon, with all threads joined;
//! journal and target are as after a power cut, and the next sync ends equal. Method: a host whose
//! n-th call panics, reads included, for every n of a sync that stages, commits and proves.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use failback_engine::state::{Barriers, Word};
use failback_engine::sync::Task;
use failback_engine::transport::Apply;

use crate::promises::check;
use crate::scenario::{Disk, WINDOW, content, finish, raw_disk, record_sync, sync};
use crate::states::State;
use crate::world::World;
use crate::wrapping::vhdx_disk;

/// A job that fails is over by then, all its threads included.
const END_MAX: Duration = Duration::from_secs(5);

/// Whether a sync whose n-th call panics ended well; `None` when it panicked before its session.
fn sync_with_panic(world: &World, disk: &Disk) -> Option<bool> {
    let (told, hears) = mpsc::channel();
    let (world, disk) = (world.clone(), disk.clone());
    let running = thread::spawn(move || {
        let barriers = Barriers::new().with_window(WINDOW);
        let work = || sync(&world, &disk, barriers, Task::Delta, Apply::Stage).is_ok();
        let _ = told.send(catch_unwind(AssertUnwindSafe(work)).ok());
    });
    let ended = hears.recv_timeout(END_MAX).expect("the job hangs");
    running.join().unwrap();
    ended
}

fn thread_count() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Threads of a pool that was dropped end by themselves.
fn wait_for_threads(before: usize) {
    let from = Instant::now();
    while thread_count() > before {
        assert!(from.elapsed() < END_MAX, "a thread was left behind");
        thread::sleep(Duration::from_millis(1));
    }
}

fn check_panics(disk: &Disk) {
    let whole = record_sync(disk, Barriers::new(), Task::Delta, Apply::Stage);
    let barriers = Barriers::new().with_window(WINDOW);
    let threads = thread_count();
    let (mut number, mut failed) = (0, 0);
    loop {
        let world = World::panicking(&disk.host, number);
        let ended = sync_with_panic(&world, disk);
        wait_for_threads(threads);
        if !world.has_panicked() {
            break;
        }
        failed += usize::from(ended != Some(true));
        let state = State {
            host: world.host(),
            made: 0,
            kept: vec![number],
        };
        let word = check(&whole, &state);
        let word = word.unwrap_or_else(|broken| panic!("call {number} panicked: {broken}"));
        let world = World::like(&state.host);
        let stays = |word: Word| word.is_final() || word == Word::Staging;
        if word.is_some_and(|word| !stays(word)) {
            finish(&world, disk.format).unwrap();
        }
        sync(&world, disk, barriers, Task::Delta, Apply::Stage).unwrap();
        assert_eq!(content(&world, disk.format).unwrap(), disk.new);
        number += 1;
    }
    println!("{failed} of {number} panics ended the job with an error");
    assert!(number > 50);
    assert_eq!(failed, number);
}

#[test]
fn each_panic_of_a_sync_ends_it() {
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let checked = catch_unwind(|| {
        check_panics(&raw_disk());
        check_panics(&vhdx_disk());
    });
    set_hook(hook);
    checked.unwrap();
}
