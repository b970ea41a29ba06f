//! How sure a share is that was seen in a sample.

use serde::Serialize;

use super::number::float;

/// A share of things, as a sample tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end, 0 to 1.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Standard deviations on either side: 19 of 20 intervals hold the truth.
const DEVIATIONS: f64 = 1.96;

impl Interval {
    /// Wilson's score interval for `hits` of `count`: unlike the simple one it is right where few
    /// or all were hits, and never empty. Without a sample anything can be.
    #[must_use]
    pub fn of(hits: u64, count: u64) -> Self {
        if count == 0 {
            return Self {
                low: 0.0,
                high: 1.0,
            };
        }
        let (n, z2) = (float(count), DEVIATIONS * DEVIATIONS);
        let share = float(hits.min(count)) / n;
        let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let spread = DEVIATIONS * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
        let half = spread / (1.0 + z2 / n);
        Self {
            low: (middle - half).max(0.0),
            high: (middle + half).min(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: the interval is Wilson's. Method: values of a published table (10 of 100; 0 of 10), and
    // no sample.
    #[test]
    fn known_intervals() {
        let near = |a: Interval, low: f64, high: f64| {
            assert!((a.low - low).abs() < 1e-3, "{a:?}");
            assert!((a.high - high).abs() < 1e-3, "{a:?}");
        };
        near(Interval::of(10, 100), 0.0552, 0.1744);
        near(Interval::of(0, 10), 0.0, 0.2775);
        near(Interval::of(10, 10), 0.7225, 1.0);
        near(Interval::of(0, 0), 0.0, 1.0);
    }
}
