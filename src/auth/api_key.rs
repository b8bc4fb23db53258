//! API keys from a file: hashed, compared in constant time, re-read when the file changes.
