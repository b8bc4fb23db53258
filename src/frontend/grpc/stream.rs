//! `ModelStreamInfer`: the duplex loop over messages of the V2 protocol (contract 02 section 4).
//!
//! Knows messages and not their bytes: the method table opens the stream, limits its body and renders a refusal.

use super::{
    arriving,
    input::Input,
    parse::{Parsed, parse},
    single::Decoding,
    status,
};
use crate::{
    call::{
        Call, CallId, Credentials, Facts, Head, InferResponse, Inspect, Operation, Pending, Route, Surface,
        trace::TraceContext,
    },
    error::{Error, Stage},
    frontend::{
        Connection, Phase, Settings,
        duplex::{
            About, Ask, Beyond, Codec, Credit, Link, Opened, Order, Outbox, Pipe, Received, Rules, Sending, Session,
            Speaker, State, Ticket, Weigh, Why,
        },
    },
    wire::{
        EMPTY_FINAL, FINAL,
        proto::{
            self,
            inference::{
                InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
                infer_parameter::ParameterChoice,
            },
        },
        say_final,
        weight::text_of,
    },
};
use bytes::Bytes;
use futures_util::{Stream, future::BoxFuture};
use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{sync::mpsc::Receiver, time::Instant};
use tonic::{Status, codec::Streaming};

type Answer = Result<ModelStreamInferResponse, Status>;

/// What the client reads: one message per answer, and a status if the stream itself fails.
#[derive(Debug)]
pub(super) struct Answers(Receiver<Answer>);

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Opens a stream: asks the stack who is calling, and from then on makes every message a call.
///
/// `head` is the opening's own, of intent `inspect`, with `grpc-timeout` as its wish, which bounds the whole stream;
/// `strict` says that the metadata has `triton_grpc_error: true`: the first failure then ends the stream.
/// The caller has asked the address gate. The session ends when the answers are dropped.
///
/// # Errors
///
/// What the stack answers to the opening; nothing has been sent then.
pub(super) async fn serve(
    connection: Arc<Connection>,
    head: Head,
    sender: Credentials,
    strict: bool,
    messages: Streaming<Bytes>,
) -> Result<Answers, Error> {
    if *connection.frontend.phase.borrow() != Phase::Serving {
        return Err(Error::ShuttingDown);
    }
    let deadline = head.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let (id, facts, context) = (head.id.clone(), Arc::clone(&head.facts), head.facts.context.get().copied());
    let steered = head.facts.steered();
    let input = Pending::ready(Operation::Inspect(Inspect::Session));
    connection.frontend.gateway.call(Call { head, sender: sender.clone(), input }).await?;

    let (pipe, receiver) = Pipe::new();
    let limit = connection.frontend.settings.size.body;
    let link = Messages { connection: Arc::clone(&connection), messages, parsing: None, pipe, limit };
    let codec = Protocol { connection: Arc::clone(&connection), id, strict, deadline, context, next: 0 };
    let rules = rules(&connection.frontend.settings);
    let speaker = Speaker::proven(sender, facts).steered(steered);
    tokio::spawn(Session::new(connection, rules, speaker, codec, link).run());
    Ok(Answers(receiver))
}

fn rules(settings: &Settings) -> Rules {
    Rules {
        surface: Surface::Grpc,
        route: Route::GrpcStream,
        in_flight: settings.concurrency.per_grpc_stream,
        beyond: Beyond::Wait,
        order: Order::Whole,
        send_messages: settings.websocket.send_messages,
        send_bytes: settings.http2.stream_buffer,
        write_stall: settings.timers.write_stall,
        patient: true,
    }
}

/// Both directions of one stream.
struct Messages {
    connection: Arc<Connection>,
    messages: Streaming<Bytes>,
    /// The message that is being parsed off the lane. Those behind it wait, as they would on the lane.
    parsing: Option<BoxFuture<'static, Result<Parsed<ModelInferRequest>, Refused>>>,
    pipe: Pipe<Answer>,
    limit: usize,
}

