//! Notes of which a tenant decides how many there are: their end is in memory, all before it in a file.
//!
//! Never: a file that has a name for longer than it takes to make it, or that anybody else may read; a disk that is filled to its end, for the journals of restores are
//! on it.

use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open, statvfs};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// What of it is in memory at most. What does not outgrow that needs no file.
const END_BYTES_MAX: usize = 256 * 1024;

/// What of the disk is left to others.
const LEFT_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes that follow each other.
pub(super) struct Spool {
    directory: PathBuf,
    file: Option<File>,
    bytes_in_file: u64,
    /// What follows those.
    end: Vec<u8>,
}

impl Spool {
    /// Its file, if it takes one, will be in this directory.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            file: None,
            bytes_in_file: 0,
            end: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes_in_file + self.end.len() as u64
    }

    /// Gives where they begin.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        if self.end.len() + bytes.len() > END_BYTES_MAX {
            self.require_room()?;
            self.write_end().map_err(|error| self.failed(error))?;
        }
        let start = self.len();
        self.end.extend_from_slice(bytes);
        Ok(start)
    }

    /// Fills the buffer with what was appended from there on.
    pub(super) fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        let in_file = self.bytes_in_file.saturating_sub(start);
        let in_file = usize::try_from(in_file).map_or(buffer.len(), |it| it.min(buffer.len()));
        let (of_file, of_end) = buffer.split_at_mut(in_file);
        if let Some(file) = &self.file {
            file.read_exact_at(of_file, start)
                .map_err(|error| self.failed(error))?;
        }
        let skipped = start.saturating_sub(self.bytes_in_file);
        let found = usize::try_from(skipped)
            .ok()
            .and_then(|skipped| self.end.get(skipped..)?.get(..of_end.len()))
            .ok_or_else(|| self.failed(io::ErrorKind::UnexpectedEof.into()))?;
        of_end.copy_from_slice(found);
        Ok(())
    }

    fn require_room(&self) -> Result<()> {
        let space = statvfs(&self.directory).map_err(|error| self.failed(error.into()))?;
        let available = space.f_bavail.saturating_mul(space.f_frsize);
        if available < LEFT_BYTES + self.end.len() as u64 {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{available} bytes are free for {}, where it is noted what is to be restored, and {LEFT_BYTES} of them are left to journals: make room there",
                    self.directory.display()
                ),
            ));
        }
        Ok(())
    }

    fn write_end(&mut self) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => nameless(&self.directory)?,
        };
        let file = self.file.insert(file);
        file.write_all_at(&self.end, self.bytes_in_file)?;
        self.bytes_in_file += self.end.len() as u64;
        self.end.clear();
        Ok(())
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(
            format!(
                "cannot note in {} what is to be restored",
                self.directory.display()
            ),
            error,
        )
    }
}

/// What is noted of one thing, as a few numbers.
pub(super) trait Record {
    type Words: AsRef<[u64]> + AsMut<[u64]> + Default;
    fn to_words(&self) -> Self::Words;
    fn from_words(words: Self::Words) -> Self;
}

/// Records, by number.
pub(super) struct Records<T> {
    spool: Spool,
    count: u32,
    of: PhantomData<fn() -> T>,
}

impl<T: Record> Records<T> {
    const BYTES: usize = size_of::<T::Words>();
    /// So many are read at once.
    const BLOCK: u32 = 512;

    pub(super) fn new(directory: &Path) -> Self {
        Self {
            spool: Spool::new(directory),
            count: 0,
            of: PhantomData,
        }
    }

