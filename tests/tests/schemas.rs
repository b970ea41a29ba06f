//! Goal: what is published of events, reports and plans is what is printed. Method: a sync, an
//! agent and a whole job of scripts through the command, every document and every line held against
//! its schema in docs/; and one of each event that there is.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use failback_engine::job::{Amounts, DiskProgress, Eta, JobProgress, JobSpec};
use failback_engine::{Event, Stamped};
use failback_tests::agent::{Agent, Via};
use failback_tests::schema::{assert_valid, faults};
use failback_tests::{cli, disk, scripted, source};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Kinds of the events in a file, each of them valid.
fn kinds(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).expect("events");
    let mut kinds = BTreeSet::new();
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        assert_valid("events", &event);
        kinds.insert(event["event"].as_str().expect("kind").to_owned());
        kinds.extend(event["of"]["event"].as_str().map(str::to_owned));
    }
    kinds
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

// Goal: the guide names every key of a job's definition. Method: a key that is none in each of its
// tables; what is refused lists those that are.
#[test]
fn every_key_of_a_definition_is_in_the_guide() {
    let guide = fs::read_to_string(source::root().join("docs/operating.md")).expect("guide");
    for table in [
        "surprise = 1",
        "[source]\nsurprise = 1",
        "[policy]\nsurprise = 1",
        "[[disk]]\nsurprise = 1",
    ] {
        let text = format!("name = \"a\"\n{table}\n");
        let refused = JobSpec::from_toml_at(&text, Path::new("/")).expect_err("no such key");
        let message = refused.to_string();
        let (_, keys) = message.split_once("expected one of ").expect("keys");
        let mut keys: Vec<_> = keys.split('`').skip(1).step_by(2).collect();
        keys.retain(|key| {
            *key != "disk" && *key != "policy" && *key != "source" && *key != "target"
        });
        assert!(keys.len() > 1, "{message}");
        for key in keys {
            assert!(
                guide.contains(&format!("`{key}`")),
                "{key} is not in the guide"
            );
        }
    }
}

// Goal: each event has a schema, and no other. Method: one of each, and the names of the variants
// from the source.
#[test]
fn every_event_is_published() {
    let all = samples();
    for event in &all {
        let line = serde_json::to_value(Stamped::now(event)).expect("JSON");
        assert_valid("events", &line);
        let mut wrong = line.clone();
        wrong["surprise"] = json!(1);
        assert!(!faults("events", &wrong).is_empty(), "{wrong}");
        let mut unnamed = line;
        unnamed["event"] = json!("nothing");
        assert!(!faults("events", &unnamed).is_empty());
    }
    let path = source::root().join("engine/src/event.rs");
    let code = fs::read_to_string(path).expect("source");
    let (_, variants) = code.split_once("pub enum Event {").expect("the enum");
    let (variants, _) = variants.split_once("\n}\n").expect("its end");
    let is_variant = |line: &&str| {
        let mut chars = line.strip_prefix("    ").unwrap_or("").chars();
        chars.next().is_some_and(|first| first.is_ascii_uppercase())
    };
    assert_eq!(variants.lines().filter(is_variant).count(), all.len());
}

#[test]
fn a_sync_and_an_agent_tell_what_is_published() {
    let dir = tempfile::tempdir().expect("folder");
    let [from, to, events, served] =
        failback_tests::place::paths(dir.path(), ["from.raw", "to.raw", "events", "served"]);
    disk::write_raw(&from, 32 * MIB, 60, 1);
    disk::write_raw(&to, 32 * MIB, 60, 2);
    let grant = format!("web={}", from.display());
    let agent = Agent::start_with(Via::Tcp, dir.path(), &[grant], &["--events", text(&served)]);
    let endpoint = agent.endpoint("web");
    let run = cli::failback([
        "sync",
        &endpoint,
        text(&to),
        "--json",
        "--events",
        text(&events),
    ]);
    assert_valid("report", &run.exits(0).json());
    let told = kinds(&events);
    for kind in ["started", "planned", "finished"] {
        assert!(told.contains(kind), "{kind}: {told:?}");
    }
    let told = kinds(&served);
    assert!(told.contains("session_started"), "{told:?}");
    assert!(told.contains("session_ended"), "{told:?}");
    let missing = cli::failback(["sync", text(&dir.path().join("none")), text(&to), "--json"]);
    assert_valid("report", &missing.json());
}

