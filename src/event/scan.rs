//! Finding bytes of interest, 64 at a time.
//!
//! memchr restarts at every hit, and a delimiter comes every few bytes: comparing a whole block and keeping the hits as
//! bits of one word costs a byte less than half as much. The comparison is written so that the compiler vectorizes it.

/// How many different bytes a scanner looks for; unused places repeat one.
pub(crate) const NEEDLES: usize = 5;

const BLOCK: usize = 64;

/// Yields the positions of the needles, in order.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    bytes: &'a [u8],
    needles: [u8; NEEDLES],
    /// Start of the block that `hits` is of.
    block: usize,
    /// One bit a hit that has not been yielded.
    hits: u64,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(bytes: &'a [u8], needles: [u8; NEEDLES]) -> Self {
        let mut scanner = Scanner { bytes, needles, block: 0, hits: 0 };
        scanner.load();
        scanner
    }

    /// The next hit.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<usize> {
        while self.hits == 0 {
            if self.block + BLOCK >= self.bytes.len() {
                return None;
            }
            self.block += BLOCK;
            self.load();
        }
        let bit = self.hits.trailing_zeros() as usize;
        self.hits &= self.hits - 1;
        Some(self.block + bit)
    }

    /// Forgets a hit at `position`, which is that of the last hit or one more.
    #[inline]
    pub(crate) fn skip(&mut self, position: usize) {
        while self.hits == 0 && self.block + BLOCK <= position && self.block + BLOCK < self.bytes.len() {
            self.block += BLOCK;
            self.load();
        }
        if let Some(bit) = position.checked_sub(self.block).filter(|bit| *bit < BLOCK) {
            self.hits &= !(1 << bit);
        }
    }

    #[inline]
    fn load(&mut self) {
        let rest = self.bytes.get(self.block..).unwrap_or_default();
        self.hits = match rest.first_chunk::<BLOCK>() {
            Some(block) => hits(block, &self.needles),
            None => {
                let mut block = [0; BLOCK];
                block[..rest.len()].copy_from_slice(rest);
                hits(&block, &self.needles) & !(u64::MAX << rest.len())
            }
        };
    }
}

#[inline]
fn hits(block: &[u8; BLOCK], needles: &[u8; NEEDLES]) -> u64 {
    let mut flags = [0u8; BLOCK];
    let [a, b, c, d, e] = *needles;
    for (flag, byte) in flags.iter_mut().zip(block) {
        *flag = u8::from((*byte == a) | (*byte == b) | (*byte == c) | (*byte == d) | (*byte == e));
    }
    // Gathers the lowest bits of eight bytes into one: the factor moves bit 8k to bit 56 + k.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let (words, _) = flags.as_chunks::<8>();
    words.iter().enumerate().fold(0, |hits, (index, word)| hits | (u64::from_le_bytes(*word).wrapping_mul(GATHER) >> 56) << (8 * index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_plain_loop_finds() {
        let bytes: Vec<u8> = (0..1000u32).map(|index| b"ab,c\nd\"e"[(index.wrapping_mul(2_654_435_761) >> 20) as usize % 8]).collect();
        for length in [0, 1, 63, 64, 65, 128, 1000] {
            let bytes = &bytes[..length];
            let mut scanner = Scanner::new(bytes, *b",\n\",,");
            let found: Vec<usize> = std::iter::from_fn(|| scanner.next()).collect();
            let expected: Vec<usize> = (0..length).filter(|index| b",\n\"".contains(&bytes[*index])).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn skips_across_blocks() {
        let bytes = [b','; 130];
        let mut scanner = Scanner::new(&bytes, *b",,,,,");
        let mut found = Vec::new();
        while let Some(at) = scanner.next() {
            found.push(at);
            scanner.skip(at + 1);
        }
        assert_eq!(found, (0..130).step_by(2).collect::<Vec<_>>());
    }
}
