//! Goal: `plan` says what `sync` does, changes nothing, and both choose what is better.
//! Method: real processes on disks of 96 MiB that are equal but for some pages, or for all. Choices
//! by time are tested where one strategy takes several times as long: machines are busy at times.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use failback_tests::agent::{Agent, Via};
use failback_tests::{cli, disk, place, report};
use serde_json::Value;
use tempfile::TempDir;

const DISK_LEN: u64 = 96 << 20;
const BY_BYTES: &[&str] = &["--optimize", "transfer", "--seed", "7"];
const BY_TIME: &[&str] = &["--optimize", "time", "--seed", "7"];

struct Disks {
    dir: TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Disks {
    /// Two disks full of data that differ in some pages.
    fn alike() -> Self {
        Self::of(|old, new| {
            fs::copy(old, new).expect("copy");
            disk::write_changes(new, &disk::changes(DISK_LEN, 40, 2));
        })
    }

    /// Two that have nothing in common.
    fn apart() -> Self {
        Self::of(|_, new| disk::write_raw(new, DISK_LEN, 100, 3))
    }

    fn of(make: impl Fn(&Path, &Path)) -> Self {
        let dir = TempDir::new().expect("temporary folder");
        let [source, target] = place::paths(dir.path(), ["source.raw", "target.raw"]);
        disk::write_raw(&target, DISK_LEN, 100, 1);
        make(&target, &source);
        Self {
            dir,
            source,
            target,
        }
    }

    fn run(&self, command: &str, more: &[&str]) -> Value {
        run(command, [&self.source, &self.target], more)
    }
}

fn run<P: AsRef<Path>>(command: &str, ends: [P; 2], more: &[&str]) -> Value {
    let ends = ends.map(|end| end.as_ref().to_str().expect("UTF-8").to_owned());
    let args = [command, &ends[0], &ends[1], "--json"];
    let args = args.into_iter().chain(more.iter().copied());
    cli::failback(args).exits(0).json()
}

// Goal: a plan is what the sync does, and the sync's report has it beside what came of it. Method:
// both, on disks that are alike and on disks that are not.
#[test]
fn plan_and_sync_agree() {
    let (alike, apart) = (Disks::alike(), Disks::apart());
    for (disks, how, strategy) in [(alike, BY_BYTES, "delta"), (apart, BY_TIME, "full")] {
        let plan = disks.run("plan", how);
        let sync = disks.run("sync", how);

        assert_eq!(plan["command"], "plan");
        assert_eq!(plan["outcome"], "done");
        for report in [&plan, &sync] {
            assert_eq!(report["strategy"], strategy, "{report}");
            assert_eq!(report["plan"]["sample"]["seed"], 7);
            assert!(report["plan"]["sample"]["pieces"].as_u64() > Some(0));
            assert!(report["predicted"]["seconds"].as_f64() > Some(0.0));
            assert!(report["predicted"]["downtime"].is_f64());
        }
        report::assert_done(&sync);
        let [predicted, sent] =
            ["/predicted/bytes", "/bytes/sent"].map(|at| report::count(&sync, at));
        // A sample of 15 pieces is a coarse one.
        let is_near = predicted.abs_diff(sent) < DISK_LEN / 4;
        assert!(is_near, "{predicted} predicted, {sent} sent");
    }
}

// Goal: reasons tell what was decided by. Method: the same disks.
#[test]
fn reasons_of_a_sampled_choice() {
    let alike = Disks::alike().run("plan", BY_BYTES);
    let apart = Disks::apart().run("plan", BY_TIME);
    let reasons = |names: &[&str]| Value::from(names.to_vec());
    assert_eq!(
        alike["reasons"],
        reasons(&["no_base_map", "sampled_change_rate"])
    );
    assert_eq!(
        apart["reasons"],
        reasons(&["sampled_change_rate", "link_faster_than_scan"])
    );
    assert!(alike["plan"]["margin"].as_f64() > Some(0.9));
}

// Goal: a plan leaves no trace. Method: names, bytes and times of everything there, before and
// after, also where there is no target.
#[test]
fn plan_changes_nothing() {
    let disks = Disks::alike();
    let missing = disks.dir.path().join("missing.vhdx");
    let state = || {
        let names = place::names(disks.dir.path());
        let of = |path: &Path| {
            let found = fs::metadata(path).expect("metadata");
            let times = (found.mtime_nsec(), found.ctime_nsec(), found.ctime());
            (fs::read(path).expect("bytes"), times)
        };
        (names, of(&disks.source), of(&disks.target))
    };
    let before = state();

    disks.run("plan", &[]);
    let plan = run("plan", [&disks.source, &missing], &[]);

    assert!(state() == before, "something changed");
    assert_eq!(plan["strategy"], "full");
    assert_eq!(plan["reasons"], Value::from(vec!["target_missing"]));
    assert_eq!(plan["target"]["format"], "vhdx");
}

// Goal: it works the same with one side or both behind agents, and the link is measured. Method:
// plans and a sync through two agents; the target's grant may make a missing disk.
#[test]
fn disks_behind_agents() {
    let disks = Disks::alike();
    let missing = disks.dir.path().join("missing.raw");
    let grants = [
        format!("disk={}:ro", disks.source.display()),
        format!("disk={}:rw", disks.target.display()),
        format!("new={}:rw,max=1G", missing.display()),
    ];
    let here = Agent::start(Via::Unix, disks.dir.path(), &grants[..1]);
    let there = Agent::start(Via::Tcp, disks.dir.path(), &grants[1..]);

    let both = [here.endpoint("disk"), there.endpoint("disk")];
    let near = run(
        "plan",
        [disks.source.to_str().expect("UTF-8"), &both[1]],
        BY_BYTES,
    );
    let far = run("plan", [&both[0], &both[1]], BY_BYTES);
    let new = run(
        "plan",
        [here.endpoint("disk"), there.endpoint("new")],
        BY_BYTES,
    );
    let sync = run("sync", [&both[0], &both[1]], BY_BYTES);

    for report in [&near, &far, &sync] {
        assert_eq!(report["strategy"], "delta", "{report}");
        assert!(
            report["plan"]["rates"]["link"].as_f64() > Some(1e6),
            "{report}"
        );
        assert!(report["plan"]["sample"]["pieces"].as_u64() > Some(0));
    }
    assert_eq!(new["strategy"], "full");
    assert!(!missing.exists());
    report::assert_done(&sync);
}

// Goal: what a sync saw of a disk is what the next plan goes by, whoever asks, and a disk of
// another place is not taken for it. Method: plans before and after a delta that writes 96 MiB, by
// path and through an agent, and to a copy in another folder.
#[test]
fn a_plan_goes_by_what_syncs_saw() {
    let disks = Disks::apart();
    let elsewhere = TempDir::new().expect("temporary folder");
    let copy = elsewhere.path().join("target.raw");
    fs::copy(&disks.target, &copy).expect("copy");
    let grant = format!("disk={}:rw", disks.target.display());
    let agent = Agent::start(Via::Tcp, disks.dir.path(), &[grant]);
    let source = disks.source.to_str().expect("UTF-8").to_owned();
    let ends = [source, agent.endpoint("disk")];
    let plans = || {
        let far = run("plan", ends.clone(), BY_TIME);
        let other = run("plan", [&disks.source, &copy], BY_TIME);
        [disks.run("plan", BY_TIME), far, other].map(|plan| plan["plan"]["rates"].clone())
    };
    // Reading back waits for nobody, whatever keeps the changes there.
    let assumed = 1000.0 * 1_048_576.0;
    for rates in plans() {
        assert_eq!(rates["is_disk_seen"], false);
        assert_eq!(rates["read_back"], assumed);
    }

    let done = disks.run("sync", &["--strategy", "delta", "--no-map"]);
    report::assert_done(&done);
    place::scribble(&disks.source, 0, &[1; 4096]);

    let [near, far, other] = plans();
    for rates in [near, far] {
        assert_eq!(rates["is_disk_seen"], true);
        let seen = rates["read_back"].as_f64().expect("a rate");
        assert!(seen > 1e5 && (seen - assumed).abs() > 1.0, "{seen}");
    }
    assert_eq!(other["is_disk_seen"], false);
}

// Goal: a grant for reading is no target, not even of a plan. Method: plan to one.
#[test]
fn a_target_granted_for_reading_is_refused() {
    let disks = Disks::alike();
    let grant = format!("disk={}:ro", disks.target.display());
    let agent = Agent::start(Via::Tcp, disks.dir.path(), &[grant]);
    let source = disks.source.to_str().expect("UTF-8");
    let refused = cli::failback(["plan", source, &agent.endpoint("disk"), "--json"]).exits(3);
    report::assert_failure(&refused.json(), "refused");
}

// Goal: a slow link makes the delta the better one where a fast one does not. Method: half of the
// disk changed, by time, with and without a limit of the rate.
#[test]
fn the_link_decides() {
    let disks = Disks::of(|old, new| {
        fs::copy(old, new).expect("copy");
        let noise = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1];
        let noise: Vec<u8> = (1..=DISK_LEN / 2).map(noise).collect();
        place::scribble(new, 0, &noise);
    });
    let grant = format!("disk={}:rw", disks.target.display());
    let agent = Agent::start(Via::Tcp, disks.dir.path(), &[grant]);
    let ends = [
        disks.source.to_str().expect("UTF-8").to_owned(),
        agent.endpoint("disk"),
    ];
    let slow = run(
        "plan",
        ends.clone(),
        &["--optimize", "time", "--seed", "7", "--limit-rate", "4M"],
    );
    let local = disks.run("plan", BY_TIME);
    assert_eq!(slow["strategy"], "delta", "{slow}");
    assert_eq!(local["strategy"], "full", "{local}");
    let link = slow["plan"]["rates"]["link"].as_f64().expect("measured");
    // Machines are busy at times; without a limit it is a hundred times as much.
    assert!((1e6..2e7).contains(&link), "{link}");
}

