//! Dates: MongoDB counts milliseconds from 1970, PostgreSQL microseconds from 2000, people years.

const DAY_MS: i64 = 24 * 3600 * 1000;

/// 2000-01-01, in milliseconds from 1970.
const PG_EPOCH_MS: i64 = 946_684_800_000;

/// The first and the last moment of a `timestamptz`, in milliseconds from 1970: 4714-11-24 BC, and before 294277-01-01.
const PG_MIN_MS: i64 = -210_866_803_200_000;
const PG_END_MS: i64 = 9_224_318_016_000_000;

/// As a `timestamptz` is sent; `None` where it has no such moment.
pub fn to_pg(millis: i64) -> Option<i64> {
    (PG_MIN_MS..PG_END_MS).contains(&millis).then(|| (millis - PG_EPOCH_MS) * 1000)
}

/// ISO 8601 in UTC, with milliseconds; `None` outside of the years 0 to 9999, where it is no agreed form.
pub fn iso8601(millis: i64) -> Option<String> {
    let (year, month, day) = civil(millis.div_euclid(DAY_MS));
    if !(0..10_000).contains(&year) {
        return None;
    }
    let of_day = millis.rem_euclid(DAY_MS);
    let (s, ms) = (of_day / 1000, of_day % 1000);
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z"))
}

/// Year, month and day of a day that is counted from 1970, in the proleptic Gregorian calendar. A year begins in March
/// here, so that the day that comes and goes is its last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_names() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
            (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(iso8601(millis).as_deref(), Some(text));
        }
        assert_eq!(iso8601(i64::MAX), None);
        assert_eq!(iso8601(253_402_300_800_000), None);
    }

    #[test]
    fn a_moment_that_postgres_has_no_room_for_is_none() {
        assert_eq!(to_pg(PG_EPOCH_MS), Some(0));
        assert_eq!(to_pg(i64::MAX), None);
        assert_eq!(to_pg(i64::MIN), None);
    }
}
