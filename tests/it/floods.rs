//! Floods of HTTP/2 frames: the one who sends them is told to calm down and cut off, and nobody else notices
//! (attacks A13 to A17). Bounded in number, on loopback, with a well-behaved client beside each.

use crate::support::{
    Running, Setup,
    client::{Client, Data, Request},
    wire::{
        ACK, CALM, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, Wire, field, frame, get, head, infer, reset, streams,
    },
};
use sluicegate::call::Surface;
use std::cell::Cell;

/// A type of frame that RFC 9113 does not know.
const EXTENSION: u8 = 0x20;
const FRAME_SIZE_ERROR: u32 = 0x6;

/// A gateway with `attack` on it, and a client on every surface that is answered all the while. Afterwards nothing is
/// left of either.
async fn under<F: Future<Output = ()>>(attack: impl FnOnce(Running) -> F) -> Running {
    let running = Setup::new().start().await;
    let mut clients = Vec::new();
    for surface in Surface::ALL {
        clients.push(Client::connect(surface, &running, None).await.unwrap());
    }
    let over = Cell::new(false);
    let attack = async {
        attack(running.clone()).await;
        over.set(true);
    };
    let bystander = async {
        let request = Request::new("double", &[1, 4], vec![1.0, 2.0, 3.0, 4.0]);
        while !over.get() {
            for client in &mut clients {
                let answer = client.infer(&request).await.expect("a well-behaved client is served");
                assert_eq!(answer.outputs["y"].1, Data::Floats(vec![2.0, 4.0, 6.0, 8.0]));
            }
        }
    };
    tokio::join!(bystander, attack);
    drop(clients);
    running
        .until("all connections are closed and all slots are free", |metrics| {
            let left = |line: &&str| {
                let gauge =
                    line.starts_with("sluicegate_connections{") || line.starts_with("sluicegate_calls_in_flight{");
                gauge && !line.ends_with(" 0")
            };
            !metrics.lines().any(|line| left(&line))
        })
        .await;
    running
}

async fn cut_off(running: &Running, connections: u32) {
    let line = format!("sluicegate_connections_total{{kind=\"\",outcome=\"flood\"}} {connections}");
    running.until("floods are counted", |metrics| metrics.lines().any(|found| found == line)).await;
}

/// The server says ENHANCE_YOUR_CALM, names the last stream it may have acted on, and closes.
async fn calmed(wire: &mut Wire, last_stream: u32) -> Vec<Frame> {
    let ended = wire.end().await;
    assert_eq!(ended.goodbye, Some((last_stream, CALM)), "{:?}", ended.frames);
    ended.frames
}

#[tokio::test]
async fn a13_streams_opened_and_reset_are_bounded_and_run_nothing() {
    let running = under(async |running: Running| {
        let before = running.runs("echo");
        let mut wire = Wire::open(&running).await;
        let mut ids = streams();
        // What has been completed makes up for as many resets, be they of the same streams.
        for stream in ids.by_ref().take(150) {
            wire.works(stream).await;
            wire.send(reset(stream)).await;
        }
        let last = ids.next().unwrap();
        wire.works(last).await;

        let mut wire = Wire::open(&running).await;
        let mut ids = streams();
        let pair = |stream| [infer(stream, "echo"), reset(stream)].concat();
        wire.send(ids.by_ref().take(99).flat_map(pair).collect::<Vec<u8>>()).await;
        wire.works(ids.next().unwrap()).await;
        let rest: Vec<u32> = ids.take(300).collect();
        wire.send(rest.iter().copied().flat_map(pair).collect::<Vec<u8>>()).await;
        let ended = wire.end().await;
        let (last, code) = ended.goodbye.expect("a goodbye");
        assert_eq!(code, CALM);
        // 99 were reset before, one is allowed for, the second is one too many: what opened its stream had passed.
        assert!(rest[..3].contains(&last), "{last}");
        assert_eq!(running.runs("echo"), before, "streams that were reset in the queue run nothing");
    })
    .await;
    cut_off(&running, 1).await;
}

#[tokio::test]
async fn a13_what_is_taken_back_in_the_same_breath_is_no_call() {
    let running = Setup::new().start().await;
    let mut wire = Wire::open(&running).await;
    for stream in streams().take(20) {
        // So small that it arrives at once.
        wire.send([infer(2 * stream - 1, "double"), reset(2 * stream - 1)].concat()).await;
        wire.works(2 * stream + 1).await;
    }
    assert!(!running.metrics().await.contains("sluicegate_calls_total{"));
}

