//! How many rows a batch takes: what the configuration prefers, and what the learnt cost says is enough.
//!
//! A model that gains from large batches is given all that waits. One that does not, whose every row costs the same in
//! whatever company, serves its first callers sooner with small ones and its last callers no later.

use super::{Cost, cost};
use std::{fmt, time::Duration};

/// Most sizes that can be preferred.
pub const PREFERRED: usize = 16;

/// A size is taken for as good as the best if a row costs no more than so many times as much.
const ENTER: f32 = 1.01;

/// And is left when a row costs more than that: between the two nothing changes, so that noise does not either.
const LEAVE: f32 = 1.05;

/// Looks at the costs once in so many batches.
const LOOK: u32 = 16;

/// Of batches that could have been larger, one in so many is: else nobody would know what large ones cost now.
const PROBE: u32 = 256;

/// A batch that takes less is not made smaller. What lies around a run, such as waking a thread, would cost as much as is
/// won; and what runs on lanes is shorter than that.
pub(super) const WORTH: Duration = Duration::from_millis(1);

/// Rows that a batch should rather have than others (`batching.preferred`), ascending.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Preferred {
    sizes: [u32; PREFERRED],
    count: usize,
}

/// The size that is enough for a model, which changes as its cost does.
#[derive(Debug, Default)]
pub(super) struct BatchSize {
    enough: Option<Enough>,
    batches: u32,
    limited: u32,
}

/// Batches of more than this gain nothing.
#[derive(Clone, Copy, Debug)]
struct Enough {
    /// The group, whose least size is the limit.
    group: usize,
    /// Whether a row costs no more than in the largest batches, by whatever little.
    is_no_worse: bool,
}

// === impl Preferred ===

impl Preferred {
    /// These sizes, of which zeros and whatever is more than [`PREFERRED`] are left out.
    pub fn new(sizes: impl IntoIterator<Item = usize>) -> Self {
        let mut sorted: Vec<u32> = sizes.into_iter().filter_map(|size| u32::try_from(size).ok()).collect();
        sorted.retain(|size| *size > 0);
        sorted.sort_unstable();
        sorted.dedup();
        let mut preferred = Self::default();
        for (place, size) in preferred.sizes.iter_mut().zip(sorted) {
            *place = size;
            preferred.count += 1;
        }
        preferred
    }

    /// True if no size is preferred to others.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True if `rows` is one of them.
    pub fn contains(&self, rows: usize) -> bool {
        self.iter().any(|size| size == rows)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.sizes[..self.count].iter().map(|size| *size as usize)
    }
}

impl fmt::Debug for Preferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// === impl BatchSize ===

impl BatchSize {
    /// Most rows that the next batch should have, of at most `max_rows`; `None`: all that there are.
    ///
    /// `overload` says that more wait than the largest batch takes: then nothing is given away for an earlier answer.
    pub(super) fn limit(&mut self, cost: &Cost, max_rows: usize, overload: bool) -> Option<usize> {
        if self.batches.is_multiple_of(LOOK) {
            self.enough = enough(cost, max_rows, self.enough);
        }
        self.batches = self.batches.wrapping_add(1);
        let enough = self.enough.filter(|enough| enough.is_no_worse || !overload)?;
        self.limited = self.limited.wrapping_add(1);
        (!self.limited.is_multiple_of(PROBE)).then_some(1 << enough.group)
    }
}

