//! Close codes: those of errors come from the one table, those of a session stand here (contract 06 A4 and C7).

use crate::error::Code;

/// The session is over, and nobody is at fault.
pub(super) const NORMAL: u16 = 1000;
/// A fault against RFC 6455.
pub(super) const PROTOCOL: u16 = 1002;
/// A text that is not UTF-8.
pub(super) const NOT_TEXT: u16 = 1007;
/// More of something than a peer may send.
pub(super) const POLICY: u16 = 1008;
/// A message beyond a limit.
pub(super) const TOO_BIG: u16 = 1009;
/// No capacity for the session.
pub(super) const NO_CAPACITY: u16 = 1013;
/// No `hello` in time.
pub(super) const NO_HELLO: u16 = 4408;
/// An `id` that is in flight.
pub(super) const DUPLICATE: u16 = 4409;
/// A second `hello`.
pub(super) const SECOND_HELLO: u16 = 4429;
/// More sessions than one identity may have.
pub(super) const TOO_MANY: u16 = 4429;
/// The peer does not read.
pub(super) const SLOW: u16 = 4430;

/// What the failure of a session itself is closed with; what the table has no number for is our fault.
pub(super) fn of(code: Code) -> u16 {
    /// `internal`, as a number: the table has it, and a test says so.
    const INTERNAL: u16 = 1011;
    code.row().websocket_close.unwrap_or(INTERNAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_without_a_number_are_closed_as_internal() {
        assert_eq!(of(Code::Internal), of(Code::Overloaded));
        assert_eq!(of(Code::Internal), Code::Internal.row().websocket_close.unwrap());
        assert_eq!(of(Code::PayloadTooLarge), TOO_BIG);
    }
}
