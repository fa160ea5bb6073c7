//! Streaming digests whose state can be carried from one replica to another.

use crate::digest::{Algorithm, Digest};
use sha2::{
    Digest as _, Sha256, Sha512,
    digest::{common::hazmat::SerializableState, typenum::Unsigned},
};

/// Most blocks that a saved state may have taken in: of 64 bytes they are 2^54 bytes.
const MAX_BLOCKS: u64 = 1 << 48;

/// The bytes are not a saved state of the algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the saved state of a digest is not valid")]
pub struct InvalidState;

/// A digest in the making.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Starts at byte zero.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// The algorithm of the digest.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            State::Sha256(_) => Algorithm::Sha256,
            State::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::from_sha256(state.finalize().into()),
            State::Sha512(state) => Digest::from_sha512(state.finalize().into()),
        }
    }

    /// The state between two bytes, to continue elsewhere with [`Hasher::restore`].
    pub fn save(&self) -> Vec<u8> {
        match &self.0 {
            State::Sha256(state) => state.serialize().to_vec(),
            State::Sha512(state) => state.serialize().to_vec(),
        }
    }

    /// Continues from a saved state. The bytes must come from a trusted place (a signed token): a
    /// wrong state gives wrong digests.
    ///
    /// # Errors
    /// When the bytes cannot be a state of this algorithm.
    pub fn restore(algorithm: Algorithm, saved: &[u8]) -> Result<Self, InvalidState> {
        // Behind the words of the state stands the number of blocks, in little-endian order. The
        // length of any content in bits fits.
        let words = algorithm.hex_length() / 2;
        let count = saved
            .get(words..words + 8)
            .and_then(|bytes| bytes.try_into().ok());
        let above = match algorithm {
            Algorithm::Sha256 => &[][..],
            Algorithm::Sha512 => saved.get(words + 8..words + 16).unwrap_or_default(),
        };
        if count
            .map(u64::from_le_bytes)
            .is_none_or(|blocks| MAX_BLOCKS < blocks)
            || above.iter().any(|byte| *byte != 0)
        {
            return Err(InvalidState);
        }
        Ok(Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(restore(saved)?),
            Algorithm::Sha512 => State::Sha512(restore(saved)?),
        }))
    }

    /// The digest of bytes in memory.
    pub fn digest(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Self::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }
}

fn restore<S: SerializableState>(saved: &[u8]) -> Result<S, InvalidState> {
    if saved.len() != S::SerializedStateSize::USIZE {
        return Err(InvalidState);
    }
    let state = saved.try_into().map_err(|_| InvalidState)?;
    S::deserialize(state).map_err(|_| InvalidState)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_state_continues_anywhere() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let bytes: Vec<u8> = (0..1000_u32).map(|n| (n % 251) as u8).collect();
            for cut in [0, 1, 63, 64, 127, 128, 200, 999] {
                let mut first = Hasher::new(algorithm);
                first.update(&bytes[..cut]);
                let mut second = Hasher::restore(algorithm, &first.save()).unwrap();
                second.update(&bytes[cut..]);
                assert_eq!(
                    second.finish(),
                    Hasher::digest(algorithm, &bytes),
                    "cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn a_state_that_claims_more_than_there_can_be_is_refused() {
        for (algorithm, count) in [(Algorithm::Sha256, 32), (Algorithm::Sha512, 64)] {
            let saved = Hasher::new(algorithm).save();
            assert!(Hasher::restore(algorithm, &saved).is_ok());
            for at in [count + 6, count + 7] {
                let mut large = saved.clone();
                large[at] = 0xff;
                assert!(Hasher::restore(algorithm, &large).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn foreign_state_is_refused() {
        assert!(matches!(
            Hasher::restore(Algorithm::Sha256, b"short"),
            Err(InvalidState)
        ));
    }
}
