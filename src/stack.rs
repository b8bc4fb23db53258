//! THE tower stack, outermost to innermost, in one function.
