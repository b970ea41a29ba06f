//! Bytes scanned and sent in a second, over time, as a picture.

use super::markup::{moment, scaled};
use crate::job::recording::Recorded;

/// Points of a line; samples in between are averaged.
const POINT_COUNT_MAX: u64 = 400;
/// Samples farther apart than this have nothing to do with each other, in milliseconds.
const GAP_MS: u64 = 10_000;
/// Pixels.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 90.0;
const PLOT: f64 = 110.0;
const TOP: f64 = 30.0;
const HEIGHT: f64 = TOP + PLOT + 22.0;

/// Bytes of all disks by then.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at_ms: u64,
    scanned: u64,
    sent: u64,
}

/// Both charts, one above the other.
pub(super) fn chart(recorded: &[Recorded]) -> String {
    let samples: Vec<_> = recorded
        .iter()
        .filter(|it| it.kind == "job_progress")
        .filter_map(|it| {
            Some(Sample {
                at_ms: it.at_ms,
                scanned: it.event["scanned"].as_u64()?,
                sent: it.event["sent"].as_u64()?,
            })
        })
        .collect();
    let scanned = rates(&samples, |sample| sample.scanned);
    let sent = rates(&samples, |sample| sample.sent);
    if scanned.is_empty() {
        return "<p>No samples.</p>".to_owned();
    }
    format!(
        "{}{}",
        line("scanned", "#2f6fb3", &scanned),
        line("sent", "#12703a", &sent)
    )
}

/// A rate at a time; `None` where a line ends.
type Point = Option<(u64, f64)>;

fn rates(samples: &[Sample], of: fn(&Sample) -> u64) -> Vec<Point> {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return Vec::new();
    };
    let step = last.at_ms.saturating_sub(first.at_ms) / POINT_COUNT_MAX + 1;
    let mut points: Vec<Point> = Vec::new();
    // Where the bucket that is being filled began.
    let mut from = *first;
    let mut before = *first;
    for sample in &samples[1..] {
        let is_apart = sample.at_ms.abs_diff(before.at_ms) > GAP_MS.max(2 * step);
        // A new pass counts from nothing again.
        let is_anew = of(sample) < of(&before) || sample.scanned < before.scanned;
        if is_apart || is_anew || sample.at_ms < before.at_ms {
            points.push(None);
            from = *sample;
        } else if sample.at_ms - from.at_ms >= step {
            let bytes = float(of(sample) - of(&from));
            let seconds = float(sample.at_ms - from.at_ms) / 1000.0;
            points.push(Some((sample.at_ms, bytes / seconds)));
            from = *sample;
        }
        before = *sample;
    }
    let has_any = points.iter().any(Option::is_some);
    if has_any { points } else { Vec::new() }
}

fn line(name: &str, colour: &str, points: &[Point]) -> String {
    let known = || points.iter().flatten();
    let from = known().map(|(at, _)| *at).min().unwrap_or(0);
    let to = known().map(|(at, _)| *at).max().unwrap_or(0);
    let top = known().map(|(_, rate)| *rate).fold(1.0, f64::max);
    let across = (WIDTH - LEFT - 10.0) / float((to - from).max(1));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <title>{name}, bytes in a second</title>\
         <text x=\"{LEFT}\" y=\"14\" fill=\"#445\">{name}</text>"
    );
    for (share, y) in [(1.0, TOP), (0.5, TOP + PLOT / 2.0), (0.0, TOP + PLOT)] {
        svg.push_str(&format!(
            "<line x1=\"{LEFT}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"#e6eaef\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#566\">{}/s</text>",
            WIDTH - 10.0,
            LEFT - 6.0,
            y + 4.0,
            scaled(top * share)
        ));
    }
    for run in points.split(Option::is_none) {
        let places: Vec<_> = run
            .iter()
            .flatten()
            .map(|(at, rate)| {
                let x = LEFT + across * float(at - from);
                let y = TOP + PLOT * (1.0 - rate / top);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        match places.as_slice() {
            [] => {}
            // A line of one point is not seen.
            [one] => {
                let (x, y) = one.split_once(',').unwrap_or(("0", "0"));
                svg.push_str(&format!(
                    "<circle cx=\"{x}\" cy=\"{y}\" r=\"2\" fill=\"{colour}\"/>"
                ));
            }
            many => svg.push_str(&format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
                many.join(" ")
            )),
        }
    }
    svg.push_str(&format!(
        "<text x=\"{LEFT}\" y=\"{0}\" fill=\"#566\">{1}</text>\
         <text x=\"{2}\" y=\"{0}\" text-anchor=\"end\" fill=\"#566\">{3}</text></svg>",
        HEIGHT - 4.0,
        moment(from),
        WIDTH - 10.0,
        moment(to)
    ));
    svg
}

#[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
fn float(value: u64) -> f64 {
    value as f64
}
