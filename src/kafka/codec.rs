//! Compression of batches.

use std::borrow::Cow;
use std::io::{Read, Write};

use super::lz4::{self, Lz4Error};
use super::{KafkaError, Result};

/// How the records of a batch are compressed; the bits 0 to 2 of its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    None = 0,
    /// RFC 1952.
    Gzip = 1,
    /// Snappy, in the frames of its Java library or in one block.
    Snappy = 2,
    /// LZ4 frames.
    Lz4 = 3,
    /// RFC 8878.
    Zstd = 4,
}

/// What the Java library of Snappy puts before its blocks: a magic number and two versions.
const XERIAL_MAGIC: &[u8] = &[0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEAD_BYTES: usize = 16;

/// Greatest window of zstd, as a power of two: 128 MiB, what producers can be set to.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

impl Codec {
    /// Of a batch's attributes; none for one that is unknown.
    pub fn of(attributes: i16) -> Option<Codec> {
        Some(match attributes & 7 {
            0 => Codec::None,
            1 => Codec::Gzip,
            2 => Codec::Snappy,
            3 => Codec::Lz4,
            4 => Codec::Zstd,
            _ => return None,
        })
    }

    /// Decompresses the records of the batch at `offset`, which may give `bytes_max` bytes.
    pub fn decompress(self, bytes: &[u8], offset: i64, bytes_max: usize) -> Result<Cow<'_, [u8]>> {
        let failed = |error: &dyn std::fmt::Display| KafkaError::Damaged { offset, reason: error.to_string() };
        let read = |from: &mut dyn Read| {
            let mut out = Vec::with_capacity(bytes.len().saturating_mul(4).min(bytes_max));
            from.take(bytes_max as u64 + 1).read_to_end(&mut out).map_err(|error| failed(&error))?;
            bounded(out, bytes_max)
        };
        match self {
            Codec::None => Ok(Cow::Borrowed(bytes)),
            Codec::Gzip => read(&mut flate2::read::MultiGzDecoder::new(bytes)),
            Codec::Lz4 => lz4::decompress(bytes, bytes_max).map(Cow::Owned).map_err(|error| match error {
                Lz4Error::Damaged => failed(&"the LZ4 frame is damaged"),
                Lz4Error::TooLong => too_long(bytes_max as u64 + 1, bytes_max),
            }),
            Codec::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(|error| failed(&error))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| failed(&error))?;
                read(&mut decoder)
            }
            Codec::Snappy => snappy(bytes, bytes_max).map_err(|reason| match reason {
                Some(reason) => KafkaError::Damaged { offset, reason },
                None => too_long(bytes_max as u64 + 1, bytes_max),
            }),
        }
    }

    /// Compresses records, as a producer does. LZ4 is read alone.
    pub fn compress(self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Codec::None => Ok(bytes.to_vec()),
            Codec::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Codec::Snappy => snap::raw::Encoder::new().compress_vec(bytes).map_err(std::io::Error::other),
            Codec::Lz4 => Err(std::io::ErrorKind::Unsupported.into()),
            Codec::Zstd => zstd::encode_all(bytes, 1),
        }
    }
}

fn bounded<'a>(out: Vec<u8>, bytes_max: usize) -> Result<Cow<'a, [u8]>> {
    if out.len() > bytes_max { Err(too_long(out.len() as u64, bytes_max)) } else { Ok(Cow::Owned(out)) }
}

fn too_long(bytes: u64, max: usize) -> KafkaError {
    KafkaError::TooLong { what: "a batch", bytes, limit: "limits.kafka.batch_bytes_max", max }
}

/// Why not, or none where it would be too long.
fn snappy(bytes: &[u8], bytes_max: usize) -> Result<Cow<'_, [u8]>, Option<String>> {
    let mut out = Vec::new();
    let mut block = |block: &[u8]| {
        let length = snap::raw::decompress_len(block).map_err(|error| Some(error.to_string()))?;
        let start = out.len();
        if start + length > bytes_max {
            return Err(None);
        }
        out.resize(start + length, 0);
        let written = snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(|error| Some(error.to_string()))?;
        out.truncate(start + written);
        Ok(())
    };
    if !bytes.starts_with(XERIAL_MAGIC) {
        block(bytes)?;
        return Ok(Cow::Owned(out));
    }
    let ended = || Some("the compressed data ends early".to_owned());
    let mut rest = bytes.get(XERIAL_HEAD_BYTES..).ok_or_else(ended)?;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(ended)?;
        let (one, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(ended)?;
        block(one)?;
        rest = after;
    }
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Codec; 4] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Zstd];

    #[test]
    fn what_is_compressed_comes_back_within_its_limit() {
        let text = b"an event like any other, ".repeat(4_000);
        for codec in ALL {
            let compressed = codec.compress(&text).unwrap();
            assert_eq!(Codec::of(codec as i16), Some(codec));
            assert_eq!(codec.decompress(&compressed, 0, text.len()).unwrap(), text.as_slice(), "{codec:?}");
            if codec != Codec::None {
                let long = codec.decompress(&compressed, 0, text.len() - 1);
                assert!(matches!(long, Err(KafkaError::TooLong { .. })), "{codec:?} {long:?}");
                assert!(matches!(codec.decompress(&compressed[..20], 0, 1 << 20), Err(KafkaError::Damaged { .. })), "{codec:?}");
            }
        }
    }

    #[test]
    fn javas_frames_of_snappy_are_read() {
        let mut framed = [XERIAL_MAGIC, &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
        for part in [b"first ".as_slice(), b"second"] {
            let block = Codec::Snappy.compress(part).unwrap();
            framed.extend_from_slice(&(block.len() as u32).to_be_bytes());
            framed.extend_from_slice(&block);
        }
        assert_eq!(Codec::Snappy.decompress(&framed, 0, 12).unwrap(), b"first second".as_slice());
        assert!(Codec::Snappy.decompress(&framed, 0, 11).is_err());
        assert!(Codec::Snappy.decompress(&framed[..framed.len() - 1], 0, 12).is_err());
    }
}
