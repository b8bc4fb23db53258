//! `sluicegate.v1` messages as calls: what WebSocket and NDJSON share.
//!
//! Knows how a message becomes a call and a reply a message; sessions and transports are their codecs' own.

use super::{About, Ask, Credit, Opened, Ticket};
use crate::{
    call::{InferResponse, Operation, Pending},
    error::Error,
    frontend::{
        Connection,
        body::{Counted, TEXT, offload},
    },
    wire::{
        Wishes,
        message::{self, Encoded, Envelope, Frame, Kind},
    },
};
use bytes::Bytes;
use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

/// The `id` of a request.
pub(in crate::frontend) type Tag = Arc<str>;
/// How a request wants its outputs; set once it is decoded, unless it wants nothing.
pub(in crate::frontend) type Note = OnceLock<Wishes>;

/// Wishes of a request that has none.
static PLAIN: Wishes = Wishes { binary: false, outputs: Vec::new() };

/// Whether outputs may be raw bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::frontend) enum Binary {
    /// If the request says so.
    IfSaid,
    /// Unless the request says otherwise.
    Wanted,
    /// They have no form here.
    Never,
}

/// A message, in memory.
#[derive(Clone, Debug)]
pub(in crate::frontend) enum Body {
    /// JSON.
    Text(Bytes),
    /// JSON, and raw tensors.
    Binary(Frame),
}

impl Body {
    /// The JSON.
    pub(in crate::frontend) fn json(&self) -> &[u8] {
        match self {
            Self::Text(json) => json,
            Self::Binary(frame) => &frame.json,
        }
    }

    /// What is counted of it: raw tensors, as they came.
    fn counted(&self) -> Counted {
        match self {
            Self::Text(json) => Counted::of(json),
            Self::Binary(frame) => Counted::part_of(&frame.tail, self.len()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(json) => json.len(),
            Self::Binary(frame) => frame.offset() + frame.tail.len(),
        }
    }
}

/// What a message about the request `tag` asks for: one of the kinds that need an `id`. `room` says whether the memory
/// budget took the message, `credit` is the session's first one, if it has one.
pub(in crate::frontend) fn ask(
    connection: &Arc<Connection>,
    tag: Tag,
    envelope: &mut Envelope<'_>,
    body: Body,
    room: Result<(), Error>,
    credit: Option<u32>,
    binary: Binary,
) -> Ask<Tag, Note> {
    let later = |what| Error::Unimplemented(Cow::Borrowed(what));
    match (envelope.kind, envelope.wrong.take()) {
        (Kind::Cancel, _) => Ask::Cancel(tag),
        (Kind::Credit, None) => Ask::Credit(tag, envelope.add),
        (Kind::Credit, Some(error)) => Ask::Fail(tag, Note::new(), error),
        (Kind::Infer, _) if envelope.input_stream => {
            Ask::Refuse(tag, Note::new(), later("`input_stream` is not part of this version"))
        }
        (Kind::Infer, wrong) => match wrong.map_or(room, Err) {
            Err(error) => Ask::Refuse(tag, Note::new(), error),
            Ok(()) => open(connection, tag, envelope, body, credit, binary),
        },
        (_, _) => Ask::Fail(tag, Note::new(), later("`input` is not part of this version")),
    }
}

/// Counts `payload` against the memory budget for as long as it lives. What finds no room is kept uncounted: its
/// refusal needs its `id`.
pub(in crate::frontend) fn hold(connection: &Connection, payload: Bytes) -> (Bytes, Result<(), Error>) {
    match connection.frontend.memory.hold(payload.clone()) {
        Ok(held) => (held, Ok(())),
        Err(error) => (payload, Err(error)),
    }
}

/// Makes a call of an `infer` message whose envelope is sound. `credit` is the session's first one, if it has one.
fn open(
    connection: &Arc<Connection>,
    tag: Tag,
    envelope: &Envelope<'_>,
    body: Body,
    credit: Option<u32>,
    binary: Binary,
) -> Ask<Tag, Note> {
    // A reply that comes whole is always allowed its one output.
    let credit = envelope.credit.or(credit).filter(|_| envelope.stream).map_or(Credit::Unlimited, Credit::Chunks);
    let binary = if binary == Binary::Wanted && envelope.binary_outputs.is_some() { Binary::IfSaid } else { binary };
    let ticket = Ticket::new(Note::new(), credit);
    let (connection, shared, size) = (Arc::clone(connection), Arc::clone(&ticket), body.len());
    let input = Pending::new(async move {
        offload(size, move || {
            let settings = &connection.frontend.settings.wire;
            let counted = body.counted();
            let (json, tail) = match body {
                Body::Text(json) => (json, None),
                Body::Binary(frame) => {
                    let offset = frame.offset();
                    (frame.json, Some((frame.tail, offset)))
                }
            };
            let wanted = (binary == Binary::Wanted).then_some(true);
            let (request, wishes) = message::decode_infer(&json, tail, wanted, settings)?;
            drop(json);
            if wishes != PLAIN {
                if wishes.any() && binary == Binary::Never {
                    return Err(Error::invalid("the request wants binary outputs, which a line cannot carry"));
                }
                // The first and only time: a body is decoded once.
                let _ = shared.note.set(wishes);
            }
            connection.frontend.memory.hold_inputs(request, counted).map(Operation::Infer)
        })
        .await
    });
    Ask::Call(Opened {
        tag,
        ticket,
        streams: envelope.stream,
        credited: envelope.credit.is_some() && envelope.stream,
        timeout: envelope.timeout,
        context: envelope.context,
        size,
        input,
    })
}

/// Bytes of JSON that outputs of a call come to, roughly: raw ones are none.
pub(in crate::frontend) fn work(note: &Note, response: &InferResponse) -> usize {
    let wishes = note.get().unwrap_or(&PLAIN);
    let text = response.outputs.iter().filter(|output| !wishes.wants_binary(&output.name));
    text.map(|output| output.tensor.data().len() * TEXT).sum()
}

/// Writes outputs of a call, held by the memory budget until they are sent.
///
/// # Errors
///
/// As [`message::output`]; as [`Memory`](crate::frontend::body::Memory) if the budget has no room.
pub(in crate::frontend) fn output(
    connection: &Connection,
    about: &About<'_, Tag, Note>,
    last: bool,
    response: &InferResponse,
) -> Result<Encoded, Error> {
    let frontend = &connection.frontend;
    let wishes = about.note.get().unwrap_or(&PLAIN);
    let encoded = message::output(about.tag, about.seq, last, response, wishes, &frontend.settings.wire)?;
    match encoded {
        Encoded::Text(json) => frontend.memory.hold(json).map(Encoded::Text),
        Encoded::Binary(mut pieces) => {
            frontend.memory.hold_each(&mut pieces)?;
            Ok(Encoded::Binary(pieces))
        }
    }
}
