//! Sluicegate serves ONNX models over REST, gRPC, WebSocket and HTTP/2 streams: one process, one port, one policy.
//!
//! This page is the architecture document: read it first, then `stack.rs`, then whatever you came for.
//!
//! # The design in nine sentences
//!
//! - The one service type is a *staged call*: every wire form becomes [`call::Inbound`]; the stack turns it into
//!   [`call::Identified`] and then into [`call::Decoded`]; the answer is a [`call::Reply`], whole or streaming.
//! - The body is a future ([`call::Pending`]) that only the `Decode` layer polls: nobody's 64 MiB is read before we know
//!   who they are, and yet the layers below see a decoded, protocol-neutral request.
//! - The stages are types, so a stack that rate-limits before it authenticates does not compile.
//! - A WebSocket message, a message of a gRPC stream and a line of an NDJSON stream are each a call. One shared loop
//!   ([`frontend::duplex`]) makes them, so authorisation, limits and metrics apply to every message with no extra code.
//! - Every layer is always ready and decides in `call`. Nothing is reserved in `poll_ready`.
//! - A layer that must live as long as a stream hands the reply an [`call::Observer`]. Exactly one place tells observers
//!   how it ended: complete, failed, or abandoned. Dropping is cancelling.
//! - One [`error::Error`] in domain words, one [`error::Code`] with one table for HTTP, gRPC and WebSocket. Layers return
//!   errors as values; only front-ends render them.
//! - A tensor is a type, a shape and shared bytes, checked once on construction. Outputs of ONNX Runtime travel to the
//!   socket as bytes that own the ORT value.
//! - One thread owns one instance of a model. Small models run on the event loop's own thread, as one batch per turn of the loop;
//!   large ones on threads of their own. The batching policy is a pure state machine with no clock and no channel in it.
//!
//! # The life of one request
//!
//! 1. [`frontend::accept`] accepts within the connection limits and deals the socket to a lane ([`lane`]).
//! 2. [`frontend::http`] looks at the head only: it finds the client, if a trusted proxy is in between, and chooses the
//!    surface: `grpc`, `websocket`, `h2_stream` or `rest`.
//! 3. The surface asks the address gate, then builds an inbound call: head, credentials as sent, and a body that *would* be
//!    read.
//! 4. [`call::Gateway`] enters the stack ([`stack`]): trace, metrics, panic guard, deadline, authenticate, rate limit,
//!    admit, decode, authorise, sessions, reserve.
//! 5. [`model::router`] resolves the model, checks names, types and shapes, and submits a job to the model's scheduler, unless the
//!    answer is kept.
//! 6. [`schedule`] runs the job alone or in a batch: on the lane at the end of its turn ([`schedule::turn`]), or on an
//!    inference thread (`schedule/instance.rs`).
//! 7. The reply climbs back; every layer that holds something lets go of it when the reply is *over*, which for a stream
//!    is not when it starts.
//!
//! # Edges
//!
//! A single crate has no compiler-checked boundaries, so `tests/it/tidy.rs` reads `crate::` paths and allows only these:
//!
//! ```text
//! error        -> nothing of ours
//! tensor       -> error
//! call         -> tensor, error
//! telemetry    -> call, current, error
//! wire         -> call, tensor, error
//! current      -> nothing of ours
//! trust        -> nothing of ours
//! auth         -> call, current, error, trust
//! limit        -> call, error, trust
//! layer        -> call, current, auth, limit, telemetry, error
//! offload      -> error
//! backend      -> tensor, error
//! builtin      -> tensor, error
//! schedule     -> backend, call, tensor, error, telemetry
//! model        -> schedule, backend, builtin, offload, call, tensor, error, telemetry
//! frontend     -> call, wire, offload, tensor, error, telemetry, limit::address     (never layer, model, schedule)
//! lane         -> frontend, schedule, call, telemetry, error, shutdown
//! stack        -> layer, model, call, and the handles that layers hold
//! config       -> the settings struct of each module (plain data; serde stays in config), and wire::proto, which
//!                 reads Triton's model configurations
//! bench        -> app, config, model, schedule, backend, call, wire, tensor, telemetry, error
//!                 (never frontend, layer, stack, lane: it is their client)
//! app, admin, cli, shutdown -> everything
//! ```
//!
//! # Invariants
//!
//! 1. **Nothing below `frontend` and `wire` knows HTTP, gRPC or WebSocket.** Numbers of those protocols appear only in
//!    `error/code.rs`.
//! 2. **Nothing outside `backend/ort` names the `ort` crate.**
//! 3. **There is one door**: every operation of every surface is a call through `stack.rs`. Outside are only the admin
//!    listener, the protocols' server probes, reflection and the two pages about the surface itself (`/docs`,
//!    `/openapi.json`): they read one value or fixed bytes and take no slot. `tests/it/doors.rs` walks the tables of
//!    routes and methods and names these exceptions.
//! 4. **No layer waits in `poll_ready`**, and none holds anything between `poll_ready` and `call`.
//! 5. **No body is read before its sender is known and a slot is held.** (A WebSocket message has arrived by then, within
//!    the message limit, but is not parsed beyond its envelope.)
//! 6. **A run on a lane is bounded**: only models whose measured batch stays below the turn budget run there, and none whose
//!    work may grow with values; one that grows beyond it moves to a thread of its own, and a run that holds a lane is ended
//!    from outside (`schedule/pulse.rs`). No tokio primitive is awaited on an inference thread.
//! 7. **Every queue is bounded and every wait has a deadline.** (Opening a model has none: nothing can end it from outside. Who
//!    waits for a load has the deadline of the call, and the load goes on; unloads wait for no load.)
//! 8. **A model is never changed in place**: a new one is built, warmed and swapped in; calls finish on the one they
//!    started with.
//! 9. **Metric labels come from configuration or the repository**, never from a client's bytes.
//!
//! # Where this differs from the first design
//!
//! - `Signature` lives in [`tensor`], because back ends make it and must not know `model`.
//! - The calls of a session are futures in the session, not tasks of a `JoinSet`.
//! - Slots are counters of our own, not a semaphore. Those of an identity may be leased like rates, where limits are shared
//!   with other processes ([`limit::shared_slots`]), and then `Admit` may wait as `RateLimit` does.
//! - A call is on its way when it is made, not when it is first polled; and it goes through its thread's clone of the
//!   stack, not through one of its own.
//! - Deadlines ring from one timer per lane (`layer/alarm.rs`), not from one in each call.
//! - Instances of one model on threads share one session of ONNX Runtime, and with it the weights, where the CPU alone runs
//!   the model (`backend/ort/session.rs` says why that is sound). `Backend::run` still takes `&mut self`: an instance is one
//!   thread's. On lanes each has a session of its own, because all of them would take one allocator's lock in each run.
//! - A run on a thread has a limit beyond all deadlines, and an instance that does not keep it is replaced
//!   (`schedule/watch.rs`). Whoever waits for it is answered by those who give it up (`schedule/callers.rs`).
//! - What needs more than the whole memory budget is `payload_too_large` and not `overloaded`, which would be tried again for ever
//!   ([`error::Error::NeverFits`]); contract 10 section 5 does not tell the two apart.
//! - The process ends some seconds after the drain's timeout whatever still runs ([`shutdown::insist`]).
//! - A model that runs on lanes has a spare instance on a thread, for what a lane must not run.
//! - What nobody waits for, copies of calls for a shadow, runs on an instance and a thread of its own that has what processor time others leave
//!   (`schedule/background.rs`): behind callers in the queue they would have stood before them on the core.
//! - A queue knows what batches cost, from those that ran (`schedule/cost.rs`), and does not always take all that waits: who is
//!   urgent is not made late, who cannot be served makes room, and a model that gains nothing from batches runs in small ones.
//! - `max_delay` is not 0 by default but `auto`: on threads, a batch waits a moment for callers whom the run before it answered,
//!   where that saves more than it takes (`schedule/rejoin.rs`). With 0, callers in loops fall into two halves that run by turns
//!   and never meet again. A caller who is alone waits for nobody either way.
//! - A client certificate belongs to the peer and not to the call: who sends nothing is its holder.
//! - A session looks at its own credentials again when they end or may have been revoked (`duplex/session/proof.rs`): what
//!   is refused with the next message would never be noticed on a socket that sends none.
//! - Tokens are verified with `ring`, which rustls has brought, and not with `jsonwebtoken`: its back ends would be a second
//!   library of cryptography, one of which has an open advisory (RUSTSEC-2023-0071).
//! - A session's place is kept in the facts of the call that opened it.
//! - A run that works for one call is ended when that call is dropped ([`call::Interrupt`]), not only at shutdown.
//! - What is traced of a call hangs on its facts and is handed over by whoever lets go of them last (`call/trace.rs`), so that
//!   the batch and the encoder have their part in it and no layer waits for them.
//! - `Live` is not one type: grants, rates and deadlines are swapped where they are asked, and front-ends by connection
//!   (`app/live.rs`).
//! - Answers may be kept, per version and below all layers (`model/cache`): equal calls that come together wait for one job, whose
//!   answer goes to an [`schedule::Audience`] instead of one caller.
//! - Some wire forms do not say the type or shape of an input (V1, `generate`, `/predict`). They become
//!   `call::Inputs::Untyped`: a parser that the router calls with the signature. The router still knows no wire.
//! - Loading and unloading are calls (`call::Manage`) that the router hands to `model::control`; besides, models follow
//!   their folders (`model::watch`). Which of the two may change the repository is one setting, never both.
//! - A model file is opened by a child process before it is opened here (`backend/ort/probe.rs`): what it does to ONNX Runtime
//!   happens there first.
//! - Which version a call means is decided where the repository is asked, once per call and of one value (`model::state`), so
//!   that labels, splits and swaps are the same on every surface. Front-ends keep the few headers that models' rules look at
//!   ([`call::Steering`]).
//! - REST's routes are data (`frontend::rest::route`), so that tests and `/openapi.json` can be held against them.
//! - Errors of REST have a voice (V2's object, V1's string, problem details), chosen by route and `Accept`; the code is one.
//! - gRPC's message compression is ours (`frontend::grpc::encoding`): tonic's would inflate before anybody is known.
//! - `InferRequest` carries no wish about how outputs are written: that is the front-end's ([`wire::Wishes`]).
//! - `bench` is a client of its own, beside everything above: it borrows the codecs, and with `--engine` the loader and
//!   the scheduler, on one lane that is its own thread.
//!
//! # Tenets, ranked
//!
//! Correct, the same on every surface, predictable under overload, fast, small.

pub mod admin;
pub mod app;
pub mod auth;
pub mod backend;
pub mod bench;
pub mod builtin;
pub mod call;
pub mod cli;
pub mod config;
pub mod current;
pub mod error;
pub mod frontend;
pub mod lane;
pub mod layer;
pub mod limit;
pub mod model;
pub mod offload;
pub mod schedule;
pub mod shutdown;
pub mod stack;
pub mod telemetry;
pub mod tensor;
pub mod trust;
pub mod wire;
