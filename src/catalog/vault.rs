//! The options of channels and sources, sealed: in the log, in RocksDB and in backups of them nothing can be read.
//!
//! *Place*: a server has one, which `alert` and `ingest::source` share. The key is the file `channels.key` in the data directory, readable
//! by its owner alone, made with the first channel or source.
//!
//! Sealed bytes: a nonce of 12 bytes, then ChaCha20-Poly1305 over the options as JSON, with the object's OID (little-endian) as
//! associated data: a sealed text cannot be moved to another object.
//!
//! *On failure*: without its key a channel or a source cannot be used (55000): it waits, and has to be created anew.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::catalog::Oid;
use crate::error::{Error, Result, SqlState};

const FILE: &str = "channels.key";
const KEY_BYTES: usize = 32;

/// The options of a channel or a source, by name.
pub type Options = BTreeMap<String, String>;

/// Seals and opens options.
pub struct Vault {
    path: PathBuf,
    key: Mutex<Option<[u8; KEY_BYTES]>>,
}

/// Without the key.
impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Vault {
    /// The vault of a data directory.
    pub fn new(data_dir: &Path) -> Vault {
        Vault { path: data_dir.join(FILE), key: Mutex::default() }
    }

    /// Seals the options of an object.
    pub fn seal(&self, owner: Oid, options: &Options) -> Result<Vec<u8>> {
        let key = self.key(true)?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Error::internal("the system gives no random bytes"))?;
        let mut bytes = serde_json::to_vec(options).map_err(|error| Error::internal(error.to_string()))?;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(owner.to_le_bytes()), &mut bytes)
            .map_err(|_| Error::internal("options could not be sealed"))?;
        Ok([&nonce[..], &bytes].concat())
    }

    /// Opens what was sealed for an object. 55000 where the key is not the one that it was sealed with.
    pub fn open(&self, owner: Oid, sealed: &[u8]) -> Result<Options> {
        let key = self.key(false)?;
        let (nonce, bytes) = sealed.split_at_checked(NONCE_LEN).ok_or_else(unusable)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| unusable())?;
        let mut bytes = bytes.to_vec();
        let opened = key.open_in_place(nonce, Aad::from(owner.to_le_bytes()), &mut bytes).map_err(|_| unusable())?;
        serde_json::from_slice(opened).map_err(|_| unusable())
    }

    fn key(&self, create: bool) -> Result<LessSafeKey> {
        let mut known = self.key.lock();
        let bytes = match *known {
            Some(bytes) => bytes,
            None => *known.insert(self.read_or_create(create)?),
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| Error::internal("a key has the wrong length"))?;
        Ok(LessSafeKey::new(key))
    }

    fn read_or_create(&self, create: bool) -> Result<[u8; KEY_BYTES]> {
        match fs::read(&self.path) {
            Ok(bytes) => return bytes.try_into().map_err(|_| unusable()),
            Err(error) if error.kind() == ErrorKind::NotFound && create => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(unusable()),
            Err(error) => return Err(self.failed("read", &error)),
        }
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| Error::internal("the system gives no random bytes"))?;
        let new = self.path.with_extension("new");
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        };
        write().map_err(|error| self.failed("write", &error))?;
        Ok(bytes)
    }

    fn failed(&self, action: &str, error: &std::io::Error) -> Error {
        Error::new(SqlState::IO_ERROR, format!("cannot {action} \"{}\": {error}", self.path.display()))
    }
}

fn unusable() -> Error {
    Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "the options of the notification channel or source cannot be read")
        .detail(format!("They were sealed with another key than the one in \"{FILE}\"."))
        .hint("Restore that file, or DROP what they belong to and create it anew.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_and_for_its_channel_alone() {
        let dir = tempfile::tempdir().unwrap();
        let options: Options = [("url".to_owned(), "https://hooks/secret".to_owned())].into();
        let sealed = Vault::new(dir.path()).seal(7, &options).unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("secret"));
        assert_eq!(Vault::new(dir.path()).open(7, &sealed).unwrap(), options);
        assert!(Vault::new(dir.path()).open(8, &sealed).is_err());
        assert!(Vault::new(tempfile::tempdir().unwrap().path()).open(7, &sealed).is_err());
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dir.path().join(FILE)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
}
