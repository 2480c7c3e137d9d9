use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{Decoder, Encoder, Frame, SpdyError};

fn encode(frames: &[Frame]) -> BytesMut {
    let mut encoder = Encoder::new().unwrap();
    let mut bytes = BytesMut::new();
    for frame in frames {
        encoder.encode(frame, &mut bytes).unwrap();
    }
    bytes
}

/// Decodes bytes that arrive in pieces of `piece`; joins the pieces of data frames.
fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, SpdyError> {
    let mut decoder = Decoder::default();
    let mut frames: Vec<Frame> = Vec::new();
    let mut is_open = false;
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        while let Some(frame) = decoder.frame()? {
            match (frames.last_mut(), frame) {
                (
                    Some(Frame::Data { stream: of, fin: old_fin, bytes: old }),
                    Frame::Data { stream, fin, bytes },
                ) if is_open && *of == stream => {
                    *old = [&old[..], &bytes[..]].concat().into();
                    *old_fin = fin;
                }
                (_, frame) => frames.push(frame),
            }
            is_open = decoder.is_inside_data();
        }
    }
    Ok(frames)
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("[a-z-]{1,20}", "[ -~]{0,40}"), 0..6)
}

fn frame() -> impl Strategy<Value = Frame> {
    let stream = 0_u32..0x8000_0000;
    prop_oneof![
        (stream.clone(), any::<bool>(), headers())
            .prop_map(|(stream, fin, headers)| Frame::SynStream { stream, fin, headers }),
        (stream.clone(), any::<bool>(), headers())
            .prop_map(|(stream, fin, headers)| Frame::SynReply { stream, fin, headers }),
        (stream.clone(), any::<bool>(), headers())
            .prop_map(|(stream, fin, headers)| Frame::Headers { stream, fin, headers }),
        (stream.clone(), any::<u32>())
            .prop_map(|(stream, status)| Frame::RstStream { stream, status }),
        any::<u32>().prop_map(|id| Frame::Ping { id }),
        (stream.clone(), any::<u32>())
            .prop_map(|(last_stream, status)| Frame::GoAway { last_stream, status }),
        (stream.clone(), stream.clone())
            .prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        Just(Frame::Settings),
        (stream, any::<bool>(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(stream, fin, bytes)| Frame::Data { stream, fin, bytes: bytes.into() }),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(frames in prop::collection::vec(frame(), 0..8), piece in 1_usize..64) {
        prop_assert_eq!(decode(&encode(&frames), piece).unwrap(), frames);
    }

    #[test]
    fn no_bytes_upset_the_decoder(bytes: Vec<u8>, piece in 1_usize..32) {
        let _ = decode(&bytes, piece);
    }

    #[test]
    fn no_header_block_upsets_the_decoder(block in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = vec![0x80, 3, 0, 2, 0, 0, 0, u8::try_from(block.len() + 4).unwrap(), 0, 0, 0, 1];
        bytes.extend_from_slice(&[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
        bytes[7] = u8::try_from(block.len() + 10).unwrap();
        bytes.extend(block);
        let _ = decode(&bytes, 1000);
    }
}

#[test]
fn header_blocks_name_the_dictionary() {
    let bytes = encode(&[Frame::SynReply { stream: 1, fin: false, headers: Vec::new() }]);
    // zlib's head says "dictionary" and its checksum follows.
    assert_eq!(bytes[12] & 0x0f, 8);
    assert_eq!(bytes[13] & 0x20, 0x20);
    assert_eq!(&bytes[14..18], [0xe3, 0xc6, 0xa7, 0xc2]);
}

#[test]
fn names_are_sent_in_lower_case() {
    let headers = vec![("streamType".to_owned(), "error".to_owned())];
    let bytes = encode(&[Frame::SynStream { stream: 1, fin: false, headers }]);
    let Frame::SynStream { headers, .. } = &decode(&bytes, 1000).unwrap()[0] else { panic!() };
    assert_eq!(headers[0], ("streamtype".to_owned(), "error".to_owned()));
}

#[test]
fn bounds() {
    let check = |bytes: &[u8]| decode(bytes, 1000).unwrap_err().to_string();
    assert_eq!(
        check(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        "SPDY frame of version 2, expected 3"
    );
    assert_eq!(check(&[0x80, 3, 0, 99, 0, 0, 0, 0]), "SPDY frame of unknown type 99");
    assert_eq!(check(&[0x80, 3, 0, 6, 0, 0, 0, 1, 0]), "SPDY frame of type 6 with 1 bytes");
    assert_eq!(
        check(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        "SPDY frame of type 1 with 16777215 bytes"
    );
    // A small block that grows without end.
    let headers = vec![("a".to_owned(), "x".repeat(1 << 20))];
    let bytes = encode(&[Frame::SynReply { stream: 1, fin: false, headers }]);
    assert!(matches!(decode(&bytes, 1000), Err(SpdyError::HeadersTooLong)));
}

#[test]
fn large_data_takes_several_frames() {
    let bytes = Bytes::from(vec![7; (1 << 24) + 5]);
    let encoded = encode(&[Frame::Data { stream: 3, fin: true, bytes }]);
    let mut decoder = Decoder::default();
    *decoder.buffer() = encoded;
    let (mut n, mut n_fins) = (0, 0);
    while let Some(Frame::Data { fin, bytes, .. }) = decoder.frame().unwrap() {
        n += bytes.len();
        n_fins += usize::from(fin);
    }
    assert_eq!((n, n_fins), ((1 << 24) + 5, 1));
}
