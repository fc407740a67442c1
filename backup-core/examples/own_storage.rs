//! A storage of one's own, and data that no file holds: what docs/library.md describes, in one program.
//!
//! ```text
//! cargo run -p backup-core --example own_storage [DIR]
//! ```
//!
//! Everything is put below DIR (default: a scratch directory that is removed). A repository is kept twice, in two directories, by a [`Storage`]
//! that writes to both and reads from whichever can. Orders that only this program has are streamed into a snapshot, watched by a monitor, with a gate that
//! has the last word; then one of the two directories is lost, and they come back all the same. The restic program reads either.

use std::env;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use backup_core::bytes::Bytes;
use backup_core::error::{Error, ErrorKind, Result};
use backup_core::jiff::Zoned;
use backup_core::progress::{Cancel, Control, Gate, Monitor, Phase};
use backup_core::repository::{ArchiveRequest, Repository, StreamSource};
use backup_core::storage::{self, FileId, FileKind, Storage, StorageOptions};

/// In earnest: a random one, with a copy kept elsewhere, for without it no backup can be read.
pub const PASSWORD: &str = "correct horse battery staple";

/// What the snapshot calls the orders.
pub const PATH: &str = "/shop/orders.jsonl";

fn main() -> Result<()> {
    let scratch = tempfile::tempdir().map_err(|e| Error::io("there is no scratch directory", e))?;
    let dir = env::args_os()
        .nth(1)
        .map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    run(&dir)
}

/// Everything below `dir`, in `first` and `second`.
pub fn run(dir: &Path) -> Result<()> {
    let dir = std::path::absolute(dir).map_err(|e| Error::io("DIR is not a path", e))?;
    let password = PASSWORD.to_owned().into();
    let storage = Mirror::open(&dir.join("first"), &dir.join("second"))?;
    let repository = Arc::new(Repository::init(storage, &password)?);

    let counts = Arc::new(Counts::default());
    let seen = Arc::new(LastWord::default());
    let control = Control {
        monitor: Arc::clone(&counts) as _,
        cancel: Cancel::new(),
        gate: Some(Arc::clone(&seen) as _),
    };
    let request = ArchiveRequest {
        trees: Vec::new(),
        streams: vec![StreamSource {
            path: PATH.into(),
            reader: Box::new(Orders::new(20_000)),
        }],
        paths: vec!["/shop".into()],
        tags: vec!["orders".into()],
        time: Zoned::now(),
        note: None,
        parent: None,
    };
    let uncommitted = repository.archive(repository.lock_shared()?, request, &control)?;
    // Until here nobody sees anything of it. This is the place to ask whether the source itself ended well.
    let archived = uncommitted.commit(&control)?;
    println!(
        "snapshot {}: {} bytes, {} of them counted on the way",
        archived.snapshot,
        archived.bytes,
        counts.bytes.load(Ordering::Relaxed)
    );
    let told = seen.snapshot.lock().ok().and_then(|told| told.clone());
    println!("the gate was told of {}", told.unwrap_or_default());

    // An order to stop that comes before the commit leaves no snapshot.
    let cancelled = Control::default();
    cancelled.cancel.cancel();
    let lock = repository.lock_shared()?;
    let request = ArchiveRequest {
        trees: Vec::new(),
        streams: Vec::new(),
        paths: Vec::new(),
        tags: Vec::new(),
        time: Zoned::now(),
        note: None,
        parent: None,
    };
    match repository.archive(lock, request, &cancelled) {
        Err(error) if error.kind() == ErrorKind::Cancelled => println!("cancelled: {error}"),
        _ => return Err(Error::new(ErrorKind::Failed, "it was not cancelled")),
    }

    // The packs of one directory are lost.
    fs::remove_dir_all(dir.join("first/data"))
        .map_err(|e| Error::io("the packs are not where they were", e))?;
    let snapshot = repository
        .snapshot(&archived.snapshot)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "the snapshot is not there"))?;
    let _lock = repository.lock_shared()?;
    let mut stream = repository.stream_file(&snapshot, Path::new(PATH), &Control::default())?;
    let bytes = io::copy(&mut stream, &mut io::sink())
        .map_err(|e| Error::io("the orders cannot be read back", e))?;
    println!("back again: {bytes} bytes");
    Ok(())
}

