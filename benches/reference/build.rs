//! Generates the gRPC service of `proto/open_inference.proto`: the product's messages, and a server for them.

use std::error::Error;

const SOURCE: &str = "../../proto/open_inference.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .generate_default_stubs(true)
        .bytes(".")
        .compile_fds(protox::compile([SOURCE], ["../../proto"])?)?;
    Ok(())
}
