//! Where HTTP/2 frames begin in a stream of bytes, and what their headers say (RFC 9113 section 4.1).
//!
//! Finds headers however the bytes are cut, and skips payloads without a look at them. Knows neither sockets nor clocks,
//! nor what a frame may cost: that is `flood`'s.

/// Bytes of a header.
pub(super) const HEADER: usize = 9;

/// Types of frames (RFC 9113 section 6).
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const SETTINGS: u8 = 4;
    pub(in super::super) const PING: u8 = 6;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 8;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

/// END_STREAM of DATA and HEADERS.
const END_STREAM: u8 = 0x1;
/// ACK of SETTINGS and PING.
const ACK: u8 = 0x1;

/// The header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of payload.
    pub(super) length: u32,
    /// See [`kind`].
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// The stream that it is about; 0: the connection.
    pub(super) stream: u32,
}

/// Finds headers in bytes as they pass by.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The beginning of a header whose end has not come.
    part: [u8; HEADER],
    have: usize,
    /// Bytes of payload before the next header.
    payload: usize,
}

// === impl Header ===

impl Header {
    fn of([l0, l1, l2, kind, flags, s0, s1, s2, s3]: [u8; HEADER]) -> Self {
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        // The first bit is reserved.
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        Self { length, kind, flags, stream }
    }

    pub(super) fn ends_stream(self) -> bool {
        self.flags & END_STREAM != 0
    }

    pub(super) fn is_ack(self) -> bool {
        self.flags & ACK != 0
    }
}

// === impl Frames ===

impl Frames {
    /// The next header whose last byte is in `bytes` from `at` on. Moves `at` behind it, or to the end if there is none.
    pub(super) fn next(&mut self, bytes: &[u8], at: &mut usize) -> Option<Header> {
        let skipped = self.payload.min(bytes.len() - *at);
        self.payload -= skipped;
        *at += skipped;
        let header = match bytes.get(*at..*at + HEADER) {
            Some(whole) if self.have == 0 => {
                *at += HEADER;
                whole.try_into().expect("as long as a header")
            }
            _ => {
                let missing = &bytes[*at..bytes.len().min(*at + HEADER - self.have)];
                self.part[self.have..self.have + missing.len()].copy_from_slice(missing);
                self.have += missing.len();
                *at += missing.len();
                if self.have < HEADER {
                    return None;
                }
                self.have = 0;
                self.part
            }
        };
        let header = Header::of(header);
        // 24 bits fit.
        self.payload = header.length as usize;
        Some(header)
    }

    /// The beginning of a header whose end has not come.
    pub(super) fn part(&self) -> &[u8] {
        &self.part[..self.have]
    }

    /// Whether the bytes so far end where a frame ends.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.payload == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(length: usize, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        // Looks like headers of other frames, and must not be taken for them.
        bytes.resize(bytes.len() + length, kind::PING);
        bytes
    }

    fn all(frames: &mut Frames, bytes: &[u8]) -> Vec<Header> {
        let mut at = 0;
        let found = std::iter::from_fn(|| frames.next(bytes, &mut at)).collect();
        assert_eq!(at, bytes.len());
        found
    }

    #[test]
    fn headers_are_read_and_payloads_skipped() {
        let bytes =
            [frame(0, kind::SETTINGS, 1, 0), frame(70_000, kind::DATA, 1, 0x8000_0005), frame(8, kind::PING, 0, 0)];
        let found = all(&mut Frames::default(), &bytes.concat());
        let header = |length, kind, flags, stream| Header { length, kind, flags, stream };
        assert_eq!(
            found,
            [header(0, kind::SETTINGS, 1, 0), header(70_000, kind::DATA, 1, 5), header(8, kind::PING, 0, 0)]
        );
    }

    #[test]
    fn it_knows_where_a_frame_ends() {
        let mut frames = Frames::default();
        assert!(frames.is_between());
        let bytes = frame(3, kind::DATA, 0, 1);
        for byte in &bytes[..bytes.len() - 1] {
            all(&mut frames, &[*byte]);
            assert!(!frames.is_between());
        }
        all(&mut frames, &bytes[bytes.len() - 1..]);
        assert!(frames.is_between());
        all(&mut frames, &bytes[..5]);
        assert_eq!(frames.part(), &bytes[..5]);
    }

    proptest! {
        #[test]
        fn pieces_tell_what_the_whole_tells(
            frames in proptest::collection::vec((0_usize..40, any::<u8>(), any::<u8>(), any::<u32>()), 0..20),
            cuts in proptest::collection::vec(1_usize..30, 1..50),
        ) {
            let bytes: Vec<u8> =
                frames.into_iter().flat_map(|(length, kind, flags, stream)| frame(length, kind, flags, stream)).collect();
            let whole = all(&mut Frames::default(), &bytes);
            let (mut pieces, mut reader, mut rest) = (Vec::new(), Frames::default(), &bytes[..]);
            for cut in cuts.into_iter().cycle() {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.extend(all(&mut reader, piece));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(pieces, whole);
        }
    }
}
