//! ONNX Runtime: environment, execution providers, session options.
