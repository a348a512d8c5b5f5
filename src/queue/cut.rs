//! A power cut, for tests of what is on the disk by a given moment.

use std::{io, path::Path};

use tempfile::TempDir;

/// What a power cut at this moment leaves of a queue: the files as they are, without what is still to be written.
pub(crate) fn after_a_crash(dir: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) -> io::Result<()> {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                copy(&entry.path(), &target)?;
            } else {
                std::fs::copy(entry.path(), target)?;
            }
        }
        Ok(())
    }
    let left = TempDir::new().expect("a test may make folders");
    copy(dir, left.path()).expect("a queue's files can be copied");
    left
}
