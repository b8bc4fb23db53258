//! Which identity may do what with which model.

use crate::{
    call::{Identity, Intent, ModelRef},
    error::Error,
};

/// All grants. What is not granted is denied.
#[derive(Debug, Default)]
pub struct Grants {}

impl Grants {
    /// May `identity` do `intent` with `model`?
    ///
    /// # Errors
    ///
    /// [`Error::ModelNotFound`] if it has no grant at all on the model, [`Error::Forbidden`] if it has one but not for
    /// this intent (contract 00 section 2).
    pub fn check(&self, identity: &Identity, intent: Intent, model: Option<&ModelRef>) -> Result<(), Error> {
        let _ = (identity, intent, model);
        unimplemented!()
    }

    /// May `identity` know that the model `name` exists?
    pub fn may_see(&self, identity: &Identity, name: &str) -> bool {
        let _ = (identity, name);
        unimplemented!()
    }

    /// Has `identity` any grant at all?
    pub fn any(&self, identity: &Identity) -> bool {
        let _ = identity;
        unimplemented!()
    }
}
