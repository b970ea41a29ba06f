use serde_json::json;

use super::*;
use crate::job::{
    Basis, Begun, DowntimePart, Fact, Finding, JobReport, JobSpec, Moved, Phase, Position, Record,
};

/// Tries to leave any place that it is put into.
const HOSTILE: &str =
    "</pre><script>alert(1)</script>\" ' onload='x' & ]]> <!-- \u{0}\u{1b}[2J\u{202e}";

fn begun() -> Record {
    Record {
        at_ms: 1_800_000_000_000,
        position: Position::at(Phase::Created),
        begun: Some(Box::new(Begun {
            key: None,
            spec: JobSpec::new("web").disk("os", HOSTILE, HOSTILE),
            epoch: 1,
            token: [1; 16],
        })),
        fact: None,
    }
}

fn record(seconds: u64, phase: Phase, fact: Fact) -> Record {
    Record {
        at_ms: 1_800_000_000_000 + 1000 * seconds,
        position: Position::at(phase),
        begun: None,
        fact: Some(fact),
    }
}

fn moved() -> Moved {
    Moved {
        disk: "os".to_owned(),
        root: Some("ab".repeat(32)),
        reasons: vec![HOSTILE.to_owned()],
        ..Moved::default()
    }
}

fn records() -> Vec<Record> {
    let hostile = || HOSTILE.to_owned();
    vec![
        begun(),
        record(
            1,
            Phase::Preflight,
            Fact::Checked {
                rule: hostile(),
                disk: hostile(),
                holds: true,
                said: hostile(),
                source: Some(hostile()),
            },
        ),
        record(
            2,
            Phase::Planning,
            Fact::Chosen {
                way: crate::job::Way::Delta,
                reasons: vec![hostile()],
                downtime: None,
                plans: Vec::new(),
            },
        ),
        record(
            20,
            Phase::Presync,
            Fact::PassEnded {
                pass: 1,
                seconds: 18.0,
                disks: vec![moved()],
            },
        ),
        record(
            21,
            Phase::Waiting,
            Fact::Predicted {
                downtime: 33.0,
                parts: vec![DowntimePart {
                    part: hostile(),
                    seconds: 33.0,
                    basis: Basis::Assumed,
                }],
            },
        ),
        record(50, Phase::StoppingSource, Fact::Stopping { was_on: true }),
        record(60, Phase::FinalDelta, Fact::Final { moved: moved() }),
        record(
            70,
            Phase::StartingTarget,
            Fact::Failed {
                kind: "io".to_owned(),
                message: hostile(),
                is_transient: false,
            },
        ),
        record(
            80,
            Phase::StartingTarget,
            Fact::Started {
                side: "primary".to_owned(),
                said: Some(hostile()),
            },
        ),
        record(
            81,
            Phase::CommitPending,
            Fact::Item {
                item: hostile(),
                said: hostile(),
            },
        ),
    ]
}

fn recorded(kind: &str, at_ms: u64, mut event: serde_json::Value) -> Recorded {
    event["event"] = json!(kind);
    Recorded {
        at_ms,
        kind: kind.to_owned(),
        event,
    }
}

fn hook(output: &str) -> Recorded {
    let event = json!({"hook": HOSTILE, "step": HOSTILE, "seconds": 0.5, "outcome": HOSTILE,
        "output": output});
    recorded("hook_ran", 1_800_000_000_500, event)
}

fn sample(second: u64) -> Recorded {
    let event = json!({"scanned": second * 1_000_000, "sent": second * 1000});
    recorded("job_progress", 1_800_000_000_000 + 1000 * second, event)
}

/// Parses the page as XML, and finds nothing in it that acts or is elsewhere.
fn check(page: &str) -> roxmltree::Document<'_> {
    assert!(page.len() < PAGE_LEN_MAX, "{} bytes", page.len());
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..roxmltree::ParsingOptions::default()
    };
    let document = roxmltree::Document::parse_with_options(page, options).unwrap();
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        let is_active = [
            "script", "link", "img", "iframe", "object", "a", "image", "use",
        ];
        assert!(!is_active.contains(&name), "{name}");
        for attribute in node.attributes() {
            let name = attribute.name();
            let is_bad = name.starts_with("on") || ["href", "src", "style"].contains(&name);
            assert!(!is_bad, "{name}");
        }
    }
    document
}

// Goal: the page is well-formed, has every part, and shows hostile text as text. Method: a job of
// which every text is hostile, parsed as XML.
#[test]
fn a_page_is_well_formed_whatever_it_tells() {
    let report = JobReport::of(&records());
    let events: Vec<_> = (0..60).map(sample).chain([hook(HOSTILE)]).collect();
    let page = report.to_html(&events);
    let document = check(&page);
    let all: String = document
        .descendants()
        .filter_map(|node| node.text())
        .collect();
    for part in [
        "Timeline",
        "Throughput",
        "Disks",
        "Passes",
        "Strategy",
        "Preflight",
        "Errors",
        "Hooks",
        "Downtime",
        "33.0 s",
        "30.0 s",
        "alert(1)",
        "assumed",
    ] {
        assert!(all.contains(part), "{part}");
    }
    let count = |name: &str| {
        let is = |node: &roxmltree::Node<'_, '_>| node.tag_name().name() == name;
        document.descendants().filter(is).count()
    };
    assert_eq!((count("svg"), count("polyline")), (4, 2));
    assert!(!page.contains('\u{202e}') && !page.contains('\u{1b}'));
}

// Goal: a job that has done nothing has a page as well. Method: the first record.
#[test]
fn a_job_that_has_just_begun_has_a_page() {
    let page = JobReport::of(&[begun()]).to_html(&[]);
    check(&page);
}

// Goal: a page is bounded, however much there is to tell. Method: a long life of longest texts.
#[test]
fn a_page_is_bounded() {
    let long = "&\"<".repeat(2000);
    let mut all = records();
    for second in 100..4000 {
        let fact = match second % 3 {
            0 => Fact::Failed {
                kind: "io".to_owned(),
                message: long.clone(),
                is_transient: true,
            },
            1 => Fact::PassEnded {
                pass: 2,
                seconds: 1.0,
                disks: vec![moved(), moved()],
            },
            _ => Fact::Checked {
                rule: long.clone(),
                disk: "os".to_owned(),
                holds: false,
                said: long.clone(),
                source: None,
            },
        };
        let phase = [Phase::Presync, Phase::Waiting, Phase::Preflight];
        all.push(record(
            second,
            phase[usize::try_from(second % 3).unwrap()],
            fact,
        ));
    }
    let mut events: Vec<_> = (0..20_000).map(|n| sample(n * (n % 7))).collect();
    events.extend((0..2000).map(|_| hook(&long)));
    let mut report = JobReport::of(&all);
    report.findings = vec![
        Finding {
            rule: long.clone(),
            disk: "os".to_owned(),
            holds: true,
            said: long.clone(),
            source: Some(long.clone()),
        };
        500
    ];
    let page = report.to_html(&events);
    check(&page);
    assert!(page.contains("older rows are left out"));
    assert!(page.contains("older ones are left out"));
}
