//! LZ4 frames, read alone: what producers send may be anything, and this is safe whatever it is.
//!
//! Format: <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md> and `lz4_Block_format.md` beside it. Its own checksums are stepped
//! over: the batch's covers the same bytes.

/// First bytes of a frame.
const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

const BLOCK_CHECKSUM: u8 = 1 << 4;
const CONTENT_SIZE: u8 = 1 << 3;
const CONTENT_CHECKSUM: u8 = 1 << 2;
const DICTIONARY: u8 = 1;

/// Of a block's length: it is stored as it is.
const STORED: u32 = 1 << 31;

/// Least length of a match.
const MATCH_MIN: usize = 4;

/// Why a frame cannot be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lz4Error {
    /// It is no frame, or damaged.
    Damaged,
    /// It would be longer than it may be.
    TooLong,
}

/// Decompresses frames to at most `bytes_max` bytes.
pub fn decompress(mut frames: &[u8], bytes_max: usize) -> Result<Vec<u8>, Lz4Error> {
    let mut out = Vec::with_capacity(frames.len().saturating_mul(4).min(bytes_max));
    while !frames.is_empty() {
        frame(&mut frames, &mut out, bytes_max)?;
    }
    Ok(out)
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Result<&'a [u8], Lz4Error> {
    let (taken, rest) = from.split_at_checked(length).ok_or(Lz4Error::Damaged)?;
    *from = rest;
    Ok(taken)
}

fn frame(from: &mut &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), Lz4Error> {
    if take(from, 4)? != MAGIC {
        return Err(Lz4Error::Damaged);
    }
    let flags = take(from, 2)?[0];
    if flags >> 6 != 1 {
        return Err(Lz4Error::Damaged);
    }
    let size = if flags & CONTENT_SIZE != 0 { 8 } else { 0 };
    let dictionary = if flags & DICTIONARY != 0 { 4 } else { 0 };
    take(from, size + dictionary + 1)?;
    loop {
        let head = take(from, 4)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if length == 0 {
            break;
        }
        let block = take(from, (length & !STORED) as usize)?;
        if length & STORED != 0 {
            append(out, block, bytes_max)?;
        } else {
            decode(block, out, bytes_max)?;
        }
        if flags & BLOCK_CHECKSUM != 0 {
            take(from, 4)?;
        }
    }
    if flags & CONTENT_CHECKSUM != 0 {
        take(from, 4)?;
    }
    Ok(())
}

fn append(out: &mut Vec<u8>, bytes: &[u8], bytes_max: usize) -> Result<(), Lz4Error> {
    if out.len() + bytes.len() > bytes_max {
        return Err(Lz4Error::TooLong);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// A length that begins in a token: 15 says that more bytes of it follow.
fn length(from: &mut &[u8], begun: u8) -> Result<usize, Lz4Error> {
    let mut length = usize::from(begun);
    if begun == 15 {
        loop {
            let more = take(from, 1)?[0];
            length += usize::from(more);
            if more != u8::MAX {
                break;
            }
        }
    }
    Ok(length)
}

/// One block. Matches may lie in the blocks before it.
fn decode(mut block: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), Lz4Error> {
    while !block.is_empty() {
        let token = take(&mut block, 1)?[0];
        let literals = length(&mut block, token >> 4)?;
        append(out, take(&mut block, literals)?, bytes_max)?;
        if block.is_empty() {
            // The last sequence has literals alone.
            return Ok(());
        }
        let back = take(&mut block, 2)?;
        let back = usize::from(u16::from_le_bytes([back[0], back[1]]));
        let mut left = length(&mut block, token & 15)? + MATCH_MIN;
        let start = out.len().checked_sub(back).filter(|_| back > 0).ok_or(Lz4Error::Damaged)?;
        if out.len() + left > bytes_max {
            return Err(Lz4Error::TooLong);
        }
        // A match may reach into what it writes: it is copied in pieces that are there already.
        while left > 0 {
            let piece = left.min(out.len() - start);
            out.extend_from_within(start..start + piece);
            left -= piece;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn compressed(text: &[u8], info: FrameInfo) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn frames_of_every_form_come_back() {
        let mut random = StdRng::seed_from_u64(1);
        let noise: Vec<u8> = (0..200_000).map(|_| random.random()).collect();
        let words: Vec<u8> = (0..200_000).map(|_| b"abc de"[random.random_range(0..6)]).collect();
        for text in [Vec::new(), b"a".to_vec(), vec![b'x'; 300_000], noise, words] {
            for mode in [BlockMode::Independent, BlockMode::Linked] {
                let info = FrameInfo::new().block_mode(mode).block_size(BlockSize::Max64KB).block_checksums(true).content_checksum(true);
                let frames = [compressed(&text, info), compressed(b"another", FrameInfo::new())].concat();
                let expected = [text.as_slice(), b"another"].concat();
                assert!(decompress(&frames, expected.len()).unwrap() == expected, "{mode:?} {}", text.len());
                assert_eq!(decompress(&frames, expected.len() - 1), Err(Lz4Error::TooLong));
            }
        }
    }

    #[test]
    fn damage_ends_in_an_error_or_in_other_bytes() {
        let good = compressed(&b"again and again ".repeat(100), FrameInfo::new());
        for cut in 1..good.len() {
            assert!(decompress(&good[..cut], 1 << 20).is_err(), "{cut}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                drop(decompress(&bad, 1 << 20));
            }
        }
    }
}
