//! Names the build: a digest of what decides which page the server renders and which one the browser expects.
//!
//! The server's half and the browser's half of the dashboard are compiled apart, and only halves of the same sources fit together. Style is not
//! in it: that may change by itself. Never: anything of the machine or of the time in the digest.

use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Beside the sources, from the directory of this crate, where cargo runs this: features, and the versions of what is compiled in.
const OTHERS: [&str; 2] = ["Cargo.toml", "../Cargo.lock"];

fn main() -> Result<()> {
    let mut files = OTHERS.map(PathBuf::from).to_vec();
    add_sources(Path::new("src"), &mut files)?;
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        digest.update(Sha256::digest(file.to_string_lossy().as_bytes()));
        digest.update(Sha256::digest(fs::read(&file)?));
    }
    let digest = digest.finalize();
    let build: String = digest[..16].iter().map(|b| format!("{b:02x}")).collect();
    println!("cargo::rustc-env=BACKUP_APP_BUILD={build}");
    for watched in ["build.rs", "src"].into_iter().chain(OTHERS) {
        println!("cargo::rerun-if-changed={watched}");
    }
    Ok(())
}

fn add_sources(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            add_sources(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
