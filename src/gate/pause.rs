//! A pause that a person has asked for: why, by whom, and until when. Kept beside the queue, so that it survives a
//! restart, and so does its end.

use serde::{Deserialize, Serialize};

/// Why nothing is written for now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pause {
    /// Milliseconds since 1970; 0 where an earlier version has noted it.
    pub since_ms: u64,
    /// When it ends by itself, milliseconds since 1970.
    pub until_ms: Option<u64>,
    pub reason: Option<String>,
    /// Who asked for it, as they say.
    pub by: Option<String>,
}

impl Pause {
    /// As it is kept.
    pub fn stored(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_else(|_| b"1".to_vec())
    }

    /// From what was kept; earlier versions kept a sign that says nothing.
    pub fn read(stored: &[u8]) -> Self {
        serde_json::from_slice(stored).unwrap_or_default()
    }

    /// True once it has ended by itself.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until| now_ms >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_read_as_it_was_kept_and_that_of_an_earlier_version_has_no_end() {
        let pause = Pause {
            since_ms: 5,
            until_ms: Some(9),
            reason: Some("Atlas is moved".to_owned()),
            by: Some("ann".to_owned()),
        };

        assert_eq!(Pause::read(&pause.stored()), pause);
        assert!(!pause.is_over(8) && pause.is_over(9));
        let earlier = Pause::read(b"1");
        assert!(earlier == Pause::default() && !earlier.is_over(u64::MAX));
    }
}
