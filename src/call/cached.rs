//! What the cache of a model had for a call.

/// Whether a call of a model that keeps answers was spared its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// Its answer was there.
    Hit,
    /// It was answered by the run of another call that asked the same.
    Shared,
    /// It ran.
    Miss,
}

impl Cached {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hit, Self::Shared, Self::Miss];

    /// The word used in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Shared => "shared",
            Self::Miss => "miss",
        }
    }
}
