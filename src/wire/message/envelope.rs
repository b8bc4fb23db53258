//! What has to be known of a message before there is a call.

use super::skim::{Malformed, Members};
use crate::{call::trace::TraceContext, error::Error};
use std::{borrow::Cow, time::Duration};

/// The longest `id` (contract 06 C3).
pub(super) const ID: usize = 64;

/// What a message is, from a client (contract 06 C3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Begins a session.
    Hello,
    /// A request.
    Infer,
    /// A piece of a request.
    Input,
    /// Allows more `output` messages.
    Credit,
    /// Takes a request back.
    Cancel,
    /// Asks for a `pong`.
    Ping,
    /// Answers a `ping`.
    Pong,
    /// Renews credentials.
    Auth,
    /// There will be no more requests.
    Bye,
}

/// What has to be known of a message before there is a call. Members that do not matter to its kind may be anything.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// What the message is.
    pub kind: Kind,
    /// `id`, if it is a valid one.
    pub id: Option<&'a str>,
    /// What else is wrong, if something is; to be said with the `id`.
    pub wrong: Option<Error>,
    /// `timeout_ms`; 0 counts as absent, and what is no number is left to the decoder.
    pub timeout: Option<Duration>,
    /// `stream`: whether the reply may come in pieces.
    pub stream: bool,
    /// `credit` of an `infer`.
    pub credit: Option<u32>,
    /// `add` of a `credit`.
    pub add: u32,
    /// `binary_outputs`, if it was said.
    pub binary_outputs: Option<bool>,
    /// `input_stream`: whether more inputs follow.
    pub input_stream: bool,
    /// `trace.traceparent` of a `hello` or an `infer`; what is none is left out, as a header would be.
    pub context: Option<TraceContext>,
    /// `t` of a `ping`, as JSON.
    pub t: Option<&'a str>,
    /// `inputs`, not looked at.
    pub(super) inputs: Option<&'a [u8]>,
}

impl<'a> Envelope<'a> {
    /// Looks at a message.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`] if it is no JSON object, or its `type` is missing or unknown: then it is no message.
    pub fn peek(json: &'a [u8]) -> Result<Self, Error> {
        let malformed = |Malformed| Error::invalid("the message is no JSON object");
        let mut members = Members::of(json).map_err(malformed)?;
        let mut raw = Raw::default();
        while let Some((name, value)) = members.next().map_err(malformed)? {
            raw.take(name, value);
        }
        let kind = raw.kind.and_then(text).ok_or_else(|| Error::invalid("the message has no `type`"))?;
        let kind = Kind::parse(&kind).ok_or_else(|| {
            let kind: String = kind.chars().take(24).collect();
            Error::invalid(format!("the message has the unknown `type` `{kind}`"))
        })?;
        Ok(raw.envelope(kind))
    }
}

// === impl Kind ===

impl Kind {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "hello" => Self::Hello,
            "infer" => Self::Infer,
            "input" => Self::Input,
            "credit" => Self::Credit,
            "cancel" => Self::Cancel,
            "ping" => Self::Ping,
            "pong" => Self::Pong,
            "auth" => Self::Auth,
            "bye" => Self::Bye,
            _ => return None,
        })
    }

    /// Whether a message of this kind is about a request.
    pub const fn needs_id(self) -> bool {
        matches!(self, Self::Infer | Self::Input | Self::Credit | Self::Cancel)
    }
}

/// Members as they were written.
#[derive(Debug, Default)]
struct Raw<'a> {
    kind: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    timeout: Option<&'a [u8]>,
    stream: Option<&'a [u8]>,
    credit: Option<&'a [u8]>,
    add: Option<&'a [u8]>,
    binary_outputs: Option<&'a [u8]>,
    input_stream: Option<&'a [u8]>,
    t: Option<&'a [u8]>,
    trace: Option<&'a [u8]>,
    inputs: Option<&'a [u8]>,
}

