//! HTTP/2 requests as bytes, for clients that open many streams and read none of the answers.

/// Largest window of flow control (RFC 9113, section 6.9.1).
pub const WINDOW: u32 = i32::MAX as u32;

/// Type of a frame, RFC 9113, section 6.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

/// `END_STREAM` and `END_HEADERS`.
const WHOLE: u8 = 5;

/// What a client sends that asks for `path` on `streams` streams, each with this window and these
/// headers, which fit into one frame: at most 16 KiB. The connection's window is the largest.
pub fn requests(path: &str, streams: u32, window: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let mut settings = vec![0, 4];
    settings.extend_from_slice(&window.to_be_bytes());
    frame(&mut sent, SETTINGS, 0, 0, &settings);
    let more = (WINDOW - 65_535).to_be_bytes();
    frame(&mut sent, WINDOW_UPDATE, 0, 0, &more);
    // `:method: GET`, `:scheme: http`, `:path` and `:authority` by their place in the static table.
    let mut block = vec![0x82, 0x86, 0x04];
    string(&mut block, path);
    block.push(0x01);
    string(&mut block, "a");
    for (name, value) in headers {
        block.push(0x00);
        string(&mut block, name);
        string(&mut block, value);
    }
    for stream in 0..streams {
        frame(&mut sent, HEADERS, WHOLE, 2 * stream + 1, &block);
    }
    sent
}

fn frame(sent: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    sent.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
    sent.extend_from_slice(&stream.to_be_bytes());
    sent.extend_from_slice(payload);
}

/// A string literal without Huffman coding (RFC 7541, sections 5.1 and 5.2).
fn string(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap_or(0));
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128 + 128).unwrap_or(0));
            length /= 128;
        }
        block.push(u8::try_from(length).unwrap_or(0));
    }
    block.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_coded_as_integers_with_a_prefix() {
        for (length, expect) in [
            (1, &[1][..]),
            (126, &[126]),
            (127, &[127, 0]),
            (254, &[127, 127]),
            (255, &[127, 128, 1]),
            (1464, &[127, 185, 10]),
        ] {
            let mut block = Vec::new();
            string(&mut block, &"x".repeat(length));
            assert_eq!(&block[..expect.len()], expect, "{length}");
            assert_eq!(block.len(), expect.len() + length);
        }
    }
}
