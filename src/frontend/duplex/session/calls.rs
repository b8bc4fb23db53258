//! What becomes of the calls of a session: opened, answered in order, refused, taken back.

use super::{BURST, Entry, Life, Session};
use crate::{
    call::{Call, CallId, Head, InferResponse, Intent, Surface},
    error::{Error, Limit},
    frontend::{
        body,
        duplex::{
            About, Ask, Codec, Link, Opened, Order, Why,
            exchange::{Event, Exchange},
        },
    },
};
use futures_util::Stream;
use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

impl<C, L> Session<C, L>
where
    C: Codec,
    L: Link<Received = C::Received, Frame = C::Frame>,
{
    pub(super) fn take(&mut self, ask: Ask<C::Tag, C::Note>) {
        // What asks for nothing is a frame that keeps the session going.
        if !matches!(ask, Ask::Nothing) {
            self.connection.frontend.metrics.message_received(self.rules.surface);
        }
        match ask {
            Ask::Nothing => {}
            Ask::Call(opened) => self.open(opened),
            Ask::Refuse(tag, note, error) => {
                if self.entries.contains_key(&tag) {
                    self.duplicate(&tag);
                } else {
                    self.refuse(&tag, &note, &error);
                }
            }
            Ask::Fail(tag, note, error) => {
                let entry = self.entries.remove(&tag).inspect(|entry| self.forget(entry));
                self.refuse(&tag, &note, &error);
                if entry.is_some() {
                    self.release();
                }
            }
            Ask::Cancel(tag) => {
                if let Some(entry) = self.entries.remove(&tag) {
                    self.forget(&entry);
                    let before = self.outbox.pushed();
                    self.codec.cancelled(&tag, &mut self.outbox);
                    self.count_sent(before);
                    self.release();
                }
            }
            Ask::Credit(tag, add) => {
                if let Some(entry) = self.entries.get(&tag) {
                    entry.ticket.allow(add);
                }
            }
            Ask::Prove(credentials) => self.proving = Some(self.prove(credentials)),
            Ask::Finish(why) => self.finish(why),
        }
    }

    pub(super) fn head(&self, intent: Intent, timeout: Option<Duration>) -> Head {
        let head = Head::new(CallId::make(), self.rules.surface, intent, Arc::clone(&self.connection.peer));
        head.at(self.rules.route).with_timeout(timeout)
    }

    fn open(&mut self, opened: Opened<C::Tag, C::Note>) {
        let Opened { tag, ticket, streams, credited, timeout, context, size, input } = opened;
        if self.entries.contains_key(&tag) {
            return self.duplicate(&tag);
        }
        if self.draining {
            return self.refuse(&tag, &ticket.note, &Error::ShuttingDown);
        }
        match &self.life {
            // What ends the session is why it takes no more calls.
            Life::Finishing(Why::Error(error)) => {
                let error = error.clone();
                return self.refuse(&tag, &ticket.note, &error);
            }
            Life::Finishing(_) => {
                return self.refuse(&tag, &ticket.note, &Error::invalid("a request after the client's goodbye"));
            }
            Life::Open | Life::Closing(_) => {}
        }
        if self.entries.len() >= self.rules.in_flight {
            return self.refuse(&tag, &ticket.note, &Error::Overloaded { limit: Limit::Session });
        }
        self.serial += 1;
        let serial = self.serial;
        let head = self.head(Intent::Infer, timeout).part_of(context.or_else(|| self.codec.context()));
        let head = head.steered(self.steered.clone());
        let entry = Entry {
            serial,
            ticket: Arc::clone(&ticket),
            facts: Arc::clone(&head.facts),
            streams,
            credited,
            seq: 0,
            received: size,
            sent: 0,
            only: None,
            held: None,
        };
        self.credited += usize::from(credited);
        self.entries.insert(tag.clone(), entry);
        if self.rules.order != Order::Any {
            self.order.push_back((tag.clone(), serial));
        }
        let call =
            self.connection.frontend.gateway.call(Call { head, sender: self.speaker.credentials.clone(), input });
        self.running.push(Exchange::new(tag, serial, ticket, call));
    }

    fn duplicate(&mut self, tag: &C::Tag) {
        if let Err(why) = self.codec.duplicate(tag, &mut self.outbox) {
            self.fault(why);
        }
    }

    /// Answers what never became a call.
    fn refuse(&mut self, tag: &C::Tag, note: &C::Note, error: &Error) {
        self.connection.no_room(error);
        let (about, before) = (About { tag, note, seq: 0, facts: None }, self.outbox.pushed());
        let failed = self.codec.failed(about, error, &mut self.outbox);
        self.count_sent(before);
        if let Err(why) = failed {
            self.end(&why);
        }
    }

    /// Counts the messages about calls that were put in since there were `before`.
    fn count_sent(&self, before: u64) {
        for _ in before..self.outbox.pushed() {
            self.connection.frontend.metrics.message_sent(self.rules.surface);
        }
    }

    pub(super) fn poll_running(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        for _ in 0..BURST {
            if self.is_closing() || self.outbox.is_full() {
                break;
            }
            let Poll::Ready(Some((exchange, event))) = Pin::new(&mut self.running).poll_next(cx) else { break };
            moved = true;
            self.happen(exchange, event);
        }
        moved
    }

    /// Something became of a call; its answer waits if it is not its turn.
    fn happen(&mut self, exchange: Exchange<C>, event: Event<C::Frame>) {
        let (Some(tag), Some(serial)) = (exchange.tag().cloned(), exchange.serial()) else { return };
        let Some(entry) = self.entries.get_mut(&tag).filter(|entry| entry.serial == serial) else { return };
        if let (Order::Whole, Event::Streams) = (self.rules.order, &event) {
            self.order.retain(|(_, other)| *other != serial);
            self.deliver(&tag, exchange, event);
            return self.release();
        }
        let first = self.order.front().is_none_or(|(_, first)| *first == serial);
        if !first && self.order.iter().any(|(_, other)| *other == serial) {
            entry.held = Some((exchange, event));
            return;
        }
        self.deliver(&tag, exchange, event);
        self.release();
    }

    fn deliver(&mut self, tag: &C::Tag, exchange: Exchange<C>, event: Event<C::Frame>) {
        let (before, pushed) = (self.outbox.total(), self.outbox.pushed());
        let Some(entry) = self.entries.get_mut(tag) else { return };
        let about = About { tag, note: &entry.ticket.note, seq: entry.seq, facts: Some(&*entry.facts) };
        let result = match event {
            Event::Whole(response) => return self.write(tag, exchange, response, true),
            Event::Chunk(response) if entry.streams => return self.write(tag, exchange, response, false),
            Event::Encoded(frame, last) => frame.inspect_err(|error| self.connection.no_room(error)).map(|frame| {
                self.codec.output(frame, &mut self.outbox);
                entry.seq += 1;
                if last {
                    self.connection.frontend.encoded(self.rules.surface, &entry.facts);
                }
                last
            }),
            Event::Streams => Ok(false),
            Event::Chunk(response) => match entry.only.replace(response) {
                None => Ok(false),
                Some(_) => Err(Error::Unimplemented("this model streams, expected `stream` to be true".into())),
            },
            Event::Over => match entry.only.take() {
                Some(response) => return self.write(tag, exchange, response, true),
                None => {
                    self.codec.done(about, &mut self.outbox);
                    Ok(true)
                }
            },
            Event::Failed(error) => Err(error),
            Event::Dropped => Ok(true),
        };
        entry.sent += self.outbox.total() - before;
        self.count_sent(pushed);
        match result {
            Ok(false) => self.running.push(exchange),
            Ok(true) => self.close(tag),
            Err(error) => self.fail(tag, &error),
        }
    }

    /// Writes outputs of a call: at once if they are few, else on the decoding threads, and the call is in flight meanwhile.
    fn write(&mut self, tag: &C::Tag, exchange: Exchange<C>, response: InferResponse, last: bool) {
        let Some(entry) = self.entries.get(tag) else { return };
        let (ticket, seq) = (Arc::clone(&entry.ticket), entry.seq);
        let size = C::work(&ticket.note, &response);
        if body::is_small(size) {
            let about = About { tag, note: &ticket.note, seq, facts: Some(&*entry.facts) };
            let frame = C::encode(&self.connection, &about, last, response);
            return self.deliver(tag, exchange, Event::Encoded(frame, last));
        }
        let (tag, connection) = (tag.clone(), Arc::clone(&self.connection));
        let encoding = body::offload(size, move || {
            connection.frontend.memory.expect(size)?;
            let about = About { tag: &tag, note: &ticket.note, seq, facts: None };
            C::encode(&connection, &about, last, response)
        });
        self.running.push(exchange.encoding(Box::pin(encoding), last));
    }

    /// Answers a call in flight with its error.
    pub(super) fn fail(&mut self, tag: &C::Tag, error: &Error) {
        let Some(entry) = self.entries.get(tag) else { return };
        self.connection.observe(error);
        let about = About { tag, note: &entry.ticket.note, seq: entry.seq, facts: Some(&*entry.facts) };
        let before = self.outbox.pushed();
        let failed = self.codec.failed(about, error, &mut self.outbox);
        self.count_sent(before);
        self.close(tag);
        if let Err(why) = failed {
            self.end(&why);
        } else if matches!(error, Error::Unauthenticated)
            && let Err(why) = self.codec.unauthenticated(&mut self.outbox)
        {
            self.finish(why);
        }
    }

    /// A call is over and answered.
    fn close(&mut self, tag: &C::Tag) {
        let Some(entry) = self.entries.remove(tag) else { return };
        // The body that a gRPC stream is counts its own bytes.
        if self.rules.surface != Surface::Grpc {
            let metrics = &self.connection.frontend.metrics;
            metrics.body_received(self.rules.surface, entry.received as u64);
            metrics.body_sent(self.rules.surface, entry.sent);
        }
        self.forget(&entry);
    }

    fn forget(&mut self, entry: &Entry<C>) {
        self.credited -= usize::from(entry.credited);
        entry.ticket.cancel();
        if self.entries.is_empty() {
            // Idle sessions are many: a burst leaves no memory behind.
            self.entries = HashMap::new();
        }
    }

    /// Delivers what waited for its turn.
    fn release(&mut self) {
        while let Some((tag, serial)) = self.order.front() {
            let Some(entry) = self.entries.get_mut(tag).filter(|entry| entry.serial == *serial) else {
                self.order.pop_front();
                continue;
            };
            let Some((exchange, event)) = entry.held.take() else { return };
            let tag = tag.clone();
            self.deliver(&tag, exchange, event);
        }
        self.order = VecDeque::new();
    }
}
