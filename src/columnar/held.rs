//! Which versions of a table somebody may still read.
//!
//! *Place*: every version is noted when it is made, by [`ColumnTable`](super::ColumnTable); its `collect` asks. Nobody has to say that
//! he reads: a version is read as long as somebody else holds it. The last to hold one is this list, so that neither a commit nor a
//! reader frees what it was made of.

use std::sync::Arc;

use super::Version;

/// The versions that somebody may hold.
#[derive(Debug, Default)]
pub struct Held {
    versions: Vec<Arc<Version>>,
    /// Whether versions were let go since files were deleted last.
    let_go: bool,
}

impl Held {
    /// Notes a version, before anybody can let go of it.
    pub fn note(&mut self, version: &Arc<Version>) {
        self.versions.push(Arc::clone(version));
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

    /// The versions that are held, for the deletion of files that none of them lists.
    pub fn collecting(&mut self) -> Vec<Arc<Version>> {
        self.forget();
        self.let_go = false;
        self.versions.clone()
    }

    fn forget(&mut self) {
        let count = self.versions.len();
        // One reference is this list's own.
        self.versions.retain(|version| Arc::strong_count(version) > 1);
        self.let_go |= self.versions.len() < count;
    }
}