/// A message that was not parsed, and the `id` that it had.
struct Refused {
    id: String,
    error: Error,
}

impl Weigh for Answer {
    fn weight(&self) -> usize {
        let response = self.as_ref().ok().and_then(|answer| answer.infer_response.as_ref());
        response.map_or(0, |response| response.raw_output_contents.iter().map(bytes::Bytes::len).sum())
    }
}

impl Link for Messages {
    type Received = Result<Parsed<ModelInferRequest>, Refused>;
    type Frame = Answer;

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received<Self::Received>> {
        if let Some(parsing) = &mut self.parsing {
            let parsed = ready!(parsing.as_mut().poll(cx));
            self.parsing = None;
            return Poll::Ready(received(parsed));
        }
        Poll::Ready(match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
            Some(Ok(message)) => {
                let refused = {
                    let message = message.clone();
                    move |error| Refused { id: text_of(&message, ID).to_owned(), error }
                };
                match parse(&self.connection, message, |_, parsed| {
                    // It is converted later, and back on the lane.
                    Decoding::Now(Ok(Parsed { off_lane: false, ..parsed }))
                }) {
                    Decoding::Now(parsed) => received(parsed.map_err(refused)),
                    Decoding::Later(later) => {
                        let parsing = Box::pin(async move { later.await.map_err(refused) });
                        let parsed = ready!(self.parsing.insert(parsing).as_mut().poll(cx));
                        self.parsing = None;
                        received(parsed)
                    }
                }
            }
            None => Received::Over,
            Some(Err(status)) => match arriving::error(&status, self.limit) {
                Error::Cancelled => Received::Closed,
                error => Received::Fault(Why::Error(error)),
            },
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox<Answer>) -> Sending {
        self.pipe.poll_drain(cx, outbox, Outbox::pop)
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<()> {
        self.pipe.close();
        Poll::Ready(())
    }
}

/// What is no message ends the stream; what only asks for too much is answered like any other request.
fn received<M>(parsed: Result<M, Refused>) -> Received<Result<M, Refused>> {
    match parsed {
        Err(Refused { error: error @ Error::MalformedMessage(_), .. }) => Received::Fault(Why::Error(error)),
        parsed => Received::Frame(parsed),
    }
}

/// The number of `id` in a request.
const ID: u32 = 3;

/// What a message says about its answers.
#[derive(Debug)]
struct Note {
    id: String,
    empty_final: bool,
    typed: bool,
}

/// The session of one stream.
struct Protocol {
    connection: Arc<Connection>,
    /// Names the stream in its last status.
    id: CallId,
    strict: bool,
    deadline: Option<Instant>,
    /// Whose work the stream is part of.
    context: Option<TraceContext>,
    /// Messages so far: ids need not differ, or be there.
    next: u64,
}

/// `error` is empty for what is none.
const fn answer(response: ModelInferResponse, error: String) -> Answer {
    Ok(ModelStreamInferResponse { error_message: error, infer_response: Some(response) })
}

/// Without outputs, about the request of `note`, and about the model if it came that far.
fn about(note: &Note, facts: Option<&Facts>) -> ModelInferResponse {
    let model = facts.and_then(|facts| facts.model.get());
    ModelInferResponse {
        id: note.id.clone(),
        model_name: model.map_or_else(String::new, |model| model.name.as_ref().into()),
        model_version: model.map_or_else(String::new, |model| model.version.as_ref().into()),
        ..ModelInferResponse::default()
    }
}

impl Codec for Protocol {
    type Tag = u64;
    type Note = Note;
    type Received = Result<Parsed<ModelInferRequest>, Refused>;
    type Frame = Answer;

    fn receive(&mut self, parsed: Self::Received, out: &mut Outbox<Answer>) -> Result<Ask<u64, Note>, Why> {
        self.next += 1;
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(Refused { id, error }) => {
                return Ok(Ask::Refuse(self.next, Note { id, empty_final: false, typed: false }, error));
            }
        };
        let message = &parsed.message;
        let empty_final = matches!(
            message.parameters.get(EMPTY_FINAL),
            Some(InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) })
        );
        let typed = self.connection.frontend.settings.grpc.mirror && proto::is_typed(message);
        let note = Note { id: message.id.clone(), empty_final, typed };
        let connection = Arc::clone(&self.connection);
        let input = Input::of(parsed);
        let ticket = Ticket::new(note, Credit::Unlimited);
        Ok(Ask::Call(Opened {
            tag: self.next,
            ticket,
            streams: true,
            credited: false,
            context: self.context,
            timeout: self.deadline.map(|deadline| deadline.saturating_duration_since(out.now())),
            size: 0,
            input: Pending::new(async move { input.decoding(&connection).wait().await }),
        }))
    }

    fn proved(&mut self, _: Result<(), Error>, _: &mut Outbox<Answer>) -> Result<(), Why> {
        Ok(())
    }

    fn work(note: &Note, response: &InferResponse) -> usize {
        if note.typed { response.bytes() } else { 0 }
    }

    fn encode(
        connection: &Connection,
        about: &About<'_, u64, Note>,
        last: bool,
        mut response: InferResponse,
    ) -> Result<Answer, Error> {
        say_final(&mut response, last);
        let mut response = proto::encode_infer(response, about.note.typed);
        connection.frontend.memory.hold_all(&mut response.raw_output_contents)?;
        if response.id.is_empty() {
            response.id.clone_from(&about.note.id);
        }
        Ok(answer(response, String::new()))
    }

    fn output(&mut self, frame: Answer, out: &mut Outbox<Answer>) {
        out.push(frame);
    }

    fn done(&mut self, call: About<'_, u64, Note>, out: &mut Outbox<Answer>) {
        if call.note.empty_final {
            let mut response = about(call.note, call.facts);
            let last = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
            response.parameters = HashMap::from([(FINAL.to_owned(), last)]);
            out.push(answer(response, String::new()));
        }
    }

    fn cancelled(&mut self, _: &u64, _: &mut Outbox<Answer>) {}

    fn failed(&mut self, call: About<'_, u64, Note>, error: &Error, out: &mut Outbox<Answer>) -> Result<(), Why> {
        if self.strict {
            return Err(Why::Error(error.clone()));
        }
        // Only a failure of the run itself names the model (contract 02 section 4, item 3).
        let ran = call.facts.filter(|facts| facts.stage() >= Stage::Running);
        out.push(answer(about(call.note, ran), error.to_string()));
        Ok(())
    }

    fn duplicate(&mut self, _: &u64, _: &mut Outbox<Answer>) -> Result<(), Why> {
        Ok(())
    }

    fn unauthenticated(&mut self, _: &mut Outbox<Answer>) -> Result<(), Why> {
        // There is no way to renew credentials here (contract 06 C1).
        Err(Why::Error(Error::Unauthenticated))
    }

    fn draining(&mut self, _: Duration, _: &mut Outbox<Answer>) {}

    fn farewell(&mut self, why: &Why, out: &mut Outbox<Answer>) {
        let error = match why {
            Why::Done | Why::Idle | Why::SlowConsumer | Why::Gone | Why::Lost => return,
            Why::Draining => &Error::ShuttingDown,
            Why::Error(error) => error,
            Why::Fault(_, reason) => &Error::invalid(reason.clone()),
        };
        out.push(Err(status(error, &self.id)));
    }

    fn deadline(&self, _: State) -> Option<Instant> {
        self.deadline
    }

    fn due(&mut self, state: State, _: &mut Outbox<Answer>) -> Result<(), Why> {
        match self.deadline {
            Some(deadline) if deadline <= state.now => {
                // What runs has the same deadline, and says so itself before the stream ends with it.
                self.deadline = None;
                Err(Why::Error(Error::DeadlineExceeded { stage: Stage::Streaming }))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
