//! Goal: a hook is run, watched, ended and told of, whatever it does. Method: shell scripts that do
//! each of it; what is left of them is looked for in /proc.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test states its expectations by it")]

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use failback_engine::hook::{Hook, Said};
use failback_engine::{CancelToken, ErrorKind, Event, Result, Silent, Step};

fn sh(script: &str) -> Hook {
    Hook::new(["sh", "-c", script])
}

fn run(hook: &Hook) -> Result<Said> {
    let cancel = CancelToken::new();
    let step = Step {
        job: "job-1",
        name: "starting_target",
        observer: &Silent,
        cancel: &cancel,
    };
    hook.run(
        &step,
        &[("EXTRA", "from the caller"), ("OWN", "caller wins")],
    )
}

/// What one run tells the observer: hook, outcome, output.
fn told(hook: &Hook) -> (String, String, String) {
    let heard = Mutex::new(Vec::new());
    let observer = |event: &Event| heard.lock().unwrap().push(event.clone());
    let cancel = CancelToken::new();
    let step = Step {
        job: "job-1",
        name: "starting_target",
        observer: &observer,
        cancel: &cancel,
    };
    let _verdict = hook.run_as("start", &step, &[]);
    let heard = heard.into_inner().unwrap();
    match heard.as_slice() {
        [
            Event::HookRan {
                hook,
                outcome,
                output,
                step,
                seconds,
            },
        ] => {
            assert_eq!(step, "starting_target");
            assert!((0.0..60.0).contains(seconds));
            (hook.clone(), outcome.clone(), output.clone())
        }
        other => panic!("{other:?}"),
    }
}

/// Whether a process with this id runs; a zombie does not.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
}

/// Waits a little for a process to be gone: a signal takes its time.
fn is_gone(pid: &str) -> bool {
    let from = Instant::now();
    while runs(pid) && from.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    !runs(pid)
}

/// Children of this process that ended and were not waited for.
fn zombies() -> Vec<String> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut rest = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        if (rest.next(), rest.next()) == (Some("Z"), Some(own.as_str())) {
            found.push(stat);
        }
    }
    found
}

// Goal: a hook knows what it runs for, and the nearest variable wins. Method: one that prints them.
#[test]
fn a_hook_has_its_environment_and_no_input() {
    let mut hook =
        sh("echo $FAILBACK_JOB $FAILBACK_STEP $FAILBACK_HOOK, $EXTRA, $OWN, $HOOKS; cat");
    hook.env = vec![
        ("OWN".into(), "own".into()),
        ("HOOKS".into(), "hook's".into()),
    ];
    let said = run(&hook).unwrap();
    assert_eq!(
        said.stdout,
        "job-1 starting_target sh, from the caller, caller wins, hook's\n"
    );
    assert!(!said.is_cut);
}

// Goal: words are words. Method: an argument that a shell would take apart.
#[test]
fn no_shell_is_between() {
    let said = run(&Hook::new(["printf", "%s|", "a b", "$HOME; *", ""])).unwrap();
    assert_eq!(said.stdout, "a b|$HOME; *||");
    assert_eq!(told(&sh("echo a; echo b >&2")).1, "exit 0");
}

