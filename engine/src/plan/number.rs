//! Counts as measures and back, for estimates.

/// A count as a measure: beyond 2^53 it is rounded.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// A measure as a count; what is no number is none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate, and `as` saturates"
)]
pub(super) fn whole(measure: f64) -> u64 {
    measure.round() as u64
}
