//! The token that guards what changes state: made at the first start, readable by its owner only.

use std::{
    fs,
    io::{Error, ErrorKind},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::{config::secret, runtime::files};

/// The token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the token file `{path}` cannot be used")]
pub struct TokenError {
    path: PathBuf,
    source: Error,
}

impl TokenError {
    /// True when the file holds nothing that anybody could rely on.
    pub fn is_of_nothing(&self) -> bool {
        matches!(self.source.kind(), ErrorKind::NotFound | ErrorKind::InvalidData)
    }
}

/// What was left of a token of ours: fewer digits than anybody would choose for a key of their own.
const CUT_BELOW: usize = 32;

/// Reads the token, or makes one: 244 random bits, mode 0600. A file that a full disk has left empty or cut is made
/// anew.
///
/// # Errors
/// [`TokenError`] when the file can be neither read nor made.
pub fn read_or_make(path: &Path) -> Result<String, TokenError> {
    let failed = |source| TokenError { path: path.to_owned(), source };
    // Whose file a link leads to is not ours to say.
    if let Ok(metadata) = fs::symlink_metadata(path)
        && metadata.is_file()
        && metadata.permissions().mode() & 0o077 != 0
    {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    }
    match read_token(path) {
        Err(error) if error.is_of_nothing() => {
            if error.source.kind() == ErrorKind::InvalidData {
                let error = crate::observe::report::one_line(&error);
                tracing::warn!(%error, "a new token is made");
            }
            let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            files::replace(path, token.as_bytes()).map_err(failed)?;
            Ok(token)
        }
        read => read,
    }
}

/// Reads the token of a running agent.
///
/// # Errors
/// [`TokenError`] when it cannot be read, or is none.
pub fn read_token(path: &Path) -> Result<String, TokenError> {
    let failed = |source| TokenError { path: path.to_owned(), source };
    let none = |why| failed(Error::new(ErrorKind::InvalidData, why));
    let bytes = fs::read(path).map_err(failed)?;
    // A crash may leave a file of the right length with nothing in it.
    if bytes.iter().all(|byte| *byte == 0 || byte.is_ascii_whitespace()) {
        return Err(none("it is empty"));
    }
    // As any secret: an editor may have put a mark in front of it, or saved it in another encoding.
    let text =
        secret::text_of(bytes).map_err(|why| failed(Error::new(ErrorKind::InvalidInput, why)))?;
    let token = text.trim_ascii();
    let is_cut = token.len() < CUT_BELOW
        && token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_cut {
        return Err(none("it ends in the middle of the token"));
    }
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token.to_owned());
    }
    // Somebody's own, and no header can carry it: theirs to mend.
    Err(failed(Error::new(
        ErrorKind::InvalidInput,
        "it holds more than one word of plain letters, digits and signs",
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("token");

        let token = read_or_make(&path).unwrap();

        assert_eq!(token.len(), 64);
        assert_eq!(read_or_make(&path).unwrap(), token);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_token_that_a_full_disk_has_cut_is_made_anew_and_somebodys_own_is_kept() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("token");
        for left in ["", "\n", "\0\0\0\0", "3fb0c"] {
            fs::write(&path, left).unwrap();
            assert!(read_token(&path).is_err(), "{left:?}");

            let token = read_or_make(&path).unwrap();

            assert_eq!(token.len(), 64, "{left:?}");
            assert_eq!(read_token(&path).unwrap(), token);
        }
        for own in ["s3cret-of-ours", "00112233445566778899aabbccddeeff"] {
            fs::write(&path, format!("{own}\n")).unwrap();
            assert_eq!(read_or_make(&path).unwrap(), own);
        }
        fs::write(&path, "\u{feff}s3cret-of-ours\r\n").unwrap();
        assert_eq!(read_or_make(&path).unwrap(), "s3cret-of-ours");
        let utf_16: Vec<u8> = "\u{feff}s3cret".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (other, why) in [(&b"two words"[..], "one word"), (&utf_16, "UTF-16")] {
            fs::write(&path, other).unwrap();
            let told = crate::observe::report::one_line(&read_or_make(&path).unwrap_err());
            assert!(told.contains(why), "{told}");
        }
    }

    /// As secrets are mounted in containers.
    #[test]
    fn a_token_file_that_is_a_link_is_read_and_its_target_left_as_it_is() {
        let dir = tempfile::TempDir::new().unwrap();
        let (path, target) = (dir.path().join("token"), dir.path().join("secret"));
        fs::write(&target, "s3cret-of-ours").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();

        assert_eq!(read_or_make(&path).unwrap(), "s3cret-of-ours");

        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o644);
        // One that leads to nothing is replaced, and nothing is written through it.
        fs::write(&target, "").unwrap();
        let token = read_or_make(&path).unwrap();
        assert_eq!((fs::read(&target).unwrap(), read_token(&path).unwrap()), (vec![], token));
    }
}
