//! The one range of bytes that a request may ask for.

use axum::http::{HeaderMap, HeaderValue, header};

use super::Problem;

/// The part of something that is sent: its first and its last byte, and the size of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::edges) struct Part {
    pub(in crate::edges) first: u64,
    pub(in crate::edges) last: u64,
    pub(in crate::edges) size: u64,
}

impl Part {
    /// How many bytes it has.
    pub(in crate::edges) const fn length(self) -> u64 {
        self.last - self.first + 1
    }

    /// The value of `Content-Range`.
    pub(in crate::edges) fn content_range(self) -> Option<HeaderValue> {
        let Self { first, last, size } = self;
        HeaderValue::from_str(&format!("bytes {first}-{last}/{size}")).ok()
    }
}

/// The one range of bytes that was asked for, of something of this size. A header of another form is ignored, as HTTP
/// wants it.
pub(in crate::edges) fn part(headers: &HeaderMap, size: u64) -> Result<Option<Part>, Problem> {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else { return Ok(None) };
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, size.saturating_sub(1)),
        (Err(_), Ok(length)) if first.is_empty() => (size.saturating_sub(length), size.saturating_sub(1)),
        _ => return Ok(None),
    };
    if first > last || first >= size {
        return Err(Problem::out_of_range(size));
    }
    Ok(Some(Part { first, last, size }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(value))])
    }

    #[test]
    fn ranges() {
        let check = |value, expected: Option<(u64, u64)>| {
            let part = part(&with(value), 100).unwrap();
            assert_eq!(part.map(|part| (part.first, part.last)), expected, "{value}");
        };
        check("bytes=0-9", Some((0, 9)));
        check("bytes=90-200", Some((90, 99)));
        check("bytes=90-", Some((90, 99)));
        check("bytes=-10", Some((90, 99)));
        check("bytes=-200", Some((0, 99)));
        for ignored in ["bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=x-y", "bytes=-"] {
            check(ignored, None);
        }
        assert!(part(&with("bytes=100-"), 100).is_err());
        assert!(part(&with("bytes=0-0"), 0).is_err());
    }
}