// Goal: each way to end has its kind, and its error says which hook and what it said last. Method:
// one hook for each.
#[test]
fn each_ending_has_its_kind() {
    let error = run(&sh("echo first; echo 'no such VM' >&2; exit 3")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(
        error.message(),
        "hook sh ended with exit code 3: no such VM"
    );

    let error = run(&sh("kill -9 $$")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(
        error.message(),
        "hook sh was ended by signal 9 and said nothing"
    );

    let error = run(&Hook::new(["/no/such/program"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(error.message(), "hook program: cannot run /no/such/program");

    let error = run(&Hook::new(Vec::<String>::new())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}

// Goal: events say what happened. Method: the same endings; output that would move a cursor.
#[test]
fn events_tell_outcome_and_output() {
    let start = |outcome: &str, output: &str| ("start".into(), outcome.into(), output.into());
    assert_eq!(
        told(&sh("printf 'a\\033[1mb\\nc\\n'")),
        start("exit 0", "a\\u{1b}[1mb\nc")
    );
    assert_eq!(told(&sh("exit 7")), start("exit 7", ""));
    assert_eq!(told(&sh("kill -15 $$")), start("signal 15", ""));
    let slow = sh("echo so far; sleep 60").with_timeout(Duration::from_secs(1));
    assert_eq!(told(&slow), start("timeout", "so far"));
    let (_, outcome, _) = told(&Hook::new(["/no/such/program"]));
    assert!(outcome.starts_with("not started: "), "{outcome}");
}

// Goal: at its timeout a hook ends with all that it started, also what ignores the polite signal,
// and nothing stays to be waited for. Method: a child of it that is deaf and holds the pipes.
#[test]
fn a_timeout_ends_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "trap '' TERM; (trap '' TERM; while :; do sleep 0.05; done) & echo $! >{0}; \
         echo $$ >>{0}; while :; do sleep 0.05; done",
        pids.display()
    );
    let from = Instant::now();
    let error = run(&sh(&script).with_timeout(Duration::from_secs(1))).unwrap_err();
    let took = from.elapsed();

    assert_eq!(error.kind(), ErrorKind::Io);
    let expected = "hook sh did not end within 1s and was killed and said nothing";
    assert_eq!(error.message(), expected);
    assert!(
        took >= Duration::from_millis(2_900),
        "{took:?}: no time to end by itself"
    );
    assert!(took < Duration::from_secs(10), "{took:?}");
    let pids = fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    assert!(pids.lines().all(is_gone), "{pids}");
    let own: Vec<String> = zombies();
    assert!(
        own.iter()
            .all(|stat| !pids.lines().any(|pid| stat.starts_with(pid))),
        "{own:?}"
    );
}

// Goal: one that hears the polite signal gets to clean up, and is not waited for longer. Method: a
// trap that writes a file.
#[test]
fn the_first_signal_is_polite() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cleaned");
    let script = format!(
        "trap 'echo yes >{}; exit 0' TERM; while :; do sleep 0.02; done",
        file.display()
    );
    let from = Instant::now();
    let error = run(&sh(&script).with_timeout(Duration::from_secs(1))).unwrap_err();
    assert!(error.message().contains("did not end within 1s"), "{error}");
    assert!(
        from.elapsed() < Duration::from_millis(2_700),
        "{:?}",
        from.elapsed()
    );
    assert_eq!(fs::read_to_string(file).unwrap(), "yes\n");
}

// Goal: what a hook leaves running lives on, and holds nobody up though it has the pipes. Method: a
// child in the background.
#[test]
fn a_process_that_is_left_behind_does_not_hang_us() {
    let from = Instant::now();
    let said = run(&sh("sleep 30 & echo $!")).unwrap();
    assert!(
        from.elapsed() < Duration::from_secs(5),
        "{:?}",
        from.elapsed()
    );
    let pid = said.line("start").unwrap().to_owned();
    assert!(runs(&pid), "it was killed");
    assert!(
        std::process::Command::new("kill")
            .arg(&pid)
            .status()
            .unwrap()
            .success()
    );
}

// Goal: a cancelled step ends its hook. Method: cancelled beforehand, and from another thread.
#[test]
fn cancelling_ends_the_hook() {
    let cancel = CancelToken::new();
    let step = Step {
        job: "j",
        name: "s",
        observer: &Silent,
        cancel: &cancel,
    };
    let from = Instant::now();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            cancel.cancel();
        });
        sh("sleep 30").run(&step, &[]).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(
        from.elapsed() < Duration::from_secs(4),
        "{:?}",
        from.elapsed()
    );
    assert_eq!(
        sh("true").run(&step, &[]).unwrap_err().kind(),
        ErrorKind::Cancelled
    );
}

// Goal: a hook that talks without end takes bounded memory, and what is kept are the first 64 KiB
// and, for the event, the last 4. Method: a megabyte of numbered lines; an endless one.
#[test]
fn output_is_bounded() {
    let said = run(&sh("seq 1 200000")).unwrap();
    assert_eq!(said.stdout.len(), 64 << 10);
    assert!(said.is_cut);
    assert!(said.stdout.starts_with("1\n2\n3\n"));
    assert_eq!(said.line("list").unwrap_err().kind(), ErrorKind::Refused);
    let (_, _, output) = told(&sh("seq 1 200000"));
    assert!(
        output.ends_with("199999\n200000") && output.len() <= 4 << 10,
        "{}",
        output.len()
    );

    let endless = Hook::new(["yes"]).with_timeout(Duration::from_millis(300));
    let error = run(&endless).unwrap_err();
    assert!(
        error.message().contains("did not end within 300ms"),
        "{error}"
    );
}

// Goal: an answer is one line. Method: none, one, two.
#[test]
fn an_answer_is_one_line() {
    let line = |script: &str| run(&sh(script)).unwrap().line("power").map(str::to_owned);
    assert_eq!(line("echo '  on '").unwrap(), "on");
    assert_eq!(line("true").unwrap_err().kind(), ErrorKind::Refused);
    let error = line("echo on; echo off").unwrap_err();
    assert_eq!(
        error.message(),
        "hook power has to print one line, and printed \"on\\noff\""
    );
}

// Goal: both ways to write a hook are read, others refused with a reason. Method: JSON stands for
// TOML here, both come through the same calls.
#[test]
fn hooks_are_read_as_lists_and_tables() {
    let read = |text: &str| serde_json::from_str::<Hook>(text);
    assert_eq!(
        read(r#"["virsh","start","web"]"#).unwrap(),
        Hook::new(["virsh", "start", "web"])
    );
    let full = read(r#"{"run":["a"],"timeout":"2m","env":{"K":"v"}}"#).unwrap();
    assert_eq!(full.timeout, Duration::from_secs(120));
    assert_eq!(full.env, [("K".to_owned(), "v".to_owned())]);
    assert_eq!(read(&serde_json::to_string(&full).unwrap()).unwrap(), full);
    assert_eq!(read(r#"{"run":["a"]}"#).unwrap().timeout, Hook::TIMEOUT);
    let wrong = [
        "[]",
        r#"[""]"#,
        r#""virsh start""#,
        r#"{"timeout":"2m"}"#,
        r#"{"run":["a"],"timeout":"2"}"#,
        r#"{"run":["a"],"shell":true}"#,
        r#"{"run":["a"],"env":{"A=B":"c"}}"#,
        r#"{"run":["a\u0000"]}"#,
    ];
    for text in wrong {
        assert!(read(text).is_err(), "{text}");
    }
    let error = read(r#"{"run":["a"],"timeout":"2"}"#)
        .unwrap_err()
        .to_string();
    assert!(error.contains("is not a length of time"), "{error}");
}
