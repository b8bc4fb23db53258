//! A DashMap of shared buckets: lookup, sweep, cap.
