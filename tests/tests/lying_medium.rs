//! Goal: a sync onto a medium that acknowledges writes and keeps other bytes is never `done`,
//! though the page cache shows what was written. Method: a file system over FUSE tells one lie in
//! each sync - a write that is lost, has a bit flipped, or lands elsewhere - at a seeded write;
//! exit code, state word, and what the medium holds are looked at.
//!
//! `FAILBACK_LIES=N` tells N lies in each of four settings for each format, and N about tables.
#![cfg(target_os = "linux")]
#![allow(
    clippy::print_stderr,
    reason = "the count of what was found is asked for"
)]

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;

use failback_tests::agent::{Agent, Via};
use failback_tests::cli::{self, Run};
use failback_tests::disk;
use failback_tests::kill::{Tally, count_from};
use failback_tests::liar::{self, LIES, Liar, Lie, Plan};
use failback_tests::qemu::Format::{self, Dynamic, Raw, VhdDynamic};
use failback_tests::scene::args_of;
use failback_tests::{place, qemu, report, skip_without};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

/// Lies in each setting in CI: forty for each format.
const LIES_IN_CI: usize = 10;
/// Lies about tables in each setting in CI.
const TABLE_LIES_IN_CI: usize = 3;
const DISK_LEN: u64 = 8 << 20;
/// The target has nothing from here on, the source has data.
const OLD_END: u64 = 4 << 20;
const CHANGES: usize = 24;
const NAME: &str = "target";
/// More than a sync writes.
const NEVER: usize = 1 << 40;
/// Words of a target that is given out as sound.
const SOUND: &[&str] = &["done", "new_verified", "none", "aborted", "old_restored"];

/// How the target is changed, and by whom.
#[derive(Clone, Copy, Debug)]
struct Setting {
    apply: &'static str,
    is_served: bool,
}

const SETTINGS: [Setting; 4] = [
    Setting {
        apply: "stage",
        is_served: false,
    },
    Setting {
        apply: "stage",
        is_served: true,
    },
    Setting {
        apply: "in-place",
        is_served: false,
    },
    Setting {
        apply: "in-place",
        is_served: true,
    },
];

#[test]
fn the_page_cache_hides_a_lie() {
    skip_without!("root", "fusermount3");
    let liar = Liar::mount();
    let (old, new) = (vec![1; 64 << 10], vec![2; 64 << 10]);
    LIES.into_iter().for_each(|lie| {
        liar.put("file", old.clone());
        liar.tell(Some(Plan {
            lie,
            after: 0,
            places: 0..u64::MAX,
        }));
        let path = liar.path("file");
        let file = fs::OpenOptions::new().write(true).open(&path);
        file.and_then(|mut file| file.write_all(&new).and_then(|()| file.sync_all()))
            .expect("acknowledged");

        assert_eq!(liar::through_the_cache(&path), new, "{lie:?}");
        let past = liar::past_the_cache(&path).expect("O_DIRECT");
        assert_eq!(past, liar.content("file"), "{lie:?}");
        assert_ne!(past, new, "{lie:?}");
    });
}

#[test]
fn a_lie_about_a_raw_disk_is_found() {
    skip_without!("root", "fusermount3", "qemu-img");
    assert_lies_are_found(Raw, 60);
}

#[test]
fn a_lie_about_the_payload_of_a_vhdx_is_found() {
    skip_without!("root", "fusermount3", "qemu-img");
    assert_lies_are_found(Dynamic(1), 61);
}

#[test]
fn a_lie_about_the_tables_of_a_vhdx_is_never_done() {
    skip_without!("root", "fusermount3", "qemu-img");
    assert_lies_about_tables_are_harmless(Dynamic(1), 62);
}

#[test]
fn a_lie_about_the_tables_of_a_vhd_is_never_done() {
    skip_without!("root", "fusermount3", "qemu-img");
    assert_lies_about_tables_are_harmless(VhdDynamic, 63);
}

fn assert_lies_are_found(format: Format, seed: u64) {
    let stage = Stage::new(format, seed);
    let mut rng = StdRng::seed_from_u64(seed);
    let count = count_from("FAILBACK_LIES", LIES_IN_CI);
    SETTINGS.into_iter().for_each(|setting| {
        let told = stage.tell(setting, stage.payload.clone(), count, &mut rng);
        let hot = told.iter().filter(|told| told.is_hot).count();
        eprintln!("{format:?}, {setting:?}: {count} lies, {hot} hidden by the page cache");
        // A file that grows drops its pages from the cache of a FUSE file system.
        assert!(hot > 0 && (hot == count || format != Raw));
        for told in told {
            told.assert_found();
        }
    });
}

fn assert_lies_about_tables_are_harmless(format: Format, seed: u64) {
    let stage = Stage::new(format, seed);
    let mut rng = StdRng::seed_from_u64(seed);
    let count = count_from("FAILBACK_LIES", TABLE_LIES_IN_CI);
    SETTINGS.into_iter().for_each(|setting| {
        let mut tally = Tally::default();
        for told in stage.tell(setting, 0..stage.payload.start, count, &mut rng) {
            tally.add(&format!("exit {:?}", told.run.code));
            // A copy that nobody needs, or is written anew later, may be lied about.
            if told.run.code != Some(0) {
                told.assert_found();
            }
        }
        eprintln!("{format:?}, {setting:?}, tables:\n{}", tally.table());
    });
}

