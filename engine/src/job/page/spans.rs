//! When a job was in which phase, as a picture: a row for each phase.

use super::markup::{moment, seconds, text};
use crate::job::journal::Fact;
use crate::job::report::Moment;

/// Spans that are drawn; the oldest are left out.
const SPAN_COUNT_MAX: usize = 600;
/// Pixels.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 22.0;

/// A time in one phase.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    phase: &'static str,
    from_ms: u64,
    to_ms: u64,
    is_suspended: bool,
}

/// All of the job, and the downtime once more, larger.
pub(super) fn timeline(moments: &[Moment]) -> String {
    let spans = spans_of(moments);
    let mut shown = gantt(&spans);
    if let Some((from, to)) = downtime(moments) {
        let within = spans.iter().filter_map(|span| {
            let (from_ms, to_ms) = (span.from_ms.max(from), span.to_ms.min(to));
            (from_ms < to_ms).then_some(Span {
                from_ms,
                to_ms,
                ..*span
            })
        });
        let within: Vec<_> = within.collect();
        shown.push_str("<p>The downtime: from the request to stop until the target ran.</p>");
        shown.push_str(&gantt(&within));
    }
    shown
}

fn spans_of(moments: &[Moment]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (at, next) in moments.iter().zip(moments.iter().skip(1)) {
        // A clock that was set back: no span is shorter than nothing.
        let to_ms = next.at_ms.max(at.at_ms);
        match spans.last_mut() {
            Some(last) if last.phase == at.phase && last.is_suspended == at.suspended => {
                last.to_ms = last.to_ms.max(to_ms);
            }
            _ => spans.push(Span {
                phase: at.phase,
                from_ms: at.at_ms,
                to_ms,
                is_suspended: at.suspended,
            }),
        }
    }
    spans.split_off(spans.len().saturating_sub(SPAN_COUNT_MAX))
}

fn downtime(moments: &[Moment]) -> Option<(u64, u64)> {
    let is_stopping = |at: &&Moment| matches!(at.fact, Some(Fact::Stopping { .. }));
    let from = moments.iter().rfind(is_stopping)?.at_ms;
    let is_started = |at: &&Moment| matches!(at.fact, Some(Fact::Started { .. }));
    let mut after = moments.iter().filter(|at| at.at_ms >= from);
    let to = after.find(is_started)?.at_ms;
    (from < to).then_some((from, to))
}

fn gantt(spans: &[Span]) -> String {
    let from = spans.iter().map(|span| span.from_ms).min().unwrap_or(0);
    let to = spans.iter().map(|span| span.to_ms).max().unwrap_or(0);
    if from >= to {
        return "<p>Nothing took any time yet.</p>".to_owned();
    }
    let mut phases: Vec<&str> = Vec::new();
    for span in spans {
        if !phases.contains(&span.phase) {
            phases.push(span.phase);
        }
    }
    let scale = (WIDTH - LEFT - RIGHT) / float(to - from);
    let height = ROW * float(phases.len() as u64) + 24.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"
    );
    for (row, phase) in (0_u32..).zip(&phases) {
        let y = ROW * f64::from(row);
        let of_phase = || spans.iter().filter(|span| span.phase == *phase);
        let took: u64 = of_phase().map(|span| span.to_ms - span.from_ms).sum();
        svg.push_str(&format!(
            "<text x=\"0\" y=\"{:.1}\" fill=\"#445\">{}</text>",
            y + 15.0,
            text(phase)
        ));
        svg.push_str(&format!(
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1}\" y2=\"{0:.1}\" stroke=\"#e6eaef\"/>",
            y + ROW - 2.0,
            WIDTH - RIGHT
        ));
        for span in of_phase() {
            let fill = match (span.is_suspended, *phase) {
                (true, _) => "#b3261e",
                (_, "waiting" | "commit_pending") => "#b9c4d0",
                _ => "#2f6fb3",
            };
            let (at, len) = (span.from_ms - from, span.to_ms - span.from_ms);
            svg.push_str(&format!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{fill}\">\
                 <title>{}: {}, {}</title></rect>",
                LEFT + scale * float(at),
                y + 3.0,
                (scale * float(len)).max(1.5),
                text(phase),
                moment(span.from_ms),
                seconds(float(len) / 1000.0)
            ));
        }
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#445\">{}</text>",
            WIDTH - RIGHT + 8.0,
            y + 15.0,
            seconds(float(took) / 1000.0)
        ));
    }
    svg.push_str(&format!(
        "<text x=\"{LEFT}\" y=\"{0:.1}\" fill=\"#566\">{1}</text>\
         <text x=\"{2}\" y=\"{0:.1}\" text-anchor=\"end\" fill=\"#566\">{3}</text></svg>",
        height - 8.0,
        moment(from),
        WIDTH - RIGHT,
        moment(to)
    ));
    svg
}

#[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
fn float(value: u64) -> f64 {
    value as f64
}
