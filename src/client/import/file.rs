//! An input file: its form by its name, its bytes decompressed and counted.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::super::{Error, Result};
use super::Format;
use super::progress::Progress;

/// Bytes read from the disk at once.
const READ_BYTES: usize = 256 * 1024;

/// Greatest window of zstd, as a power of two: what `zstd --long` makes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A file to load.
#[derive(Debug)]
pub struct Input {
    /// As it was given.
    pub name: String,
    pub path: PathBuf,
    pub format: Format,
    /// As it is on disk; 0 for standard input.
    pub bytes: u64,
    packed: Packed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packed {
    No,
    Gzip,
    Zstd,
}

impl Input {
    /// Looks at a path. Fails where there is no such file, or its form cannot be told.
    pub fn of(path: &Path, format: Option<Format>) -> Result<Input> {
        let name = path.display().to_string();
        let lower = name.to_ascii_lowercase();
        let (stem, packed) = if let Some(stem) = lower.strip_suffix(".gz") {
            (stem, Packed::Gzip)
        } else if let Some(stem) = lower.strip_suffix(".zst").or_else(|| lower.strip_suffix(".zstd")) {
            (stem, Packed::Zstd)
        } else {
            (lower.as_str(), Packed::No)
        };
        let by_name = match stem.rsplit_once('.').map(|(_, end)| end) {
            Some("csv") => Some(Format::Csv),
            Some("ndjson" | "jsonl" | "json") => Some(Format::Ndjson),
            Some("parquet") => Some(Format::Parquet),
            _ => None,
        };
        let unknown = || Error::Setup(format!("{name}: the name does not tell the form; give --format csv, ndjson or parquet"));
        let format = format.or(by_name).ok_or_else(unknown)?;
        if format == Format::Parquet && packed != Packed::No {
            return Err(Error::Setup(format!("{name}: a Parquet file cannot be read compressed as a whole")));
        }
        let bytes = if is_stdin(path) {
            0
        } else {
            let found = std::fs::metadata(path).map_err(|error| Error::Setup(format!("{name}: {error}")))?;
            if found.is_dir() {
                return Err(Error::Setup(format!("{name}: is a directory; name its files, such as {name}/*.csv.gz")));
            }
            found.len()
        };
        if format == Format::Parquet && is_stdin(path) {
            return Err(Error::Setup("a Parquet file cannot be read from standard input".to_owned()));
        }
        Ok(Input { name, path: path.to_owned(), format, bytes, packed })
    }

    /// Its bytes, decompressed. What is read from the disk is told to `progress`.
    pub fn read(&self, progress: &Progress) -> Result<Box<dyn Read + Send>> {
        let failed = |error| Error::Setup(format!("{}: {error}", self.name));
        let raw: Box<dyn Read + Send> = match is_stdin(&self.path) {
            true => Box::new(std::io::stdin()),
            false => Box::new(File::open(&self.path).map_err(failed)?),
        };
        let counted = BufReader::with_capacity(READ_BYTES, Counted { inner: raw, progress: progress.clone() });
        Ok(match self.packed {
            Packed::No => Box::new(counted),
            Packed::Gzip => Box::new(MultiGzDecoder::new(counted)),
            Packed::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(counted).map_err(failed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(failed)?;
                Box::new(decoder)
            }
        })
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

struct Counted {
    inner: Box<dyn Read + Send>,
    progress: Progress,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(into)?;
        self.progress.bytes(read as u64);
        Ok(read)
    }
}
