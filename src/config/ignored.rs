//! A setting that has no effect, as if the program had forgotten to use it.
//!
//! Only with the feature `ignored-settings`, which no release has: `OUTRIGGER_TEST_IGNORES=worker.lanes` names the key.
//! What is said of it, in the file or in its environment variable, is checked as ever, and then its default counts.
//! `scripts/settings` so sees whether each setting's test notices. It is done here, and not to the file that a test
//! writes, so that no way to start the program or to read a configuration passes it by.

/// Whether the key is to have no effect.
#[cfg(feature = "ignored-settings")]
pub(super) fn is_ignored(key: &str) -> bool {
    use std::sync::LazyLock;
    static WANTED: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("OUTRIGGER_TEST_IGNORES").ok());
    WANTED.as_deref() == Some(key)
}

/// Nothing is left of it without the feature.
#[cfg(not(feature = "ignored-settings"))]
#[inline(always)]
pub(super) fn is_ignored(_: &str) -> bool {
    false
}
