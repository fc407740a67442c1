//! The encrypted envelope of the restic format: how a blob, a pack and a JSON file look on the wire.
//!
//! Serves the three places where we read or write the format ourselves: the corrected trees of a streamed file, the lock
//! files, and the restore. Pure: bytes in, bytes out. Never: a nonce used twice, or data handed on whose MAC did not fit.

use std::cell::RefCell;
use std::fmt;
use std::io::{BufRead, BufReader, Read};

use aes256ctr_poly1305aes::aead::{self, AeadInPlace};
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key};
use bytes::Bytes;
use rand::RngExt;
use rustic_core::Id;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use zstd::bulk::Decompressor;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileId;

type Nonce = aead::Nonce<Aes256CtrPoly1305Aes>;
type Tag = aead::Tag<Aes256CtrPoly1305Aes>;

const NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// What the envelope adds to its content.
pub(super) const ENVELOPE_BYTES: usize = NONCE_BYTES + TAG_BYTES;
/// No blob and no JSON file may unpack to more: a bound for what a lying length can make us allocate.
const UNPACKED_BYTES_MAX: usize = 1 << 30;

const COMPRESSED_JSON: u8 = 2;
const COMPRESSED_TREE: u8 = 3;

/// The key of one repository, and what it does.
pub(super) struct Sealer {
    cipher: Aes256CtrPoly1305Aes,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

/// A tree blob inside a pack that we made.
pub(super) struct PackedTree {
    pub id: Id,
    pub offset: u32,
    pub length: u32,
    pub uncompressed_length: u32,
}

/// A pack of tree blobs, ready to be written.
pub(super) struct TreePack {
    pub id: FileId,
    pub content: Bytes,
    pub trees: Vec<PackedTree>,
}

impl Sealer {
    /// From the master key's parts: 32 bytes of AES key, 16 of `k`, 16 of `r`.
    pub(super) fn new(encrypt: &[u8], k: &[u8], r: &[u8]) -> Result<Self> {
        let key = [encrypt, k, r].concat();
        if key.len() != 64 {
            return Err(damaged("the repository's master key has the wrong length"));
        }
        Ok(Self {
            cipher: Aes256CtrPoly1305Aes::new(Key::from_slice(&key)),
        })
    }

