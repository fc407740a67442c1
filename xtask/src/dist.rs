//! The archive that operators install: the program, what browsers load, what goes around them on a hosting server, and the documents.
//!
//! Of the same files it is the same to the last byte, whoever packs them and when. Never: an archive under its name that is not whole,
//! or that has a link or a name from the machine it was packed on.

use std::env::consts::{ARCH, OS};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};
use tempfile::NamedTempFile;

/// All files are of this time, whenever they were written: the first day of 2000.
const TIME: u64 = 946_684_800;

/// What of the workspace goes in as it is.
const AS_THEY_ARE: [&str; 5] = [
    "README.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "docs",
    "deploy",
];

/// Where the server looks for what browsers load, when `Leptos.toml` lies beside it.
const SITE: &str = "site";

/// What a hosting server gets.
#[derive(Debug, Clone)]
pub struct Archive {
    /// `shophosting-backup-VERSION-x86_64-linux.tar.gz`.
    pub file: PathBuf,
    /// The same name and `.sha256`: what `sha256sum --check` reads.
    pub checksum: PathBuf,
}

/// Pack the program at `binary` and what browsers load of it at `site`, with all else from the workspace, into `destination`.
pub fn pack(workspace: &Path, binary: &Path, site: &Path, destination: &Path) -> Result<Archive> {
    let top = format!(
        "shophosting-backup-{}-{ARCH}-{OS}",
        env!("CARGO_PKG_VERSION")
    );
    ensure!(
        site.join("hash.txt").is_file(),
        "there is no bundle in {}: `make bundle` builds it",
        site.display()
    );
    let mut contents = Contents::default();
    contents.add("shophosting-backup", binary)?;
    contents.add(&format!("share/{SITE}"), site)?;
    contents.add(
        "share/__maintenance.html",
        &workspace.join("deploy/nginx/__maintenance.html"),
    )?;
    contents.files.push(Entry {
        name: "share/Leptos.toml".into(),
        content: Content::Text(settings(workspace)?),
    });
    for name in AS_THEY_ARE {
        contents.add(name, &workspace.join(name))?;
    }
    contents.write(&top, destination)
}

/// `Leptos.toml` with the site beside it, not in the target directory of a build.
fn settings(workspace: &Path) -> Result<String> {
    const BUILT: &str = "site-root = \"target/site\"";
    let text = fs::read_to_string(workspace.join("Leptos.toml"))?;
    ensure!(text.contains(BUILT), "Leptos.toml has no `{BUILT}`");
    Ok(text.replace(BUILT, &format!("site-root = \"{SITE}\"")))
}

#[derive(Default)]
struct Contents {
    files: Vec<Entry>,
}

struct Entry {
    /// Below the one directory that the archive has.
    name: PathBuf,
    content: Content,
}

enum Content {
    Directory,
    File(PathBuf),
    Text(String),
}

impl Contents {
    fn add(&mut self, name: &str, path: &Path) -> Result<()> {
        self.add_below(name.into(), path)
    }

    fn add_below(&mut self, name: PathBuf, path: &Path) -> Result<()> {
        let found = fs::symlink_metadata(path)
            .with_context(|| format!("{} cannot be packed", path.display()))?;
        if found.is_file() {
            self.files.push(Entry {
                name,
                content: Content::File(path.to_owned()),
            });
        } else if found.is_dir() {
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                self.add_below(name.join(entry.file_name()), &entry.path())?;
            }
            self.files.push(Entry {
                name,
                content: Content::Directory,
            });
        } else {
            bail!("{} is neither a file nor a directory", path.display());
        }
        Ok(())
    }

    fn write(mut self, top: &str, destination: &Path) -> Result<Archive> {
        for directory in ["", "share"] {
            self.files.push(Entry {
                name: directory.into(),
                content: Content::Directory,
            });
        }
        self.files.sort_by(|a, b| {
            a.name
                .as_os_str()
                .as_bytes()
                .cmp(b.name.as_os_str().as_bytes())
        });
        fs::create_dir_all(destination)?;
        let mut packed = NamedTempFile::new_in(destination)?;
        let mut archive = tar::Builder::new(GzEncoder::new(&mut packed, Compression::default()));
        for entry in &self.files {
            entry
                .append(&mut archive, &Path::new(top).join(&entry.name))
                .with_context(|| format!("cannot pack {}", entry.name.display()))?;
        }
        archive.into_inner()?.finish()?;
        let sum = sum_of(packed.path())?;
        let name = format!("{top}.tar.gz");
        let file = publish(packed, &destination.join(&name))?;
        let mut checksum = NamedTempFile::new_in(destination)?;
        writeln!(checksum, "{sum}  {name}")?;
        let checksum = publish(checksum, &destination.join(format!("{name}.sha256")))?;
        Ok(Archive { file, checksum })
    }
}

impl Entry {
    fn append(&self, archive: &mut tar::Builder<impl Write>, path: &Path) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_mtime(TIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_entry_type(EntryType::Regular);
        match &self.content {
            Content::Directory => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                header.set_size(0);
                archive.append_data(&mut header, path, io::empty())?;
            }
            Content::Text(text) => {
                header.set_mode(0o644);
                header.set_size(text.len() as u64);
                archive.append_data(&mut header, path, text.as_bytes())?;
            }
            Content::File(source) => {
                let file = File::open(source)?;
                let found = file.metadata()?;
                // Only whether it is a program counts, not the umask of who packs.
                let is_program = found.permissions().mode() & 0o100 != 0;
                header.set_mode(if is_program { 0o755 } else { 0o644 });
                header.set_size(found.len());
                archive.append_data(&mut header, path, file)?;
            }
        }
        Ok(())
    }
}

fn sum_of(file: &Path) -> Result<String> {
    let digest = Sha256::digest(fs::read(file)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Under its name, for everybody to read.
fn publish(file: NamedTempFile, path: &Path) -> Result<PathBuf> {
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(path.to_owned())
}
