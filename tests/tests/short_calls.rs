//! Goal: calls that write or read less than they were asked for are gone on with, and a write that
//! is cut for good ends like any fault. Method: a library before the C library passes on a part of
//! each call; a limit on the length of files stops one at a byte. QEMU judges what came of it.
#![cfg(target_os = "linux")]
#![allow(
    clippy::print_stderr,
    reason = "the count of what was cut short is asked for"
)]

use std::path::PathBuf;

use failback_tests::agent::{Agent, Via};
use failback_tests::cli;
use failback_tests::qemu::Format::{self, Dynamic, Raw, VhdDynamic};
use failback_tests::report;
use failback_tests::scene::{NEW_FILE, Scene, args_of};
use failback_tests::shim::{ShortCalls, Shortened};
use failback_tests::{qemu, skip_without};

const MIB: u64 = 1 << 20;

#[test]
fn short_writes_and_reads_are_gone_on_with() {
    skip_without!("qemu-img", "cc");
    let ways: [&[&str]; 3] = [&[], &["--apply", "in-place"], NEW_FILE];
    let formats = [Raw, Dynamic(1), VhdDynamic];
    let short = ShortCalls::build();
    formats.into_iter().zip(ways).for_each(|(format, way)| {
        let scene = Scene::new(format, 90).in_this_way(way);

        let (run, shortened) = short.failback(scene.sync_args(&["--json", "--verify", "full"]));

        report::assert_done(&run.exits(0).json());
        assert_right(&scene, format);
        eprintln!("{format:?}: {shortened:?}");
        let Shortened { writes, reads, .. } = shortened;
        assert!(writes > 50 && reads > 50, "{shortened:?}");
    });
}

#[test]
fn short_writes_to_a_peer_are_gone_on_with() {
    skip_without!("qemu-img", "cc");
    let short = ShortCalls::build();
    [Via::Tcp, Via::Unix].into_iter().for_each(|via| {
        let scene = Scene::new(Raw, 91);
        let agent = Agent::start(via, scene.dir(), &[scene.grant()]);
        let endpoint = PathBuf::from(agent.endpoint("disk"));

        let args = args_of("sync", &[&scene.source, &endpoint], &["--json"]);
        let (run, shortened) = short.failback(args);

        report::assert_done(&run.exits(0).json());
        drop(agent);
        assert_right(&scene, Raw);
        eprintln!("{via:?}: {shortened:?}");
        assert!(shortened.sends > 50, "{shortened:?}");
    });
}

#[test]
fn a_limit_on_the_length_of_files_ends_a_sync_like_a_fault() {
    skip_without!("qemu-img", "prlimit");
    let scene = Scene::new(Dynamic(1), 92);
    // In the stage, in the target as it grows, and past both.
    [MIB + 77, 20 * MIB + 3, 45 * MIB + 511, 400 * MIB]
        .into_iter()
        .for_each(|limit| {
            scene.reset();
            let story = format!("files of at most {limit} bytes");
            let binary = cli::binary().to_str().expect("UTF-8").to_owned();
            let mut args = vec![format!("--fsize={limit}"), binary];
            args.extend(scene.sync_args(&[]));

            let run = cli::run_program("prlimit", &args);

            // The kernel writes up to the limit, then sends a signal or an error.
            assert!(matches!(run.code, None | Some(0 | 6)), "{story}: {run:?}");
            assert!(run.code == Some(0) || limit < 400 * MIB, "{story}: {run:?}");
            eprintln!("{story}: {:?}, {}", run.code, scene.look(&story).name());
            scene.assert_ends_equal(&story);
        });
}

fn assert_right(scene: &Scene, format: Format) {
    scene.assert_new("short calls");
    qemu::assert_identical((&scene.target, format), (&scene.source, Raw));
    qemu::assert_clean(&scene.target, format);
}
