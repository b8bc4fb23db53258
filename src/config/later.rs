//! Keys of the design whose features this version does not have.
//!
//! A file that names one is answered clearly: it is neither a typing error nor silently without effect.

/// What comes later, by path; `*` is any element of a list. Naming it is answered clearly, never silently accepted.
pub(super) const LATER: &[&str] = &["profile", "idempotency"];

/// The same for `model.yaml`, besides what `models.defaults` has in [`LATER`].
pub(super) const LATER_IN_MODELS: &[&str] = &["platform", "state", "generation"];
