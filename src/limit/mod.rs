//! Rates per identity: which policies match, and what they charge.

pub mod address;
pub mod gcra;
pub mod table;

use crate::call::{Facts, Identity, Intent, Observer};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Charges calls against every matching policy. All must agree.
#[derive(Debug)]
pub struct RateLimiter {}

impl RateLimiter {
    /// Charges one call, to be given back if *we* refuse it later (contract 10 section 2).
    ///
    /// `None` if no policy matches: nothing is charged and nothing is allocated.
    ///
    /// # Errors
    ///
    /// How long until the most constrained policy would accept one.
    pub fn charge(
        &self,
        identity: &Arc<Identity>,
        intent: Intent,
        facts: &Arc<Facts>,
        now: Instant,
    ) -> Result<Option<Charge>, Duration> {
        let _ = (identity, intent, facts, now);
        unimplemented!()
    }
}

/// What a call was charged. Given back on some ends; an observer of the call.
#[derive(Debug)]
pub struct Charge {}

impl Observer for Charge {}