impl<'a> Raw<'a> {
    fn take(&mut self, name: &[u8], value: &'a [u8]) {
        let member = match name {
            b"type" => &mut self.kind,
            b"id" => &mut self.id,
            b"timeout_ms" => &mut self.timeout,
            b"stream" => &mut self.stream,
            b"credit" => &mut self.credit,
            b"add" => &mut self.add,
            b"binary_outputs" => &mut self.binary_outputs,
            b"input_stream" => &mut self.input_stream,
            b"t" => &mut self.t,
            b"trace" => &mut self.trace,
            b"inputs" => &mut self.inputs,
            _ => return,
        };
        // The first one counts here; the decoder refuses a name that stands twice.
        if value != b"null" && member.is_none() {
            *member = Some(value);
        }
    }

    fn envelope(self, kind: Kind) -> Envelope<'a> {
        let mut wrong = None;
        let mut note = |name: &str, value: &[u8], expected: &str| {
            let found: String = String::from_utf8_lossy(value).chars().take(24).collect();
            wrong.get_or_insert_with(|| Error::invalid(format!("`{name}` is {found}, expected {expected}")));
        };
        let mut flag = |name, value: Option<&[u8]>| match value {
            None => None,
            Some(b"true") => Some(true),
            Some(b"false") => Some(false),
            Some(other) => {
                note(name, other, "`true` or `false`");
                None
            }
        };
        let (mut stream, mut binary_outputs, mut input_stream) = (None, None, None);
        if kind == Kind::Infer {
            stream = flag("stream", self.stream);
            binary_outputs = flag("binary_outputs", self.binary_outputs);
            input_stream = flag("input_stream", self.input_stream);
        }
        let credit = self.credit.filter(|_| kind == Kind::Infer).and_then(|value| {
            let credit = number(value).map(|credit| u32::try_from(credit).unwrap_or(u32::MAX));
            if credit.is_none() {
                note("credit", value, "an integer of at least 0");
            }
            credit
        });
        let mut add = 0;
        if kind == Kind::Credit {
            let value = self.add.unwrap_or(b"nothing");
            match number(value) {
                Some(number @ 1..) => add = u32::try_from(number).unwrap_or(u32::MAX),
                _ => note("add", value, "an integer of at least 1"),
            }
        }
        let timeout = self.timeout.and_then(number).filter(|number| *number > 0).map(Duration::from_millis);
        Envelope {
            kind,
            id: self.id.and_then(id),
            wrong,
            timeout,
            stream: stream.unwrap_or(false),
            credit,
            add,
            binary_outputs,
            input_stream: input_stream.unwrap_or(false),
            context: self.trace.and_then(context),
            t: self.t.and_then(value),
            inputs: self.inputs,
        }
    }
}

