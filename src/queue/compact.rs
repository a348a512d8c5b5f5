//! Giving disk back: sled's files never become smaller, so a queue that was full once would keep the
//! disk full, and reading would never go on.
//!
//! A queue whose files are mostly empty is compacted when it is opened. The new files grow in the
//! folder `anew` beside the old ones, since the queue's folder itself may be a mount point and cannot be
//! exchanged. Two marks make the exchange safe against a crash at any moment:
//!
//! ```text
//! anew/…        being written: thrown away at the next start
//! anew/whole    the new files are on the disk: the old ones are deleted, again if need be
//! anew/moving   the old ones are gone: the new ones are moved into their place, and the folder removed
//! ```

use std::{fs, io, path::Path};

use super::{QueueError, QueueOptions, files::open_sled, reader::CacheGuard};
use crate::runtime::files::sync;

const COMPACTED: &str = "anew";
const WHOLE: &str = "whole";
const MOVING: &str = "moving";

/// Files this small are never worth it.
const SMALL: u64 = 32 << 20;

/// True when most of the files is empty: then they are compacted.
pub(super) fn is_mostly_empty(files: u64, content: u64) -> bool {
    files > SMALL + 4 * content
}

/// Bytes that are free for us on the disk of `path`; `None` where that cannot be told.
pub fn free_disk(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// True when there is room to write a compacted copy of `content`. On a disk that is full sled does not fail but hang.
pub(super) fn has_room(path: &Path, content: u64) -> bool {
    free_disk(path).is_some_and(|free| free > SMALL + 3 * content)
}

/// Bytes of sled's files in `path`.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn files_bytes(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if is_sleds(&entry) {
            let metadata = entry.metadata()?;
            bytes +=
                if metadata.is_dir() { files_bytes_below(&entry.path())? } else { metadata.len() };
        }
    }
    Ok(bytes)
}

fn files_bytes_below(path: &Path) -> io::Result<u64> {
    fs::read_dir(path)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// True for the files of sled 0.34: `db`, `conf`, `snap.…` and the folder `blobs`.
fn is_sleds(entry: &fs::DirEntry) -> bool {
    let name = entry.file_name();
    let name = name.to_string_lossy();
    matches!(&*name, "db" | "conf" | "blobs") || name.starts_with("snap.")
}

/// Writes a compacted copy of `db` beside its files, which [`finish`] exchanges once they are closed.
pub(super) fn write_compacted(db: &sled::Db, options: &QueueOptions) -> Result<(), QueueError> {
    let compacted = options.path.join(COMPACTED);
    let to = QueueOptions { path: compacted.clone(), ..options.clone() };
    let target = open_sled(&to)?;
    let (cache, target_cache) = (CacheGuard::default(), CacheGuard::default());
    for item in db.iter() {
        let (key, value) = item?;
        let bytes = value.len();
        target.insert(&key, value)?;
        cache.passed(db, &key, bytes);
        target_cache.passed(&target, &key, bytes);
    }
    target.flush()?;
    drop(target);
    sync_files(&compacted).map_err(QueueError::Disk)?;
    fs::write(compacted.join(WHOLE), "").map_err(QueueError::Disk)?;
    sync_files(&compacted).map_err(QueueError::Disk)
}

/// Removes what was written of the new files.
pub(super) fn give_up(path: &Path) {
    // What stays is removed at the next start.
    let _ = fs::remove_dir_all(path.join(COMPACTED));
}

/// Brings an exchange that was begun to its end. Nothing is open in `path` meanwhile.
///
/// # Errors
/// When the disk or the permissions do not allow it.
pub(super) fn finish(path: &Path) -> io::Result<()> {
    let compacted = path.join(COMPACTED);
    if !compacted.exists() {
        return Ok(());
    }
    if compacted.join(WHOLE).exists() {
        remove_sleds(path)?;
        sync(path)?;
        fs::rename(compacted.join(WHOLE), compacted.join(MOVING))?;
        sync(path)?;
        sync(&compacted)?;
    }
    if compacted.join(MOVING).exists() {
        for entry in fs::read_dir(&compacted)? {
            let entry = entry?;
            if is_sleds(&entry) {
                fs::rename(entry.path(), path.join(entry.file_name()))?;
            }
        }
        sync(path)?;
    }
    fs::remove_dir_all(&compacted)
}

fn remove_sleds(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if is_sleds(&entry) {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn sync_files(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_files(&entry.path())?;
        } else {
            sync(&entry.path())?;
        }
    }
    sync(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folders as a crash may leave them, and what stands in the queue's after the next start.
    #[test]
    fn an_exchange_that_was_interrupted_is_finished_or_undone() {
        let made = |compacted: &[&str], old: bool| {
            let dir = tempfile::TempDir::new().unwrap();
            if old {
                fs::write(dir.path().join("db"), "old").unwrap();
            }
            fs::create_dir(dir.path().join(COMPACTED)).unwrap();
            for name in compacted {
                fs::write(dir.path().join(COMPACTED).join(name), "new").unwrap();
            }
            finish(dir.path()).unwrap();
            assert!(!dir.path().join(COMPACTED).exists());
            fs::read_to_string(dir.path().join("db")).unwrap()
        };

        assert_eq!(made(&["db"], true), "old", "not whole yet");
        assert_eq!(made(&["db", WHOLE], true), "new");
        assert_eq!(made(&["db", MOVING], false), "new");
        // The move was under way: what is in place already must not be deleted.
        let dir = tempfile::TempDir::new().unwrap();
        fs::write(dir.path().join("db"), "new").unwrap();
        fs::create_dir(dir.path().join(COMPACTED)).unwrap();
        fs::write(dir.path().join(COMPACTED).join("conf"), "new").unwrap();
        fs::write(dir.path().join(COMPACTED).join(MOVING), "").unwrap();
        finish(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("db")).unwrap(), "new");
        assert!(dir.path().join("conf").exists());
    }

    #[test]
    fn files_are_compacted_only_when_most_of_them_is_empty() {
        assert!(!is_mostly_empty(SMALL, 0));
        assert!(is_mostly_empty(SMALL + 1, 0));
        assert!(!is_mostly_empty(100 << 20, 20 << 20));
    }
}
