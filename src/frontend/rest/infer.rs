//! The body of a V2 `infer` request: which form it has, and when it is read.

use crate::{
    call::{ModelRef, Operation, Pending, Surface},
    error::Error,
    frontend::{
        Connection,
        body::{self, Coding, Counted},
        head::{Fields, Single},
    },
    wire::{Wishes, framed, json},
};
use hyper::body::Incoming;
use std::sync::{Arc, OnceLock};

/// What clients of V2 send; a missing type is one of them (contract 01 section 2.3).
const TYPES: [&str; 3] = ["application/json", "application/octet-stream", "application/x-www-form-urlencoded"];

/// A body that will be read and decoded when the stack has decided that it may be.
pub(super) fn pending(
    connection: &Arc<Connection>,
    fields: &Fields<'_>,
    body: Incoming,
    model: ModelRef,
    wishes: Arc<OnceLock<Wishes>>,
) -> Pending {
    // Looked at now, told later: who may not call is not told what else was wrong.
    let form = form(fields);
    let connection = Arc::clone(connection);
    Pending::new(async move {
        let Form { json: length, coding } = form?;
        let bytes = body::read_coded(body, coding, length.unwrap_or(0), Arc::clone(&connection)).await?;
        connection.frontend.metrics.body_received(Surface::Rest, bytes.len() as u64);
        // Raw tensors are shared; some are looked through first.
        let work = length.map_or(bytes.len(), |length| match body::is_small(bytes.len()) {
            false if body::is_small(length) => framed::work(&bytes, length),
            // Not worth a look.
            _ => bytes.len(),
        });
        let (request, wished) = body::offload(work, move || {
            let settings = &connection.frontend.settings.wire;
            let counted = Counted::of(&bytes);
            let (request, wished) = match length {
                Some(length) => framed::decode_infer(&bytes, length, model, settings),
                None => json::decode_infer(&bytes, model, settings),
            }?;
            drop(bytes);
            Ok((connection.frontend.memory.hold_inputs(request, counted)?, wished))
        })
        .await?;
        if wished != Wishes::default() {
            // Set once: a body is decoded once.
            let _ = wishes.set(wished);
        }
        Ok(Operation::Infer(request))
    })
}

/// The same for a reply of events, which are text.
pub(super) fn pending_of_events(
    connection: &Arc<Connection>,
    fields: &Fields<'_>,
    body: Incoming,
    model: ModelRef,
) -> Pending {
    let wishes = Arc::new(OnceLock::new());
    let pending = pending(connection, fields, body, model, Arc::clone(&wishes));
    Pending::new(async move {
        let operation = pending.await?;
        match wishes.get().is_some_and(Wishes::any) {
            true => Err(Error::invalid("the request wants binary outputs, which an event cannot carry")),
            false => Ok(operation),
        }
    })
}

/// The coding of a body that is JSON and nothing else.
///
/// # Errors
///
/// What is no body of V2.
pub(super) fn json_only(fields: &Fields<'_>) -> Result<Option<Coding>, Error> {
    form(fields).map(|form| form.coding)
}

/// What the headers say of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    /// The length of the JSON part, inflated, if the client names one.
    json: Option<usize>,
    coding: Option<Coding>,
}

fn form(fields: &Fields<'_>) -> Result<Form, Error> {
    // As nearly all say it: no need to take it apart.
    if let Some(kind) = fields.content_type.filter(|kind| *kind != TYPES[0]) {
        let kind = kind.to_str().unwrap_or("?");
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.is_empty() && !TYPES.iter().any(|known| known.eq_ignore_ascii_case(essence)) {
            return Err(Error::UnsupportedMedia("unknown `content-type`, expected `application/json`".into()));
        }
    }
    let coding = fields.coding()?;
    let json = match fields.json_length {
        Single::Absent => None,
        Single::Once(length) => Some(number(length.as_bytes()).ok_or_else(|| {
            Error::invalid("`inference-header-content-length` is no length, expected decimal digits")
        })?),
        Single::Repeated => return Err(Error::invalid("there is more than one `inference-header-content-length`")),
    };
    Ok(Form { json, coding })
}

/// Digits only: `str::parse` would take a sign.
fn number(text: &[u8]) -> Option<usize> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use http::{HeaderMap, HeaderName, HeaderValue};

    fn form(pairs: &[(&'static str, &'static str)]) -> Result<Form, Error> {
        let fields = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        super::form(&Fields::of(&HeaderMap::from_iter(fields)))
    }

    #[test]
    fn the_types_that_clients_send_are_taken() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/octet-stream", ""] {
            assert!(form(&[("content-type", kind)]).is_ok(), "{kind}");
        }
        assert_eq!(form(&[]).unwrap(), Form { json: None, coding: None });
        let refused = form(&[("content-type", "text/xml")]).unwrap_err();
        assert_eq!(refused.code(), Code::UnsupportedMediaType);
    }

    #[test]
    fn a_length_is_digits() {
        let length = |text| form(&[("inference-header-content-length", text)]).map(|form| form.json);
        assert_eq!(length("253").unwrap(), Some(253));
        assert_eq!(length("0").unwrap(), Some(0));
        for text in ["", "-1", "+1", "1.0", "0x10", "99999999999999999999999", "1 2"] {
            assert_eq!(length(text).unwrap_err().code(), Code::InvalidArgument, "{text}");
        }
    }
}
