//! Generates the messages and the client of `open_inference.proto`, without `protoc`.
//!
//! Also writes the file descriptors, which gRPC reflection serves. No server is generated: ours is a
//! method table that decodes lazily.

use prost::Message;
use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/open_inference.proto");
    let descriptors = protox::compile(["proto/open_inference.proto"], ["proto"])?;
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("inference_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(false)
        // Tests bring their own channel; the library must not depend on tonic's transport.
        .build_transport(false)
        // Raw tensors are cut out of the received message and not copied.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