/// A sync that was lied to.
struct Told {
    story: String,
    run: Run,
    word: String,
    /// A plain read still shows what was written, not what is there.
    is_hot: bool,
}

impl Told {
    fn assert_found(&self) {
        let Self { story, run, .. } = self;
        assert_eq!(run.code, Some(8), "{story}\n{}\n{}", run.stdout, run.stderr);
        report::assert_failure(&run.json(), "failed");
        let word = self.word.as_str();
        assert!(!SOUND.contains(&word), "{story}: {word}");
    }
}

/// Source, target, and the medium under the target.
struct Stage {
    dir: TempDir,
    liar: Liar,
    format: Format,
    source: PathBuf,
    template: Vec<u8>,
    /// Places of the target's file that hold the disk's content.
    payload: Range<u64>,
}

impl Stage {
    fn new(format: Format, seed: u64) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let [old, source, image] = place::paths(dir.path(), ["old.raw", "source.raw", "image"]);
        disk::write_raw(&source, DISK_LEN, 100, seed);
        fs::copy(&source, &old).expect("old disk");
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&old)
            .expect("old disk");
        file.set_len(OLD_END)
            .and_then(|()| file.set_len(DISK_LEN))
            .expect("length");
        disk::write_changes(&source, &disk::changes(OLD_END, CHANGES, seed));
        qemu::convert(&old, &image, format);
        let template = fs::read(&image).expect("template");
        let payload = disk::first_data(&template, &fs::read(&old).expect("old disk"));
        Self {
            liar: Liar::mount(),
            template,
            dir,
            format,
            source,
            payload: payload..u64::MAX,
        }
    }

    /// Syncs `count` times, each with one lie about a write to `places`. Where a sync ends well
    /// all the same, the medium must hold the source's content, as QEMU reads it.
    fn tell(
        &self,
        setting: Setting,
        places: Range<u64>,
        count: usize,
        rng: &mut StdRng,
    ) -> Vec<Told> {
        let honest = Plan {
            lie: Lie::Lost,
            after: NEVER,
            places: places.clone(),
        };
        let run = self.sync(setting, honest);
        assert_eq!(run.code, Some(0), "{setting:?}, honest\n{}", run.stderr);
        self.assert_equal_on_medium("honest");
        let writes = NEVER - self.liar.left().expect("honest");
        assert!(writes > 0, "{setting:?}");
        let mut told = Vec::new();
        // Threads write in another order each time: a lie may find no write any more.
        for _ in 0..2 * count + 10 {
            if told.len() == count {
                break;
            }
            let lie = LIES[told.len() % LIES.len()];
            let after = rng.random_range(0..writes);
            let plan = Plan {
                lie,
                after,
                places: places.clone(),
            };
            let story = format!("{:?}, {setting:?}, {plan:?} of {writes}", self.format);
            let run = self.sync(setting, plan);
            if self.liar.left().is_some() {
                continue;
            }
            let is_hot = liar::through_the_cache(&self.target()) != self.liar.content(NAME);
            let word = self.word();
            if run.code == Some(0) {
                self.assert_equal_on_medium(&story);
            }
            told.push(Told {
                story,
                run,
                word,
                is_hot,
            });
        }
        assert_eq!(told.len(), count, "{setting:?}: too few lies were told");
        told
    }

    fn sync(&self, setting: Setting, plan: Plan) -> Run {
        // Missing at first.
        let _ = fs::remove_dir_all(self.state_dir());
        self.liar.tell(None);
        self.liar.put(NAME, self.template.clone());
        self.liar.tell(Some(plan));
        let state_dir = self.state_dir();
        let state = ["--state-dir", state_dir.to_str().expect("UTF-8")];
        let ways = ["--json", "--apply", setting.apply];
        match setting.is_served {
            false => {
                let more = [&ways[..], &state].concat();
                cli::failback(args_of("sync", &[&self.source, &self.target()], &more))
            }
            true => {
                let grant = format!("disk={}:rw", self.target().display());
                let agent = Agent::start_with(Via::Unix, self.dir.path(), &[grant], &state);
                let endpoint = PathBuf::from(agent.endpoint("disk"));
                let run = cli::failback(args_of("sync", &[&self.source, &endpoint], &ways));
                drop(agent);
                let _ = fs::remove_file(self.dir.path().join("agent.sock"));
                run
            }
        }
    }

    fn word(&self) -> String {
        let state = self.state_dir();
        let more = ["--json", "--state-dir", state.to_str().expect("UTF-8")];
        let run = cli::failback(args_of("info", &[&self.target()], &more));
        match run.code {
            Some(0) => run.json()["state"].as_str().unwrap_or("none").to_owned(),
            // What the medium holds is no image any more.
            _ => format!("exit {:?}", run.code),
        }
    }

    fn assert_equal_on_medium(&self, story: &str) {
        let copy = self.dir.path().join("medium");
        fs::write(&copy, self.liar.content(NAME)).expect("copy of the medium");
        let same = qemu::compare((&copy, self.format), (&self.source, Raw));
        assert_eq!(same, Ok(()), "done on a different image: {story}");
    }

    fn target(&self) -> PathBuf {
        self.liar.path(NAME)
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }
}
