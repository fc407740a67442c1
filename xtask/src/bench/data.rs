//! The shops that are measured, the same every time. About half of the bytes of the generated ones can be compressed.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use xtask::testbed::{Customer, TestBed};
use xtask::tree::TreeImage;

use crate::measure;

const TABLES: u32 = 8;
/// What a row of the generated tables takes in a dump.
const ROW_BYTES: u64 = 1_180;
/// One file and one row in so many change.
const CHANGED_IN: u64 = 100;
const CHANGED_AT: u64 = 7;

/// A customer's shop, and what it was when it was made.
pub struct Shop {
    pub customer: Customer,
    files: u64,
    image: TreeImage,
    checksums: String,
}

impl Shop {
    /// WordPress as Debian has it, with as many posts and images as make it a small shop.
    pub fn small(bed: &TestBed, scale: u64) -> Result<Self> {
        let part = |whole: u64| u32::try_from((whole * scale / 100).max(1));
        let customer = bed.add_wordpress_customer(1, part(2_000)?, part(60)?)?;
        generate_files(&customer, 200, 5_000_000 * scale / 100)?;
        generate_rows(bed, &customer, 14_000_000 * scale / 100)?;
        Self::as_it_is(bed, customer, 200)
    }

    /// 60,000 files with 4 GiB, and a dump of 1 GB.
    pub fn large(bed: &TestBed, scale: u64) -> Result<Self> {
        let customer = bed.add_customer(1)?;
        let files = (60_000 * scale / 100).max(100);
        generate_files(&customer, files, (4 << 30) * scale / 100)?;
        generate_rows(bed, &customer, 1_000_000_000 * scale / 100)?;
        Self::as_it_is(bed, customer, files)
    }

    fn as_it_is(bed: &TestBed, customer: Customer, files: u64) -> Result<Self> {
        Ok(Self {
            image: TreeImage::of(&customer.site())?,
            checksums: bed.table_checksums(&customer.database)?,
            customer,
            files,
        })
    }

    /// How much it is.
    pub fn describe(&self, bed: &TestBed) -> Result<String> {
        Ok(format!(
            "{} files and directories with {}, and a database with a dump of {}",
            self.image.entries(),
            xtask::machine::bytes(self.image.bytes()),
            xtask::machine::bytes(u64::try_from(bed.dump(&self.customer.database)?.len())?)
        ))
    }

    /// One file and one row in a hundred become others.
    pub fn change(&self, bed: &TestBed) -> Result<()> {
        let mut random = SmallRng::seed_from_u64(rand::random());
        for number in (0..self.files).filter(|number| number % CHANGED_IN == CHANGED_AT) {
            let path = file(&self.customer, number);
            let mut content = fs::read(&path)?;
            random.fill_bytes(&mut content);
            fs::write(path, content)?;
        }
        for table in 0..TABLES {
            bed.mariadb().sql(&format!(
                "UPDATE {}.articles_{table} SET body = SHA2(RAND(), 512) WHERE id % {CHANGED_IN} = {CHANGED_AT}",
                self.customer.database
            ))?;
        }
        Ok(())
    }

    /// No file and no table is left.
    pub fn wreck(&self, bed: &TestBed) -> Result<()> {
        fs::remove_dir_all(self.customer.site())?;
        fs::create_dir(self.customer.site())?;
        let name = &self.customer.database;
        bed.mariadb()
            .sql(&format!("DROP DATABASE {name}; CREATE DATABASE {name}"))
            .map(drop)
    }

    /// An error if it is not what it was when it was made: what is fast and brings back something else does not count.
    pub fn ensure_as_made(&self, bed: &TestBed) -> Result<()> {
        let differences = self
            .image
            .differences(&TreeImage::of(&self.customer.site())?);
        ensure!(
            differences.is_empty(),
            "the files came back changed: {}",
            differences.join("\n")
        );
        ensure!(
            bed.table_checksums(&self.customer.database)? == self.checksums,
            "the tables came back changed"
        );
        Ok(())
    }
}

fn file(customer: &Customer, number: u64) -> std::path::PathBuf {
    customer.site().join(format!(
        "wp-content/uploads/{:03}/{:02}/file-{number}",
        number / 1000,
        number / 100 % 10
    ))
}

/// Nine files in ten are small, half of the bytes are in the rest; every second file is text, the others are noise.
pub fn generate_files(customer: &Customer, files: u64, total: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(u64::from(customer.id));
    let text = words(&mut random, 4 << 20);
    let large = files.div_ceil(10);
    let small = files - large;
    for number in 0..files {
        measure::check_interrupted()?;
        let path = file(customer, number);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        let mean = total / 2 / if number % 10 == 0 { large } else { small };
        let size = usize::try_from(random.random_range(mean / 2..=mean * 3 / 2))?;
        let mut content = vec![0; size];
        if number % 2 == 0 {
            for piece in content.chunks_mut(text.len() / 2) {
                let start = random.random_range(0..text.len() - piece.len());
                piece.copy_from_slice(&text[start..start + piece.len()]);
            }
        } else {
            random.fill_bytes(&mut content);
        }
        fs::write(path, content)?;
    }
    Ok(())
}

fn words(random: &mut SmallRng, length: usize) -> Vec<u8> {
    let words: Vec<String> = (0..5000)
        .map(|_| {
            (0..random.random_range(2..12))
                .map(|_| char::from(random.random_range(b'a'..=b'z')))
                .collect()
        })
        .collect();
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        text.extend_from_slice(words[random.random_range(0..words.len())].as_bytes());
        text.push(b' ');
    }
    text
}

/// Rows of about a kilobyte: hexadecimal digits, which compress to half, and plain words.
pub fn generate_rows(bed: &TestBed, customer: &Customer, dump_bytes: u64) -> Result<()> {
    let rows = (dump_bytes / ROW_BYTES / u64::from(TABLES)).max(1);
    for table in 0..TABLES {
        measure::check_interrupted()?;
        let digits: Vec<_> = (0..7)
            .map(|part| format!("SHA2(CONCAT(seq, '-{table}-{part}'), 512)"))
            .collect();
        bed.mariadb().sql(&format!(
            "USE {};
             CREATE TABLE articles_{table} (id INT PRIMARY KEY, title VARCHAR(100) NOT NULL, price DECIMAL(10,2),
                 changed DATETIME, body TEXT NOT NULL, KEY (title));
             INSERT INTO articles_{table} SELECT seq, CONCAT('Article ', MD5(seq)), seq / 100,
                 FROM_UNIXTIME(1700000000 + seq), CONCAT({}, REPEAT('a shop full of good things ', 6)) FROM seq_1_to_{rows}",
            customer.database,
            digits.join(", ")
        ))?;
    }
    Ok(())
}
