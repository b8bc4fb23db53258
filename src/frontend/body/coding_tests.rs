//! Inflating within limits, and what a client prefers.

use super::*;
use crate::frontend::{
    Settings,
    settings::{Rest, Size},
    testing::{Plan, Server, echo, status},
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn headers(name: &http::HeaderName, values: &[&str]) -> HeaderMap {
    values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
}

fn pack(data: &[u8], coding: &str) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut encoder = write::GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = write::ZlibEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => zstd::encode_all(data, 19).unwrap(),
        _ => {
            let mut encoder = write::DeflateEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
    }
}

#[test]
fn a_request_has_one_coding_or_none() {
    let of = |values: &[&str]| Coding::of_request(&headers(&CONTENT_ENCODING, values));
    assert_eq!(of(&[]).unwrap(), None);
    assert_eq!(of(&["identity"]).unwrap(), None);
    assert_eq!(of(&["GZIP"]).unwrap(), Some(Coding::Gzip));
    assert_eq!(of(&["x-gzip"]).unwrap(), Some(Coding::Gzip));
    assert_eq!(of(&["identity, deflate"]).unwrap(), Some(Coding::Deflate));
    assert!(matches!(of(&["br"]), Err(Error::UnsupportedMedia(_))));
    assert!(matches!(of(&["gzip, gzip"]), Err(Error::StackedCodings)));
    assert!(matches!(of(&["gzip", "deflate"]), Err(Error::StackedCodings)));
}

#[test]
fn the_first_of_those_with_the_highest_weight_is_chosen() {
    let accepted = |values: &[&str]| Coding::accepted(&headers(&ACCEPT_ENCODING, values));
    assert_eq!(accepted(&[]), None);
    assert_eq!(accepted(&["gzip, deflate, br"]), Some(Coding::Gzip));
    assert_eq!(accepted(&["br;q=1.0, deflate;q=0.8, gzip;q=0.8"]), Some(Coding::Deflate));
    assert_eq!(accepted(&["gzip;q=0.1, identity;q=0.5"]), None);
    assert_eq!(accepted(&["identity, gzip"]), None);
    assert_eq!(accepted(&["gzip;q=0, deflate ; q=0.001"]), Some(Coding::Deflate));
    assert_eq!(accepted(&["*"]), None);
    assert_eq!(accepted(&["gzip;q=nan", "deflate"]), Some(Coding::Gzip));
}

const INFER: &str = r#"{"id":"r","inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}]}"#;

async fn post(server: &Server, headers: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = server.connect().await;
    let head = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    let end = all.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(all.len(), |at| at + 4);
    let body = all.split_off(end);
    (String::from_utf8(all).unwrap(), body)
}

#[tokio::test]
async fn packed_requests_are_answered_as_plain_ones() {
    let server = Plan::default().start(echo);
    let (_, plain) = post(&server, "x-request-id: c\r\n", INFER.as_bytes()).await;
    for (name, coding) in [("gzip", "gzip"), ("deflate", "deflate"), ("deflate", "raw"), ("zstd", "zstd")] {
        let headers = format!("x-request-id: c\r\ncontent-encoding: {name}\r\n");
        let (head, body) = post(&server, &headers, &pack(INFER.as_bytes(), coding)).await;
        assert_eq!((status(&head), &body), (200, &plain), "{coding}: {head}");
    }
}

