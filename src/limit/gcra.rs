//! The generic cell rate algorithm; no clock, no map.
