//! What is noted of a call that is traced, and the W3C context that it may come with.
//!
//! Knows times and names, not who collects them: a [`Trace`] hands itself to a [`Sink`] when the last one who had a part in
//! the call lets go of it, be that the lane that wrote the answer or the thread that ran the batch. A call that is not
//! traced has none, and each place that would note something asks one atomic for it.

use super::{CallId, End, Head, Intent, ModelKey, Route, Surface, random};
use smallvec::SmallVec;
use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Spans that one trace may have below its call: those of the stages, and one for each retry of a batch.
const SPANS: usize = 32;

/// The name of a trace: never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// The name of a span: never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

/// Whose work a call is part of (W3C Trace Context, `traceparent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span that waits for the call.
    pub span: SpanId,
    /// Whether the one that waits records its part.
    pub sampled: bool,
}

/// Takes traces that are complete. Must not wait: it is called on lanes and on inference threads.
pub trait Sink: Send + Sync {
    /// A call and everything that was done for it is over.
    fn complete(&self, record: Record);
}

/// What is noted of one call. Its last holder hands it over.
pub struct Trace {
    id: TraceId,
    span: SpanId,
    state: Mutex<State>,
    sink: Arc<dyn Sink>,
}

struct State {
    record: Record,
    /// Where the next chunk's time would count from, and how many there were.
    streaming: Option<(Instant, u64)>,
}

/// A call that is over, as it is told to collectors.
#[derive(Clone, Debug)]
pub struct Record {
    /// The trace.
    pub trace: TraceId,
    /// The call's own span.
    pub span: SpanId,
    /// Who waits for it, if it said so.
    pub parent: Option<SpanId>,
    /// Its name in logs and answers.
    pub call: CallId,
    /// How it came.
    pub surface: Surface,
    /// Where it came in.
    pub route: Route,
    /// What kind of work it is.
    pub intent: Intent,
    /// Whether it is a part of another call that an ensemble makes, and nobody's own.
    pub step: bool,
    /// When its head was known.
    pub begun: Instant,
    /// When its reply was over; the moment it was received if nobody said so.
    pub over: Instant,
    /// How it ended.
    pub end: End,
    /// The model, as the repository knows it.
    pub model: Option<Arc<ModelKey>>,
    /// Its parts, in the order in which they ended.
    pub spans: SmallVec<[Span; 6]>,
}

/// One part of a call.
#[derive(Clone, Debug)]
pub struct Span {
    /// What was done: `decode`, `cache`, `shared`, `queue`, `run`, `batch`, `builtin`, `stream`, `encode`.
    pub name: &'static str,
    /// Its own name.
    pub id: SpanId,
    /// The part that it is part of; `None`: of the call itself.
    pub parent: Option<SpanId>,
    /// When it began.
    pub begun: Instant,
    /// When it ended.
    pub over: Instant,
    /// Numbers that say more.
    pub numbers: SmallVec<[(&'static str, u64); 2]>,
    /// Spans that it has to do with, of this trace or others.
    pub links: Vec<(TraceId, SpanId)>,
}

/// One run of a batch, as its scheduler saw it.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// When it began.
    pub begun: Instant,
    /// When its outputs were there.
    pub over: Instant,
    /// Rows of the batch.
    pub rows: usize,
    /// Jobs of the batch, traced or not.
    pub jobs: usize,
}

// === impl TraceContext ===

impl TraceContext {
    /// Reads a `traceparent`. What is not one is nobody's (contract 00 section 5: never an error).
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(55)?;
        let [v0, v1, b'-', ids @ .., b'-', f0, f1] = head else { return None };
        let version = byte(*v0, *v1)?;
        // A later version may say more behind what this one knows.
        let follows = match version {
            0xff => false,
            0 => rest.is_empty(),
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !follows || ids.get(32) != Some(&b'-') {
            return None;
        }
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        fill(&mut trace, ids.get(..32)?)?;
        fill(&mut span, ids.get(33..)?)?;
        let sampled = byte(*f0, *f1)? & 1 == 1;
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace: TraceId(trace), span: SpanId(span), sampled })
    }
}

/// Two digits of lower case, as the recommendation wants them.
fn byte(high: u8, low: u8) -> Option<u8> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    Some(digit(high)? << 4 | digit(low)?)
}

fn fill(bytes: &mut [u8], digits: &[u8]) -> Option<()> {
    for (place, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *place = byte(pair[0], pair[1])?;
    }
    Some(())
}

