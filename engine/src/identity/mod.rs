//! Which disk it is, in which state: when what was known of it once is still true.

mod facts;
mod trust;

pub(crate) use facts::seal;
pub use facts::{Facts, ImageFacts};
pub use trust::{Claim, Refusal, judge};
