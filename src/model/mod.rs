//! Models: their versions, their signatures, and the router at the bottom of the stack.
