//! Repositories that are large, as years of many shops leave them, without the years and the shops.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::init::{Cipher, open_key};

/// The first byte of what is compressed before it is encrypted.
const COMPRESSED: u8 = 2;

/// Whose the copies of a snapshot are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// The same customer's.
    His,
    /// A customer's each who has no other.
    Others,
}

/// Write every snapshot of a repository again so many times, each a day before the last. All of them have the same tree.
pub fn multiply_snapshots(
    repository: &Path,
    password: &str,
    copies: u64,
    whose: Copies,
) -> Result<()> {
    let (_, cipher) = open_key(repository, password)?;
    let directory = repository.join("snapshots");
    let originals = fs::read_dir(&directory)?.collect::<Result<Vec<_>, _>>()?;
    for original in originals {
        let content = cipher.open(&fs::read(original.path())?)?;
        let content = match content.split_first() {
            Some((&COMPRESSED, packed)) => zstd::decode_all(packed)?,
            _ => content,
        };
        let mut snapshot: Value = serde_json::from_slice(&content)?;
        let time = snapshot["time"]
            .as_str()
            .context("a snapshot without a time")?;
        let time: Timestamp = time.parse()?;
        for day in 1..=copies {
            let earlier = time - (24 * i64::try_from(day)?).hours();
            snapshot["time"] = earlier.to_string().into();
            if whose == Copies::Others {
                let other = u32::MAX - rand::random::<u32>() / 2;
                snapshot["tags"] = json!([format!("customer-{other}"), "manual", "both"]);
            }
            write(&cipher, &directory, &snapshot)?;
        }
    }
    Ok(())
}

/// Let the index tell of so many more blobs, in packs that are not there: what only has to know of them never looks. Such a repository is
/// good for no prune and no check.
pub fn add_blobs(repository: &Path, password: &str, blobs: u64) -> Result<()> {
    const IN_AN_INDEX: u64 = 50_000;
    const IN_A_PACK: u64 = 20;
    const BYTES: u64 = 400_000;
    let (_, cipher) = open_key(repository, password)?;
    let id = || {
        let [high, low]: [u128; 2] = rand::random();
        format!("{high:032x}{low:032x}")
    };
    let mut left = blobs;
    while left > 0 {
        let mut here = left.min(IN_AN_INDEX);
        left -= here;
        let mut packs = Vec::new();
        while here > 0 {
            let count = here.min(IN_A_PACK);
            here -= count;
            let blobs: Vec<Value> = (0..count)
                .map(|number| {
                    json!({
                        "id": id(), "type": "data", "offset": number * BYTES, "length": BYTES,
                        "uncompressed_length": BYTES * 2,
                    })
                })
                .collect();
            packs.push(json!({"id": id(), "blobs": blobs}));
        }
        write(&cipher, &repository.join("index"), &json!({"packs": packs}))?;
    }
    Ok(())
}

/// A file of a repository, under the name that its content gives it.
fn write(cipher: &Cipher, directory: &Path, content: &Value) -> Result<()> {
    let sealed = cipher.seal(content.to_string().as_bytes())?;
    let id: String = Sha256::digest(&sealed)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(fs::write(directory.join(id), sealed)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restic::Restic;

    #[test]
    fn restic_has_so_many_snapshots_then() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = scratch.path().join("repository");
        let restic = Restic::new(&repository, "a password").unwrap();
        restic.init().unwrap();
        fs::write(scratch.path().join("file"), "content").unwrap();
        restic
            .backup([scratch.path().join("file")], &["customer-1"])
            .unwrap();
        multiply_snapshots(&repository, "a password", 34, Copies::His).unwrap();
        let snapshots = restic.snapshots().unwrap();
        assert_eq!(snapshots.len(), 35);
        assert!(snapshots.iter().all(|one| one["tags"][0] == "customer-1"));
        restic.check_read_data().unwrap();
    }

    #[test]
    fn restic_reads_an_index_of_so_many_blobs() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = scratch.path().join("repository");
        let restic = Restic::new(&repository, "a password").unwrap();
        restic.init().unwrap();
        add_blobs(&repository, "a password", 50_030).unwrap();
        let listed = restic.run(["list", "blobs"]).unwrap().stdout;
        assert_eq!(String::from_utf8(listed).unwrap().lines().count(), 50_030);
    }
}
