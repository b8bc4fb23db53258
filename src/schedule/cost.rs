//! What a batch costs: the time of a run as a function of its rows, learnt from the runs themselves.
//!
//! Sizes are grouped by powers of two. Each group remembers where its runs lie on average, in rows and in time; between two
//! groups the time is on the line through both. All of it is a few hundred bytes of atomics that every instance of a model
//! writes and every queue of it reads, without a lock: a value that is lost in a race is one of many.
//!
//! Knows neither jobs nor queues. What follows from a cost is decided in `queue`.

use std::{
    array,
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Groups of sizes: 1, 2 to 3, 4 to 7, and so on up to 65,536 rows and whatever is more.
pub(super) const SIZES: usize = 17;

/// What a new run weighs against those before it: about the last fifteen count.
const WEIGHT: f32 = 1. / 8.;

/// Runs after which a group is trusted. Until then the least of them counts: the first ones of a size pay for memory that
/// the others find.
const TRUSTED: u32 = 3;

/// A run counts as no more than so many times what was expected: the system's pause is not the model's cost.
const OUTLIER: f32 = 4.;

/// After so many runs of other sizes, what is known of a group is too old to be compared with.
const FRESH: u32 = 1024;

/// The cost of a model's batches, by rows.
#[derive(Debug)]
pub struct Cost {
    sizes: [Size; SIZES],
    /// Runs so far; wraps.
    runs: AtomicU32,
    /// The same by the bytes of inputs, where rows do not say it all.
    bytes: OnceLock<Box<Cost>>,
}

/// One group of sizes.
#[derive(Debug, Default)]
struct Size {
    /// Mean rows and mean nanoseconds, as two `f32`: one word, so that they belong together. Zero: nothing is known.
    mean: AtomicU64,
    /// Mean distance of a run from what was expected of it, in nanoseconds, as `f32`.
    spread: AtomicU32,
    /// How many runs are in it, and which run of all was the last of them.
    seen: AtomicU64,
}

/// What is known of one group.
#[derive(Clone, Copy, Debug)]
struct Point {
    rows: f32,
    nanos: f32,
    spread: f32,
}

// === impl Cost ===

impl Default for Cost {
    fn default() -> Self {
        Self { sizes: array::from_fn(|_| Size::default()), runs: AtomicU32::new(0), bytes: OnceLock::new() }
    }
}

impl Cost {
    /// What runs cost by the bytes of their inputs; `None` where nobody has asked for it.
    pub(super) fn by_bytes(&self) -> Option<&Self> {
        self.bytes.get().map(|cost| &**cost)
    }

    /// Learns what runs cost by the bytes of their inputs too. What is known by rows, which have `row` bytes, is taken over for
    /// up to `rows`.
    pub(super) fn learn_by_bytes(&self, row: usize, rows: usize) -> &Self {
        self.bytes.get_or_init(|| {
            let bytes = Self::default();
            for rows in (0..SIZES).map(|power| 1 << power).take_while(|size| *size <= rows.max(1)) {
                if let Some(took) = self.estimate(rows) {
                    bytes.seed(rows.saturating_mul(row), took);
                }
            }
            Box::new(bytes)
        })
    }

    /// The size of the largest runs of which anything is known; 0 if nothing is.
    pub(super) fn reach(&self) -> usize {
        self.sizes.iter().rev().find_map(Size::point).map_or(0, |point| point.rows as usize)
    }

    /// Takes the median of several runs of `rows` rows as what is known until there are calls.
    pub fn seed(&self, rows: usize, took: Duration) {
        let size = &self.sizes[group(rows)];
        size.mean.store(pair(rows.max(1) as f32, nanos(took)), Relaxed);
        size.spread.store(0, Relaxed);
        size.seen.store(seen(TRUSTED, self.runs.load(Relaxed)), Relaxed);
    }

    /// A batch of `rows` rows ran for `took`. Returns the least size of its group.
    pub fn observe(&self, rows: usize, took: Duration) -> usize {
        let index = group(rows);
        let size = &self.sizes[index];
        let (rows, took) = (rows.max(1) as f32, nanos(took).max(1.));
        let now = self.runs.fetch_add(1, Relaxed).wrapping_add(1);
        let (count, last) = unpaired(size.seen.load(Relaxed));
        let known = size.point().filter(|_| count > 0 && is_fresh(now, last));
        let (point, count) = match known {
            None => (Point { rows, nanos: took, spread: 0. }, 1),
            Some(point) if count < TRUSTED => {
                let least =
                    if took / rows < point.nanos / point.rows { (rows, took) } else { (point.rows, point.nanos) };
                (Point { rows: least.0, nanos: least.1, spread: 0. }, count + 1)
            }
            Some(point) => {
                let expected = self.at(rows).map_or(point.nanos, |at| at.nanos);
                let took = took.min(expected * OUTLIER);
                let towards = |mean: f32, value: f32| mean + (value - mean) * WEIGHT;
                let point = Point {
                    rows: towards(point.rows, rows),
                    nanos: towards(point.nanos, took),
                    spread: towards(point.spread, (took - expected).abs()),
                };
                (point, count)
            }
        };
        size.mean.store(pair(point.rows, point.nanos), Relaxed);
        size.spread.store(point.spread.to_bits(), Relaxed);
        size.seen.store(seen(count, now), Relaxed);
        1 << index
    }

    /// How long a batch of `rows` rows takes on average; `None` before anything was learnt.
    ///
    /// Above the largest group the last slope goes on, below the least one time goes with rows.
    pub fn estimate(&self, rows: usize) -> Option<Duration> {
        self.at(rows.max(1) as f32).map(|at| duration(at.nanos))
    }

    /// The same with the usual distance of a run from it: what most batches do not exceed.
    pub fn at_most(&self, rows: usize) -> Option<Duration> {
        self.at(rows.max(1) as f32).map(|at| duration(at.nanos + at.spread))
    }

    /// Nanoseconds for each row of a batch in the group that begins with `2^index`; `None` if too few runs, or only old
    /// ones, say so.
    pub(super) fn per_row(&self, index: usize) -> Option<f32> {
        let size = self.sizes.get(index)?;
        let (count, last) = unpaired(size.seen.load(Relaxed));
        let now = self.runs.load(Relaxed);
        let point = size.point().filter(|_| count >= TRUSTED && is_fresh(now, last))?;
        Some(point.nanos / point.rows)
    }

    fn at(&self, rows: f32) -> Option<Point> {
        let group = group(rows as usize);
        let point = |index: usize| self.sizes[index].point();
        let mut below = (0..=group).rev().filter_map(point).skip_while(|point| point.rows > rows);
        let above = || (group..SIZES).filter_map(point).find(|point| point.rows >= rows);
        match (below.next(), above()) {
            (Some(below), Some(above)) if above.rows > below.rows => {
                let part = (rows - below.rows) / (above.rows - below.rows);
                let on = |below: f32, above: f32| below + (above - below) * part;
                Some(Point { rows, nanos: on(below.nanos, above.nanos), spread: on(below.spread, above.spread) })
            }
            (Some(last), _) => {
                let even = last.nanos / last.rows;
                let slope = below.next().map_or(even, |before| (last.nanos - before.nanos) / (last.rows - before.rows));
                let nanos = last.nanos + slope.clamp(0., even) * (rows - last.rows);
                Some(Point { rows, nanos, spread: last.spread })
            }
            (None, Some(first)) => {
                Some(Point { rows, nanos: first.nanos * rows / first.rows, spread: first.spread * rows / first.rows })
            }
            (None, None) => None,
        }
    }
}

// === impl Size ===

impl Size {
    fn point(&self) -> Option<Point> {
        let (rows, nanos) = unpaired(self.mean.load(Relaxed));
        let (rows, nanos) = (f32::from_bits(rows), f32::from_bits(nanos));
        (rows > 0.).then(|| Point { rows, nanos, spread: f32::from_bits(self.spread.load(Relaxed)) })
    }
}

/// The group that `rows` belong to.
fn group(rows: usize) -> usize {
    (rows.max(1).ilog2() as usize).min(SIZES - 1)
}

/// Whether run number `last` is not too long before `now`. It may be after it, where another instance was faster.
fn is_fresh(now: u32, last: u32) -> bool {
    let age = now.wrapping_sub(last);
    age <= FRESH || age > u32::MAX / 2
}

fn nanos(took: Duration) -> f32 {
    took.as_nanos() as f32
}

fn duration(nanos: f32) -> Duration {
    // A cast saturates, and a time that never ends is as good as any that is too long.
    Duration::from_nanos(nanos as u64)
}

fn pair(rows: f32, nanos: f32) -> u64 {
    u64::from(rows.to_bits()) << 32 | u64::from(nanos.to_bits())
}

fn seen(count: u32, last: u32) -> u64 {
    u64::from(count) << 32 | u64::from(last)
}

fn unpaired(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn ran(cost: &Cost, times: u32, rows: usize, millis: u32) {
        for _ in 0..times {
            cost.observe(rows, MS * millis);
        }
    }

    /// A cost that has seen each of these, rows and milliseconds, a few times.
    fn learnt(runs: &[(usize, u32)]) -> Cost {
        let cost = Cost::default();
        for (rows, millis) in runs {
            ran(&cost, TRUSTED, *rows, *millis);
        }
        cost
    }

    fn millis(cost: &Cost, rows: usize) -> f64 {
        (cost.estimate(rows).unwrap().as_secs_f64() * 1e5).round() / 100.
    }

    #[test]
    fn nothing_is_known_before_a_run() {
        let cost = Cost::default();
        assert_eq!((cost.estimate(1), cost.at_most(64), cost.per_row(0)), (None, None, None));
    }

    #[test]
    fn between_two_sizes_the_time_is_on_the_line_and_beyond_them_it_goes_on() {
        let cost = learnt(&[(2, 10), (10, 18)]);
        for (rows, expected) in [(2, 10.), (4, 12.), (6, 14.), (10, 18.), (20, 28.), (1, 5.), (0, 5.)] {
            assert_eq!(millis(&cost, rows), expected, "{rows} rows");
        }
        // One size alone says how long a row takes, and no more.
        assert_eq!(millis(&learnt(&[(4, 8)]), 16), 32.);
        // More rows are never taken to be faster beyond what was seen, nor slower than one by one.
        assert_eq!(millis(&learnt(&[(2, 9), (4, 8)]), 8), 8.);
        assert_eq!(millis(&learnt(&[(2, 1), (4, 8)]), 8), 16.);
    }

    #[test]
    fn the_first_runs_of_a_size_count_by_the_least() {
        let cost = Cost::default();
        for millis in [90, 10, 30] {
            cost.observe(8, MS * millis);
        }
        assert_eq!(millis(&cost, 8), 10.);
    }

    #[test]
    fn a_pause_of_the_system_is_not_the_models_cost_and_a_change_is() {
        let cost = learnt(&[(8, 10)]);
        cost.observe(8, MS * 10_000);
        assert!(millis(&cost, 8) < 14., "{}", millis(&cost, 8));
        ran(&cost, 80, 8, 200);
        assert!((190. ..201.).contains(&millis(&cost, 8)), "{}", millis(&cost, 8));
    }

    #[test]
    fn what_is_uncertain_is_said_to_take_longer_at_most() {
        let cost = learnt(&[(8, 10)]);
        assert_eq!(cost.at_most(8), cost.estimate(8));
        (0..30).for_each(|_| [5, 15].into_iter().for_each(|millis| ran(&cost, 1, 8, millis)));
        let (mean, most) = (cost.estimate(8).unwrap(), cost.at_most(8).unwrap());
        assert!(most > mean + 3 * MS && most < mean + 8 * MS, "{mean:?} {most:?}");
    }

    #[test]
    fn a_size_that_was_not_seen_for_long_is_not_compared_and_begins_anew() {
        let cost = learnt(&[(1, 1), (64, 64)]);
        assert!(cost.per_row(0).is_some() && cost.per_row(1).is_none());
        ran(&cost, FRESH + 1, 64, 64);
        assert_eq!((cost.per_row(0), cost.per_row(6)), (None, Some(1e6)));
        assert_eq!(millis(&cost, 1), 1.);
        cost.observe(1, MS * 7);
        assert_eq!(millis(&cost, 1), 7.);
    }

    #[test]
    fn runs_that_overtake_each_other_are_not_old() {
        for (now, last, fresh) in [(5, 6, true), (0, u32::MAX, true), (FRESH, 0, true), (FRESH + 1, 0, false)] {
            assert_eq!(is_fresh(now, last), fresh, "{now} {last}");
        }
    }

    #[test]
    fn what_was_measured_at_warm_up_is_known_at_once() {
        let cost = Cost::default();
        cost.seed(16, MS * 4);
        assert_eq!((millis(&cost, 16), cost.per_row(4)), (4., Some(250_000.)));
    }

    #[test]
    fn what_is_known_by_rows_is_known_by_bytes() {
        let cost = learnt(&[(1, 2), (2, 3), (4, 5)]);
        assert!(cost.by_bytes().is_none());
        let bytes = cost.learn_by_bytes(16, 2);
        assert_eq!((millis(bytes, 16), millis(bytes, 32), bytes.reach()), (2., 3., 32));
        bytes.observe(4096, MS * 9);
        assert_eq!(cost.by_bytes().unwrap().reach(), 4096);
        assert_eq!((cost.reach(), Cost::default().reach()), (4, 0));
    }

    proptest! {
        #[test]
        fn estimates_lie_among_what_was_observed(
            runs in prop::collection::vec((1..200_000_usize, 1..10_000_u64), 1..200),
            asked in 1..1_000_000_usize,
        ) {
            let cost = Cost::default();
            for (rows, micros) in &runs {
                let size = cost.observe(*rows, Duration::from_micros(*micros));
                prop_assert!(size.is_power_of_two() && size <= *rows);
            }
            let per_row = |(rows, micros): &(usize, u64)| *micros as f64 / *rows as f64;
            let most = runs.iter().map(|run| run.1 as f64).fold(0., f64::max);
            let steepest = runs.iter().map(per_row).fold(0., f64::max);
            let estimate = cost.estimate(asked).unwrap().as_secs_f64() * 1e6;
            // Up to the largest by time, beyond it by the steepest row; and the precision of `f32`.
            let bound = most.max(steepest * asked as f64) * 1.001 + 1.;
            prop_assert!(estimate <= bound, "{} rows: {} above {}", asked, estimate, bound);
            prop_assert!(cost.at_most(asked) >= cost.estimate(asked));
        }
    }
}
