//! Text files as editors and consoles write them: with a mark in front, or in another encoding.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Longest file that is read; a secret has some hundred bytes. Of a longer one no more is read than shows that it is.
const LONGEST: usize = 4 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// It is there, and holds something else.
    #[error("{0}")]
    Malformed(String),
}

/// The text of a file, without the mark that Windows' editors put in front of it.
///
/// # Errors
/// [`ReadError`], in words that repeat nothing of the file.
pub fn read(path: &Path) -> Result<String, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
    text_of(bytes).map_err(ReadError::Malformed)
}

/// As [`read`], of bytes.
///
/// # Errors
/// What the bytes are instead.
pub fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    let utf_16 = "it is UTF-16; save it as UTF-8 (in PowerShell: `Set-Content -Encoding ascii`)";
    if bytes.len() > LONGEST {
        return Err("it is larger than 4 MiB".to_owned());
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") || bytes.contains(&0) {
        return Err(utf_16.to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".to_owned())?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_off_and_utf_16_is_named() {
        assert_eq!(text_of(b"\xef\xbb\xbfs3cret\r\n".to_vec()).unwrap(), "s3cret\r\n");
        for bytes in [&b"\xff\xfes\0"[..], b"\xfe\xff\0s", b"s\x003\0", b"\0s\x003"] {
            assert!(text_of(bytes.to_vec()).unwrap_err().contains("UTF-16"));
        }
        assert_eq!(text_of(vec![b's', 0xe9]).unwrap_err(), "it is no UTF-8 text");
    }

    /// `/dev/zero`, or a dump in the place of a secret.
    #[test]
    fn a_file_that_does_not_end_is_given_up_as_too_large() {
        let told = read(Path::new("/dev/zero")).unwrap_err().to_string();

        assert!(told.contains("larger than 4 MiB"), "{told}");
    }
}