/// The same files in two places. A file that the first one lists is in both.
#[derive(Debug)]
struct Mirror {
    first: Arc<dyn Storage>,
    second: Arc<dyn Storage>,
}

impl Mirror {
    fn open(first: &Path, second: &Path) -> Result<Arc<Self>> {
        // Each may as well be `sftp:user@host:/path`.
        let open = |place: &Path| {
            let location = place.display().to_string().parse()?;
            storage::open(&location, &StorageOptions::default())
        };
        Ok(Arc::new(Self {
            first: open(first)?,
            second: open(second)?,
        }))
    }

    fn either<T>(&self, read: impl Fn(&dyn Storage) -> Result<T>) -> Result<T> {
        match read(&*self.first) {
            // It has lost the file. What is damaged in it is found out above: every piece is compared with its name.
            Err(error) if error.kind() == ErrorKind::NotFound => read(&*self.second),
            other => other,
        }
    }
}

impl Storage for Mirror {
    fn location(&self) -> &str {
        self.first.location()
    }

    fn create(&self) -> Result<()> {
        self.second.create()?;
        self.first.create()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u64)>> {
        self.either(|storage| storage.list(kind))
    }

    fn read(&self, kind: FileKind, id: &FileId) -> Result<Bytes> {
        self.either(|storage| storage.read(kind, id))
    }

    fn read_range(&self, kind: FileKind, id: &FileId, offset: u64, length: u64) -> Result<Bytes> {
        self.either(|storage| storage.read_range(kind, id, offset, length))
    }

    fn write(&self, kind: FileKind, id: &FileId, content: &[Bytes]) -> Result<()> {
        // In this order: what is listed is in both.
        self.second.write(kind, id, content)?;
        self.first.write(kind, id, content)
    }

    fn remove(&self, kind: FileKind, id: &FileId) -> Result<()> {
        self.first.remove(kind, id)?;
        self.second.remove(kind, id)
    }

    fn with_stop(&self, stop: &Cancel) -> Arc<dyn Storage> {
        Arc::new(Self {
            first: self.first.with_stop(stop),
            second: self.second.with_stop(stop),
        })
    }
}

/// Made as they are read: on no disk is a copy, and never all of them in memory.
pub struct Orders {
    left: std::ops::Range<u32>,
    line: io::Cursor<String>,
}

impl Orders {
    /// So many of them.
    pub fn new(count: u32) -> Self {
        Self {
            left: 0..count,
            line: io::Cursor::default(),
        }
    }
}

impl Read for Orders {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.line.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        // An error here fails the backup: half of them are no backup.
        let Some(number) = self.left.next() else {
            return Ok(0);
        };
        self.line = io::Cursor::new(format!("{{\"order\":{number},\"article\":\"shirt\"}}\n"));
        self.line.read(buffer)
    }
}

/// Watches. It is called by the threads that do the work, and so only counts.
#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
}

impl Monitor for Counts {
    fn phase(&self, phase: Phase) {
        println!("now: {phase}");
    }

    fn bytes_done(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn warning(&self, text: &str) {
        println!("warning: {text}");
    }
}

/// Writes down what is about to be committed; an error here would stop it.
#[derive(Default)]
struct LastWord {
    snapshot: Mutex<Option<String>>,
}

impl Gate for LastWord {
    fn before_commit(&self, snapshot: Option<&str>) -> Result<()> {
        let mut seen = self
            .snapshot
            .lock()
            .map_err(|_| Error::new(ErrorKind::Failed, "the gate is broken"))?;
        *seen = snapshot.map(str::to_owned);
        Ok(())
    }
}
