//! The primitive types of the protocol: big-endian numbers, strings and bytes with a length before them, arrays with a count.

use super::{KafkaError, Result};

/// Writes a message.
#[derive(Clone, Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// INT8.
    pub fn i8(&mut self, value: i8) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// INT16.
    pub fn i16(&mut self, value: i16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// INT32.
    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// INT64.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// STRING. What is longer than the protocol has room for is cut.
    pub fn string(&mut self, text: &str) -> &mut Self {
        let text = &text[..text.floor_char_boundary(i16::MAX as usize)];
        self.i16(text.len() as i16).raw(text.as_bytes())
    }

    /// NULLABLE_STRING.
    pub fn nullable(&mut self, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.string(text),
            None => self.i16(-1),
        }
    }

    /// BYTES.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).raw(bytes)
    }

    /// The count of an array, or the length of bytes.
    pub fn count(&mut self, count: usize) -> &mut Self {
        self.i32(i32::try_from(count).unwrap_or(i32::MAX))
    }

    /// VARINT and VARLONG: zigzag, seven bits a byte.
    pub fn varint(&mut self, value: i64) -> &mut Self {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        while rest >= 0x80 {
            self.0.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
        self
    }
}

/// Reads a message; beyond its end is an error.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..length)).ok_or(KafkaError::Malformed("it ends early"))?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// INT8.
    pub fn i8(&mut self) -> Result<i8> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    /// INT16.
    pub fn i16(&mut self) -> Result<i16> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    /// INT32.
    pub fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// INT64.
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// NULLABLE_STRING.
    pub fn nullable(&mut self) -> Result<Option<&'a str>> {
        let Ok(length) = usize::try_from(self.i16()?) else { return Ok(None) };
        std::str::from_utf8(self.take(length)?).map(Some).map_err(|_| KafkaError::Malformed("a name is not UTF-8"))
    }

    /// STRING.
    pub fn string(&mut self) -> Result<&'a str> {
        self.nullable()?.ok_or(KafkaError::Malformed("a name is missing"))
    }

    /// NULLABLE_BYTES; NULL is empty.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        match usize::try_from(self.i32()?) {
            Ok(length) => self.take(length),
            Err(_) => Ok(&[]),
        }
    }

    /// An array, each member by `one`; NULL is empty.
    pub fn each<T>(&mut self, mut one: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let count = usize::try_from(self.i32()?).unwrap_or(0);
        // A member takes at least a byte, so that a count is no reason to take more memory than came.
        if count > self.left() {
            return Err(KafkaError::Malformed("an array has more members than bytes"));
        }
        (0..count).map(|_| one(self)).collect()
    }

    /// VARINT and VARLONG.
    #[inline]
    pub fn varint(&mut self) -> Result<i64> {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = *self.bytes.get(self.at).ok_or(KafkaError::Malformed("it ends early"))?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
            shift += 7;
            if shift > 63 {
                return Err(KafkaError::Malformed("a number is too long"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.i8(-1).i16(2).i32(-3).i64(4).string("five").nullable(None).bytes(b"six");
        for number in [0, -1, 1, 63, 64, -65, 300, i64::MAX, i64::MIN] {
            writer.varint(number);
        }
        let mut reader = Reader::new(&writer.0);
        assert_eq!((reader.i8().unwrap(), reader.i16().unwrap(), reader.i32().unwrap(), reader.i64().unwrap()), (-1, 2, -3, 4));
        assert_eq!((reader.string().unwrap(), reader.nullable().unwrap(), reader.bytes().unwrap()), ("five", None, b"six".as_slice()));
        for number in [0, -1, 1, 63, 64, -65, 300, i64::MAX, i64::MIN] {
            assert_eq!(reader.varint().unwrap(), number);
        }
        assert_eq!(reader.left(), 0);
        assert!(reader.i8().is_err());
        assert!(Reader::new(&[0x7f, 0xff, 0xff, 0xff]).each(|reader| reader.i8()).is_err());
        assert!(Reader::new(&[0xff; 11]).varint().is_err());
    }
}
