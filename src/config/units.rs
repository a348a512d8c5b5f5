//! Sizes and durations as people write them: `16MiB`, `1.5s`.

use std::time::Duration;

/// Bytes from `16MiB`, `1.5GB`, `512` (bytes). Units: B, kB/KB, MB, GB, TB (powers of 1000) and KiB,
/// MiB, GiB, TiB (powers of 1024).
///
/// # Errors
/// A sentence on what was expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor: f64 = match unit {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => {
            return Err(format!("unknown unit `{unit}`; write a size such as `16MiB`"));
        }
    };
    let bytes = number * factor;
    if bytes < 9e15 { Ok(bytes.round() as u64) } else { Err("larger than any disk".to_owned()) }
}

/// A duration from `1.5s`, `500ms`, `2m`, `1h`, `7d`. A unit is required, except for `0`.
///
/// # Errors
/// A sentence on what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "" if number == 0.0 => 0.0,
        "ms" => number / 1e3,
        "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => {
            return Err(format!("unknown unit `{unit}`; write a duration such as `1.5s` or `10m`"));
        }
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| "longer than any duration".to_owned())
}

fn split(text: &str) -> Result<(f64, &str), String> {
    let (number, digits) = fast_float::parse_partial::<f64, _>(text.trim())
        .map_err(|_| "write a number and a unit, such as `16MiB` or `1.5s`".to_owned())?;
    if !(number.is_finite() && number >= 0.0) {
        return Err("must not be negative".to_owned());
    }
    Ok((number, text.trim()[digits..].trim_start()))
}

/// `10GiB` for 10737418240: the largest binary unit that shows the size exactly enough.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if bytes >= size {
            let value = bytes as f64 / size as f64;
            let text = format!("{value:.1}");
            return format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text));
        }
    }
    format!("{bytes}B")
}

/// `2.3s`, `150ms`, `5m`, `3h`: short, in the unit that fits.
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (value, unit) = match seconds {
        0.0 => (0.0, "s"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s if s < 120.0 => (s, "s"),
        s if s < 7200.0 => (s / 60.0, "m"),
        s if s < 172_800.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "d"),
    };
    let text = format!("{value:.1}");
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_as_people_write_them() {
        assert_eq!(parse_bytes("16MiB"), Ok(16 << 20));
        assert_eq!(parse_bytes("1.5 GB"), Ok(1_500_000_000));
        assert_eq!(parse_bytes("512"), Ok(512));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "MiB", "-1MiB", "5 parsecs", "nan", "inf", "1e300TiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("5").is_err(), "five what?");
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for bytes in [0, 512, 1 << 20, 10 << 30] {
            assert_eq!(parse_bytes(&show_bytes(bytes)), Ok(bytes));
        }
        for ms in [0, 150, 1500, 60_000, 7_200_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }
    }
}
