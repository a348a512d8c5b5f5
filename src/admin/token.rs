//! The token that guards what changes state: made at the first start, readable by its owner only.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// The token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the token file `{path}` cannot be used")]
pub struct TokenError {
    path: PathBuf,
    source: std::io::Error,
}

/// Reads the token, or makes one: 244 random bits, mode 0600.
///
/// # Errors
/// [`TokenError`] when the file can be neither read nor made.
pub fn read_or_make(path: &Path) -> Result<String, TokenError> {
    let failed = |source| TokenError { path: path.to_owned(), source };
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(mut file) => {
            let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            file.write_all(token.as_bytes()).map_err(failed)?;
            Ok(token)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
            read_token(path)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Reads the token of a running agent.
///
/// # Errors
/// [`TokenError`] when it cannot be read or is empty.
pub fn read_token(path: &Path) -> Result<String, TokenError> {
    let failed = |source| TokenError { path: path.to_owned(), source };
    let token = fs::read_to_string(path).map_err(failed)?.trim().to_owned();
    if token.is_empty() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is empty")));
    }
    Ok(token)
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
}