// === impl TraceId, SpanId ===

impl TraceId {
    /// A new one.
    pub fn make() -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random().to_be_bytes());
        bytes[8..].copy_from_slice(&(random() | 1).to_be_bytes());
        Self(bytes)
    }

    /// Its bytes, first ones first.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl SpanId {
    /// A new one.
    pub fn make() -> Self {
        Self((random() | 1).to_be_bytes())
    }

    /// Its bytes, first ones first.
    pub const fn bytes(self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Trace ===

impl Trace {
    /// A trace of the call with this head, part of what waits for it.
    pub fn of(head: &Head, sink: Arc<dyn Sink>) -> Self {
        let context = head.facts.context.get();
        let (id, span) = (context.map_or_else(TraceId::make, |context| context.trace), SpanId::make());
        let record = Record {
            trace: id,
            span,
            parent: context.map(|context| context.span),
            call: head.id.clone(),
            surface: head.surface,
            route: head.route,
            intent: head.intent,
            step: false,
            begun: head.received,
            over: head.received,
            end: End::Abandoned,
            model: None,
            spans: SmallVec::new(),
        };
        Self { id, span, state: Mutex::new(State { record, streaming: None }), sink }
    }

    /// A trace of a step that begins now, part of the call of `whole`.
    pub fn step_of(whole: &Self) -> Self {
        let (id, span, now) = (whole.id, SpanId::make(), Instant::now());
        let state = whole.state();
        // By its parts: the spans that the call has by now are not the step's.
        let record = Record {
            trace: id,
            span,
            parent: Some(whole.span),
            call: state.record.call.clone(),
            surface: state.record.surface,
            route: state.record.route,
            intent: state.record.intent,
            step: true,
            begun: now,
            over: now,
            end: End::Abandoned,
            model: None,
            spans: SmallVec::new(),
        };
        drop(state);
        Self { id, span, state: Mutex::new(State { record, streaming: None }), sink: Arc::clone(&whole.sink) }
    }

    /// Its name.
    pub const fn id(&self) -> TraceId {
        self.id
    }

    /// A part of the call.
    pub fn note(&self, name: &'static str, begun: Instant, over: Instant) {
        self.state().record.note(Span::new(name, begun, over));
    }

    /// A chunk of the reply passed by.
    pub fn chunk(&self) {
        let mut state = self.state();
        let (_, chunks) = state.streaming.get_or_insert_with(|| (Instant::now(), 0));
        *chunks += 1;
    }

    /// The reply is over. Others may still have a part to note.
    pub fn end(&self, end: End, over: Instant, model: Option<&Arc<ModelKey>>) {
        let mut state = self.state();
        if let Some((begun, chunks)) = state.streaming.take() {
            let mut span = Span::new("stream", begun, over);
            span.numbers.push(("chunks", chunks));
            state.record.note(span);
        }
        (state.record.end, state.record.over) = (end, over);
        state.record.model = model.cloned();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing done under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes that the calls `traced` were run together, each after it had waited since the moment beside it.
///
/// Each has a part `run`, in its own trace. Of a batch of several jobs there is one part `batch`, in the trace of the
/// first, which every `run` links to and which links to every call: whoever looks at one finds the others.
pub fn ran(traced: &[(&Trace, Instant)], run: Run) {
    let mut batch: Option<(TraceId, SpanId)> = None;
    for (place, (trace, queued)) in traced.iter().enumerate() {
        let mut state = trace.state();
        state.record.note(Span::new("queue", *queued, run.begun.max(*queued)));
        let mut own = Span::new("run", run.begun, run.over);
        own.numbers.extend([("rows", run.rows as u64), ("jobs", run.jobs as u64)]);
        if run.jobs > 1 {
            let of = *batch.get_or_insert_with(|| (trace.id, SpanId::make()));
            own.links.push(of);
            if place == 0 {
                let mut all = Span { id: of.1, parent: Some(own.id), ..Span::new("batch", run.begun, run.over) };
                all.numbers.clone_from(&own.numbers);
                all.links = traced.iter().map(|(trace, _)| (trace.id, trace.span)).collect();
                state.record.note(all);
            }
        }
        state.record.note(own);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let spans = mem::take(&mut state.record.spans);
        let record = Record { spans, ..state.record.clone() };
        self.sink.complete(record);
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("id", &self.id).field("span", &self.span).finish_non_exhaustive()
    }
}

// === impl Record, Span ===

impl Record {
    fn note(&mut self, span: Span) {
        if self.spans.len() < SPANS {
            self.spans.push(span);
        }
    }
}

impl Span {
    fn new(name: &'static str, begun: Instant, over: Instant) -> Self {
        Self { name, id: SpanId::make(), parent: None, begun, over, numbers: SmallVec::new(), links: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Peer;

    const CONTEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[derive(Default)]
    struct Seen(Mutex<Vec<Record>>);

    impl Sink for Seen {
        fn complete(&self, record: Record) {
            self.0.lock().unwrap().push(record);
        }
    }

    fn head() -> Head {
        let address = ([127, 0, 0, 1], 1).into();
        let peer = Arc::new(Peer::new(address, address));
        Head::new(CallId::make(), Surface::Rest, Intent::Infer, peer)
    }

    #[test]
    fn a_context_is_read_as_the_recommendation_has_it() {
        let context = TraceContext::parse(CONTEXT.as_bytes()).unwrap();
        assert_eq!(context.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((context.span.to_string().as_str(), context.sampled), ("b7ad6b7169203331", true));
        assert!(!TraceContext::parse(CONTEXT.replace("-01", "-00").as_bytes()).unwrap().sampled);
        // A later version may have more behind it, and other flags.
        let later = format!("cc{}-what", &CONTEXT[2..]);
        assert_eq!(TraceContext::parse(later.as_bytes()), Some(context));
    }

    #[test]
    fn what_is_no_context_is_nobodys() {
        for wrong in [
            "",
            "00",
            &CONTEXT.to_uppercase(),
            &CONTEXT[..54],
            &format!("{CONTEXT}-more"),
            &format!("cc{}x", &CONTEXT[2..]),
            &format!("ff{}", &CONTEXT[2..]),
            &CONTEXT.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert_eq!(TraceContext::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn the_last_who_holds_a_trace_hands_it_over_with_its_parts() {
        let sink = Arc::new(Seen::default());
        let head = head();
        head.facts.context.set(TraceContext::parse(CONTEXT.as_bytes()).unwrap()).unwrap();
        let trace = Arc::new(Trace::of(&head, Arc::clone(&sink) as Arc<dyn Sink>));
        let (other, now) = (Arc::clone(&trace), Instant::now());
        trace.note("decode", now, now);
        trace.end(End::Complete, now, None);
        drop(trace);
        assert!(sink.0.lock().unwrap().is_empty());
        other.note("encode", now, now);
        drop(other);
        let seen = sink.0.lock().unwrap();
        let [record] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!(record.parent.unwrap().to_string(), "b7ad6b7169203331");
        assert_eq!(record.spans.iter().map(|span| span.name).collect::<Vec<_>>(), ["decode", "encode"]);
        assert_eq!(record.end, End::Complete);
    }

    #[test]
    fn calls_that_ran_together_find_each_other() {
        let sink = Arc::new(Seen::default());
        let traces = [(); 2].map(|()| Trace::of(&head(), Arc::clone(&sink) as Arc<dyn Sink>));
        let now = Instant::now();
        let calls: Vec<_> = traces.iter().map(|trace| (trace.id, trace.span)).collect();
        ran(&[(&traces[0], now), (&traces[1], now)], Run { begun: now, over: now, rows: 6, jobs: 3 });
        drop(traces);
        let seen = sink.0.lock().unwrap();
        let part = |at: usize, name| seen[at].spans.iter().find(|span| span.name == name);
        let batch = part(0, "batch").unwrap();
        assert_eq!(batch.links, calls);
        assert_eq!(batch.parent, Some(part(0, "run").unwrap().id));
        assert!(part(1, "batch").is_none());
        for at in 0..2 {
            assert_eq!(part(at, "run").unwrap().links, [(seen[0].trace, batch.id)]);
            assert_eq!(part(at, "run").unwrap().numbers.as_slice(), [("rows", 6), ("jobs", 3)]);
        }
    }

    #[test]
    fn a_trace_does_not_grow_without_bound() {
        let sink = Arc::new(Seen::default());
        let trace = Trace::of(&head(), Arc::clone(&sink) as Arc<dyn Sink>);
        let now = Instant::now();
        (0..100).for_each(|_| trace.note("decode", now, now));
        drop(trace);
        assert_eq!(sink.0.lock().unwrap()[0].spans.len(), SPANS);
    }
}
