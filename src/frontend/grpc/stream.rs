//! `ModelStreamInfer`: the duplex loop over messages of the V2 protocol (contract 02 section 4).
//!
//! Knows messages and not their bytes: the method table opens the stream, limits its body and renders a refusal.

use super::{arriving, input::Input, status};
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
    },
};
use futures_util::Stream;
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
    messages: Streaming<ModelInferRequest>,
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
    let link = Messages { messages, pipe, limit: connection.frontend.settings.size.body };
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
    messages: Streaming<ModelInferRequest>,
    pipe: Pipe<Answer>,
    limit: usize,
}

impl Weigh for Answer {
    fn weight(&self) -> usize {
        let response = self.as_ref().ok().and_then(|answer| answer.infer_response.as_ref());
        response.map_or(0, |response| response.raw_output_contents.iter().map(bytes::Bytes::len).sum())
    }
}

impl Link for Messages {
    type Received = ModelInferRequest;
    type Frame = Answer;

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received<ModelInferRequest>> {
        Poll::Ready(match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
            Some(Ok(message)) => Received::Frame(message),
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
    type Received = ModelInferRequest;
    type Frame = Answer;

    fn receive(&mut self, message: ModelInferRequest, out: &mut Outbox<Answer>) -> Result<Ask<u64, Note>, Why> {
        self.next += 1;
        let empty_final = matches!(
            message.parameters.get(EMPTY_FINAL),
            Some(InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) })
        );
        let typed = self.connection.frontend.settings.grpc.mirror && proto::is_typed(&message);
        let note = Note { id: message.id.clone(), empty_final, typed };
        let connection = Arc::clone(&self.connection);
        let input = match Input::hold(&connection, message) {
            Ok(input) => input,
            Err(error) => return Ok(Ask::Refuse(self.next, note, error)),
        };
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
