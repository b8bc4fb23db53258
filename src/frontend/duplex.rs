//! THE loop of message-oriented surfaces.
