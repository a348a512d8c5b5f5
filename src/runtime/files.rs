//! Small files that are there whole or not at all.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The file that has the name of `path` and this ending, in the same folder.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Removes the file at `path`, where there is one. True when there was.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> std::io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has the disk keep what is in a file, or which files a folder has.
///
/// # Errors
/// When it cannot be opened, or the disk fails.
pub fn sync(path: &Path) -> std::io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Puts `content` at `path`, for its owner only: written beside it and moved there, so that a full disk or a crash
/// leaves what was there before. What is there already, a link too, is replaced and never written through.
///
/// # Errors
/// When it cannot be written; nothing has changed then.
pub fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let beside = beside(path, ".new");
    // A crash in the middle of an earlier write has left it, and `create_new` below would fail on it for ever.
    remove(&beside)?;
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_link_is_not_written_through() {
        let dir = tempfile::TempDir::new().unwrap();
        let (path, target) = (dir.path().join("id"), dir.path().join("of somebody else"));
        fs::write(&target, "theirs").unwrap();
        symlink(&target, &path).unwrap();
        // What a write that was cut off has left.
        symlink(&target, dir.path().join("id.new")).unwrap();

        replace(&path, b"ours").unwrap();

        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!((metadata.is_file(), metadata.permissions().mode() & 0o777), (true, 0o600));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
