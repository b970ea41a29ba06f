//! Goal: snapshots by hooks are made, found and let go, and a hook that lies is caught. Method:
//! shell scripts that copy files.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

use std::fs;
use std::path::Path;

use failback_engine::hook::Hook;
use failback_engine::snapshot::{HookSnapshots, SnapshotId, SnapshotProvider};
use failback_engine::{CancelToken, ErrorKind, Result, Silent, Step};

fn in_step<T>(ask: impl FnOnce(&Step<'_>) -> Result<T>) -> Result<T> {
    let cancel = CancelToken::new();
    ask(&Step {
        job: "job-1",
        name: "presync",
        observer: &Silent,
        cancel: &cancel,
    })
}

fn sh(script: &str) -> Hook {
    Hook::new(["sh", "-c", script])
}

const CREATE: &str = r#"
copy=$FAILBACK_IMAGE.$FAILBACK_JOB.$FAILBACK_SNAPSHOT
[ -e "$copy" ] || cp "$FAILBACK_IMAGE" "$copy" && echo "$copy""#;
const LIST: &str = r#"
for copy in "$FAILBACK_IMAGE.$FAILBACK_JOB."*; do
    [ ! -e "$copy" ] || echo "${copy##*.}"
done"#;

fn copies() -> HookSnapshots {
    HookSnapshots {
        create: sh(CREATE),
        release: sh(r#"rm -f "$FAILBACK_IMAGE.$FAILBACK_JOB.$FAILBACK_SNAPSHOT""#),
        list: Some(sh(LIST)),
    }
}

fn names(provider: &HookSnapshots, image: &Path, job: &str) -> Vec<String> {
    let listed = in_step(|step| provider.list(image, job, step)).unwrap();
    listed.iter().map(|id| id.name().to_owned()).collect()
}

// Goal: the contract, with the job of the snapshot and not that of the step. Method: two snapshots,
// one of another job.
#[test]
fn snapshots_are_made_listed_and_released() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("web disk.img");
    fs::write(&image, "old").unwrap();
    let [one, two] = ["one", "two"].map(|name| SnapshotId::new("job-1", name).unwrap());
    let other = SnapshotId::new("job-2", "one").unwrap();
    let provider = copies();
    let create = |id| in_step(|step| provider.create(&image, id, step)).unwrap();
    let first = create(&one);
    fs::write(&image, "new").unwrap();
    create(&other);

    assert_eq!(create(&one), first);
    assert_eq!(fs::read_to_string(&first).unwrap(), "old");
    create(&two);
    assert_eq!(names(&provider, &image, "job-1"), ["one", "two"]);
    assert_eq!(names(&provider, &image, "job-2"), ["one"]);
    for _ in 0..2 {
        in_step(|step| provider.release(&image, &one, step)).unwrap();
    }
    assert_eq!(names(&provider, &image, "job-1"), ["two"]);
    assert!(!first.exists());
}

// Goal: what cannot be a snapshot is refused. Method: answers that are none.
#[test]
fn answers_that_lead_nowhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("web.img");
    fs::write(&image, "old").unwrap();
    let id = SnapshotId::new("job-1", "one").unwrap();
    for script in [
        "true",
        "echo relative",
        "echo /no/such/file",
        "echo /; echo /",
        "exit 1",
    ] {
        let provider = HookSnapshots {
            create: sh(script),
            ..copies()
        };
        let error = in_step(|step| provider.create(&image, &id, step)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{script}");
    }
    let provider = HookSnapshots {
        list: Some(sh("echo ../x")),
        ..copies()
    };
    assert!(in_step(|step| provider.list(&image, "job-1", step)).is_err());
    let provider = HookSnapshots {
        list: None,
        ..copies()
    };
    assert_eq!(names(&provider, &image, "job-1"), [""; 0]);
}
