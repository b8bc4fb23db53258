//! What the JSON codec promises (contract 01 sections 2, 3 and 6; contract 00 section 6).

mod decode;
mod elements;
mod encode;
mod messages;
mod oracle;

use super::*;
use crate::{
    call::NamedTensor,
    tensor::{DataType, Tensor},
};

fn v2(json: &str) -> Result<Request, Error> {
    decode_request(json.as_bytes(), Dialect::V2, None, &Settings::default())
}

/// A request with one input `X` of these members, all but its name.
fn one(members: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"X",{members}}}]}}"#)
}

/// The tensor of that input, or the text of the error.
fn tensor_with(datatype: &str, shape: &str, data: &str, settings: &Settings) -> Result<Tensor, String> {
    let json = one(&format!(r#""shape":{shape},"datatype":"{datatype}","data":{data}"#));
    let turned = one(&format!(r#""data":{data},"shape":{shape},"datatype":"{datatype}""#));
    let read = |json: &str| {
        let request = decode_request(json.as_bytes(), Dialect::V2, None, settings);
        request.map(|request| request.inputs.into_iter().next().unwrap().tensor).map_err(|error| error.to_string())
    };
    let tensor = read(&json);
    // The order of members must not matter.
    match (&tensor, read(&turned)) {
        (Ok(tensor), Ok(turned)) => assert_eq!(tensor.data(), turned.data()),
        (Err(_), Err(_)) => {}
        (tensor, turned) => panic!("{tensor:?} and {turned:?} for {json}"),
    }
    tensor
}

fn tensor(datatype: &str, shape: &str, data: &str) -> Result<Tensor, String> {
    tensor_with(datatype, shape, data, &Settings::default())
}

fn named(name: &str, tensor: Tensor) -> NamedTensor {
    NamedTensor { name: name.into(), tensor }
}

fn singles(values: &[f32]) -> NamedTensor {
    named("Y", Tensor::of(DataType::Fp32, [values.len()].into(), values.to_vec()).unwrap())
}
