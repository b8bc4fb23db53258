//! What is to be loaded, and why.

use super::{
    ModelSettings, Settings,
    scan::{self, Found, Problem},
};
use crate::call::{LoadRequest, ModelRef};
use std::{collections::HashMap, sync::Arc};

/// What is to be loaded.
#[derive(Debug)]
pub(super) enum Wanted {
    /// What is configured to be loaded at start.
    Configured,
    /// What a load call asks for.
    One(LoadRequest),
    /// What was found and could not be loaded then, as it was found.
    Again(Box<Found>),
    /// What has changed of a model: versions that are `kept` are not loaded again if they would run the same.
    Renewed {
        name: Arc<str>,
        /// How the versions that are served and whose files are the same were to run.
        kept: HashMap<Arc<str>, Arc<ModelSettings>>,
    },
}

impl Wanted {
    /// What there is of it on disk, and what should have been there.
    pub(super) fn find(&self, settings: &Settings) -> (Vec<Found>, Vec<Problem>) {
        match self {
            Self::Configured => scan::scan(settings),
            Self::One(request) => scan::one(settings, request),
            Self::Again(found) => (vec![Found::clone(found)], Vec::new()),
            Self::Renewed { name, .. } => {
                let model = ModelRef { name: Arc::clone(name), version: None };
                scan::one(settings, &LoadRequest { model, config: None, files: Vec::new() })
            }
        }
    }

    /// The model that it is about; `None`: all.
    pub(super) fn about(&self) -> Option<&Arc<str>> {
        match self {
            Self::Configured => None,
            Self::One(request) => Some(&request.model.name),
            Self::Again(found) => Some(&found.name),
            Self::Renewed { name, .. } => Some(name),
        }
    }

    /// Whether a version goes on as it is.
    pub(super) fn keeps(&self, found: &Found) -> bool {
        match self {
            Self::Configured | Self::One(_) | Self::Again(_) => false,
            Self::Renewed { kept, .. } => {
                let before = kept.get(&found.version).filter(|_| found.fault.is_none());
                before.is_some_and(|before| before.runs_like(&found.settings))
            }
        }
    }
}