#[tokio::test]
async fn the_length_of_the_json_counts_inflated_bytes() {
    let json = r#"{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let body = [json.as_bytes(), &1_f32.to_le_bytes(), &2_f32.to_le_bytes()].concat();
    let headers = format!("content-encoding: gzip\r\ninference-header-content-length: {}\r\n", json.len());
    let server = Plan::default().start(echo);
    let (head, answer) = post(&server, &headers, &pack(&body, "gzip")).await;
    assert_eq!(status(&head), 200, "{head}");
    assert!(String::from_utf8(answer).unwrap().contains(r#""data":[1.0,2.0]"#));
    let beyond = format!("content-encoding: gzip\r\ninference-header-content-length: {}\r\n", body.len() + 1);
    assert_eq!(status(&post(&server, &beyond, &pack(&body, "gzip")).await.0), 400);
}

#[tokio::test]
async fn what_is_no_coding_or_one_too_many_is_refused() {
    let server = Plan::default().start(echo);
    let packed = pack(INFER.as_bytes(), "gzip");
    let (head, _) = post(&server, "content-encoding: br\r\n", &packed).await;
    assert_eq!(status(&head), 415, "{head}");
    assert!(head.contains("accept-encoding: gzip, deflate, zstd\r\n"), "{head}");
    assert_eq!(status(&post(&server, "content-encoding: gzip, gzip\r\n", &packed).await.0), 413);
    for coding in ["gzip", "deflate", "zstd"] {
        let headers = format!("content-encoding: {coding}\r\n");
        let packed = pack(INFER.as_bytes(), coding);
        let cut = &packed[..packed.len() - 9];
        let behind = [&packed[..], b"more"].concat();
        for broken in [&b"neither"[..], cut, &behind] {
            let (head, body) = post(&server, &headers, broken).await;
            assert_eq!(status(&head), 400, "{coding}: {head}");
            assert!(String::from_utf8(body).unwrap().contains(coding), "{head}");
        }
    }
}

#[tokio::test]
async fn a_bomb_is_cut_off_while_it_grows() {
    let mut settings = Settings { size: Size { body: 1 << 20, ..Size::default() }, ..Settings::default() };
    // What took more than this while it grows would be answered with 503.
    settings.concurrency.memory = 4 << 20;
    let server = Plan { settings, ..Plan::default() }.start(echo);
    for coding in ["gzip", "deflate", "zstd"] {
        let headers = format!("content-encoding: {coding}\r\n");
        // Within the size and beyond the ratio, then beyond the size.
        for (length, said) in [(1 << 19, "100 times"), (64 << 20, "1048576 bytes")] {
            let bomb = pack(&vec![b' '; length], coding);
            let (head, body) = post(&server, &headers, &bomb).await;
            let body = String::from_utf8(body).unwrap();
            assert_eq!(status(&head), 413, "{coding}: {head}{body}");
            // What comes out in one step may pass both; the size is said first.
            assert!(body.contains(said) || body.contains("100 times"), "{body}");
        }
    }
}

#[tokio::test]
async fn a_response_is_packed_for_who_takes_it_and_only_if_it_is_worth_it() {
    let values = vec!["1.5"; 4000].join(",");
    let large = format!(r#"{{"inputs":[{{"name":"x","shape":[4000],"datatype":"FP32","data":[{values}]}}]}}"#);
    let server = Plan::default().start(echo);
    let (_, plain) = post(&server, "x-request-id: c\r\n", large.as_bytes()).await;
    let (head, packed) = post(&server, "x-request-id: c\r\naccept-encoding: gzip\r\n", large.as_bytes()).await;
    assert!(head.contains("content-encoding: gzip\r\n") && head.contains("vary: accept-encoding\r\n"), "{head}");
    let mut inflated = Vec::new();
    MultiGzDecoder::new(&packed[..]).read_to_end(&mut inflated).unwrap();
    assert_eq!(inflated, plain);
    let (head, packed) = post(&server, "x-request-id: c\r\naccept-encoding: deflate\r\n", large.as_bytes()).await;
    assert!(head.contains("content-encoding: deflate\r\n"), "{head}");
    assert_eq!(packed[0], 0x78, "zlib, as every client reads it");
    let (head, _) = post(&server, "accept-encoding: gzip\r\n", INFER.as_bytes()).await;
    assert!(!head.contains("content-encoding"), "small: {head}");
    let rest = Rest { compress_above: None, ..Rest::default() };
    let off = Plan { settings: Settings { rest, ..Settings::default() }, ..Plan::default() }.start(echo);
    let (head, _) = post(&off, "accept-encoding: gzip\r\n", large.as_bytes()).await;
    assert!(!head.contains("content-encoding"), "switched off: {head}");
}

#[tokio::test]
async fn only_outputs_are_packed() {
    let rest = Rest { compress_above: Some(1), ..Rest::default() };
    let server = Plan { settings: Settings { rest, ..Settings::default() }, ..Plan::default() }.start(echo);
    let (head, _) = post(&server, "accept-encoding: gzip\r\n", INFER.as_bytes()).await;
    assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
    let (head, _) = post(&server, "accept-encoding: gzip\r\n", b"{").await;
    assert!(status(&head) == 400 && !head.contains("content-encoding"), "{head}");
    let head = server.say("GET /v2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\naccept-encoding: gzip\r\n\r\n").await;
    assert!(status(&head) == 200 && !head.contains("content-encoding"), "{head}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_what_was_packed_comes_back(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        let connection = crate::frontend::testing::connection();
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            let _ = inflate_here(&data, coding, 0, &connection);
            let packed = pack(&data, coding.name().to_str().unwrap());
            prop_assert_eq!(&inflate_here(&packed, coding, 3, &connection).unwrap()[..], &data[..]);
        }
    }
}
