//! One line per call, from the facts.
