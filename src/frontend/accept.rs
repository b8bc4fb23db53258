//! Acceptors, connection limits, the address gate, drain.