#[test]
fn a_job_tells_what_is_published() {
    let dir = tempfile::tempdir().expect("folder");
    let definition = scripted::define(dir.path());
    let state = dir.path().join("state");
    let job = |args: &[&str]| {
        let args = ["job"].iter().chain(args).copied();
        let run = cli::failback(args.chain(["--state-dir", text(&state)]));
        run.exits(0)
    };
    let plan = cli::failback(["job", "plan", text(&definition), "--json"]).exits(0);
    assert_valid("job", &plan.json());
    let started = job(&["start", text(&definition), "--no-wait", "--json"]);
    assert_valid("job", &started.json());
    let events = dir.path().join("events");
    let completed = job(&["complete", "web", "--json", "--events", text(&events)]).json();
    assert_valid("job", &completed);
    assert_eq!(completed["phase"], "commit_pending", "{completed:#}");
    assert!(kinds(&events).contains("hook_ran"));
    let page = dir.path().join("page.html");
    let _ = job(&["commit", "web", "--json"]);
    let report = job(&["report", "web", "--html", text(&page), "--json"]).json();
    assert_valid("job", &report);
    assert_eq!(report["phase"], "finished");
    let told = kinds(&state.join("jobs/web/events.jsonl"));
    for kind in ["job_phase", "job_progress", "hook_ran", "downtime"] {
        assert!(told.contains(kind), "{kind}: {told:?}");
    }
    let page = fs::read_to_string(page).expect("page");
    assert!(page.contains("starting &lt;b&gt;") && page.contains("<svg"));
    let shown = job(&["show", "web"]).stdout;
    assert!(shown.contains("measured"), "{shown}");
}

fn samples() -> Vec<Event> {
    let text = || "text".to_owned();
    let amounts = Amounts {
        eta: Some(Eta {
            low: 1.0,
            likely: 2.0,
            high: 3.0,
        }),
        ..Amounts::default()
    };
    vec![
        Event::Started {
            command: "sync",
            source: text(),
            target: Some(text()),
        },
        Event::Planned {
            strategy: "delta",
            reasons: vec!["no_base_map"],
        },
        Event::Phase { phase: "copy" },
        Event::Progress {
            phase: "copy",
            done: 1,
            total: 2,
            sent: 3,
            differing: 4,
            backlog: 5,
            seconds: 0.5,
        },
        Event::Replan {
            from: 1,
            plan: "whole",
            reasons: vec!["sampled_change_rate"],
        },
        Event::Warning { message: text() },
        Event::Finished {
            outcome: "done",
            error: None,
        },
        Event::HookRan {
            hook: text(),
            step: text(),
            seconds: 0.1,
            outcome: text(),
            output: text(),
        },
        Event::JobPhase {
            job: text(),
            phase: "presync",
            suspended: false,
        },
        Event::JobProgress(Box::new(JobProgress {
            job: text(),
            phase: "presync",
            disks: vec![DiskProgress {
                disk: text(),
                phase: "copy",
                of: amounts,
            }],
            all: Amounts::default(),
            downtime: None,
        })),
        Event::DowntimePredicted {
            job: text(),
            pass: 1,
            seconds: 2.0,
        },
        Event::PassesSettled {
            job: text(),
            reason: "not_shrinking",
        },
        Event::Downtime {
            job: text(),
            seconds: 1.0,
            predicted: None,
        },
        Event::OfDisk {
            disk: text(),
            of: Box::new(Event::Phase { phase: "verify" }),
        },
        Event::SessionStarted {
            peer: text(),
            grant: text(),
            role: "source",
        },
        Event::SessionEnded {
            peer: text(),
            outcome: text(),
        },
    ]
}