    /// How many there are: the next one's number.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn push(&mut self, record: &T) -> Result<()> {
        // So many that 32 bits do not suffice are more than fit on any disk.
        let count = self.count.checked_add(1).ok_or_else(|| {
            Error::new(
                ErrorKind::Refused,
                "the snapshot has more files than can be restored at once",
            )
        })?;
        let words = record.to_words();
        let bytes: Vec<u8> = words
            .as_ref()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        self.spool.append(&bytes)?;
        self.count = count;
        Ok(())
    }

    pub(super) fn get(&self, number: u32) -> Result<T> {
        let mut bytes = vec![0; Self::BYTES];
        self.spool
            .read(u64::from(number) * Self::BYTES as u64, &mut bytes)?;
        Ok(decode(&bytes))
    }

    pub(super) fn all(&self) -> impl DoubleEndedIterator<Item = Result<(u32, T)>> {
        self.range(0..self.count)
    }

    /// These with their numbers. After an error there may be more, of which nobody should know anything.
    pub(super) fn range(
        &self,
        range: Range<u32>,
    ) -> impl DoubleEndedIterator<Item = Result<(u32, T)>> {
        let end = range.end;
        range.step_by(Self::BLOCK as usize).flat_map(move |start| {
            let numbers = start..end.min(start.saturating_add(Self::BLOCK));
            match self.block(numbers.clone()) {
                Ok(records) => numbers.zip(records).map(Ok).collect::<Vec<_>>(),
                Err(error) => vec![Err(error)],
            }
        })
    }

    fn block(&self, numbers: Range<u32>) -> Result<Vec<T>> {
        let mut bytes = vec![0; Self::BYTES * numbers.len()];
        self.spool
            .read(u64::from(numbers.start) * Self::BYTES as u64, &mut bytes)?;
        Ok(bytes.chunks_exact(Self::BYTES).map(decode).collect())
    }
}

fn decode<T: Record>(bytes: &[u8]) -> T {
    let mut words = T::Words::default();
    for (word, bytes) in words.as_mut().iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    T::from_words(words)
}

fn nameless(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // Not every file system can.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => soon_nameless(directory),
        Err(error) => Err(error.into()),
    }
}

fn soon_nameless(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!(".restore-{:016x}", rand::random::<u64>()));
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use xtask::mount::Mount;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Clone, Copy)]
    struct Pair(u64, u64);

    impl Record for Pair {
        type Words = [u64; 2];
        fn to_words(&self) -> Self::Words {
            [self.0, self.1]
        }
        fn from_words([first, second]: Self::Words) -> Self {
            Self(first, second)
        }
    }

    #[test]
    fn records_come_back_by_number_and_in_both_orders_from_memory_and_from_the_file() {
        let directory = tempfile::tempdir().unwrap();
        for count in [0, 1, 511, 512, 513, 50_000_u32] {
            let mut records = Records::new(directory.path());
            let record = |number: u32| Pair(number.into(), u64::MAX - u64::from(number));
            for number in 0..count {
                records.push(&record(number)).unwrap();
                // What was just noted, and what was noted long ago.
                assert_eq!(records.get(number).unwrap(), record(number));
                assert_eq!(records.get(number / 2).unwrap(), record(number / 2));
            }
            assert_eq!(records.count(), count);
            assert!(records.get(count).is_err());
            let expected: Vec<_> = (0..count).map(|number| (number, record(number))).collect();
            let all: Result<Vec<_>> = records.all().collect();
            assert_eq!(all.unwrap(), expected);
            let reversed: Result<Vec<_>> = records.all().rev().collect();
            assert!(reversed.unwrap().iter().rev().eq(&expected));
            let few: Result<Vec<_>> = records.range(count / 3..count / 2).collect();
            let (start, end) = (count as usize / 3, count as usize / 2);
            assert_eq!(few.unwrap(), expected[start..end]);
            assert_eq!(records.spool.file.is_some(), count == 50_000);
        }
    }

    #[test]
    fn the_file_has_no_name_and_is_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        for file in [nameless(directory.path()), soon_nameless(directory.path())] {
            let file = file.unwrap();
            file.write_all_at(b"noted", 3).unwrap();
            let found = file.metadata().unwrap();
            assert_eq!((found.nlink(), found.mode() & 0o777), (0, 0o600));
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_disk_is_not_filled_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let _mount = Mount::tmpfs(directory.path(), "size=66m").unwrap();
        let mut spool = Spool::new(directory.path());
        let mut note = || spool.append(&[1; 64 * 1024]);
        let error = std::iter::from_fn(|| Some(note()))
            .take(1000)
            .find_map(Result::err);
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("make room"), "{error}");
        assert!(spool.bytes_in_file > 1 << 20);
        let space = statvfs(directory.path()).unwrap();
        assert!(space.f_bavail * space.f_frsize >= LEFT_BYTES);
    }

    #[test]
    fn what_cannot_be_noted_is_an_error_that_says_where() {
        let mut spool = Spool::new(Path::new("/nowhere"));
        spool.append(&vec![1; END_BYTES_MAX]).unwrap();
        let error = spool.append(b"more").unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }
}
