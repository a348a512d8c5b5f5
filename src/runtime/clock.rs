//! The two clocks: one for waits, which never goes back, and the wall clock, as it is stored and shown.
//!
//! Whoever waits in a loop takes the time of tokio's timers, since a test that holds these (`start_paused`) then sees an hour
//! pass in milliseconds, and every decision that rests on the hour.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time of tokio's timers. It never goes back.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long ago that was, by [`now`].
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// For a test that holds the timers: waits until so many seconds after `start`, and half of one more.
#[cfg(test)]
pub async fn until(start: Instant, seconds: u64) {
    let wait = (start + Duration::from_secs(seconds)).saturating_duration_since(now());
    tokio::time::sleep(wait + Duration::from_millis(500)).await;
}

/// Milliseconds since 1970. Everything that is stored or shown counts in these.
pub fn now_ms() -> u64 {
    let now = SystemTime::now();
    // Timers that are held and moved on are ahead, and what waits for a time of the day waits no longer than for them.
    #[cfg(test)]
    let now = now + self::now().saturating_duration_since(Instant::now());
    now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

/// RFC 3339, or nothing for 0, which stands for "never".
pub fn rfc3339(ms: u64) -> Option<String> {
    let ms = i64::try_from(ms).ok().filter(|ms| *ms > 0)?;
    bson::DateTime::from_millis(ms).try_to_rfc3339_string().ok()
}