#[tokio::test]
async fn a14_resets_that_a_client_provokes_are_bounded() {
    let running = under(async |running: Running| {
        let mut wire = Wire::open(&running).await;
        let mut ids = streams();
        let provoke = |stream| {
            let open = frame(HEADERS, END_HEADERS, stream, &head("POST", "/v2/models/double/infer"));
            // A window beyond what may be is a fault of its stream.
            [open, frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())].concat()
        };
        for stream in ids.by_ref().take(100) {
            wire.send(provoke(stream)).await;
            assert_eq!(wire.expect(RST_STREAM).await.stream, stream);
        }
        wire.send(frame(PING, 0, 0, &[0; 8])).await;
        wire.expect(PING).await;
        let one_more = ids.next().unwrap();
        wire.send(provoke(one_more)).await;
        wire.expect(RST_STREAM).await;
        wire.send(get(ids.next().unwrap(), "/")).await;
        calmed(&mut wire, one_more).await;
    })
    .await;
    cut_off(&running, 1).await;
}

#[tokio::test]
async fn a15_a_header_block_without_an_end_is_cut_before_64_kib() {
    let running = under(async |running: Running| {
        // One field whose value is announced as 2 MiB, in large frames.
        let mut wire = Wire::open(&running).await;
        let endless = [head("GET", "/"), vec![0, 1, b'x', 0x7f, 0x81, 0xff, 0x7f]].concat();
        wire.send(frame(HEADERS, END_STREAM, 1, &endless)).await;
        let piece = frame(CONTINUATION, 0, 1, &[b'y'; 16_000]);
        let mut sent = 0;
        while sent < 64 << 10 {
            wire.send(&piece).await;
            sent += piece.len();
        }
        calmed(&mut wire, 1).await;

        // In one frame: on its announcement. In many small ones: by h2.
        let mut wire = Wire::open(&running).await;
        wire.send([&[0, 0xf0, 0, HEADERS, END_STREAM, 0, 0, 0, 1][..], &head("GET", "/")].concat()).await;
        calmed(&mut wire, 0).await;
        // Unless no frame may be that long.
        let mut wire = Wire::open(&running).await;
        wire.send([&[1, 0xf0, 0, HEADERS, END_STREAM, 0, 0, 0, 1][..], &head("GET", "/")].concat()).await;
        assert_eq!(wire.end().await.goodbye, Some((0, FRAME_SIZE_ERROR)));
        let mut wire = Wire::open(&running).await;
        wire.send(frame(HEADERS, END_STREAM, 1, &head("GET", "/"))).await;
        wire.send(frame(CONTINUATION, 0, 1, &field(b"x", b"y")).repeat(200)).await;
        assert_eq!(wire.end().await.goodbye.map(|(_, code)| code), Some(CALM));
    })
    .await;
    cut_off(&running, 3).await;
}

#[tokio::test]
async fn a16_a_header_list_is_bounded_however_small_it_is_on_the_wire() {
    let running = under(async |running: Running| {
        // Windows of 0: no answer with a body can leave, and 431 still does.
        let no_window = [0, 4, 0, 0, 0, 0];
        for (value, fields, cookies) in [(1, 101, false), (1, 400, false), (90, 300, false), (1, 101, true)] {
            let mut wires = Vec::new();
            for _ in 0..5 {
                let mut wire = Wire::open_with(&running, &no_window).await;
                for stream in streams().take(20) {
                    wire.send(bomb(stream, value, fields, cookies)).await;
                }
                wires.push(wire);
            }
            for wire in &mut wires {
                for _ in 0..20 {
                    let head = wire.expect(HEADERS).await;
                    assert!(is_431(&head.payload) || head.stream > 1, "{head:?}");
                }
            }
        }
        // What is far beyond all limits ends the connection.
        let mut wire = Wire::open_with(&running, &no_window).await;
        wire.send(bomb(1, 90, 10_000, false)).await;
        assert_eq!(wire.end().await.goodbye.map(|(_, code)| code), Some(CALM));
    })
    .await;
    cut_off(&running, 1).await;
}

