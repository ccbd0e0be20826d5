//! Which versions of a table somebody may still read.
//!
//! *Place*: every version is noted when it is made, by [`ColumnTable`](super::ColumnTable); its `collect` asks. Nobody has to say that
//! he reads: a version is read as long as it is alive.

use std::sync::{Arc, Weak};

use super::Version;

/// The versions that are alive.
#[derive(Debug, Default)]
pub struct Held {
    versions: Vec<Weak<Version>>,
    /// Whether versions were let go since files were deleted last.
    let_go: bool,
}

impl Held {
    /// Notes a version, before anybody can let go of it.
    pub fn note(&mut self, version: &Arc<Version>) {
        self.forget();
        self.versions.push(Arc::downgrade(version));
    }

    /// Whether files may have become free.
    pub fn has_let_go(&mut self) -> bool {
        self.forget();
        self.let_go
    }

    /// Files could not be deleted: see [`Held::collecting`].
    pub fn failed(&mut self) {
        self.let_go = true;
    }

    /// The living versions, for the deletion of files that none of them lists.
    pub fn collecting(&mut self) -> Vec<Arc<Version>> {
        self.let_go = false;
        self.versions.iter().filter_map(Weak::upgrade).collect()
    }

    fn forget(&mut self) {
        let count = self.versions.len();
        self.versions.retain(|version| version.strong_count() > 0);
        self.let_go |= self.versions.len() < count;
    }
}
