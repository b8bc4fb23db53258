//! Tensors as bytes behind the JSON: how long each part is, and what comes back in which form.

use super::{ask, models, one};
use crate::support::{
    Running,
    client::{http_request, http1},
};
use http::HeaderMap;
use serde_json::{Value, json};

/// A request in two parts, with or without saying how long the first is.
async fn framed(running: &Running, model: &str, length: Option<&str>, parts: &[&[u8]]) -> (u16, HeaderMap, Vec<u8>) {
    let mut request = http_request(running, "POST", &format!("/v2/models/{model}/infer"), None, parts.concat());
    if let Some(length) = length {
        request.headers_mut().insert("inference-header-content-length", length.parse().unwrap());
    }
    let (parts, body) = http1(running, request).await.into_parts();
    (parts.status.as_u16(), parts.headers, body.to_vec())
}

#[tokio::test]
async fn strings_that_are_no_text_come_back_in_binary_only() {
    let running = models().await;
    let header = |wish: &str| {
        format!(
            r#"{{{wish}"inputs":[{{"name":"x","datatype":"BYTES","shape":[1],"parameters":{{"binary_data_size":6}}}}]}}"#
        )
    };
    let raw = b"\x02\0\0\0\xff\0";
    let json = header("");
    let length = json.len().to_string();
    let (status, _, body) = framed(&running, "echo_bytes", Some(&length), &[json.as_bytes(), raw]).await;
    let error: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status, 400, "{error}");
    assert!(error["error"].as_str().unwrap().contains("binary output"), "{error}");
    let json = header(r#""parameters":{"binary_data_output":true},"#);
    let length = json.len().to_string();
    let (status, headers, body) = framed(&running, "echo_bytes", Some(&length), &[json.as_bytes(), raw]).await;
    assert_eq!((status, &headers["content-type"]), (200, &"application/octet-stream".parse().unwrap()));
    assert!(body.ends_with(raw));
}

#[tokio::test]
async fn the_length_of_the_json_may_be_said_and_must_be_true() {
    let running = models().await;
    let json = one("FP32", "[1]", "[0.5]");
    let binary = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}"#;
    let raw = 0.5_f32.to_le_bytes();
    let number = |length: usize| length.to_string();
    let (all, beyond, before) = (number(json.len()), number(json.len() + 1), number(json.len() - 1));
    let part = number(binary.len());
    for (length, parts, expected) in [
        (None, [json.as_bytes(), b""], 200),
        (Some(&*all), [json.as_bytes(), b""], 200),
        (Some(&part), [binary.as_bytes(), &raw], 200),
        (Some("0"), [&raw, b""], 200),
        (Some(&before), [json.as_bytes(), b""], 400),
        (Some(&beyond), [json.as_bytes(), b""], 400),
        (Some("-1"), [json.as_bytes(), b""], 400),
        (Some("abc"), [json.as_bytes(), b""], 400),
        // Bytes that the JSON does not speak of are an error, and never the next request.
        (Some(&all), [json.as_bytes(), b"more"], 400),
        (Some(&part), [binary.as_bytes(), &raw[..3]], 400),
        (None, [binary.as_bytes(), &raw], 400),
    ] {
        let (status, headers, body) = framed(&running, "echo_fp32", length, &parts).await;
        let shown = String::from_utf8_lossy(&body);
        assert_eq!(status, expected, "{length:?}: {shown}");
        match headers.get("inference-header-content-length") {
            // A raw body is answered in kind.
            Some(said) => {
                assert_eq!(length, Some("0"));
                let json: usize = said.to_str().unwrap().parse().unwrap();
                assert_eq!(body[json..], raw);
            }
            None if status == 200 => assert!(shown.contains("\"data\":[0.5]"), "{shown}"),
            None => assert!(shown.starts_with("{\"error\":\""), "{shown}"),
        }
    }
}

#[tokio::test]
async fn json_and_binary_inputs_mix_and_outputs_follow_the_default_or_their_own_wish() {
    let running = models().await;
    let ask = async |wishes: &str| {
        let json = format!(
            r#"{{{wishes}"inputs":[{{"name":"a","datatype":"FP32","shape":[1,2],"data":[1.5,2]}},{{"name":"b","datatype":"INT32","shape":[1,2],"parameters":{{"binary_data_size":8}}}}]}}"#
        );
        let length = json.len().to_string();
        let raw = [1_i32.to_le_bytes(), 1_i32.to_le_bytes()].concat();
        let (status, headers, body) = framed(&running, "two_by_two", Some(&length), &[json.as_bytes(), &raw]).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let length = headers.get("inference-header-content-length");
        let length = length.map_or(body.len(), |length| length.to_str().unwrap().parse().unwrap());
        (serde_json::from_slice::<Value>(&body[..length]).unwrap()["outputs"].clone(), body[length..].to_vec())
    };
    let raw = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
    let (sum, difference) = (raw([2.5, 3.0]), raw([0.5, 1.0]));
    let (outputs, tail) = ask("").await;
    assert_eq!((&outputs[0]["data"], &outputs[1]["data"], tail), (&json!([2.5, 3.0]), &json!([0.5, 1.0]), vec![]));
    let default = r#""parameters":{"binary_data_output":true},"#;
    let (outputs, tail) = ask(default).await;
    assert_eq!(tail, [&sum[..], &difference].concat());
    assert_eq!(outputs[1]["parameters"], json!({ "binary_data_size": 8 }));
    // A listed output takes the default unless it says otherwise.
    let listed = r#""outputs":[{"name":"difference"},{"name":"sum","parameters":{"binary_data":false}}],"#;
    let (outputs, tail) = ask(&format!("{default}{listed}")).await;
    assert_eq!((tail, &outputs[1]["data"]), (difference, &json!([2.5, 3.0])));
    let listed = r#""outputs":[{"name":"sum","parameters":{"binary_data":true}},{"name":"difference"}],"#;
    let (outputs, tail) = ask(listed).await;
    assert_eq!((tail, &outputs[1]["data"]), (sum, &json!([0.5, 1.0])));
}

#[tokio::test]
async fn classes_may_come_in_binary_too() {
    let running = models().await;
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[3],"data":[0.5,3.3,-1]}],"outputs":[{"name":"y","parameters":{"classification":1,"binary_data":true}}]}"#;
    let (status, headers, text) = ask(&running, "POST", "/v2/models/echo_fp32/infer", body).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&text));
    let length: usize = headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    // Every element of this model is a row of its own, with the one class that it has.
    let element = |text: &str| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
    let expected = ["0.500000:0", "3.300000:0", "-1.000000:0"].map(element).concat();
    assert_eq!(text[length..], expected);
}
