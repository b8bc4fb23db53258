//! Calls about the repository and its settings whose body says what they ask for (contract 02 sections 5, 11 and 12).

use super::route::{Change, SharedMemory};
use crate::{
    call::{Inspect, Intent, Manage, Operation, Pending, Surface},
    error::Error,
    frontend::{Connection, body, head::Fields},
    wire::{json, no_shared_memory},
};
use hyper::body::Incoming;
use std::sync::Arc;

impl Change {
    /// Known before the body is read.
    pub(super) const fn intent(&self) -> Intent {
        match self {
            Self::Index => Intent::Inspect,
            Self::Load(_) | Self::Unload(_) | Self::Trace(_) | Self::Logging => Intent::Manage,
        }
    }
}

/// A body that will be read and decoded when the stack has decided that it may be.
pub(super) fn pending(connection: &Arc<Connection>, fields: &Fields<'_>, body: Incoming, change: Change) -> Pending {
    // Types differ from client to client, and some send none.
    let coding = fields.coding();
    let connection = Arc::clone(connection);
    Pending::new(async move {
        let bytes = body::read_coded(body, coding?, 0, Arc::clone(&connection)).await?;
        connection.frontend.metrics.body_received(Surface::Rest, bytes.len() as u64);
        let length = bytes.len();
        body::offload(length, move || {
            let frontend = &connection.frontend;
            let settings = &frontend.settings.wire;
            Ok(match change {
                Change::Index => {
                    let ready = json::decode_index(&bytes, settings)?;
                    Operation::Inspect(Inspect::Index { ready })
                }
                Change::Load(model) => {
                    let mut request = json::decode_load(&bytes, model, settings)?;
                    // It may wait long, and what counted the files on their way in ends with the body.
                    frontend.memory.hold_named(&mut request.files)?;
                    Operation::Manage(Manage::Load(request))
                }
                Change::Unload(model) => {
                    Operation::Manage(Manage::Unload(json::decode_unload(&bytes, model, settings)?))
                }
                Change::Trace(model) => Operation::Manage(Manage::Trace(json::decode_trace(&bytes, model, settings)?)),
                Change::Logging => Operation::Manage(Manage::Logging(json::decode_logging(&bytes, settings)?)),
            })
        })
        .await
    })
}

impl SharedMemory {
    /// There is none: to look at is nothing, to let go of is done, and to bring is refused, each to whoever may ask.
    pub(super) fn answer(self) -> Result<&'static [u8], Error> {
        match self {
            Self::Status => Ok(b"[]"),
            Self::Unregister => Ok(b"{}"),
            Self::Register => Err(no_shared_memory()),
        }
    }
}