    /// `nonce ‖ ciphertext ‖ tag`.
    pub(super) fn seal(&self, content: &[u8]) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE_BYTES] = rand::rng().random();
        let mut sealed = Vec::with_capacity(content.len() + ENVELOPE_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(content);
        let tag = self
            .cipher
            .encrypt_in_place_detached(Nonce::from_slice(&nonce), &[], &mut sealed[NONCE_BYTES..])
            .map_err(|_| Error::new(ErrorKind::Failed, "encryption failed"))?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// The content of an envelope, after its MAC was checked.
    pub(super) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>> {
        if sealed.len() < ENVELOPE_BYTES {
            return Err(too_short());
        }
        let (nonce, rest) = sealed.split_at(NONCE_BYTES);
        let (ciphertext, tag) = rest.split_at(rest.len() - TAG_BYTES);
        let mut content = ciphertext.to_vec();
        self.decrypt(nonce, &mut content, tag)?;
        Ok(content)
    }

    /// As [`Self::open`], where it lies. On an error nothing of it is to be used.
    pub(super) fn open_in_place<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a [u8]> {
        if sealed.len() < ENVELOPE_BYTES {
            return Err(too_short());
        }
        let (nonce, rest) = sealed.split_at_mut(NONCE_BYTES);
        let (content, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        self.decrypt(nonce, content, tag)?;
        Ok(content)
    }

    fn decrypt(&self, nonce: &[u8], content: &mut [u8], tag: &[u8]) -> Result<()> {
        self.cipher
            .decrypt_in_place_detached(Nonce::from_slice(nonce), &[], content, Tag::from_slice(tag))
            .map_err(|_| damaged("a piece of the repository does not decrypt: it was changed or belongs elsewhere"))
    }

    /// A blob as it lies in a pack: opened, decompressed where it was compressed, and checked against its id.
    pub(super) fn open_blob(
        &self,
        sealed: &[u8],
        uncompressed_length: Option<u32>,
        id: &Id,
    ) -> Result<Vec<u8>> {
        let opened = self.open(sealed)?;
        let blob = match uncompressed_length {
            None => opened,
            Some(length) => decompress(&opened, length as usize)?,
        };
        if hash(&blob) != *id {
            return Err(not_what_its_name_says(id));
        }
        Ok(blob)
    }

    /// A JSON file of the repository (snapshot, index, lock), compressed as version 2 does, and its name.
    pub(super) fn seal_json<T: Serialize>(&self, value: &T) -> Result<(FileId, Bytes)> {
        let json = to_json(value)?;
        let mut content = vec![COMPRESSED_JSON];
        content.extend_from_slice(&compress(&json)?);
        let sealed = self.seal(&content)?;
        Ok((file_id(&sealed), sealed.into()))
    }

    /// The value in a JSON file of the repository, compressed or not.
    pub(super) fn open_json<T: DeserializeOwned>(&self, sealed: &[u8]) -> Result<T> {
        let content = self.open(sealed)?;
        let json = match content.first() {
            Some(&COMPRESSED_JSON) => decompress(&content[1..], UNPACKED_BYTES_MAX)?,
            _ => content,
        };
        serde_json::from_slice(&json).map_err(|error| {
            Error::caused(
                ErrorKind::Damaged,
                "a file of the repository is not valid JSON",
                error,
            )
        })
    }

    /// One pack that holds the given serialized trees.
    pub(super) fn seal_tree_pack(&self, trees: &[(Id, Vec<u8>)]) -> Result<TreePack> {
        let mut content = Vec::new();
        let mut header = Vec::new();
        let mut packed = Vec::new();
        for (id, json) in trees {
            let offset = to_u32(content.len())?;
            let sealed = self.seal(&compress(json)?)?;
            let tree = PackedTree {
                id: *id,
                offset,
                length: to_u32(sealed.len())?,
                uncompressed_length: to_u32(json.len())?,
            };
            content.extend_from_slice(&sealed);
            header.push(COMPRESSED_TREE);
            header.extend_from_slice(&tree.length.to_le_bytes());
            header.extend_from_slice(&tree.uncompressed_length.to_le_bytes());
            header.extend_from_slice(&id_bytes(id));
            packed.push(tree);
        }
        let header = self.seal(&header)?;
        content.extend_from_slice(&header);
        content.extend_from_slice(&to_u32(header.len())?.to_le_bytes());
        Ok(TreePack {
            id: file_id(&content),
            content: content.into(),
            trees: packed,
        })
    }
}

/// What [`Sealer::open_blob`] does after opening, for a blob that may be too large to be in memory unpacked: `read` reads it. Only when all of
/// this is Ok is it the right one.
pub(super) fn read_blob<T>(
    opened: &[u8],
    uncompressed_length: Option<u32>,
    id: &Id,
    read: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<T> {
    let mut plain: Box<dyn BufRead> = match uncompressed_length {
        None => Box::new(opened),
        Some(length) => Box::new(BufReader::new(decoder(opened)?.take(length.into()))),
    };
    let mut hashing = Hashing {
        plain: &mut *plain,
        hash: Sha256::new(),
    };
    let result = read(&mut hashing);
    std::io::copy(&mut hashing, &mut std::io::sink()).map_err(undecompressed)?;
    if Id::new(hashing.hash.finalize().into()) != *id {
        return Err(not_what_its_name_says(id));
    }
    result
}

/// The name of a file: the SHA-256 of what is stored.
pub(super) fn file_id(stored: &[u8]) -> FileId {
    FileId(Sha256::digest(stored).into())
}

/// The id of a blob: the SHA-256 of its plain content.
pub(super) fn hash(content: &[u8]) -> Id {
    Id::new(Sha256::digest(content).into())
}

/// The bytes of an id, which rustic shows in hexadecimal only.
pub(super) fn id_bytes(id: &Id) -> [u8; 32] {
    let mut bytes = [0; 32];
    // 64 hexadecimal digits by construction.
    let _ = hex::decode_to_slice(id.to_hex().as_str(), &mut bytes);
    bytes
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::caused(ErrorKind::Failed, "cannot write JSON", error))
}

fn compress(content: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(content, zstd::DEFAULT_COMPRESSION_LEVEL)
        .map_err(|error| Error::io("cannot compress", error))
}

/// Hashes what goes through it.
struct Hashing<'a> {
    plain: &'a mut dyn BufRead,
    hash: Sha256,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.plain.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

thread_local! {
    /// One is larger than most pieces, and to make it for each of them takes a good part of the time of a restore.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn decompress(content: &[u8], length_max: usize) -> Result<Vec<u8>> {
    if length_max < UNPACKED_BYTES_MAX {
        return DECOMPRESSOR
            .with_borrow_mut(|kept| match kept {
                Some(kept) => kept.decompress(content, length_max),
                None => kept
                    .insert(Decompressor::new()?)
                    .decompress(content, length_max),
            })
            .map_err(undecompressed);
    }
    let mut plain = Vec::new();
    decoder(content)?
        .take(UNPACKED_BYTES_MAX as u64)
        .read_to_end(&mut plain)
        .map_err(undecompressed)?;
    Ok(plain)
}

fn decoder(content: &[u8]) -> Result<zstd::stream::read::Decoder<'static, &[u8]>> {
    zstd::stream::read::Decoder::with_buffer(content).map_err(undecompressed)
}

fn undecompressed(error: std::io::Error) -> Error {
    Error::caused(
        ErrorKind::Damaged,
        "a piece of the repository does not decompress",
        error,
    )
}

fn too_short() -> Error {
    damaged("a piece of the repository is too short to be decrypted")
}

fn not_what_its_name_says(id: &Id) -> Error {
    damaged(format!(
        "blob {id} of the repository does not hold what its name says"
    ))
}

fn to_u32(length: usize) -> Result<u32> {
    u32::try_from(length)
        .map_err(|_| Error::new(ErrorKind::Failed, "a tree is too large for a pack"))
}

fn damaged(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Damaged, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealer() -> Sealer {
        Sealer::new(&[7; 32], &[8; 16], &[9; 16]).unwrap()
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_to_the_same_bytes(content in prop::collection::vec(any::<u8>(), 0..5000)) {
            let sealer = sealer();
            let sealed = sealer.seal(&content).unwrap();
            prop_assert_eq!(sealed.len(), content.len() + ENVELOPE_BYTES);
            prop_assert_eq!(&sealer.open(&sealed).unwrap(), &content);
            let mut sealed = sealed;
            prop_assert_eq!(sealer.open_in_place(&mut sealed).unwrap(), content);
        }

        #[test]
        fn one_changed_byte_is_noticed(content in prop::collection::vec(any::<u8>(), 0..500), at in any::<prop::sample::Index>(), flip in 1u8..) {
            let sealer = sealer();
            let mut sealed = sealer.seal(&content).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            prop_assert_eq!(sealer.open(&sealed).unwrap_err().kind(), ErrorKind::Damaged);
            prop_assert_eq!(sealer.open_in_place(&mut sealed).unwrap_err().kind(), ErrorKind::Damaged);
        }

        #[test]
        fn junk_is_an_error_and_never_a_panic(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(sealer().open(&junk).is_err());
            prop_assert!(sealer().open_in_place(&mut junk.clone()).is_err());
            prop_assert!(sealer().open_json::<serde_json::Value>(&junk).is_err());
        }
    }

    #[test]
    fn a_blob_under_another_blobs_name_is_refused() {
        let sealer = sealer();
        let sealed = sealer.seal(b"one").unwrap();
        assert_eq!(
            sealer.open_blob(&sealed, None, &hash(b"one")).unwrap(),
            b"one"
        );
        assert!(sealer.open_blob(&sealed, None, &hash(b"two")).is_err());
    }

    #[test]
    fn json_files_open_whether_compressed_or_not() {
        let sealer = sealer();
        let value = serde_json::json!({"time": "now", "exclusive": false});
        let (_, sealed) = sealer.seal_json(&value).unwrap();
        assert_eq!(
            sealer.open_json::<serde_json::Value>(&sealed).unwrap(),
            value
        );
        let plain = sealer.seal(value.to_string().as_bytes()).unwrap();
        assert_eq!(
            sealer.open_json::<serde_json::Value>(&plain).unwrap(),
            value
        );
    }

    #[test]
    fn an_id_keeps_its_bytes() {
        assert_eq!(Id::new(id_bytes(&hash(b"x"))), hash(b"x"));
    }
}
