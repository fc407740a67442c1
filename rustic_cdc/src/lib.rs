//! Rabin's fingerprint of the last bytes of a stream: where restic's format cuts files into pieces.
//!
//! Stands in for the crate of the same name that `rustic_core` cuts with, which computes the tables of a polynomial byte for byte, and `rustic_core` has it do so for
//! every file: a tenth of all the time that a first backup takes. Tables are sums of eight numbers, which cost next to nothing. Never: another fingerprint than
//! restic's, or everything would be saved once more.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

/// A polynomial over the field of two elements: bit `n` is the coefficient of `x^n`.
pub type Polynom64 = u64;

/// Arithmetic of polynomials.
pub trait Polynom {
    /// The highest power in it; -1 for none.
    fn degree(&self) -> i32;

    /// What is left of it when it is divided by `m`, which is not zero.
    #[must_use]
    fn modulo(&self, m: &Self) -> Self;
}

impl Polynom for Polynom64 {
    fn degree(&self) -> i32 {
        63 - self.leading_zeros().cast_signed()
    }

    fn modulo(&self, m: &Self) -> Self {
        let mut rest = *self;
        while rest.degree() >= m.degree() {
            rest ^= m << (rest.degree() - m.degree());
        }
        rest
    }
}

/// A fingerprint of a window that slides over a stream.
pub trait RollingHash64 {
    /// Forget the window, and fill all of a new one but its first byte; how many bytes there were.
    fn reset_and_prefill_window<I: Iterator<Item = u8>>(&mut self, bytes: &mut I) -> usize;

    /// One byte further.
    fn slide(&mut self, byte: u8);
}

/// The window, as a polynomial of which each byte has eight coefficients, modulo an irreducible one.
#[derive(Debug, Clone)]
pub struct Rabin64 {
    /// The fingerprint.
    pub hash: Polynom64,
    /// By how much the highest byte of a fingerprint is shifted.
    shift: u32,
    /// What a byte is worth when it leaves the window.
    leaving: [Polynom64; 256],
    /// What takes a byte that is too high away, and puts in what it is worth.
    reducing: [Polynom64; 256],
    window: [u8; 256],
    last: u8,
    at: u8,
}

impl Rabin64 {
    /// For windows of two to the power of `bits` bytes, at most 256, and a polynomial of a degree from 8 to 55.
    #[must_use]
    pub fn new_with_polynom(bits: u32, polynomial: &Polynom64) -> Self {
        let degree = polynomial.degree().unsigned_abs();
        let last = u8::try_from((1u32 << bits) - 1).unwrap_or(u8::MAX);
        // A byte leaves after all others of the window were appended to it.
        let mut oldest = 1;
        for _ in 0..u32::from(last) * 8 {
            oldest = times_x(oldest, polynomial);
        }
        let overflow = |byte: Polynom64| byte << degree;
        Self {
            hash: 0,
            shift: degree - 8,
            leaving: sums(oldest, polynomial),
            reducing: {
                let first = overflow(1).modulo(polynomial);
                let mut reduced = sums(first, polynomial);
                for (byte, entry) in (0..).zip(&mut reduced) {
                    *entry |= overflow(byte);
                }
                reduced
            },
            window: [0; 256],
            last,
            at: 0,
        }
    }

    fn append(&mut self, byte: u8) {
        let highest = (self.hash >> self.shift) as u8;
        self.hash = (self.hash << 8 | Polynom64::from(byte)) ^ self.reducing[usize::from(highest)];
        self.window[usize::from(self.at)] = byte;
        self.at = self.at.wrapping_add(1) & self.last;
    }
}

/// Of a polynomial that is reduced already.
fn times_x(polynomial: Polynom64, modulus: &Polynom64) -> Polynom64 {
    (polynomial << 1).modulo(modulus)
}

/// Every byte times `one`: it is the sum of its bits, and so is what comes of it.
fn sums(one: Polynom64, modulus: &Polynom64) -> [Polynom64; 256] {
    let mut sums = [0; 256];
    let mut of_bit = one;
    for bit in 0..8 {
        for byte in 0..1 << bit {
            sums[byte + (1 << bit)] = sums[byte] ^ of_bit;
        }
        of_bit = times_x(of_bit, modulus);
    }
    sums
}

impl RollingHash64 for Rabin64 {
    fn reset_and_prefill_window<I: Iterator<Item = u8>>(&mut self, bytes: &mut I) -> usize {
        self.hash = 0;
        let mut count = 0;
        for byte in bytes.take(self.last.into()) {
            self.append(byte);
            count += 1;
        }
        // Nothing is there that could leave next.
        self.window[usize::from(self.at)] = 0;
        count
    }

    #[inline]
    fn slide(&mut self, byte: u8) {
        let leaving = self.window[usize::from(self.at)];
        self.hash ^= self.leaving[usize::from(leaving)];
        self.append(byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By definition.
    fn fingerprint(window: &[u8], modulus: &Polynom64) -> Polynom64 {
        let append =
            |rest: Polynom64, byte: &u8| (rest << 8 | Polynom64::from(*byte)).modulo(modulus);
        window.iter().fold(0, append)
    }

    proptest! {
        #[test]
        fn a_fingerprint_is_that_of_the_window_alone(
            bits in 1u32..=8,
            low in 0u64..1 << 53,
            bytes in prop::collection::vec(any::<u8>(), 0..1000),
            before in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let (modulus, size) = (1 << 53 | low, 1usize << bits);
            let mut rabin = Rabin64::new_with_polynom(bits, &modulus);
            // What was before is forgotten.
            for byte in before {
                rabin.slide(byte);
            }
            let filled = rabin.reset_and_prefill_window(&mut bytes.iter().copied());
            prop_assert_eq!(filled, bytes.len().min(size - 1));
            prop_assert_eq!(rabin.hash, fingerprint(&bytes[..filled], &modulus));
            for end in filled + 1..=bytes.len() {
                rabin.slide(bytes[end - 1]);
                let window = &bytes[end.saturating_sub(size)..end];
                prop_assert_eq!(rabin.hash, fingerprint(window, &modulus));
            }
        }
    }

    #[test]
    fn what_is_left_is_of_a_lower_degree() {
        assert_eq!(0u64.degree(), -1);
        assert_eq!(0b1011u64.degree(), 3);
        // (x^3 + x + 1)(x + 1) + x = x^4 + x^3 + x^2 + x + 1
        assert_eq!(0b11111u64.modulo(&0b1011), 0b10);
        assert_eq!(0b10u64.modulo(&0b1011), 0b10);
    }
}
