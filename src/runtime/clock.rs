//! The wall clock, as it is stored and shown.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970. Everything that is stored or shown counts in these.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

/// RFC 3339, or nothing for 0, which stands for "never".
pub fn rfc3339(ms: u64) -> Option<String> {
    let ms = i64::try_from(ms).ok().filter(|ms| *ms > 0)?;
    bson::DateTime::from_millis(ms).try_to_rfc3339_string().ok()
}