/// The least size whose rows cost about as little as those of any other.
fn enough(cost: &Cost, max_rows: usize, before: Option<Enough>) -> Option<Enough> {
    let groups = 1 + max_rows.max(1).ilog2() as usize;
    let known = || (0..groups.min(cost::SIZES)).filter_map(|group| Some((group, cost.per_row(group)?)));
    let (largest, of_largest) = known().last()?;
    let best = known().map(|(_, per_row)| per_row).fold(f32::INFINITY, f32::min);
    let (group, per_row) = known().find(|(group, per_row)| {
        let slack = if before.is_some_and(|before| before.group == *group) { LEAVE } else { ENTER };
        *per_row <= best * slack
    })?;
    (group < largest).then_some(Enough { group, is_no_worse: per_row <= of_largest })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cost of all sizes up to 64, in nanoseconds a row.
    fn cost(per_row: impl Fn(usize) -> f64) -> Cost {
        let cost = Cost::default();
        for rows in (0..7).map(|group| 1 << group) {
            cost.seed(rows, Duration::from_nanos((per_row(rows) * rows as f64) as u64));
        }
        cost
    }

    fn limit(per_row: impl Fn(usize) -> f64, overload: bool) -> Option<usize> {
        BatchSize::default().limit(&cost(per_row), 64, overload)
    }

    #[test]
    fn sizes_are_limited_only_where_rows_gain_nothing() {
        assert_eq!(limit(|_| 1e6, false), Some(1));
        assert_eq!(limit(|_| 1e6, true), Some(1));
        // An affine cost, as most models have: the larger the better.
        assert_eq!(limit(|rows| 1e5 + 2e6 / rows as f64, false), None);
        // Rows that cost more in large batches, for want of cache.
        assert_eq!(limit(|rows| if rows > 16 { 2e6 } else { 1e6 + 1e6 / rows as f64 }, true), Some(16));
        // Nothing to gain from 8 rows up.
        assert_eq!(limit(|rows| 1e6 * (8. / rows as f64).max(1.), false), Some(8));
    }

    #[test]
    fn nothing_is_given_away_under_overload() {
        let slightly_worse = |rows: usize| if rows == 1 { 1.005e6 } else { 1e6 + 1e6 * f64::from(rows < 64) };
        assert_eq!(limit(slightly_worse, false), Some(1));
        assert_eq!(limit(slightly_worse, true), None);
    }

    #[test]
    fn nothing_is_limited_before_two_sizes_are_known() {
        let cost = Cost::default();
        assert_eq!(BatchSize::default().limit(&cost, 64, false), None);
        cost.seed(1, Duration::from_millis(1));
        assert_eq!(BatchSize::default().limit(&cost, 64, false), None);
    }

    #[test]
    fn noise_does_not_make_it_flap() {
        let cost = Cost::default();
        let mut size = BatchSize::default();
        let (mut changes, mut before, mut state) = (0, None, 7_u64);
        for batch in 0..20_000_u32 {
            // 5 % up or down, on a cost of 2 ms a row.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let noise = 0.95 + 0.1 * (state >> 40) as f64 / (1_u64 << 24) as f64;
            let rows =
                if batch < 8 { 1 + 63 * (batch as usize % 2) } else { size.limit(&cost, 64, false).unwrap_or(64) };
            cost.observe(rows, Duration::from_secs_f64(0.002 * rows as f64 * noise));
            let now = size.enough.map(|enough| enough.group);
            changes += u32::from(now != before);
            before = now;
        }
        assert_eq!(before, Some(0));
        assert!(changes <= 9, "{changes} changes");
    }

    #[test]
    fn it_finds_back_to_large_batches_when_they_gain_again() {
        let cost = cost(|_| 1e6);
        let mut size = BatchSize::default();
        for _ in 0..500 {
            let rows = size.limit(&cost, 64, true).unwrap_or(64);
            // From now on 1 ms each, however many rows.
            cost.observe(rows, Duration::from_millis(1));
        }
        assert_eq!(size.limit(&cost, 64, true), None);
    }

    #[test]
    fn preferred_sizes_are_sorted_and_bounded() {
        let preferred = Preferred::new([8, 2, 0, 8]);
        assert_eq!(preferred.iter().collect::<Vec<_>>(), [2, 8]);
        assert!(preferred.contains(8) && !preferred.contains(0) && !preferred.is_empty());
        assert_eq!(Preferred::new(1..100).iter().count(), PREFERRED);
        assert!(Preferred::default().is_empty());
    }
}