/// Whether `id` names a request: 1 to 64 characters of `A-Za-z0-9._-` (contract 06 C3).
pub fn is_valid_id(id: &[u8]) -> bool {
    (1..=ID).contains(&id.len()) && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn id(value: &[u8]) -> Option<&str> {
    // No escape is needed for these characters, and none is taken.
    let [b'"', id @ .., b'"'] = value else { return None };
    if is_valid_id(id) { std::str::from_utf8(id).ok() } else { None }
}

fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let [b'"', inner @ .., b'"'] = value else { return None };
    if inner.contains(&b'\\') {
        return serde_json::from_slice::<String>(value).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

/// An integer without a sign, however it may be spelled beyond that.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |number: u64, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
}

/// `{"traceparent": "…"}`. Never an error (contract 00 section 5).
fn context(value: &[u8]) -> Option<TraceContext> {
    let mut members = Members::of(value).ok()?;
    while let Some((name, value)) = members.next().ok()? {
        if let (b"traceparent", [b'"', text @ .., b'"']) = (name, value) {
            return TraceContext::parse(text);
        }
    }
    None
}

/// Any JSON value, checked: it will be said back.
fn value(value: &[u8]) -> Option<&str> {
    serde_json::from_slice::<&serde_json::value::RawValue>(value).ok().map(serde_json::value::RawValue::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_seen_without_its_tensors() {
        let json = br#"{"type":"infer","inputs":[{"data":[1,,]}],"id":"a-1._B","stream":true,"credit":3,
            "timeout_ms":250,"binary_outputs":false,"model":"m"}"#;
        let envelope = Envelope::peek(json).unwrap();
        assert_eq!((envelope.kind, envelope.id), (Kind::Infer, Some("a-1._B")));
        assert_eq!((envelope.stream, envelope.credit, envelope.binary_outputs), (true, Some(3), Some(false)));
        assert_eq!(envelope.timeout, Some(Duration::from_millis(250)));
        assert_eq!(envelope.inputs, Some(&br#"[{"data":[1,,]}]"#[..]));
        assert!(envelope.wrong.is_none() && !envelope.input_stream);
    }

    #[test]
    fn a_message_says_whose_work_it_is_part_of() {
        let context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let peek = |trace: &str| {
            let json = format!("{{\"type\":\"infer\",\"trace\":{trace}}}");
            Envelope::peek(json.as_bytes()).unwrap().context
        };
        let found = peek(&format!("{{\"tracestate\":\"a=b\",\"traceparent\":\"{context}\"}}")).unwrap();
        assert_eq!(found, TraceContext::parse(context.as_bytes()).unwrap());
        for nobody in ["null", "{}", "[]", "7", "{\"traceparent\":\"00-x\"}", "{\"traceparent\":7}", "\"traceparent\""]
        {
            assert_eq!(peek(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (json, reason) in [
            ("[]", "the message is no JSON object"),
            ("{\"type\":\"infer\"", "the message is no JSON object"),
            ("{}", "the message has no `type`"),
            ("{\"type\":1}", "the message has no `type`"),
            ("{\"type\":\"shout\"}", "the message has the unknown `type` `shout`"),
        ] {
            assert_eq!(Envelope::peek(json.as_bytes()).unwrap_err().to_string(), reason, "{json}");
        }
        assert_eq!(Envelope::peek(br#"{"type":"\u0070ing"}"#).unwrap().kind, Kind::Ping);
    }

    #[test]
    fn only_a_valid_id_is_an_id() {
        let long = "x".repeat(65);
        for id in ["", "a b", "ü", "a\\u0062", &long] {
            let json = format!("{{\"type\":\"cancel\",\"id\":\"{id}\"}}");
            assert_eq!(Envelope::peek(json.as_bytes()).unwrap().id, None, "{id}");
        }
        assert_eq!(Envelope::peek(br#"{"type":"cancel","id":7}"#).unwrap().id, None);
        assert_eq!(
            Envelope::peek(format!("{{\"type\":\"cancel\",\"id\":\"{}\"}}", &long[1..]).as_bytes()).unwrap().id,
            Some(&long[1..])
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_the_id() {
        for (json, reason) in [
            (r#"{"type":"credit","id":"a"}"#, "`add` is nothing, expected an integer of at least 1"),
            (r#"{"type":"credit","id":"a","add":0}"#, "`add` is 0, expected an integer of at least 1"),
            (r#"{"type":"infer","id":"a","stream":1}"#, "`stream` is 1, expected `true` or `false`"),
            (r#"{"type":"infer","id":"a","credit":-1}"#, "`credit` is -1, expected an integer of at least 0"),
        ] {
            let envelope = Envelope::peek(json.as_bytes()).unwrap();
            assert_eq!(envelope.wrong.unwrap().to_string(), reason);
            assert_eq!(envelope.id, Some("a"));
        }
        assert_eq!(Envelope::peek(br#"{"type":"credit","id":"a","add":99999999999999999999}"#).unwrap().add, u32::MAX);
    }

    #[test]
    fn what_is_said_back_is_json() {
        assert_eq!(Envelope::peek(br#"{"type":"ping","t":{"a":[1]}}"#).unwrap().t, Some(r#"{"a":[1]}"#));
        assert_eq!(Envelope::peek(br#"{"type":"ping","t":[1,,2]}"#).unwrap().t, None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::peek(&json);
        }
    }
}
