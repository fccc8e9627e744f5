//! Sizes and durations as people write them: `100GiB`, `6h`.

use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const DURATION_UNITS_MS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a size in bytes.
///
/// # Errors
/// What is wrong, and how to write it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse_with_unit(text, &SIZE_UNITS).ok_or_else(|| {
        format!("{text:?} is not a size: write a whole number and a unit, such as \"100GiB\" or \"500MB\"")
    })
}

/// Reads a duration.
///
/// # Errors
/// What is wrong, and how to write it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_with_unit(text, &DURATION_UNITS_MS).map(Duration::from_millis).ok_or_else(|| {
        format!("{text:?} is not a duration: write a whole number and ms, s, min, h or d, such as \"6h\" or \"500ms\"")
    })
}

fn parse_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end_of_number = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end_of_number);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A size for people: in the largest binary unit that keeps it at one or above.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut whole = bytes;
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < units.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 || whole >= 100 { format!("{whole} {name}") } else { format!("{whole}.{} {name}", rest * 10 / 1024) }
}

/// A duration for people: in the largest unit that loses nothing.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)] {
        if ms >= factor && ms.is_multiple_of(factor) {
            return format!("{} {unit}", ms / factor);
        }
    }
    format!("{ms} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("0B", 0), ("1KiB", 1024), ("100 GiB", 100 << 30), ("500MB", 500_000_000)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "5", "GiB", "-1GiB", "1.5GiB", "1gib", "99999999999TiB", "1 Gi B", "1GiBx"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("1s", 1_000), ("2min", 120_000), ("2m", 120_000), ("6h", 21_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "6", "6 parsecs", "1h30m", "-1s", "99999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shown() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size(100 << 30), "100 GiB");
        assert_eq!(show_size(u64::MAX), "16383 PiB");
        assert_eq!(show_duration(Duration::from_secs(21_600)), "6 h");
        assert_eq!(show_duration(Duration::from_millis(1_500)), "1500 ms");
        assert_eq!(show_duration(Duration::from_secs(90)), "90 s");
    }
}