// Goal: a budget that nobody keeps is told, and fails nothing. Method: no downtime at all.
#[test]
fn a_budget_that_cannot_be_kept_is_told() {
    let disks = Disks::alike();
    let events = disks.dir.path().join("events");
    let path = events.to_str().expect("UTF-8");
    let plan = disks.run("plan", &["--downtime-budget", "0s", "--events", path]);
    assert_eq!(plan["strategy"], "delta");
    assert_eq!(plan["plan"]["downtime_budget"], 0.0);
    let told = fs::read_to_string(events).expect("events");
    assert!(told.contains("downtime budget"), "{told}");
}

// Goal: what is done sooner than measured is not measured. Method: 32 MiB.
#[test]
fn a_small_disk_is_not_sampled() {
    let disks = Disks::of(|old, new| {
        for path in [old, new] {
            fs::remove_file(path).unwrap_or_default();
            disk::write_raw(path, 32 << 20, 100, 1);
        }
    });
    let plan = disks.run("plan", BY_TIME);
    assert_eq!(plan["reasons"], Value::from(vec!["no_base_map"]));
    assert_eq!(plan["plan"]["sample"], Value::Null);
    assert_eq!(plan["predicted"]["seconds"], Value::Null);
}

// Goal: people get both strategies and the reason. Method: the words.
#[test]
fn words_for_people() {
    let disks = Disks::apart();
    let ends = [&disks.source, &disks.target].map(|path| path.to_str().expect("UTF-8"));
    let run = cli::failback(["plan", ends[0], ends[1], "--optimize", "time"]).exits(0);
    for words in [
        "strategy   full",
        "delta ",
        "full ",
        "pieces differ",
        "less time.",
    ] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
}
