//! Random numbers of no secret kind.

/// `SplitMix64`.
#[derive(Clone, Debug)]
pub(crate) struct Draws(u64);

impl Draws {
    /// The same numbers for the same seed.
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Begun at a number that nobody can know.
    pub(crate) fn unforeseen() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().0 ^ uuid::Uuid::new_v4().as_u64_pair().0)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Below `end`, which is not 0; none is likelier than another by more than 2^-34 for ends up to
    /// 2^30.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
