//! What needs no escape in a JSON string, for those who read strings and those who write them.

/// Bytes that stand for themselves in a JSON string: all but quotes, backslashes and controls. A table, because this is asked
/// of every byte of every string.
const PLAIN: [bool; 256] = {
    let mut table = [true; 256];
    let mut control = 0;
    while control < b' ' {
        table[control as usize] = false;
        control += 1;
    }
    table[b'"' as usize] = false;
    table[b'\\' as usize] = false;
    table
};

/// How many bytes at the start of `text` stand for themselves in a JSON string.
#[inline]
pub(super) fn plain_length(text: &[u8]) -> usize {
    text.iter().position(|byte| !PLAIN[usize::from(*byte)]).unwrap_or(text.len())
}
