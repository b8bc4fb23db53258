//! Whether a first answer is what its surface promises: outputs, each with as many elements as its shape says.

use super::{arguments::Surface, client::Kept};
use crate::{
    tensor::DataType,
    wire::proto::inference::{ModelInferResponse, ModelStreamInferResponse},
};
use prost::Message;
use serde_json::Value;

/// Checks the answer as a whole and says which outputs came: `y FP32 [1, 3]`.
///
/// # Errors
///
/// In plain words, what is wrong with it.
pub(super) fn answer(surface: Surface, kept: &Kept) -> Result<String, String> {
    let outputs = match surface {
        Surface::Rest | Surface::Websocket | Surface::Ndjson => json(&kept.body, None)?,
        Surface::RestBinary => {
            let json_length = kept.json.filter(|length| *length <= kept.body.len());
            let json_length = json_length.ok_or("the answer does not say where its raw tensors begin")?;
            let (text, raw) = kept.body.split_at(json_length);
            json(text, Some(raw))?
        }
        Surface::Grpc => proto(&ModelInferResponse::decode(&*kept.body).map_err(|error| error.to_string())?)?,
        Surface::GrpcStream => {
            let answer = ModelStreamInferResponse::decode(&*kept.body).map_err(|error| error.to_string())?;
            proto(&answer.infer_response.ok_or("the answer has no response")?)?
        }
    };
    match outputs.is_empty() {
        true => Err("the answer has no outputs".to_owned()),
        false => Ok(outputs.join(", ")),
    }
}

fn json(text: &[u8], mut raw: Option<&[u8]>) -> Result<Vec<String>, String> {
    let body: Value = serde_json::from_slice(text).map_err(|error| format!("the answer is no JSON: {error}"))?;
    let outputs = body["outputs"].as_array().ok_or("the answer has no `outputs`")?;
    let mut told = Vec::with_capacity(outputs.len());
    for output in outputs {
        let name = output["name"].as_str().ok_or("an output has no name")?;
        let datatype = output["datatype"].as_str().ok_or_else(|| format!("output `{name}` has no datatype"))?;
        let shape: Option<Vec<_>> =
            output["shape"].as_array().and_then(|shape| shape.iter().map(Value::as_i64).collect());
        let shape = shape.ok_or_else(|| format!("output `{name}` has no shape"))?;
        let wanted = elements(name, &shape)?;
        let size = output["parameters"]["binary_data_size"].as_u64().and_then(|size| usize::try_from(size).ok());
        match (&mut raw, size) {
            (Some(rest), Some(size)) => {
                let Some((tensor, behind)) = rest.split_at_checked(size) else {
                    return Err(format!("output `{name}` is to have {size} bytes, the answer has {} more", rest.len()));
                };
                bytes(name, datatype, wanted, tensor)?;
                *rest = behind;
            }
            // What has no JSON form is an object.
            _ if output["data"].is_object() => {}
            _ => {
                let found = output["data"].as_array().ok_or_else(|| format!("output `{name}` has no data"))?.len();
                counted(name, wanted, found, "elements")?;
            }
        }
        told.push(format!("{name} {datatype} {shape:?}"));
    }
    Ok(told)
}

fn proto(answer: &ModelInferResponse) -> Result<Vec<String>, String> {
    let mut raw = answer.raw_output_contents.iter();
    let mut told = Vec::with_capacity(answer.outputs.len());
    for output in &answer.outputs {
        let wanted = elements(&output.name, &output.shape)?;
        // Typed contents are what some servers send instead.
        if let Some(tensor) = raw.next() {
            bytes(&output.name, &output.datatype, wanted, tensor)?;
        } else if output.contents.is_none() {
            return Err(format!("output `{}` has no data", output.name));
        }
        told.push(format!("{} {} {:?}", output.name, output.datatype, output.shape));
    }
    Ok(told)
}

fn elements(name: &str, shape: &[i64]) -> Result<usize, String> {
    let product = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(usize::try_from(*dim).ok()?));
    product.ok_or_else(|| format!("output `{name}` has shape {shape:?}"))
}

fn bytes(name: &str, datatype: &str, elements: usize, tensor: &[u8]) -> Result<(), String> {
    let dtype = DataType::parse(datatype).ok_or_else(|| format!("output `{name}` is of unknown type {datatype}"))?;
    match dtype.size() {
        Some(size) => counted(name, elements.saturating_mul(size), tensor.len(), "bytes"),
        None => Ok(()),
    }
}

fn counted(name: &str, wanted: usize, found: usize, what: &str) -> Result<(), String> {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("output `{name}` has {found} {what}, its shape says {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::inference::model_infer_response::InferOutputTensor;

    fn kept(body: &[u8], json: Option<usize>) -> Kept {
        Kept { body: body.to_vec(), json }
    }

    #[test]
    fn an_answer_in_json_has_as_many_elements_as_its_shape_says() {
        let body = br#"{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1,2]}]}"#;
        assert_eq!(answer(Surface::Rest, &kept(body, None)), Ok("y FP32 [1, 2]".into()));
        for (body, says) in [
            (&br#"{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1]}]}"#[..], "has 1 elements"),
            (br#"{"outputs":[{"name":"y","datatype":"FP32","shape":[-1],"data":[1]}]}"#, "shape [-1]"),
            (br#"{"outputs":[]}"#, "no outputs"),
            (br#"{"error":"no"}"#, "no `outputs`"),
            (b"<html>", "no JSON"),
        ] {
            let error = answer(Surface::Websocket, &kept(body, None)).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn raw_tensors_are_where_and_what_they_are_said_to_be() {
        let text = br#"{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]}"#;
        let body = [&text[..], &[0; 8]].concat();
        assert_eq!(answer(Surface::RestBinary, &kept(&body, Some(text.len()))), Ok("y FP32 [2]".into()));
        let cut = kept(&body[..body.len() - 1], Some(text.len()));
        assert!(answer(Surface::RestBinary, &cut).unwrap_err().contains("has 7 more"));
        assert!(answer(Surface::RestBinary, &kept(&body, None)).unwrap_err().contains("where"));
    }

    #[test]
    fn messages_are_held_to_their_shapes() {
        let output =
            InferOutputTensor { name: "y".into(), datatype: "INT64".into(), shape: vec![2], ..Default::default() };
        let of = |raw: Vec<u8>| ModelInferResponse {
            outputs: vec![output.clone()],
            raw_output_contents: vec![raw.into()],
            ..Default::default()
        };
        assert_eq!(answer(Surface::Grpc, &kept(&of(vec![0; 16]).encode_to_vec(), None)), Ok("y INT64 [2]".into()));
        let short = ModelStreamInferResponse { infer_response: Some(of(vec![0; 8])), ..Default::default() };
        let error = answer(Surface::GrpcStream, &kept(&short.encode_to_vec(), None)).unwrap_err();
        assert_eq!(error, "output `y` has 8 bytes, its shape says 16");
    }
}
