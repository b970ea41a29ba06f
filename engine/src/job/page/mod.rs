//! The report of a job as one HTML file that needs nothing else: no scripts, no fonts, no pictures
//! from elsewhere. It is well-formed XML too. Text of hooks and images is anybody's: all of it is
//! escaped and cut, and the file stays below [`PAGE_LEN_MAX`].

mod markup;
mod spans;
mod throughput;

use super::journal::{Fact, Moved};
use super::losing::export_item;
use super::recording::Recorded;
use super::report::{DiskReport, JobReport, Moment};
use markup::{bytes, cut, moment, newest_within, seconds, section, table, text};

/// Bytes of a page, at most.
pub const PAGE_LEN_MAX: usize = 1 << 20;
/// Ranges of a disk that are shown: the document has more.
const RANGES_SHOWN: usize = 8;
/// Bytes that one table may have. There are eight.
const TABLE_LEN_MAX: usize = 96 << 10;
/// Bytes that the outputs of hooks may have.
const HOOKS_LEN_MAX: usize = 144 << 10;

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:66rem;padding:0 1rem;\
color:#1c2430;background:#fff}\
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem;\
border-bottom:1px solid #d5dbe3}\
p.outcome{font-size:1.1rem;margin:.3rem 0 1rem}\
.good{color:#12703a}.bad{color:#b3261e}.wait{color:#8a5a00}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}\
dt{color:#566}dd{margin:0;overflow-wrap:anywhere}\
table{border-collapse:collapse;width:100%;font-size:.92em}\
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;\
border-bottom:1px solid #e6eaef;overflow-wrap:anywhere}\
th{color:#566;font-weight:600}\
pre{background:#f4f6f8;padding:.6rem;white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0}\
svg{width:100%;height:auto;font:12px system-ui,sans-serif}\
code{overflow-wrap:anywhere}footer{color:#566;font-size:.85em;margin-top:2rem}\
@media print{body{margin:0;max-width:none}}";

impl JobReport {
    /// The report as one HTML file, with what the job told while it ran.
    #[must_use]
    pub fn to_html(&self, recorded: &[Recorded]) -> String {
        let mut page = String::new();
        page.push_str("<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">");
        page.push_str("<head><meta charset=\"utf-8\"/>");
        page.push_str("<meta name=\"viewport\" content=\"width=device-width\"/>");
        page.push_str("<meta http-equiv=\"Content-Security-Policy\" ");
        page.push_str("content=\"default-src 'none'; style-src 'unsafe-inline'\"/>");
        page.push_str(&format!("<title>failback: {}</title>", text(&self.name)));
        page.push_str(&format!("<style>{STYLE}</style></head><body>\n"));
        page.push_str(&self.head());
        page.push_str(&self.downtime_part());
        page.push_str(&section("Timeline", &spans::timeline(&self.timeline)));
        page.push_str(&section("Throughput", &throughput::chart(recorded)));
        page.push_str(&section("Disks", &self.disk_table()));
        page.push_str(&self.lost_part());
        page.push_str(&section("Passes", &self.pass_table()));
        page.push_str(&section("Strategy", &self.strategy()));
        page.push_str(&section("Preflight", &self.findings_table()));
        page.push_str(&section("Errors", &errors(&self.timeline)));
        page.push_str(&section("Hooks", &hooks(recorded)));
        page.push_str(&section("Records", &records(&self.timeline)));
        let schema = text(self.schema);
        page.push_str(&format!(
            "<footer>Made by failback from {schema}. Times are UTC, of the host that ran the job.\
             </footer></body></html>\n"
        ));
        page
    }

    fn head(&self) -> String {
        let (class, word) = match (self.phase, self.suspended) {
            (_, true) => ("bad", "suspended"),
            ("finished", _) => ("good", "finished: the target was accepted"),
            ("undone", _) => ("wait", "undone: the source runs again"),
            ("cancelled", _) => ("wait", "cancelled: all is as before"),
            ("commit_pending", _) => ("good", "the target runs, and waits to be accepted"),
            (_, false) => ("wait", "under way"),
        };
        let mut head = format!(
            "<header><h1>{}</h1><p class=\"outcome {class}\">{word} (phase {})</p><dl>",
            text(&self.name),
            text(self.phase)
        );
        let mut item = |name: &str, value: &str| {
            head.push_str(&format!("<dt>{name}</dt><dd>{value}</dd>"));
        };
        item("pair", &text(&self.pair));
        let authority = self.authority.as_deref().unwrap_or("nobody");
        item(
            "in charge",
            &format!("{}, epoch {}", text(authority), self.epoch),
        );
        if let (Some(first), Some(last)) = (self.timeline.first(), self.timeline.last()) {
            item("begun", &moment(first.at_ms));
            item("last record", &moment(last.at_ms));
        }
        let downtime = &self.downtime;
        item("downtime predicted", &or_dash(downtime.predicted));
        item("downtime measured", &or_dash(downtime.measured));
        if downtime.held.is_some() {
            item("of it held on demand", &or_dash(downtime.held));
        }
        if let Some(error) = &self.error {
            let class = if error.is_transient {
                "transient"
            } else {
                "needs somebody"
            };
            let said = format!(
                "<span class=\"bad\">{} ({}, {class})</span>",
                text(cut(&error.message, 2000)),
                text(&error.kind)
            );
            item("stands because of", &said);
        }
        if let Some(retry) = &self.retry {
            let said = format!("{}, attempt {}", moment(retry.at_ms), retry.attempt);
            item("goes on by itself", &said);
        }
        if let Some(deadline) = &self.deadline {
            item(deadline.ask, &moment(deadline.at_ms));
        }
        if !self.allowed.is_empty() {
            item("can be asked now", &text(&self.allowed.join(", ")));
        }
        head + "</dl></header>\n"
    }

    fn downtime_part(&self) -> String {
        if self.downtime.parts.is_empty() {
            return String::new();
        }
        let rows = self.downtime.parts.iter().map(|part| {
            let basis = part.basis.name();
            let mut measured = self.downtime.measured_parts.iter();
            let measured = measured.find(|it| it.part == part.part);
            let measured = measured.map_or_else(|| "-".to_owned(), |it| seconds(it.seconds));
            vec![
                text(&part.part),
                seconds(part.seconds),
                text(basis),
                measured,
            ]
        });
        let what = "What the predicted downtime is made of, what each part rests on, and what it \
                    came to. For how long the job was held on demand is no part of either.";
        let table = table(&["part", "predicted", "basis", "measured"], rows.collect());
        section("Downtime", &format!("<p>{what}</p>{table}"))
    }

    fn disk_table(&self) -> String {
        let row = |disk: &DiskReport| {
            let of_disk = || {
                let passes = self.passes.iter();
                passes
                    .flat_map(|pass| &pass.disks)
                    .chain(&disk.final_copy)
                    .filter(|moved| moved.disk == disk.id)
            };
            let mut reasons: Vec<&str> = Vec::new();
            for reason in of_disk().flat_map(|moved| &moved.reasons) {
                if !reasons.contains(&reason.as_str()) {
                    reasons.push(reason);
                }
            }
            let sum = |of: fn(&Moved) -> u64| bytes(of_disk().map(of).sum());
            vec![
                text(&disk.id),
                format!(
                    "<code>{}</code> to <code>{}</code>",
                    text(cut(&disk.source, 300)),
                    text(cut(&disk.target, 300))
                ),
                text(disk.state.as_deref().unwrap_or("old")),
                sum(|moved| moved.source_read),
                sum(|moved| moved.changed),
                bytes(disk.sent),
                format!("<code>{}</code>", text(disk.root.as_deref().unwrap_or("-"))),
                text(cut(&reasons.join(", "), 1000)),
            ]
        };
        let heads = [
            "disk", "images", "target", "read", "changed", "sent", "root", "reasons",
        ];
        table(&heads, self.disks.iter().map(row).collect())
    }

    /// What an undo took away, and where it was kept.
    fn lost_part(&self) -> String {
        let row = |disk: &DiskReport| {
            let writes = disk.lost.as_ref().filter(|writes| writes.any)?;
            let item = export_item(&disk.id);
            let kept = self.timeline.iter().find_map(|at| match &at.fact {
                Some(Fact::Item { item: of, said }) if *of == item => Some(said.as_str()),
                _ => None,
            });
            let first = writes.ranges.iter().take(RANGES_SHOWN);
            let first: Vec<_> = first.map(|(at, len)| format!("{at}+{len}")).collect();
            Some(vec![
                text(&disk.id),
                writes.bytes.map_or("nobody knows".to_owned(), bytes),
                text(&first.join(", ")),
                text(cut(kept.unwrap_or("-"), 500)),
            ])
        };
        let rows: Vec<_> = self.disks.iter().filter_map(row).collect();
        if rows.is_empty() {
            return String::new();
        }
        let heads = ["disk", "blocks of", "the first of them", "kept as"];
        section("Written since the target was started", &table(&heads, rows))
    }

    fn pass_table(&self) -> String {
        let of_passes = self.passes.iter().flat_map(|pass| {
            let moved = pass.disks.iter();
            moved.map(|moved| (pass.pass.to_string(), moved))
        });
        let finals = self.disks.iter().filter_map(|disk| {
            let moved = disk.final_copy.as_ref()?;
            Some(("final".to_owned(), moved))
        });
        let row = |(pass, moved): (String, &Moved)| {
            vec![
                pass,
                text(&moved.disk),
                seconds(moved.seconds),
                bytes(moved.source_read),
                bytes(moved.changed),
                bytes(moved.sent),
                text(cut(&moved.reasons.join(", "), 300)),
            ]
        };
        let heads = ["pass", "disk", "took", "read", "changed", "sent", "reasons"];
        table(&heads, of_passes.chain(finals).map(row).collect())
    }

    fn strategy(&self) -> String {
        let Some(strategy) = self.strategy else {
            return "<p>Not chosen yet.</p>".to_owned();
        };
        let reasons = text(cut(&self.reasons.join(", "), 2000));
        let cost = |cost: Option<super::Expected>| match cost {
            Some(cost) => format!(
                "{}, {}, downtime {}",
                seconds(cost.seconds),
                bytes(cost.bytes),
                seconds(cost.downtime)
            ),
            None => "not measured".to_owned(),
        };
        let rows = self.plans.iter().map(|plan| {
            let share = plan.differing.map_or("-".to_owned(), |(low, high)| {
                format!("{:.2} % to {:.2} %", 100.0 * low, 100.0 * high)
            });
            vec![
                text(&plan.disk),
                text(plan.strategy.as_deref().unwrap_or("-")),
                cost(plan.delta),
                cost(plan.full),
                share,
            ]
        });
        let heads = ["disk", "better", "delta", "full copy", "pieces that differ"];
        format!(
            "<p><strong>{strategy}</strong> ({reasons})</p>{}",
            table(&heads, rows.collect())
        )
    }

    fn findings_table(&self) -> String {
        let rows = self.findings.iter().map(|finding| {
            let holds = match finding.holds {
                true => "<span class=\"good\">holds</span>",
                false => "<span class=\"bad\">does not hold</span>",
            };
            vec![
                holds.to_owned(),
                text(cut(&finding.rule, 200)),
                text(&finding.disk),
                text(cut(&finding.said, 1000)),
                text(cut(finding.source.as_deref().unwrap_or(""), 300)),
            ]
        });
        let heads = ["", "rule", "disk", "found", "source"];
        table(&heads, rows.collect())
    }
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), seconds)
}

fn errors(timeline: &[Moment]) -> String {
    let row = |at: &Moment| match &at.fact {
        Some(Fact::Failed {
            kind,
            message,
            is_transient,
        }) => Some(vec![
            moment(at.at_ms),
            text(at.phase),
            text(kind),
            if *is_transient { "transient" } else { "fatal" }.to_owned(),
            text(cut(message, 2000)),
        ]),
        _ => None,
    };
    let heads = ["at", "phase", "kind", "class", "message"];
    table(&heads, timeline.iter().filter_map(row).collect())
}

fn hooks(recorded: &[Recorded]) -> String {
    let ran = recorded.iter().filter(|it| it.kind == "hook_ran");
    let shown = ran.map(|it| {
        let field = |name: &str| text(cut(it.event[name].as_str().unwrap_or(""), 300));
        let took = it.event["seconds"].as_f64().map_or(String::new(), seconds);
        let output = it.event["output"].as_str().unwrap_or("");
        let output = match output.is_empty() {
            true => String::new(),
            false => format!("<pre>{}</pre>", text(cut(output, 4096))),
        };
        format!(
            "<div><strong>{}</strong> for {}: {}, {took}, {}{output}</div>\n",
            field("hook"),
            field("step"),
            field("outcome"),
            moment(it.at_ms)
        )
    });
    let (shown, left_out) = newest_within(shown.collect(), HOOKS_LEN_MAX);
    match (shown.is_empty(), left_out) {
        (true, _) => "<p>None.</p>".to_owned(),
        (_, 0) => shown.concat(),
        (_, count) => format!("<p>{count} older ones are left out.</p>{}", shown.concat()),
    }
}

fn records(timeline: &[Moment]) -> String {
    let rows = timeline.iter().map(|at| {
        let fact = at.fact.as_ref().map(serde_json::to_string);
        let fact = fact.and_then(Result::ok).unwrap_or_default();
        let stands = if at.suspended { ", suspended" } else { "" };
        vec![
            moment(at.at_ms),
            format!("{}{stands}", text(at.phase)),
            format!("<code>{}</code>", text(cut(&fact, 500))),
        ]
    });
    table(&["at", "phase", "what is known"], rows.collect())
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::{
        Basis, Begun, DowntimePart, Fact, Finding, JobReport, JobSpec, Moved, Phase, Position,
        Record,
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

    // Goal: the page is well-formed, has every part, and shows hostile text as text. Method: a job
    // of which every text is hostile, parsed as XML.
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
}
