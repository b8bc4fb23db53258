//! Histograms that lanes count in without sharing a word.
//!
//! prometheus counts an observation with four locked operations on words that all threads share. A call makes six
//! observations, and with several lanes each of them waits for the others' caches. Here each thread counts in words of its
//! own, and who reads the page adds them up.

use prometheus::{
    core::{Collector, Desc},
    proto::{self, LabelPair, MetricFamily, MetricType},
};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use thread_local::ThreadLocal;

/// A family of histograms with the same buckets, by the values of its labels. Cloning it is cloning an `Arc`.
#[derive(Clone)]
pub(super) struct HistogramVec(Arc<Family>);

struct Family {
    desc: Desc,
    bounds: &'static [f64],
    children: Mutex<BTreeMap<Vec<String>, Histogram>>,
}

/// One of them. Cloning it is cloning an `Arc`.
#[derive(Clone)]
pub(super) struct Histogram(Arc<Counts>);

struct Counts {
    bounds: &'static [f64],
    threads: ThreadLocal<Words>,
}

/// What one thread has counted. It alone writes, so that no operation has to be locked.
struct Words {
    /// Observations by bucket; the last one is beyond all bounds.
    buckets: Box<[AtomicU64]>,
    /// Bits of a number.
    sum: AtomicU64,
}

// === impl HistogramVec ===

impl HistogramVec {
    /// A family with the upper `bounds` of its buckets, in order; one more takes what is above them all.
    ///
    /// # Errors
    ///
    /// What is wrong with the name or a label.
    pub(super) fn new(name: &str, help: &str, labels: &[&str], bounds: &'static [f64]) -> prometheus::Result<Self> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())?;
        Ok(Self(Arc::new(Family { desc, bounds, children: Mutex::default() })))
    }

    /// The histogram with these values of the labels, in the order of the family's.
    pub(super) fn with_label_values(&self, values: &[&str]) -> Histogram {
        debug_assert_eq!(values.len(), self.0.desc.variable_labels.len(), "{}", self.0.desc.fq_name);
        self.children().entry(owned(values)).or_insert_with(|| Histogram::new(self.0.bounds)).clone()
    }

    /// Leaves the histogram with these values out of the page.
    pub(super) fn remove_label_values(&self, values: &[&str]) {
        self.children().remove(&owned(values));
    }

    fn children(&self) -> MutexGuard<'_, BTreeMap<Vec<String>, Histogram>> {
        // A panic cannot happen under this lock.
        self.0.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

impl Collector for HistogramVec {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (desc, children) = (&self.0.desc, self.children());
        let metrics = children.iter().map(|(values, histogram)| {
            let mut labels: Vec<_> = desc.variable_labels.iter().zip(values).map(label).collect();
            // As prometheus has them.
            labels.sort();
            let mut metric = proto::Metric::from_label(labels);
            metric.set_histogram(histogram.read());
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(desc.fq_name.clone());
        family.set_help(desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

impl fmt::Debug for HistogramVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HistogramVec").field(&self.0.desc.fq_name).finish()
    }
}

fn label((name, value): (&String, &String)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.clone());
    label.set_value(value.clone());
    label
}

// === impl Histogram ===

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self(Arc::new(Counts { bounds, threads: ThreadLocal::new() }))
    }

    /// Counts `value`.
    pub(super) fn observe(&self, value: f64) {
        let Counts { bounds, threads } = &*self.0;
        let words = threads.get_or(|| Words::new(bounds.len()));
        // Most values are small, so they are looked for from below.
        let bucket = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
        let count = &words.buckets[bucket];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let sum = f64::from_bits(words.sum.load(Ordering::Relaxed)) + value;
        words.sum.store(sum.to_bits(), Ordering::Relaxed);
    }

    /// What all threads have counted. The count is that of the buckets, whatever is counted meanwhile.
    fn read(&self) -> proto::Histogram {
        let Counts { bounds, threads } = &*self.0;
        let (mut counts, mut sum) = (vec![0; bounds.len() + 1], 0.);
        for words in threads.iter() {
            for (all, own) in counts.iter_mut().zip(&words.buckets) {
                *all += own.load(Ordering::Relaxed);
            }
            sum += f64::from_bits(words.sum.load(Ordering::Relaxed));
        }
        let mut below = 0;
        let buckets = bounds.iter().zip(&counts).map(|(bound, count)| {
            below += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_cumulative_count(below);
            bucket.set_upper_bound(*bound);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum);
        histogram
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Histogram").field(&self.read().get_sample_count()).finish()
    }
}

impl Words {
    fn new(bounds: usize) -> Self {
        Self { buckets: (0..=bounds).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: [f64; 3] = [1., 2.5, 10.];

    fn of_theirs() -> prometheus::HistogramVec {
        let options = prometheus::HistogramOpts::new("sizes", "Sizes.").buckets(BOUNDS.to_vec());
        prometheus::HistogramVec::new(options, &["b", "a"]).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_prometheus_reads(
            values in proptest::collection::vec((prop_oneof![Just("x"), Just("y")], 0_u32..48), 0..60),
            threads in 1_usize..4,
        ) {
            let ours = HistogramVec::new("sizes", "Sizes.", &["b", "a"], &BOUNDS).unwrap();
            let theirs = of_theirs();
            std::thread::scope(|scope| {
                for part in values.chunks(values.len().div_ceil(threads).max(1)) {
                    let (ours, theirs) = (&ours, &theirs);
                    scope.spawn(move || {
                        for (label, quarters) in part {
                            // Sums of quarters are exact in whatever order.
                            let value = f64::from(*quarters) / 4.;
                            ours.with_label_values(&[label, "same"]).observe(value);
                            theirs.with_label_values(&[label, "same"]).observe(value);
                        }
                    });
                }
            });
            let sorted = |mut families: Vec<MetricFamily>| {
                families.iter_mut().for_each(|family| {
                    let mut metrics = family.take_metric();
                    metrics.sort_by(|a, b| a.get_label().cmp(b.get_label()));
                    family.set_metric(metrics);
                });
                format!("{families:?}")
            };
            prop_assert_eq!(sorted(ours.collect()), sorted(theirs.collect()));
        }
    }

    #[test]
    fn what_a_thread_counted_is_there_when_it_is_gone() {
        let family = HistogramVec::new("sizes", "Sizes.", &[], &BOUNDS).unwrap();
        for _ in 0..10 {
            let histogram = family.with_label_values(&[]);
            std::thread::spawn(move || histogram.observe(3.)).join().unwrap();
        }
        let read = family.with_label_values(&[]).read();
        assert_eq!((read.get_sample_count(), read.get_sample_sum()), (10, 30.));
    }

    #[test]
    fn a_name_that_prometheus_does_not_take_is_an_error() {
        assert!(HistogramVec::new("a name", "Help.", &[], &BOUNDS).is_err());
        assert!(HistogramVec::new("name", "Help.", &["a label"], &BOUNDS).is_err());
    }
}