/// A request with `fields` fields of which all but the first are one byte on the wire.
fn bomb(stream: u32, value: usize, fields: usize, cookies: bool) -> Vec<u8> {
    let name = if cookies { &b"cookie"[..] } else { b"x" };
    // With incremental indexing: the first entry behind the static table's 61.
    let first = [&[0x40, name.len() as u8], name, &[value as u8], &vec![b'y'; value][..]].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &[head("GET", "/"), first, vec![0x80 | 62; fields - 1]].concat())
}

/// `:status` 431 in the first answer of a connection: the name by its index, the value in Huffman's code.
fn is_431(block: &[u8]) -> bool {
    block.starts_with(&[0x48, 0x83, 0x69, 0x90, 0xff])
}

#[tokio::test]
async fn a17_frames_that_ask_for_nothing_are_bounded() {
    let floods: [(&str, Vec<u8>, usize); 8] = [
        ("PING", frame(PING, 0, 0, &[0; 8]), 100),
        ("PING answered that was not sent", frame(PING, ACK, 0, &[0; 8]), 100),
        // The first ones of a connection are among them.
        ("SETTINGS", frame(SETTINGS, 0, 0, &[]), 99),
        ("SETTINGS that change something", frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]), 99),
        ("PRIORITY", frame(PRIORITY, 0, 3, &[0; 5]), 100),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()), 100),
        ("empty DATA", frame(DATA, 0, 1, &[]), 100),
        ("frames of an extension", frame(EXTENSION, 0, 0, b"x"), 100),
    ];
    let kinds = u32::try_from(floods.len()).unwrap();
    let running = under(async |running: Running| {
        for (name, flood, allowed) in floods {
            let mut wire = Wire::open(&running).await;
            let head = [head("POST", "/v2/models/double/infer"), field(b"content-length", b"9")].concat();
            wire.send(frame(HEADERS, END_HEADERS, 1, &head)).await;
            wire.send(flood.repeat(allowed)).await;
            wire.send(frame(DATA, END_STREAM, 1, b"{\"a\":[1]}")).await;
            let answer = wire.expect(HEADERS).await;
            assert_eq!(answer.stream, 1, "{name}: at the limit all is well");

            // In one breath: more than any two seconds may hold, whatever else the machine does.
            let mut wire = Wire::open(&running).await;
            wire.send(frame(HEADERS, END_HEADERS, 1, &head)).await;
            wire.send(flood.repeat(500)).await;
            let frames = calmed(&mut wire, 1).await;
            let answers = frames.iter().filter(|frame| frame.flags & ACK != 0 && frame.stream == 0).count();
            assert!(answers <= 301, "{name}: {answers} answers");
        }
    })
    .await;
    cut_off(&running, kinds).await;
}

#[tokio::test]
async fn a_client_that_works_hard_is_no_flood() {
    let running = under(async |running: Running| {
        let mut wire = Wire::open(&running).await;
        // With every answer a PING, to estimate the bandwidth, and both windows given back; with every request a larger
        // window for its answer.
        let update = |stream, bytes: u32| frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
        for stream in streams().take(400) {
            wire.send([infer(stream, "double"), update(stream, 1 << 20)].concat()).await;
            let answer = wire.expect(DATA).await;
            let size = u32::try_from(answer.payload.len()).unwrap();
            wire.send([update(stream, size), update(0, size), frame(PING, 0, 0, &[0; 8])].concat()).await;
        }
        wire.works(9_001).await;
    })
    .await;
    assert!(!running.metrics().await.contains("outcome=\"flood\""));
}

#[tokio::test]
async fn limits_of_frames_are_configured() {
    let limits = "limits: { http2: { control_frames: 5/s, resets: 3/10s } }";
    let running = Setup::new().yaml(limits).start().await;
    let mut wire = Wire::open(&running).await;
    wire.send(frame(PING, 0, 0, &[0; 8]).repeat(5)).await;
    wire.works(1).await;
    // An answer went out: one PING more, and no fifth.
    wire.send(frame(PING, 0, 0, &[0; 8]).repeat(30)).await;
    calmed(&mut wire, 1).await;
    let mut wire = Wire::open(&running).await;
    let pair = |stream| [infer(stream, "double"), reset(stream)].concat();
    wire.send(streams().take(20).flat_map(pair).collect::<Vec<u8>>()).await;
    calmed(&mut wire, 7).await;
    cut_off(&running, 2).await;
}
