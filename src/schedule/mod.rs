//! Bounded submission of jobs to instances.
